//! `hermesflow controls`: the method beside what it must be compared with, each drawn from at its best.

mod outcome;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use hermesflow_models::{ImageDecoding, UnifiedModel};
use hermesflow_records::temporary;
use hermesflow_scenes::Split;

use super::args::ConfigArgs;
use super::args::count;
use super::eval;
use super::run;
use super::samplers;
use crate::config::RunConfig;
use crate::files;
use crate::files::lock::Lock;
use crate::models::{self, Model};
use crate::progress::Progress;
use crate::run::context::RunContext;
use crate::run::kernels;
use crate::world::evaluate::EvalSettings;
use crate::world::floors::{FLOORS, floors};
use crate::world::samplers::Sampler;
use outcome::{Evaluated, Outcome};

/// What one arm changes of the run's configuration.
struct Arm {
    name: &'static str,
    what: &'static str,
    overrides: &'static [&'static str],
}

/// The arms, in the order of the table.
const ARMS: [Arm; 9] = [
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
    Arm {
        name: "supervised",
        what: "supervised on the same records",
        // Nobody drew the records' pictures: no guidance and no order of drawing belong to them.
        overrides: &["train.objective=supervised", "train.guidance=0", "train.masks=random"],
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

/// Compare the method with its controls, each drawn from under its best guidance
///
/// Runs every arm for every seed: ours, continued pretraining (on its own data, and on nothing but true and whole
/// captions), likelihood of the same records' own captions and pictures, fine-tuning on the wins, understanding pairs only,
/// generation pairs only, pairs chosen by the oracle, and the paper's loss without the anchor; each for the same steps. The
/// first iteration's candidates are made once per seed and shared. For the base and for every arm the guidance is chosen
/// among those of --guidance on --search dev prompts; the first table compares best with best on --prompts others, the
/// second one guidance by guidance. Every arm is a few YAML keys, so each can be run alone. Prints Markdown tables with
/// 95 % intervals and keeps them as controls.md and controls.json; the last rows are floors: blank pictures, random scenes,
/// and what the base drew for other prompts. When it was interrupted, the same command continues.
///
/// Example: hermesflow controls scenes --seeds 1,2,3 --arms pair-dpo,no-anchor --prompts 400
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    config: ConfigArgs,

    /// The folder of all runs
    #[arg(long, value_name = "DIR", default_value = "runs/controls")]
    out: PathBuf,

    /// Only these arms: pair-dpo, continue, continue-clean, supervised, sft-wins, und-only, gen-only, oracle, no-anchor
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

    /// Guidances to draw under, beside the run's own
    #[arg(long, value_name = "G,…", value_delimiter = ',', default_values_t = [0.0, 1.0, 3.0, 5.0])]
    guidance: Vec<f64>,

    /// Dev prompts on which each model's best guidance is chosen; 0 takes the run's own for all
    #[arg(long, value_name = "N", default_value_t = 128)]
    search: usize,
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
    eval::guidances(&args.guidance, &config)?;
    let asked = |arm: &&Arm| args.arms.is_empty() || args.arms.iter().any(|name| name == arm.name);
    // What an arm cannot do is said before the others have worked.
    for arm in ARMS.iter().filter(asked) {
        configured(&args, config.seed, &args.out, arm.overrides).with_context(|| arm.name)?;
    }
    let _lock = Lock::take([args.out.join(".hermesflow-lock")])?;
    let seeds: Vec<PathBuf> = args.seeds.iter().map(|seed| args.out.join(format!("seed-{seed}"))).collect();
    files::refuse_foreign(&args.out, &["controls.md", "controls.json"], seeds.iter().any(|seed| seed.is_dir()))?;
    let mut outcomes = Vec::new();
    for &seed in &args.seeds {
        for (number, arm) in ARMS.iter().filter(asked).enumerate() {
            progress.log(format!("controls: {} with seed {seed}", arm.name));
            let played = play(arm, (seed, number == 0), split, &args, &progress);
            outcomes.extend(played.with_context(|| format!("{} {seed}", arm.name))?);
        }
    }
    let named = ARMS.iter().map(|arm| (arm.name, arm.what)).chain(FLOORS);
    let tables = outcome::tables(&named.collect::<Vec<_>>(), &outcomes);
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
    if config.train.objective.has_pairs() {
        share_curation(args, seed, &home, &config, progress)?;
    }
    let first = RunContext::new(config.clone(), 1, progress.clone());
    let guidances = eval::guidances(&args.guidance, &config)?;
    let mut base: Option<Evaluated> = None;
    let mut outcomes = Vec::new();
    run::run_loop(&config, progress, |iteration, model: &Model| {
        let (name, folder, stem) = match iteration {
            0 => ("base".to_string(), home.clone(), "base".to_string()),
            _ => (format!("{} {iteration}", arm.name), home.join(arm.name), iteration.to_string()),
        };
        let run = first.at(iteration + 1);
        let file = folder.join(format!("eval-{stem}-{}.json", split.name()));
        let report = eval::evaluate_into(model, &name, (&run, &guidances), settings, &file)?;
        let guidance = best_guidance(model, &run, &guidances, args, &folder.join(format!("search-{stem}.jsonl")))?;
        let evaluated = Evaluated { report, guidance, own: config.imagine.guidance };
        match &base {
            None => {
                if first_of_seed {
                    for floor in &floors(&evaluated.report) {
                        outcomes.push(Outcome::of_floor(floor, seed, &evaluated)?);
                    }
                }
                base = Some(evaluated);
            }
            Some(base) => {
                let records = learned_from(&first.at(iteration))?;
                outcomes.push(Outcome::of_arm(arm.name, (seed, iteration), records, base, &evaluated)?);
            }
        }
        Ok(())
    })?;
    Ok(outcomes)
}

/// The guidance under which the oracle finds most facts in a model's pictures of dev prompts: of the run's own and others.
/// Of equal ones the first counts, and the run's own before all.
fn best_guidance(model: &Model, run: &RunContext, others: &[f64], args: &Args, file: &Path) -> Result<f64> {
    let imagine = run.config.imagine;
    if args.search == 0 {
        return Ok(imagine.guidance);
    }
    let steps = if model.image_decoding() == ImageDecoding::Masked { imagine.steps } else { 0 };
    let sampler = |&guidance: &f64| Sampler { steps, noise: imagine.temperature, guidance };
    let all: Vec<Sampler> = [imagine.guidance].iter().chain(others).map(sampler).collect();
    let settings = EvalSettings { split: Split::Dev, prompts: args.search, seed: 0 };
    let drawn = samplers::draw_into(model, run, &settings, &all, file)?;
    let found = |sampler: &Sampler| drawn.iter().find(|one| one.sampler == *sampler).map(|one| one.generation().mean);
    let mut best = (imagine.guidance, f64::NEG_INFINITY);
    for sampler in &all {
        let mean = found(sampler).context("a sampler was not drawn from")?;
        if mean > best.1 {
            best = (sampler.guidance, mean);
        }
    }
    Ok(best.0)
}

/// How many pairs, or records without pairs, an iteration's training read; none where it read no records.
fn learned_from(run: &RunContext) -> Result<Option<usize>> {
    let objective = run.config.train.objective;
    let path = match objective.has_pairs() {
        true => run.layout.pairs(),
        false => run.layout.supervised(),
    };
    objective.has_records().then(|| Ok(files::pairs(&path)?.len())).transpose()
}

fn configured(args: &Args, seed: u64, folder: &Path, more: &[&str]) -> Result<RunConfig> {
    let mut overrides = args.config.overrides.clone();
    overrides.push(format!("seed={seed}"));
    overrides.push(format!("output={}", folder.join("run").display()));
    overrides.push(format!("data.root={}", folder.join("data").display()));
    // A model that draws one code after the other has no masks to choose.
    let masked = args.config.load()?.model.backbone.image_decoding() == ImageDecoding::Masked;
    let meant = more.iter().filter(|one| masked || !one.starts_with("train.masks="));
    overrides.extend(meant.map(|one| (*one).to_owned()));
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
