//! The kernels of a run that multiplies in bf16: `kernels.json` in its folder keeps what it began with, because another kernel sums
//! in another order, and a run that was interrupted must end with the same bytes.

use std::path::PathBuf;

use anyhow::{Context, Result, anyhow, ensure};
use hermesflow_group::Group;
use hermesflow_models::device::DeviceName;
use hermesflow_models::kernels::{self, Choices};
use serde::{Deserialize, Serialize};

use crate::config::RunConfig;
use crate::files::{if_there, write_atomically};
use crate::kernels::open_choice;

/// The content of `kernels.json`.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Note {
    /// The CPU that the run began on.
    cpu: String,
    /// The kernels, as [`Choices`] are written.
    kernels: String,
}

fn path(config: &RunConfig) -> PathBuf {
    config.output.join("kernels.json")
}

/// Makes the kernels of a run those of this process: what `model.kernels` asks for, what its folder keeps, or what was measured
/// here. With `keep` they are noted in its folder, unless it has a note. A run that multiplies nothing in bf16 on the CPU has none.
///
/// # Errors
/// When `model.kernels` names a kernel that this CPU lacks, or the note cannot be read or written.
pub fn settle(config: &RunConfig, keep: bool) -> Result<()> {
    if !multiplies(config) {
        return install(None);
    }
    let pinned = config.model.kernels.pinned();
    if let Some(choices) = pinned.filter(|_| !kernels::is_spoken_for()) {
        let missing = kernels::install(Some(choices));
        missing.map_err(|kernel| {
            anyhow!("model.kernels: {kernel}: this CPU has no such kernel; `auto` takes those it has")
        })?;
    }
    let noted = noted(config)?;
    let now = match (&noted, pinned) {
        (_, Some(choices)) => choices,
        (Some((_, begun)), None) => *begun,
        (None, None) => open_choice(),
    };
    let now = if kernels::is_spoken_for() { kernels::current() } else { now };
    let now = match kernels::install(Some(now)) {
        Ok(()) => now,
        Err(_) => open_choice(),
    };
    install(Some(now))?;
    match noted {
        Some((note, begun)) if begun != now => {
            let why =
                if kernels::is_spoken_for() { "HERMESFLOW_CPU or model.kernels" } else { "this CPU or model.kernels" };
            note!(
                "WARNING: {}: this run began on {} with the kernels `{begun}`; {why} makes them `{now}` now, and what is \
                 computed from here on can differ in its last bits",
                path(config).display(),
                note.cpu
            );
        }
        None if keep => {
            let note = Note { cpu: kernels::cpu(), kernels: now.to_string() };
            write_atomically(&path(config), &serde_json::to_vec_pretty(&note)?)?;
        }
        _ => {}
    }
    Ok(())
}

/// Gives all processes of a run the same kernels: the writer settles them, and the others read what it noted.
///
/// # Errors
/// As [`settle`]; when this process cannot have the kernels of the first one, or another process is gone.
pub fn settle_together(config: &RunConfig, group: &Group) -> Result<()> {
    group.first(|| settle(config, true))?;
    let used = kernels::current().to_string();
    let first = group.tell(Some(used.clone().into_bytes()))?;
    let first = String::from_utf8_lossy(&first);
    ensure!(
        !multiplies(config) || first == used,
        "model.kernels: this process multiplies by `{used}` and the first one by `{first}`, which sum in other orders; set \
         model.kernels to one that all their CPUs have, and HERMESFLOW_CPU alike for all"
    );
    Ok(())
}

/// Whether anything is multiplied in bf16 on the CPU.
fn multiplies(config: &RunConfig) -> bool {
    matches!(config.model.device_name(), Ok(DeviceName::Cpu)) && config.multiplies_bf16()
}

fn install(choices: Option<Choices>) -> Result<()> {
    kernels::install(choices).map_err(|kernel| anyhow!("this CPU has no kernel {kernel}"))
}

/// What the run's folder keeps.
fn noted(config: &RunConfig) -> Result<Option<(Note, Choices)>> {
    let path = path(config);
    let Some(bytes) = if_there(&path, |path| std::fs::read(path))? else { return Ok(None) };
    let read = || -> Result<(Note, Choices)> {
        let note: Note = serde_json::from_slice(&bytes)?;
        let choices = note.kernels.parse().map_err(|what: String| anyhow!(what))?;
        Ok((note, choices))
    };
    let remedy = "it says which kernels the run began with; remove it to let them be chosen again, by which later results \
                  can differ in their last bits";
    read().map(Some).with_context(|| format!("{}: is damaged; {remedy}", path.display()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::print_stdout)]
    use std::path::Path;

    use hermesflow_models::kernels::Bf16Kernel;

    use super::*;

    fn config(folder: &Path, overrides: &[&str]) -> RunConfig {
        let output = format!("output={}", folder.display());
        let overrides: Vec<String> =
            std::iter::once(output.as_str()).chain(overrides.iter().copied()).map(String::from).collect();
        RunConfig::parse("", &overrides).unwrap()
    }

    /// One test, because the choices are those of the process.
    #[test]
    fn a_run_keeps_the_kernels_it_began_with() {
        if kernels::is_spoken_for() {
            note!("skipped: HERMESFLOW_CPU chooses the kernels");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("kernels.json");
        settle(&config(folder.path(), &[]), true).unwrap();
        assert!(!file.exists(), "a run in f32 has none");

        let bf16 = config(folder.path(), &["train.products=bf16"]);
        settle(&bf16, false).unwrap();
        assert!(!file.exists(), "nothing is begun");
        settle(&config(folder.path(), &["train.products=bf16", "model.kernels=widened"]), true).unwrap();
        let begun = std::fs::read(&file).unwrap();
        settle(&bf16, true).unwrap();
        assert_eq!(kernels::current(), Choices::all(Bf16Kernel::Widened), "as it began");
        assert_eq!(std::fs::read(&file).unwrap(), begun);
        settle(&config(folder.path(), &["train.products=bf16", "model.kernels=fixed"]), true).unwrap();
        assert_eq!(kernels::current(), Choices::fixed());
        assert_eq!(std::fs::read(&file).unwrap(), begun, "with a warning");

        if !Bf16Kernel::Amx.is_available() {
            let amx = config(folder.path(), &["model.dtype=bf16", "model.kernels=amx"]);
            let message = format!("{:#}", settle(&amx, true).unwrap_err());
            assert!(message.starts_with("model.kernels: amx: this CPU has no such kernel"), "{message}");
            let elsewhere = String::from_utf8(begun.clone()).unwrap().replace("widened", "amx");
            std::fs::write(&file, elsewhere).unwrap();
            settle(&bf16, true).unwrap();
            assert!(kernels::current().used().into_iter().all(Bf16Kernel::is_available), "what this machine has");
        }
        std::fs::write(&file, &begun[..begun.len() / 2]).unwrap();
        let message = format!("{:#}", settle(&bf16, true).unwrap_err());
        assert!(message.contains("kernels.json: is damaged; it says which kernels"), "{message}");
        kernels::install(None).unwrap();
    }
}
