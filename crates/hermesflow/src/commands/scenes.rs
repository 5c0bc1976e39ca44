//! `hermesflow scenes`: a data root of procedural scenes.

use anyhow::{Context, Result, ensure};
use hermesflow_records::{InitialRecord, RecordId, Table, derive_seed};
use serde_json::json;

use super::args::stage_command;
use crate::config::{RunConfig, ScenesSettings};
use crate::files;
use crate::files::lock::Lock;
use crate::made::{Note, Origin, WholeFile};
use crate::run::context::RunContext;
use crate::run::layout::RunLayout;
use crate::run::pictures::png;

stage_command! {
    /// Make a data root of procedural scenes: pictures with captions, in the form of JourneyDB
    ///
    /// Writes images/{id}.png and initial_data.json under data.root: `data.scenes.records` scenes of one split, a pure
    /// function of the seed. With `data.fresh` every iteration has its own block of the endless stream.
    ///
    /// Example: hermesflow scenes scenes data.scenes.records=20 data.root=twenty
    "scenes", |run| {
        let settings = run.config.data.scenes.context("data.scenes: missing; give data.scenes.records=N")?;
        scenes(settings, run)?;
        Ok(run.layout.initial_data())
    }
}

/// The records of an iteration: read where `initial_data.json` exists, else made if the run is one of scenes. Records
/// that were drawn before, of which there are to be more now, are added to.
///
/// # Errors
/// When there are none, the file is broken, or the records that are there were drawn under other settings; the file and
/// the record are named.
pub fn initial_data(run: &RunContext) -> Result<Table<InitialRecord>> {
    run.group().first(|| drawn_or_read(run))
}

fn drawn_or_read(run: &RunContext) -> Result<Table<InitialRecord>> {
    if let Some(settings) = run.config.data.scenes {
        let output = output(&run.layout);
        let drawn_otherwise = || {
            let drawn = output.noted().map(|note| note.origin);
            Ok::<_, anyhow::Error>(output.is_ours()? && drawn != Some(origin(settings, &run.config)))
        };
        if !output.path.is_file() || drawn_otherwise()? {
            let _lock = Lock::take([run.layout.lock("scenes")])?;
            scenes(settings, run)?;
        }
    }
    files::initial_data(&run.layout.initial_data())
}

fn output(layout: &RunLayout) -> WholeFile {
    WholeFile {
        path: layout.initial_data(),
        note: layout.scenes_note(),
        remedy: "choose another data.root, or move it away",
    }
}

/// What decides the scenes.
fn origin(settings: ScenesSettings, config: &RunConfig) -> Origin {
    Origin::of(json!({ "seed": config.seed, "data": { "scenes": settings, "fresh": config.data.fresh } }))
}

/// Draws the scenes of an iteration and writes their pictures and records. Pictures that are there already, of records
/// that are, stay as they are.
///
/// # Errors
/// When records or pictures are there that were not drawn here, or were drawn under other settings; names the file that
/// cannot be written.
pub fn scenes(settings: ScenesSettings, run: &RunContext) -> Result<()> {
    let (output, origin) = (output(&run.layout), origin(settings, &run.config));
    let (before, there) = (output.noted(), output.path.exists());
    let mut file = output.begin()?;
    if let Some(before) = before.as_ref().filter(|_| there) {
        let differing = origin.differences(&before.origin);
        ensure!(
            differing.is_empty() || is_more_of(&before.origin, settings, &run.config),
            "{}: its records were drawn with different settings ({}); choose another data.root, or remove it",
            output.path.display(),
            differing.join("; ")
        );
    }
    // Noted before anything is drawn: killed meanwhile, the pictures are known to be this program's.
    let written = before.clone().unwrap_or_default().written;
    let noted = if there { before.clone().unwrap_or_default().origin } else { origin.clone() };
    output.keep(&Note { origin: noted, written })?;
    let block = if run.config.data.fresh { run.layout.iteration() as u64 - 1 } else { 0 };
    let indices = |count: u64| block * count..(block + 1) * count;
    // Pictures under these numbers are this program's own; others may be anyone's.
    let own =
        before.map(|note| note.origin).filter(|before| before.setting("/data/scenes/split") == json!(settings.split));
    let own = indices(own.and_then(|before| before.setting("/data/scenes/records").as_u64()).unwrap_or_default());
    let task = run.progress.task("scenes", "scenes", settings.records, 0);
    for index in indices(settings.records as u64) {
        let scene = hermesflow_scenes::scene(settings.split, run.config.seed, index);
        let id = RecordId::new(format!("{}-{index:06}", settings.split.name()))?;
        let img_path = format!("images/{id}.png");
        let picture = run.layout.data().join(&img_path);
        if !(there && own.contains(&index) && picture.exists()) {
            let drawn = png(&scene.render()).with_context(|| picture.display().to_string())?;
            ensure!(
                own.contains(&index) || !picture.exists() || std::fs::read(&picture).is_ok_and(|bytes| bytes == drawn),
                "{}: already exists, and was not drawn by this run; choose another data.root, or move it away",
                picture.display()
            );
            files::write_atomically(&picture, &drawn)?;
        }
        let words = |of: u64| scene.caption(derive_seed(run.config.seed, &[index, of]));
        file.push(&InitialRecord { id, img_path, prompt: words(1), caption: words(0) })?;
        task.advance(1);
    }
    output.publish(file, origin)
}

/// Whether these scenes begin with those that were drawn before.
fn is_more_of(before: &Origin, settings: ScenesSettings, config: &RunConfig) -> bool {
    let records = before.setting("/data/scenes/records").as_u64().unwrap_or_default() as usize;
    let same = origin(ScenesSettings { records, ..settings }, config) == *before;
    same && !config.data.fresh && records < settings.records
}
