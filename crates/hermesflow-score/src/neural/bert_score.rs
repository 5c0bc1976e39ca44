//! BERTScore (Zhang et al., arXiv 1904.09675): F₁ without inverse document frequencies.
//!
//! The states of both captions are normalised, and every token of one is matched with the most similar token of the
//! other. Precision is the mean over the candidate's tokens, recall over the true caption's. As in the bert-score
//! project, framing tokens can be matched but have no weight.

use std::path::Path;

use candle_core::{D, DType, Device, Tensor};

use super::{Encoder, TextTokenizer};
use crate::{CaptionSimilarity, Error, Result};

/// The layers whose states agree best with people's judgements, as found by the bert-score project.
const LAYERS: [(&str, usize); 13] = [
    ("bert-base-uncased", 9),
    ("bert-large-uncased", 18),
    ("bert-base-cased-finetuned-mrpc", 9),
    ("bert-base-multilingual-cased", 9),
    ("bert-base-chinese", 8),
    ("scibert_scivocab_uncased", 8),
    ("scibert_scivocab_cased", 9),
    ("scibert_basevocab_uncased", 9),
    ("scibert_basevocab_cased", 9),
    ("scibert-scivocab-uncased", 8),
    ("scibert-scivocab-cased", 9),
    ("scibert-basevocab-uncased", 9),
    ("mpnet-base", 8),
];

/// Scores captions by BERTScore's F₁.
#[derive(Debug)]
pub struct BertScore {
    encoder: Encoder,
    tokenizer: TextTokenizer,
    layer: usize,
    baseline: f64,
}

impl BertScore {
    /// Loads a folder of a BERT or MPNet in f32. If `layer` is not given, it is the one of
    /// [`BertScore::customary_layer`] for the name of the folder or of its configuration.
    ///
    /// # Errors
    /// If a file is missing or malformed, no layer is known for the model, or the model has fewer layers.
    pub fn load(folder: &Path, layer: Option<usize>, device: &Device) -> Result<Self> {
        let encoder = Encoder::load(folder, DType::F32, device)?;
        let customary = encoder.names().find_map(Self::customary_layer);
        let fault = |message: String| Error::file(&folder.join("config.json"), message);
        let layer = layer
            .or(customary)
            .ok_or_else(|| fault("no BERTScore layer is known for this model; give the layer to use".to_string()))?;
        if layer > encoder.layers() {
            return Err(fault(format!(
                "BERTScore layer {layer} does not exist; the model has {} layers",
                encoder.layers()
            )));
        }
        let tokenizer = TextTokenizer::load(folder, encoder.vocab_size())?.limited(encoder.max_tokens())?;
        Ok(Self { encoder, tokenizer, layer, baseline: 0.0 })
    }

    /// Rescales scores so that an F₁ of `baseline`, that of unrelated texts, becomes 0: `(F₁ - baseline) / (1 -
    /// baseline)`.
    pub fn rescaled(mut self, baseline: f64) -> Self {
        self.baseline = baseline;
        self
    }

    /// The layer that the bert-score project uses for the model of this name, with or without its organisation; `None`
    /// for other models.
    pub fn customary_layer(name: &str) -> Option<usize> {
        let name = name.rsplit('/').next().unwrap_or(name);
        LAYERS.iter().find(|(known, _)| *known == name).map(|(_, layer)| *layer)
    }

    /// The layer whose states are compared; 0 is the embeddings.
    pub fn layer(&self) -> usize {
        self.layer
    }

    /// The F₁ of two texts' normalised states.
    fn f1(reference: &Tensor, candidate: &Tensor) -> Result<f64> {
        if reference.dim(0)? <= 2 || candidate.dim(0)? <= 2 {
            return Ok(0.0);
        }
        let near = candidate.matmul(&reference.t()?)?;
        let mean = |nearest: Tensor| -> Result<f64> {
            let nearest = nearest.to_vec1::<f32>()?;
            let inner = &nearest[1..nearest.len() - 1];
            Ok(inner.iter().map(|x| f64::from(*x)).sum::<f64>() / inner.len() as f64)
        };
        let (precision, recall) = (mean(near.max(D::Minus1)?)?, mean(near.max(0)?)?);
        let sum = precision + recall;
        Ok(if sum == 0.0 { 0.0 } else { 2.0 * precision * recall / sum })
    }
}

impl CaptionSimilarity for BertScore {
    fn similarities(&self, reference: &str, candidates: &[String]) -> Result<Vec<f64>> {
        let texts = [reference].into_iter().chain(candidates.iter().map(String::as_str)).map(str::trim);
        let states = self.encoder.states(&self.tokenizer.ids(texts)?, self.layer)?;
        let normalised = |state: &Tensor| -> Result<Tensor> {
            let norms = state.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?;
            Ok(state.broadcast_div(&norms)?)
        };
        let states: Vec<Tensor> = states.iter().map(normalised).collect::<Result<_>>()?;
        let score = |candidate| Ok((Self::f1(&states[0], candidate)? - self.baseline) / (1.0 - self.baseline));
        states[1..].iter().map(score).collect()
    }
}
