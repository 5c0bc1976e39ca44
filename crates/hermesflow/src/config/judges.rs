//! The judges of a run: which judge each stage asks, and where their models come from.
//!
//! A judge is a variant of one of the four enums here. A judge with weights also has a key in [`JudgeSettings`], with its
//! default, and a line in its enum's `model`. The folder `judges` loads them.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::ValueEnum;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The measure of how similar a caption is to the true one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Similarity {
    /// `lexical` for the embedded model, `bert` for all others
    Auto,
    /// Overlap of words and word pairs; needs no model
    Lexical,
    /// Cosine of BERT's CLS states, as in the original
    Bert,
    /// Cosine of sentence embeddings
    Sbert,
    /// BERTScore's F1
    Bertscore,
}

/// The judge that finds the choice which a free reply means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Matcher {
    /// `lexical` for the embedded model, `sbert` for all others
    Auto,
    /// The choice with the same words, else the one with the most similar spelling; needs no model
    Lexical,
    /// The choice with the nearest sentence embedding, as in the original
    Sbert,
}

/// The source of the questions that images are judged by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Writer {
    /// `scenes` for the embedded model, `llama` for all others
    Auto,
    /// Rules that parse captions of the scenes world
    Scenes,
    /// Rules that read any English caption; needs no model
    Template,
    /// TIFA's fine-tuned Llama 2, as in the original
    Llama,
    /// Questions that a file holds already
    File,
}

/// The filter that decides which questions are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Filter {
    /// `unifiedqa` for the writer `llama`, else `none`
    Auto,
    /// Keep all questions
    None,
    /// Keep those that UnifiedQA answers correctly from the caption alone, as in the original
    Unifiedqa,
}

/// The models of judges with weights: names on the hub (`organisation/model`, or `organisation/model@revision`) or
/// folders.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct JudgeSettings {
    /// Model of `pair.similarity: bert`.
    ///
    /// Default: bert-large-uncased.
    /// Source: released code.
    pub bert: String,
    /// Model of `pair.similarity: sbert` and of `answer.matcher: sbert`.
    ///
    /// Default: sentence-transformers/all-mpnet-base-v2.
    /// Source: released code (TIFA).
    pub sbert: String,
    /// Model of `pair.similarity: bertscore`: a BERT or an MPNet.
    ///
    /// Default: bert-large-uncased.
    /// Source: this program.
    pub bertscore: String,
    /// Layer whose states BERTScore compares, counted from 1. `null` is the one that BERTScore's authors chose for the model.
    ///
    /// Source: BERTScore.
    pub bertscore_layer: Option<usize>,
    /// F1 of unrelated captions, to which BERTScore is rescaled as 0. `null` does not rescale.
    ///
    /// Source: BERTScore.
    #[schemars(range(min = -1.0, max = 1.0))]
    pub bertscore_baseline: Option<f64>,
    /// Model of `ask.filter: unifiedqa`.
    ///
    /// Default: allenai/unifiedqa-v2-t5-large-1363200.
    /// Source: released code (TIFA).
    pub unifiedqa: String,
    /// Model of `ask.writer: llama`: a folder of safetensors, or a `.gguf` file with its tokenizer.json beside it.
    ///
    /// Default: tifa-benchmark/llama2_tifa_question_generation.
    /// Source: released code (TIFA).
    pub llama: String,
    /// Beams of the search with which `ask.writer: llama` writes; 1 is greedy.
    ///
    /// Unit: beams.
    /// Default: 5.
    /// Source: released code (TIFA).
    #[schemars(range(min = 1, max = 64))]
    pub beams: usize,
}

impl Default for JudgeSettings {
    /// The original's models.
    fn default() -> Self {
        Self {
            bert: "bert-large-uncased".into(),
            sbert: "sentence-transformers/all-mpnet-base-v2".into(),
            bertscore: "bert-large-uncased".into(),
            bertscore_layer: None,
            bertscore_baseline: None,
            unifiedqa: "allenai/unifiedqa-v2-t5-large-1363200".into(),
            llama: "tifa-benchmark/llama2_tifa_question_generation".into(),
            beams: 5,
        }
    }
}

/// A key of [`JudgeSettings`] that names a model.
#[derive(Debug, Clone, Copy)]
pub struct ModelKey {
    /// The whole key, for example `judges.bert`.
    pub name: &'static str,
    /// The model that settings give it.
    pub get: fn(&JudgeSettings) -> &String,
    /// The model that settings give it, to be changed.
    pub get_mut: fn(&mut JudgeSettings) -> &mut String,
}

/// The [`ModelKey`] of a field of [`JudgeSettings`].
macro_rules! key {
    ($field:ident) => {
        Some(ModelKey {
            name: concat!("judges.", stringify!($field)),
            get: |settings| &settings.$field,
            get_mut: |settings| &mut settings.$field,
        })
    };
}

impl Similarity {
    /// The judge itself, where `auto` stands for one.
    pub fn resolved(self, embedded: bool) -> Self {
        match self {
            Self::Auto if embedded => Self::Lexical,
            Self::Auto => Self::Bert,
            named => named,
        }
    }

    /// The key of its model; `None` for a judge without weights.
    pub fn model(self) -> Option<ModelKey> {
        match self {
            Self::Auto | Self::Lexical => None,
            Self::Bert => key!(bert),
            Self::Sbert => key!(sbert),
            Self::Bertscore => key!(bertscore),
        }
    }
}

impl Matcher {
    /// The judge itself, where `auto` stands for one.
    pub fn resolved(self, embedded: bool) -> Self {
        match self {
            Self::Auto if embedded => Self::Lexical,
            Self::Auto => Self::Sbert,
            named => named,
        }
    }

    /// The key of its model; `None` for a judge without weights.
    pub fn model(self) -> Option<ModelKey> {
        match self {
            Self::Auto | Self::Lexical => None,
            Self::Sbert => key!(sbert),
        }
    }
}

impl Writer {
    /// The writer itself, where `auto` stands for one.
    pub fn resolved(self, embedded: bool) -> Self {
        match self {
            Self::Auto if embedded => Self::Scenes,
            Self::Auto => Self::Llama,
            named => named,
        }
    }

    /// The key of its model; `None` for a writer without weights.
    pub fn model(self) -> Option<ModelKey> {
        match self {
            Self::Auto | Self::Scenes | Self::Template | Self::File => None,
            Self::Llama => key!(llama),
        }
    }
}

impl Filter {
    /// The filter itself, where `auto` stands for one.
    pub fn resolved(self, writer: Writer) -> Self {
        match self {
            Self::Auto if writer == Writer::Llama => Self::Unifiedqa,
            Self::Auto => Self::None,
            named => named,
        }
    }

    /// The key of its model; `None` for a filter without weights.
    pub fn model(self) -> Option<ModelKey> {
        match self {
            Self::Auto | Self::None => None,
            Self::Unifiedqa => key!(unifiedqa),
        }
    }
}

/// Keys without those that are missing or were there before.
pub(super) fn each_once(keys: impl Iterator<Item = Option<ModelKey>>) -> Vec<ModelKey> {
    let mut found: Vec<ModelKey> = Vec::new();
    for key in keys.flatten() {
        if found.iter().all(|other| other.name != key.name) {
            found.push(key);
        }
    }
    found
}

/// The questions that images are judged by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AskSettings {
    /// Source of the questions that images are judged by.
    ///
    /// Default: auto.
    /// Source: released code, which has llama (TIFA).
    pub writer: Writer,
    /// Filter that decides which questions are kept.
    ///
    /// Default: auto.
    /// Source: released code, which has unifiedqa (TIFA).
    pub filter: Filter,
    /// File of questions for `ask.writer: file`, in the form of `vqa_data.json`, of TIFA's benchmark or of JourneyDB's
    /// annotation.
    ///
    /// Source: this program.
    pub file: Option<PathBuf>,
}

impl Default for AskSettings {
    fn default() -> Self {
        Self { writer: Writer::Auto, filter: Filter::Auto, file: None }
    }
}

impl JudgeSettings {
    /// Gives a judge this model, where the judge has one and a model is given.
    pub fn set(&mut self, key: Option<ModelKey>, model: Option<String>) {
        if let (Some(key), Some(model)) = (key, model) {
            *(key.get_mut)(self) = model;
        }
    }

    /// Checks that every number is in its range.
    ///
    /// # Errors
    /// Names the key, its value and the range.
    pub fn validate(&self) -> Result<()> {
        ensure!(self.beams > 0, "judges.beams: 0 beams; use 1 (greedy) or more");
        if let Some(baseline) = self.bertscore_baseline {
            ensure!(
                (-1.0..1.0).contains(&baseline),
                "judges.bertscore_baseline: {baseline} is no F1 to rescale from; use one from -1 to below 1"
            );
        }
        Ok(())
    }
}
