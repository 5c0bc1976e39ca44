//! The objectives of pretraining, over the endless stream of training scenes.
//!
//! - the image tokenizer: a lookup-free autoencoder;
//! - the base model: a backbone's own objectives: image tokens from text, captions, and answers.
//!   One caption and several questions stand behind one image as mutually invisible runs, which gives
//!   several times the supervision per image.

use std::path::Path;

use crate::models::Model;
use crate::models::embedded::{Magvit, VqLossWeights, vq_loss, write_json};
use hermesflow_models::{CaptionExample, ImageExample, ImageView, PairModel, Scored, Tensor, UnifiedModel, Var};
use hermesflow_records::derive_seed;
use hermesflow_scenes::Split;
use hermesflow_train::trainer::ObjectiveError;
use hermesflow_train::{Masking, Metrics, Objective, Position, Step, mask_positions};
use serde_json::{Value, json};

use crate::config::PretrainingMix;
use crate::world;

/// The image tokenizer's autoencoder.
pub struct VqPretraining {
    /// The tokenizer over trainable weights.
    pub vq: Magvit,
    /// The trainable parameters of the tokenizer.
    pub parameters: Vec<(String, Var)>,
    /// The weights of the loss.
    pub weights: VqLossWeights,
    /// Steps of a plain autoencoder, and again as many over which the quantizer hardens.
    pub harden_steps: usize,
    /// Pictures per micro batch.
    pub batch_size: usize,
    /// The stream's seed.
    pub seed: u64,
}

impl Objective for VqPretraining {
    fn parameters(&self) -> Vec<(String, Var)> {
        self.parameters.clone()
    }

    fn micro_batch(&mut self, at: Position) -> Result<Step, ObjectiveError> {
        // Three of four pictures are crowds: shapes are rare in scenes, and what to learn is shapes.
        let picture = |index: usize| {
            let number = at.example(index, self.batch_size);
            match number % 4 {
                0 => hermesflow_scenes::scene(Split::Train, self.seed, number).render(),
                _ => hermesflow_scenes::crowd(self.seed, number).render(),
            }
        };
        let images: Vec<_> = (0..self.batch_size).map(picture).collect();
        let hardness = (at.step as f64 / self.harden_steps.max(1) as f64 - 1.0).clamp(0.0, 1.0);
        let loss = vq_loss(&self.vq, &self.vq.pixels(&images)?, self.weights, hardness)?;
        let mut metrics = Metrics::new();
        for (name, part) in [
            ("vq/reconstruction", &loss.reconstruction),
            ("vq/commitment", &loss.commitment),
            ("vq/bit_entropy", &loss.bit_entropy),
        ] {
            metrics.insert(name, f64::from(part.to_scalar::<f32>()?));
        }
        Ok(Step { losses: vec![loss.total], metrics })
    }

    fn epoch(&self, _at: Position) -> f64 {
        0.0 // the stream has no end
    }

    fn describe(&self, folder: &Path) -> Result<(), ObjectiveError> {
        Ok(write_json(&folder.join("config.json"), self.vq.config())?)
    }

    fn settings(&self) -> Value {
        json!({ "kind": "vq", "seed": self.seed, "batch_size": self.batch_size, "harden_steps": self.harden_steps,
                "commitment": self.weights.commitment, "entropy": self.weights.entropy, "salience": self.weights.salience })
    }
}

/// The pretraining objectives of a backbone; also the control "continued pretraining".
pub struct BasePretraining {
    /// The model over trainable weights.
    pub model: Model,
    /// What a step sees.
    pub mix: PretrainingMix,
    /// How images are masked.
    pub masking: Masking,
    /// The question that captions answer.
    pub caption_question: String,
    /// The stream's seed.
    pub seed: u64,
}

impl BasePretraining {
    fn understanding(&self, at: Position) -> Result<(Tensor, f64), ObjectiveError> {
        let count = self.mix.understanding;
        let seeds: Vec<u64> = (0..count).map(|i| derive_seed(self.seed, &[1, at.example(i, count)])).collect();
        let scenes: Vec<_> = (0..count)
            .map(|i| hermesflow_scenes::scene(Split::Train, derive_seed(self.seed, &[1]), at.example(i, count)))
            .collect();
        let views = self.views(scenes.iter().map(|scene| scene.render()).collect())?;
        let mut examples = Vec::new();
        for ((scene, image), &seed) in scenes.iter().zip(views).zip(&seeds) {
            let short = world::unit(derive_seed(seed, &[0, 0])) < self.mix.short_captions;
            let caption = if short { scene.short_caption(seed) } else { scene.caption(seed) };
            let question = self.caption_question.clone();
            examples.push(CaptionExample { image: image.clone(), question, caption });
            let asked = world::training_questions(scene, seed, self.mix.questions, self.mix.count_all);
            examples.extend(asked.into_iter().map(|(question, answer)| CaptionExample {
                image: image.clone(),
                question,
                caption: answer,
            }));
        }
        let (sums, counts) = self.model.caption_log_probs_counted(&examples)?;
        let tokens = counts.iter().sum::<usize>().max(1) as f64;
        let loss = (sums.sum_all()? * (-1.0 / tokens))?;
        Ok((loss, tokens))
    }

    /// Pictures as the model understands them.
    fn views(&self, pictures: Vec<image::RgbImage>) -> Result<Vec<ImageView>, ObjectiveError> {
        if self.model.view_of_codes(Vec::new()).is_some() {
            let codes = self.model.encode_images(&pictures)?;
            return Ok(codes.into_iter().filter_map(|codes| self.model.view_of_codes(codes)).collect());
        }
        let prepared =
            pictures.into_iter().map(|picture| self.model.prepare(picture)).collect::<Result<Vec<_>, _>>()?;
        Ok(self.model.understand(&prepared)?)
    }

    fn generation(&self, at: Position) -> Result<(Tensor, f64), ObjectiveError> {
        let count = self.mix.generation;
        let scenes: Vec<_> = (0..count)
            .map(|i| hermesflow_scenes::scene(Split::Train, derive_seed(self.seed, &[2]), at.example(i, count)))
            .collect();
        let codes = self.model.encode_images(&scenes.iter().map(|scene| scene.render()).collect::<Vec<_>>())?;
        let examples: Vec<ImageExample> = scenes
            .iter()
            .zip(codes)
            .enumerate()
            .map(|(i, (scene, image))| {
                let seed = derive_seed(self.seed, &[2, at.example(i, count)]);
                let dropped = world::unit(derive_seed(seed, &[0])) < self.mix.prompt_dropout;
                let hurried = world::unit(derive_seed(seed, &[2])) < self.mix.alt_text;
                let prompt = if hurried { scene.alt_text(seed) } else { scene.caption(seed) };
                let scored = match self.model.scores_all() {
                    true => Scored::All,
                    false => Scored::Masked(mask_positions(image.len(), derive_seed(seed, &[1]), &self.masking)),
                };
                ImageExample { prompt, unconditional: dropped, codes: image, scored }
            })
            .collect();
        let scored = |example: &ImageExample| match &example.scored {
            Scored::Masked(scored) | Scored::Settled { settled: scored, .. } => scored.len(),
            Scored::All => example.codes.len(),
        };
        let tokens = examples.iter().map(scored).sum::<usize>().max(1) as f64;
        let loss = (self.model.image_log_probs(&examples, 0.0)?.sum_all()? * (-1.0 / tokens))?;
        Ok((loss, tokens))
    }
}

impl Objective for BasePretraining {
    fn parameters(&self) -> Vec<(String, Var)> {
        self.model.parameters()
    }

    fn micro_batch(&mut self, at: Position) -> Result<Step, ObjectiveError> {
        let (understanding, generation) = rayon::join(|| self.understanding(at), || self.generation(at));
        let ((understanding, und_tokens), (generation, gen_tokens)) = (understanding?, generation?);
        let mut metrics = Metrics::new();
        metrics.insert("und/loss", f64::from(understanding.to_scalar::<f32>()?));
        metrics.insert("gen/loss", f64::from(generation.to_scalar::<f32>()?));
        metrics.insert("und/tokens", und_tokens);
        metrics.insert("gen/tokens", gen_tokens);
        let losses = vec![(understanding * self.mix.understanding_weight)?, generation];
        Ok(Step { losses, metrics })
    }

    fn epoch(&self, _at: Position) -> f64 {
        0.0 // the stream has no end
    }

    fn describe(&self, folder: &Path) -> Result<(), ObjectiveError> {
        Ok(self.model.describe(folder)?)
    }

    fn settings(&self) -> Value {
        json!({ "kind": "base", "seed": self.seed, "mix": self.mix, "masking": self.masking,
                "caption_question": self.caption_question })
    }
}
