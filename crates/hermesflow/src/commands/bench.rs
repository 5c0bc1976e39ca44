//! `hermesflow bench`: how long each stage takes on a model, warm, in this process.

use std::io::BufRead;
use std::ops::ControlFlow;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use hermesflow_models::showo::Showo;
use hermesflow_models::{DType, ImageView, ImagineJob, ImagineOptions, ReplyRequest, Sampling, UnifiedModel, measure};
use hermesflow_train::{PairDpo, PairDpoSettings, Schedule, ScheduleKind, Trainer, TrainerSettings, TrainingPair};
use image::RgbImage;
use serde::Serialize;
use serde_json::json;

use super::ConfigArgs;
use crate::config::{RunConfig, TrainSettings};
use crate::progress::Progress;
use crate::report::table;
use crate::{fit, models};

/// Time each stage on a model
///
/// Runs the stages on the model of a configuration with made-up pictures and texts, a warm-up first, and prints
/// medians, the share of the threads' time that matrix products take, their rate, and the peak of memory.
/// `benches/stages.py` runs it beside PyTorch in turns.
///
/// Example: hermesflow bench configs/paper.yaml model.showo=m/showo model.vq=m/vq model.tokenizer=m/tokenizer.json
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    config: ConfigArgs,

    #[command(flatten)]
    work: Work,

    /// Only these stages
    #[arg(long, value_enum, value_delimiter = ',')]
    stages: Vec<StageName>,

    /// How often each is run; the median counts
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
    repeat: u64,

    /// Print JSON
    #[arg(long)]
    json: bool,

    /// Run this stage once for each line that comes in on stdin, and answer with a line of JSON
    #[arg(long, value_name = "STAGE", conflicts_with_all = ["stages", "repeat", "json"])]
    serve: Option<StageName>,
}

/// How much work a stage is.
#[derive(Debug, Clone, Copy, clap::Args)]
struct Work {
    /// Captions that are sampled of one picture
    #[arg(long, default_value_t = 10)]
    captions: usize,
    /// Tokens of each caption
    #[arg(long, default_value_t = 100)]
    caption_tokens: usize,
    /// Pictures that are imagined, and asked about
    #[arg(long, default_value_t = 16)]
    images: usize,
    /// Denoising steps
    #[arg(long, default_value_t = 50)]
    steps: usize,
    /// Classifier-free guidance
    #[arg(long, default_value_t = 5.0)]
    guidance: f64,
    /// Questions about each picture
    #[arg(long, default_value_t = 8)]
    questions: usize,
    /// Tokens of each answer
    #[arg(long, default_value_t = 20)]
    answer_tokens: usize,
    /// Pairs of a training step
    #[arg(long, default_value_t = 4)]
    pairs: usize,
    /// The side of the picture that is encoded or decoded, in pixels; 0 is the model's
    #[arg(long, default_value_t = 0)]
    picture: u32,
}

/// What is timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum StageName {
    /// A large matrix product in the model's type, the best of several
    Multiply,
    /// One picture to image codes
    Encode,
    /// One picture from image codes
    Decode,
    /// Captions of one picture, from its codes
    Caption,
    /// Pictures of one text, as codes
    Imagine,
    /// Answers about several pictures, from their codes
    Answer,
    /// One step of Pair-DPO
    Train,
}

/// Runs the command.
pub fn run(args: Args) -> Result<()> {
    let config = args.config.load()?;
    let model = models::open(&config.model, &Progress::stderr())?;
    let config = fit::chosen(&config, &model)?;
    let mut bench = Bench::new(model, args.work, &config)?;
    if let Some(stage) = args.serve {
        println!("{}", json!({ "ready": stage.label() }));
        for line in std::io::stdin().lock().lines() {
            line?;
            println!("{}", serde_json::to_string(&bench.once(stage)?)?);
        }
        return Ok(());
    }
    let stages = if args.stages.is_empty() { StageName::value_variants().to_vec() } else { args.stages };
    let mut rows = table(&["stage", "seconds", "in products", "GFLOP/s", "peak memory"]);
    let mut all = Vec::new();
    for stage in stages {
        bench.once(stage)?;
        let mut runs = (0..args.repeat).map(|_| bench.once(stage)).collect::<Result<Vec<Run>>>()?;
        runs.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
        let median = &runs[runs.len() / 2];
        let peak = runs.iter().filter_map(|run| run.peak).max();
        rows.add_row([
            stage.label(),
            format!("{:.3}", median.seconds),
            format!("{:.0} %", 100.0 * median.share),
            format!("{:.0}", median.gflops),
            peak.map_or_else(|| "unknown".into(), |bytes| format!("{:.2} GB", bytes as f64 / 1e9)),
        ]);
        let seconds: Vec<f64> = runs.iter().map(|run| run.seconds).collect();
        all.push(json!({ "stage": stage.label(), "median": median, "seconds": seconds }));
    }
    match args.json {
        true => println!("{}", serde_json::to_string_pretty(&all)?),
        false => println!("{rows}"),
    }
    Ok(())
}

impl StageName {
    fn label(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }
}

/// What one run of a stage took.
#[derive(Debug, Clone, Copy, Serialize)]
struct Run {
    seconds: f64,
    /// The share of the threads' time in matrix products.
    share: f64,
    /// The rate of these products, all threads together.
    gflops: f64,
    /// The most memory meanwhile, in bytes, where the system tells.
    peak: Option<u64>,
}

/// A model with made-up work.
struct Bench {
    model: Showo,
    work: Work,
    training: TrainSettings,
    picture: RgbImage,
    codes: Vec<Vec<u32>>,
    trainer: Option<(tempfile::TempDir, Trainer<PairDpo<Showo>>)>,
    dtype: DType,
}

impl Bench {
    fn new(model: Showo, work: Work, config: &RunConfig) -> Result<Self> {
        ensure!(!model.config().w_clip_vit, "bench: the CLIP variant is not timed; give another checkpoint");
        let side = if work.picture == 0 { model.resolution() as u32 } else { work.picture };
        let picture = RgbImage::from_fn(side, side, |x, y| image::Rgb([(x ^ y) as u8, (x / 2) as u8, (y * 3) as u8]));
        let (tokens, codebook) = (model.image_tokens() as u64, model.config().codebook_size as u64);
        let code =
            |image: u64| (0..tokens).map(|at| ((at * 2_654_435_761 + image * 40_503) % codebook) as u32).collect();
        let codes = (0..work.images.max(3 * work.pairs) as u64).map(code).collect();
        let (dtype, training) = (config.model.dtype.into(), config.train.clone());
        Ok(Self { model, work, dtype, training, picture, codes, trainer: None })
    }

    /// One run.
    fn once(&mut self, stage: StageName) -> Result<Run> {
        if stage == StageName::Train && self.trainer.is_none() {
            self.trainer = Some(self.trainer()?);
        }
        reset_peak();
        let started = Instant::now();
        let (seconds, products) = measure::products(|| self.work(stage));
        let (seconds, elapsed) = (seconds?, started.elapsed().as_secs_f64());
        let threads = rayon::current_num_threads() as f64;
        Ok(Run {
            seconds,
            share: products.thread_seconds / (elapsed * threads),
            gflops: products.operations / products.thread_seconds.max(f64::MIN_POSITIVE) * threads / 1e9,
            peak: peak(),
        })
    }

    /// Seconds of one run's work.
    fn work(&mut self, stage: StageName) -> Result<f64> {
        let work = self.work;
        let request = |question: String, number: usize, sampling, max_new_tokens| ReplyRequest {
            question,
            sampling,
            seed: number as u64,
            max_new_tokens,
        };
        let started = Instant::now();
        match stage {
            StageName::Multiply => return Ok(measure::large_product(self.dtype)?),
            StageName::Encode => drop(self.model.vq().encode_images(std::slice::from_ref(&self.picture))?),
            StageName::Decode => {
                let (tokens, side) = (self.model.image_tokens(), self.model.resolution());
                let side = self.picture.width() as usize * tokens.isqrt() / side;
                let codes: Vec<u32> = self.codes[0].iter().copied().cycle().take(side * side).collect();
                drop(self.model.vq().decode_images(&[codes])?);
            }
            StageName::Caption => {
                let view = ImageView::Codes(self.codes[0].clone());
                let sampling = Sampling { top_k: 4, temperature: 2.0 };
                let question = "Give a caption for this image.".to_owned();
                let requests: Vec<ReplyRequest> = (0..work.captions)
                    .map(|number| request(question.clone(), number, sampling, work.caption_tokens))
                    .collect();
                drop(self.model.reply(&view, &requests)?);
            }
            StageName::Imagine => {
                let prompt = "a large red circle above three small blue squares on a grey background".to_owned();
                let jobs: Vec<ImagineJob> = (0..work.images as u64)
                    .map(|seed| ImagineJob { prompt: prompt.clone(), seed, known: vec![] })
                    .collect();
                let options =
                    ImagineOptions { steps: work.steps, guidance: work.guidance, ..ImagineOptions::default() };
                drop(self.model.imagine(&jobs, &options)?);
            }
            StageName::Answer => {
                let question =
                    |number| format!("What is the colour of shape number {number}? Choice: red, blue, green");
                let requests: Vec<ReplyRequest> = (0..work.questions)
                    .map(|number| request(question(number), number, Sampling::GREEDY, work.answer_tokens))
                    .collect();
                let views: Vec<ImageView> = self.codes[..work.images].iter().cloned().map(ImageView::Codes).collect();
                let asked: Vec<(&ImageView, &[ReplyRequest])> =
                    views.iter().map(|view| (view, requests.as_slice())).collect();
                drop(self.model.reply_many(&asked)?);
            }
            StageName::Train => {
                let (_, trainer) = self.trainer.as_mut().context("made above")?;
                trainer.run(|_| ControlFlow::Break(()))?;
            }
        }
        Ok(started.elapsed().as_secs_f64())
    }

    fn trainer(&self) -> Result<(tempfile::TempDir, Trainer<PairDpo<Showo>>)> {
        let pair = |number: usize| TrainingPair {
            id: number.to_string(),
            image: self.codes[3 * number].clone(),
            question: "Give a caption for this image.".into(),
            caption: format!("a large red circle above {number} small blue squares on a grey background"),
            caption_win: " a large red circle above three small blue squares".into(),
            caption_lose: " two green triangles left of a small yellow cross".into(),
            image_win: self.codes[3 * number + 1].clone(),
            image_lose: self.codes[3 * number + 2].clone(),
        };
        let pairs = (0..self.work.pairs).map(pair).collect();
        let settings = PairDpoSettings { batch_size: self.work.pairs, ..PairDpoSettings::default() };
        let products = self.training.products.into();
        let policy = self.model.trainable()?.training(products).checkpointing(self.training.checkpoints());
        let reference = self.model.frozen()?.training(products);
        let objective = PairDpo::new(policy, reference, pairs, settings, |_, _| {})?;
        let schedule =
            Schedule { kind: ScheduleKind::Cosine, learning_rate: 2e-5, warmup_steps: 0, total_steps: 1_000_000 };
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
