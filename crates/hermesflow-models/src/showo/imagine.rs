//! Images from text. Keys and values of the prompt are computed once, for all images of it and all steps.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use candle_core::{DType, Tensor};
use hermesflow_nn::device::uses_kernels;
use hermesflow_nn::ops::{self, Segment};
use hermesflow_nn::parallel;
use rayon::prelude::*;

use super::Showo;
use super::config::ShowoConfig;
use super::maskgit::{Decoding, SeededDraws, guided_softmax};
use super::phi::{KvCache, Phi, Placement};
use super::sequence::{Frames, Packed};
use crate::model::{ImagineJob, MaskedOptions};
use crate::{Error, Imagined, Result};

/// The largest number of images that are denoised as one batch.
const BATCH: usize = 32;
/// The largest number of tokens that go through the decoder at once, on the CPU and on a GPU, unless one image has
/// more.
const BATCH_TOKENS: usize = 8192;
const BATCH_TOKENS_ON_GPU: usize = 34_000;

/// The number of images that are denoised as one batch.
pub(super) fn batch(config: &ShowoConfig, options: &MaskedOptions, on_gpu: bool) -> usize {
    let passes = if options.guidance == 0.0 { 1 } else { 2 };
    let tokens = if on_gpu { BATCH_TOKENS_ON_GPU } else { BATCH_TOKENS };
    (tokens / (passes * (config.num_vq_tokens + 2))).clamp(1, BATCH)
}

/// One image per job.
pub(super) fn imagine(model: &Showo, jobs: &[ImagineJob], options: &MaskedOptions) -> Result<Vec<Imagined>> {
    // Batches of nearly equal size.
    let batches = jobs.len().div_ceil(batch(&model.config, options, !model.phi.device().is_cpu())).max(1);
    let batches: Vec<&[ImagineJob]> = jobs.chunks(jobs.len().div_ceil(batches).max(1)).collect();
    let images = parallel::map(model.works_apart(), &batches, |jobs| imagine_batch(model, jobs, options));
    Ok(images.into_iter().collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
}

fn imagine_batch(model: &Showo, jobs: &[ImagineJob], options: &MaskedOptions) -> Result<Vec<Imagined>> {
    let mut tokenized: HashMap<&str, Vec<u32>> = HashMap::new();
    for job in jobs {
        if !tokenized.contains_key(job.prompt.as_str()) {
            tokenized.insert(&job.prompt, model.tokenizer.encode(&job.prompt)?);
        }
    }
    let texts: Vec<Vec<u32>> =
        jobs.iter().map(|job| model.frames.imagine_text(&tokenized[job.prompt.as_str()])).collect();
    let images = jobs.iter().map(|job| begin(model, job, options)).collect::<Result<_>>()?;
    let uncond = (options.guidance != 0.0).then(|| model.frames.imagine_text(&[]));
    let draws = jobs.iter().map(|job| SeededDraws::new(job.seed)).collect();
    let mut denoiser = Denoiser::new(&model.phi, &model.config, &model.frames, &texts, uncond.as_deref())?;
    // On a thread of the pool, as in `reply_batch`.
    let images = parallel::awake(|| denoiser.run(images, options.steps.max(1), options.guidance, draws))?;
    let made = |(image, job): (Decoding, &ImagineJob)| {
        let steps = job.known.iter().all(Option::is_none).then(|| image.settled().to_vec());
        Imagined { codes: image.into_codes(), steps }
    };
    Ok(images.into_iter().zip(jobs).map(made).collect())
}

/// The state of an image before its first step: its known codes.
fn begin(model: &Showo, job: &ImagineJob, options: &MaskedOptions) -> Result<Decoding> {
    let ShowoConfig { num_vq_tokens: tokens, codebook_size: codebook, .. } = model.config;
    let known = if job.known.is_empty() { vec![None; tokens] } else { job.known.clone() };
    if known.len() != tokens {
        return Err(Error::Invalid(format!(
            "{} codes are given as known; an image of this model has {tokens}",
            known.len()
        )));
    }
    if let Some(code) = known.iter().flatten().find(|&&code| code as usize >= codebook) {
        return Err(Error::Invalid(format!(
            "code {code} is given as known; codes of this model go up to {}",
            codebook - 1
        )));
    }
    Ok(Decoding::resume(known, options.steps.max(1), options.temperature, options.schedule))
}

/// Denoises a batch of images over cached text prefixes.
pub struct Denoiser<'a> {
    phi: &'a Phi,
    config: &'a ShowoConfig,
    frames: &'a Frames,
    cache: KvCache,
    /// The cached rows of each image's text.
    prefixes: Vec<Range<usize>>,
    uncond: Option<Range<usize>>,
    prefix_rows: usize,
}

impl<'a> Denoiser<'a> {
    /// Computes keys and values of the texts. `texts` are whole text parts (`<|t2i|> … <|eot|>`), one per image; equal
    /// ones are computed once. `uncond` is the text part of the unconditional pass, if there is guidance.
    ///
    /// # Errors
    /// If a token is outside the vocabulary.
    pub fn new(
        phi: &'a Phi,
        config: &'a ShowoConfig,
        frames: &'a Frames,
        texts: &[Vec<u32>],
        uncond: Option<&[u32]>,
    ) -> Result<Self> {
        let mut packed = Packed::default();
        let mut known: HashMap<&[u32], Range<usize>> = HashMap::new();
        let mut prefixes = Vec::with_capacity(texts.len());
        for text in texts {
            let rows = known.entry(text).or_insert_with(|| packed.push(text, 0, vec![], true)).clone();
            prefixes.push(rows);
        }
        let uncond = uncond.map(|text| match known.get(text) {
            Some(rows) => rows.clone(),
            None => packed.push(text, 0, vec![], true),
        });
        let prefix_rows = packed.ids.len();
        let cache = phi.cache(prefix_rows)?;
        let placement = Placement::Rows(0);
        phi.forward(phi.embed(&packed.ids)?, &packed.positions, &packed.segments(), Some((&cache, &placement)))?;
        Ok(Self { phi, config, frames, cache, prefixes, uncond, prefix_rows })
    }

    /// Makes all steps; returns every image with its final codes. Where the CPU's kernels are not used, codes are drawn
    /// on the device, with the same random numbers.
    ///
    /// # Errors
    /// If a tensor operation fails, or logits are not finite.
    pub fn run(
        &mut self,
        mut images: Vec<Decoding>,
        steps: usize,
        guidance: f64,
        mut draws: Vec<SeededDraws>,
    ) -> Result<Vec<Decoding>> {
        for _ in 0..steps {
            match uses_kernels(self.phi.device()) {
                true => self.step(&mut images, guidance, &mut draws)?,
                false => self.step_on_device(&mut images, guidance, &mut draws)?,
            }
            if !images.iter().all(Decoding::is_finite) {
                return Err(Error::NotFinite("an image"));
            }
        }
        Ok(images)
    }

    fn step(&self, images: &mut [Decoding], guidance: f64, draws: &mut [SeededDraws]) -> Result<()> {
        let codebook = self.config.codebook_size;
        let probabilities = self.probabilities(images, guidance)?;
        let mut rest = probabilities.as_slice();
        let mut work = Vec::with_capacity(images.len());
        for (image, draws) in images.iter_mut().zip(draws) {
            let (rows, behind) = rest.split_at(image.masked().count() * codebook);
            work.push((image, draws, rows));
            rest = behind;
        }
        work.into_par_iter().for_each(|(image, draws, rows)| image.advance(rows, codebook, draws));
        Ok(())
    }

    /// Like [`Self::step`], but only the drawn codes are copied to the host.
    fn step_on_device(&self, images: &mut [Decoding], guidance: f64, draws: &mut [SeededDraws]) -> Result<()> {
        let drawn = match self.masked_logits(images)? {
            None => Vec::new(),
            Some((cond, None)) => ops::draw_rows(&cond, &marks(images, draws))?,
            Some((cond, Some(uncond))) => ops::draw_guided(&cond, &uncond, guidance, &marks(images, draws))?,
        };
        let mut rest = drawn.as_slice();
        for (image, draws) in images.iter_mut().zip(draws) {
            let (own, behind) = rest.split_at(image.masked().count());
            image.advance_by(own, draws);
            rest = behind;
        }
        Ok(())
    }

    /// The probabilities of all codes at the masked positions, after guidance and softmax: one row per masked position,
    /// images in order.
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub fn probabilities(&self, images: &[Decoding], guidance: f64) -> Result<Vec<f32>> {
        let Some((cond, uncond)) = self.masked_logits(images)? else {
            return Ok(Vec::new()); // all codes are known
        };
        let (masked, codebook) = cond.dims2()?;
        let mut probabilities = vec![0f32; masked * codebook];
        let each = |probabilities: &mut Vec<f32>, logits: Tensor, work: fn(&mut [f32], &[f32], f64)| {
            let rows = probabilities.chunks_exact_mut(codebook).collect();
            ops::for_each_row(&logits, rows, |row, logits| work(row, logits, guidance))
        };
        match uncond {
            None => each(&mut probabilities, cond, |row, cond, guidance| {
                row.copy_from_slice(cond);
                guided_softmax(row, None, guidance);
            })?,
            Some(uncond) => {
                each(&mut probabilities, cond, |row, cond, _| row.copy_from_slice(cond))?;
                each(&mut probabilities, uncond, |row, uncond, guidance| guided_softmax(row, Some(uncond), guidance))?;
            }
        }
        Ok(probabilities)
    }

    /// The logits of all codes at the masked positions, images in order: with the text and, if there is guidance,
    /// without it; `None` if all codes are known.
    ///
    /// # Shapes
    /// `[masked, codebook]`, f32
    fn masked_logits(&self, images: &[Decoding]) -> Result<Option<(Tensor, Option<Tensor>)>> {
        let codebook = self.config.codebook_size;
        let (mut packed, mut rows) = (Packed::default(), Vec::new());
        let mut add = |image: &Decoding, prefix: &Range<usize>| {
            let ids = self.frames.imagine_image(image.codes().iter().copied());
            let first = packed.push(&ids, prefix.len(), vec![prefix.clone()], false).start;
            rows.extend(image.masked().map(|position| (first + 1 + position) as u32));
        };
        images.iter().zip(&self.prefixes).for_each(|(image, prefix)| add(image, prefix));
        if let Some(prefix) = &self.uncond {
            images.iter().for_each(|image| add(image, prefix));
        }
        if rows.is_empty() {
            return Ok(None);
        }
        // The keys of this step follow those of the prefixes.
        let segments: Arc<[Segment]> = packed
            .segments
            .iter()
            .map(|segment| {
                let own = segment.own.start + self.prefix_rows..segment.own.end + self.prefix_rows;
                Segment { own, ..segment.clone() }
            })
            .collect();
        let embedded = self.phi.embed(&packed.ids)?;
        let hidden =
            self.phi.forward(embedded, &packed.positions, &segments, Some((&self.cache, &Placement::Behind)))?;
        let offset = self.config.image_offset() as usize;
        let logits = self.phi.logits(&ops::gather_rows(&hidden, &rows)?, Some(offset..offset + codebook))?;
        let logits = logits.to_dtype(DType::F32)?;
        if self.uncond.is_none() {
            return Ok(Some((logits, None)));
        }
        let masked = rows.len() / 2;
        Ok(Some((logits.narrow(0, 0, masked)?, Some(logits.narrow(0, masked, masked)?))))
    }
}

/// The random number that decides the code of each masked position, images in order.
fn marks(images: &[Decoding], draws: &mut [SeededDraws]) -> Vec<f32> {
    let of = |(image, draws): (&Decoding, &mut SeededDraws)| image.masked().map(|_| draws.mark()).collect::<Vec<_>>();
    images.iter().zip(draws).flat_map(of).collect()
}
