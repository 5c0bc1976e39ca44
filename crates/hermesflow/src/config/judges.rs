//! The judges of a run: which judge each stage asks, and where their models come from.
//!
//! A judge is a variant of one of the four enums here. A judge with weights also has a key in [`JudgeSettings`], with its
//! default, and a line in its enum's `model`. [`crate::judges`] loads them.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::{ImageJudge, RunConfig};

/// The measure of how similar a caption is to the true one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct JudgeSettings {
    /// The model of `pair.similarity: bert`.
    pub bert: String,
    /// The model of `pair.similarity: sbert` and of `answer.matcher: sbert`.
    pub sbert: String,
    /// The model of `pair.similarity: bertscore`: a BERT or an MPNet.
    pub bertscore: String,
    /// The layer whose states BERTScore compares (0: the embeddings); by default the one that BERTScore's authors chose
    /// for the model.
    pub bertscore_layer: Option<usize>,
    /// The F1 of unrelated captions, to which BERTScore is rescaled as 0; without it, scores are not rescaled.
    pub bertscore_baseline: Option<f64>,
    /// The model of `ask.filter: unifiedqa`.
    pub unifiedqa: String,
    /// The model of `ask.writer: llama`: a folder of safetensors, or a `.gguf` file with its tokenizer.json beside it.
    pub llama: String,
    /// Beams of the search with which `ask.writer: llama` writes, from 1 (greedy) to 64.
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

/// The keys of the models of all judges, each once.
pub fn model_keys() -> Vec<ModelKey> {
    let similarities = Similarity::value_variants().iter().map(|judge| judge.model());
    let matchers = Matcher::value_variants().iter().map(|judge| judge.model());
    let writers = Writer::value_variants().iter().map(|judge| judge.model());
    let filters = Filter::value_variants().iter().map(|judge| judge.model());
    each_once(similarities.chain(matchers).chain(writers).chain(filters))
}

fn each_once(keys: impl Iterator<Item = Option<ModelKey>>) -> Vec<ModelKey> {
    let mut found: Vec<ModelKey> = Vec::new();
    for key in keys.flatten() {
        if found.iter().all(|other| other.name != key.name) {
            found.push(key);
        }
    }
    found
}

impl RunConfig {
    /// The keys of the models of the judges that this run asks, each once.
    pub fn judge_models(&self) -> Vec<ModelKey> {
        let of_images = [self.answer.matcher.model(), self.ask.writer.model(), self.ask.filter.model()];
        let of_images = of_images.into_iter().filter(|_| self.pair.judge == ImageJudge::Itself);
        each_once([self.pair.similarity.model()].into_iter().chain(of_images))
    }
}

/// The questions that images are judged by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AskSettings {
    /// The source of the questions.
    pub writer: Writer,
    /// The filter that decides which of them are kept.
    pub filter: Filter,
    /// For `writer: file`: a file of questions in the form of `vqa_data.json`, of TIFA's benchmark or of JourneyDB's
    /// annotation.
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
