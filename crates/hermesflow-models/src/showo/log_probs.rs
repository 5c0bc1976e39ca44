//! Log-probabilities of captions given images, and of images given captions: the terms `log π(caption | image)` and
//! `log π(image | caption)` of Pair-DPO (HermesFlow, arXiv 2502.12148).
//!
//! All examples of a call go through the decoder as one packed batch. Examples about the same image share its tokens,
//! those with the same question share these too, and images of the same prompt share its text. The vocabulary head runs
//! only on rows that predict a label.
//!
//! Under guidance each image is in the batch twice, behind its text and behind the empty text, which all images share. The
//! head is affine, so the guided logits `(1+g)·cond − g·uncond` are the head's values at `(1+g)·h_cond − g·h_uncond`, where
//! h is the hidden state behind the last norm. The head therefore runs once, over the image codes only.

use std::collections::HashMap;
use std::ops::Range;

use candle_core::{DType, Tensor};
use hermesflow_nn::ops;

use super::Showo;
use super::phi::Phi;
use super::sequence::Packed;
use super::texts::reply_text;
use crate::model::{CaptionExample, ImageExample, ImageView, Scored};
use crate::{Error, Result};

/// The rows of a packed batch whose next-token prediction is scored: for each label its row, its target token and the
/// example that it belongs to.
#[derive(Debug, Default)]
pub struct Labelled {
    rows: Vec<u32>,
    targets: Vec<u32>,
    examples: Vec<u32>,
    guided: Option<Guided>,
}

/// What makes labels those of guided sampling.
#[derive(Debug)]
struct Guided {
    /// g in `(1+g)·cond − g·uncond`.
    guidance: f64,
    /// Each label's row without the text.
    rows: Vec<u32>,
    /// The part of the vocabulary that is drawn from.
    columns: Range<usize>,
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
    /// vocabulary; over the image codes under guidance).
    ///
    /// # Shapes
    /// `[examples]`, f32
    ///
    /// # Errors
    /// If a token of `packed` or a target is outside the vocabulary, or a tensor operation fails.
    pub fn sums(&self, phi: &Phi, packed: &Packed, examples: usize) -> Result<Tensor> {
        let hidden = phi.forward(packed.embed(phi)?, &packed.positions, &packed.segments(), None)?;
        let own = ops::gather_rows(&hidden, &self.rows)?;
        let log_probs = match &self.guided {
            None => phi.log_probs(&own, &self.targets, None)?,
            Some(Guided { guidance, rows, columns }) => {
                let without = ops::gather_rows(&hidden, rows)?;
                let guided = (own.affine(1.0 + guidance, 0.0)? - without.affine(*guidance, 0.0)?)?;
                phi.log_probs(&guided, &self.targets, Some(columns.clone()))?
            }
        };
        let members = self.examples.iter().map(|&example| (example as usize, 1.0));
        Ok(ops::sums_of_values(&log_probs, members, examples)?)
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
        let ImageView::Codes(codes) = &example.image else {
            let message = "the image is given by features; this model reads image codes: it was read by another model";
            return Err(Error::Invalid(message.into()));
        };
        check_image(model, codes)?;
        let block = blocks
            .entry(codes)
            .or_insert_with(|| packed.push(&model.frames.understanding_image(codes), 0, vec![], false))
            .clone();
        let question = match questions.get(&(codes.as_slice(), example.question.as_str())) {
            Some(rows) => rows.clone(),
            None => {
                let ids = model.question_ids(&example.question)?;
                let rows = packed.push(&ids, block.len(), vec![block.clone()], true);
                questions.insert((codes, &example.question), rows.clone());
                rows
            }
        };
        let caption = reply_text(&example.caption);
        let reply = model.encode_reply(&caption)?;
        model.fits(block.len(), (&example.question, question.len()), (&caption, reply.len()))?;
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

/// For each example, the sum of the log-probabilities of the true codes at its scored positions: of the model itself
/// without guidance, of the sampler under guidance with it.
pub(super) fn images(model: &Showo, examples: &[ImageExample], guidance: f64) -> Result<Tensor> {
    let (packed, labels) = pack_images(model, examples, guidance)?;
    labels.sums(&model.phi, &packed, examples.len())
}

/// The logits of all image codes at the scored positions of all examples, without guidance.
pub(super) fn image_logits(model: &Showo, examples: &[ImageExample]) -> Result<Tensor> {
    let (packed, labels) = pack_images(model, examples, 0.0)?;
    let phi = &model.phi;
    let hidden = phi.forward(packed.embed(phi)?, &packed.positions, &packed.segments(), None)?;
    let offset = model.config.image_offset() as usize;
    let columns = offset..offset + model.config.codebook_size;
    Ok(phi.logits(&ops::gather_rows(&hidden, &labels.rows)?, Some(columns))?.to_dtype(DType::F32)?)
}

/// Images behind their texts, and the rows that predict their scored codes.
fn pack_images<'a>(model: &Showo, examples: &'a [ImageExample], guidance: f64) -> Result<(Packed, Labelled)> {
    if !(guidance.is_finite() && guidance >= 0.0) {
        return Err(Error::Invalid(format!("guidance {guidance} is not 0 or more")));
    }
    let (mut packed, mut labels) = (Packed::default(), Labelled::default());
    let mut texts: HashMap<&'a str, Range<usize>> = HashMap::new();
    let offset = model.config.image_offset();
    labels.guided = (guidance != 0.0).then(|| Guided {
        guidance,
        rows: Vec::new(),
        columns: offset as usize..offset as usize + model.config.codebook_size,
    });
    let behind = |packed: &mut Packed, text: Range<usize>, ids: &[u32]| packed.push(ids, text.len(), vec![text], false);
    let mut text = |packed: &mut Packed, prompt: &'a str| match texts.get(prompt) {
        Some(rows) => Ok::<_, Error>(rows.clone()),
        None => {
            let ids = model.frames.imagine_text(&model.tokenizer.encode(prompt)?);
            let rows = packed.push(&ids, 0, vec![], true);
            texts.insert(prompt, rows.clone());
            Ok(rows)
        }
    };
    for (at, example) in examples.iter().enumerate() {
        check_image(model, &example.codes)?;
        let (masked, labelled) = match &example.scored {
            Scored::Masked(masked) => (masked, masked),
            Scored::Settled { masked, settled } => (masked, settled),
            Scored::All => {
                let message =
                    "an image is scored at masked positions; this model does not give the likelihood of all of them";
                return Err(Error::Invalid(message.into()));
            }
        };
        let mut codes: Vec<Option<u32>> = example.codes.iter().copied().map(Some).collect();
        for &position in masked {
            match codes.get_mut(position as usize) {
                Some(code) => *code = None,
                None => {
                    return Err(Error::Invalid(format!(
                        "masked position {position} is outside an image of {} codes",
                        example.codes.len()
                    )));
                }
            }
        }
        if let Some(position) = labelled.iter().find(|position| codes.get(**position as usize) != Some(&None)) {
            return Err(Error::Invalid(format!("position {position} is to be scored and is not masked")));
        }
        let ids = model.frames.imagine_image(codes.into_iter());
        // The unconditional case is the empty text.
        let prompt = if example.unconditional { "" } else { example.prompt.as_str() };
        let given = text(&mut packed, prompt)?;
        let rows = behind(&mut packed, given, &ids);
        for &position in labelled {
            let code = example.codes[position as usize];
            let target = if labels.guided.is_some() { code } else { code + offset };
            labels.push(rows.start + 1 + position as usize, target, at);
        }
        if let Some(guided) = &mut labels.guided {
            // Without a text guidance has nothing to lead away from: both are one.
            let without = match prompt.is_empty() {
                true => rows,
                false => {
                    let empty = text(&mut packed, "")?;
                    behind(&mut packed, empty, &ids)
                }
            };
            guided.rows.extend(labelled.iter().map(|position| without.start as u32 + 1 + position));
        }
    }
    Ok((packed, labels))
}

fn check_image(model: &Showo, codes: &[u32]) -> Result<()> {
    let (tokens, codebook) = (model.config.num_vq_tokens, model.config.codebook_size);
    if codes.len() != tokens || codes.iter().any(|&code| code as usize >= codebook) {
        let message = format!("an image must have {tokens} codes below {codebook}; this one has {}", codes.len());
        return Err(Error::Invalid(message));
    }
    Ok(())
}
