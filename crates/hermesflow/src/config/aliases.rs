//! Earlier names of keys, and keys that earlier versions did not have. Earlier names are accepted in files and as `key=value`
//! arguments, and saved under the names of today. Settings stored beside results are read as today's, so that results of an
//! earlier version are continued by a later one.

use anyhow::{Result, ensure};
use serde_json::json;
use serde_yaml_ng::Value;

use super::yaml;

/// An earlier name and the key of today. `train.schedule` is the section of today when its value is one, and `model.showo` is
/// a section of the original's files then.
pub const ALIASES: [(&str, &str); 18] = [
    (CHECKPOINT, "model.checkpoint"),
    ("train.beta", "train.loss.beta"),
    ("train.anchor_und", "train.loss.anchor_und"),
    ("train.anchor_gen", "train.loss.anchor_gen"),
    ("train.weight_und", "train.loss.weight_und"),
    ("train.weight_gen", "train.loss.weight_gen"),
    ("train.beta1", "train.optimizer.beta1"),
    ("train.beta2", "train.optimizer.beta2"),
    ("train.eps", "train.optimizer.eps"),
    ("train.weight_decay", "train.optimizer.weight_decay"),
    (KIND, "train.schedule.kind"),
    ("train.learning_rate", "train.schedule.learning_rate"),
    ("train.warmup_steps", "train.schedule.warmup_steps"),
    ("train.steps", "train.schedule.steps"),
    ("train.mask_schedule", "train.masking.mask_schedule"),
    ("train.min_masking_rate", "train.masking.min_masking_rate"),
    ("train.mask_contiguous_region_prob", "train.masking.mask_contiguous_region_prob"),
    ("train.checkpointing", "train.recompute"),
];

/// The shape of the learning rate, where the section of that name is now.
const KIND: &str = "train.schedule";

/// Keys that were added after results had been made without them: section, name, and the value that earlier versions acted by.
fn added() -> [(&'static str, &'static str, serde_json::Value); 10] {
    [
        ("/pair", "altered", json!(0)),
        ("/pair", "altered_margin", json!(0.5)),
        ("/pair", "retries", json!(0)),
        ("/train/loss", "kl", json!(0.0)),
        ("/answer", "caption_likelihood", json!(false)),
        ("/train", "masks", json!("random")),
        ("/train", "guidance", json!(0.0)),
        ("/train", "pair_weights", json!("equal")),
        ("/train/loss", "likelihood_und", json!(0.0)),
        ("/train/loss", "likelihood_gen", json!(0.0)),
    ]
}

/// The checkpoint, where there was one backbone.
const CHECKPOINT: &str = "model.showo";

/// Whether an earlier name is one only while its value is no section.
fn is_single(earlier: &str) -> bool {
    [KIND, CHECKPOINT].contains(&earlier)
}

/// Earlier names of a key.
pub fn of(key: &str) -> impl Iterator<Item = &'static str> {
    ALIASES.iter().filter(move |(_, today)| *today == key).map(|(earlier, _)| *earlier)
}

/// A key, or one within it, under its name of today; `single` says whether its value is no section.
pub fn today(key: &str, single: bool) -> String {
    for (earlier, today) in ALIASES {
        let rest = key.strip_prefix(earlier).filter(|rest| rest.is_empty() || rest.starts_with('.'));
        if let Some(rest) = rest.filter(|rest| !is_single(earlier) || (rest.is_empty() && single)) {
            return format!("{today}{rest}");
        }
    }
    key.to_owned()
}

/// Puts every value of a tree under its key's name of today.
///
/// # Errors
/// When a key is given under both names.
pub fn rename(tree: &mut Value) -> Result<()> {
    for (earlier, today) in ALIASES {
        let Some((section, name)) = earlier.rsplit_once('.') else { continue };
        let place = section.split('.').try_fold(&mut *tree, |place, part| place.get_mut(part));
        let Some(map) = place.and_then(Value::as_mapping_mut) else { continue };
        if map.get(name).is_none_or(|value| is_single(earlier) && value.is_mapping()) {
            continue;
        }
        // Taken out first: the section of today may have the same name.
        let Some(value) = map.shift_remove(name) else { continue };
        let given = today.split('.').try_fold(&*tree, |place, part| place.get(part)).is_some();
        ensure!(!given, "{earlier}: is the earlier name of {today}, which is given too; remove one of the two");
        yaml::set(tree, today, value)?;
    }
    Ok(())
}

/// Puts stored settings of an earlier version under the names of today, and adds keys that came later with the value by which
/// earlier versions acted. What has both names stays as it is.
pub fn as_of_today(settings: &mut serde_json::Map<String, serde_json::Value>) {
    let Ok(mut tree) = serde_yaml_ng::to_value(&*settings) else { return };
    if rename(&mut tree).is_err() {
        return;
    }
    let Ok(mut tree) = serde_json::to_value(&tree) else { return };
    for (section, name, value) in added() {
        if let Some(section) = tree.pointer_mut(section).and_then(serde_json::Value::as_object_mut) {
            section.entry(name).or_insert(value);
        }
    }
    if let serde_json::Value::Object(today) = tree {
        *settings = today;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn renamed(text: &str) -> Result<Value> {
        let mut tree = yaml::read(text).unwrap();
        rename(&mut tree).map(|()| tree)
    }

    #[test]
    fn earlier_names_become_those_of_today() {
        let flat = "seed: 1\ntrain: { steps: 5, beta: 0.5, schedule: linear, checkpointing: true, keep: 3 }";
        let nested =
            "seed: 1\ntrain: { schedule: { kind: linear, steps: 5 }, loss: { beta: 0.5 }, recompute: true, keep: 3 }";
        assert_eq!(renamed(flat).unwrap(), renamed(nested).unwrap());
        let mixed = "train: { steps: 5, schedule: { kind: linear } }";
        assert_eq!(renamed(mixed).unwrap(), renamed("train: { schedule: { kind: linear, steps: 5 } }").unwrap());
        for text in ["seed: 1", "train: 3", "train: [1]", "train:"] {
            assert_eq!(renamed(text).unwrap(), yaml::read(text).unwrap(), "{text}");
        }
        let said = renamed("train: { steps: 5, schedule: { steps: 5 } }").unwrap_err().to_string();
        assert!(said.starts_with("train.steps: ") && said.contains("train.schedule.steps"), "{said}");
    }

    #[test]
    fn a_key_is_named_as_today() {
        assert_eq!(today("train.steps", true), "train.schedule.steps");
        assert_eq!(today("train.mask_schedule.params.tau", true), "train.masking.mask_schedule.params.tau");
        assert_eq!(today("model.showo", true), "model.checkpoint");
        assert_eq!(today("model.showo.vocab_size", true), "model.showo.vocab_size");
        assert_eq!(today("train.schedule", true), "train.schedule.kind");
        assert_eq!(today("train.schedule", false), "train.schedule");
        assert_eq!(today("train.schedule.steps", true), "train.schedule.steps");
        assert_eq!(today("train.stepsize", true), "train.stepsize");
        assert_eq!(of("train.recompute").collect::<Vec<_>>(), ["train.checkpointing"]);
    }

    #[test]
    fn stored_settings_keep_their_values() {
        let mut stored = json!({ "seed": u64::MAX, "train": { "beta": 0.1, "guidance": 2.0 }, "x": [1, 2.5e-7] });
        as_of_today(stored.as_object_mut().unwrap());
        let loss = json!({ "beta": 0.1, "kl": 0.0, "likelihood_und": 0.0, "likelihood_gen": 0.0 });
        let today = json!({
            "seed": u64::MAX, "train": { "guidance": 2.0, "loss": loss, "masks": "random", "pair_weights": "equal" },
            "x": [1, 2.5e-7],
        });
        assert_eq!(stored, today);
    }

    /// A key whose default is not what earlier versions did would bind their results to a value they were not made with.
    #[test]
    fn added_keys_are_keys_at_their_defaults() {
        let defaults = serde_json::to_value(crate::config::RunConfig::default()).unwrap();
        for (section, name, value) in added() {
            assert_eq!(defaults.pointer(&format!("{section}/{name}")), Some(&value), "{section}/{name}");
        }
    }
}
