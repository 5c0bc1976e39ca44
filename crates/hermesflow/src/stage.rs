//! What all stages share: fixed chunks, restart by record id, seeds, and the settings that a result was
//! made under.
//!
//! Records are worked on in chunks whose borders depend on the list alone. A chunk that was cut off is
//! made again as a whole, so the numbers in a batch never depend on where a run was interrupted, and
//! the files of an interrupted run are, byte for byte, those of an undisturbed one.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use hermesflow_records::{InitialRecord, RecordId, derive_seed};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::config::RunConfig;
use crate::files;
use crate::layout::RunLayout;
use crate::progress::Progress;

/// A stage whose results are records in a file.
#[derive(Debug, Clone)]
pub struct Stage {
    /// Its name in the progress.
    pub name: &'static str,
    /// What its progress counts.
    pub unit: &'static str,
    /// The file of its results.
    pub file: PathBuf,
    /// Records per chunk.
    pub chunk: usize,
}

impl Stage {
    /// Results of all records, in their order: what the file or its `.jsonl` has is kept, the rest is made.
    ///
    /// `work` makes the results of a whole chunk, and is told which ids have theirs; it may leave out a record that
    /// cannot be worked on, which is tried again the next time.
    ///
    /// # Errors
    /// What `work` says; the results before it are kept.
    pub fn run<R>(
        &self,
        records: &[InitialRecord],
        progress: &Progress,
        mut work: impl FnMut(&[InitialRecord], &dyn Fn(&RecordId) -> bool) -> Result<Vec<R>>,
    ) -> Result<Vec<R>>
    where
        R: Serialize + DeserializeOwned + Clone + hermesflow_records::Identified,
    {
        let mut store = hermesflow_records::Store::<R>::open(&self.file)?;
        let is_done = |store: &hermesflow_records::Store<R>, chunk: &[InitialRecord]| {
            chunk.iter().all(|record| store.has(&record.id))
        };
        let done = records.chunks(self.chunk).filter(|chunk| is_done(&store, chunk)).map(<[_]>::len).sum();
        let task = progress.task(self.name, self.unit, records.len(), done);
        for chunk in records.chunks(self.chunk) {
            if is_done(&store, chunk) {
                continue;
            }
            let made = work(chunk, &|id| store.has(id))?;
            store.append(made)?;
            task.advance(chunk.len());
        }
        Ok(store.finish(records.iter().map(|record| &record.id))?)
    }
}

/// The number of a stage, iteration, record and candidate.
pub fn candidate_seed(config: &RunConfig, layout: &RunLayout, stage: &str, id: &RecordId, candidate: usize) -> u64 {
    seed(config, layout, stage, &[text_number(id.as_str()), candidate as u64])
}

/// The number of a stage, iteration and whatever else.
pub fn seed(config: &RunConfig, layout: &RunLayout, stage: &str, parts: &[u64]) -> u64 {
    let first = [text_number(stage), layout.iteration() as u64];
    derive_seed(config.seed, &[&first, parts].concat())
}

/// A number for a text that is the same everywhere (FNV-1a).
pub fn text_number(text: &str) -> u64 {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    text.bytes().fold(0xcbf2_9ce4_8422_2325, step)
}

/// Refuses to mix results of different settings in one place, and notes the settings of the first ones.
///
/// Beside `settings` the seed, the model and the records decide every stage's results.
///
/// # Errors
/// Names the settings that differ and what to do.
pub fn settled(layout: &RunLayout, stage: &str, config: &RunConfig, settings: &Value) -> Result<()> {
    let data = json!({ "scenes": config.data.scenes, "chunk": config.data.chunk });
    let mut wanted = json!({ "seed": config.seed, "model": config.model, "data": data });
    wanted["model"].as_object_mut().and_then(|model| model.remove("expect")); // it decides no number
    for (key, value) in settings.as_object().into_iter().flatten() {
        wanted[key] = value.clone();
    }
    let path = layout.stamp(stage);
    let Ok(text) = std::fs::read_to_string(&path) else {
        return files::write_atomically(&path, (serde_json::to_string_pretty(&wanted)? + "\n").as_bytes());
    };
    let there: Value = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
    let mut differing = Vec::new();
    compare("", &there, &wanted, &mut differing);
    if differing.is_empty() {
        return Ok(());
    }
    bail!(
        "the results of `{stage}` that are there were made under other settings ({}); restore the settings, choose \
         another data.root and output, or remove those results together with {}",
        differing.join("; "),
        path.display()
    )
}

/// The dotted keys on which two settings differ.
fn compare(key: &str, there: &Value, here: &Value, differing: &mut Vec<String>) {
    match (there, here) {
        (Value::Object(_), Value::Object(here)) => {
            for (name, value) in here {
                let inner = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
                compare(&inner, there.get(name).unwrap_or(&Value::Null), value, differing);
            }
        }
        (there, here) if there != here => differing.push(format!("{key}: there {there}, here {here}")),
        _ => {}
    }
}
