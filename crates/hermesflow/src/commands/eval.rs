//! `hermesflow eval`: understanding, generation and the gap, on scenes that training never saw.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use hermesflow_scenes::Split;
use serde_json::json;

use super::ConfigArgs;
use super::count;
use crate::config::RunConfig;
use crate::files;
use crate::files::lock::Lock;
use crate::judges::Judges;
use crate::made::Origin;
use crate::models;
use crate::progress::Progress;
use crate::report;
use crate::run::layout::RunLayout;
use crate::world::evaluate::{BLOCK, EvalReport, EvalSettings, PromptRow, evaluate};

/// Measure understanding, generation (by the oracle and by the model itself) and the gap
///
/// Runs on scenes whose combinations never occur in training. Prompts and draws depend on the seed alone, so two
/// models are compared on the same ones: give an earlier report to --compare for paired differences. Prints a table
/// per category with 95 % intervals; --out keeps every prompt. Kill it anywhere: with --out it continues.
///
/// Example: hermesflow eval scenes --iteration 2 --prompts 400 --compare base.json
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    config: ConfigArgs,

    /// Evaluate what this iteration of the run trained; 0 is the model that the run begins with
    #[arg(long, value_name = "N", default_value_t = 0)]
    iteration: usize,

    /// How many prompts
    #[arg(long, value_name = "N", default_value_t = 400, value_parser = count::<1_000_000>)]
    prompts: usize,

    /// Which combinations: heldout (final figures), dev (choosing settings) or train
    #[arg(long, value_name = "SPLIT", default_value = "heldout")]
    split: String,

    /// The seed of prompts and draws
    #[arg(long, value_name = "N", default_value_t = 0)]
    eval_seed: u64,

    /// Keep the report, prompt by prompt, as JSON
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,

    /// An earlier report to show paired differences from
    #[arg(long, value_name = "FILE")]
    compare: Option<PathBuf>,

    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: Args) -> Result<()> {
    let config = args.config.load()?;
    let settings = EvalSettings { split: split(&args.split)?, prompts: args.prompts, seed: args.eval_seed };
    let before = args.compare.as_deref().map(|path| comparable(path, &settings)).transpose()?;
    let progress = Progress::stderr();
    let model = models::after(&config, args.iteration, &progress)?;
    let name = format!("iteration {}", args.iteration);
    let report = match &args.out {
        Some(out) => {
            let _lock = Lock::beside(out)?;
            evaluate_into(&model, (args.iteration, &name), &config, settings, out, &progress)?
        }
        None => evaluate(&model, &name, &config, settings, vec![], &progress, |_| Ok(()))?,
    };
    if args.json {
        say!("{}", serde_json::to_string_pretty(&report)?)?;
    } else {
        say!("{}", report::evaluation(&report, before.as_ref())?)?;
    }
    Ok(())
}

/// Evaluates what an iteration trained, under a name, into a file: what it or the file of a killed evaluation has is not
/// done again, if it was made from the very same.
///
/// # Errors
/// When the model fails, the file is another report's or anyone's, or it cannot be written.
pub fn evaluate_into(
    model: &impl hermesflow_models::UnifiedModel,
    (iteration, name): (usize, &str),
    config: &RunConfig,
    settings: EvalSettings,
    out: &Path,
    progress: &Progress,
) -> Result<EvalReport> {
    let made_from = made_from(iteration, config, settings, progress)?;
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
    let (partial, header) = (partial(out), serde_json::to_string(&(name, settings, &made_from))?);
    let text = std::fs::read_to_string(&partial).unwrap_or_default();
    // A line that was cut off by a kill, and what follows it, is made again.
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let mut there = whole.lines();
    let done: Vec<PromptRow> = match there.next() {
        Some(first) if first == header => there.map_while(|line| serde_json::from_str(line).ok()).collect(),
        _ => vec![],
    };
    let mut kept = header + "\n";
    for row in &done[..done.len() / BLOCK * BLOCK] {
        kept.push_str(&(serde_json::to_string(row)? + "\n"));
    }
    files::write_atomically(&partial, kept.as_bytes())?;
    let keep = |block: &[PromptRow]| -> Result<()> {
        let mut text = String::new();
        for row in block {
            text.push_str(&(serde_json::to_string(row)? + "\n"));
        }
        let mut file = std::fs::OpenOptions::new().append(true).open(&partial)?;
        std::io::Write::write_all(&mut file, text.as_bytes()).with_context(|| partial.display().to_string())
    };
    let mut report = evaluate(model, name, config, settings, done, progress, keep)?;
    report.made_from = Some(made_from);
    files::write_atomically(out, (serde_json::to_string(&report)? + "\n").as_bytes())?;
    std::fs::remove_file(&partial).with_context(|| partial.display().to_string())?;
    Ok(report)
}

/// An earlier report about the same prompts.
fn comparable(path: &Path, settings: &EvalSettings) -> Result<EvalReport> {
    let report = read(path)?;
    report.check_about(settings).with_context(|| format!("--compare {}", path.display()))?;
    Ok(report)
}

/// Everything that decides a report.
fn made_from(iteration: usize, config: &RunConfig, settings: EvalSettings, progress: &Progress) -> Result<Origin> {
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
    let player = models::player_files(config, &RunLayout::new(config, iteration + 1), progress)?;
    let matcher = Judges::alone(config.judges.clone(), progress).matcher_files(config.answer.matcher)?;
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
