//! `hermesflow eval`: understanding, generation and the gap, on scenes that training never saw.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use hermesflow_scenes::Split;
use serde_json::json;

use super::args::ConfigArgs;
use super::args::count;
use crate::config::RunConfig;
use crate::files;
use crate::files::lock::Lock;
use crate::judges::Judges;
use crate::made::{Origin, unfinished};
use crate::models;
use crate::progress::Progress;
use crate::report;
use crate::run::context::RunContext;
use crate::run::kernels;
use crate::world::evaluate::{BLOCK, EvalReport, EvalSettings, PromptRow, evaluate, other_guidances};

/// Measure understanding, generation (by the oracle and by the model itself) and the gap
///
/// Runs on scenes whose combinations never occur in training. Prompts and draws depend on the seed alone, so two
/// models are compared on the same ones: give an earlier report to --compare for paired differences. Prints a table
/// per category with 95 % intervals; --out keeps every prompt. With --out, an evaluation that was interrupted continues.
///
/// Example: hermesflow eval scenes --iteration 2 --prompts 400 --compare base.json
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    config: ConfigArgs,

    /// Evaluate what this iteration of the run trained; 0 is the model that the run begins with
    #[arg(long, value_name = "N", default_value_t = 0)]
    iteration: usize,

    /// Number of prompts
    #[arg(long, value_name = "N", default_value_t = 400, value_parser = count::<1_000_000>)]
    prompts: usize,

    /// Scenes to draw the prompts from: heldout (for final figures), dev (for choosing settings) or train
    #[arg(long, value_name = "SPLIT", default_value = "heldout")]
    split: String,

    /// Seed of the prompts and of all draws
    #[arg(long, value_name = "N", default_value_t = 0)]
    eval_seed: u64,

    /// Write the report, prompt by prompt, into this JSON file
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,

    /// Earlier report of --out to show paired differences from
    #[arg(long, value_name = "FILE")]
    compare: Option<PathBuf>,

    /// Draw the pictures under these guidances too, one or several; left out, without any, where the run has one
    #[arg(long, value_name = "G,…", value_delimiter = ',')]
    guidance: Vec<f64>,

    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: Args) -> Result<()> {
    let config = args.config.load()?;
    let settings = EvalSettings { split: split(&args.split)?, prompts: args.prompts, seed: args.eval_seed };
    let before = args.compare.as_deref().map(|path| comparable(path, &settings)).transpose()?;
    let guidances = guidances(&args.guidance, &config)?;
    let run = RunContext::new(config, args.iteration + 1, Progress::stderr());
    kernels::settle(&run.config, false)?;
    let model = models::player(&run)?;
    let name = format!("iteration {}", args.iteration);
    let report = match &args.out {
        Some(out) => {
            let _lock = Lock::beside(out)?;
            evaluate_into(&model, &name, (&run, &guidances), settings, out)?
        }
        None => evaluate(&model, &name, (&run.config, &guidances), settings, vec![], &run.progress, |_| Ok(()))?,
    };
    if args.json {
        say!("{}", serde_json::to_string_pretty(&report)?)?;
    } else {
        say!("{}", report::evaluation(&report, before.as_ref())?)?;
    }
    Ok(())
}

/// The guidances to draw under beside the run's own: those asked for, or what is usual.
///
/// # Errors
/// When one is no guidance.
pub fn guidances(asked: &[f64], config: &RunConfig) -> Result<Vec<f64>> {
    if asked.is_empty() {
        return Ok(other_guidances(config));
    }
    let mut all: Vec<f64> = Vec::new();
    for &guidance in asked {
        let number = guidance as f32;
        anyhow::ensure!(number.is_finite() && number >= 0.0, "--guidance: {guidance} is not 0 or more");
        if guidance != config.imagine.guidance && !all.contains(&guidance) {
            all.push(guidance);
        }
    }
    Ok(all)
}

/// Evaluates the model that an iteration begins with, under a name and with pictures under other `guidances` too, into a
/// file: what it or the file of a killed evaluation has is not done again, if it was made with the same settings and model.
///
/// # Errors
/// When the model fails, the file is another report's or anyone's, or it cannot be written.
pub fn evaluate_into(
    model: &impl hermesflow_models::UnifiedModel,
    name: &str,
    (run, guidances): (&RunContext, &[f64]),
    settings: EvalSettings,
    out: &Path,
) -> Result<EvalReport> {
    let made_from = made_from(run, guidances, settings)?;
    if out.exists() {
        let report = read(out)?;
        let differing = made_from.differences(&report.made_from.clone().unwrap_or_default());
        anyhow::ensure!(
            differing.is_empty() && report.model == name,
            "{}: holds another report, of {} on {} {} prompts ({}); choose another file or remove it",
            out.display(),
            report.model,
            report.settings.prompts,
            report.settings.split.name(),
            differing.join("; ")
        );
        let _ = std::fs::remove_file(partial(out)); // a kill may have left it
        return Ok(report);
    }
    let header = serde_json::to_string(&(name, settings, &made_from))?;
    let (mut log, done) = unfinished::<PromptRow>(&partial(out), &header, BLOCK)?;
    let keep = |block: &[PromptRow]| -> Result<()> {
        let mut lines = String::new();
        for row in block {
            lines.push_str(&(serde_json::to_string(row)? + "\n"));
        }
        log.append(lines.as_bytes())?;
        Ok(())
    };
    let mut report = evaluate(model, name, (&run.config, guidances), settings, done, &run.progress, keep)?;
    report.made_from = Some(made_from);
    files::write_atomically(out, (serde_json::to_string(&report)? + "\n").as_bytes())?;
    std::fs::remove_file(partial(out)).with_context(|| partial(out).display().to_string())?;
    Ok(report)
}

/// An earlier report about the same prompts.
fn comparable(path: &Path, settings: &EvalSettings) -> Result<EvalReport> {
    let report = read(path)?;
    report.check_about(settings).with_context(|| format!("--compare {}", path.display()))?;
    Ok(report)
}

/// Everything that decides a report.
fn made_from(run: &RunContext, guidances: &[f64], settings: EvalSettings) -> Result<Origin> {
    let config = &run.config;
    let mut decisive = json!({
        "evaluation": settings,
        "batch": BLOCK,
        "model": { "dtype": config.model.dtype, "device": config.model.device },
        "caption": { "question": config.caption.question, "max_new_tokens": config.caption.max_new_tokens },
        "imagine": config.imagine,
        "answer": { "matcher": config.answer.matcher, "max_new_tokens": config.answer.max_new_tokens },
    });
    if let Some(imagine) = decisive["imagine"].as_object_mut() {
        imagine.remove("images"); // one per prompt
    }
    if !guidances.is_empty() {
        decisive["guidances"] = json!(guidances);
    }
    let player = models::player_files(run)?;
    let matcher = Judges::alone(config.judges.clone(), &run.progress).matcher_files(config.answer.matcher)?;
    Ok(Origin::of(decisive).with(player).with(matcher))
}

/// The file of an evaluation that is not done: nobody else's.
fn partial(out: &Path) -> PathBuf {
    hermesflow_records::beside(out, ".hermesflow-partial")
}

fn read(path: &Path) -> Result<EvalReport> {
    let text = std::fs::read_to_string(path).with_context(|| format!("{}: cannot be read", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{}: not a report of `hermesflow eval --out`", path.display()))
}

/// The split of this name.
///
/// # Errors
/// Lists the names.
pub fn split(name: &str) -> Result<Split> {
    let known = [Split::Train, Split::Dev, Split::HeldOut];
    known
        .into_iter()
        .find(|split| split.name() == name)
        .with_context(|| format!("--split: {name:?} is none of train, dev, heldout"))
}
