//! Log-probabilities of captions given images, and of images given captions: the terms `log π(caption | image)` and
//! `log π(image | caption)` of Pair-DPO (HermesFlow, arXiv 2502.12148).
//!
//! All examples of a call go through the decoder as one packed batch. Examples about the same image share its tokens,
//! those with the same question share these too, and images of the same prompt share its text. The vocabulary head runs
//! only on rows that predict a label.

use std::collections::HashMap;
use std::ops::Range;

use candle_core::Tensor;
use hermesflow_nn::ops;

use super::Showo;
use super::phi::Phi;
use super::sequence::Packed;
use crate::model::{CaptionExample, ImageExample};
use crate::{Error, Result};

/// The rows of a packed batch whose next-token prediction is scored: for each label its row, its target token and the
/// example that it belongs to.
#[derive(Debug, Default)]
pub struct Labelled {
    rows: Vec<u32>,
    targets: Vec<u32>,
    examples: Vec<u32>,
}

impl Labelled {
    /// Adds a label: the hidden state of `row` is to predict the token `target`, and its log-probability counts towards
    /// `example` (from 0).
    pub fn push(&mut self, row: usize, target: u32, example: usize) {
        self.rows.push(row as u32);
        self.targets.push(target);
        self.examples.push(example as u32);
    }

    /// The number of labels of each of the first `examples` examples.
    pub fn counts(&self, examples: usize) -> Vec<usize> {
        let mut counts = vec![0; examples];
        self.examples.iter().for_each(|&example| counts[example as usize] += 1);
        counts
    }

    /// For each example, the sum of its labels' log-probabilities (natural logarithm, softmax over the whole
    /// vocabulary).
    ///
    /// # Shapes
    /// `[examples]`, f32
    ///
    /// # Errors
    /// If a token of `packed` or a target is outside the vocabulary, or a tensor operation fails.
    pub fn sums(&self, phi: &Phi, packed: &Packed, examples: usize) -> Result<Tensor> {
        let hidden = phi.forward(phi.embed(&packed.ids)?, &packed.positions, &packed.segments(), None)?;
        let log_probs = phi.log_probs(&ops::gather_rows(&hidden, &self.rows)?, &self.targets)?;
        let mut membership = vec![0f32; examples * self.rows.len()];
        for (label, &example) in self.examples.iter().enumerate() {
            membership[example as usize * self.rows.len() + label] = 1.0;
        }
        let membership = Tensor::from_vec(membership, (examples, self.rows.len()), phi.device())?;
        Ok(membership.matmul(&log_probs.unsqueeze(1)?)?.squeeze(1)?)
    }
}

/// For each example, the log-probability of its caption and the closing `<|eot|>`, and the number of tokens in that
/// sum.
pub(super) fn captions(model: &Showo, examples: &[CaptionExample]) -> Result<(Tensor, Vec<usize>)> {
    if model.config.w_clip_vit {
        let message = "the likelihood of captions is not computed for the CLIP variant of Show-o (w_clip_vit): it reads \
                       features, not image codes; train its images only";
        return Err(Error::Invalid(message.into()));
    }
    let (mut packed, mut labels) = (Packed::default(), Labelled::default());
    let mut blocks: HashMap<&[u32], Range<usize>> = HashMap::new();
    let mut questions: HashMap<(&[u32], &str), Range<usize>> = HashMap::new();
    let eot = model.tokenizer.special.eot;
    for (at, example) in examples.iter().enumerate() {
        check_image(model, &example.image)?;
        let block = blocks
            .entry(&example.image)
            .or_insert_with(|| packed.push(&model.frames.understanding_image(&example.image), 0, vec![], false))
            .clone();
        let question = match questions.get(&(example.image.as_slice(), example.question.as_str())) {
            Some(rows) => rows.clone(),
            None => {
                let ids = model.question_ids(&example.question)?;
                let rows = packed.push(&ids, block.len(), vec![block.clone()], true);
                questions.insert((&example.image, &example.question), rows.clone());
                rows
            }
        };
        let reply = model.encode_reply(&example.caption)?;
        model.fits(block.len(), (&example.question, question.len()), (&example.caption, reply.len()))?;
        let position = block.len() + question.len();
        let predicting = question.end - 1;
        let rows = if reply.is_empty() {
            packed.ids.len()..packed.ids.len()
        } else {
            packed.push(&reply, position, vec![block, question], true)
        };
        let closing = std::iter::once(eot);
        for (row, target) in std::iter::once(predicting).chain(rows).zip(reply.into_iter().chain(closing)) {
            labels.push(row, target, at);
        }
    }
    let counts = labels.counts(examples.len());
    Ok((labels.sums(&model.phi, &packed, examples.len())?, counts))
}

/// For each example, the sum of the log-probabilities of the true codes at its masked positions.
pub(super) fn images(model: &Showo, examples: &[ImageExample]) -> Result<Tensor> {
    let (mut packed, mut labels) = (Packed::default(), Labelled::default());
    let mut texts: HashMap<&str, Range<usize>> = HashMap::new();
    let offset = model.config.image_offset();
    for (at, example) in examples.iter().enumerate() {
        check_image(model, &example.image)?;
        let text = match texts.get(example.prompt.as_str()) {
            Some(rows) => rows.clone(),
            None => {
                let ids = model.frames.imagine_text(&model.tokenizer.encode(&example.prompt)?);
                let rows = packed.push(&ids, 0, vec![], true);
                texts.insert(&example.prompt, rows.clone());
                rows
            }
        };
        let mut codes: Vec<Option<u32>> = example.image.iter().copied().map(Some).collect();
        for &position in &example.masked {
            match codes.get_mut(position as usize) {
                Some(code) => *code = None,
                None => {
                    return Err(Error::Invalid(format!(
                        "masked position {position} is outside an image of {} codes",
                        example.image.len()
                    )));
                }
            }
        }
        let ids = model.frames.imagine_image(codes.into_iter());
        let rows = packed.push(&ids, text.len(), vec![text], false);
        for &position in &example.masked {
            let position = position as usize;
            labels.push(rows.start + 1 + position, example.image[position] + offset, at);
        }
    }
    labels.sums(&model.phi, &packed, examples.len())
}

fn check_image(model: &Showo, codes: &[u32]) -> Result<()> {
    let (tokens, codebook) = (model.config.num_vq_tokens, model.config.codebook_size);
    if codes.len() != tokens || codes.iter().any(|&code| code as usize >= codebook) {
        let message = format!("an image must have {tokens} codes below {codebook}; this one has {}", codes.len());
        return Err(Error::Invalid(message));
    }
    Ok(())
}
