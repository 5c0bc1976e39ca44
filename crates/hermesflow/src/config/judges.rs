//! Who judges texts: which judge each stage asks, and where their models come from.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

/// How near a caption is to the true one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Similarity {
    /// `lexical` for the embedded model, `bert` for all others
    Auto,
    /// Words and word pairs; needs no model
    Lexical,
    /// The cosine of BERT's [CLS] states, as the original
    Bert,
    /// The cosine of sentence embeddings
    Sbert,
    /// BERTScore's F1
    Bertscore,
}

/// Which choice a free reply means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Matcher {
    /// `lexical` for the embedded model, `sbert` for all others
    Auto,
    /// The same words, else the nearest letters; needs no model
    Lexical,
    /// The nearest sentence embedding, as the original
    Sbert,
}

/// Who writes the questions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Writer {
    /// `scenes` for the embedded model, `llama` for all others
    Auto,
    /// A rule-based writer that parses captions of the scenes world
    Scenes,
    /// A rule-based writer that reads any English caption; needs no model
    Template,
    /// TIFA's fine-tuned Llama 2, as the original
    Llama,
    /// Nobody: they are given in a file
    File,
}

/// Which questions are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Filter {
    /// `unifiedqa` for the writer `llama`, else `none`
    Auto,
    /// All of them
    None,
    /// Those that UnifiedQA answers rightly from the caption alone, as the original
    Unifiedqa,
}

impl Similarity {
    /// The judge that `auto` stands for.
    pub fn resolved(self, embedded: bool) -> Self {
        match self {
            Self::Auto if embedded => Self::Lexical,
            Self::Auto => Self::Bert,
            named => named,
        }
    }
}

impl Matcher {
    /// The judge that `auto` stands for.
    pub fn resolved(self, embedded: bool) -> Self {
        match self {
            Self::Auto if embedded => Self::Lexical,
            Self::Auto => Self::Sbert,
            named => named,
        }
    }
}

impl Writer {
    /// The writer that `auto` stands for.
    pub fn resolved(self, embedded: bool) -> Self {
        match self {
            Self::Auto if embedded => Self::Scenes,
            Self::Auto => Self::Llama,
            named => named,
        }
    }
}

impl Filter {
    /// The filter that `auto` stands for.
    pub fn resolved(self, writer: Writer) -> Self {
        match self {
            Self::Auto if writer == Writer::Llama => Self::Unifiedqa,
            Self::Auto => Self::None,
            named => named,
        }
    }
}

/// Where the questions come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AskSettings {
    /// Who writes them.
    pub writer: Writer,
    /// Which of them are kept.
    pub filter: Filter,
    /// `writer: file`: questions in the form of `vqa_data.json`, of TIFA's benchmark or of JourneyDB's annotation.
    pub file: Option<PathBuf>,
}

impl Default for AskSettings {
    fn default() -> Self {
        Self { writer: Writer::Auto, filter: Filter::Auto, file: None }
    }
}

/// The judges' models: names on the hub (`organisation/model`, with `@revision` where one is wanted) or folders.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct JudgeSettings {
    /// The model of `similarity: bert`.
    pub bert: String,
    /// The model of `similarity: sbert` and of `matcher: sbert`.
    pub sbert: String,
    /// The model of `similarity: bertscore`.
    pub bertscore: String,
    /// The layer that BERTScore reads, where the model's name does not tell.
    pub bertscore_layer: Option<usize>,
    /// The F1 of unrelated captions, which becomes 0; none is no rescaling.
    pub bertscore_baseline: Option<f64>,
    /// The model of `filter: unifiedqa`.
    pub unifiedqa: String,
    /// The model of `writer: llama`: safetensors, or a `.gguf` file with its tokenizer.json beside it.
    pub llama: String,
    /// Beams of its search; 1 is greedy.
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

impl JudgeSettings {
    /// Checks the ranges.
    ///
    /// # Errors
    /// Names the key and what is expected.
    pub fn validate(&self) -> Result<()> {
        ensure!(self.beams > 0, "judges.beams: must be at least 1 (greedy)");
        if let Some(baseline) = self.bertscore_baseline {
            ensure!((-1.0..1.0).contains(&baseline), "judges.bertscore_baseline: {baseline} is not an F1 below 1");
        }
        Ok(())
    }
}
