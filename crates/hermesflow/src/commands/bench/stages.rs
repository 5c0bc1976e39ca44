//! The stages of a bench, each with its work.

use std::ops::ControlFlow;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use hermesflow_models::cost::{TrainedSides, TrainingWork};
use hermesflow_models::measure::Profile;
use hermesflow_models::{
    DType, Device, ImageView, ImagineJob, ImagineOptions, Model, ReplyRequest, Sampling, UnifiedModel, device, measure,
};
use hermesflow_train::{
    OwnImage, PairDpo, PairDpoSettings, Schedule, ScheduleKind, StoredFeatures, Trainer, TrainerSettings, TrainingPair,
};
use image::RgbImage;
use serde::Serialize;

use super::{StageName, Work};
use crate::config::{ImagineSettings, RunConfig, TrainSettings};

/// What one run of a stage took.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Run {
    pub(super) seconds: f64,
    /// The share of the threads' time in matrix products; not told of a GPU, which works behind the host's back.
    pub(super) share: Option<f64>,
    /// The rate of these products, all threads together; on a GPU, of the stage's products over all of its time.
    pub(super) gflops: f64,
    /// The rate of a copy in GB/s, read and written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) copied: Option<f64>,
    /// The most memory of this process meanwhile, in bytes, where the system tells.
    pub(super) peak: Option<u64>,
    /// The most memory of tensors on the GPU meanwhile, in bytes.
    pub(super) gpu_peak: Option<u64>,
    /// The floating-point operations that the work takes, by `hermesflow doctor`'s counts.
    operations: f64,
    /// The bytes of weights that the decoder must read for it, at least.
    weight_bytes: f64,
}

/// What a run took, and how much of something it was where that is the point.
struct Done {
    seconds: f64,
    amount: f64,
}

impl Done {
    fn of((seconds, amount): (f64, f64)) -> Self {
        Self { seconds, amount }
    }
}

/// A model with made-up work.
pub(super) struct Bench {
    model: Model,
    work: Work,
    training: TrainSettings,
    imagine: ImagineSettings,
    picture: RgbImage,
    codes: Vec<Vec<u32>>,
    /// The pictures as the model understands them, once a stage needs them.
    views: Vec<ImageView>,
    trainer: Option<(tempfile::TempDir, Trainer<PairDpo<Model>>)>,
    dtype: DType,
}

impl Bench {
    pub(super) fn new(model: Model, work: Work, config: &RunConfig) -> Result<Self> {
        ensure!(model.trains_captions(), "bench: the CLIP variant is not timed; give another checkpoint");
        let side = if work.picture == 0 { model.resolution() as u32 } else { work.picture };
        let picture = RgbImage::from_fn(side, side, |x, y| image::Rgb([(x ^ y) as u8, (x / 2) as u8, (y * 3) as u8]));
        let (tokens, codebook) = (model.image_tokens() as u64, model.codebook() as u64);
        let code =
            |image: u64| (0..tokens).map(|at| ((at * 2_654_435_761 + image * 40_503) % codebook) as u32).collect();
        let codes = (0..work.images.max(3 * work.pairs) as u64).map(code).collect();
        let (dtype, training) = (config.model.dtype.into(), config.train.clone());
        let Work { steps, guidance, .. } = work;
        let imagine = ImagineSettings { steps, guidance, cache: config.imagine.cache, ..ImagineSettings::default() };
        Ok(Self { model, work, dtype, training, imagine, picture, codes, views: Vec::new(), trainer: None })
    }

    /// Where the model is.
    pub(super) fn device(&self) -> &Device {
        self.model.device()
    }

    /// One run.
    pub(super) fn once(&mut self, stage: StageName) -> Result<Run> {
        self.prepare(stage)?;
        let device = self.device().clone();
        device.synchronize()?;
        reset_peak();
        device::reset_peak(&device);
        let started = Instant::now();
        let (done, products) = measure::products(|| self.work(stage));
        let (Done { seconds, amount }, elapsed) = (done?, started.elapsed().as_secs_f64());
        let threads = rayon::current_num_threads() as f64;
        let share = products.thread_seconds / (elapsed * threads);
        let (share, rate) = match device.is_cpu() {
            true => (Some(share), products.operations / products.thread_seconds.max(f64::MIN_POSITIVE) * threads),
            false if stage == StageName::Multiply => (None, amount / seconds),
            false => (None, products.operations / seconds),
        };
        let (operations, weight_bytes) = self.expected(stage)?;
        Ok(Run {
            seconds,
            share,
            gflops: rate / 1e9,
            copied: (stage == StageName::Copy).then_some(amount / seconds / 1e9),
            peak: peak(),
            gpu_peak: device::peak(&device),
            operations,
            weight_bytes,
        })
    }

    /// One run that waits for the device at both ends of each part.
    pub(super) fn profile(&mut self, stage: StageName) -> Result<Profile> {
        self.prepare(stage)?;
        let device = self.device().clone();
        let (done, profile) = measure::profile(&device, || self.work(stage))?;
        done?;
        Ok(profile)
    }

    fn prepare(&mut self, stage: StageName) -> Result<()> {
        if [StageName::Caption, StageName::Answer, StageName::Train].contains(&stage) && self.views.is_empty() {
            self.views = self.views()?;
        }
        if stage == StageName::Train && self.trainer.is_none() {
            self.trainer = Some(self.trainer()?);
        }
        Ok(())
    }

    /// The operations of a stage, and the bytes of weights that its passes read.
    fn expected(&self, stage: StageName) -> Result<(f64, f64)> {
        let (model, work) = (&self.model, self.work);
        let sizes = model.costs()?;
        let pixels = f64::from(self.picture.width()) / sizes.resolution() as f64;
        let (encode, decode) = (sizes.encode(1).operations, sizes.decode(1).operations);
        let read = |passes: usize| passes as f64 * sizes.decoder_bytes(self.dtype) as f64;
        let words = 20;
        Ok(match stage {
            StageName::Multiply | StageName::Copy => (0.0, 0.0),
            StageName::Encode => (encode * pixels * pixels, 0.0),
            StageName::Decode => (decode * pixels * pixels, 0.0),
            StageName::Caption => {
                let cost = sizes.reply(1, 1, work.captions, words, work.caption_tokens);
                (cost.operations - encode, read(work.caption_tokens))
            }
            StageName::Answer => {
                let cost = sizes.reply(work.images, work.questions, 1, words, work.answer_tokens);
                (cost.operations - encode * work.images as f64, read(work.answer_tokens))
            }
            StageName::Imagine => {
                let cost = sizes.imagine(work.images, words, &self.imagine_options());
                (cost.operations - decode * work.images as f64, read(sizes.passes(&self.imagine_options())))
            }
            StageName::Train => {
                let step = TrainingWork {
                    parts: self.training.parts(),
                    pairs: work.pairs,
                    words,
                    masks: 1,
                    guided: self.training.guidance.number() != 0.0,
                    accumulation: 1,
                    products: self.training.products.into(),
                    recompute: self.training.recomputes(),
                    host_state: false,
                };
                (sizes.train(&step).operations, 0.0)
            }
        })
    }

    fn imagine_options(&self) -> ImagineOptions {
        self.imagine.options(self.model.image_decoding())
    }

    /// Pictures as the model understands them: of codes, or one picture's features, each a tensor of its own.
    fn views(&self) -> Result<Vec<ImageView>> {
        let of_codes = |codes: &Vec<u32>| self.model.view_of_codes(codes.clone());
        if let Some(views) = self.codes.iter().map(of_codes).collect::<Option<Vec<_>>>() {
            return Ok(views);
        }
        let read = self.model.understand(&[self.model.prepare(self.picture.clone())?])?;
        let count = self.work.images.max(self.work.pairs);
        let copy = |view: &ImageView| match view {
            ImageView::Codes(codes) => Ok(ImageView::Codes(codes.clone())),
            ImageView::Features(features) => Ok(ImageView::Features(features.copy()?)),
        };
        read.iter().cycle().take(count).map(copy).collect()
    }

    /// A picture as training has it.
    fn own_image(&self, number: usize) -> OwnImage {
        match &self.views[number] {
            ImageView::Codes(_) => self.codes[3 * number].clone().into(),
            ImageView::Features(features) => {
                let features = features.clone();
                OwnImage::Features(StoredFeatures::new(number.to_string(), move || Ok(features.clone())))
            }
        }
    }

    /// One run's work; the clock stops when the device is done.
    fn work(&mut self, stage: StageName) -> Result<Done> {
        let (work, device) = (self.work, self.device().clone());
        let request = |question: String, number: usize, sampling, max_new_tokens| ReplyRequest {
            question,
            sampling,
            seed: number as u64,
            max_new_tokens,
        };
        let started = Instant::now();
        match stage {
            StageName::Multiply => return Ok(Done::of(measure::large_product(self.dtype, &device)?)),
            StageName::Copy => return Ok(Done::of(measure::copies(&device)?)),
            StageName::Encode => drop(self.model.encode_at_any_size(std::slice::from_ref(&self.picture))?),
            StageName::Decode => {
                let (tokens, side) = (self.model.image_tokens(), self.model.resolution());
                let side = self.picture.width() as usize * tokens.isqrt() / side;
                let codes: Vec<u32> = self.codes[0].iter().copied().cycle().take(side * side).collect();
                drop(self.model.decode_grids(&[codes], side, side)?);
            }
            StageName::Caption => {
                let sampling = Sampling { top_k: 4, temperature: 2.0 };
                let question = "Give a caption for this image.".to_owned();
                let requests: Vec<ReplyRequest> = (0..work.captions)
                    .map(|number| request(question.clone(), number, sampling, work.caption_tokens))
                    .collect();
                drop(self.model.reply(&self.views[0], &requests)?);
            }
            StageName::Imagine => {
                let prompt = "a large red circle above three small blue squares on a grey background".to_owned();
                let jobs: Vec<ImagineJob> = (0..work.images as u64)
                    .map(|seed| ImagineJob { prompt: prompt.clone(), seed, known: vec![] })
                    .collect();
                drop(self.model.imagine(&jobs, &self.imagine_options())?);
            }
            StageName::Answer => {
                let question =
                    |number| format!("What is the colour of shape number {number}? Choice: red, blue, green");
                let requests: Vec<ReplyRequest> = (0..work.questions)
                    .map(|number| request(question(number), number, Sampling::GREEDY, work.answer_tokens))
                    .collect();
                let asked: Vec<(&ImageView, &[ReplyRequest])> =
                    self.views[..work.images].iter().map(|view| (view, requests.as_slice())).collect();
                drop(self.model.reply_many(&asked)?);
            }
            StageName::Train => {
                let (_, trainer) = self.trainer.as_mut().context("made above")?;
                trainer.run(|_| ControlFlow::Break(()))?;
            }
        }
        device.synchronize()?;
        Ok(Done { seconds: started.elapsed().as_secs_f64(), amount: 0.0 })
    }

    fn trainer(&self) -> Result<(tempfile::TempDir, Trainer<PairDpo<Model>>)> {
        let pair = |number: usize| TrainingPair {
            id: number.to_string(),
            image: self.own_image(number),
            question: "Give a caption for this image.".into(),
            caption: format!("a large red circle above {number} small blue squares on a grey background"),
            caption_win: "a large red circle above three small blue squares".into(),
            caption_lose: "two green triangles left of a small yellow cross".into(),
            image_win: self.codes[3 * number + 1].clone(),
            image_lose: self.codes[3 * number + 2].clone(),
            margins: None,
            steps: None,
        };
        let pairs = (0..self.work.pairs).map(pair).collect();
        let guidance = self.training.guidance.number();
        let prompt_dropout = if guidance == 0.0 { PairDpoSettings::default().prompt_dropout } else { 0.0 };
        let settings =
            PairDpoSettings { batch_size: self.work.pairs, guidance, prompt_dropout, ..PairDpoSettings::default() };
        let products = self.training.products.into();
        let reference = self.model.frozen_copy()?.for_training(products)?;
        let policy = reference.trainable_parts(self.training.parts(), TrainedSides::Both)?.for_training(products)?;
        let policy = policy.recomputing(self.training.recomputes());
        let objective = PairDpo::new(policy, reference, pairs, settings, |_, _| {})?;
        let schedule = Schedule { kind: ScheduleKind::Cosine, learning_rate: 2e-5, warmup_steps: 0, steps: 1_000_000 };
        let folder = tempfile::tempdir()?;
        let TrainerSettings { optimizer_state, .. } = self.training.trainer();
        let settings = TrainerSettings { max_grad_norm: Some(1.0), optimizer_state, ..TrainerSettings::new(schedule) };
        let trainer = Trainer::new(objective, settings, folder.path())?;
        Ok((folder, trainer))
    }
}

/// Forgets the most memory that this process has had, where the system can.
fn reset_peak() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// The most memory that this process has had since, where the system tells.
fn peak() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().trim_end_matches(" kB").parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}
