//! `hermesflow benchmark`: a published benchmark on the model of a run, before or after its training.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use hermesflow_records::AppendLog;
use serde_json::json;

use super::args::{ConfigArgs, count};
use crate::benchmarks::figures::{self, Figure};
use crate::benchmarks::pictures::{self, Items, Reader};
use crate::benchmarks::prompts::Artist;
use crate::benchmarks::{Benchmark, BenchmarkReport, Prompt, Row, dpg, geneval, tifa};
use crate::config::RunConfig;
use crate::digest;
use crate::files;
use crate::files::lock::Lock;
use crate::judges::Judges;
use crate::made::{Origin, unfinished};
use crate::models;
use crate::progress::Progress;
use crate::report;
use crate::run::context::RunContext;
use crate::run::kernels;

/// Prompts, and questions about pictures, that are worked on as one batch; part of the result.
const PROMPTS: usize = 1;
const QUESTIONS: usize = 16;

/// Measure a model by a published benchmark: geneval, tifa, dpg (images); pope, mme, vqa (understanding)
///
/// Runs on any model that a configuration names, before training (--iteration 0) or after an iteration, and judges with
/// nothing else than that model: images are scored by its own answers to the benchmark's questions, so compare a model with
/// itself before alignment (--compare) rather than with figures that other judges gave. Prints a table with 95 % intervals
/// over prompts, under guidance 0, 1 and the configured one, and beside it the other benchmarks of the same model. Images
/// are kept in GenEval's folder layout, for its own scorer. An interrupted benchmark continues with the same command.
///
/// What is not shipped: the files of the benchmarks (--data), which their authors publish; COCO's val2014 for pope (--images);
/// for geneval its detector, whose results.jsonl becomes a table with --results; for tifa and dpg their VQA models, in whose
/// place the model answers itself. mme and vqa need VLMEvalKit's TSV alone, which holds the pictures.
///
/// Example: hermesflow benchmark pope my.yaml --data coco_pope_random.json --images val2014 --iteration 2
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The benchmark
    #[arg(value_enum)]
    name: Benchmark,

    #[command(flatten)]
    config: ConfigArgs,

    /// The benchmark's file; for pope several, one per setting, each behind its own --data
    #[arg(long, value_name = "FILE")]
    data: Vec<PathBuf>,

    /// Folder of the pictures that pope's questions are about
    #[arg(long, value_name = "FOLDER")]
    images: Option<PathBuf>,

    /// Measure what this iteration of the run trained; 0 is the model that the run begins with
    #[arg(long, value_name = "N", default_value_t = 0)]
    iteration: usize,

    /// Images of each prompt
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = count::<1000>)]
    samples: usize,

    /// Guidances to draw under [default: 0, 1 and imagine.guidance]
    #[arg(long, value_name = "G,…", value_delimiter = ',')]
    guidance: Vec<f64>,

    /// Only the first N prompts or questions
    #[arg(long, value_name = "N", value_parser = count::<100_000_000>)]
    limit: Option<usize>,

    /// Folder of the results [default: benchmarks/NAME-N in the run's `output`, N the iteration]
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,

    /// report.json of the same benchmark on another model, to show paired differences from
    #[arg(long, value_name = "FILE")]
    compare: Option<PathBuf>,

    /// results.jsonl of GenEval's own scorer: prints its table, and does nothing else
    #[arg(long, value_name = "FILE", conflicts_with_all = ["data", "compare"])]
    results: Option<PathBuf>,
}

/// The items of a benchmark.
enum Work {
    Prompts(Vec<Prompt>),
    Questions(Box<Items>),
}

/// Runs the command.
pub fn run(args: Args) -> Result<()> {
    if let Some(results) = &args.results {
        ensure!(args.name == Benchmark::Geneval, "--results: is of GenEval's scorer; {} has none", args.name.name());
        say!("{}", table("GenEval's scorer", &figures::of_scorer(&geneval::scorer_results(results)?)))?;
        return Ok(());
    }
    let config = args.config.load()?;
    let work = read(&args)?;
    let before = args.compare.as_deref().map(read_report).transpose()?;
    let name = format!("{}-{}", args.name.name(), args.iteration);
    let out = args.out.clone().unwrap_or_else(|| config.output.join("benchmarks").join(name));
    let run = RunContext::new(config, args.iteration + 1, Progress::stderr());
    kernels::settle(&run.config, false)?;
    let report = {
        let _lock = Lock::beside(&out)?;
        measure(&args, &work, &run, &out)?
    };
    let figures = figures::of(&report, before.as_ref()).context("--compare")?;
    say!("{}", table(&report.model, &figures))?;
    say!("{}", report.line)?;
    let long = report.rows.iter().filter(|row| row.score("too long") > 0.0).count();
    if long > 0 {
        say!("{long} questions are too long for the model and count as wrong")?;
    }
    for (other, figures) in beside(&out, &report) {
        let first: Vec<String> =
            figures.iter().take(2).map(|figure| format!("{} {}", figure.name, figure.shown())).collect();
        say!("{}: {}", other.benchmark.name(), first.join("; "))?;
    }
    say!("{}", out.join("report.json").display())
}

/// Reads the benchmark's files.
fn read(args: &Args) -> Result<Work> {
    let name = args.name.name();
    ensure!(
        !args.data.is_empty(),
        "--data: missing; {name} needs the file that its authors publish (--help says which)"
    );
    ensure!(
        args.data.len() == 1 || args.name == Benchmark::Pope,
        "--data: {name} takes one file, not {}",
        args.data.len()
    );
    let file = &args.data[0];
    let limit = args.limit.unwrap_or(usize::MAX);
    let mut work = match args.name {
        Benchmark::Geneval => Work::Prompts(geneval::read(file)?),
        Benchmark::Tifa => Work::Prompts(tifa::read(file)?),
        Benchmark::Dpg => Work::Prompts(dpg::read(file)?),
        Benchmark::Pope => {
            let images =
                args.images.as_deref().context("--images: missing; pope needs the folder of COCO's val2014")?;
            Work::Questions(Box::new(pictures::pope(&args.data, images)?))
        }
        Benchmark::Mme | Benchmark::Vqa => Work::Questions(Box::new(pictures::tsv(file, args.name)?)),
    };
    match &mut work {
        Work::Prompts(prompts) => prompts.truncate(limit),
        Work::Questions(items) => items.all.truncate(limit),
    }
    Ok(work)
}

fn read_report(path: &Path) -> Result<BenchmarkReport> {
    let bytes = std::fs::read(path).with_context(|| format!("--compare {}: cannot be read", path.display()))?;
    serde_json::from_slice(&bytes)
        .with_context(|| format!("--compare {}: not a report.json of `hermesflow benchmark`", path.display()))
}

/// The guidances to draw under.
fn guidances(args: &Args, config: &RunConfig) -> Result<Vec<f64>> {
    let own = config.imagine.guidance;
    let mut all = if args.guidance.is_empty() { vec![0.0, 1.0, own] } else { args.guidance.clone() };
    if let Some(wrong) = all.iter().find(|guidance| !(guidance.is_finite() && **guidance >= 0.0)) {
        bail!("--guidance: {wrong} is not 0 or more");
    }
    all.sort_by(f64::total_cmp);
    all.dedup();
    Ok(all)
}

/// Measures, or continues, or takes what is there if it was made from the same.
fn measure(args: &Args, work: &Work, run: &RunContext, out: &Path) -> Result<BenchmarkReport> {
    let config = &run.config;
    let guidances = guidances(args, config)?;
    let player = models::player_files(run)?;
    let imagine = &config.imagine;
    let mut settings = json!({
        "benchmark": args.name,
        "limit": args.limit,
        "seed": config.seed,
        "model": { "dtype": config.model.dtype, "device": config.model.device },
        "answer": { "max_new_tokens": config.answer.max_new_tokens },
    });
    let judges = Judges::alone(config.judges.clone(), &run.progress);
    let mut origin_files = player.clone();
    if args.name.draws() {
        settings["imagine"] = json!({
            "steps": imagine.steps, "temperature": imagine.temperature, "schedule": imagine.schedule,
            "guidances": guidances, "samples": args.samples,
        });
        settings["answer"]["matcher"] = json!(config.answer.matcher);
        origin_files.extend(judges.matcher_files(config.answer.matcher)?);
    }
    for (number, file) in args.data.iter().enumerate() {
        origin_files.push((format!("--data, file {}", number + 1), digest::of_file(file)?));
    }
    if let Work::Questions(items) = work {
        let digests = items.files().map(digest::of_file).collect::<Result<Vec<_>>>()?;
        origin_files.push(("the pictures".to_owned(), digest::digest(digests)));
    }
    let made_from = Origin::of(settings).with(origin_files);
    let path = out.join("report.json");
    if let Some(text) = files::if_there(&path, |path| std::fs::read(path))? {
        let there: BenchmarkReport = serde_json::from_slice(&text).with_context(|| {
            format!("{}: not a report of this program; choose another folder with --out", path.display())
        })?;
        let differing = made_from.differences(&there.made_from).join("; ");
        ensure!(
            differing.is_empty(),
            "{}: holds a report made with different settings: {differing}; choose another folder with --out, or remove it",
            path.display()
        );
        return Ok(there);
    }
    let model = if args.iteration == 0 { "base".to_owned() } else { format!("iteration {}", args.iteration) };
    let line = line(args, config, &guidances, &player);
    let rows = rows(args, work, run, (&guidances, &judges), out, &serde_json::to_string(&(&model, &made_from))?)?;
    let report = BenchmarkReport { benchmark: args.name, model, line, made_from, rows };
    files::write_atomically(&path, (serde_json::to_string(&report)? + "\n").as_bytes())?;
    let partial = partial(out);
    if partial.exists() {
        std::fs::remove_file(&partial).with_context(|| partial.display().to_string())?;
    }
    Ok(report)
}

/// Sampler, seed and digest of the checkpoint, in a line.
fn line(args: &Args, config: &RunConfig, guidances: &[f64], player: &[(String, String)]) -> String {
    let imagine = &config.imagine;
    // What an iteration trained, else the checkpoint beside its tokenizers.
    let trained = player.iter().find(|(what, _)| what.starts_with("the model that"));
    let own = |what: &str| what.starts_with("model.") && what != "model.vq" && what != "model.tokenizer";
    let checkpoint = trained.or_else(|| player.iter().find(|(what, _)| own(what)));
    let digest = checkpoint.map_or_else(String::new, |(what, digest)| format!("{what} {digest}"));
    let sampler = match args.name.draws() {
        true => format!(
            "{} images of each prompt, {} steps, guidance {}, temperature {}; ",
            args.samples,
            imagine.steps,
            guidances.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and "),
            imagine.temperature
        ),
        false => "greedy replies; ".to_owned(),
    };
    format!("{sampler}seed {}; digest of {digest}", config.seed)
}

/// The rows of an interrupted benchmark.
fn partial(out: &Path) -> PathBuf {
    hermesflow_records::beside(&out.join("report.json"), ".hermesflow-partial")
}

/// Makes all rows; those of an interrupted benchmark are kept.
fn rows(
    args: &Args,
    work: &Work,
    run: &RunContext,
    (guidances, judges): (&[f64], &Judges),
    out: &Path,
    header: &str,
) -> Result<Vec<Row>> {
    let config = &run.config;
    let block = if args.name.draws() { PROMPTS } else { QUESTIONS };
    let (mut log, mut rows) = unfinished::<Row>(&partial(out), header, block)?;
    let total = match work {
        Work::Prompts(prompts) => prompts.len() * guidances.len(),
        Work::Questions(items) => items.all.len(),
    };
    if rows.len() >= total {
        return Ok(rows);
    }
    let model = models::player(run)?;
    let task =
        run.progress.task(args.name.name(), if args.name.draws() { "prompts" } else { "questions" }, total, rows.len());
    let matcher = judges.matcher(config.answer.matcher)?;
    while rows.len() < total {
        let made = match work {
            Work::Prompts(prompts) => {
                let artist = Artist {
                    benchmark: args.name,
                    model: &model,
                    options: models::imagine_options(&model, config),
                    samples: args.samples,
                    seed: config.seed,
                    max_new_tokens: config.answer.max_new_tokens,
                    matcher: &*matcher,
                };
                let (guidance, number) = (guidances[rows.len() / prompts.len()], rows.len() % prompts.len());
                let folder = out.join(format!("guidance-{guidance}"));
                let prompt = &prompts[number];
                vec![artist.row(prompt, number, guidance, &folder).with_context(|| format!("prompt {}", prompt.id))?]
            }
            Work::Questions(items) => {
                let reader =
                    Reader { benchmark: args.name, model: &model, max_new_tokens: config.answer.max_new_tokens };
                let chosen = &items.all[rows.len()..total.min(rows.len() + QUESTIONS)];
                reader.rows(items, chosen)?
            }
        };
        append(&mut log, &made)?;
        task.advance(made.len());
        rows.extend(made);
    }
    Ok(rows)
}

fn append(log: &mut AppendLog, rows: &[Row]) -> Result<()> {
    let mut lines = String::new();
    for row in rows {
        lines.push_str(&(serde_json::to_string(row)? + "\n"));
    }
    log.append(lines.as_bytes())?;
    Ok(())
}

/// The other benchmarks of the same model, in folders beside this one: both sides are always shown.
fn beside(out: &Path, report: &BenchmarkReport) -> Vec<(BenchmarkReport, Vec<Figure>)> {
    let mut folders: Vec<PathBuf> = out
        .parent()
        .and_then(|folder| std::fs::read_dir(folder).ok())
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|folder| folder != out)
        .collect();
    folders.sort();
    let read = |folder: PathBuf| -> Option<(BenchmarkReport, Vec<Figure>)> {
        let other: BenchmarkReport = serde_json::from_slice(&std::fs::read(folder.join("report.json")).ok()?).ok()?;
        (other.model == report.model).then_some(())?;
        let figures = figures::of(&other, None).ok()?;
        Some((other, figures))
    };
    folders.into_iter().filter_map(read).collect()
}

/// The table of figures.
fn table(model: &str, figures: &[Figure]) -> String {
    let compared = figures.iter().any(|figure| figure.difference.is_some());
    let mut header = vec![model, "value ± 95 %"];
    header.extend(compared.then_some("difference ± 95 %"));
    let mut table = report::table(&header);
    for figure in figures {
        let mut row = vec![figure.name.clone(), figure.shown()];
        row.extend(compared.then(|| figure.difference()));
        table.add_row(row);
    }
    table.to_string()
}
