//! `hermesflow run`: the loop, made of the functions behind the other commands.

use anyhow::{Context, Result, ensure};
use hermesflow_models::showo::Showo;
use serde_json::Value;

use super::ConfigArgs;
use super::answer;
use super::ask;
use super::caption;
use super::imagine;
use super::pair;
use super::train;
use crate::config::{ImageJudge, ObjectiveName, Reference, RunConfig};
use crate::files;
use crate::files::lock::Lock;
use crate::judges::Judges;
use crate::made;
use crate::models;
use crate::progress::Progress;
use crate::run::before;
use crate::run::layout::RunLayout;

/// The whole loop for N iterations, from one YAML file
///
/// Every iteration captions, imagines, asks, answers, pairs and trains; the trained model plays the next one. The
/// resolved configuration is saved as config.yaml in the run folder, the models under train/model and
/// train_iterN/model. Kill it anywhere and start it again: it continues by record and by checkpoint, and ends with the
/// files of an undisturbed run, byte for byte.
///
/// Example: hermesflow run scenes iterations=1 train.steps=100 --seed 3
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    config: ConfigArgs,
}

/// Runs the command.
pub fn run(args: Args) -> Result<()> {
    let config = args.config.load()?;
    run_loop(&config, &Progress::stderr(), |_, _| Ok(()))?;
    say!("{}", RunLayout::new(&config, config.iterations).model().display())?;
    Ok(())
}

/// What curates.
const STAGES: [&str; 5] = ["caption", "imagine", "ask", "answer", "pair"];

/// All iterations; `after` sees the base model as iteration 0 and then what each iteration trained.
///
/// # Errors
/// What the stage says that failed.
pub fn run_loop(
    config: &RunConfig,
    progress: &Progress,
    mut after: impl FnMut(usize, &Showo) -> Result<()>,
) -> Result<Showo> {
    // What needs no model first: gigabytes may have to be fetched for the rest.
    let first = RunLayout::new(config, 1);
    before::folders(config, &first)?;
    let stages = STAGES.iter().map(|stage| first.lock(stage)).chain([first.training_lock()]);
    let _lock = Lock::take(stages)?;
    check_folder(config)?;
    if before::has_records(config) {
        before::check(config, &first)?;
    }
    save_config(config)?;
    if before::has_records(config) {
        Judges::of_run(config, &first, progress)?.fetch(config)?;
    }
    let mut player = models::open(&config.model, progress)?;
    train::can_train(player.config(), config)?;
    after(0, &player)?;
    let base = (config.train.reference == Reference::Run).then(|| player.clone());
    for iteration in 1..=config.iterations {
        progress.log(format!("iteration {iteration} of {}", config.iterations));
        player = iterate(&player, base.as_ref().unwrap_or(&player), config, iteration, progress)
            .with_context(|| format!("iteration {iteration}"))?;
        after(iteration, &player)?;
    }
    Ok(player)
}

/// One iteration: curation, then training.
///
/// # Errors
/// What the stage says that failed.
pub fn iterate(
    player: &Showo,
    reference: &Showo,
    config: &RunConfig,
    iteration: usize,
    progress: &Progress,
) -> Result<Showo> {
    let layout = RunLayout::new(config, iteration);
    if config.train.objective != ObjectiveName::ContinuePretraining {
        curate(player, config, &layout, progress)?;
    }
    train::train(player, reference, config, &layout, progress)
}

/// Everything before training: captions, images, questions, answers, pairs.
///
/// # Errors
/// What the stage says that failed.
pub fn curate(player: &Showo, config: &RunConfig, layout: &RunLayout, progress: &Progress) -> Result<()> {
    caption::caption(player, config, layout, progress)?;
    imagine::imagine(player, config, layout, progress)?;
    if config.pair.judge == ImageJudge::Itself {
        ask::ask(config, layout, progress)?;
        answer::answer(player, config, layout, progress)?;
    }
    let chosen = pair::pair(config, layout, progress)?;
    progress.log(chosen.to_string());
    Ok(())
}

/// The first line of a saved configuration: what has it may be written over.
const SAVED: &str = "# The whole configuration of this run, as hermesflow resolved it.\n";

/// Saves the resolved configuration in the run folder, which [`check_folder`] has seen.
///
/// # Errors
/// Names the file that cannot be written.
fn save_config(config: &RunConfig) -> Result<()> {
    let path = RunLayout::new(config, 1).config();
    files::write_atomically(&path, (SAVED.to_owned() + &config.to_yaml()?).as_bytes())
}

/// Refuses a run folder that is none, or whose training has begun under another configuration.
///
/// What each stage made is bound by its own notes, and what was never made binds nothing. But a training follows from all
/// of a run: once one has begun, another configuration would do hours of work only to be refused by it.
///
/// # Errors
/// Names what differs, or the file that is not a run's.
pub fn check_folder(config: &RunConfig) -> Result<()> {
    let path = RunLayout::new(config, 1).config();
    if !path.exists() {
        return Ok(());
    }
    let there = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let saved = RunConfig::parse(&there, &[]).ok();
    let is_as_saved = |saved: &RunConfig| saved.to_yaml().is_ok_and(|text| text == there);
    ensure!(
        there.starts_with(SAVED) || saved.as_ref().is_some_and(is_as_saved),
        "{}: would be written over, and is not the configuration of an earlier run; choose another `output`, or move it \
         away",
        path.display()
    );
    let begun = (1..=config.iterations).any(|iteration| train::has_begun(&RunLayout::new(config, iteration)));
    let differing = match saved.filter(|_| begun) {
        Some(saved) => made::differences(&decisive(&saved)?, &decisive(config)?),
        None => Vec::new(),
    };
    ensure!(
        differing.is_empty(),
        "{}: this folder holds a run with another configuration ({}), and its training has begun; restore it, or choose \
         another `output` and, where curation differs or there are several iterations, another `data.root`",
        path.display(),
        differing.join("; ")
    );
    Ok(())
}

/// What of a configuration decides numbers: not names and places, whose content is compared where it is used.
fn decisive(config: &RunConfig) -> Result<Value> {
    let mut tree = serde_json::to_value(config)?;
    let beside = [
        ("", &["iterations", "output", "judges"][..]),
        ("/data", &["root", "allow_outside"]),
        ("/model", &["showo", "vq", "tokenizer", "clip", "expect"]),
        ("/ask", &["file"]),
        ("/train", &train::BESIDE),
    ];
    for (section, keys) in beside {
        if let Some(map) = tree.pointer_mut(section).and_then(Value::as_object_mut) {
            map.retain(|key, _| !keys.contains(&key.as_str()));
        }
    }
    Ok(tree)
}
