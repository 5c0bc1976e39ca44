//! Which settings decide the numbers of a run, and which do not: the one place that knows.

use anyhow::Result;
use serde_json::{Value, json};

use crate::config::RunConfig;
use crate::made::Origin;

/// Keys that decide no number.
///
/// Names and places of files: what the files hold is compared where it is used. How often checkpoints are written and how
/// many are kept, where the optimizer's state lies, what is computed again instead of kept: these change the memory and
/// the time of a step and not its result.
pub const DECIDE_NOTHING: [&str; 18] = [
    "iterations",
    "output",
    "judges",
    "data.root",
    "data.allow_outside",
    "model.checkpoint",
    "model.backbone",
    "model.vq",
    "model.tokenizer",
    "model.clip",
    "model.expect",
    "ask.file",
    "train.checkpoint_every",
    "train.keep",
    "train.preview",
    "train.recompute",
    "train.optimizer_state",
    "train.watch",
];

/// A configuration without the keys that decide no number.
///
/// # Errors
/// Never for a configuration that was read.
pub fn decisive(config: &RunConfig) -> Result<Value> {
    let mut tree = serde_json::to_value(config)?;
    for key in DECIDE_NOTHING {
        let (section, name) = key.rsplit_once('.').unwrap_or(("", key));
        let section = section.split('.').filter(|part| !part.is_empty()).map(|part| format!("/{part}"));
        if let Some(map) = tree.pointer_mut(&section.collect::<String>()).and_then(Value::as_object_mut) {
            map.shift_remove(name); // the others keep their order
        }
    }
    Ok(tree)
}

/// What decides the results of a stage as a whole: its own settings, and with every stage the seed, the model's type and
/// device, and how many records are worked on as one batch.
pub fn origin(config: &RunConfig, settings: Value) -> Origin {
    let mut model = json!({ "dtype": config.model.dtype, "device": config.model.device });
    if config.model.kernels.pinned().is_some() {
        model["kernels"] = json!(config.model.kernels); // left open, they are the machine's, as in earlier versions
    }
    let mut all = json!({ "seed": config.seed, "model": model, "data": { "chunk": config.data.chunk } });
    for (key, value) in settings.as_object().into_iter().flatten() {
        all[key] = value.clone();
    }
    Origin::of(all)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_key_of_the_list_is_one_of_the_configuration_and_is_left_out() {
        let mut config = RunConfig::default();
        config.model.expect.resolution = Some(64); // left out of the file where nothing is expected
        let (whole, left) = (serde_json::to_value(&config).unwrap(), decisive(&config).unwrap());
        for key in DECIDE_NOTHING {
            let pointer = format!("/{}", key.replace('.', "/"));
            assert!(whole.pointer(&pointer).is_some(), "{key} is no key of a configuration");
            assert!(left.pointer(&pointer).is_none(), "{key}");
        }
        for key in ["/seed", "/train/schedule/steps", "/model/dtype", "/data/chunk", "/caption/question"] {
            assert_eq!(left.pointer(key), whole.pointer(key), "{key}");
        }
    }
}
