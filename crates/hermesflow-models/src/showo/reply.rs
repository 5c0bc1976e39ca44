//! Replies about images: captions and answers.
//!
//! The tokens of each image and each question are processed once and shared by all their replies. The replies of a
//! batch advance together, one token per step, and leave the batch when they end.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use candle_core::{DType, Tensor};
use hermesflow_nn::device::uses_kernels;
use hermesflow_nn::ops::{self, Segment};
use hermesflow_nn::parallel;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::Showo;
use super::cache::{KvCache, Placement};
use super::maskgit::draw_index;
use super::sequence::Packed;
use super::texts::UNWRITTEN;
use crate::decoder::Decoder;
use crate::model::{ImageView, Reply, ReplyRequest, Sampling};
use crate::{Error, Result};

/// About this many replies advance as one batch; replies about one image stay together.
const BATCH: usize = 32;
/// About this many tokens of images and questions go through the decoder at once.
pub(crate) const PASS: usize = 1024;
/// The largest size of a batch's key/value cache in bytes, unless one image needs more: on the CPU, where at the
/// published size several images together are a tenth faster than one, and on a GPU.
const CACHE: usize = 512 << 20;
const CACHE_ON_GPU: usize = 2 << 30;

/// The tokens of each question, by its text.
type Questions<'a> = HashMap<&'a str, Vec<u32>>;

/// The replies to all requests, in order.
pub(super) fn reply_many(model: &Showo, images: &[(&ImageView, &[ReplyRequest])]) -> Result<Vec<Vec<Reply>>> {
    let mut ids: Questions<'_> = HashMap::new();
    for (image, requests) in images {
        for request in *requests {
            let question = request.question.as_str();
            let tokens = match ids.entry(question) {
                Entry::Occupied(known) => known.get().len(),
                Entry::Vacant(new) => new.insert(model.question_ids(question)?).len(),
            };
            model.fits(model.rows_of(image), (question, tokens), (UNWRITTEN, request.max_new_tokens))?;
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

/// How many of `images` images are processed as one batch, so that all batches have about the same size. Each image has
/// `replies` replies and `rows` rows of `row` bytes in the cache.
pub(crate) fn images_together(images: usize, replies: usize, rows: usize, (row, on_gpu): (usize, bool)) -> usize {
    let cache = if on_gpu { CACHE_ON_GPU } else { CACHE };
    let batches = (images * replies).div_ceil(BATCH).max((images * rows * row).div_ceil(cache)).max(1);
    images.div_ceil(batches).max(1)
}

/// The rows that an image, the questions about it and their replies take in the cache.
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
    let questions: Vec<QuestionRows> = questions
        .into_iter()
        .map(|(image, question)| {
            let block = blocks[image].clone();
            let rows = packed.push(&ids[question], block.len(), vec![block.clone()], true);
            QuestionRows { block, rows }
        })
        .collect();
    // On a thread of the pool, because from outside every product would wake two threads and wait for both.
    parallel::awake(|| write_replies(&model.phi, &packed, &questions, &mut samples, model.tokenizer.special.eot))?;
    let reply = |sample: Sample| -> Result<Reply> {
        Ok(Reply { text: model.tokenizer.decode(&sample.tokens)?, log_prob: sample.log_prob })
    };
    let mut replies = samples.into_iter().map(reply);
    images.iter().map(|(_, requests)| replies.by_ref().take(requests.len()).collect()).collect()
}

/// The cached rows that the replies to one question attend to.
pub struct QuestionRows {
    /// The rows of the image.
    pub block: Range<usize>,
    /// The rows of the question.
    pub rows: Range<usize>,
}

/// One reply while it is written.
pub struct Sample {
    question: usize,
    sampling: Sampling,
    max_new_tokens: usize,
    random: ChaCha8Rng,
    ended: bool,
    /// Whether all logits that it was drawn from were finite.
    finite: bool,
    /// The tokens so far, without the closing `<|eot|>`.
    pub tokens: Vec<u32>,
    /// The sum of the log-probabilities of all tokens drawn so far, the closing `<|eot|>` included.
    pub log_prob: f64,
}

impl Sample {
    /// An empty reply to the question of this index.
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
        self.take_one_of(&candidates(logits, self.sampling.top_k), || ops::log_sum_exp(logits), eot);
    }

    /// Draws one of the candidates, whose logits are given. `log_sum` is the log-sum-exp of all logits.
    fn take_one_of(&mut self, candidates: &[(u32, f32)], log_sum: impl FnOnce() -> f64, eot: u32) {
        let (token, logit) = draw_one_of(candidates, self.sampling, &mut self.random);
        self.log_prob += f64::from(logit) - log_sum();
        if token == eot {
            self.ended = true;
        } else {
            self.tokens.push(token);
            self.ended = self.tokens.len() >= self.max_new_tokens;
        }
    }
}

/// The tokens that can be drawn, with their logits.
fn candidates(logits: &[f32], top_k: usize) -> Vec<(u32, f32)> {
    let tokens = match top_k {
        0 => (0..logits.len() as u32).collect(),
        top_k => ops::likeliest_of_row(logits, top_k),
    };
    tokens.into_iter().map(|token| (token, logits[token as usize])).collect()
}

/// Draws a token: divides the logits by the temperature, keeps the `top_k` largest, softmax, one draw. With `top_k` 1,
/// the first of the most likely tokens.
pub fn draw(logits: &[f32], sampling: Sampling, random: &mut ChaCha8Rng) -> u32 {
    draw_one_of(&candidates(logits, sampling.top_k), sampling, random).0
}

/// Draws one of the candidates, which are ordered by likelihood if the sampling has a top-k. With `top_k` 1, the first
/// one.
fn draw_one_of(candidates: &[(u32, f32)], sampling: Sampling, random: &mut ChaCha8Rng) -> (u32, f32) {
    if sampling.top_k == 1 {
        return candidates.first().copied().unwrap_or_default();
    }
    let highest = candidates.iter().map(|(_, logit)| *logit).fold(f32::NEG_INFINITY, f32::max);
    let weight = |(_, logit): &(u32, f32)| (f64::from(logit - highest) / sampling.temperature).exp() as f32;
    let weights: Vec<f32> = candidates.iter().map(weight).collect();
    let total: f32 = weights.iter().sum();
    candidates[draw_index(&weights, random.random::<f32>() * total)]
}

/// Up to this many of the likeliest tokens are found on a GPU instead of copying all logits; it reads the logits once
/// for each.
const FEW_ON_A_GPU: usize = 8;

/// Draws the next token of each sample from its row of logits.
///
/// # Shapes
/// `logits` `[rows, vocabulary]`
fn take_all(logits: &Tensor, takers: Vec<Vec<&mut Sample>>, eot: u32) -> Result<()> {
    let logits = logits.to_dtype(DType::F32)?;
    let top_ks = takers.iter().flatten().map(|sample| sample.sampling.top_k);
    let (least, most) = top_ks.fold((usize::MAX, 0), |(least, most), top_k| (least.min(top_k), most.max(top_k)));
    if !uses_kernels(logits.device()) && least > 0 && most <= FEW_ON_A_GPU.min(logits.dim(1)?) {
        for (samples, row) in takers.into_iter().zip(ops::likeliest(&logits, most)?) {
            for sample in samples {
                let top_k = sample.sampling.top_k;
                sample.finite &= row.log_sum.is_finite() && row.columns.len() >= top_k;
                if sample.finite {
                    sample.take_one_of(&row.columns[..top_k], || row.log_sum, eot);
                }
            }
        }
        return Ok(());
    }
    ops::for_each_row(&logits, takers, |samples, row| samples.into_iter().for_each(|sample| sample.take(row, eot)))?;
    Ok(())
}

/// Processes images and questions, some at a time, into the cache; returns the hidden states at the end of each
/// question.
///
/// # Shapes
/// `[questions, hidden]`
fn read_prefix(phi: &impl Decoder, prefix: &Packed, questions: &[QuestionRows], cache: &KvCache) -> Result<Tensor> {
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
        // A part may contain no end of a question, and a GPU cannot allocate an empty tensor.
        if !here.is_empty() {
            ends.push(ops::gather_rows(&hidden, &here)?);
        }
    }
    Ok(Tensor::cat(&ends, 0)?)
}

/// Writes all replies: processes the images and questions in `prefix`, then draws tokens until every sample has ended.
///
/// # Errors
/// If a tensor operation fails, or logits are not finite.
pub fn write_replies(
    phi: &impl Decoder,
    prefix: &Packed,
    questions: &[QuestionRows],
    samples: &mut [Sample],
    eot: u32,
) -> Result<()> {
    let start = prefix.ids.len();
    let size = samples.iter().map(|sample| sample.max_new_tokens).max().unwrap_or(0);
    let cache = phi.cache(start + samples.len() * size)?;
    let hidden = read_prefix(phi, prefix, questions, &cache)?;
    let first = phi.logits(&hidden)?;
    let mut takers: Vec<Vec<&mut Sample>> = questions.iter().map(|_| Vec::new()).collect();
    for sample in samples.iter_mut().filter(|sample| !sample.ended) {
        takers[sample.question].push(sample);
    }
    take_all(&first, takers, eot)?;
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
        let takers = samples.iter_mut().filter(|sample| !sample.ended).map(|sample| vec![sample]).collect();
        take_all(&phi.logits(&hidden)?, takers, eot)?;
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
    fn draws_follow_the_probabilities() {
        let (logits, mut random) = ([0.0, f32::ln(3.0), f32::NEG_INFINITY], ChaCha8Rng::seed_from_u64(1));
        for top_k in [0, 2, 3] {
            let sampling = Sampling { top_k, temperature: 1.0 };
            let ones = (0..4000).filter(|_| draw(&logits, sampling, &mut random) == 1).count();
            assert!((2850..3150).contains(&ones), "{ones} of 4000 with top_k {top_k}");
        }
    }
}
