//! Digests of large files that were read before: a checkpoint of 6 GB is read once and not by every command.
//!
//! They are kept in the user's cache, a line of JSON each: the file, what the system says of it (size, times, number),
//! and its digest. Whatever of that differs, or cannot be told, the file is read. So is one that was written a moment
//! ago: another write might leave the very same times.

use std::fs::{self, Metadata};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use hermesflow_records::AppendLog;
use serde::{Deserialize, Serialize};

/// Bytes from which a digest is worth keeping.
const LARGE: u64 = 1 << 22;
/// The clock of a file system may be this coarse.
const MOMENT: Duration = Duration::from_secs(3);
/// A file of more bytes is begun anew.
const LONGEST: u64 = 1 << 20;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Line {
    file: PathBuf,
    state: State,
    digest: String,
}

/// What the system says of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    size: u64,
    /// Nanoseconds since 1970.
    modified: u128,
    /// When the system itself last changed anything about it, and which file of which disk it is: no program sets these.
    changed: i128,
    number: [u64; 2],
}

impl State {
    fn of(metadata: &Metadata) -> Option<Self> {
        let modified = metadata.modified().ok()?.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_nanos();
        #[cfg(unix)]
        let (changed, number) = {
            use std::os::unix::fs::MetadataExt;
            let changed = i128::from(metadata.ctime()) * 1_000_000_000 + i128::from(metadata.ctime_nsec());
            (changed, [metadata.dev(), metadata.ino()])
        };
        #[cfg(not(unix))]
        let (changed, number) = (0, [0, 0]);
        Some(Self { size: metadata.len(), modified, changed, number })
    }
}

/// The digest that is known of a file, or what `read` finds.
pub fn or_else(path: &Path, read: impl FnOnce() -> io::Result<String>) -> io::Result<String> {
    let file = path.canonicalize()?;
    let before = fs::metadata(&file)?;
    let cache = cache();
    let (Some(cache), Some(state), true) = (cache, State::of(&before), before.len() >= LARGE) else { return read() };
    if let Some(known) = lookup(&cache, &file, state) {
        return Ok(known);
    }
    let digest = read()?;
    let is_old = before.modified().and_then(|time| time.elapsed().map_err(io::Error::other));
    let unchanged = State::of(&fs::metadata(&file)?) == Some(state);
    if unchanged && is_old.is_ok_and(|age| age > MOMENT) {
        // A cache that cannot be written costs time and nothing else.
        let _ = keep(&cache, &Line { file, state, digest: digest.clone() });
    }
    Ok(digest)
}

/// The file of what is known, where there is a place for it.
fn cache() -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let caches = variable("XDG_CACHE_HOME").or_else(|| Some(std::env::home_dir()?.join(".cache")));
    Some(caches?.join("hermesflow/digests.jsonl"))
}

fn lookup(cache: &Path, file: &Path, state: State) -> Option<String> {
    let mut known = None;
    let mut log = AppendLog::of_lines(cache).ok()?;
    let read = log.each(|_, line| {
        let line = serde_json::from_slice::<Line>(line).ok().filter(|line| line.file == file && line.state == state);
        known = line.map(|line| line.digest).or(known.take());
    });
    read.ok().and(known)
}

fn keep(cache: &Path, line: &Line) -> anyhow::Result<()> {
    if fs::metadata(cache).is_ok_and(|cache| cache.len() > LONGEST) {
        fs::remove_file(cache)?;
    }
    // In one write, so that two programs do not mix their lines.
    AppendLog::of_lines(cache)?.append((serde_json::to_string(line)? + "\n").as_bytes())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_the_very_same_state_of_a_file_is_known() {
        let folder = tempfile::tempdir().unwrap();
        let (cache, file) = (folder.path().join("cache/digests.jsonl"), folder.path().join("weights"));
        fs::write(&file, "abc").unwrap();
        let state = State::of(&fs::metadata(&file).unwrap()).unwrap();
        assert_eq!(lookup(&cache, &file, state), None);
        keep(&cache, &Line { file: file.clone(), state, digest: "d".into() }).unwrap();
        assert_eq!(lookup(&cache, &file, state), Some("d".into()));
        assert_eq!(lookup(&cache, &folder.path().join("other"), state), None);
        for other in [
            State { size: 4, ..state },
            State { modified: state.modified + 1, ..state },
            State { changed: state.changed + 1, ..state },
            State { number: [1, 2], ..state },
        ] {
            assert_eq!(lookup(&cache, &file, other), None);
        }
        let torn = fs::read(&cache).unwrap();
        fs::write(&cache, &torn[..torn.len() - 4]).unwrap();
        assert_eq!(lookup(&cache, &file, state), None);
        keep(&cache, &Line { file: file.clone(), state, digest: "e".into() }).unwrap();
        assert_eq!(lookup(&cache, &file, state), Some("e".into()));
    }

    #[test]
    #[cfg(unix)]
    fn a_file_that_is_put_back_to_its_size_and_time_is_another_state() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("weights");
        fs::write(&file, "abc").unwrap();
        let before = fs::metadata(&file).unwrap();
        std::thread::sleep(Duration::from_millis(30));
        fs::write(&file, "abd").unwrap();
        fs::File::options().write(true).open(&file).unwrap().set_modified(before.modified().unwrap()).unwrap();
        assert_ne!(State::of(&fs::metadata(&file).unwrap()), State::of(&before));
    }
}
