//! The benchmarks of the field, on any model that understands and makes images.
//!
//! | name | measures | file of the user's |
//! |---|---|---|
//! | `geneval` | images, by questions about the objects of a prompt | `evaluation_metadata.jsonl` |
//! | `tifa` | images, by questions with choices | TIFA's question file |
//! | `dpg` | images, by questions that depend on each other | `dpg_bench.csv` |
//! | `pope` | understanding: objects that are not there | POPE's JSON Lines, and COCO's pictures |
//! | `mme` | understanding: yes and no | VLMEvalKit's TSV |
//! | `vqa` | understanding: multiple choice | VLMEvalKit's TSV of MMBench, MMMU and the like |
//!
//! A benchmark is a list of items (`prompts`, `pictures`), each of which gives one [`Row`]; what the rows amount to is in
//! `figures`. Rows are appended as they are made, in blocks whose borders depend on the list alone, so an interrupted
//! benchmark continues and ends with the same bytes.

pub mod dpg;
pub mod figures;
pub mod geneval;
pub mod pictures;
pub mod prompts;
pub mod tables;
pub mod tifa;
pub mod yes_no;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::made::Origin;

/// A benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Benchmark {
    /// Images of prompts about objects: evaluation_metadata.jsonl (its own scorer needs a detector, which is not shipped)
    Geneval,
    /// Images by questions with choices: TIFA's question file (its VQA models are not shipped; the model answers itself)
    Tifa,
    /// Images of dense prompts: dpg_bench.csv (its VQA model, mPLUG, is not shipped; the model answers itself)
    Dpg,
    /// Understanding, objects that are not there: POPE's JSON Lines, with COCO's pictures in --images
    Pope,
    /// Understanding, yes and no: VLMEvalKit's MME.tsv, which holds the pictures
    Mme,
    /// Understanding, multiple choice: VLMEvalKit's TSV of MMBench, MMMU and the like, which hold the pictures
    Vqa,
}

impl Benchmark {
    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Geneval => "geneval",
            Self::Tifa => "tifa",
            Self::Dpg => "dpg",
            Self::Pope => "pope",
            Self::Mme => "mme",
            Self::Vqa => "vqa",
        }
    }

    /// Whether it measures the images that a model makes.
    pub fn draws(self) -> bool {
        matches!(self, Self::Geneval | Self::Tifa | Self::Dpg)
    }
}

/// A question about the pictures of a prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct Asked {
    /// The question, without its choices.
    pub question: String,
    /// The answers to choose from.
    pub choices: Vec<String>,
    /// The right one.
    pub answer: String,
    /// What it is about, such as `color`.
    pub kind: String,
    /// Its number in the file, by which others name it.
    pub number: usize,
    /// The numbers of questions that must hold for this one to count.
    pub parents: Vec<usize>,
}

/// A prompt with questions about its pictures.
#[derive(Debug, Clone, PartialEq)]
pub struct Prompt {
    /// The name in the user's file, or the number.
    pub id: String,
    /// The text.
    pub text: String,
    /// The group of prompts that it belongs to.
    pub category: String,
    /// The questions.
    pub questions: Vec<Asked>,
    /// The line of the user's file, where the benchmark's own scorer wants it beside the pictures.
    pub metadata: Option<Value>,
}

/// What came of one item.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The item's name in the user's file.
    pub item: String,
    /// The group of items that it belongs to.
    pub category: String,
    /// What is drawn anew for intervals: items about one picture belong together.
    pub unit: String,
    /// The guidance that its images were drawn under.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guidance: Option<f64>,
    /// Its numbers, by name.
    pub scores: BTreeMap<String, f64>,
    /// What the model said, where it said anything.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub said: Vec<String>,
}

impl Row {
    /// A number; 0 where there is none of that name.
    pub fn score(&self, name: &str) -> f64 {
        self.scores.get(name).copied().unwrap_or(0.0)
    }
}

/// A finished benchmark.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BenchmarkReport {
    /// Which one.
    pub benchmark: Benchmark,
    /// The model's name.
    pub model: String,
    /// Sampler, seed and digest of the checkpoint, in a line.
    pub line: String,
    /// Everything that decided it.
    pub made_from: Origin,
    /// Item by item.
    pub rows: Vec<Row>,
}
