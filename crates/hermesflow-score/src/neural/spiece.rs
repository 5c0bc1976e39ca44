//! SentencePiece unigram models in the form of T5's `spiece.model`: the fields of their protobuf that are needed.
//!
//! As in SentencePiece: characters are normalised by the model's table, spaces are trimmed and repeated ones joined,
//! `▁` stands for a space and before the text, and the most likely pieces are chosen. The tokens `<extra_id_99>` …
//! `<extra_id_0>` follow the pieces.
//!
//! One difference: where two orders of the same pieces are equally likely (`!!` `!` and `!` `!!`), SentencePiece's sums
//! in f32 and ours in f64 may prefer different ones.

use std::path::Path;

use tokenizers::models::unigram::Unigram;
use tokenizers::normalizers::replace::ReplacePattern;
use tokenizers::normalizers::{NormalizerWrapper, Precompiled, Replace, Sequence, Strip};
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, Tokenizer};

use crate::{Error, Result};

/// The number of sentinel tokens after T5's pieces.
const EXTRA_IDS: usize = 100;

/// Kinds of pieces, by their numbers in the protobuf.
const UNKNOWN: u64 = 2;
const CONTROL: u64 = 3;
const USER_DEFINED: u64 = 4;
/// Kinds of models, by their numbers in the protobuf.
const UNIGRAM: u64 = 1;

/// The contents of the file.
struct Model {
    pieces: Vec<(String, f64, u64)>,
    kind: u64,
    table: Vec<u8>,
    prefix: bool,
    tidy: bool,
}

/// Reads a unigram model. Texts are framed as in T5, with `</s>` at the end.
pub(super) fn load(path: &Path, vocab_size: usize) -> Result<Tokenizer> {
    let bytes = std::fs::read(path).map_err(|error| Error::file(path, error))?;
    let broken = || Error::file(path, "not a SentencePiece model; download it again");
    let model = parse(&bytes).filter(|model| !model.pieces.is_empty()).ok_or_else(broken)?;
    if model.kind != UNIGRAM {
        let message = "not a unigram model; put the tokenizer.json of this model beside it";
        return Err(Error::file(path, message));
    }
    build(model, vocab_size).map_err(|error| Error::file(path, error))
}

fn build(model: Model, vocab_size: usize) -> tokenizers::Result<Tokenizer> {
    let Model { mut pieces, table, prefix, tidy, .. } = model;
    let extra = EXTRA_IDS.min(vocab_size.saturating_sub(pieces.len()));
    pieces.extend((0..extra).rev().map(|number| (format!("<extra_id_{number}>"), 0.0, CONTROL)));
    let unknown = pieces.iter().position(|(_, _, kind)| *kind == UNKNOWN);
    let end = pieces.iter().position(|(piece, _, _)| piece == "</s>").ok_or("has no piece </s>")? as u32;
    let added = |kinds: &[u64]| -> Vec<AddedToken> {
        let special = kinds != [USER_DEFINED];
        let chosen = pieces.iter().filter(|(_, _, kind)| kinds.contains(kind));
        chosen.map(|(piece, _, _)| AddedToken::from(piece.clone(), special)).collect()
    };
    let (special, always_whole) = (added(&[UNKNOWN, CONTROL]), added(&[USER_DEFINED]));
    let scores = pieces.into_iter().map(|(piece, score, _)| (piece, score)).collect();
    let mut tokenizer = Tokenizer::new(Unigram::from(scores, unknown, false)?);
    let mut steps: Vec<NormalizerWrapper> = Vec::new();
    if !table.is_empty() {
        steps.push(Precompiled::from(&table)?.into());
    }
    if tidy {
        steps.push(Strip::new(true, true).into());
        steps.push(Replace::new(ReplacePattern::Regex(" {2,}".into()), " ")?.into());
    }
    tokenizer.with_normalizer(Some(Sequence::new(steps)))?;
    let scheme = if prefix { PrependScheme::Always } else { PrependScheme::Never };
    tokenizer.with_pre_tokenizer(Some(Metaspace::new('▁', scheme, false)));
    tokenizer.with_decoder(Some(Metaspace::new('▁', scheme, false)));
    let framing = TemplateProcessing::builder().try_single("$A </s>")?.special_tokens(vec![("</s>", end)]).build()?;
    tokenizer.with_post_processor(Some(framing));
    tokenizer.add_special_tokens(special)?;
    tokenizer.add_tokens(always_whole)?;
    Ok(tokenizer)
}

/// Parses `ModelProto`: pieces (1), trainer (2), normalizer (3).
fn parse(bytes: &[u8]) -> Option<Model> {
    let mut model = Model { pieces: Vec::new(), kind: UNIGRAM, table: Vec::new(), prefix: true, tidy: true };
    for field in Fields(bytes) {
        match field? {
            (1, Value::Bytes(piece)) => model.pieces.push(parse_piece(piece)?),
            (2, Value::Bytes(trainer)) => {
                for field in Fields(trainer) {
                    if let (3, Value::Number(kind)) = field? {
                        model.kind = kind;
                    }
                }
            }
            (3, Value::Bytes(normalizer)) => {
                for field in Fields(normalizer) {
                    match field? {
                        (2, Value::Bytes(table)) => model.table = table.to_vec(),
                        (3, Value::Number(prefix)) => model.prefix = prefix != 0,
                        (4, Value::Number(tidy)) => model.tidy = tidy != 0,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Some(model)
}

/// Parses `SentencePiece`: text (1), score (2), kind (3; normal if absent).
fn parse_piece(bytes: &[u8]) -> Option<(String, f64, u64)> {
    let mut piece = (String::new(), 0.0, 1);
    for field in Fields(bytes) {
        match field? {
            (1, Value::Bytes(text)) => piece.0 = std::str::from_utf8(text).ok()?.to_string(),
            (2, Value::Float(score)) => piece.1 = f64::from(score),
            (3, Value::Number(kind)) => piece.2 = kind,
            _ => {}
        }
    }
    Some(piece)
}

enum Value<'a> {
    Number(u64),
    Float(f32),
    Bytes(&'a [u8]),
    Skipped,
}

/// The fields of a protobuf message, as numbers and values; `Some(None)` where the message is malformed.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn number(&mut self) -> Option<u64> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first()?;
            self.0 = rest;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn field(&mut self) -> Option<(u64, Value<'a>)> {
        let key = self.number()?;
        let value = match key & 7 {
            0 => Value::Number(self.number()?),
            1 => self.take(8).map(|_| Value::Skipped)?,
            2 => {
                let length = usize::try_from(self.number()?).ok()?;
                Value::Bytes(self.take(length)?)
            }
            5 => Value::Float(f32::from_le_bytes(self.take(4)?.try_into().ok()?)),
            _ => return None,
        };
        Some((key >> 3, value))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Option<(u64, Value<'a>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            self.0 = &[];
        }
        Some(field)
    }
}
