//! `key=value` arguments over a YAML file.

use anyhow::{Context, Result, ensure};
use serde::de::DeserializeOwned;
use serde_yaml_ng::{Mapping, Value};

use super::yaml;

/// Reads YAML with overrides, naming the key of whatever does not fit. The values of `texts` are taken as they stand.
///
/// # Errors
/// When the text is not YAML, an override is not `key=value`, or a key or value is not one of `T`'s.
pub fn parse<T: DeserializeOwned>(yaml: &str, overrides: &[String], texts: &[&str]) -> Result<T> {
    let mut tree = tree(yaml)?;
    for argument in overrides {
        apply(&mut tree, argument, texts)?;
    }
    read(&tree)
}

/// The tree of a YAML text; an empty one has no keys.
///
/// # Errors
/// When the text is not a mapping in YAML.
pub fn tree(text: &str) -> Result<Value> {
    let mut tree = yaml::read(text)?;
    if tree.is_null() {
        tree = Value::Mapping(Mapping::new()); // an empty file: all defaults
    }
    ensure!(tree.is_mapping(), "a configuration is a set of `key: value` lines");
    Ok(tree)
}

/// The settings that a tree holds.
///
/// # Errors
/// Names the key whose value is not one of `T`'s.
pub fn read<T: DeserializeOwned>(tree: &Value) -> Result<T> {
    // Through text again: errors then carry the key's path.
    let text = serde_yaml_ng::to_string(tree)?;
    serde_yaml_ng::from_str(&text).map_err(|error| anyhow::anyhow!("{}", without_location(&error.to_string())))
}

/// Sets one dotted key, e.g. `train.steps=100` or `caption.candidates=[{top_k: 1, temperature: 1.0}]`.
///
/// A value is YAML, but that of one of `texts`, keys that hold a text or a path: `data.root=1.10` and `data.root=a #1` mean
/// what they say.
///
/// # Errors
/// When the argument is not `key=value`, its value is empty, or a part of the key before the last has a single value.
pub fn apply(tree: &mut Value, argument: &str, texts: &[&str]) -> Result<()> {
    let (key, value) =
        argument.split_once('=').with_context(|| format!("{argument:?} is not key=value, such as train.steps=100"))?;
    ensure!(!value.is_empty(), "{key}: the value is empty; is a variable of the shell not set?");
    let value: Value = match texts.contains(&key) {
        true => value.into(),
        false => yaml::read(value).with_context(|| format!("{key}: {value:?} is not a value"))?,
    };
    set(tree, key, value)
}

/// Puts a value at a dotted key, making the sections on the way.
///
/// # Errors
/// When a part of the key is empty or, before the last, has a single value.
pub fn set(tree: &mut Value, key: &str, value: Value) -> Result<()> {
    let mut place = tree;
    for part in key.split('.') {
        ensure!(!part.is_empty(), "the key {key:?} has an empty part");
        if place.is_null() {
            *place = Value::Mapping(Mapping::new());
        }
        let map = place
            .as_mapping_mut()
            .with_context(|| format!("{key}: {part:?} is inside a single value, not a section"))?;
        place = map.entry(Value::String(part.into())).or_insert(Value::Null);
    }
    *place = value;
    Ok(())
}

/// The re-read text is not the user's file: its line numbers would mislead.
fn without_location(message: &str) -> &str {
    message.find(" at line ").map_or(message, |at| &message[..at])
}
