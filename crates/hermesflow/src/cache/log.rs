//! The file of a cache: it only grows, and its bytes do not depend on how many processes filled it.
//!
//! One process appends to the file itself. Several processes append to files of their own beside it, every entry with the
//! number of the piece of work that it came from; at the end of a stage the writer appends those entries to the cache in
//! the order of the pieces, as one process would have. Until then all that is there is known.

use std::path::Path;

use anyhow::Result;
use hermesflow_records::{AppendLog, of_process, of_processes};

use crate::run::sharing::Sharing;

/// Hexadecimal digits of a piece's number before a line, and a space.
const BEFORE_LINE: usize = 17;
/// Bytes of a piece's number before an entry of a fixed size.
const BEFORE_ENTRY: usize = 8;

/// The file of a cache and those of processes beside it.
#[derive(Debug)]
pub struct CacheLog {
    sharing: Sharing,
    /// Bytes of an entry; none where an entry is a line.
    size: Option<usize>,
    /// The cache's own file first, then those of processes.
    logs: Vec<AppendLog>,
    /// Which of them this process appends to.
    own: usize,
}

/// Where an entry is.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    log: u32,
    offset: u64,
}

impl CacheLog {
    /// Opens a cache of lines, or of entries of `size` bytes; it need not be there yet.
    ///
    /// # Errors
    /// When a file of it is there and cannot be read.
    pub fn open(path: &Path, size: Option<usize>, sharing: &Sharing) -> Result<Self> {
        let before = size.map(|size| size + BEFORE_ENTRY);
        let mut logs = vec![log(path, size)?];
        for other in of_processes(path)? {
            logs.push(log(&other, before)?);
        }
        let mut own = 0;
        // What another run of several processes left is put in order with what follows.
        if !sharing.group.is_alone() || logs.len() > 1 {
            let path = of_process(path, sharing.group.rank());
            own = logs.iter().position(|log| log.path() == path).unwrap_or(logs.len());
            if own == logs.len() {
                logs.push(log(&path, before)?);
            }
        }
        Ok(Self { sharing: sharing.clone(), size, logs, own })
    }

    /// Bytes before an entry in one of the files.
    fn before(&self, log: usize) -> usize {
        match (log, self.size) {
            (0, _) => 0,
            (_, None) => BEFORE_LINE,
            (_, Some(_)) => BEFORE_ENTRY,
        }
    }

    /// Shows every entry with its place, a line without its `\n`.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn each(&mut self, mut visit: impl FnMut(Place, &[u8])) -> Result<()> {
        for number in 0..self.logs.len() {
            let before = self.before(number);
            self.logs[number].each(|offset, entry| {
                if let Some(entry) = entry.get(before..) {
                    visit(Place { log: number as u32, offset: offset + before as u64 }, entry);
                }
            })?;
        }
        Ok(())
    }

    /// The file of an entry, and the offset of the entry in it, until [`Self::settle`].
    pub fn locate(&self, place: Place) -> (&Path, u64) {
        (self.logs[place.log as usize].path(), place.offset)
    }

    /// Whether this process appends to a file beside the cache, whose entries [`Self::settle`] moves.
    pub fn is_scattered(&self) -> bool {
        self.own != 0
    }

    /// `length` bytes of an entry.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn read(&mut self, place: Place, length: usize) -> Result<Vec<u8>> {
        Ok(self.logs[place.log as usize].read(place.offset, length)?)
    }

    /// Appends entries in one write, lines without their `\n`; their places.
    ///
    /// # Errors
    /// When the file cannot be written; none of them is kept then.
    pub fn append(&mut self, entries: &[Vec<u8>]) -> Result<Vec<Place>> {
        let (own, before, piece) = (self.own, self.before(self.own), self.sharing.piece());
        let (mut bytes, mut starts) = (Vec::new(), Vec::with_capacity(entries.len()));
        for entry in entries {
            match (own, self.size) {
                (0, _) => {}
                (_, None) => bytes.extend(format!("{piece:016x} ").into_bytes()),
                (_, Some(_)) => bytes.extend(piece.to_le_bytes()),
            }
            starts.push(bytes.len() as u64);
            bytes.extend_from_slice(entry);
            if self.size.is_none() {
                bytes.push(b'\n');
            }
        }
        debug_assert!(starts.first().is_none_or(|start| *start == before as u64));
        let offset = self.logs[own].append(&bytes)?;
        Ok(starts.into_iter().map(|start| Place { log: own as u32, offset: offset + start }).collect())
    }

    /// At the end of a stage: the writer appends to the cache, in the order of the pieces, what the files of processes
    /// hold of `is_new`, and removes them. Nothing may be appended afterwards. What a run that was killed in a later stage
    /// left stays as it is, to be put in order with the rest of that stage.
    ///
    /// # Errors
    /// When a file cannot be read, written or removed, or another process is gone.
    pub fn settle(&mut self, is_new: impl FnMut(&[u8]) -> bool) -> Result<()> {
        let group = self.sharing.group.clone();
        group.meet()?;
        group.once(|| self.put_in_order(is_new))?;
        Ok(())
    }

    fn put_in_order(&mut self, mut is_new: impl FnMut(&[u8]) -> bool) -> Result<()> {
        let path = self.logs[0].path().to_owned();
        let others = of_processes(&path)?;
        if others.is_empty() {
            return Ok(());
        }
        let mut cache = log(&path, self.size)?;
        cache.each(|_, entry| {
            is_new(entry); // notes what is there already
        })?;
        let mut left: Vec<(u64, Vec<u8>)> = Vec::new();
        for other in &others {
            log(other, self.size.map(|size| size + BEFORE_ENTRY))?.each(|_, entry| match self.size {
                None => {
                    let (piece, line) = entry.split_at(entry.len().min(BEFORE_LINE));
                    let piece = std::str::from_utf8(piece)
                        .ok()
                        .and_then(|piece| u64::from_str_radix(piece.trim_end(), 16).ok());
                    left.extend(piece.map(|piece| (piece, [line, b"\n"].concat())));
                }
                Some(_) => {
                    if let Some((piece, entry)) = entry.split_first_chunk::<BEFORE_ENTRY>() {
                        left.push((u64::from_le_bytes(*piece), entry.to_vec()));
                    }
                }
            })?;
        }
        if left.iter().any(|(piece, _)| self.sharing.is_later(*piece)) {
            return Ok(());
        }
        left.sort_by_key(|(piece, _)| *piece); // stable: a piece is of one process, in the order in which it went on
        let kept = left
            .iter()
            .filter(|(_, entry)| is_new(entry.strip_suffix(b"\n").filter(|_| self.size.is_none()).unwrap_or(entry)));
        let bytes: Vec<u8> = kept.flat_map(|(_, entry)| entry.iter().copied()).collect();
        if !bytes.is_empty() {
            cache.append(&bytes)?;
        }
        for other in &others {
            std::fs::remove_file(other)?;
        }
        Ok(())
    }
}

fn log(path: &Path, size: Option<usize>) -> Result<AppendLog> {
    Ok(match size {
        None => AppendLog::of_lines(path)?,
        Some(size) => AppendLog::of_size(path, size)?,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::run::sharing::Turn;
    use hermesflow_group::Group;
    use std::collections::HashSet;
    use std::fs;

    /// What a cache is to hold of a piece: an entry of its own, and one that its neighbour has, too.
    fn entries(piece: usize) -> Vec<Vec<u8>> {
        vec![format!("own {piece:02}").into_bytes(), format!("two {:02}", piece / 2).into_bytes()]
    }

    /// Works on pieces in a group of threads until `until` of them are done; settles if all are.
    fn work(path: &Path, size: Option<usize>, processes: usize, until: usize) {
        const PIECES: usize = 9;
        std::thread::scope(|scope| {
            for group in Group::of_threads(processes) {
                scope.spawn(move || {
                    let sharing = Sharing::of(group.clone());
                    let mut log = CacheLog::open(path, size, &sharing).unwrap();
                    let mut known = HashSet::new();
                    log.each(|_, entry| known.extend([entry.to_vec()])).unwrap();
                    group.meet().unwrap();
                    for piece in (0..until).filter(|piece| piece % processes == group.rank()) {
                        sharing.begin(piece);
                        let new: Vec<_> =
                            entries(piece).into_iter().filter(|entry| known.insert(entry.clone())).collect();
                        for (entry, place) in new.iter().zip(log.append(&new).unwrap()) {
                            assert_eq!(&log.read(place, entry.len()).unwrap(), entry);
                        }
                    }
                    if until == PIECES {
                        let mut seen = HashSet::new();
                        log.settle(|entry| seen.insert(entry.to_vec())).unwrap();
                    }
                });
            }
        });
    }

    #[test]
    fn the_bytes_of_a_cache_do_not_depend_on_who_filled_it() {
        for size in [None, Some(6)] {
            let folder = tempfile::tempdir().unwrap();
            let bytes = |name: &str, course: &[(usize, usize)]| {
                let path = folder.path().join(name).join("cache.bin");
                for (processes, until) in course {
                    work(&path, size, *processes, *until);
                }
                assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "no other file is left");
                fs::read(&path).unwrap()
            };
            let one = bytes("one", &[(1, 9)]);
            assert_eq!(one.len(), 14 * if size.is_some() { 6 } else { 7 });
            assert_eq!(bytes("four", &[(4, 9)]), one);
            assert_eq!(bytes("killed", &[(3, 5), (1, 6), (2, 7), (1, 9)]), one);
            assert_eq!(bytes("begun alone", &[(1, 3), (4, 8), (4, 9)]), one);
        }
    }

    #[test]
    fn what_a_later_stage_left_waits_for_the_rest_of_that_stage() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cache.jsonl");
        let other = Sharing::of(Group::of_threads(2).remove(0));
        other.enter(1, Turn::Answer);
        other.begin(3);
        let mut log = CacheLog::open(&path, None, &other).unwrap();
        log.append(&[b"3".to_vec()]).unwrap();
        // Killed; the whole run is continued by one process, from its first stage on.
        let alone = Sharing::default();
        let settle = |turn: Turn, new: &[(usize, &str)]| {
            alone.enter(1, turn);
            let mut log = CacheLog::open(&path, None, &alone).unwrap();
            for (piece, entry) in new {
                alone.begin(*piece);
                log.append(&[entry.as_bytes().to_vec()]).unwrap();
            }
            log.settle(|_| true).unwrap();
            fs::read_to_string(&path).unwrap_or_default()
        };
        assert_eq!(settle(Turn::Caption, &[]), "");
        assert_eq!(settle(Turn::Caption, &[(9, "caption")]), "", "new ones of an earlier stage wait, too");
        assert_eq!(settle(Turn::Answer, &[(0, "0"), (4, "4")]), "caption\n0\n3\n4\n");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn torn_entries_are_no_entries() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cache.jsonl");
        fs::write(&path, "{}\n{\"to").unwrap();
        fs::write(of_process(&path, 1), "0000000000000001 [1]\nshort\n0000000000000000 [0]\n00000000000").unwrap();
        let mut log = CacheLog::open(&path, None, &Sharing::default()).unwrap();
        let mut seen = Vec::new();
        log.each(|_, entry| seen.push(String::from_utf8_lossy(entry).into_owned())).unwrap();
        assert_eq!(seen, ["{}", "[1]", "[0]"]);
        log.settle(|entry| entry != b"{}").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "{}\n[0]\n[1]\n");
    }
}
