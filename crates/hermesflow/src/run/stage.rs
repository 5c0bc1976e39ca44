//! What all stages share: fixed chunks, restart by record id, seeds, and what their results were made from.
//!
//! Records are worked on in chunks whose borders depend on the list alone. A chunk that was cut off is
//! made again as a whole, so the numbers in a batch never depend on where a run was interrupted, and
//! the files of an interrupted run are, byte for byte, those of an undisturbed one.

use std::collections::HashSet;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::mpsc::sync_channel;

use anyhow::{Result, anyhow};
use hermesflow_records::{Fnv1a, IdKey, InitialRecord, Record, RecordId, Store, Table, derive_seed};
use rayon::prelude::*;

use super::context::RunContext;
use super::layout::RunLayout;
use crate::made::{Ledger, Origin, Results};
use crate::progress::Progress;

/// A stage whose results are records in a file.
#[derive(Debug, Clone)]
pub struct Stage {
    /// The name of the stage in the progress.
    pub name: &'static str,
    /// What the progress counts, such as `images`.
    pub unit: &'static str,
    /// The file of the stage's results.
    pub file: PathBuf,
    /// The file that notes what each result was made from.
    pub ledger: PathBuf,
    /// Records per chunk.
    pub chunk: usize,
}

impl Stage {
    /// Makes the results of all records, in their order: what the file or its `.jsonl` has is kept if it was made from
    /// what is there now, the rest is made. How many there are then.
    ///
    /// `made_from` is a digest of what decides a record's result alone; none where that cannot be read, and what is there
    /// is kept. `load` fetches what a chunk needs, on a thread of its own, one chunk ahead. `work` makes the results of a
    /// whole chunk, and is told which ids have theirs; it may leave out a record that cannot be worked on, which is tried
    /// again the next time.
    ///
    /// # Errors
    /// What `work` says; the results before it are kept.
    pub fn run<R: Record, L: Send>(
        &self,
        records: &Table<InitialRecord>,
        progress: &Progress,
        made_from: impl Fn(&InitialRecord) -> Option<String> + Sync,
        load: impl Fn(&[InitialRecord]) -> L + Sync,
        mut work: impl FnMut(&[InitialRecord], L, &dyn Fn(&RecordId) -> bool) -> Result<Vec<R>>,
    ) -> Result<usize> {
        let mut store = Store::<R>::open(&self.file)?;
        let mut ledger = Ledger::open(&self.ledger)?;
        let keys: Vec<IdKey> = records.keys().collect();
        let (mut open, mut done) = (Vec::new(), 0);
        for chunk in records.chunks(self.chunk) {
            if keys[chunk.clone()].iter().any(|key| store.has(*key)) {
                let there = records.read(chunk.clone())?;
                let stale = stale(&ledger, there.iter().filter(|one| store.has(one.id.key())).collect(), &made_from);
                ledger.strike(stale.iter().map(|one| &one.id))?;
                stale.iter().for_each(|one| store.forget(one.id.key()));
            }
            match keys[chunk.clone()].iter().all(|key| store.has(*key)) {
                true => done += chunk.len(),
                false => open.push(chunk),
            }
        }
        let task = progress.task(self.name, self.unit, records.len(), done);
        let load = |chunk: Range<usize>| -> Result<_> {
            let records = records.read(chunk)?;
            let made_from: Vec<Option<String>> = records.par_iter().map(&made_from).collect();
            let loaded = load(&records);
            Ok((records, made_from, loaded))
        };
        prefetch(open, load, |loaded| {
            let (chunk, made_from, loaded) = loaded?;
            let made = work(&chunk, loaded, &|id| store.has(id.key()))?;
            store.append(&made)?;
            let noted = chunk.iter().zip(made_from).filter(|(record, _)| made.iter().any(|one| *one.id() == record.id));
            ledger.note(noted.filter_map(|(record, made_from)| Some((&record.id, made_from?))))?;
            task.advance(chunk.len());
            Ok(())
        })?;
        let there: HashSet<IdKey> = keys.iter().copied().filter(|key| store.has(*key)).collect();
        let count = store.finish(keys.into_iter())?;
        ledger.finish(records, |key| there.contains(&key))?;
        Ok(count)
    }
}

/// Records whose results were made from something else than what is there now, among records that have results.
pub fn stale<'r>(
    ledger: &Ledger,
    records: Vec<&'r InitialRecord>,
    made_from: &(impl Fn(&InitialRecord) -> Option<String> + Sync),
) -> Vec<&'r InitialRecord> {
    let made_from: Vec<Option<String>> = records.par_iter().map(|record| made_from(record)).collect();
    let now = records.into_iter().zip(made_from);
    let unchanged = |record: &InitialRecord, now: &Option<String>| {
        now.as_ref().is_none_or(|now| ledger.was_made_from(&record.id, now))
    };
    now.filter(|(record, now)| !unchanged(record, now)).map(|(record, _)| record).collect()
}

/// Loads items ahead of the work: does `work` on what `load` makes of every item, in order, while another thread does `load`
/// for the next one.
///
/// # Errors
/// The first one of `work`.
pub fn prefetch<I: Send, L: Send>(
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

/// Writes results behind the work: what `make` hands on is taken by `store` on another thread, while the next is made.
///
/// # Errors
/// The first one of either.
pub fn write_behind<T: Send>(
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

/// The seed of a candidate: a function of the run's seed, the stage, the iteration, the record and the candidate's number.
pub fn candidate_seed(run: &RunContext, stage: &str, id: &RecordId, candidate: usize) -> u64 {
    seed(run, stage, &[text_number(id.as_str()), candidate as u64])
}

/// A seed that is a function of the run's seed, the stage, the iteration and `parts`.
pub fn seed(run: &RunContext, stage: &str, parts: &[u64]) -> u64 {
    let first = [text_number(stage), run.layout.iteration() as u64];
    derive_seed(run.config.seed, &[&first, parts].concat())
}

/// A number for a text, the same on every machine (FNV-1a).
pub fn text_number(text: &str) -> u64 {
    Fnv1a::of(text.as_bytes())
}

/// Refuses to mix the results of a stage with those of now when they were made with different settings.
///
/// # Errors
/// Names what differs and what to do.
pub fn ensure_same_settings(layout: &RunLayout, stage: &str, files: Vec<PathBuf>, origin: &Origin) -> Result<()> {
    let what = format!("the results of `{stage}`");
    let note = layout.stamp(stage);
    Results { what: &what, note, files, elsewhere: "another data.root" }.ensure_same_settings(origin)
}

/// The files of a stage's results: the final one, and the one that grows while the stage works.
pub fn store_files(file: &Path) -> Vec<PathBuf> {
    vec![file.to_owned(), file.with_extension("jsonl")]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn work_gets_what_was_loaded_for_it_in_order_and_stops_at_its_first_error() {
        let mut seen = Vec::new();
        prefetch(
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
        assert_eq!(prefetch((0..1000).collect(), |item| item, work).unwrap_err().to_string(), "seven");
        assert_eq!(last, 7);
    }

    #[test]
    fn all_is_stored_in_order_and_either_side_can_fail() {
        let mut stored = Vec::new();
        let store = |item| {
            stored.push(item);
            Ok(())
        };
        write_behind(store, |hand_on| (0..20).try_for_each(hand_on)).unwrap();
        assert_eq!(stored, (0..20).collect::<Vec<_>>());

        let full = |item| if item == 3 { Err(anyhow!("disk full")) } else { Ok(()) };
        assert_eq!(write_behind(full, |hand_on| (0..20).try_for_each(hand_on)).unwrap_err().to_string(), "disk full");
        let mut stored = 0;
        let store = |_: i32| {
            stored += 1;
            Ok(())
        };
        let make = |hand_on: &dyn Fn(i32) -> Result<()>| hand_on(1).and(Err(anyhow!("no more ideas")));
        assert_eq!(write_behind(store, make).unwrap_err().to_string(), "no more ideas");
        assert_eq!(stored, 1);
    }
}
