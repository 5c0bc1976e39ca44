//! `hermesflow controls`: the method beside what it must be compared with, at the same compute.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use hermesflow_records::temporary;
use hermesflow_scenes::Split;
use serde::{Deserialize, Serialize};

use super::args::ConfigArgs;
use super::args::count;
use super::eval;
use super::run;
use crate::config::RunConfig;
use crate::files;
use crate::files::lock::Lock;
use crate::models::{self, Model};
use crate::progress::Progress;
use crate::report;
use crate::run::context::RunContext;
use crate::run::kernels;
use crate::world::evaluate::{EvalReport, EvalSettings, PromptRow, other_guidances};
use crate::world::floors::{FLOORS, Floor, floors};
use crate::world::statistics::Mean;

/// What one arm changes of the run's configuration.
struct Arm {
    name: &'static str,
    what: &'static str,
    overrides: &'static [&'static str],
}

/// The arms, in the order of the table.
const ARMS: [Arm; 8] = [
    Arm { name: "pair-dpo", what: "Pair-DPO, anchored (ours)", overrides: &[] },
    Arm { name: "continue", what: "continued pretraining", overrides: &["train.objective=continue_pretraining"] },
    Arm {
        name: "continue-clean",
        what: "continued pretraining, all captions true and whole",
        overrides: &[
            "train.objective=continue_pretraining",
            "train.pretraining.alt_text=0",
            "train.pretraining.short_captions=0",
        ],
    },
    Arm { name: "sft-wins", what: "fine-tuning on the wins", overrides: &["train.objective=sft_wins"] },
    Arm { name: "und-only", what: "understanding pairs only", overrides: &["train.sides=und"] },
    Arm { name: "gen-only", what: "generation pairs only", overrides: &["train.sides=gen"] },
    Arm { name: "oracle", what: "pairs chosen by the oracle", overrides: &["pair.judge=oracle"] },
    Arm {
        name: "no-anchor",
        what: "λ = 0, the paper's loss",
        overrides: &["train.loss.anchor_und=0", "train.loss.anchor_gen=0"],
    },
];

/// Compare the method with its controls at the same compute
///
/// Runs every arm for every seed: ours, continued pretraining (on its own data, and on nothing but true and whole
/// captions), fine-tuning on the wins, understanding pairs only, generation pairs only, pairs chosen by the oracle, and
/// the paper's loss without the anchor; each with the same records, steps and evaluation. The first iteration's
/// candidates are made once per seed and shared. Every arm is a few YAML keys, so each can be run alone. Prints
/// Markdown tables with 95 % intervals and keeps them as controls.md and controls.json; the last rows are floors: blank
/// pictures, random scenes, and what the base drew for other prompts. When it was interrupted, the same command continues.
///
/// Example: hermesflow controls scenes --seeds 1,2,3 --arms pair-dpo,no-anchor --prompts 400
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    config: ConfigArgs,

    /// The folder of all runs
    #[arg(long, value_name = "DIR", default_value = "runs/controls")]
    out: PathBuf,

    /// Only these arms: pair-dpo, continue, continue-clean, sft-wins, und-only, gen-only, oracle, no-anchor
    #[arg(long, value_name = "ARMS", value_delimiter = ',')]
    arms: Vec<String>,

    /// The seeds of the runs; each also has its own prompts to be evaluated on
    #[arg(long, value_name = "SEEDS", value_delimiter = ',', default_values_t = [1, 2, 3])]
    seeds: Vec<u64>,

    /// Held-out prompts per seed
    #[arg(long, value_name = "N", default_value_t = 400, value_parser = count::<1_000_000>)]
    prompts: usize,

    /// Scenes to draw the prompts from: heldout (for final figures) or dev (for choosing settings)
    #[arg(long, value_name = "SPLIT", default_value = "heldout")]
    split: String,
}

/// One arm after one iteration with one seed.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Outcome {
    arm: String,
    seed: u64,
    iteration: usize,
    understanding: Mean,
    generation: Mean,
    all_right: Mean,
    understanding_change: Mean,
    generation_change: Mean,
    all_right_change: Mean,
    gap_change: Mean,
    gap_before: Mean,
}

/// Runs the command.
pub fn run(args: Args) -> Result<()> {
    let config = args.config.load()?;
    ensure!(config.data.scenes.is_some(), "data.scenes: the controls are measured on the scenes world");
    let progress = Progress::stderr();
    for name in &args.arms {
        let known: Vec<&str> = ARMS.iter().map(|arm| arm.name).collect();
        ensure!(known.contains(&name.as_str()), "--arms: {name:?} is none of {}", known.join(", "));
    }
    let split = eval::split(&args.split)?;
    let _lock = Lock::take([args.out.join(".hermesflow-lock")])?;
    let seeds: Vec<PathBuf> = args.seeds.iter().map(|seed| args.out.join(format!("seed-{seed}"))).collect();
    files::refuse_foreign(&args.out, &["controls.md", "controls.json"], seeds.iter().any(|seed| seed.is_dir()))?;
    let mut outcomes = Vec::new();
    for &seed in &args.seeds {
        let asked = |arm: &&Arm| args.arms.is_empty() || args.arms.iter().any(|name| name == arm.name);
        for (number, arm) in ARMS.iter().filter(asked).enumerate() {
            progress.log(format!("controls: {} with seed {seed}", arm.name));
            let played = play(arm, (seed, number == 0), split, &args, &progress);
            outcomes.extend(played.with_context(|| format!("{} {seed}", arm.name))?);
        }
    }
    let tables = tables(&outcomes);
    files::write_atomically(&args.out.join("controls.md"), (tables.clone() + "\n").as_bytes())?;
    let json = serde_json::to_string_pretty(&outcomes)? + "\n";
    files::write_atomically(&args.out.join("controls.json"), json.as_bytes())?;
    say!("{tables}")?;
    Ok(())
}

/// One arm with one seed: every iteration, and its evaluation. With the first arm of a seed, the floors of its prompts.
fn play(
    arm: &Arm,
    (seed, first_of_seed): (u64, bool),
    split: Split,
    args: &Args,
    progress: &Progress,
) -> Result<Vec<Outcome>> {
    let home = args.out.join(format!("seed-{seed}"));
    let config = configured(args, seed, &home.join(arm.name), arm.overrides)?;
    let settings = EvalSettings { split, prompts: args.prompts, seed: 1000 + seed };
    share_curation(args, seed, &home, &config, progress)?;
    let first = RunContext::new(config.clone(), 1, progress.clone());
    let guidances = other_guidances(&config);
    let mut base: Option<EvalReport> = None;
    let mut outcomes = Vec::new();
    run::run_loop(&config, progress, |iteration, model: &Model| {
        let (name, file) = match iteration {
            0 => ("base".to_string(), home.join(format!("eval-base-{}.json", split.name()))),
            _ => {
                let name = format!("{} {iteration}", arm.name);
                (name, home.join(arm.name).join(format!("eval-{iteration}-{}.json", split.name())))
            }
        };
        let report = eval::evaluate_into(model, &name, (&first.at(iteration + 1), &guidances), settings, &file)?;
        match &base {
            None => {
                if first_of_seed {
                    outcomes.extend(floors(&report).iter().map(|floor| floor_outcome(floor, seed, &report)));
                }
                base = Some(report);
            }
            Some(base) => outcomes.push(outcome(arm, seed, iteration, base, &report)?),
        }
        Ok(())
    })?;
    Ok(outcomes)
}

fn configured(args: &Args, seed: u64, folder: &Path, more: &[&str]) -> Result<RunConfig> {
    let mut overrides = args.config.overrides.clone();
    overrides.push(format!("seed={seed}"));
    overrides.push(format!("output={}", folder.join("run").display()));
    overrides.push(format!("data.root={}", folder.join("data").display()));
    overrides.extend(more.iter().map(|one| (*one).to_owned()));
    RunConfig::load(&args.config.config, &overrides, models::backbone::find)
}

/// Candidates of the first iteration, made once per seed and copied to the arm: all arms begin with the
/// same model and records.
fn share_curation(args: &Args, seed: u64, home: &Path, config: &RunConfig, progress: &Progress) -> Result<()> {
    let target = &config.data.root;
    if target.join("initial_data.json").is_file() {
        return Ok(());
    }
    let shared = configured(args, seed, &home.join("shared"), &[])?;
    let shared = RunContext::new(shared, 1, progress.clone());
    kernels::settle(&shared.config, true)?;
    run::curate(&models::open(&shared.config.model, progress)?, &shared)?;
    let temporary = temporary(target);
    if temporary.exists() {
        std::fs::remove_dir_all(&temporary).with_context(|| temporary.display().to_string())?;
    }
    copy_folder(&shared.config.data.root, &temporary)?;
    for chosen in ["pair_dpo_data.json", ".settings/pair.json"] {
        let _ = std::fs::remove_file(temporary.join(chosen)); // each arm chooses its own pairs
    }
    std::fs::rename(&temporary, target).with_context(|| target.display().to_string())
}

fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to).with_context(|| to.display().to_string())?;
    for entry in std::fs::read_dir(from).with_context(|| from.display().to_string())? {
        let entry = entry.with_context(|| from.display().to_string())?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if source.is_dir() {
            copy_folder(&source, &target)?;
        } else {
            std::fs::copy(&source, &target).with_context(|| target.display().to_string())?;
        }
    }
    Ok(())
}

fn outcome(arm: &Arm, seed: u64, iteration: usize, base: &EvalReport, report: &EvalReport) -> Result<Outcome> {
    let all_right = |row: &PromptRow| f64::from(u8::from(row.all));
    Ok(Outcome {
        arm: arm.name.into(),
        seed,
        iteration,
        understanding: report.mean(PromptRow::understanding),
        generation: report.mean(PromptRow::generation),
        all_right: report.mean(all_right),
        understanding_change: report.difference(base, PromptRow::understanding)?,
        generation_change: report.difference(base, PromptRow::generation)?,
        all_right_change: report.difference(base, all_right)?,
        gap_change: report.difference(base, PromptRow::gap)?,
        gap_before: base.mean(PromptRow::gap),
    })
}

/// A floor beside the base: its pictures show no understanding, and were not made by an arm.
fn floor_outcome(floor: &Floor, seed: u64, base: &EvalReport) -> Outcome {
    let (none, all) = (Mean::of([]), |right: bool| f64::from(u8::from(right)));
    let change = |floor: Vec<f64>, base: fn(&PromptRow) -> f64, report: &EvalReport| {
        Mean::of_differences(&report.rows.iter().map(base).collect::<Vec<_>>(), &floor)
    };
    let facts: Vec<f64> = floor.verdicts.iter().map(|verdict| verdict.facts).collect();
    let rights: Vec<f64> = floor.verdicts.iter().map(|verdict| all(verdict.all)).collect();
    Outcome {
        arm: floor.name.into(),
        seed,
        iteration: 0,
        understanding: none,
        generation: Mean::of(facts.iter().copied()),
        all_right: Mean::of(rights.iter().copied()),
        understanding_change: none,
        generation_change: change(facts, PromptRow::generation, base),
        all_right_change: change(rights, |row| f64::from(u8::from(row.all)), base),
        gap_change: none,
        gap_before: none,
    }
}

/// Two tables of what the arms came to after their last iteration: over all seeds, and seed by seed.
fn tables(outcomes: &[Outcome]) -> String {
    let header = ["", "generation", "change", "all right", "understanding", "gap before", "gap"];
    let mut pooled = report::table(&header);
    let mut single = report::table(&[&["", "seed"], &header[1..]].concat());
    for (name, what) in ARMS.iter().map(|arm| (arm.name, arm.what)).chain(FLOORS) {
        let of_arm: Vec<&Outcome> = outcomes.iter().filter(|outcome| outcome.arm == name).collect();
        let last = of_arm.iter().map(|outcome| outcome.iteration).max().unwrap_or(0);
        let ended: Vec<&Outcome> = of_arm.into_iter().filter(|outcome| outcome.iteration == last).collect();
        if ended.is_empty() {
            continue;
        }
        pooled.add_row([vec![what.to_string()], figures(&ended)].concat());
        for outcome in ended {
            single.add_row([vec![what.to_string(), outcome.seed.to_string()], figures(&[outcome])].concat());
        }
    }
    format!("{pooled}\n\nseed by seed:\n\n{single}\n\n± is half the 95 % interval (1.96 standard errors) over prompts")
}

/// The figures of one arm's outcomes, in the order of the header.
fn figures(outcomes: &[&Outcome]) -> Vec<String> {
    let pooled = |of: fn(&Outcome) -> Mean| Mean::pooled(outcomes.iter().map(|outcome| of(outcome)));
    let plain = |mean: Mean| if mean.count == 0 { mean.to_string() } else { format!("{:.3}", mean.mean) };
    vec![
        plain(pooled(|outcome| outcome.generation)),
        format!("{:+}", pooled(|outcome| outcome.generation_change)),
        format!("{:+}", pooled(|outcome| outcome.all_right_change)),
        format!("{:+}", pooled(|outcome| outcome.understanding_change)),
        plain(pooled(|outcome| outcome.gap_before)),
        format!("{:+}", pooled(|outcome| outcome.gap_change)),
    ]
}
