//! What all stages share: fixed chunks, restart by record id, seeds, and the settings that a result was
//! made under.
//!
//! Records are worked on in chunks whose borders depend on the list alone. A chunk that was cut off is
//! made again as a whole, so the numbers in a batch never depend on where a run was interrupted, and
//! the files of an interrupted run are, byte for byte, those of an undisturbed one.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::mpsc::sync_channel;

use anyhow::{Context, Result, anyhow, bail};
use hermesflow_records::{Fnv1a, IdKey, InitialRecord, Record, RecordId, Store, Table, derive_seed};
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
    /// Makes the results of all records, in their order: what the file or its `.jsonl` has is kept, the rest is made. How
    /// many there are then.
    ///
    /// `load` fetches what a chunk needs, on a thread of its own, one chunk ahead. `work` makes the results of a whole
    /// chunk, and is told which ids have theirs; it may leave out a record that cannot be worked on, which is tried again
    /// the next time.
    ///
    /// # Errors
    /// What `work` says; the results before it are kept.
    pub fn run<R: Record, L: Send>(
        &self,
        records: &Table<InitialRecord>,
        progress: &Progress,
        load: impl Fn(&[InitialRecord]) -> L + Sync,
        mut work: impl FnMut(&[InitialRecord], L, &dyn Fn(&RecordId) -> bool) -> Result<Vec<R>>,
    ) -> Result<usize> {
        let mut store = Store::<R>::open(&self.file)?;
        let keys: Vec<IdKey> = records.keys().collect();
        let is_done = |chunk: &Range<usize>| keys[chunk.clone()].iter().all(|key| store.has(*key));
        let (done, open): (Vec<_>, Vec<_>) = records.chunks(self.chunk).partition(is_done);
        let task = progress.task(self.name, self.unit, records.len(), done.iter().map(Range::len).sum());
        let load = |chunk: Range<usize>| -> Result<_> {
            let records = records.read(chunk)?;
            let loaded = load(&records);
            Ok((records, loaded))
        };
        ahead(open, load, |loaded| {
            let (chunk, loaded) = loaded?;
            let made = work(&chunk, loaded, &|id| store.has(id.key()))?;
            store.append(&made)?;
            task.advance(chunk.len());
            Ok(())
        })?;
        Ok(store.finish(keys.into_iter())?)
    }
}

/// Does `work` on what `load` makes of every item, in order, while a thread of its own does `load` for the next one.
///
/// # Errors
/// The first one of `work`.
pub fn ahead<I: Send, L: Send>(
    items: Vec<I>,
    load: impl Fn(I) -> L + Sync,
    work: impl FnMut(L) -> Result<()>,
) -> Result<()> {
    std::thread::scope(|scope| {
        // Without room: what is loaded waits with its thread until it is wanted.
        let (sender, loaded) = sync_channel(0);
        let load = &load;
        scope.spawn(move || items.into_iter().try_for_each(|item| sender.send(load(item))));
        loaded.into_iter().try_for_each(work)
    })
}

/// Lets `make` hand on what it makes to `store`, which takes it on a thread of its own while the next is made.
///
/// # Errors
/// The first one of either.
pub fn behind<T: Send>(
    store: impl FnMut(T) -> Result<()> + Send,
    make: impl FnOnce(&dyn Fn(T) -> Result<()>) -> Result<()>,
) -> Result<()> {
    std::thread::scope(|scope| {
        let (sender, made) = sync_channel(0);
        let stored = scope.spawn(move || made.into_iter().try_for_each(store));
        // A store that failed has hung up, and says why below.
        let hand_on = |made| sender.send(made).map_err(|_| anyhow!("nothing more can be stored"));
        let made = make(&hand_on);
        drop(sender);
        match stored.join() {
            Ok(stored) => stored.and(made),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
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
    Fnv1a::of(text.as_bytes())
}

/// The [`text_number`] of what a file holds.
///
/// # Errors
/// Names the file when it cannot be read.
pub fn file_number(path: &Path) -> Result<u64> {
    let mut number = Fnv1a::default();
    let copied = std::fs::File::open(path).and_then(|mut file| std::io::copy(&mut file, &mut number));
    copied.with_context(|| path.display().to_string())?;
    Ok(number.number())
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn work_gets_what_was_loaded_for_it_in_order_and_stops_at_its_first_error() {
        let mut seen = Vec::new();
        ahead(
            (0..20).collect(),
            |item| item * item,
            |square| {
                seen.push(square);
                Ok(())
            },
        )
        .unwrap();
        assert_eq!(seen, (0..20).map(|item| item * item).collect::<Vec<_>>());

        let mut last = 0;
        let work = |item| {
            last = item;
            if item == 7 { Err(anyhow!("seven")) } else { Ok(()) }
        };
        assert_eq!(ahead((0..1000).collect(), |item| item, work).unwrap_err().to_string(), "seven");
        assert_eq!(last, 7);
    }

    #[test]
    fn all_is_stored_in_order_and_either_side_can_fail() {
        let mut stored = Vec::new();
        let store = |item| {
            stored.push(item);
            Ok(())
        };
        behind(store, |hand_on| (0..20).try_for_each(hand_on)).unwrap();
        assert_eq!(stored, (0..20).collect::<Vec<_>>());

        let full = |item| if item == 3 { Err(anyhow!("disk full")) } else { Ok(()) };
        assert_eq!(behind(full, |hand_on| (0..20).try_for_each(hand_on)).unwrap_err().to_string(), "disk full");
        let mut stored = 0;
        let store = |_: i32| {
            stored += 1;
            Ok(())
        };
        let make = |hand_on: &dyn Fn(i32) -> Result<()>| hand_on(1).and(Err(anyhow!("no more ideas")));
        assert_eq!(behind(store, make).unwrap_err().to_string(), "no more ideas");
        assert_eq!(stored, 1);
    }
}
