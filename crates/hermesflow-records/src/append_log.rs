//! Files that only grow, and survive a kill at any byte: what a stage appends while it works, caches, training metrics.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::whole::make_parent;
use crate::{Error, Result};

/// A file of entries, each a line or a fixed number of bytes, which are only ever appended.
///
/// A kill can leave part of an entry at the end of the file (a torn tail). That part is never read, and it is removed
/// before the next entry is appended, so that a file that was continued after a kill has the bytes of one that never was
/// interrupted. Entries before it are never lost.
///
/// Opening and reading change nothing on the disk; the file and its folder are made by the first append.
///
/// Where several processes work on one file, each appends to a log of its own beside it ([`of_process`]), and one of them
/// takes these over when none is appended to ([`AppendLog::take_over`]).
#[derive(Debug)]
pub struct AppendLog {
    path: PathBuf,
    /// Bytes of an entry; none where an entry is a line.
    size: Option<u64>,
    /// Bytes of whole entries when the file was opened or cut.
    whole: u64,
    reading: Option<File>,
    writing: Option<File>,
}

impl AppendLog {
    /// Opens a file in which every entry is a line that ends with `\n`; it need not exist.
    ///
    /// # Errors
    /// If the file exists and cannot be read; it is named.
    pub fn of_lines(path: &Path) -> Result<Self> {
        Self::open(path, None)
    }

    /// Opens a file of which every entry has `size` bytes, at least 1; it need not exist.
    ///
    /// # Errors
    /// Names the file when it exists and cannot be read.
    pub fn of_size(path: &Path, size: usize) -> Result<Self> {
        Self::open(path, Some(size.max(1) as u64))
    }

    fn open(path: &Path, size: Option<u64>) -> Result<Self> {
        let reading = match File::open(path) {
            Ok(file) => Some(file),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(Error::io(path)(error)),
        };
        let mut log = Self { path: path.into(), size, whole: 0, reading, writing: None };
        if let Some(file) = &log.reading {
            log.whole = log.whole_bytes(file).map_err(Error::io(path))?;
        }
        Ok(log)
    }

    /// The path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of the whole entries that the file had when it was opened, or last cut or added to by [`Self::take_over`].
    pub fn whole(&self) -> u64 {
        self.whole
    }

    /// Shows every whole entry that the file had when it was opened, in their order, with the number of bytes before it;
    /// a line without its `\n`.
    ///
    /// # Errors
    /// Names the file when it cannot be read.
    pub fn each(&mut self, mut visit: impl FnMut(u64, &[u8])) -> Result<()> {
        let mut work = || -> io::Result<()> {
            let Some(file) = &mut self.reading else { return Ok(()) };
            file.rewind()?;
            let mut left = BufReader::new(file.take(self.whole));
            let (mut offset, mut entry) = (0, Vec::new());
            while offset < self.whole {
                entry.clear();
                match self.size {
                    Some(size) => (&mut left).take(size).read_to_end(&mut entry)?,
                    None => left.read_until(b'\n', &mut entry)?,
                };
                if entry.is_empty() {
                    return Err(ErrorKind::UnexpectedEof.into()); // shortened by another program meanwhile
                }
                let content = if self.size.is_none() { entry.strip_suffix(b"\n") } else { None };
                visit(offset, content.unwrap_or(&entry));
                offset += entry.len() as u64;
            }
            Ok(())
        };
        work().map_err(Error::io(&self.path))
    }

    /// `length` bytes from `offset` on.
    ///
    /// # Errors
    /// Names the file when it cannot be read, or ends before them.
    pub fn read(&mut self, offset: u64, length: usize) -> Result<Vec<u8>> {
        let mut work = || -> io::Result<Vec<u8>> {
            let file = match &mut self.reading {
                Some(file) => file,
                none => none.insert(File::open(&self.path)?),
            };
            file.seek(SeekFrom::Start(offset))?;
            let mut bytes = vec![0; length];
            file.read_exact(&mut bytes)?;
            Ok(bytes)
        };
        work().map_err(Error::io(&self.path))
    }

    /// Appends whole entries in one write, lines with their `\n`; returns the number of bytes before the first of them.
    ///
    /// # Errors
    /// Names the file that cannot be written; no part of `entries` stays in it then.
    pub fn append(&mut self, entries: &[u8]) -> Result<u64> {
        if self.writing.is_none() {
            make_parent(&self.path)?;
            let file = OpenOptions::new().create(true).read(true).append(true).open(&self.path);
            let file = file.map_err(Error::io(&self.path))?;
            self.remove_torn_tail(&file).map_err(Error::io(&self.path))?;
            self.writing = Some(file);
        }
        let mut work = || -> io::Result<u64> {
            let Some(file) = &mut self.writing else { return Err(ErrorKind::NotFound.into()) };
            let before = file.metadata()?.len();
            if let Err(error) = file.write_all(entries) {
                // On a full disk a part may have been written: it must not end up between two entries.
                let _ = file.set_len(before);
                return Err(error);
            }
            Ok(before)
        };
        work().map_err(Error::io(&self.path))
    }

    /// Removes what a kill left of an entry at the end of the file now, not with the next append.
    ///
    /// # Errors
    /// Names the file that cannot be changed.
    pub fn mend(&mut self) -> Result<()> {
        self.cut(self.whole)
    }

    /// Keeps the first `length` bytes of the file and removes all behind them.
    ///
    /// # Errors
    /// Names the file that cannot be changed.
    pub fn cut(&mut self, length: u64) -> Result<()> {
        let work = || -> io::Result<u64> {
            let file = match OpenOptions::new().write(true).open(&self.path) {
                Ok(file) => file,
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(0),
                Err(error) => return Err(error),
            };
            let metadata = file.metadata()?;
            if metadata.is_file() && metadata.len() > length {
                file.set_len(length)?;
            }
            Ok(length.min(metadata.len()))
        };
        self.whole = work().map_err(Error::io(&self.path))?;
        Ok(())
    }

    /// Appends what the logs of processes ([`of_process`]) hold, in the order of the processes, and removes them; returns
    /// whether there were any. Killed in between, some entries stand twice.
    ///
    /// # Errors
    /// Names the file that cannot be read, written or removed.
    pub fn take_over(&mut self) -> Result<bool> {
        let logs = of_processes(&self.path)?;
        for path in &logs {
            let mut log = Self::open(path, self.size)?;
            let end: &[u8] = if self.size.is_none() { b"\n" } else { b"" };
            let (mut entries, mut outcome) = (Vec::new(), Ok(0));
            log.each(|_, entry| {
                entries.extend_from_slice(entry);
                entries.extend_from_slice(end);
                if entries.len() >= AT_ONCE && outcome.is_ok() {
                    outcome = self.append(&std::mem::take(&mut entries));
                }
            })?;
            outcome?;
            if !entries.is_empty() {
                self.append(&entries)?;
            }
            std::fs::remove_file(path).map_err(Error::io(path))?;
        }
        if let Some(file) = self.writing.as_ref().filter(|_| !logs.is_empty()) {
            self.whole = self.whole_bytes(file).map_err(Error::io(&self.path))?;
            self.reading = None;
            self.reading = Some(File::open(&self.path).map_err(Error::io(&self.path))?);
        }
        Ok(!logs.is_empty())
    }

    /// Brings all that was appended to the disk.
    ///
    /// # Errors
    /// Names the file when the disk does not take it.
    pub fn sync(&self) -> Result<()> {
        self.writing.as_ref().map_or(Ok(()), |file| file.sync_all().map_err(Error::io(&self.path)))
    }

    fn remove_torn_tail(&self, file: &File) -> io::Result<()> {
        let whole = self.whole_bytes(file)?;
        if file.metadata()?.is_file() && file.metadata()?.len() > whole { file.set_len(whole) } else { Ok(()) }
    }

    /// Bytes of a file's whole entries: all but its torn tail.
    fn whole_bytes(&self, mut file: &File) -> io::Result<u64> {
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Ok(0);
        }
        if let Some(size) = self.size {
            return Ok(metadata.len() / size * size);
        }
        let (mut end, mut bytes) = (metadata.len(), Vec::new());
        while end > 0 {
            let start = end.saturating_sub(1 << 16);
            file.seek(SeekFrom::Start(start))?;
            bytes.clear();
            file.take(end - start).read_to_end(&mut bytes)?;
            if let Some(at) = bytes.iter().rposition(|byte| *byte == b'\n') {
                return Ok(start + at as u64 + 1);
            }
            end = start;
        }
        Ok(0)
    }
}

/// Bytes that are taken over in one write.
const AT_ONCE: usize = 1 << 22;

/// The log of one of several processes beside a file: `results.rank-3.jsonl` beside `results.jsonl`.
pub fn of_process(path: &Path, rank: usize) -> PathBuf {
    let ending = path.extension().map_or_else(String::new, |ending| format!(".{}", ending.to_string_lossy()));
    path.with_extension(format!("rank-{rank}{ending}"))
}

/// The logs of processes that lie beside a file, in the order of the processes.
///
/// # Errors
/// Names the folder when it is there and cannot be read.
pub fn of_processes(path: &Path) -> Result<Vec<PathBuf>> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io(folder)(error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let other = folder.join(entry.map_err(Error::io(folder))?.file_name());
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let name = other.file_name().unwrap_or_default().to_string_lossy();
        let rank = name.strip_prefix(&format!("{stem}.rank-")).and_then(|rest| rest.split('.').next()?.parse().ok());
        if let Some(rank) = rank.filter(|rank| of_process(path, *rank).file_name() == other.file_name()) {
            found.push((rank, other));
        }
    }
    found.sort();
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::fs;

    type Open = fn(&Path) -> Result<AppendLog>;

    fn of_three(path: &Path) -> Result<AppendLog> {
        AppendLog::of_size(path, 3)
    }

    fn entries(log: &mut AppendLog) -> Vec<(u64, Vec<u8>)> {
        let mut found = Vec::new();
        log.each(|offset, entry| found.push((offset, entry.to_vec()))).unwrap();
        found
    }

    #[test]
    fn a_kill_at_any_byte_costs_the_entry_that_it_tears_and_no_other() {
        let lines: [&[u8]; 5] =
            [b"one\n", b"\n", b"a longer line, the third\n", "\u{e4}\n".as_bytes(), b"{\"five\": 5}\n"];
        let sized: [&[u8]; 4] = [b"abc", b"\n\n\n", b"\0\0\0", b"xyz"];
        let kinds: [(Open, &[&[u8]]); 2] = [(AppendLog::of_lines, &lines), (of_three, &sized)];
        for (open, all) in kinds {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("made/for/it.log");
            let mut log = open(&path).unwrap();
            assert!(entries(&mut log).is_empty() && !path.exists(), "opening makes nothing");
            for entry in all {
                log.append(entry).unwrap();
            }
            let whole = fs::read(&path).unwrap();
            assert_eq!(whole, all.concat());
            for cut in 0..=whole.len() {
                fs::write(&path, &whole[..cut]).unwrap();
                let mut log = open(&path).unwrap();
                let there = entries(&mut log);
                let mut ends = all.iter().scan(0, |end, entry| {
                    *end += entry.len();
                    Some(*end)
                });
                assert_eq!(there.len(), ends.by_ref().take_while(|end| *end <= cut).count(), "{cut}");
                assert_eq!(fs::read(&path).unwrap(), &whole[..cut], "reading changes nothing");
                for (offset, entry) in &there {
                    assert_eq!(&log.read(*offset, entry.len()).unwrap(), entry, "{cut}");
                }
                let mut before = there.iter().zip(all).map(|((_, entry), _)| entry.len()).sum::<usize>();
                before += if all == lines { there.len() } else { 0 };
                for entry in &all[there.len()..] {
                    assert_eq!(log.append(entry).unwrap(), before as u64, "{cut}");
                    before += entry.len();
                }
                log.sync().unwrap();
                assert_eq!(fs::read(&path).unwrap(), whole, "{cut}");
                assert_eq!(entries(&mut open(&path).unwrap()).len(), all.len(), "{cut}");
            }
        }
    }

    #[test]
    fn a_torn_tail_is_found_however_long_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("results.jsonl");
        for (whole, torn) in [(0, 5), (0, 200_000), (7, 0), (7, 65_536), (200_000, 1)] {
            let whole = if whole == 0 { String::new() } else { "x".repeat(whole) + "\n" };
            fs::write(&path, whole.clone() + &"y".repeat(torn)).unwrap();
            AppendLog::of_lines(&path).unwrap().mend().unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap().len(), whole.len(), "{torn}");
        }
    }

    #[test]
    fn what_is_cut_off_is_gone_and_the_file_grows_from_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        fs::write(&path, "1\n2\n3\nto").unwrap();
        let mut log = AppendLog::of_lines(&path).unwrap();
        log.cut(2).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"1\n");
        assert_eq!(entries(&mut log), [(0, b"1".to_vec())]);
        assert_eq!(log.append(b"4\n").unwrap(), 2);
        assert_eq!(fs::read(&path).unwrap(), b"1\n4\n");
        AppendLog::of_lines(&folder.path().join("none")).unwrap().cut(0).unwrap();
        assert!(!folder.path().join("none").exists());
    }

    #[test]
    fn logs_of_processes_are_taken_over_once_in_their_order_and_without_torn_tails() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.b.jsonl");
        assert_eq!(of_process(&path, 3), folder.path().join("a.b.rank-3.jsonl"));
        assert!(of_processes(&folder.path().join("none/x.jsonl")).unwrap().is_empty());
        AppendLog::of_lines(&path).unwrap().append(b"0\n").unwrap();
        assert!(!AppendLog::of_lines(&path).unwrap().take_over().unwrap());
        for rank in [10, 2] {
            fs::write(of_process(&path, rank), format!("{rank}\n{rank}{rank}\ntorn")).unwrap();
        }
        // Of other files.
        for other in ["a.b.rank-x.jsonl", "a.rank-1.jsonl", "a.b.rank-1.json", "a.b.rank-1.x.jsonl"] {
            fs::write(folder.path().join(other), "x\n").unwrap();
        }
        let mut log = AppendLog::of_lines(&path).unwrap();
        assert!(log.take_over().unwrap());
        let read: Vec<u8> =
            entries(&mut log).into_iter().flat_map(|(_, entry)| [entry, b" ".to_vec()].concat()).collect();
        assert_eq!(String::from_utf8(read).unwrap(), "0 2 22 10 1010 ");
        assert_eq!(log.append(b"3\n").unwrap(), 15);
        assert!(!log.take_over().unwrap());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 5);
        let sized = folder.path().join("s.bin");
        fs::write(of_process(&sized, 0), "abcde").unwrap();
        let mut log = of_three(&sized).unwrap();
        log.take_over().unwrap();
        assert_eq!(entries(&mut log), [(0, b"abc".to_vec())]);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_full_disk_is_said_with_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("full.jsonl");
        std::os::unix::fs::symlink("/dev/full", &path).unwrap();
        let message = AppendLog::of_lines(&path).unwrap().append(b"1\n").unwrap_err().to_string();
        assert!(message.contains("full.jsonl") && message.contains("space"), "{message}");
    }
}
