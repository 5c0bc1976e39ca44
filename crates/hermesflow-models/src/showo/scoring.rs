//! How likely given replies about images are: nothing is decoded, all tokens are seen in one pass.
//!
//! Each image's block and each question are computed once and shared by all replies to it.

use std::collections::HashMap;
use std::ops::Range;

use hermesflow_nn::parallel;

use super::Showo;
use super::log_probs::Labelled;
use super::sequence::Packed;
use super::texts::reply_text;
use crate::model::{GivenReply, ImageView, Likelihood};
use crate::{Error, Result};

/// About so many rows go through the decoder at once, unless one image has more: on the CPU, and on a GPU.
const ROWS: usize = 2048;
const ROWS_ON_A_GPU: usize = 16_384;

/// The likelihoods of all replies, in order.
pub(super) fn score_replies(model: &Showo, images: &[(&ImageView, &[GivenReply])]) -> Result<Vec<Vec<Likelihood>>> {
    let most = if model.phi.device().is_cpu() { ROWS } else { ROWS_ON_A_GPU };
    let mut batches: Vec<Batch> = Vec::new();
    for (image, replies) in images {
        if batches.last().is_none_or(|batch| batch.packed.ids.len() + batch.largest > most) {
            batches.push(Batch::default());
        }
        if let Some(batch) = batches.last_mut() {
            batch.push(model, image, replies)?;
        }
    }
    let found = parallel::map(model.works_apart(), &batches, |batch| batch.likelihoods(model));
    let mut all = found.into_iter().collect::<Result<Vec<_>>>()?.into_iter().flatten();
    Ok(images.iter().map(|(_, replies)| all.by_ref().take(replies.len()).collect()).collect())
}

/// Replies about some images, packed.
#[derive(Default)]
struct Batch {
    packed: Packed,
    labels: Labelled,
    replies: usize,
    /// The most rows that an image took so far.
    largest: usize,
}

impl Batch {
    fn push(&mut self, model: &Showo, image: &ImageView, replies: &[GivenReply]) -> Result<()> {
        let first = self.packed.ids.len();
        let block = model.pack_image(&mut self.packed, image)?;
        let mut questions: HashMap<&str, Range<usize>> = HashMap::new();
        for GivenReply { question, reply } in replies {
            let asked = match questions.get(question.as_str()) {
                Some(rows) => rows.clone(),
                None => {
                    let ids = model.question_ids(question)?;
                    let rows = self.packed.push(&ids, block.len(), vec![block.clone()], true);
                    questions.insert(question, rows.clone());
                    rows
                }
            };
            let said = model.encode_reply(&reply_text(reply))?;
            model.fits(block.len(), (question, asked.len()), (reply, said.len()))?;
            let predicting = asked.end - 1;
            // The last token predicts the end, and each row the token behind it.
            let rows = match said.is_empty() {
                true => 0..0,
                false => self.packed.push(&said, block.len() + asked.len(), vec![block.clone(), asked], true),
            };
            let closing = std::iter::once(model.tokenizer.special.eot);
            for (row, target) in std::iter::once(predicting).chain(rows).zip(said.into_iter().chain(closing)) {
                self.labels.push(row, target, self.replies);
            }
            self.replies += 1;
        }
        self.largest = self.largest.max(self.packed.ids.len() - first);
        Ok(())
    }

    fn likelihoods(&self, model: &Showo) -> Result<Vec<Likelihood>> {
        if self.replies == 0 {
            return Ok(Vec::new());
        }
        // From one of the pool's own threads: from outside, every product would wake two threads and wait for both.
        let sums = rayon::scope(|_| self.labels.sums(&model.phi, &self.packed, self.replies))?.to_vec1::<f32>()?;
        if !sums.iter().all(|sum| sum.is_finite()) {
            return Err(Error::NotFinite("a reply"));
        }
        let counts = self.labels.counts(self.replies);
        Ok(sums.into_iter().zip(counts).map(|(sum, tokens)| Likelihood { log_prob: sum.into(), tokens }).collect())
    }
}
