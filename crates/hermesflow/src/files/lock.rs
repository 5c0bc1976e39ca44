//! One program at a time where files are written: a lock with the process and the host that hold it.
//!
//! The system gives the lock back when its process ends, however that ends, so one whose file is still there after a kill
//! is known to be stale. Where the file system does not pass locks on between hosts, the holder's sign of life decides: it
//! renews the file's time.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use sysinfo::System;

/// Between two signs of life.
const RENEWED: Duration = Duration::from_secs(20);
/// Without one for so long, whoever held a lock on another host is gone.
const GONE: Duration = Duration::from_secs(120);

/// Who holds a lock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Owner {
    process: u32,
    host: String,
    command: String,
}

impl Owner {
    fn here() -> Self {
        let host = System::host_name().unwrap_or_else(|| "an unnamed host".into());
        let command = std::env::args().nth(1).unwrap_or_default();
        Self { process: std::process::id(), host, command }
    }

    fn read(file: &mut File) -> Option<Self> {
        let mut text = String::new();
        file.rewind().and_then(|()| file.read_to_string(&mut text)).ok()?;
        serde_json::from_str(&text).ok()
    }
}

/// Places that no other program writes to meanwhile; given back when it goes.
#[derive(Debug, Default)]
pub struct Lock(Vec<Held>);

impl Drop for Lock {
    /// The last one first: a folder that was made for all of them goes with the first one.
    fn drop(&mut self) {
        while self.0.pop().is_some() {}
    }
}

#[derive(Debug)]
struct Held {
    path: PathBuf,
    /// Folders that were made for the lock's file, the outermost last.
    made: Vec<PathBuf>,
    file: Option<File>,
    alive: Option<(Sender<()>, JoinHandle<()>)>,
}

impl Lock {
    /// Takes the locks of these files; all of them or none.
    ///
    /// # Errors
    /// Names the process and the host that hold one.
    pub fn take(paths: impl IntoIterator<Item = PathBuf>) -> Result<Self> {
        let mut lock = Self::default();
        for path in paths {
            // One place may be named twice, as where `output` is the data root.
            if lock.0.iter().all(|held| held.path != path) {
                lock.0.push(Held::take(path)?);
            }
        }
        Ok(lock)
    }

    /// Takes the lock of what appears at a place.
    ///
    /// # Errors
    /// As [`Lock::take`].
    pub fn beside(target: &Path) -> Result<Self> {
        Self::take([hermesflow_records::beside(target, ".hermesflow-lock")])
    }
}

impl Held {
    fn take(path: PathBuf) -> Result<Self> {
        let named = || format!("{}: cannot be locked", path.display());
        let made = make_parents(&path).with_context(named)?;
        let mut held = Self { path: path.clone(), made, file: None, alive: None };
        loop {
            let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
            let mut file = open.with_context(named)?;
            let free = match file.try_lock() {
                Ok(()) => true,
                Err(TryLockError::WouldBlock) => bail!(in_use(&path, Owner::read(&mut file).as_ref())),
                // A file system without locks: signs of life must do.
                Err(TryLockError::Error(_)) => false,
            };
            if free && !is_there(&file, &path) {
                continue; // whoever held it removed it a moment ago
            }
            let owner = Owner::read(&mut file).filter(|owner| !free || owner.host != Owner::here().host);
            if let Some(owner) = owner.filter(|_| is_alive(&file)) {
                bail!(
                    "{}; if it is gone, wait {} seconds or remove {}",
                    in_use(&path, Some(&owner)),
                    GONE.as_secs(),
                    path.display()
                );
            }
            let text = serde_json::to_string(&Owner::here())? + "\n";
            let emptied = file.set_len(0).and_then(|()| file.rewind());
            emptied.and_then(|()| file.write_all(text.as_bytes())).with_context(named)?;
            held.alive = Some(keep_alive(file.try_clone().with_context(named)?));
            held.file = Some(file);
            return Ok(held);
        }
    }
}

/// What is said of a lock that somebody holds.
fn in_use(path: &Path, owner: Option<&Owner>) -> String {
    let place = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let place = if place.ends_with(".settings") { place.parent().unwrap_or(place) } else { place };
    let by = owner.map_or_else(
        || "another process".to_owned(),
        |owner| format!("`hermesflow {}`, process {} on {}", owner.command, owner.process, owner.host),
    );
    format!("{} is in use by {by}; wait for its end, or choose another place", place.display())
}

/// Whether a file is still the one of its name.
fn is_there(file: &File, path: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let number = |metadata: &fs::Metadata| (metadata.dev(), metadata.ino());
        matches!((&file.metadata(), &fs::metadata(path)), (Ok(held), Ok(named)) if number(held) == number(named))
    }
    #[cfg(not(unix))]
    {
        let _ = file;
        path.exists()
    }
}

fn is_alive(file: &File) -> bool {
    let renewed = file.metadata().and_then(|metadata| metadata.modified());
    renewed.is_ok_and(|renewed| renewed.elapsed().is_ok_and(|age| age < GONE))
}

fn keep_alive(file: File) -> (Sender<()>, JoinHandle<()>) {
    let (end, ended) = channel::<()>();
    let renew = move || {
        while ended.recv_timeout(RENEWED) == Err(RecvTimeoutError::Timeout) {
            let _ = file.set_modified(SystemTime::now());
        }
    };
    (end, std::thread::spawn(renew))
}

/// Makes the folders above a file; those that were not there, the outermost last.
fn make_parents(path: &Path) -> std::io::Result<Vec<PathBuf>> {
    let parents = path.ancestors().skip(1).filter(|folder| !folder.as_os_str().is_empty());
    let missing: Vec<PathBuf> = parents.take_while(|folder| !folder.exists()).map(Path::to_owned).collect();
    path.parent().filter(|_| !missing.is_empty()).map_or(Ok(()), fs::create_dir_all)?;
    Ok(missing)
}

impl Drop for Held {
    /// Removed before it is given back: who waits for the same file sees that it is gone.
    fn drop(&mut self) {
        if let Some((end, thread)) = self.alive.take() {
            drop(end);
            let _ = thread.join();
        }
        if let Some(file) = self.file.take() {
            let _ = fs::remove_file(&self.path);
            drop(file);
        }
        // Nothing came of them: they are empty.
        self.made.iter().for_each(|folder| drop(fs::remove_dir(folder)));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_lock_is_held_once_names_its_holder_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data/.settings/caption.lock");
        let lock = Lock::take([path.clone(), path.clone()]).unwrap();
        let said = Lock::take([path.clone()]).unwrap_err().to_string();
        for part in ["data is in use by", &format!("process {}", std::process::id()), &Owner::here().host] {
            assert!(said.contains(part), "{part}: {said}");
        }
        assert!(!said.contains(".settings"), "{said}");
        drop(lock);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        drop(Lock::take([path.clone()]).unwrap());

        let other = folder.path().join("data/.settings/ask.lock");
        let one = Lock::take([path.clone()]).unwrap();
        drop(Lock::take([other.clone()]).unwrap());
        assert!(path.is_file());
        drop(one);
        drop(Lock::take([path, other]).unwrap());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "several made one folder");
    }

    #[test]
    fn what_a_kill_left_is_taken_over_and_another_hosts_once_it_is_silent() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(".model.hermesflow-lock");
        let owner = |host: &str| Owner { process: 1, host: host.to_owned(), command: "run".into() };
        fs::write(&path, serde_json::to_string(&owner(&Owner::here().host)).unwrap()).unwrap();
        drop(Lock::beside(&folder.path().join("model")).unwrap());
        fs::write(&path, serde_json::to_string(&owner("elsewhere")).unwrap()).unwrap();
        let said = Lock::take([path.clone()]).unwrap_err().to_string();
        assert!(said.contains("process 1 on elsewhere") && said.contains("remove"), "{said}");
        assert!(path.is_file());
        let silent = SystemTime::now() - GONE - Duration::from_secs(1);
        File::options().write(true).open(&path).unwrap().set_modified(silent).unwrap();
        drop(Lock::take([path.clone()]).unwrap());
        assert!(!path.exists());
        fs::write(&path, "{\"proc").unwrap();
        drop(Lock::take([path]).unwrap());
    }

    #[test]
    fn a_lock_passes_from_hand_to_hand() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x/lock");
        let holders = std::sync::atomic::AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let mut taken = 0;
                    while taken < 20 {
                        let Ok(lock) = Lock::take([path.clone()]) else { continue };
                        assert_eq!(holders.fetch_add(1, std::sync::atomic::Ordering::SeqCst), 0, "held twice");
                        holders.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                        drop(lock);
                        taken += 1;
                    }
                });
            }
        });
        assert!(!path.exists());
    }
}
