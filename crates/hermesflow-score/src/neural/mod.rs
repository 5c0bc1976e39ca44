//! Judges with weights, in the file layouts of their published checkpoints. Nothing is downloaded: a judge is a folder.
//!
//! | judge | of | published as |
//! |---|---|---|
//! | [`Bert`] | captions | `bert-large-uncased` |
//! | [`SentenceBert`] | captions, choices | `sentence-transformers/all-mpnet-base-v2` |
//! | [`BertScore`] | captions | any BERT or MPNet folder |
//! | [`UnifiedQa`] | keeps questions | `allenai/unifiedqa-v2-t5-large-1363200` |
//! | [`LlamaWriter`] | writes questions | `tifa-benchmark/llama2_tifa_question_generation` |
//!
//! The models below them are [`Encoder`] (BERT, MPNet), [`T5`] and [`Llama`]. No text is ever padded: sentences are
//! packed one behind the other and stay apart by the key ranges that they see, so a batch gives what its sentences
//! give one by one.
//!
//! Shape letters: `n` tokens of all sentences, `h` hidden size, `d` size of one head, `b` sentences, `v` vocabulary.

mod beam;
mod bert;
mod bert_score;
mod encoder;
mod folder;
mod gguf;
mod layers;
mod llama;
mod llama_files;
mod memory;
mod packing;
mod question_writer;
mod relative;
mod sentence_bert;
mod spiece;
mod t5;
mod tokenizer;
mod unified_qa;

use candle_core::{DType, Tensor};

use crate::{Error, Result};

pub use bert::Bert;
pub use bert_score::BertScore;
pub use encoder::Encoder;
pub use llama::{Generated, Llama};
pub use question_writer::LlamaWriter;
pub use sentence_bert::SentenceBert;
pub use t5::T5;
pub use tokenizer::TextTokenizer;
pub use unified_qa::UnifiedQa;

/// The cosine of two vectors; 0 where one of them is zero.
pub fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let lengths = (dot(a, a) * dot(b, b)).sqrt();
    if lengths > 0.0 { dot(a, b) / lengths } else { 0.0 }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// Refuses what a model computed where it is no number: a score made of it would be one.
fn check_finite(judge: &'static str, computed: &Tensor) -> Result<()> {
    let sum = computed.to_dtype(DType::F32)?.sum_all()?.to_scalar::<f32>()?;
    let message = "what it computes is not finite: its weights, or their type, lead beyond what can be computed with";
    if sum.is_finite() { Ok(()) } else { Err(Error::Judge { judge, message: message.into() }) }
}

/// The number of the largest value, the first of equals.
fn first_largest<T: PartialOrd + Copy>(values: &[T]) -> Option<usize> {
    let mut best: Option<(usize, T)> = None;
    for (at, value) in values.iter().enumerate() {
        if best.is_none_or(|(_, most)| *value > most) {
            best = Some((at, *value));
        }
    }
    best.map(|(at, _)| at)
}
