//! `hermesflow bench`: how long each stage takes on a model, warm, in this process.

mod stages;

use std::io::BufRead;

use anyhow::{Context, Result};
use clap::ValueEnum;
use hermesflow_models::device;
use hermesflow_models::measure::Profile;
use serde_json::{Value, json};

use self::stages::{Bench, Run};
use super::args::ConfigArgs;
use crate::models;
use crate::models::memory_plan;
use crate::progress::Progress;
use crate::report::table;
use crate::run::kernels;

/// Time each stage on a model
///
/// Runs the stages on the model of a configuration with made-up pictures and texts, a warm-up first, and prints
/// medians, the share of the threads' time that matrix products take, their rate, and the peak of memory. The device is
/// that of the configuration; on a GPU (model.device=cuda:0) a clock stops when the GPU is done, and the peak of its memory
/// is that of tensors. `benches/stages.py` and `benches/gpu_session.py` run it beside PyTorch in turns.
///
/// Example: hermesflow bench paper model.checkpoint=m/decoder model.vq=m/vq model.tokenizer=m/tokenizer.json
///
/// Example: hermesflow bench scenes model.device=cuda:0 model.dtype=bf16 --stages multiply,copy
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    config: ConfigArgs,

    #[command(flatten)]
    work: Work,

    /// Run only these stages, separated by commas
    #[arg(long, value_enum, value_delimiter = ',')]
    stages: Vec<StageName>,

    /// Runs of each stage, of which the median is printed
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
    repeat: u64,

    /// Print JSON
    #[arg(long)]
    json: bool,

    /// Run each stage once more and print which parts take its time; on a GPU that run waits for the GPU around each part
    #[arg(long)]
    profile: bool,

    /// Run this stage once for each line that comes in on stdin, and answer with a line of JSON; a line may name another
    /// stage, with `profile` before it for the parts that its time goes to
    #[arg(long, value_name = "STAGE", conflicts_with_all = ["stages", "repeat", "json", "profile"])]
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
    /// A copy within the device's memory, the best of several
    Copy,
    /// One picture to image codes
    Encode,
    /// One picture from image codes
    Decode,
    /// Captions of one picture that the model has read
    Caption,
    /// Pictures of one text, as codes
    Imagine,
    /// Answers about several pictures that the model has read
    Answer,
    /// One step of Pair-DPO
    Train,
}

/// Runs the command.
pub fn run(args: Args) -> Result<()> {
    let config = args.config.load()?;
    let progress = Progress::stderr();
    kernels::settle(&config, false)?;
    let model = models::open(&config.model, &progress)?;
    let config = memory_plan::chosen(&config, &model)?;
    let mut bench = Bench::new(model, args.work, &config)?;
    if let Some(stage) = args.serve {
        return serve(&mut bench, stage);
    }
    progress.log(format!("bench: on {}", device::describe(bench.device())));
    let stages = if args.stages.is_empty() { StageName::value_variants().to_vec() } else { args.stages };
    let on_gpu = !bench.device().is_cpu();
    let mut columns = vec!["stage", "seconds", "in products", "GFLOP/s", "peak memory"];
    columns.extend(on_gpu.then_some("GPU memory"));
    columns.extend(args.profile.then_some("its time goes to"));
    let mut rows = table(&columns);
    let mut all = Vec::new();
    for stage in stages {
        bench.once(stage)?;
        let mut runs = (0..args.repeat).map(|_| bench.once(stage)).collect::<Result<Vec<Run>>>()?;
        runs.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
        let median = &runs[runs.len() / 2];
        let profile = if args.profile { Some(bench.profile(stage)?) } else { None };
        let most = |of: fn(&Run) -> Option<u64>| memory(runs.iter().filter_map(of).max());
        let mut row = vec![
            stage.label(),
            format!("{:.3}", median.seconds),
            median.share.map_or_else(|| "unknown".into(), percent),
            median.copied.map_or_else(|| format!("{:.0}", median.gflops), |rate| format!("{rate:.0} GB/s")),
            most(|run| run.peak),
        ];
        row.extend(on_gpu.then(|| most(|run| run.gpu_peak)));
        row.extend(profile.as_ref().map(in_words));
        rows.add_row(row);
        let seconds: Vec<f64> = runs.iter().map(|run| run.seconds).collect();
        all.push(json!({
            "stage": stage.label(),
            "device": device::describe(bench.device()),
            "median": median,
            "seconds": seconds,
            "profile": profile.as_ref().map(shares),
        }));
    }
    match args.json {
        true => say!("{}", serde_json::to_string_pretty(&all)?)?,
        false => say!("{rows}")?,
    }
    Ok(())
}

/// Answers each line of stdin.
fn serve(bench: &mut Bench, usual: StageName) -> Result<()> {
    say!("{}", json!({ "ready": usual.label(), "device": device::describe(bench.device()) }))?;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let (profiled, name) = match line.trim().strip_prefix("profile") {
            Some(name) => (true, name.trim()),
            None => (false, line.trim()),
        };
        let named = || StageName::from_str(name, true).map_err(anyhow::Error::msg).context("a line of stdin");
        let stage = if name.is_empty() { usual } else { named()? };
        match profiled {
            true => say!("{}", shares(&bench.profile(stage)?))?,
            false => say!("{}", serde_json::to_string(&bench.once(stage)?)?)?,
        }
    }
    Ok(())
}

fn percent(share: f64) -> String {
    format!("{:.0} %", 100.0 * share)
}

fn memory(bytes: Option<u64>) -> String {
    bytes.map_or_else(|| "unknown".into(), |bytes| format!("{:.2} GB", bytes as f64 / 1e9))
}

fn in_words(profile: &Profile) -> String {
    let shares = profile.shares().into_iter().filter(|(_, share)| *share >= 0.005);
    shares.map(|(part, share)| format!("{part} {}", percent(share))).collect::<Vec<_>>().join(", ")
}

fn shares(profile: &Profile) -> Value {
    let shares: serde_json::Map<String, Value> =
        profile.shares().into_iter().map(|(part, share)| (part.to_owned(), json!(share))).collect();
    json!({ "seconds": profile.all, "shares": shares })
}

impl StageName {
    fn label(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }
}
