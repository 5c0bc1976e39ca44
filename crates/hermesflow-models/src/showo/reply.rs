//! Replies about images: captions and answers.
//!
//! Each image's block and each question are computed once and shared by all their replies; the
//! replies of a batch advance together, one token a step, and leave it when they end.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use candle_core::{DType, Tensor};
use hermesflow_nn::ops::{self, Segment};
use hermesflow_nn::parallel;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::Showo;
use super::maskgit::draw_index;
use super::phi::{KvCache, Phi, Placement};
use super::sequence::Packed;
use crate::model::{ImageView, Reply, ReplyRequest, Sampling};
use crate::{Error, Result};

/// About so many replies advance as one batch; the replies about one image are never parted.
const BATCH: usize = 32;
/// Up to so many likeliest tokens are found in one pass over the vocabulary.
const FEW: usize = 64;
/// About so many tokens of images and questions go through the decoder at once.
pub(super) const PASS: usize = 1024;
/// Bytes of a batch's cache at most, unless one image needs more: on the CPU, where at the published size several images
/// together are a tenth faster than one, and on a GPU.
const CACHE: usize = 512 << 20;
const CACHE_ON_GPU: usize = 2 << 30;

/// The tokens of each question, by its text.
type Questions<'a> = HashMap<&'a str, Vec<u32>>;

/// Replies to all requests, in order.
pub(super) fn reply_many(model: &Showo, images: &[(&ImageView, &[ReplyRequest])]) -> Result<Vec<Vec<Reply>>> {
    let mut ids = HashMap::new();
    for request in images.iter().flat_map(|(_, requests)| *requests) {
        if let Entry::Vacant(new) = ids.entry(request.question.as_str()) {
            new.insert(model.question_ids(&request.question)?);
        }
    }
    let replies = images.iter().map(|(_, requests)| requests.len()).max().unwrap_or(0);
    let rows = images.iter().map(|(image, requests)| cached_rows(&ids, image, requests)).max().unwrap_or(0);
    let cache = (model.phi.cache_bytes_per_row(), !model.phi.device().is_cpu());
    let together = images_together(images.len(), replies, rows, cache);
    let batches: Vec<_> = images.chunks(together).collect();
    let replies = parallel::map(model.works_apart(), &batches, |images| reply_batch(model, &ids, images));
    Ok(replies.into_iter().collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
}

/// Images whose replies advance as one batch, of `images` with `replies` replies and `rows` rows of the cache each, of so
/// many bytes a row: batches of nearly the same number.
pub(super) fn images_together(images: usize, replies: usize, rows: usize, (row, on_gpu): (usize, bool)) -> usize {
    let cache = if on_gpu { CACHE_ON_GPU } else { CACHE };
    let batches = (images * replies).div_ceil(BATCH).max((images * rows * row).div_ceil(cache)).max(1);
    images.div_ceil(batches).max(1)
}

/// How many rows an image, the questions about it and the replies take in a cache.
fn cached_rows(ids: &Questions<'_>, image: &ImageView, requests: &[ReplyRequest]) -> usize {
    let longest = requests.iter().map(|request| request.max_new_tokens).max().unwrap_or(0);
    let block = match image {
        ImageView::Codes(codes) => codes.len(),
        ImageView::Features(features) => features.dims().first().copied().unwrap_or(0),
    };
    let questions: HashSet<&str> = requests.iter().map(|request| request.question.as_str()).collect();
    block + questions.into_iter().map(|question| ids[question].len()).sum::<usize>() + requests.len() * longest
}

fn reply_batch(
    model: &Showo,
    ids: &Questions<'_>,
    images: &[(&ImageView, &[ReplyRequest])],
) -> Result<Vec<Vec<Reply>>> {
    let mut packed = Packed::default();
    let mut samples = Vec::new();
    let mut questions: Vec<(usize, &str)> = Vec::new();
    let mut known: HashMap<(usize, &str), usize> = HashMap::new();
    let mut blocks = Vec::new();
    for (at, (image, requests)) in images.iter().enumerate() {
        blocks.push(model.pack_image(&mut packed, image)?);
        for request in *requests {
            let question = match known.get(&(at, request.question.as_str())) {
                Some(&question) => question,
                None => {
                    questions.push((at, &request.question));
                    known.insert((at, &request.question), questions.len() - 1);
                    questions.len() - 1
                }
            };
            samples.push(Sample::new(question, request));
        }
    }
    let questions: Vec<Question> = questions
        .into_iter()
        .map(|(image, question)| {
            let block = blocks[image].clone();
            let rows = packed.push(&ids[question], block.len(), vec![block.clone()], true);
            Question { block, rows }
        })
        .collect();
    // From one of the pool's own threads: from outside, every product would wake two threads and wait for both.
    rayon::scope(|_| decode(&model.phi, &packed, &questions, &mut samples, model.tokenizer.special.eot))?;
    let reply = |sample: Sample| -> Result<Reply> {
        Ok(Reply { text: model.tokenizer.decode(&sample.tokens)?, log_prob: sample.log_prob })
    };
    let mut replies = samples.into_iter().map(reply);
    images.iter().map(|(_, requests)| replies.by_ref().take(requests.len()).collect()).collect()
}

/// The cached rows that replies to one question see.
pub struct Question {
    /// The image's block.
    pub block: Range<usize>,
    /// The question behind it.
    pub rows: Range<usize>,
}

/// One reply while it is written.
pub struct Sample {
    question: usize,
    sampling: Sampling,
    max_new_tokens: usize,
    random: ChaCha8Rng,
    ended: bool,
    /// Whether all logits that it was drawn from were numbers.
    finite: bool,
    /// What was written, without the closing `<|eot|>`.
    pub tokens: Vec<u32>,
    /// The sum of the log-probabilities of all that was drawn.
    pub log_prob: f64,
}

impl Sample {
    /// An empty reply to the question of this number.
    pub fn new(question: usize, request: &ReplyRequest) -> Self {
        Self {
            question,
            sampling: request.sampling,
            max_new_tokens: request.max_new_tokens,
            random: ChaCha8Rng::seed_from_u64(request.seed),
            ended: request.max_new_tokens == 0,
            finite: true,
            tokens: Vec::new(),
            log_prob: 0.0,
        }
    }

    fn take(&mut self, logits: &[f32], eot: u32) {
        self.finite &= ops::all_finite(logits);
        let token = draw(logits, self.sampling, &mut self.random);
        self.log_prob += log_prob(logits, token);
        if token == eot {
            self.ended = true;
        } else {
            self.tokens.push(token);
            self.ended = self.tokens.len() >= self.max_new_tokens;
        }
    }
}

fn log_prob(logits: &[f32], token: u32) -> f64 {
    f64::from(logits[token as usize]) - ops::log_sum_exp(logits)
}

/// Temperature, then top-k, then softmax, then one draw; `top_k` 1 is the first most likely token.
pub fn draw(logits: &[f32], sampling: Sampling, random: &mut ChaCha8Rng) -> u32 {
    let candidates: Vec<u32> = match sampling.top_k {
        0 => (0..logits.len() as u32).collect(),
        1 => return most_likely(logits, 1).first().copied().unwrap_or(0),
        top_k => most_likely(logits, top_k),
    };
    let highest = candidates.iter().map(|&token| logits[token as usize]).fold(f32::NEG_INFINITY, f32::max);
    let weight = |token: &u32| (f64::from(logits[*token as usize] - highest) / sampling.temperature).exp() as f32;
    let weights: Vec<f32> = candidates.iter().map(weight).collect();
    let total: f32 = weights.iter().sum();
    candidates[draw_index(&weights, random.random::<f32>() * total)]
}

/// The `count` most likely tokens, the likeliest first; of equal ones those that stand first.
fn most_likely(logits: &[f32], count: usize) -> Vec<u32> {
    let better = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    if count > FEW {
        let mut all: Vec<u32> = (0..logits.len() as u32).collect();
        if count < all.len() {
            all.select_nth_unstable_by(count - 1, better);
            all.truncate(count);
        }
        all.sort_unstable_by(better);
        return all;
    }
    // In one pass: hardly any token of a large vocabulary gets past the comparison with the last of the few.
    let mut few: Vec<u32> = Vec::with_capacity(count + 1);
    let mut last = f32::NEG_INFINITY;
    for (token, &logit) in logits.iter().enumerate() {
        if few.len() == count && logit <= last {
            continue;
        }
        let at = few.partition_point(|other| logits[*other as usize] >= logit);
        few.insert(at, token as u32);
        few.truncate(count);
        last = few.last().map_or(last, |token| logits[*token as usize]);
    }
    few
}

/// Puts images and questions into the cache, some at a time; what the decoder says at each question's end.
///
/// # Shapes
/// `[questions, hidden]`
fn read_prefix(phi: &Phi, prefix: &Packed, questions: &[Question], cache: &KvCache) -> Result<Tensor> {
    let embedded = prefix.embed(phi)?;
    let mut ends = Vec::with_capacity(questions.len());
    for (rows, segments) in prefix.parts(PASS) {
        let (xs, placement) = (embedded.narrow(0, rows.start, rows.len())?, Placement::Rows(rows.start));
        let hidden = phi.forward(xs, &prefix.positions[rows.clone()], &segments, Some((cache, &placement)))?;
        let here: Vec<u32> = questions
            .iter()
            .map(|question| question.rows.end - 1)
            .filter(|end| rows.contains(end))
            .map(|end| (end - rows.start) as u32)
            .collect();
        ends.push(ops::gather_rows(&hidden, &here)?);
    }
    Ok(Tensor::cat(&ends, 0)?)
}

/// Writes all replies.
///
/// # Errors
/// When a tensor operation fails, or the logits are no numbers.
pub fn decode(phi: &Phi, prefix: &Packed, questions: &[Question], samples: &mut [Sample], eot: u32) -> Result<()> {
    let start = prefix.ids.len();
    let size = samples.iter().map(|sample| sample.max_new_tokens).max().unwrap_or(0);
    let cache = phi.cache(start + samples.len() * size)?;
    let hidden = read_prefix(phi, prefix, questions, &cache)?;
    let first = phi.logits(&hidden, None)?.to_dtype(DType::F32)?;
    let mut takers: Vec<Vec<&mut Sample>> = questions.iter().map(|_| Vec::new()).collect();
    for sample in samples.iter_mut().filter(|sample| !sample.ended) {
        takers[sample.question].push(sample);
    }
    ops::for_each_row(&first, takers, |samples, row| samples.into_iter().for_each(|sample| sample.take(row, eot)))?;
    drop(first);
    check_finite(samples)?;
    for column in 0..size {
        let active: Vec<usize> = (0..samples.len()).filter(|&at| !samples[at].ended).collect();
        if active.is_empty() {
            break;
        }
        let ids: Vec<u32> = active.iter().map(|&at| samples[at].tokens[column]).collect();
        let position = |at: usize| {
            let question = &questions[samples[at].question];
            (question.block.len() + question.rows.len() + column) as u32
        };
        let positions: Vec<u32> = active.iter().map(|&at| position(at)).collect();
        let segments: Arc<[Segment]> = active
            .iter()
            .enumerate()
            .map(|(row, &at)| {
                let question = &questions[samples[at].question];
                let region = start + at * size;
                Segment {
                    queries: row..row + 1,
                    sees: vec![question.block.clone(), question.rows.clone()],
                    own: region..region + column + 1,
                    causal: true,
                }
            })
            .collect();
        let placement = if active.len() == samples.len() {
            Placement::Column { start, samples: samples.len(), size, column }
        } else {
            Placement::Runs(active.iter().enumerate().map(|(row, &at)| (row, 1, start + at * size + column)).collect())
        };
        let hidden = phi.forward(phi.embed(&ids)?, &positions, &segments, Some((&cache, &placement)))?;
        let logits = phi.logits(&hidden, None)?.to_dtype(DType::F32)?;
        let takers: Vec<&mut Sample> = samples.iter_mut().filter(|sample| !sample.ended).collect();
        ops::for_each_row(&logits, takers, |sample, row| sample.take(row, eot))?;
        check_finite(samples)?;
    }
    Ok(())
}

fn check_finite(samples: &[Sample]) -> Result<()> {
    if samples.iter().all(|sample| sample.finite) { Ok(()) } else { Err(Error::NotFinite("a reply")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_likely_are_those_of_a_whole_sort() {
        let logits: Vec<f32> = (0..997u32).map(|i| (i.wrapping_mul(2_654_435_761) % 100) as f32 - 50.0).collect();
        let mut sorted: Vec<u32> = (0..logits.len() as u32).collect();
        sorted.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b)));
        for count in [1, 2, 5, FEW, FEW + 1, 500, 997, 2000] {
            assert_eq!(most_likely(&logits, count), sorted[..count.min(997)], "{count}");
        }
    }

    #[test]
    fn draws_follow_the_probabilities() {
        let (logits, mut random) = ([0.0, f32::ln(3.0), f32::NEG_INFINITY], ChaCha8Rng::seed_from_u64(1));
        for top_k in [0, 2, 3] {
            let sampling = Sampling { top_k, temperature: 1.0 };
            let ones = (0..4000).filter(|_| draw(&logits, sampling, &mut random) == 1).count();
            assert!((2850..3150).contains(&ones), "{ones} of 4000 with top_k {top_k}");
        }
    }
}
