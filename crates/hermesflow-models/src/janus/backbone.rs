//! Janus-Pro as training knows it, and as a program holds any backbone.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor, Var};
use hermesflow_nn::ops::Products;
use hermesflow_nn::weights::{FileFormat, Weights, save_tensors};
use serde_json::json;

use super::cost::Sizes;
use super::log_probs::{AboutPicture, OfCodes};
use super::training::TRAINED;
use super::{Janus, check};
use crate::backbone::{Backbone, Model};
use crate::cost::{Costs, TrainedSides};
use crate::decoder::Decoder;
use crate::model::{CaptionExample, ImageExample, PairModel, Scored};
use crate::{Error, Result};

/// The file of what is trained, in a checkpoint; in a finished model, of all weights.
const WEIGHTS: &str = "pytorch_model.safetensors";
/// The file of what is not trained, in a checkpoint.
const FROZEN: &str = "frozen.safetensors";
/// Says which file holds which tensor.
const INDEX: &str = "pytorch_model.safetensors.index.json";

/// The examples of a call, all positions of which are scored.
fn of_codes(examples: &[ImageExample]) -> Result<Vec<OfCodes<'_>>> {
    if examples.iter().any(|example| example.scored != Scored::All) {
        let message = "an image is scored at all its positions; masked ones mean nothing to Janus-Pro";
        return Err(Error::Invalid(message.into()));
    }
    let of = examples.iter().map(|ImageExample { prompt, unconditional, codes, .. }| OfCodes {
        prompt,
        unconditional: *unconditional,
        codes,
    });
    Ok(of.collect())
}

impl PairModel for Janus {
    fn parameters(&self) -> Vec<(String, Var)> {
        self.weights.variables()
    }

    fn scores_all(&self) -> bool {
        true
    }

    fn caption_log_probs(&self, examples: &[CaptionExample]) -> Result<Tensor> {
        Ok(self.caption_log_probs_counted(examples)?.0)
    }

    fn image_log_probs(&self, examples: &[ImageExample], guidance: f64) -> Result<Tensor> {
        self.guided_code_log_probs(&of_codes(examples)?, guidance)
    }

    fn image_logits(&self, examples: &[ImageExample]) -> Result<Tensor> {
        Ok(self.code_logits(&of_codes(examples)?)?.to_dtype(DType::F32)?)
    }

    /// The small files, the tensors that are not trained, and an index of both files of weights.
    fn describe(&self, folder: &Path) -> Result<()> {
        self.files.write(folder)?;
        let trained: Vec<String> = self.parameters().into_iter().map(|(name, _)| name).collect();
        let frozen: HashMap<String, Tensor> = self
            .weights
            .tensors()
            .iter()
            .filter(|(name, _)| trained.binary_search(name).is_err())
            .map(|(name, tensor)| (name.clone(), tensor.clone()))
            .collect();
        if frozen.is_empty() {
            return Ok(());
        }
        let size = |tensor: &Tensor| tensor.elem_count() * tensor.dtype().size_in_bytes();
        let bytes: usize = self.weights.tensors().values().map(size).sum();
        let file = |name: &String| if frozen.contains_key(name) { FROZEN } else { WEIGHTS };
        let map: BTreeMap<&String, &str> = self.weights.tensors().keys().map(|name| (name, file(name))).collect();
        let index = json!({ "metadata": { "total_size": bytes }, "weight_map": map });
        save_tensors(&folder.join(FROZEN), &frozen)?;
        let path = folder.join(INDEX);
        std::fs::write(&path, format!("{index:#}\n")).map_err(|source| Error::io(&path, source))
    }
}

impl Backbone for Janus {
    fn device(&self) -> &Device {
        self.llama.device()
    }

    fn dtype(&self) -> DType {
        self.dtype()
    }

    fn codebook(&self) -> usize {
        self.config.vq.codes
    }

    fn weights(&self) -> &Weights {
        &self.weights
    }

    fn costs(&self) -> Result<Box<dyn Costs>> {
        let sizes = Box::new(Sizes::new(&self.config)?);
        Ok(if self.llama.device().is_cpu() { sizes } else { sizes.on_gpu(self.dtype()) })
    }

    fn check_caption(&self, question: &str, caption: &str) -> Result<()> {
        let rows = self.question_rows(&self.conversation.ask(question)?);
        self.fits(rows + self.conversation.reply(caption.trim())?.len(), caption)
    }

    fn caption_log_probs_counted(&self, examples: &[CaptionExample]) -> Result<(Tensor, Vec<usize>)> {
        let mut about = Vec::with_capacity(examples.len());
        for CaptionExample { image, question, caption } in examples {
            about.push(AboutPicture { features: self.read_features(image)?, question, reply: caption.trim() });
        }
        self.reply_log_probs(&about)
    }

    fn trainable_parts(&self, parts: &[String], sides: TrainedSides) -> Result<Model> {
        let model = match parts {
            [] => self.trainable_for(&TRAINED, sides),
            _ => self.trainable_for(parts, sides),
        };
        Ok(Arc::new(model?))
    }

    fn frozen_copy(&self) -> Result<Model> {
        Ok(Arc::new(self.frozen()?))
    }

    fn for_training(&self, products: Products) -> Result<Model> {
        Ok(Arc::new(self.training(products)?))
    }

    fn recomputing(&self, on: bool) -> Model {
        Arc::new(self.recompute(on))
    }

    fn reopened(&self, folder: &Path) -> Result<Model> {
        let weights = Self::weights_as(&folder.join(WEIGHTS), self.dtype(), self.llama.device())?;
        let found = weights.tensors().iter().map(|(name, tensor)| (name.clone(), tensor.dims().to_vec()));
        check(weights.origin(), found, &self.config)?;
        Ok(Arc::new(self.with_weights(weights)?))
    }

    fn save_trained(&self, folder: &Path) -> Result<()> {
        self.save(folder, FileFormat::Safetensors, None).map(drop)
    }

    fn see_parts(&self, see: &mut dyn FnMut(&[u8])) -> Result<()> {
        self.each_part(see)
    }
}
