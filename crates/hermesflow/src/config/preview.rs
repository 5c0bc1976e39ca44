//! The `train.preview` section: pictures of fixed prompts while a model is trained.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Pictures of fixed prompts, drawn by the sampler of `imagine` before training and at every checkpoint: what rewards do not
/// show. `null` draws none. They decide no number.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PreviewSettings {
    /// The prompts. An empty list takes some: of scenes that training never sees where `data.scenes` draws the records, else
    /// the captions of the first records.
    ///
    /// Source: this program.
    pub prompts: Vec<String>,
    /// Number of prompts that are taken where `prompts` is empty.
    ///
    /// Unit: prompts.
    /// Default: 6.
    /// Source: this program.
    #[schemars(range(min = 1, max = 1000))]
    pub count: usize,
    /// Scales of classifier-free guidance to draw under. An empty list is 0, 1 and `imagine.guidance`.
    ///
    /// Source: this program.
    pub guidances: Vec<f64>,
    /// Pictures of each prompt under each guidance, from the same draws every time.
    ///
    /// Unit: images.
    /// Default: 2.
    /// Source: this program.
    #[schemars(range(min = 1, max = 100))]
    pub images: usize,
    /// Whether the model of before training answers questions about the pictures. A warning says when its answers show that
    /// the pictures of a checkpoint are worse than those of before. The questions are written by `ask.writer` where that needs
    /// no model, else taken from the records whose captions are the prompts.
    ///
    /// Default: false.
    /// Source: this program.
    pub judge: bool,
}

impl Default for PreviewSettings {
    fn default() -> Self {
        Self { prompts: Vec::new(), count: 6, guidances: Vec::new(), images: 2, judge: false }
    }
}

impl PreviewSettings {
    /// The guidances to draw under, each once, in order; `own` is that of `imagine.guidance`.
    pub fn all_guidances(&self, own: f64) -> Vec<f64> {
        let mut all = if self.guidances.is_empty() { vec![0.0, 1.0, own] } else { self.guidances.clone() };
        all.sort_by(f64::total_cmp);
        all.dedup();
        all
    }
}
