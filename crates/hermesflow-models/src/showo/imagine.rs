//! Images from text: the prompt's keys and values are computed once, for all images and all steps.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use candle_core::DType;
use hermesflow_nn::ops::{self, Segment};
use hermesflow_nn::parallel;

use super::Showo;
use super::config::ShowoConfig;
use super::maskgit::{Decoding, Draws, SeededDraws, guided_softmax};
use super::phi::{KvCache, Phi, Placement};
use super::sequence::{Frames, Packed};
use crate::model::{ImagineJob, ImagineOptions};
use crate::{Error, Result};

/// Images that are denoised as one batch.
const BATCH: usize = 32;
/// Tokens that go through the decoder at once, at most, unless one image has more.
const BATCH_TOKENS: usize = 8192;

/// Images that are denoised as one batch: what the memory of a pass allows.
pub fn batch(config: &ShowoConfig, options: &ImagineOptions) -> usize {
    let passes = if options.guidance == 0.0 { 1 } else { 2 };
    (BATCH_TOKENS / (passes * (config.num_vq_tokens + 2))).clamp(1, BATCH)
}

/// Codes of one image per job.
pub(super) fn imagine(model: &Showo, jobs: &[ImagineJob], options: &ImagineOptions) -> Result<Vec<Vec<u32>>> {
    let batches: Vec<&[ImagineJob]> = jobs.chunks(batch(&model.config, options)).collect();
    let images = parallel::map(model.is_small(), &batches, |jobs| imagine_batch(model, jobs, options));
    Ok(images.into_iter().collect::<Result<Vec<_>>>()?.concat())
}

fn imagine_batch(model: &Showo, jobs: &[ImagineJob], options: &ImagineOptions) -> Result<Vec<Vec<u32>>> {
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
    denoiser.run(images, options.steps.max(1), options.guidance, draws)
}

/// What is known of an image before its first step.
fn begin(model: &Showo, job: &ImagineJob, options: &ImagineOptions) -> Result<Decoding> {
    let ShowoConfig { num_vq_tokens: tokens, codebook_size: codebook, .. } = model.config;
    let known = if job.known.is_empty() { vec![None; tokens] } else { job.known.clone() };
    if known.len() != tokens {
        return Err(Error::Invalid(format!("{} codes are given as known, an image has {tokens}", known.len())));
    }
    if let Some(code) = known.iter().flatten().find(|&&code| code as usize >= codebook) {
        return Err(Error::Invalid(format!("code {code} is given as known, the codebook ends at {}", codebook - 1)));
    }
    Ok(Decoding::resume(known, options.steps.max(1), options.temperature, options.schedule))
}

/// Denoises a batch of images over cached text prefixes.
pub struct Denoiser<'a> {
    phi: &'a Phi,
    config: &'a ShowoConfig,
    frames: &'a Frames,
    cache: KvCache,
    /// The rows of each image's text prefix.
    prefixes: Vec<Range<usize>>,
    uncond: Option<Range<usize>>,
    prefix_rows: usize,
}

impl<'a> Denoiser<'a> {
    /// Computes the prefixes. `texts` are whole text parts (`<|t2i|> … <|eot|>`), one per image; equal ones are
    /// computed once.
    ///
    /// # Errors
    /// When a token is outside the vocabulary.
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

    /// All steps; the final codes of every image.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn run<D: Draws>(
        &mut self,
        mut images: Vec<Decoding>,
        steps: usize,
        guidance: f64,
        mut draws: Vec<D>,
    ) -> Result<Vec<Vec<u32>>> {
        let codebook = self.config.codebook_size;
        for _ in 0..steps {
            let probabilities = self.probabilities(&images, guidance)?;
            let mut start = 0;
            for (image, draws) in images.iter_mut().zip(&mut draws) {
                let rows = image.masked().count();
                image.advance(&probabilities[start * codebook..(start + rows) * codebook], codebook, draws);
                start += rows;
            }
        }
        Ok(images.into_iter().map(Decoding::into_codes).collect())
    }

    /// Probabilities over the codebook at the masked positions, after guidance and softmax: one row of
    /// codebook size per masked position, images in order.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn probabilities(&self, images: &[Decoding], guidance: f64) -> Result<Vec<f32>> {
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
            return Ok(Vec::new()); // all codes are known
        }
        // Keys of this step stand behind the prefixes.
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
        let mut logits = logits.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let (cond, uncond) = match self.uncond {
            Some(_) => {
                let (cond, uncond) = logits.split_at_mut(rows.len() / 2 * codebook);
                (cond, Some(&*uncond))
            }
            None => (logits.as_mut_slice(), None),
        };
        for (row, cond) in cond.chunks_exact_mut(codebook).enumerate() {
            let uncond = uncond.map(|uncond| &uncond[row * codebook..(row + 1) * codebook]);
            guided_softmax(cond, uncond, guidance);
        }
        let rows = cond.len();
        logits.truncate(rows);
        Ok(logits)
    }
}
