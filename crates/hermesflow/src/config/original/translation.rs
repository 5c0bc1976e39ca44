//! Key by key: what the original's settings are called here.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use hermesflow_models::showo::config::ADDED_TOKENS;
use serde_yaml_ng::{Mapping, Value};

use super::keys::{SINGLE, meaningless};
use super::reader::Reader;
use crate::config::expect::{Expect, original_name};
use crate::config::yaml;

/// Pixels of the side of an image token in every checkpoint that the original knows.
const TOKEN_PIXELS: usize = 16;

/// The translation of one file.
pub struct Translation<'g> {
    /// A tree of our configuration.
    pub into: Value,
    /// What the user must be told.
    pub warnings: Vec<String>,
    pub(super) from: Reader,
    /// The keys that stood on the command line.
    pub(super) given: &'g BTreeSet<String>,
    /// Settings that are not followed, with the reason.
    pub(super) unfollowed: Vec<String>,
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
        self.text("model.showo.pretrained_model_path", "model.checkpoint")?;
        self.text("pretrained_model_path", "model.checkpoint")?;
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
            self.set("train.masking.mask_schedule", written)?;
        }
        Ok(())
    }

    pub(super) fn set(&mut self, key: &str, value: Value) -> Result<()> {
        yaml::set(&mut self.into, key, value).with_context(|| key.to_owned())
    }

    pub(super) fn text(&mut self, theirs: &str, ours: &str) -> Result<()> {
        self.from.text(theirs)?.map_or(Ok(()), |text| self.set(ours, text.into()))
    }

    pub(super) fn number(&mut self, theirs: &str, ours: &str) -> Result<()> {
        self.from.number(theirs)?.map_or(Ok(()), |number| self.set(ours, number.into()))
    }

    pub(super) fn count(&mut self, theirs: &str, ours: &str) -> Result<()> {
        self.from.count(theirs)?.map_or(Ok(()), |count| self.set(ours, count.into()))
    }

    /// Refuses two keys that say the same and differ.
    pub(super) fn agree<T: PartialEq + std::fmt::Display>(
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

    pub(super) fn unfollow(&mut self, key: &str, why: &str) {
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
            self.warnings.insert(0, text);
        }
    }
}
