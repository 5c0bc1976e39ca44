//! Pictures from text, one code after the other, under guidance.
//!
//! Each distinct prompt is computed once, and so is each distinct unconditional row; the rows of all pictures, with and
//! without the prompt, advance together by one code a step.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::{DType, Tensor};
use hermesflow_nn::ops::{self, Segment};
use hermesflow_nn::parallel;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::Janus;
use crate::decoder::Decoder;
use crate::showo::cache::{KvCache, Placement};
use crate::showo::reply::PASS;
use crate::showo::sequence::Packed;
use crate::{Error, Result};

/// Pictures that are made as one batch, at most.
const BATCH: usize = 64;
/// Bytes of a batch's cache where nothing else is said.
const CACHE: usize = 2 << 30;

/// How codes are drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DrawOptions {
    /// Classifier-free guidance w in `uncond + w·(cond − uncond)`; 1 runs no unconditional row.
    pub guidance: f64,
    /// Guided logits are divided by this before the softmax.
    pub temperature: f64,
    /// Bytes that the keys and values of pictures that are made together may take; one picture is always made.
    pub cache_bytes: usize,
}

impl Default for DrawOptions {
    /// The published settings: guidance 5, temperature 1.
    fn default() -> Self {
        Self { guidance: 5.0, temperature: 1.0, cache_bytes: CACHE }
    }
}

/// One picture to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DrawJob<'a> {
    /// The text to imagine.
    pub prompt: &'a str,
    /// The seed of the picture's draws.
    pub seed: u64,
}

/// Pictures of `pictures` that are made as one batch, where one takes `bytes` of a cache of `cache_bytes`: batches are of
/// nearly the same number.
pub(super) fn together(pictures: usize, bytes: usize, cache_bytes: usize) -> usize {
    let most = (cache_bytes / bytes.max(1)).clamp(1, BATCH);
    pictures.div_ceil(pictures.div_ceil(most).max(1)).max(1)
}

impl Janus {
    /// The codes of one picture per job.
    ///
    /// # Errors
    /// When a prompt does not fit the model, the settings are no numbers to draw by, or the logits are not finite.
    pub fn draw(&self, jobs: &[DrawJob], options: &DrawOptions) -> Result<Vec<Vec<u32>>> {
        let DrawOptions { guidance, temperature, .. } = *options;
        if !(guidance.is_finite() && temperature.is_finite() && temperature > 0.0) {
            let message = format!("guidance {guidance} must be a number, temperature {temperature} a number above 0");
            return Err(Error::Invalid(message));
        }
        let rows = if guidance == 1.0 { 1 } else { 2 };
        let bytes = rows * self.config.image_tokens * self.llama.drawing_bytes_per_row();
        let batches: Vec<&[DrawJob]> = jobs.chunks(together(jobs.len(), bytes, options.cache_bytes)).collect();
        let pictures = parallel::map(self.works_apart(), &batches, |jobs| self.draw_batch(jobs, options));
        Ok(pictures.into_iter().collect::<Result<Vec<_>>>()?.concat())
    }

    fn draw_batch(&self, jobs: &[DrawJob], options: &DrawOptions) -> Result<Vec<Vec<u32>>> {
        let mut prompts = Vec::with_capacity(jobs.len());
        for job in jobs {
            let ids = self.conversation.prompt(job.prompt)?;
            self.fits(ids.len() + self.config.image_tokens, job.prompt)?;
            prompts.push(ids);
        }
        let mut random: Vec<ChaCha8Rng> = jobs.iter().map(|job| ChaCha8Rng::seed_from_u64(job.seed)).collect();
        // From one of the pool's own threads: from outside, every product would wake two threads and wait for both.
        parallel::awake(|| {
            let mut drawing = Drawing::new(self, &prompts, options.guidance != 1.0)?;
            let mut pictures = vec![Vec::with_capacity(self.config.image_tokens); jobs.len()];
            for step in 0..self.config.image_tokens {
                let uniforms: Vec<f64> = random.iter_mut().map(|random| random.random()).collect();
                let codes = drawing.codes(options, &uniforms)?;
                pictures.iter_mut().zip(&codes).for_each(|(picture, code)| picture.push(*code));
                if step + 1 < self.config.image_tokens {
                    drawing.advance(&codes)?;
                }
            }
            Ok(pictures)
        })
    }
}

/// Pictures while they are made, over cached prompts.
pub struct Drawing<'a> {
    model: &'a Janus,
    cache: KvCache,
    /// The rows of the prompt that each row of the batch stands behind: pictures in order, then, if there is guidance, the
    /// same pictures without their prompts.
    prefixes: Vec<Range<usize>>,
    pictures: usize,
    /// The first row of the cache behind all prompts.
    start: usize,
    /// Codes that every picture has.
    column: usize,
    /// What the last layer of the head sees of each row of the batch, `[rows, inner]`.
    inner: Tensor,
}

impl<'a> Drawing<'a> {
    /// Computes the prompts, given as whole rows of ids, one per picture; equal ones are computed once.
    ///
    /// # Errors
    /// When an id is outside the vocabulary.
    pub fn new(model: &'a Janus, prompts: &[Vec<u32>], guided: bool) -> Result<Self> {
        let mut rows: Vec<Vec<u32>> = prompts.to_vec();
        if guided {
            rows.extend(prompts.iter().map(|prompt| model.conversation.unconditional(prompt)));
        }
        let mut packed = Packed::default();
        let mut known: HashMap<&[u32], Range<usize>> = HashMap::new();
        let push = |row| known.entry(row).or_insert_with(|| packed.push(row, 0, vec![], true)).clone();
        let prefixes: Vec<Range<usize>> = rows.iter().map(Vec::as_slice).map(push).collect();
        if prefixes.iter().any(Range::is_empty) {
            return Err(Error::Invalid("a prompt without ids".into()));
        }
        let (start, llama) = (packed.ids.len(), &model.llama);
        let cache = llama.drawing_cache(start + prefixes.len() * (model.config.image_tokens - 1))?;
        let embedded = packed.embed(llama)?;
        let mut hidden = Vec::new();
        for (rows, segments) in packed.parts(PASS) {
            let (xs, placement) = (embedded.narrow(0, rows.start, rows.len())?, Placement::Rows(rows.start));
            hidden.push(llama.forward(xs, &packed.positions[rows], &segments, Some((&cache, &placement)))?);
        }
        let ends: Vec<u32> = prefixes.iter().map(|prefix| prefix.end as u32 - 1).collect();
        let hidden = ops::gather_rows(&Tensor::cat(&hidden, 0)?, &ends)?;
        let inner = model.hand.inner(&hidden)?;
        Ok(Self { model, cache, prefixes, pictures: prompts.len(), start, column: 0, inner })
    }

    /// Logits of the next code of each picture: with the prompt and, where there is guidance, those without.
    ///
    /// # Shapes
    /// `[pictures, codebook]` in f32
    ///
    /// # Errors
    /// When memory runs out.
    pub fn logits(&self) -> Result<(Tensor, Option<Tensor>)> {
        let (cond, uncond) = self.inner()?;
        let logits = |inner: Tensor| -> Result<Tensor> { Ok(self.model.hand.logits_of(&inner)?.to_dtype(DType::F32)?) };
        Ok((logits(cond)?, uncond.map(logits).transpose()?))
    }

    /// What the last layer of the head sees: with the prompt and, where there is guidance, without.
    fn inner(&self) -> Result<(Tensor, Option<Tensor>)> {
        let guided = self.prefixes.len() > self.pictures;
        let part = |number: usize| self.inner.narrow(0, number * self.pictures, self.pictures);
        Ok((part(0)?, guided.then(|| part(1)).transpose()?))
    }

    /// Calls `work` with each picture's item and the probabilities from which its next code is drawn, after guidance and
    /// softmax, in parallel. The last layer of the head is affine, so that it runs once, over the guided combination of
    /// what it sees.
    fn each_distribution<T: Send>(
        &self,
        options: &DrawOptions,
        items: Vec<T>,
        work: impl Fn(T, &[f32]) + Sync + Send,
    ) -> Result<()> {
        let (mut inner, uncond) = self.inner()?;
        if let Some(uncond) = uncond {
            inner = (&uncond + (inner - &uncond)?.affine(options.guidance, 0.0)?)?;
        }
        let logits = self.model.hand.logits_of(&inner)?.to_dtype(DType::F32)?;
        let finite = AtomicBool::new(true);
        ops::for_each_row(&logits, items, |item, logits| {
            if !ops::all_finite(logits) {
                return finite.store(false, Ordering::Relaxed);
            }
            let mut row = logits.to_vec();
            ops::soften_row(&mut row, options.temperature as f32);
            work(item, &row);
        })?;
        if finite.into_inner() { Ok(()) } else { Err(Error::NotFinite("a picture")) }
    }

    /// The probabilities from which the next code of each picture is drawn, after guidance and softmax.
    ///
    /// # Errors
    /// When the logits are not finite.
    pub fn probabilities(&self, options: &DrawOptions) -> Result<Vec<Vec<f32>>> {
        let mut rows = vec![Vec::new(); self.pictures];
        self.each_distribution(options, rows.iter_mut().collect(), |row: &mut Vec<f32>, all| row.extend(all))?;
        Ok(rows)
    }

    /// The next code of each picture, drawn by one number in [0, 1) each: as many entries of the cumulative probabilities as
    /// are no larger than it.
    ///
    /// # Errors
    /// When the logits are not finite, or there are not as many numbers as pictures.
    pub fn codes(&self, options: &DrawOptions, uniforms: &[f64]) -> Result<Vec<u32>> {
        let mut codes = vec![0; uniforms.len()];
        let items = codes.iter_mut().zip(uniforms).collect();
        self.each_distribution(options, items, |(drawn, uniform): (&mut u32, &f64), row| *drawn = code(row, *uniform))?;
        Ok(codes)
    }

    /// Appends one code to each picture and computes the logits of the next.
    ///
    /// # Errors
    /// When there are not as many codes as pictures, a picture has all its codes, or one is outside the codebook.
    pub fn advance(&mut self, codes: &[u32]) -> Result<()> {
        let (samples, size) = (self.prefixes.len(), self.model.config.image_tokens - 1);
        if codes.len() != self.pictures || self.column >= size {
            let message = format!("{} codes for {} pictures, after {}", codes.len(), self.pictures, self.column);
            return Err(Error::Invalid(message));
        }
        let (model, column, start) = (self.model, self.column, self.start);
        let mut embedded = model.hand.embed(codes)?;
        if samples > self.pictures {
            embedded = Tensor::cat(&[&embedded, &embedded], 0)?;
        }
        let positions: Vec<u32> = self.prefixes.iter().map(|prefix| (prefix.len() + column) as u32).collect();
        let segment = |(row, prefix): (usize, &Range<usize>)| {
            let own = start + row * size;
            Segment { queries: row..row + 1, sees: vec![prefix.clone()], own: own..own + column + 1, causal: true }
        };
        let segments: Arc<[Segment]> = self.prefixes.iter().enumerate().map(segment).collect();
        let placement = Placement::Column { start, samples, size, column };
        let hidden = model.llama.forward(embedded, &positions, &segments, Some((&self.cache, &placement)))?;
        self.inner = model.hand.inner(&hidden)?;
        self.column += 1;
        Ok(())
    }
}

/// The first code whose cumulative probability exceeds the number; rounding may leave none, then the last that has any.
fn code(probabilities: &[f32], uniform: f64) -> u32 {
    let (mut sum, mut last) = (0.0, 0);
    for (at, &probability) in probabilities.iter().enumerate() {
        sum += f64::from(probability);
        if probability > 0.0 {
            last = at;
            if sum > uniform {
                break;
            }
        }
    }
    last as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_the_number_of_sums_that_are_not_above_the_draw() {
        let row = [0.25, 0.0, 0.5, 0.25, 0.0];
        for (uniform, expected) in [(0.0, 0), (0.2, 0), (0.25, 2), (0.7, 2), (0.75, 3), (0.999_999, 3), (1.0, 3)] {
            assert_eq!(code(&row, uniform), expected, "{uniform}");
        }
    }
}
