//! `hermesflow run`: the loop, made of the functions behind the other commands.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use hermesflow_group::Group;

use super::args::ConfigArgs;
use super::{again, answer, ask, caption, imagine, pair, train};
use crate::config::{ImageJudge, Reference, RunConfig};
use crate::files::lock::Lock;
use crate::judges::Judges;
use crate::models::{self, Model};
use crate::progress::Progress;
use crate::report::page::{self, serve};
use crate::run::context::RunContext;
use crate::run::layout::RunLayout;
use crate::run::{before, folder, kernels};

/// Run the whole loop, as a YAML file describes it
///
/// Every iteration makes captions and images, asks and answers questions about the images, chooses pairs and trains on
/// them; the next one begins with the trained model. The run folder (`output`) receives config.yaml with every setting,
/// and the models, as train/model and train_iterN/model. A run that was interrupted continues with the same command and
/// ends with the same files, byte for byte. The last file is report.html, which shows all of it (`hermesflow report`).
///
/// `hermesflow keys` lists every setting of the YAML file; `hermesflow config scenes` prints a file to begin with.
///
/// Example: hermesflow run scenes iterations=1 train.schedule.steps=100 --seed 3
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    config: ConfigArgs,

    /// Serve the report on this machine (127.0.0.1, nothing else listens) while the run works, always current
    #[arg(long)]
    watch: bool,
}

/// Runs the command.
pub fn run(args: Args) -> Result<()> {
    let config = args.config.load()?;
    let progress = Progress::stderr();
    if args.watch && Group::world().is_writer() {
        progress.log(format!("report: {}", serve::beside(&config.output)?));
    }
    run_loop(&config, &progress, |_, _| Ok(()))?;
    // In the log: the one line of the results is the model, which scripts take.
    Group::world().once(|| {
        if let Some(report) = write_report(&config.output, &progress) {
            progress.log(format!("look at: {}", report.display()));
        }
        Ok::<_, anyhow::Error>(())
    })?;
    say!("{}", RunLayout::new(&config, config.iterations).model().display())
}

/// Writes the report of a run or a demo into its folder; the file. A report that cannot be written is no fault of the
/// run's: the log says why.
pub fn write_report(folder: &Path, progress: &Progress) -> Option<PathBuf> {
    match page::write_usual(folder) {
        Ok(report) => Some(report),
        Err(error) => {
            progress.log(format!("WARNING: no report was written: {error:#}"));
            None
        }
    }
}

/// What curates.
const STAGES: [&str; 5] = ["caption", "imagine", "ask", "answer", "pair"];

/// All iterations of a run; `after` sees the base model as iteration 0 and then what each iteration trained.
///
/// # Errors
/// What the stage says that failed.
pub fn run_loop(
    config: &RunConfig,
    progress: &Progress,
    mut after: impl FnMut(usize, &Model) -> Result<()>,
) -> Result<Model> {
    // What needs no model first: gigabytes may have to be fetched for the rest.
    let first = RunContext::new(config.clone(), 1, progress.clone());
    before::folders(&first)?;
    let stages = STAGES.iter().map(|stage| first.layout.lock(stage)).chain([first.layout.training_lock()]);
    let _lock = first.group().once(|| Lock::take(stages))?;
    first.group().once(|| {
        folder::check(config)?;
        if config.train.objective.has_records() {
            before::check(&first)?;
        }
        folder::save_config(config)
    })?;
    kernels::settle_together(config, first.group())?;
    first.group().first(|| {
        if config.train.objective.has_pairs() {
            Judges::of_run(&first)?.fetch(config)?;
        }
        // Where there is one process, it fetches what it opens.
        if first.group().is_alone() { Ok(()) } else { models::fetch(&config.model, progress) }
    })?;
    let mut player = models::open(&config.model, progress)?;
    models::ensure_trainable(player.trains_captions(), &*player.costs()?, config)?;
    train::warn(&first);
    train::ensure_shared(&player, &first)?;
    after(0, &player)?;
    let base = (config.train.reference == Reference::Run).then(|| player.clone());
    for iteration in 1..=config.iterations {
        progress.log(format!("iteration {iteration} of {}", config.iterations));
        player = iterate(&player, base.as_ref().unwrap_or(&player), &first.at(iteration))
            .with_context(|| format!("iteration {iteration}"))?;
        after(iteration, &player)?;
    }
    Ok(player)
}

/// One iteration: curation, then training.
///
/// # Errors
/// What the stage says that failed.
fn iterate(player: &Model, reference: &Model, run: &RunContext) -> Result<Model> {
    if run.config.train.objective.has_pairs() {
        curate(player, run)?;
    }
    train::train(player, reference, run)
}

/// Everything before training: captions, images, questions, answers, pairs.
///
/// # Errors
/// What the stage says that failed.
pub fn curate(player: &Model, run: &RunContext) -> Result<()> {
    caption::caption(player, run)?;
    imagine::imagine(player, run)?;
    if run.config.pair.judge == ImageJudge::Itself {
        ask::ask(run)?;
        answer::answer(player, run)?;
    }
    again::altered(player, run)?;
    again::again(player, run)?;
    if let Some(chosen) = pair::pair(run)? {
        run.progress.log(chosen.to_string());
    }
    Ok(())
}
