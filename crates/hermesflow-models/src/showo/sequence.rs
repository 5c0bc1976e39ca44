//! The forms of Show-o's sequences (arXiv 2408.12528), packed without padding, and which tokens attend to which.
//!
//! - an image from text: `<|t2i|> <|sot|> text <|eot|>` (causal; does not attend to the image), then `<|soi|> image×N
//!   <|eoi|>` (every token attends to all of the text and all of the image);
//! - a caption or answer: `<|mmu|> <|soi|> image×N <|eoi|>` (a block that attends to itself, and to which everything
//!   after it   attends), then `<|sot|> question reply` (causal);
//! - a caption or answer of the CLIP variant: `<|mmu|> system prompt <|soi|> features` (a block as above), then
//!   `<|eoi|>   question reply` (causal).
//!
//! The original pads texts on the left and masks the padding. Rotary positions are relative, so leaving the padding out
//! gives the same logits.

use std::ops::Range;
use std::sync::Arc;

use candle_core::Tensor;
use hermesflow_nn::ops::{self, Segment};

use super::config::ShowoConfig;
use super::tokenizer::SpecialIds;
use crate::decoder::Decoder;
use crate::{Error, Result};

/// A batch of packed tokens, with their positions and what each run of them attends to.
#[derive(Debug, Clone, Default)]
pub struct Packed {
    /// The token ids.
    pub ids: Vec<u32>,
    /// The position of each token in its own sequence.
    pub positions: Vec<u32>,
    /// The runs of tokens, in order.
    pub segments: Vec<Segment>,
    /// Embeddings that take the place of tokens, with their first row, in order. The ids of such rows mean nothing.
    given: Vec<(usize, Tensor)>,
}

impl Packed {
    /// Appends a run of tokens whose first one has this position; returns its rows. The run attends to the rows in
    /// `sees` and to itself, causally or as a whole.
    pub fn push(&mut self, ids: &[u32], position: usize, sees: Vec<Range<usize>>, causal: bool) -> Range<usize> {
        let rows = self.ids.len()..self.ids.len() + ids.len();
        self.ids.extend_from_slice(ids);
        self.positions.extend((position..position + ids.len()).map(|p| p as u32));
        self.segments.push(Segment { queries: rows.clone(), sees, own: rows.clone(), causal });
        rows
    }

    /// Appends a block of tokens followed by embeddings; returns its rows. Its first position is 0, and it attends to
    /// itself as a whole.
    ///
    /// # Shapes
    /// `embeddings` `[rows, hidden]`
    ///
    /// # Errors
    /// If the embeddings are not a matrix.
    pub fn push_block(&mut self, ids: &[u32], embeddings: Tensor) -> Result<Range<usize>> {
        let all = [ids, &vec![0; embeddings.dims2()?.0]].concat();
        let rows = self.push(&all, 0, vec![], false);
        self.give(rows.start + ids.len(), embeddings);
        Ok(rows)
    }

    /// Sets the embeddings of the rows from `first` on, which were appended with any ids.
    ///
    /// # Shapes
    /// `embeddings` `[rows, hidden]`
    pub fn give(&mut self, first: usize, embeddings: Tensor) {
        self.given.push((first, embeddings));
    }

    /// The embeddings of all rows.
    ///
    /// # Shapes
    /// `[rows, hidden]`
    ///
    /// # Errors
    /// If an id is outside the vocabulary, or the given embeddings have another width or lie beyond the rows.
    pub fn embed(&self, decoder: &impl Decoder) -> Result<Tensor> {
        if self.given.is_empty() {
            return decoder.embed(&self.ids);
        }
        // The tokens are embedded in one call. Their rows come first, the given ones after them; then all are reordered.
        let mut place: Vec<Option<usize>> = vec![None; self.ids.len()];
        let mut given = 0;
        for (first, embeddings) in &self.given {
            let (rows, all) = (embeddings.dims2()?.0, place.len());
            let places = place.get_mut(*first..first + rows);
            let places = places.ok_or_else(|| Error::Invalid(format!("embeddings of rows from {first} of {all}")))?;
            places.iter_mut().zip(given..).for_each(|(place, at)| *place = Some(at));
            given += rows;
        }
        let tokens: Vec<u32> = self.ids.iter().zip(&place).filter(|(_, at)| at.is_none()).map(|(id, _)| *id).collect();
        let mut next = 0..tokens.len() as u32;
        let order: Vec<u32> = place
            .iter()
            .map(|at| at.map_or_else(|| next.next().unwrap_or_default(), |at| (tokens.len() + at) as u32))
            .collect();
        let mut parts: Vec<Tensor> = self.given.iter().map(|(_, embeddings)| embeddings.clone()).collect();
        if !tokens.is_empty() {
            parts.insert(0, decoder.embed(&tokens)?);
        }
        Ok(ops::gather_rows(&Tensor::cat(&parts, 0)?, &order)?)
    }

    /// Splits the batch into parts of about `most` rows and nearly equal size, without splitting segments. Each part
    /// has its rows and its segments, whose queries count from the part's first row and whose keys are rows of the
    /// whole batch.
    pub fn parts(&self, most: usize) -> Vec<(Range<usize>, Arc<[Segment]>)> {
        let rows = self.ids.len();
        let size = rows.div_ceil(rows.div_ceil(most).max(1));
        let mut parts = Vec::new();
        let mut rest = self.segments.as_slice();
        while let Some(first) = rest.first().map(|segment| segment.queries.start) {
            let enough = rest.iter().position(|segment| segment.queries.end - first >= size);
            let (part, behind) = rest.split_at(enough.map_or(rest.len(), |at| at + 1));
            let end = part.last().map_or(first, |segment| segment.queries.end);
            let segments = part.iter().map(|segment| {
                let queries = segment.queries.start - first..segment.queries.end - first;
                Segment { queries, ..segment.clone() }
            });
            parts.push((first..end, segments.collect()));
            rest = behind;
        }
        parts
    }

    /// The segments as operators take them.
    pub fn segments(&self) -> Arc<[Segment]> {
        self.segments.clone().into()
    }
}

/// Builds the parts of sequences from token ids.
#[derive(Debug, Clone)]
pub struct Frames {
    special: SpecialIds,
    image_offset: u32,
    mask_token: u32,
    max_text_len: usize,
}

impl Frames {
    /// The frames of a configuration, with the ids of its framing tokens.
    pub fn new(config: &ShowoConfig, special: SpecialIds) -> Self {
        Self {
            special,
            image_offset: config.image_offset(),
            mask_token: config.mask_token(),
            max_text_len: config.max_text_len,
        }
    }

    /// `<|t2i|> <|sot|> text <|eot|>`; a text that is too long is cut and still ends with `<|eot|>`.
    pub fn imagine_text(&self, text: &[u32]) -> Vec<u32> {
        let mut ids = vec![self.special.t2i, self.special.sot];
        ids.extend_from_slice(text);
        ids.push(self.special.eot);
        if ids.len() > self.max_text_len {
            ids.truncate(self.max_text_len.saturating_sub(1));
            ids.push(self.special.eot);
        }
        ids
    }

    /// `<|soi|> image <|eoi|>`, with the mask token for unknown codes.
    pub fn imagine_image(&self, codes: impl Iterator<Item = Option<u32>>) -> Vec<u32> {
        let mut ids = vec![self.special.soi];
        ids.extend(codes.map(|code| code.map_or(self.mask_token, |code| code + self.image_offset)));
        ids.push(self.special.eoi);
        ids
    }

    /// `<|mmu|> <|soi|> image <|eoi|>`
    pub fn understanding_image(&self, codes: &[u32]) -> Vec<u32> {
        let mut ids = vec![self.special.mmu, self.special.soi];
        ids.extend(codes.iter().map(|code| code + self.image_offset));
        ids.push(self.special.eoi);
        ids
    }

    /// `<|mmu|> system prompt <|soi|>`, which an image's features follow.
    pub fn understanding_features(&self, system: &[u32]) -> Vec<u32> {
        [&[self.special.mmu], system, &[self.special.soi]].concat()
    }

    /// `<|eoi|> question`. As in the original, the closing token is not part of the block, and there is no `<|sot|>`.
    pub fn question_behind_features(&self, question: &[u32]) -> Vec<u32> {
        [&[self.special.eoi], question].concat()
    }

    /// `<|sot|> question`
    pub fn question(&self, question: &[u32]) -> Vec<u32> {
        let mut ids = vec![self.special.sot];
        ids.extend_from_slice(question);
        ids
    }
}

/// The frame around a question with which Show-o was fine-tuned.
pub fn question_text(question: &str) -> String {
    format!("USER: \n{question} ASSISTANT:")
}

/// The text before an image's features in the CLIP variant: LLaVA's system prompt, 28 tokens of Phi-1.5.
pub const SYSTEM_PROMPT: &str = "A chat between a curious user and an artificial intelligence assistant. \
     The assistant gives helpful, detailed, and polite answers to the user's questions.";

/// The frame around a question to the CLIP variant: LLaVA's conversation.
pub fn conversation_text(question: &str) -> String {
    format!("USER: {question} ASSISTANT:")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_hold_every_row_once_and_keep_their_keys() {
        let mut packed = Packed::default();
        let block = packed.push(&[1; 10], 0, vec![], false);
        for length in [3, 4, 9, 2] {
            packed.push(&vec![2; length], 10, vec![block.clone()], true);
        }
        for (most, count) in [(1, 5), (12, 3), (15, 2), (28, 1), (1000, 1)] {
            let parts = packed.parts(most);
            assert_eq!(parts.len(), count, "{most}");
            let whole = parts.iter().flat_map(|(rows, segments)| {
                segments.iter().map(|segment| {
                    let queries = segment.queries.start + rows.start..segment.queries.end + rows.start;
                    Segment { queries, ..segment.clone() }
                })
            });
            assert_eq!(whole.collect::<Vec<_>>(), packed.segments);
            assert!(parts.windows(2).all(|pair| pair[0].0.end == pair[1].0.start));
        }
        assert!(Packed::default().parts(5).is_empty());
    }
}
