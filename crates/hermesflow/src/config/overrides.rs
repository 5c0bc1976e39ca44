//! `key=value` arguments over a YAML file.

use anyhow::{Context, Result, ensure};
use serde::de::DeserializeOwned;
use serde_yaml_ng::{Mapping, Value};

use super::keys::Keys;
use super::{aliases, yaml};

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

/// Sets one dotted key of our files, e.g. `train.schedule.steps=100` or `caption.candidates=[{top_k: 1, temperature: 1.0}]`,
/// by its name of today or an earlier one.
///
/// A value is YAML, except that of a key that holds any text or a path: `data.root=1.10` and `data.root=a #1` mean what
/// they say.
///
/// # Errors
/// When the argument is not `key=value`, its value is empty, or a part of the key before the last has a single value.
pub fn apply(tree: &mut Value, argument: &str, keys: &Keys) -> Result<()> {
    let (key, value) = split(argument, |key| keys.takes_any_text(key))?;
    yaml::set(tree, &aliases::today(&key, !value.is_mapping()), value)?;
    aliases::rename(tree)
}

/// The key and the value of a `key=value` argument; the value of a key that holds a text is taken as it stands.
///
/// # Errors
/// When it is not `key=value`, its value is empty, or it is not YAML.
pub fn split(argument: &str, is_text: impl Fn(&str) -> bool) -> Result<(String, Value)> {
    let (key, value) = argument
        .split_once('=')
        .with_context(|| format!("{argument:?} is not key=value, such as train.schedule.steps=100"))?;
    ensure!(!value.is_empty(), "{key}: the value is empty; is a variable of the shell not set?");
    let value = match is_text(key) {
        true => value.into(),
        false => yaml::read(value).with_context(|| format!("{key}: {value:?} is not a value"))?,
    };
    Ok((key.to_owned(), value))
}

/// The re-read text is not the user's file: its line numbers would mislead.
fn without_location(message: &str) -> &str {
    message.find(" at line ").map_or(message, |at| &message[..at])
}
