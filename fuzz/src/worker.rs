//! Runs cases in a workshop, one after the other, and notes how each went.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;

use anyhow::{Context, Result};
use hermesflow_models::foreign::is_contained;

use crate::mutate::{Random, mutated};
use crate::targets::{TARGETS, Target, prepare};

/// What a worker is told.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The folder of the worker
    pub workshop: PathBuf,
    /// Where it notes how cases went
    pub notes: PathBuf,
    /// Where it puts files that went wrong
    pub findings: PathBuf,
    /// The first case
    pub first: u64,
    /// The distance from one case to the next
    pub step: u64,
    /// The campaign's seed
    pub seed: u64,
    /// The target, if there is one only
    pub target: Option<String>,
}

/// What the last panic outside a decoder said.
static PANIC: Mutex<Option<String>> = Mutex::new(None);

/// How a case went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Went {
    /// The file was accepted.
    Accepted = 0,
    /// The file was refused.
    Refused = 1,
    /// The program failed.
    Wrong = 2,
}

/// Where a worker notes: the case that it is at, then how many of each target went how.
#[derive(Debug)]
pub struct Notes(File);

impl Notes {
    /// Opens them, new or there.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn open(path: &Path) -> Result<Self> {
        let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path)?;
        Ok(Self(file))
    }

    fn number(&self, at: u64) -> u64 {
        let mut bytes = [0; 8];
        // What was never written is 0.
        self.0.read_exact_at(&mut bytes, at * 8).map_or(0, |()| u64::from_le_bytes(bytes))
    }

    fn set(&self, at: u64, number: u64) -> Result<()> {
        Ok(self.0.write_all_at(&number.to_le_bytes(), at * 8)?)
    }

    /// The case that is being run, counted from 1; 0 before the first.
    pub fn case(&self) -> u64 {
        self.number(0)
    }

    /// Before the first case again.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn begin(&self) -> Result<()> {
        self.set(0, 0)
    }

    /// How many cases of a target went so.
    pub fn count(&self, target: usize, went: Went) -> u64 {
        self.number(1 + 3 * target as u64 + went as u64)
    }

    /// One more.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn add(&self, target: usize, went: Went) -> Result<()> {
        self.set(1 + 3 * target as u64 + went as u64, self.count(target, went) + 1)
    }
}

/// Runs cases until the process is ended.
///
/// # Errors
/// When the workshop cannot be made or written.
pub fn run(args: &Args) -> Result<ExitCode> {
    let notes = Notes::open(&args.notes)?;
    enter(&args.workshop)?;
    let corpora = TARGETS.iter().map(|target| target.corpus(&args.workshop)).collect::<Result<Vec<_>>>()?;
    let only = args.target.as_deref().map(Target::named).transpose()?;
    let mut case = args.first;
    loop {
        let number = TARGETS
            .iter()
            .position(|target| only.is_some_and(|only| only.name == target.name))
            .unwrap_or(case as usize % TARGETS.len());
        let (target, corpus) = (&TARGETS[number], &corpora[number]);
        let mut random = Random::new(args.seed, case);
        let file = changed(corpus, &mut random);
        notes.set(0, case + 1)?;
        let (went, said) = tried(target, &args.workshop, &file)?;
        notes.add(number, went)?;
        if went == Went::Wrong {
            keep(&args.findings, target, case, &file, &said)?;
        }
        case += args.step;
    }
}

/// A file of a corpus, changed.
fn changed(corpus: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let (file, other) = (random.of(corpus), random.of(corpus));
    mutated(file, other, random)
}

/// Tries one file, in a workshop of its own.
///
/// # Errors
/// When the workshop cannot be made, or the file not read.
pub fn try_one(target: &str, file: &Path) -> Result<ExitCode> {
    let (target, file) = (Target::named(target)?, fs::read(file).with_context(|| file.display().to_string())?);
    let folder = tempfile::tempdir()?;
    enter(folder.path())?;
    let (went, said) = tried(target, folder.path(), &file)?;
    println!("{went:?} {said}");
    Ok(ExitCode::from(u8::from(went == Went::Wrong)))
}

/// Makes a workshop, unless it is there, and enters it; sees to it that panics are noted.
///
/// # Errors
/// When it cannot be made.
pub fn enter(workshop: &Path) -> Result<()> {
    fs::create_dir_all(workshop)?;
    std::env::set_current_dir(workshop)?;
    // SAFETY: no other thread has been started yet.
    unsafe {
        std::env::set_var("HF_HUB_OFFLINE", "1");
        std::env::set_var("HF_HOME", workshop.join("hub"));
        std::env::set_var("CANDLE_NUM_THREADS", "1");
        std::env::set_var("RAYON_NUM_THREADS", "1");
    }
    std::panic::set_hook(Box::new(|panic| {
        if !is_contained()
            && let Ok(mut said) = PANIC.lock()
        {
            said.get_or_insert_with(|| panic.to_string());
        }
    }));
    if !workshop.join("import/pictures.json").exists() {
        prepare(workshop)?;
    }
    Ok(())
}

/// Runs the program on a file; what went wrong, if it did.
///
/// # Errors
/// When the file cannot be put in its place.
pub fn tried(target: &Target, workshop: &Path, file: &[u8]) -> Result<(Went, String)> {
    let place = workshop.join(target.place);
    let sound = fs::read(&place).ok();
    let arguments = target.put(workshop, file)?;
    let code = catch_unwind(AssertUnwindSafe(|| hermesflow::program(arguments.iter().map(Into::into))));
    let panic = PANIC.lock().map_or_else(|poisoned| poisoned.into_inner().take(), |mut said| said.take());
    // The next target's command may need what stood there.
    match sound {
        Some(sound) => fs::write(&place, sound)?,
        None => fs::remove_file(&place)?,
    }
    Ok(match (code, panic) {
        (Ok(0), None) => (Went::Accepted, String::new()),
        (Ok(1), None) => (Went::Refused, String::new()),
        (code, panic) => (Went::Wrong, format!("exit code {code:?}, panic {panic:?}, command {arguments:?}")),
    })
}

/// Keeps a file that went wrong, and what was said of it.
///
/// # Errors
/// When it cannot be written.
pub fn keep(findings: &Path, target: &Target, case: u64, file: &[u8], said: &str) -> Result<()> {
    let folder = findings.join(target.name);
    fs::create_dir_all(&folder)?;
    fs::write(folder.join(case.to_string()), file)?;
    fs::write(folder.join(format!("{case}.txt")), said)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Every file of every corpus as it is, and a few changes of each.
    #[test]
    fn every_format_is_accepted_or_refused() {
        let folder = tempfile::tempdir().unwrap();
        enter(folder.path()).unwrap();
        for target in &TARGETS {
            let corpus = target.corpus(folder.path()).unwrap();
            let mut random = Random::new(1, 0);
            let changed: Vec<Vec<u8>> = (0..12).map(|_| changed(&corpus, &mut random)).collect();
            let mut accepted = 0;
            for (number, file) in corpus.iter().chain(&changed).enumerate() {
                let (went, said) = tried(target, folder.path(), file).unwrap();
                assert!(went != Went::Wrong, "{} {number}: {said}", target.name);
                accepted += usize::from(went == Went::Accepted && number < corpus.len());
            }
            assert!(accepted > 0, "{}: a target that refuses everything tries nothing", target.name);
        }
    }
}
