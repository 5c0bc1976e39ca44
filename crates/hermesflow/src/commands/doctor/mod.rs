//! `hermesflow doctor`: everything that a run will need, checked in seconds; what it will cost.

mod memory;
mod scale;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use comfy_table::{CellAlignment, presets::UTF8_HORIZONTAL_ONLY};
use hermesflow_models::cost::{self, Cost, Costs, Task};
use hermesflow_models::{DType, Products};
use hermesflow_records::{InitialRecord, Table};

use super::args::ConfigArgs;
use crate::config::{ImageJudge, ModelSettings, RunConfig};
use crate::files;
use crate::kernels;
use crate::models;
use crate::models::backbone;
use crate::models::hub::{Hub, Parts};
use crate::models::kind::{About, Source};
use crate::models::memory_plan::{self, DRIVER, PROGRAM, WORDS};
use crate::progress::{Progress, brief};
use crate::run::context::RunContext;
use crate::run::kernels::settle;
use crate::run::{before, folder};

/// Check everything that a run will need, and estimate its memory and time
///
/// Checks the records and their pictures, the questions, the folders that are written to, the files of the checkpoint,
/// the judges' models, free disk space and memory. No weights are loaded and nothing is downloaded. Then it prints the
/// memory of each stage of one iteration and, from a short measurement of this machine, about how long it takes. For a
/// GPU (model.device) it also prints what training needs with and without train.recompute=true and
/// train.optimizer_state=host; the GPU need not be in this machine. Exits with 1 if the run would fail.
///
/// Example: hermesflow doctor paper data.root=datasets/mine model.dtype=bf16
///
/// With --processes it also predicts the stages, a step and the memory in several processes, and where more are of no use.
///
/// Example: hermesflow doctor paper model.device=cuda:0 model.dtype=auto --gpu-memory 24
///
/// Example: hermesflow doctor paper train.batch_size=1 train.accumulation=64 --processes 64 --per-node 8 --link 400
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    config: ConfigArgs,

    /// Estimate for a GPU with this much memory, in GB; it need not be in this machine
    #[arg(long, value_name = "GB")]
    gpu_memory: Option<f64>,

    #[command(flatten)]
    scale: scale::ScaleArgs,
}

/// Runs the command.
pub fn run(args: Args) -> Result<()> {
    let mut run = RunContext::new(args.config.load()?, 1, Progress::stderr());
    let mut findings = Findings::default();
    if let Err(error) = folder::check(&run.config) {
        findings.add(Verdict::Blocks, "output", format!("{error:#}"));
    }
    let records = if run.config.train.objective.has_records() { findings.records(&run) } else { 0 };
    findings.places(&run);
    findings.judges(&run.config)?;
    let gpu = findings.gpu(&run.config, args.gpu_memory)?;
    if !run.config.model.names_a_gpu() {
        findings.add(Verdict::Good, "kernels", kernels::described());
        settle(&run.config, false)?;
    }
    let sizes = findings.model(&run.config)?;
    if let Some(sizes) = sizes.as_deref() {
        if sizes.is_on_gpu() {
            findings.forms(&mut run.config, sizes, gpu);
        }
        let stages = stages(&run.config, sizes, records);
        findings.memory(&stages, sizes, gpu);
        findings.disk(&run, sizes, records);
        findings.print()?;
        let speeds = Speeds::of(&run.config)?;
        say!("{}", costs(&run.config, sizes, &stages, records, &speeds)?)?;
        let speed = |stage: &Stage| speeds.of_stage(stage);
        if let Some(predicted) = scale::predict(&args.scale, &run.config, sizes, &stages, records, speed)? {
            say!("{predicted}")?;
        }
    } else {
        findings.print()?;
    }
    anyhow::ensure!(!findings.blocked(), "this run would fail; see the lines marked ✗ above");
    say!(
        "look at: {} once the run is done; `hermesflow run --watch` or `hermesflow report {} --serve` shows it before",
        run.config.output.join("report.html").display(),
        run.config.output.display()
    )?;
    Ok(())
}

/// How a check went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Good,
    Note,
    Blocks,
}

/// What was found, in order.
#[derive(Debug, Default)]
struct Findings(Vec<(Verdict, &'static str, String)>);

impl Findings {
    fn add(&mut self, verdict: Verdict, what: &'static str, text: impl Into<String>) {
        self.0.push((verdict, what, text.into()));
    }

    fn blocked(&self) -> bool {
        self.0.iter().any(|(verdict, _, _)| *verdict == Verdict::Blocks)
    }

    fn print(&self) -> Result<()> {
        for (verdict, what, text) in &self.0 {
            let mark = match verdict {
                Verdict::Good => "✓",
                Verdict::Note => "!",
                Verdict::Blocks => "✗",
            };
            say!("{mark} {what:<9} {text}")?;
        }
        Ok(())
    }

    /// The records and the headers of their pictures; how many records there will be.
    fn records(&mut self, run: &RunContext) -> usize {
        let path = run.layout.initial_data();
        if let (false, Some(scenes)) = (path.is_file(), run.config.data.scenes) {
            self.add(Verdict::Good, "records", format!("{} scenes will be drawn", scenes.records));
            self.questions(run, None);
            return scenes.records;
        }
        let records = match files::initial_data(&path) {
            Ok(records) => records,
            Err(error) => {
                self.add(Verdict::Blocks, "records", format!("{error:#}"));
                return 0;
            }
        };
        self.add(Verdict::Good, "records", format!("{} in {}", records.len(), path.display()));
        let before::Seen { whole, broken, first } = before::pictures(&run.layout, &records);
        let all = records.len();
        match first {
            None if whole == all => self.add(Verdict::Good, "pictures", format!("{all} can be read")),
            None => {
                let text = format!("{whole} can be read, and of the other {} the headers", all - whole);
                self.add(Verdict::Good, "pictures", text);
            }
            Some(first) if broken == all => {
                let text = format!("none of {broken} can be read; is data.root right? The first: {first}");
                self.add(Verdict::Blocks, "pictures", text);
            }
            Some(first) => {
                let text = format!("{broken} of {all} cannot be read and will be skipped; the first: {first}");
                self.add(Verdict::Note, "pictures", text);
            }
        }
        self.questions(run, Some(&records));
        all
    }

    /// The questions of a file, where the run asks those.
    fn questions(&mut self, run: &RunContext, records: Option<&Table<InitialRecord>>) {
        if !before::asks_a_file(&run.config) {
            return;
        }
        match before::questions(run, records) {
            Ok(None) => self.add(Verdict::Note, "questions", "will be joined to the records once these are drawn"),
            Ok(Some(about)) => self.add(Verdict::Good, "questions", format!("there are some about {about} records")),
            Err(error) => self.add(Verdict::Blocks, "questions", format!("{error:#}")),
        }
    }

    /// The folders that the run writes to.
    fn places(&mut self, run: &RunContext) {
        for (key, folder) in before::places(run) {
            match before::writable(&folder) {
                Ok(()) => self.add(Verdict::Good, "folder", format!("{key} can be written: {}", folder.display())),
                Err(error) => self.add(Verdict::Blocks, "folder", format!("{key}: {error:#}")),
            }
        }
    }

    /// Whether a model is a path, in the cache, or to be fetched.
    fn present(&mut self, what: &'static str, key: &str, name: &str, parts: Parts) -> Result<Option<PathBuf>> {
        let hub = Hub::from_environment()?;
        match hub.present(name, Some(parts)) {
            Ok(Some(path)) => Ok(Some(path)),
            Ok(None) => {
                let (verdict, text) = hub.absent(name);
                let verdict = if verdict { Verdict::Note } else { Verdict::Blocks };
                self.add(verdict, what, format!("{key}: {text}"));
                Ok(None)
            }
            Err(error) => {
                self.add(Verdict::Blocks, what, format!("{key}: {error:#}"));
                Ok(None)
            }
        }
    }

    fn judges(&mut self, config: &RunConfig) -> Result<()> {
        if !config.train.objective.has_pairs() {
            return Ok(());
        }
        let judges = config.judge_models();
        let mut there = Vec::new();
        for key in &judges {
            let name = (key.get)(&config.judges);
            if self.present("judges", key.name, name, Parts::Text)?.is_some() {
                there.push(name.as_str());
            }
        }
        if judges.is_empty() {
            self.add(Verdict::Good, "judges", "all inside this program");
        } else if !there.is_empty() {
            self.add(Verdict::Good, "judges", format!("{} there", there.join(", ")));
        }
        Ok(())
    }

    /// The checkpoint's files by their headers, and its costs.
    fn model(&mut self, config: &RunConfig) -> Result<Option<Box<dyn Costs>>> {
        let settings = &config.model;
        if settings.is_embedded() {
            let model = models::open(settings, &Progress::stderr())?;
            self.add(Verdict::Good, "model", "the embedded one");
            return Ok(Some(placed(model.costs()?, settings)));
        }
        let kind = backbone::expected(settings);
        let mut places = Vec::new();
        let sources = kind.sources(settings);
        for Source { key, name, parts } in &sources {
            places.extend(self.present("model", key, name, *parts)?);
        }
        if places.len() < sources.len() {
            let about = kind.published(settings)?;
            let name = format!("{} as published", settings.checkpoint);
            return Ok(about.and_then(|about| self.facts(config, &name, about).ok()));
        }
        match kind.about(&places) {
            Ok(about) => {
                if let Some(Source { key, name, parts }) = &about.further {
                    let given = settings.clip.as_ref().unwrap_or(name);
                    self.present("model", key, given, *parts)?;
                }
                let name = places.first().map_or_else(String::new, |place| place.display().to_string());
                self.facts(config, &name, about).map(Some)
            }
            Err(error) => {
                self.add(Verdict::Blocks, "model", format!("{error:#}"));
                Ok(None)
            }
        }
    }

    /// What a checkpoint is, and whether this run can be done with it.
    fn facts(&mut self, config: &RunConfig, name: &str, about: About) -> Result<Box<dyn Costs>> {
        let settings = &config.model;
        let About { facts, costs, trains_captions, .. } = about;
        let sizes = placed(costs, settings);
        let text = format!(
            "{name}: {:.2} billion parameters, {}×{} pictures of {} tokens, held in {:?}",
            sizes.parameters() as f64 / 1e9,
            facts.resolution,
            facts.resolution,
            facts.image_tokens,
            DType::from(settings.dtype),
        );
        let fits = settings.expect.check(&settings.checkpoint, &facts);
        match fits.and_then(|()| models::ensure_trainable(trains_captions, &*sizes, config)) {
            Ok(()) => self.add(Verdict::Good, "model", text),
            Err(error) => self.add(Verdict::Blocks, "model", format!("{error:#}")),
        }
        Ok(sizes)
    }

    /// Whether what a run writes fits the disks.
    fn disk(&mut self, run: &RunContext, sizes: &dyn Costs, records: usize) {
        let config = &run.config;
        let images = (records * config.imagine.images * config.iterations) as u64 * picture_bytes(sizes);
        let (parts, products) = (config.train.parts(), config.train.products.into());
        let model = sizes.written(parts, products, config.model.dtype.into());
        // A checkpoint holds the model and both moments of what is trained; one more stands there while the oldest goes.
        let checkpoint = model + 2 * sizes.trained(parts) * DType::F32.size_in_bytes() as u64;
        let training = config.iterations as u64 * (model + checkpoint * (config.train.keep as u64 + 1));
        // Folders on one file system share what is free there.
        let mut needs: Vec<(u64, Vec<&'static str>, u64, u64)> = Vec::new();
        for ((key, folder), bytes) in before::places(run).into_iter().zip([images, training]) {
            let Some((system, free)) = before::free(&folder) else { continue };
            match needs.iter_mut().find(|(known, ..)| *known == system) {
                Some((_, keys, needed, _)) => {
                    keys.push(key);
                    *needed += bytes;
                }
                None => needs.push((system, vec![key], bytes, free)),
            }
        }
        for (_, keys, needed, free) in needs {
            let verdict = if needed > free { Verdict::Blocks } else { Verdict::Good };
            let text = format!("{} of {} free for {}", gigabytes(needed), gigabytes(free), keys.join(" and "));
            let remedy = if needed > free { "; train.keep=1 or another `output` needs less there" } else { "" };
            self.add(verdict, "disk", format!("{text}{remedy}"));
        }
    }
}

/// About what a picture and its codes take: PNG makes a photograph half as large as it is.
fn picture_bytes(sizes: &dyn Costs) -> u64 {
    let side = sizes.resolution() as u64;
    side * side * 3 / 2
}

/// One stage of an iteration.
#[derive(Debug)]
struct Stage {
    name: &'static str,
    work: String,
    /// Bytes of the memory that holds the model: the GPU's or the computer's.
    bytes: u64,
    /// Bytes of the computer's memory beside a GPU's; 0 where the model is not on a GPU.
    host: u64,
    operations: f64,
}

/// A model's sizes where it will run.
fn placed(sizes: Box<dyn Costs>, settings: &ModelSettings) -> Box<dyn Costs> {
    let dtype = settings.dtype.into();
    if settings.names_a_gpu() { sizes.on_gpu(dtype) } else { sizes.on_cpu(dtype) }
}

/// The stage that is always in f32.
const TRAIN: &str = "train";
/// Questions about a caption, typically.
const QUESTIONS: usize = 8;

/// The stages of one iteration with their peaks.
fn stages(config: &RunConfig, sizes: &dyn Costs, records: usize) -> Vec<Stage> {
    let (program, host) = if sizes.is_on_gpu() { (DRIVER, PROGRAM) } else { (PROGRAM, 0) };
    let weights = |task| sizes.in_memory(task, config.model.dtype.into()) + program;
    let stage = |name: &'static str, task: Task, work: String, cost: Cost| Stage {
        name,
        work,
        bytes: weights(task) + memory_plan::with_slack(cost.bytes),
        host,
        operations: cost.operations,
    };
    let chunk = config.data.chunk.min(records.max(1));
    let chunks = records as f64 / chunk as f64;
    let of_chunks = |cost: Cost| Cost { operations: cost.operations * chunks, ..cost };
    let mut stages = Vec::new();
    // Otherwise nothing is curated.
    if config.train.objective.has_pairs() {
        let (candidates, images) = (config.caption.candidates.len(), config.imagine.images);
        let caption = of_chunks(sizes.reply(chunk, 1, candidates, 20, config.caption.max_new_tokens));
        stages.push(stage("caption", Task::Replies, format!("{records} pictures × {candidates} captions"), caption));
        let decoding = config.model.backbone.image_decoding();
        let imagine = of_chunks(sizes.imagine(chunk * images, WORDS, &config.imagine.options(decoding)));
        stages.push(stage("imagine", Task::Pictures, format!("{records} captions × {images} images"), imagine));
        if config.pair.judge == ImageJudge::Itself {
            let length = config.answer.max_new_tokens.min(20);
            let answer = sizes.reply(images, QUESTIONS, 1, WORDS + 10, length).times(records);
            let work = format!("{records} × {images} images × about {QUESTIONS} questions");
            stages.push(stage("answer", Task::Replies, work, answer));
        }
    }
    let train = &config.train;
    let need = memory_plan::need(config, sizes, (train.recompute, train.optimizer_state));
    stages.push(Stage {
        name: TRAIN,
        work: format!("{} steps of {} pairs", train.schedule.steps, train.batch_size),
        bytes: need.device,
        host: host + need.host,
        operations: need.operations * (train.schedule.steps * train.accumulation) as f64,
    });
    stages
}

/// Operations per second that this machine reaches now; none where the device is not here.
struct Speeds {
    curating: Option<f64>,
    training: Option<f64>,
}

impl Speeds {
    fn of(config: &RunConfig) -> Result<Self> {
        let products = match Products::from(config.train.products) {
            Products::F32 => DType::F32,
            Products::Bf16 => DType::BF16,
        };
        let speed = |dtype: DType| config.model.device().ok().map(|device| cost::speed(dtype, &device)).transpose();
        Ok(Self { curating: speed(config.model.dtype.into())?, training: speed(products)? })
    }

    fn of_stage(&self, stage: &Stage) -> Option<f64> {
        if stage.name == TRAIN { self.training } else { self.curating }
    }
}

/// The table of what the stages cost.
fn costs(config: &RunConfig, sizes: &dyn Costs, stages: &[Stage], records: usize, speeds: &Speeds) -> Result<String> {
    let held = DType::from(config.model.dtype);
    let mut table = comfy_table::Table::new();
    table.load_preset(UTF8_HORIZONTAL_ONLY).set_header(["stage", "work", "memory", "operations", "about"]);
    for stage in stages {
        let time = speeds.of_stage(stage).map(|speed| Duration::from_secs_f64((stage.operations / speed).min(1e15)));
        table.add_row([
            stage.name.to_string(),
            stage.work.clone(),
            gigabytes(stage.bytes),
            format!("{:.3} PFLOP", stage.operations / 1e15),
            time.map_or_else(|| "unknown".into(), brief),
        ]);
    }
    for column in 2..5 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let weights = gigabytes(sizes.decoder_bytes(config.model.dtype.into()) + sizes.tokenizer_bytes());
    let reached = speeds.curating.map_or_else(String::new, |speed| {
        format!(" at the {:.0} GFLOP/s ({held:?}) that this machine reaches now", speed / 1e9)
    });
    Ok(format!(
        "\nOne iteration with {records} records{reached}. Memory is the most that is resident; of the weights, {weights}, \
         a stage's figure has those that are copied and those that it reads from a mapped file. Replies that end early \
         cost less; judges come on top.\n{table}"
    ))
}

fn gigabytes(bytes: u64) -> String {
    format!("{:.1} GB", bytes as f64 / 1e9)
}
