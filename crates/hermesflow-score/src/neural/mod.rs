//! Judges with weights, in the file layouts of their published checkpoints. A judge is loaded from a folder; nothing is
//! downloaded here.
//!
//! | judge | judges | published as |
//! |---|---|---|
//! | [`Bert`] | captions | `bert-large-uncased` |
//! | [`SentenceBert`] | captions, choices | `sentence-transformers/all-mpnet-base-v2` |
//! | [`BertScore`] | captions | any BERT or MPNet folder |
//! | [`UnifiedQa`] | filters questions | `allenai/unifiedqa-v2-t5-large-1363200` |
//! | [`LlamaWriter`] | writes questions | `tifa-benchmark/llama2_tifa_question_generation` |
//!
//! Their models are [`Encoder`] (BERT, MPNet), [`T5`] and [`Llama`]. Texts are never padded: sentences are packed one
//! after another and kept apart by the key ranges that they attend to, so a batch gives the same results as its
//! sentences one by one.
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

/// The cosine of two vectors; 0 if one of them is zero.
pub fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let lengths = (dot(a, a) * dot(b, b)).sqrt();
    if lengths > 0.0 { dot(a, b) / lengths } else { 0.0 }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// Refuses results that are not finite, from which scores would be computed.
fn check_finite(judge: &'static str, computed: &Tensor) -> Result<()> {
    let sum = computed.to_dtype(DType::F32)?.sum_all()?.to_scalar::<f32>()?;
    let message = "its results are not finite numbers; its weights are broken, or their type makes them overflow";
    if sum.is_finite() { Ok(()) } else { Err(Error::Judge { judge, message: message.into() }) }
}

/// The index of the largest value; of equal ones the first.
fn first_largest<T: PartialOrd + Copy>(values: &[T]) -> Option<usize> {
    let mut best: Option<(usize, T)> = None;
    for (at, value) in values.iter().enumerate() {
        if best.is_none_or(|(_, most)| *value > most) {
            best = Some((at, *value));
        }
    }
    best.map(|(at, _)| at)
}
