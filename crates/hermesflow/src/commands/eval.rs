//! `hermesflow eval`: understanding, generation and the gap, on scenes that training never saw.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use hermesflow_scenes::Split;

use super::{ConfigArgs, count};
use crate::evaluate::{EvalReport, EvalSettings, PromptRow, evaluate};
use crate::progress::Progress;
use crate::{files, models, report};

/// Measure understanding, generation (by the oracle and by the model itself) and the gap
///
/// Runs on scenes whose combinations never occur in training. Prompts and draws depend on the seed alone, so two
/// models are compared on the same ones: give an earlier report to --compare for paired differences. Prints a table
/// per category with 95 % intervals; --out keeps every prompt. Kill it anywhere: with --out it continues.
///
/// Example: hermesflow eval configs/scenes.yaml --iteration 2 --prompts 400 --compare base.json
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
        Some(out) => evaluate_into(&model, &name, &config, settings, out, &progress)?,
        None => evaluate(&model, &name, &config, settings, vec![], &progress, |_| Ok(()))?,
    };
    if args.json {
        say!("{}", serde_json::to_string_pretty(&report)?)?;
    } else {
        say!("{}", report::evaluation(&report, before.as_ref())?)?;
    }
    Ok(())
}

/// Evaluates into a file: what it or its `.jsonl` has is not done again.
///
/// # Errors
/// When the model fails or the file cannot be written.
pub fn evaluate_into(
    model: &impl hermesflow_models::UnifiedModel,
    name: &str,
    config: &crate::config::RunConfig,
    settings: EvalSettings,
    out: &Path,
    progress: &Progress,
) -> Result<EvalReport> {
    if out.is_file() {
        let report = read(out)?;
        anyhow::ensure!(
            report.settings == settings && report.model == name,
            "{}: holds another report ({} on {:?}); choose another file or remove it",
            out.display(),
            report.model,
            report.settings
        );
        return Ok(report);
    }
    let lines = out.with_extension("jsonl");
    let header = serde_json::to_string(&(name, settings))?;
    let text = std::fs::read_to_string(&lines).unwrap_or_default();
    // A line that was cut off by a kill, and what follows it, is made again.
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let mut there = whole.lines();
    let done: Vec<PromptRow> = match there.next() {
        Some(first) if first == header => there.map_while(|line| serde_json::from_str(line).ok()).collect(),
        _ => vec![],
    };
    let mut kept = header + "\n";
    for row in &done[..done.len() / crate::evaluate::BLOCK * crate::evaluate::BLOCK] {
        kept.push_str(&(serde_json::to_string(row)? + "\n"));
    }
    files::write_atomically(&lines, kept.as_bytes())?;
    let keep = |block: &[PromptRow]| -> Result<()> {
        let mut text = String::new();
        for row in block {
            text.push_str(&(serde_json::to_string(row)? + "\n"));
        }
        let mut file = std::fs::OpenOptions::new().append(true).open(&lines)?;
        std::io::Write::write_all(&mut file, text.as_bytes()).with_context(|| lines.display().to_string())
    };
    let report = evaluate(model, name, config, settings, done, progress, keep)?;
    files::write_atomically(out, (serde_json::to_string(&report)? + "\n").as_bytes())?;
    std::fs::remove_file(&lines).with_context(|| lines.display().to_string())?;
    Ok(report)
}

/// An earlier report about the same prompts.
fn comparable(path: &Path, settings: &EvalSettings) -> Result<EvalReport> {
    let report = read(path)?;
    report.check_about(settings).with_context(|| format!("--compare {}", path.display()))?;
    Ok(report)
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
