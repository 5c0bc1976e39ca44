//! Log-probabilities of captions given pictures and of codes given prompts, both exact: one teacher-forced pass, packed.
//!
//! Examples about one picture share its rows, examples with one question share that too, pictures of one prompt share its
//! rows; each head runs only on rows that carry a label.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ops::Range;

use candle_core::{Tensor, TensorId};
use hermesflow_nn::ops;

use super::Janus;
use super::conversation::Asked;
use crate::decoder::Decoder;
use crate::showo::sequence::Packed;
use crate::{Error, Result};

/// A reply about a picture.
#[derive(Debug, Clone)]
pub struct AboutPicture<'a> {
    /// The picture's features, `[patches, width]`; of two examples about one picture, the same tensor.
    pub features: &'a Tensor,
    /// The question, without its frame.
    pub question: &'a str,
    /// The reply, without the space in front.
    pub reply: &'a str,
}

/// The codes of a picture behind a prompt.
#[derive(Debug, Clone, Copy)]
pub struct OfCodes<'a> {
    /// The prompt, without its frame.
    pub prompt: &'a str,
    /// Whether the prompt's ids become pads, as in the unconditional row.
    pub unconditional: bool,
    /// All codes of the picture.
    pub codes: &'a [u32],
}

/// Rows that carry a label, and the example each belongs to.
#[derive(Debug, Default)]
struct Labelled {
    rows: Vec<u32>,
    targets: Vec<u32>,
    examples: Vec<u32>,
}

impl Labelled {
    fn push(&mut self, rows: impl Iterator<Item = usize>, targets: &[u32], example: usize) {
        self.rows.extend(rows.map(|row| row as u32));
        self.targets.extend_from_slice(targets);
        self.examples.resize(self.targets.len(), example as u32);
    }

    fn counts(&self, examples: usize) -> Vec<usize> {
        let mut counts = vec![0; examples];
        self.examples.iter().for_each(|&example| counts[example as usize] += 1);
        counts
    }

    /// The first `labels` labels alone.
    fn first(mut self, labels: usize) -> Self {
        for list in [&mut self.rows, &mut self.targets, &mut self.examples] {
            list.truncate(labels);
        }
        self
    }

    /// The sum of each example's labels, `[examples]`, from one number per label.
    fn sums(&self, log_probs: &Tensor, examples: usize) -> Result<Tensor> {
        let members = self.examples.iter().map(|&example| (example as usize, 1.0));
        Ok(ops::sums_of_values(log_probs, members, examples)?)
    }
}

impl Janus {
    /// `log π(reply | picture)` of each example: the sum over the reply's tokens and its end token, softmax over the whole
    /// vocabulary; and how many tokens those are.
    ///
    /// # Shapes
    /// `[examples]`, f32
    ///
    /// # Errors
    /// When a text or a picture does not fit the model.
    pub fn reply_log_probs(&self, examples: &[AboutPicture]) -> Result<(Tensor, Vec<usize>)> {
        let (packed, labels) = self.pack_replies(examples)?;
        let hidden = self.hidden(&packed, &labels.rows)?;
        let log_probs = self.llama.log_probs(&hidden, &labels.targets)?;
        Ok((labels.sums(&log_probs, examples.len())?, labels.counts(examples.len())))
    }

    /// The logits that predict each reply's tokens and its end token, example by example.
    ///
    /// # Shapes
    /// `[labels, vocabulary]`
    ///
    /// # Errors
    /// As [`Self::reply_log_probs`].
    pub fn reply_logits(&self, examples: &[AboutPicture]) -> Result<Tensor> {
        let (packed, labels) = self.pack_replies(examples)?;
        self.llama.logits(&self.hidden(&packed, &labels.rows)?)
    }

    /// `log π(codes | prompt)` of each example, unguided: the sum over all its codes, softmax over the codebook.
    ///
    /// # Shapes
    /// `[examples]`, f32
    ///
    /// # Errors
    /// When a prompt or codes do not fit the model.
    pub fn code_log_probs(&self, examples: &[OfCodes]) -> Result<Tensor> {
        let (packed, labels) = self.pack_codes(examples)?;
        let hidden = self.hidden(&packed, &labels.rows)?;
        let log_probs = self.hand.log_probs(&hidden, &labels.targets)?;
        labels.sums(&log_probs, examples.len())
    }

    /// `log π(codes | prompt)` of each example as it is drawn under guidance g: softmax over the codebook of
    /// `(1+g)·cond − g·uncond`. Gradients flow through both rows.
    ///
    /// # Shapes
    /// `[examples]`, f32
    ///
    /// # Errors
    /// When a prompt or codes do not fit the model, or the guidance is not 0 or more.
    pub fn guided_code_log_probs(&self, examples: &[OfCodes], guidance: f64) -> Result<Tensor> {
        if !(guidance.is_finite() && guidance >= 0.0) {
            return Err(Error::Invalid(format!("guidance {guidance} is not 0 or more")));
        }
        if guidance == 0.0 {
            return self.code_log_probs(examples);
        }
        // All with their prompts, then those of them without that are not there already.
        let mut all = examples.to_vec();
        let mut without: Vec<usize> = Vec::with_capacity(examples.len());
        for (at, example) in examples.iter().enumerate() {
            if example.unconditional {
                without.push(at);
            } else {
                without.push(all.len());
                all.push(OfCodes { unconditional: true, ..*example });
            }
        }
        let (packed, labels) = self.pack_codes(&all)?;
        let tokens = self.config.image_tokens;
        let of = |example: usize| &labels.rows[example * tokens..(example + 1) * tokens];
        let own: Vec<u32> = (0..examples.len()).flat_map(of).copied().collect();
        let others: Vec<u32> = without.into_iter().flat_map(of).copied().collect();
        let hidden = self.all_hidden(&packed)?;
        let (own, others) = (ops::gather_rows(&hidden, &own)?, ops::gather_rows(&hidden, &others)?);
        let labels = labels.first(examples.len() * tokens);
        let log_probs = self.hand.guided_log_probs(&own, &others, guidance, &labels.targets)?;
        labels.sums(&log_probs, examples.len())
    }

    /// The logits that predict each example's codes.
    ///
    /// # Shapes
    /// `[examples · N, codebook]`
    ///
    /// # Errors
    /// As [`Self::code_log_probs`].
    pub fn code_logits(&self, examples: &[OfCodes]) -> Result<Tensor> {
        let (packed, labels) = self.pack_codes(examples)?;
        self.hand.logits(&self.hidden(&packed, &labels.rows)?)
    }

    /// The hidden states of some rows.
    fn hidden(&self, packed: &Packed, rows: &[u32]) -> Result<Tensor> {
        Ok(ops::gather_rows(&self.all_hidden(packed)?, rows)?)
    }

    /// The hidden states of all rows.
    fn all_hidden(&self, packed: &Packed) -> Result<Tensor> {
        let embedded = packed.embed(&self.llama)?;
        self.llama.forward(embedded, &packed.positions, &packed.segments(), None)
    }

    fn pack_replies(&self, examples: &[AboutPicture]) -> Result<(Packed, Labelled)> {
        let (mut packed, mut labels) = (Packed::default(), Labelled::default());
        let mut asked: HashMap<&str, Asked> = HashMap::new();
        let mut pictures: HashMap<TensorId, Range<usize>> = HashMap::new();
        let mut questions: HashMap<(TensorId, &str), Range<usize>> = HashMap::new();
        for example in examples {
            if let Entry::Vacant(new) = asked.entry(example.question) {
                new.insert(self.conversation.ask(example.question)?);
            }
        }
        for (at, example) in examples.iter().enumerate() {
            let Asked { before, behind } = &asked[example.question];
            let id = example.features.id();
            let picture = match pictures.entry(id) {
                Entry::Occupied(known) => known.get().clone(),
                Entry::Vacant(new) => {
                    let aligned = self.align(example.features)?;
                    new.insert(self.pack_picture(&mut packed, before, aligned)?).clone()
                }
            };
            let question = questions
                .entry((id, example.question))
                .or_insert_with(|| packed.push(behind, picture.len(), vec![picture.clone()], true))
                .clone();
            let reply = self.conversation.reply(example.reply)?;
            let position = picture.len() + question.len();
            self.fits(position + reply.len(), example.reply)?;
            let predicting = question.end - 1;
            // The last token is predicted and predicts nothing.
            let rows = self.push_behind(&mut packed, &reply[..reply.len() - 1], position, vec![picture, question]);
            labels.push(std::iter::once(predicting).chain(rows), &reply, at);
        }
        Ok((packed, labels))
    }

    fn pack_codes(&self, examples: &[OfCodes]) -> Result<(Packed, Labelled)> {
        let (mut packed, mut labels) = (Packed::default(), Labelled::default());
        let mut prompts: HashMap<Vec<u32>, Range<usize>> = HashMap::new();
        let mut behind = Vec::with_capacity(examples.len());
        for example in examples {
            self.check_codes(example.codes)?;
            let ids = self.conversation.prompt(example.prompt)?;
            let ids = if example.unconditional { self.conversation.unconditional(&ids) } else { ids };
            self.fits(ids.len() + example.codes.len(), example.prompt)?;
            let rows = match prompts.entry(ids) {
                Entry::Occupied(known) => known.get().clone(),
                Entry::Vacant(new) => {
                    let rows = packed.push(new.key(), 0, vec![], true);
                    new.insert(rows).clone()
                }
            };
            behind.push(rows);
        }
        // All codes stand behind all prompts, so that they are embedded together.
        let first = packed.ids.len();
        let mut seen: Vec<u32> = Vec::new();
        for (at, (example, prompt)) in examples.iter().zip(behind).enumerate() {
            let predicting = prompt.end - 1;
            // The last code is predicted and predicts nothing.
            let codes = &example.codes[..example.codes.len() - 1];
            let rows = self.push_behind(&mut packed, &vec![0; codes.len()], prompt.len(), vec![prompt]);
            seen.extend_from_slice(codes);
            labels.push(std::iter::once(predicting).chain(rows), example.codes, at);
        }
        if !seen.is_empty() {
            packed.give(first, self.hand.embed(&seen)?);
        }
        Ok((packed, labels))
    }

    /// Appends causal tokens, if there are any; their rows.
    fn push_behind(&self, packed: &mut Packed, ids: &[u32], position: usize, sees: Vec<Range<usize>>) -> Range<usize> {
        match ids.is_empty() {
            true => packed.ids.len()..packed.ids.len(),
            false => packed.push(ids, position, sees, true),
        }
    }

    /// Refuses what are not the codes of a picture of this model.
    fn check_codes(&self, codes: &[u32]) -> Result<()> {
        let (tokens, codebook) = (self.config.image_tokens, self.config.vq.codes);
        if codes.len() != tokens || codes.iter().any(|&code| code as usize >= codebook) {
            let message = format!("a picture must have {tokens} codes below {codebook}; this one has {}", codes.len());
            return Err(Error::Invalid(message));
        }
        Ok(())
    }
}
