//! `hermesflow run`: the loop, made of the functions behind the other commands.

use anyhow::{Context, Result, bail};
use hermesflow_models::showo::Showo;

use super::{ConfigArgs, answer, ask, caption, imagine, pair, train};
use crate::config::{ImageJudge, ObjectiveName, Reference, RunConfig};
use crate::judges::Judges;
use crate::layout::RunLayout;
use crate::progress::Progress;
use crate::{before, files, models};

/// The whole loop for N iterations, from one YAML file
///
/// Every iteration captions, imagines, asks, answers, pairs and trains; the trained model plays the next one. The
/// resolved configuration is saved as config.yaml in the run folder, the models under train/model and
/// train_iterN/model. Kill it anywhere and start it again: it continues by record and by checkpoint, and ends with the
/// files of an undisturbed run, byte for byte.
///
/// Example: hermesflow run configs/scenes.yaml iterations=1 train.steps=100 --seed 3
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
    let layout = RunLayout::new(config, 1);
    before::folders(config, &layout)?;
    let text = settled_config(config)?;
    if before::has_records(config) {
        before::check(config, &layout)?;
    }
    files::write_atomically(&layout.config(), text.as_bytes())?;
    if before::has_records(config) {
        Judges::of_run(config, &layout, progress)?.fetch(config)?;
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

/// The resolved configuration as it is saved; refuses to mix two in one run folder.
fn settled_config(config: &RunConfig) -> Result<String> {
    let path = RunLayout::new(config, 1).config();
    let text = config.to_yaml()?;
    if path.is_file() {
        let mut there = RunConfig::load(&path, &[])?;
        // More iterations continue a run; what does not decide a number may change.
        there.iterations = config.iterations;
        (there.train.checkpoint_every, there.train.keep) = (config.train.checkpoint_every, config.train.keep);
        there.train.checkpointing = config.train.checkpointing;
        there.train.optimizer_state = config.train.optimizer_state;
        there.model.expect = config.model.expect;
        if there != *config {
            let there = there.to_yaml()?;
            let differing: Vec<&str> =
                text.lines().filter(|line| !there.lines().any(|other| other == *line)).map(str::trim).collect();
            bail!(
                "{}: this folder holds a run with another configuration (here: {}); restore it, or choose another \
                 `output` and `data.root`",
                path.display(),
                differing.join("; ")
            );
        }
    }
    Ok(text)
}
