//! What all stages share: fixed chunks, restart by record id, seeds, and what their results were made from.
//!
//! Records are worked on in chunks whose borders depend on the list alone. A chunk that was cut off is
//! made again as a whole, so the numbers in a batch never depend on where a run was interrupted, and
//! the files of an interrupted run are, byte for byte, those of an undisturbed one. Where several processes do a run, chunks
//! go to whoever is free, each process appends to logs of its own, and the writer puts everything in order at the end.

use std::collections::HashSet;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::mpsc::sync_channel;

use anyhow::{Context, Result, anyhow};
use hermesflow_group::Group;
use hermesflow_records::{Fnv1a, IdKey, InitialRecord, Record, RecordId, Store, Table, derive_seed, of_processes};
use rayon::prelude::*;

use super::context::RunContext;
use super::sharing::Sharing;
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
    /// Who does it.
    pub sharing: Sharing,
}

/// What is left to do of a stage.
#[derive(Debug, Default)]
struct Open {
    /// Chunks, by their numbers.
    chunks: Vec<usize>,
    /// Records whose results are of something else than what is there now, by their places in the list.
    stale: Vec<usize>,
    /// Records that need nothing.
    done: usize,
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
        let group = &self.sharing.group;
        let keys: Vec<IdKey> = records.keys().collect();
        let chunks: Vec<Range<usize>> = records.chunks(self.chunk).collect();
        let (mut store, mut ledger, open) = self.begin(records, &keys, &chunks, &made_from)?;
        let task = progress.task(self.name, self.unit, records.len(), open.done);
        let load = |number: Result<usize>| -> Result<_> {
            let number = number?;
            let records = records.read(chunks[number].clone())?;
            let made_from: Vec<Option<String>> = records.par_iter().map(&made_from).collect();
            let loaded = load(&records);
            Ok((number, records, made_from, loaded))
        };
        let report = |count| task.advance(count);
        group.deal(open.chunks.len(), report, |deal| {
            let numbers = std::iter::from_fn(|| Some(deal.next().transpose()?.map_err(Into::into)));
            let numbers = numbers.map(|at: Result<usize>| at.map(|at| open.chunks[at]));
            prefetch(numbers, load, |loaded| {
                let (number, chunk, made_from, loaded) = loaded?;
                self.sharing.begin(number);
                let made = work(&chunk, loaded, &|id| store.has(id.key()))?;
                store.append(&made)?;
                let noted =
                    chunk.iter().zip(made_from).filter(|(record, _)| made.iter().any(|one| *one.id() == record.id));
                ledger.note(noted.filter_map(|(record, made_from)| Some((&record.id, made_from?))))?;
                deal.done(chunk.len());
                Ok(())
            })
        })?;
        let count = group.once(|| {
            store.collect()?;
            ledger.collect()?;
            let there: HashSet<IdKey> = keys.iter().copied().filter(|key| store.has(*key)).collect();
            let count = store.finish(keys.into_iter())?;
            ledger.finish(records, |key| there.contains(&key))?;
            Ok::<_, anyhow::Error>(count)
        })?;
        let counts = group.tell_numbers(count.as_ref().map(std::slice::from_ref))?;
        Ok(counts.first().copied().unwrap_or_default())
    }

    /// Opens what is there, and finds what is left to do: the writer looks, and tells the others.
    fn begin<R: Record>(
        &self,
        records: &Table<InitialRecord>,
        keys: &[IdKey],
        chunks: &[Range<usize>],
        made_from: &(impl Fn(&InitialRecord) -> Option<String> + Sync),
    ) -> Result<(Store<R>, Ledger, Open)> {
        let group = &self.sharing.group;
        let found = group.once(|| {
            let mut store = Store::<R>::open(&self.file)?;
            let mut ledger = Ledger::open(&self.ledger)?;
            let mut open = Open::default();
            for (number, chunk) in chunks.iter().enumerate() {
                if keys[chunk.clone()].iter().any(|key| store.has(*key)) {
                    let there = records.read(chunk.clone())?;
                    let stale = stale(&ledger, there.iter().filter(|one| store.has(one.id.key())).collect(), made_from);
                    ledger.strike(stale.iter().map(|one| &one.id))?;
                    let stale: HashSet<IdKey> = stale.iter().map(|one| one.id.key()).collect();
                    stale.iter().for_each(|key| store.forget(*key));
                    open.stale.extend(chunk.clone().filter(|at| stale.contains(&keys[*at])));
                }
                match keys[chunk.clone()].iter().all(|key| store.has(*key)) {
                    true => open.done += chunk.len(),
                    false => open.chunks.push(number),
                }
            }
            Ok::<_, anyhow::Error>((store, ledger, open))
        })?;
        if group.is_alone() {
            return found.context("nothing was opened");
        }
        let (stale, done) =
            found.as_ref().map_or((None, None), |(_, _, open)| (Some(&open.stale[..]), Some([open.done])));
        let (stale, done) = (group.tell_numbers(stale)?, group.tell_numbers(done.as_ref().map(|done| &done[..]))?);
        let chunks = group.tell_numbers(found.as_ref().map(|(_, _, open)| &open.chunks[..]))?;
        let (mut store, mut ledger, open) = match found {
            Some(found) => found,
            None => {
                let mut store = Store::<R>::open(&self.file)?;
                stale.iter().for_each(|at| store.forget(keys[*at]));
                let done = done.first().copied().unwrap_or_default();
                (store, Ledger::open(&self.ledger)?, Open { chunks, stale, done })
            }
        };
        // No one appends before all have read.
        group.meet()?;
        store.append_as(group.rank())?;
        ledger.append_as(group.rank())?;
        Ok((store, ledger, open))
    }
}

/// Opens results that are written beside those of a stage, for all processes of a group: each appends to a log of its own, and
/// the writer collects ([`Store::collect`]) what they appended when all are done.
///
/// # Errors
/// When a file cannot be read, or another process is gone.
pub fn open_together<R: Record>(file: &Path, group: &Group) -> Result<Store<R>> {
    // The writer takes over first what an earlier run left.
    let mut store = group.first(|| Ok::<_, anyhow::Error>(Store::open(file)?))?;
    if !group.is_alone() {
        // No one appends before all have read.
        group.meet()?;
        store.append_as(group.rank())?;
    }
    Ok(store)
}

/// Work whose results all go to caches, chunk by chunk, shared out to all processes.
///
/// # Errors
/// What `work` says, or that another process is gone.
pub fn share_out(
    name: &str,
    unit: &'static str,
    chunks: &[Range<usize>],
    run: &RunContext,
    mut work: impl FnMut(Range<usize>) -> Result<()>,
) -> Result<()> {
    let task = run.progress.task(name, unit, chunks.last().map_or(0, |chunk| chunk.end), 0);
    run.group().deal(
        chunks.len(),
        |count| task.advance(count),
        |deal| {
            while let Some(number) = deal.next()? {
                run.sharing.begin(number);
                work(chunks[number].clone())?;
                deal.done(chunks[number].len());
            }
            Ok(())
        },
    )
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
pub fn prefetch<I, L: Send>(
    items: impl IntoIterator<Item = I, IntoIter: Send> + Send,
    load: impl Fn(I) -> L + Sync,
    work: impl FnMut(L) -> Result<()>,
) -> Result<()> {
    std::thread::scope(|scope| {
        // Without room: what is loaded waits with its thread until it is wanted.
        let (sender, loaded) = sync_channel(0);
        let load = &load;
        scope.spawn(move || {
            for item in items {
                if sender.send(load(item)).is_err() {
                    return; // the work has ended with an error
                }
            }
        });
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
pub fn ensure_same_settings(run: &RunContext, stage: &str, files: Vec<PathBuf>, origin: &Origin) -> Result<()> {
    let what = format!("the results of `{stage}`");
    let results = Results { what: &what, note: run.layout.stamp(stage), files, elsewhere: "another data.root" };
    run.group().first(|| results.ensure_same_settings(origin))
}

/// The files of a stage's results: the final one, and those that grow while the stage works.
///
/// # Errors
/// Names the folder that cannot be read.
pub fn store_files(file: &Path) -> Result<Vec<PathBuf>> {
    let working = file.with_extension("jsonl");
    let of_processes = of_processes(&working)?;
    Ok([file.to_owned(), working].into_iter().chain(of_processes).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn work_gets_what_was_loaded_for_it_in_order_and_stops_at_its_first_error() {
        let mut seen = Vec::new();
        prefetch(
            0..20,
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
        assert_eq!(prefetch(0..1000, |item| item, work).unwrap_err().to_string(), "seven");
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
