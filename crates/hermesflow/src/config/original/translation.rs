//! Key by key: what the original's settings are called here.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use hermesflow_models::showo::config::ADDED_TOKENS;
use serde_yaml_ng::{Mapping, Value};

use super::keys::{SINGLE, meaningless};
use super::reader::{Reader, wrong};
use crate::config::Expect;
use crate::config::expect::original_name;
use crate::overrides;

/// Pixels of the side of an image token in every checkpoint that the original knows.
const TOKEN_PIXELS: usize = 16;

/// Columns of a warning.
const COLUMNS: usize = 100;

/// The translation of one file.
pub struct Translation<'g> {
    /// A tree of our configuration.
    pub into: Value,
    /// What the user must be told.
    pub warnings: Vec<String>,
    from: Reader,
    /// The keys that stood on the command line.
    given: &'g BTreeSet<String>,
    /// Settings that are not followed, with the reason.
    unfollowed: Vec<String>,
}

impl<'g> Translation<'g> {
    /// Translates what a reader holds; `given` are the keys of the command line.
    ///
    /// # Errors
    /// Names the key whose value is of the wrong type, contradicts another, or asks for what is not here.
    pub fn of(from: Reader, given: &'g BTreeSet<String>) -> Result<Self> {
        let into = Value::Mapping(Mapping::new());
        let mut translation = Self { into, warnings: Vec::new(), from, given, unfollowed: Vec::new() };
        translation.model()?;
        translation.expectations()?;
        translation.data()?;
        translation.sampling()?;
        translation.mask_schedule()?;
        translation.experiment()?;
        translation.optimizer()?;
        translation.batch()?;
        translation.training()?;
        translation.warn();
        Ok(translation)
    }

    fn model(&mut self) -> Result<()> {
        if let Some(kind) = self.from.text("model.vq_model.type")? {
            ensure!(kind == "magvitv2", "model.vq_model.type: {kind:?} is not here; only magvitv2 is");
        }
        self.text("model.vq_model.vq_model_name", "model.vq")?;
        self.text("model.vq_model.pretrained_model_path", "model.vq")?;
        self.text("model.showo.pretrained_model_path", "model.showo")?;
        self.text("pretrained_model_path", "model.showo")?;
        self.text("model.showo.llm_model_path", "model.tokenizer")?;
        if self.from.flag("model.showo.load_from_showo")? == Some(false) {
            self.unfollow("model.showo.load_from_showo", "training begins with the checkpoint, not with a bare Phi");
        }
        Ok(())
    }

    /// The facts about the checkpoint, which are compared with it when it is opened.
    fn expectations(&mut self) -> Result<()> {
        let expect = Expect {
            vocab_size: self.from.count("model.showo.vocab_size")?,
            llm_vocab_size: self.from.count("model.showo.llm_vocab_size")?,
            codebook_size: self.from.count("model.showo.codebook_size")?,
            image_tokens: self.from.count("model.showo.num_vq_tokens")?,
            resolution: self.resolution()?,
            clip: self.from.flag("model.showo.w_clip_vit")?,
        };
        if let Some(added) = self.from.count("model.showo.num_new_special_tokens")? {
            let known = ADDED_TOKENS.len();
            ensure!(added == known, "model.showo.num_new_special_tokens: {added}, but Show-o adds {known} tokens");
        }
        expect.validate_as(original_name)?;
        if let (Some(tokens), Some(resolution)) = (expect.image_tokens, expect.resolution) {
            let side = resolution / TOKEN_PIXELS;
            ensure!(
                resolution.is_multiple_of(TOKEN_PIXELS) && tokens == side * side,
                "model.showo.num_vq_tokens: {tokens} tokens do not make {resolution} pixels (dataset.params.resolution): \
                 a token is {TOKEN_PIXELS} pixels wide, so that {resolution} pixels have {side} × {side} = {} tokens; \
                 correct one of the two",
                side * side
            );
        }
        if !expect.is_empty() {
            self.set("model.expect", serde_yaml_ng::to_value(expect)?)?;
        }
        match self.from.count("dataset.preprocessing.max_seq_length")? {
            None | Some(128) => {}
            Some(_) => self.unfollow(
                "dataset.preprocessing.max_seq_length",
                "captions longer than the checkpoint's max_text_len, 128 tokens where its config.json does not say, \
                 are cut there",
            ),
        }
        Ok(())
    }

    /// The side of the images: inference reads one key, training the other.
    fn resolution(&mut self) -> Result<Option<usize>> {
        let keys = ["dataset.params.resolution", "dataset.preprocessing.resolution"];
        let (sampled, trained) = (self.from.count(keys[0])?, self.from.count(keys[1])?);
        match (self.given.contains(keys[0]), self.given.contains(keys[1])) {
            (true, false) => return Ok(sampled), // the command line's counts for both
            (false, true) => return Ok(trained),
            _ => {}
        }
        self.agree(keys[0], sampled, keys[1], trained)?;
        Ok(sampled.or(trained))
    }

    fn data(&mut self) -> Result<()> {
        const KEY: &str = "dataset.params.dpo_data_path";
        if self.from.flag("dataset.preprocessing.random_flip")? == Some(true) {
            self.unfollow("dataset.preprocessing.random_flip", "a flipped image is not what its caption says");
        }
        let Some(path) = self.from.text(KEY)? else { return Ok(()) };
        let path = Path::new(&path);
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let stem = name.strip_suffix(".json").and_then(|stem| stem.strip_prefix("pair_dpo_data"));
        let iteration = stem.and_then(|stem| stem.strip_prefix("_iter")).and_then(|n| n.parse::<usize>().ok());
        ensure!(
            stem == Some("") || iteration.is_some(),
            "{KEY}: {} is not named pair_dpo_data.json, under which the pairs of a data root are found; rename it",
            path.display()
        );
        if let Some(iteration) = iteration {
            self.unfollow(KEY, &format!("the pairs of this file are read with --iteration {iteration}"));
        }
        let root = match path.parent().and_then(Path::to_str) {
            Some("") | None => ".",
            Some(root) => root,
        };
        self.set("data.root", root.into())
    }

    /// Captions, answers and images.
    fn sampling(&mut self) -> Result<()> {
        if let Some(mode) = self.from.text("mode")? {
            match mode.as_str() {
                "t2i" => {}
                "inpainting" => bail!(
                    "mode: inpainting is a command here: hermesflow inpaint FILE --image … --mask … --prompt …, without \
                     this key"
                ),
                "extrapolation" => bail!(
                    "mode: extrapolation is a command here: hermesflow extrapolate FILE --image … --prompt …, without \
                     this key"
                ),
                other => bail!("mode: {other:?} is none of t2i, inpainting, extrapolation"),
            }
        }
        let mut single = Vec::new();
        for key in SINGLE {
            single.extend(self.from.value(key)?.map(|_| key));
        }
        if !single.is_empty() {
            self.unfollow(
                &single.join(" and "),
                "a run works on the records of its data root; pictures and prompts of your own are options of \
                 hermesflow t2i, mmu, inpaint and extrapolate",
            );
        }
        if let Some(question) = self.from.text("question")? {
            ensure!(
                !question.contains(" *** "),
                "question: {question:?} is several questions, but every image is captioned under one; choose one (hermesflow \
                 mmu asks several)"
            );
            self.set("caption.question", question.into())?;
        }
        if let Some(tokens) = self.from.count("max_new_tokens")? {
            self.set("caption.max_new_tokens", tokens.into())?;
            self.set("answer.max_new_tokens", tokens.into())?;
        }
        if let Some(temperature) = self.from.number("training.generation_temperature")? {
            self.set("imagine.temperature", temperature.into())?;
        }
        // The original's inference takes these two from the command line alone; in a file they are of the pictures
        // that its training shows between steps.
        let mut previews = Vec::new();
        if let Some(guidance) = self.from.number("training.guidance_scale")? {
            match self.given.contains("training.guidance_scale") {
                true => self.set("imagine.guidance", guidance.into())?,
                false => previews.push("training.guidance_scale"),
            }
        }
        if let Some(steps) = self.from.count("training.generation_timesteps")? {
            match self.given.contains("training.generation_timesteps") {
                true => self.set("imagine.steps", steps.into())?,
                false => previews.push("training.generation_timesteps"),
            }
        }
        if !previews.is_empty() {
            self.unfollow(
                &previews.join(" and "),
                "of pictures shown during training; for images give guidance_scale=… generation_timesteps=…",
            );
        }
        self.number("guidance_scale", "imagine.guidance")?;
        self.count("generation_timesteps", "imagine.steps")
    }

    fn mask_schedule(&mut self) -> Result<()> {
        let top = self.from.text("mask_schedule.schedule")?;
        let inner = self.from.text("training.mask_schedule")?;
        let (key, schedule) = match (top, inner) {
            (Some(top), _) => ("mask_schedule.schedule", top), // as in the original, it wins
            (None, Some(inner)) => ("training.mask_schedule", inner),
            (None, None) => return Ok(()),
        };
        let power = schedule.strip_prefix("pow").is_some_and(|exponent| exponent.parse::<f64>().is_ok());
        ensure!(
            power || ["cosine", "linear", "sigmoid"].contains(&schedule.as_str()),
            "{key}: {schedule:?} is none of cosine, linear, pow2 (any exponent), sigmoid"
        );
        let params = self.from.value("mask_schedule.params")?; // the original hands them to sigmoid alone
        let written =
            match params.filter(|params| key.starts_with("mask") && schedule == "sigmoid" && !params.is_null()) {
                Some(params) => {
                    let pair = [("schedule".into(), schedule.as_str().into()), ("params".into(), params)];
                    Value::Mapping(pair.into_iter().collect())
                }
                None => Value::from(schedule.as_str()),
            };
        if schedule != "cosine" {
            self.set("imagine.schedule", written.clone())?;
            self.set("train.mask_schedule", written)?;
        }
        Ok(())
    }

    fn experiment(&mut self) -> Result<()> {
        const RESUME: &str = "experiment.resume_from_checkpoint";
        self.text("experiment.output_dir", "output")?;
        self.count("experiment.save_every", "train.checkpoint_every")?;
        match self.from.value(RESUME)? {
            None | Some(Value::Bool(true)) => {}
            Some(Value::String(text)) if text == "latest" => {}
            Some(Value::Null | Value::Bool(_) | Value::String(_)) => self.unfollow(
                RESUME,
                "a training always goes on from its newest checkpoint; to begin anew, choose another output",
            ),
            Some(other) => return Err(wrong(RESUME, "latest or False", &other)),
        }
        Ok(())
    }

    fn optimizer(&mut self) -> Result<()> {
        if let Some(name) = self.from.text("optimizer.name")? {
            ensure!(name == "adamw", "optimizer.name: {name:?} is not here; only adamw is");
        }
        let keys = ["optimizer.params.learning_rate", "lr_scheduler.params.learning_rate"];
        let (rate, scheduled) = (self.from.number(keys[0])?, self.from.number(keys[1])?);
        self.agree(keys[0], rate, keys[1], scheduled)?;
        if let Some(rate) = rate.or(scheduled) {
            self.set("train.learning_rate", rate.into())?;
        }
        self.number("optimizer.params.beta1", "train.beta1")?;
        self.number("optimizer.params.beta2", "train.beta2")?;
        self.number("optimizer.params.epsilon", "train.eps")?;
        self.number("optimizer.params.weight_decay", "train.weight_decay")?;
        self.count("lr_scheduler.params.warmup_steps", "train.warmup_steps")?;
        let Some(scheduler) = self.from.text("lr_scheduler.scheduler")? else { return Ok(()) };
        let kind = match scheduler.as_str() {
            "cosine" | "linear" => scheduler.as_str(),
            "constant_with_warmup" => "constant",
            "constant" => {
                self.set("train.warmup_steps", 0.into())?; // diffusers' constant has none
                "constant"
            }
            other => bail!(
                "lr_scheduler.scheduler: {other:?} is not here; give cosine, linear, constant or constant_with_warmup"
            ),
        };
        self.set("train.schedule", kind.into())
    }

    /// Pairs per step. The original draws the two halves of a "pair" by two loaders, each with its own size.
    fn batch(&mut self) -> Result<()> {
        let [both, images, captions] = ["training.batch_size", "training.batch_size_t2i", "training.batch_size_mmu"];
        let loader = self.from.count("dataset.params.batch_size")?;
        let (all, halves) = (self.from.count(both)?, (self.from.count(images)?, self.from.count(captions)?));
        if !self.given.contains(both) {
            self.agree("dataset.params.batch_size", loader, both, all)?;
        }
        let pairs = match (all, halves) {
            (Some(all), _) if self.given.contains(both) => Some(all),
            (all, (None, None)) if self.is_training() => all,
            (Some(_), (None, None)) => {
                self.unfollow(both, "images at a time in the original's inference; training has train.batch_size");
                None
            }
            (_, halves) if !self.is_pair_dpo() => halves.0.or(halves.1),
            (all, halves) => {
                self.agree(images, halves.0, captions, halves.1)?;
                let half = halves.0.or(halves.1);
                self.agree(images, half, both, all)?;
                half
            }
        };
        if let Some(pairs) = pairs {
            self.set("train.batch_size", pairs.into())?;
        }
        Ok(())
    }

    fn training(&mut self) -> Result<()> {
        if self.is_training() && !self.is_pair_dpo() {
            self.warnings.push(
                "this is a file of Show-o's own training, without pairs (dataset.params.dpo_data_path); what is trained \
                 here is Pair-DPO, under this file's numbers"
                    .into(),
            );
        }
        if let Some(seed) = self.from.count("training.seed")? {
            self.set("seed", seed.into())?;
        }
        self.number("training.beta", "train.beta")?;
        self.number("training.cond_dropout_prob", "train.prompt_dropout")?;
        self.number("training.t2i_coeff", "train.weight_gen")?;
        self.number("training.mmu_coeff", "train.weight_und")?;
        self.count("training.max_train_steps", "train.steps")?;
        self.count("training.gradient_accumulation_steps", "train.accumulation")?;
        match self.from.value("training.max_grad_norm")? {
            Some(Value::Null) => self.set("train.max_grad_norm", Value::Null)?,
            _ => self.number("training.max_grad_norm", "train.max_grad_norm")?,
        }
        for key in ["min_masking_rate", "mask_contiguous_region_prob"] {
            if let Some(share) = self.from.number(&format!("training.{key}"))?.filter(|share| *share != 0.0) {
                self.set(&format!("train.{key}"), share.into())?;
            }
        }
        self.unlike_ours()
    }

    /// Settings that are ours as the published files have them, and not followed otherwise.
    fn unlike_ours(&mut self) -> Result<()> {
        if let Some(precision) = self.from.value("training.mixed_precision")?.filter(|value| !value.is_null()) {
            match precision.as_str().map(str::to_owned).or_else(|| precision.as_bool().map(|_| "no".into())) {
                Some(precision) if ["no", "fp32"].contains(&precision.as_str()) => {}
                Some(precision) => {
                    self.unfollow("training.mixed_precision", &format!("{precision} there, training is in f32 here"));
                }
                None => return Err(wrong("training.mixed_precision", "no, fp16 or bf16", &precision)),
            }
        }
        if self.from.number("training.label_smoothing")?.is_some_and(|share| share != 0.0) {
            self.unfollow("training.label_smoothing", "log-probabilities of pairs are not smoothed");
        }
        if self.from.text("training.noise_type")?.is_some_and(|kind| kind != "mask") {
            self.unfollow("training.noise_type", "images are masked, as by the original's training whatever it says");
        }
        for (key, why) in [
            ("training.predict_all_tokens", "only masked tokens count"),
            ("training.overfit_one_batch", "every pair takes its turn"),
        ] {
            if self.from.flag(key)? == Some(true) {
                self.unfollow(key, why);
            }
        }
        Ok(())
    }

    /// Whether the file can be trained by; the original's demo files cannot.
    fn is_training(&self) -> bool {
        self.from.has("optimizer") || self.from.has("training.max_train_steps")
    }

    /// Whether it is one of HermesFlow's trainings, not one of Show-o's.
    fn is_pair_dpo(&self) -> bool {
        self.from.has("dataset.params.dpo_data_path") || self.from.has("training.beta")
    }

    fn set(&mut self, key: &str, value: Value) -> Result<()> {
        overrides::set(&mut self.into, key, value).with_context(|| key.to_owned())
    }

    fn text(&mut self, theirs: &str, ours: &str) -> Result<()> {
        self.from.text(theirs)?.map_or(Ok(()), |text| self.set(ours, text.into()))
    }

    fn number(&mut self, theirs: &str, ours: &str) -> Result<()> {
        self.from.number(theirs)?.map_or(Ok(()), |number| self.set(ours, number.into()))
    }

    fn count(&mut self, theirs: &str, ours: &str) -> Result<()> {
        self.from.count(theirs)?.map_or(Ok(()), |count| self.set(ours, count.into()))
    }

    /// Refuses two keys that say the same and differ.
    fn agree<T: PartialEq + std::fmt::Display>(
        &self,
        first: &str,
        one: Option<T>,
        second: &str,
        two: Option<T>,
    ) -> Result<()> {
        if let (Some(one), Some(two)) = (one, two) {
            ensure!(
                one == two,
                "{first} is {one} and {second} is {two}, but here they are one number; give both the same"
            );
        }
        Ok(())
    }

    fn unfollow(&mut self, key: &str, why: &str) {
        self.unfollowed.push(format!("{key} ({why})"));
    }

    /// The warning about everything that was not translated.
    fn warn(&mut self) {
        let (mut without, mut unknown) = (Vec::new(), Vec::new());
        for key in self.from.unread() {
            match meaningless(&key) {
                Some(entry) if !without.contains(&entry.to_owned()) => without.push(entry.to_owned()),
                Some(_) => {}
                None => unknown.push(key),
            }
        }
        let groups = [
            ("Unknown", unknown),
            ("Not followed", std::mem::take(&mut self.unfollowed)),
            ("Without a meaning here", without),
        ];
        let said: Vec<String> = groups
            .into_iter()
            .filter(|(_, keys)| !keys.is_empty())
            .map(|(name, keys)| format!("{name}: {}.", keys.join(", ")))
            .collect();
        if !said.is_empty() {
            let text = format!("a file of the original, translated. {}", said.join(" "));
            self.warnings.insert(0, wrapped(&text));
        }
    }
}

/// A paragraph in lines of [`COLUMNS`], all but the first indented.
fn wrapped(text: &str) -> String {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().filter(|line| line.is_empty() || line.chars().count() + word.len() < COLUMNS);
        match line {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) => *line += &format!(" {word}"),
            None => lines.push(format!("  {word}")),
        }
    }
    lines.join("\n")
}
