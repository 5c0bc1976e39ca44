//! `hermesflow scenes`: a data root of procedural scenes.

use anyhow::{Context, Result};
use hermesflow_records::{ArrayFile, InitialRecord, RecordId, Table, derive_seed};

use super::StageArgs;
use crate::config::{RunConfig, ScenesSettings};
use crate::files;
use crate::layout::RunLayout;
use crate::pictures::save_png;
use crate::progress::Progress;

/// Make a data root of procedural scenes: pictures with captions, in the form of JourneyDB
///
/// Writes images/{id}.png and initial_data.json under data.root: `data.scenes.records` scenes of one split, a pure
/// function of the seed. With `data.fresh` every iteration has its own block of the endless stream.
///
/// Example: hermesflow scenes configs/scenes.yaml data.scenes.records=20 data.root=twenty
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    stage: StageArgs,
}

/// Runs the command.
pub fn run(args: Args) -> Result<()> {
    let (config, layout, progress) = args.stage.open()?;
    let settings = config.data.scenes.context("data.scenes: missing; give data.scenes.records=N")?;
    scenes(settings, &config, &layout, &progress)?;
    say!("{}", layout.initial_data().display())?;
    Ok(())
}

/// The records of an iteration: read where `initial_data.json` exists, else made if the run is one of scenes.
///
/// # Errors
/// When there are none, or the file is broken; the file and the record are named.
pub fn initial_data(config: &RunConfig, layout: &RunLayout, progress: &Progress) -> Result<Table<InitialRecord>> {
    if let Some(settings) = config.data.scenes.filter(|_| !layout.initial_data().is_file()) {
        scenes(settings, config, layout, progress)?;
    }
    files::initial_data(&layout.initial_data())
}

/// Draws the scenes of an iteration and writes their pictures and records.
///
/// # Errors
/// Names the file that cannot be written.
pub fn scenes(settings: ScenesSettings, config: &RunConfig, layout: &RunLayout, progress: &Progress) -> Result<()> {
    let block = if config.data.fresh { layout.iteration() as u64 - 1 } else { 0 };
    let count = settings.records as u64;
    let task = progress.task("scenes", "scenes", settings.records, 0);
    let mut file = ArrayFile::create(&layout.initial_data())?;
    for index in block * count..(block + 1) * count {
        let scene = hermesflow_scenes::scene(settings.split, config.seed, index);
        let id = RecordId::new(format!("{}-{index:06}", settings.split.name()))?;
        let img_path = format!("images/{id}.png");
        save_png(&scene.render(), &layout.data().join(&img_path))?;
        let words = |of: u64| scene.caption(derive_seed(config.seed, &[index, of]));
        file.push(&InitialRecord { id, img_path, prompt: words(1), caption: words(0) })?;
        task.advance(1);
    }
    file.finish().context("cannot write the records")
}
