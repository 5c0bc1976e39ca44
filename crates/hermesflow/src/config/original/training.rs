//! The translation of what the original's files say about training.

use anyhow::{Result, bail, ensure};
use serde_yaml_ng::Value;

use super::reader::wrong;
use super::translation::Translation;

impl Translation<'_> {
    pub(super) fn experiment(&mut self) -> Result<()> {
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

    pub(super) fn optimizer(&mut self) -> Result<()> {
        if let Some(name) = self.from.text("optimizer.name")? {
            ensure!(name == "adamw", "optimizer.name: {name:?} is not here; only adamw is");
        }
        let keys = ["optimizer.params.learning_rate", "lr_scheduler.params.learning_rate"];
        let (rate, scheduled) = (self.from.number(keys[0])?, self.from.number(keys[1])?);
        self.agree(keys[0], rate, keys[1], scheduled)?;
        if let Some(rate) = rate.or(scheduled) {
            self.set("train.schedule.learning_rate", rate.into())?;
        }
        self.number("optimizer.params.beta1", "train.optimizer.beta1")?;
        self.number("optimizer.params.beta2", "train.optimizer.beta2")?;
        self.number("optimizer.params.epsilon", "train.optimizer.eps")?;
        self.number("optimizer.params.weight_decay", "train.optimizer.weight_decay")?;
        self.count("lr_scheduler.params.warmup_steps", "train.schedule.warmup_steps")?;
        let Some(scheduler) = self.from.text("lr_scheduler.scheduler")? else { return Ok(()) };
        let kind = match scheduler.as_str() {
            "cosine" | "linear" => scheduler.as_str(),
            "constant_with_warmup" => "constant",
            "constant" => {
                self.set("train.schedule.warmup_steps", 0.into())?; // diffusers' constant has none
                "constant"
            }
            other => bail!(
                "lr_scheduler.scheduler: {other:?} is not here; give cosine, linear, constant or constant_with_warmup"
            ),
        };
        self.set("train.schedule.kind", kind.into())
    }

    /// Pairs per step. The original draws the two halves of a "pair" by two loaders, each with its own size.
    pub(super) fn batch(&mut self) -> Result<()> {
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

    pub(super) fn training(&mut self) -> Result<()> {
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
        self.number("training.beta", "train.loss.beta")?;
        self.number("training.cond_dropout_prob", "train.prompt_dropout")?;
        self.number("training.t2i_coeff", "train.loss.weight_gen")?;
        self.number("training.mmu_coeff", "train.loss.weight_und")?;
        self.count("training.max_train_steps", "train.schedule.steps")?;
        self.count("training.gradient_accumulation_steps", "train.accumulation")?;
        match self.from.value("training.max_grad_norm")? {
            Some(Value::Null) => self.set("train.max_grad_norm", Value::Null)?,
            _ => self.number("training.max_grad_norm", "train.max_grad_norm")?,
        }
        for key in ["min_masking_rate", "mask_contiguous_region_prob"] {
            if let Some(share) = self.from.number(&format!("training.{key}"))?.filter(|share| *share != 0.0) {
                self.set(&format!("train.masking.{key}"), share.into())?;
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
}
