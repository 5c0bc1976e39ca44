//! Checkpoints: the folder `checkpoint-{step}/` with everything that a killed run needs to be resumed bit for bit.
//!
//! | file | contents |
//! |---|---|
//! | `config.json`, `pytorch_model.safetensors` and what else the model describes itself by | the trained parameters and everything that makes a model of them; the folder can be loaded as a model |
//! | `optimizer.safetensors` | both moments of every parameter |
//! | `state.json` | the step, which also says which data and random numbers come next (see [`crate::draws`]), and the settings of the run with their hash |
//!
//! A checkpoint is written under a name that starts with a dot, flushed to disk and renamed, so a folder called
//! `checkpoint-{step}` is always complete. Old ones are renamed before they are removed.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::Tensor;
use hermesflow_nn::weights;
use hermesflow_records::Fnv1a;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::optimizer::{AdamW, Target, set_all};
use crate::{Error, Result};

const MODEL: &str = "pytorch_model.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
const STATE: &str = "state.json";

/// The contents of `state.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// The number of steps made.
    pub step: usize,
    /// The number of the next micro batch, which is the number of those drawn so far.
    pub next_micro_batch: u64,
    /// The hash of `settings` (see [`hash`]).
    pub settings_hash: String,
    /// Everything that decides the run's numbers.
    pub settings: Value,
}

impl State {
    /// The state after `step` steps with `settings`.
    pub fn new(step: usize, next_micro_batch: u64, settings: Value) -> Self {
        Self { step, next_micro_batch, settings_hash: hash(&settings), settings }
    }

    /// Refuses settings that differ from those of this state, and names the keys that differ.
    fn check(&self, settings: &Value, path: &Path) -> Result<()> {
        if self.settings_hash == hash(settings) {
            return Ok(());
        }
        let mut differences = Vec::new();
        if self.settings_hash != hash(&self.settings) {
            differences.push(format!("hash {}, but its settings have {}", self.settings_hash, hash(&self.settings)));
        }
        compare("", &as_of_today(self.settings.clone()), settings, &mut differences);
        if differences.is_empty() {
            return Ok(()); // the same values, written by an earlier version
        }
        Err(Error::OtherSettings { path: path.into(), differences: differences.join("; ") })
    }
}

/// Where earlier versions wrote a setting, and where it is now: section, name, section, name.
const RENAMED: [(&str, &str, &str, &str); 6] = [
    ("/schedule", "total_steps", "/schedule", "steps"),
    ("/objective/pair_dpo", "beta", "/objective/pair_dpo/loss", "beta"),
    ("/objective/pair_dpo", "lambda_und", "/objective/pair_dpo/loss", "anchor_und"),
    ("/objective/pair_dpo", "lambda_gen", "/objective/pair_dpo/loss", "anchor_gen"),
    ("/objective/pair_dpo", "weight_und", "/objective/pair_dpo/loss", "weight_und"),
    ("/objective/pair_dpo", "weight_gen", "/objective/pair_dpo/loss", "weight_gen"),
];

/// Settings that earlier versions did not have: section, name, and the value by which they acted.
fn added() -> [(&'static str, &'static str, Value); 6] {
    [
        ("/objective/pair_dpo/loss", "kl", 0.0.into()),
        ("/objective/pair_dpo", "masks", "random".into()),
        ("/objective/pair_dpo", "guidance", 0.0.into()),
        ("/objective/pair_dpo", "weights", "equal".into()),
        ("/objective/pair_dpo/loss", "likelihood_und", 0.0.into()),
        ("/objective/pair_dpo/loss", "likelihood_gen", 0.0.into()),
    ]
}

/// Settings that may be of an earlier version, as today's.
fn as_of_today(mut settings: Value) -> Value {
    for (from, old, to, new) in RENAMED {
        let Some(value) = settings.pointer_mut(from).and_then(Value::as_object_mut).and_then(|map| map.remove(old))
        else {
            continue;
        };
        if let (Some((above, section)), None) = (to.rsplit_once('/'), settings.pointer(to))
            && let Some(map) = settings.pointer_mut(above).and_then(Value::as_object_mut)
        {
            map.insert(section.into(), Value::Object(serde_json::Map::new()));
        }
        if let Some(map) = settings.pointer_mut(to).and_then(Value::as_object_mut) {
            map.insert(new.into(), value);
        }
    }
    for (section, name, value) in added() {
        if let Some(section) = settings.pointer_mut(section).and_then(Value::as_object_mut) {
            section.entry(name).or_insert(value);
        }
    }
    settings
}

/// The 64-bit FNV-1a hash of a value's JSON text, as 16 hexadecimal digits. The text need not fit into memory.
pub fn hash<T: Serialize + ?Sized>(value: &T) -> String {
    let mut hash = Fnv1a::default();
    // Serialisation fails only for maps whose keys are not strings, which do not occur here.
    let _ = serde_json::to_writer(&mut hash, value);
    format!("{:016x}", hash.number())
}

fn compare(key: &str, there: &Value, here: &Value, differences: &mut Vec<String>) {
    match (there, here) {
        (Value::Object(a), Value::Object(b)) => {
            let mut names: Vec<&String> = a.keys().chain(b.keys()).collect();
            names.sort();
            names.dedup();
            for name in names {
                let inner = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
                compare(&inner, a.get(name).unwrap_or(&Value::Null), b.get(name).unwrap_or(&Value::Null), differences);
            }
        }
        (a, b) if a != b => differences.push(format!("{key}: there {a}, here {b}")),
        _ => {}
    }
}

/// The checkpoint of a training folder after so many steps.
pub fn path(folder: &Path, step: usize) -> PathBuf {
    folder.join(format!("checkpoint-{step}"))
}

/// Writes `checkpoint-{step}` into `folder` and returns its path; `moments` is the optimizer's state
/// ([`AdamW::state`]), and `describe` adds the model's configuration.
///
/// # Errors
/// If a file cannot be written, or `describe` fails.
pub fn save(
    folder: &Path,
    optimizer: &AdamW,
    moments: &HashMap<String, Tensor>,
    state: &State,
    describe: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let done = path(folder, state.step);
    let temporary = folder.join(format!(".checkpoint-{}.tmp", state.step));
    remove(&temporary)?;
    fs::create_dir_all(&temporary).map_err(Error::file(&temporary))?;
    let model: HashMap<String, Tensor> =
        optimizer.parameters().iter().map(|(name, var)| (name.clone(), var.as_tensor().clone())).collect();
    weights::save_tensors(&temporary.join(MODEL), &model)?;
    weights::save_tensors(&temporary.join(OPTIMIZER), moments)?;
    let file = temporary.join(STATE);
    let mut json = serde_json::to_string_pretty(state).map_err(|source| Error::Json {
        path: file.clone(),
        what: "checkpoint state",
        source,
    })?;
    json.push('\n');
    fs::write(&file, json).map_err(Error::file(&file))?;
    describe(&temporary)?;
    sync(&file)?;
    sync(&temporary)?;
    discard(&done)?;
    fs::rename(&temporary, &done).map_err(Error::file(&done))?;
    sync(folder)?;
    Ok(done)
}

/// Restores parameters and optimizer from a checkpoint and returns its state.
///
/// # Errors
/// If a file is missing or malformed, the settings differ from `settings`, or a tensor does not fit.
pub fn load(checkpoint: &Path, optimizer: &mut AdamW, settings: &Value) -> Result<State> {
    let path = checkpoint.join(STATE);
    let text = fs::read_to_string(&path).map_err(Error::file(&path))?;
    let state: State = serde_json::from_str(&text).map_err(|source| Error::Json {
        path: path.clone(),
        what: "checkpoint state",
        source,
    })?;
    state.check(settings, checkpoint)?;
    let targets: Vec<Target<'_>> = optimizer.parameters().iter().map(|(name, var)| Target::whole(name, var)).collect();
    set_all(&targets, &checkpoint.join(MODEL))?;
    optimizer.restore(&checkpoint.join(OPTIMIZER), state.step)?;
    Ok(state)
}

/// The complete checkpoints of a folder with their steps, oldest first; none if there is no such folder.
///
/// # Errors
/// If the folder cannot be read.
pub fn list(folder: &Path) -> Result<Vec<(usize, PathBuf)>> {
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::file(folder))? {
        let path = entry.map_err(Error::file(folder))?.path();
        let step = path
            .file_name()
            .and_then(|name| name.to_str())
            .and_then(|name| name.strip_prefix("checkpoint-"))
            .and_then(|step| step.parse().ok());
        if let Some(step) = step.filter(|_| path.join(STATE).is_file()) {
            found.push((step, path));
        }
    }
    found.sort();
    Ok(found)
}

/// Removes all but the newest `keep` checkpoints (at least one is kept), and incomplete ones that killed runs left.
///
/// # Errors
/// If a folder cannot be read or removed.
pub fn keep_last(folder: &Path, keep: usize) -> Result<()> {
    let found = list(folder)?;
    for (_, path) in &found[..found.len().saturating_sub(keep.max(1))] {
        discard(path)?;
    }
    for entry in fs::read_dir(folder).map_err(Error::file(folder))? {
        let path = entry.map_err(Error::file(folder))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.starts_with(".checkpoint-") && (name.ends_with(".tmp") || name.ends_with(".old")) {
            remove(&path)?;
        }
    }
    Ok(())
}

/// Renames a checkpoint to a hidden name, then removes it, so that a kill in between leaves no incomplete checkpoint.
///
/// # Errors
/// If the folder cannot be renamed or removed.
pub fn discard(path: &Path) -> Result<()> {
    if let (true, Some(name)) = (path.exists(), path.file_name().and_then(|name| name.to_str())) {
        let hidden = path.with_file_name(format!(".{name}.old"));
        remove(&hidden)?;
        fs::rename(path, &hidden).map_err(Error::file(path))?;
        remove(&hidden)?;
    }
    Ok(())
}

fn remove(path: &Path) -> Result<()> {
    if path.exists() { fs::remove_dir_all(path).map_err(Error::file(path)) } else { Ok(()) }
}

fn sync(path: &Path) -> Result<()> {
    fs::File::open(path).and_then(|file| file.sync_all()).map_err(Error::file(path))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    /// What a checkpoint says that was written when the settings of the loss were flat.
    fn flat(beta: f64) -> Value {
        json!({
            "schedule": { "kind": "cosine", "learning_rate": 2e-5, "warmup_steps": 2, "total_steps": 12 },
            "objective": {
                "pair_dpo": {
                    "seed": 3, "beta": beta, "lambda_und": 5.0, "lambda_gen": 1.0, "weight_und": 0.3, "weight_gen": 1.0,
                    "prompt_dropout": 0.1,
                },
                "pairs": 7,
            },
        })
    }

    fn nested() -> Value {
        let loss = json!({
            "beta": 0.2, "anchor_und": 5.0, "anchor_gen": 1.0, "likelihood_und": 0.0, "likelihood_gen": 0.0,
            "kl": 0.0, "weight_und": 0.3, "weight_gen": 1.0,
        });
        let pair_dpo = json!({
            "seed": 3, "loss": loss, "prompt_dropout": 0.1, "guidance": 0.0, "masks": "random", "weights": "equal",
        });
        json!({
            "schedule": { "kind": "cosine", "learning_rate": 2e-5, "warmup_steps": 2, "steps": 12 },
            "objective": { "pair_dpo": pair_dpo, "pairs": 7 },
        })
    }

    #[test]
    fn a_checkpoint_of_an_earlier_version_fits_by_its_values() {
        let here = Path::new("checkpoint-3");
        State::new(3, 3, nested()).check(&nested(), here).unwrap();
        State::new(3, 3, flat(0.2)).check(&nested(), here).unwrap();
        let said = State::new(3, 3, flat(0.5)).check(&nested(), here).unwrap_err().to_string();
        assert!(said.contains("objective.pair_dpo.loss.beta: there 0.5, here 0.2"), "{said}");
        assert!(!said.contains("steps") && !said.contains("anchor"), "{said}");
        let edited = State { settings: nested(), ..State::new(3, 3, flat(0.2)) };
        assert!(edited.check(&json!({}), here).is_err());
        let tampered = State { settings_hash: "0".into(), ..State::new(3, 3, flat(0.2)) };
        assert!(tampered.check(&nested(), here).unwrap_err().to_string().contains("hash 0"));
    }
}
