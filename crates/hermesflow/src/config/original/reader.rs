//! Typed reading of a tree by dotted keys, which remembers what was read.

use std::collections::BTreeSet;

use anyhow::{Result, bail};
use serde_yaml_ng::Value;

use super::references::{child, join, name_text};

/// The tree of an original's file, all references resolved.
#[derive(Debug)]
pub struct Reader {
    tree: Value,
    read: BTreeSet<String>,
}

impl Reader {
    /// Over a tree.
    pub fn new(tree: Value) -> Self {
        Self { tree, read: BTreeSet::new() }
    }

    /// Whether the tree has a key; this is not reading it.
    pub fn has(&self, key: &str) -> bool {
        key.split('.').try_fold(&self.tree, child).is_some_and(|value| !value.is_null())
    }

    /// The value at a key, null and all.
    ///
    /// # Errors
    /// When a section on the way is a single value, or the value is OmegaConf's `???`.
    pub fn value(&mut self, key: &str) -> Result<Option<Value>> {
        let mut place = &self.tree;
        let mut path = String::new();
        for part in key.split('.') {
            if !matches!(place, Value::Mapping(_) | Value::Null) {
                return Err(wrong(&path, "a section", place));
            }
            let Some(next) = child(place, part) else { return Ok(None) };
            place = next;
            path = join(&path, part);
        }
        if place.as_str() == Some("???") {
            bail!("{key}: its value ??? must be given, as {key}=VALUE behind the file");
        }
        self.read.insert(key.to_owned());
        Ok(Some(place.clone()))
    }

    /// The value at a key that is there and not null.
    fn given(&mut self, key: &str) -> Result<Option<Value>> {
        Ok(self.value(key)?.filter(|value| !value.is_null()))
    }

    /// A number.
    ///
    /// # Errors
    /// Names the key when it is something else.
    pub fn number(&mut self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.given(key)? else { return Ok(None) };
        match number(&value) {
            Some(number) => Ok(Some(number)),
            None => Err(wrong(key, "a number", &value)),
        }
    }

    /// A whole number, 0 or more.
    ///
    /// # Errors
    /// Names the key when it is something else.
    pub fn count(&mut self, key: &str) -> Result<Option<usize>> {
        let Some(value) = self.given(key)? else { return Ok(None) };
        let whole = number(&value).filter(|n| n.fract() == 0.0 && (0.0..=9_007_199_254_740_992.0).contains(n));
        match value.as_u64().map(|n| n as usize).or(whole.map(|n| n as usize)) {
            Some(count) => Ok(Some(count)),
            None => Err(wrong(key, "a whole number", &value)),
        }
    }

    /// A text.
    ///
    /// # Errors
    /// Names the key when it is something else.
    pub fn text(&mut self, key: &str) -> Result<Option<String>> {
        let Some(value) = self.given(key)? else { return Ok(None) };
        match value.as_str() {
            Some(text) if !text.is_empty() => Ok(Some(text.to_owned())),
            _ => Err(wrong(key, "a text", &value)),
        }
    }

    /// True or false.
    ///
    /// # Errors
    /// Names the key when it is something else.
    pub fn flag(&mut self, key: &str) -> Result<Option<bool>> {
        let Some(value) = self.given(key)? else { return Ok(None) };
        // PyYAML reads YAML 1.1, which has more words for it.
        match value.as_str().map(str::to_ascii_lowercase).as_deref() {
            Some("yes" | "on") => Ok(Some(true)),
            Some("no" | "off") => Ok(Some(false)),
            _ => match value.as_bool() {
                Some(flag) => Ok(Some(flag)),
                None => Err(wrong(key, "True or False", &value)),
            },
        }
    }

    /// The dotted keys of all single values and lists that nothing has read.
    pub fn unread(&self) -> Vec<String> {
        let mut all = Vec::new();
        leaves(&self.tree, "", &mut all);
        all.retain(|key| !self.read.iter().any(|read| key == read || key.starts_with(&format!("{read}."))));
        all
    }
}

/// An error about a value of the wrong type.
pub fn wrong(key: &str, expected: &str, found: &Value) -> anyhow::Error {
    let found = serde_json::to_string(found).unwrap_or_default();
    anyhow::anyhow!("{key}: expected {expected}, found {found}")
}

fn number(value: &Value) -> Option<f64> {
    // PyYAML allows underscores between digits.
    let grouped = |text: &str| {
        let digits = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'_');
        if digits && text.contains('_') { text.replace('_', "").parse().ok() } else { None }
    };
    value.as_f64().or_else(|| value.as_str().and_then(grouped)).filter(|number| number.is_finite())
}

fn leaves(value: &Value, key: &str, out: &mut Vec<String>) {
    match value {
        Value::Mapping(map) if !map.is_empty() || key.is_empty() => {
            for (name, inner) in map {
                leaves(inner, &join(key, &name_text(name)), out);
            }
        }
        _ => out.push(key.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn reader(yaml: &str) -> Reader {
        Reader::new(serde_yaml_ng::from_str(yaml).unwrap())
    }

    #[test]
    fn values_as_pyyaml_reads_them() {
        let mut reader = reader("{a: {lr: 2e-5, steps: 50_000, more: 1e4, on: yes, off: False, none: null, t: x}}");
        assert_eq!(reader.number("a.lr").unwrap(), Some(2e-5));
        assert_eq!(reader.count("a.steps").unwrap(), Some(50_000));
        assert_eq!(reader.count("a.more").unwrap(), Some(10_000));
        assert_eq!((reader.flag("a.on").unwrap(), reader.flag("a.off").unwrap()), (Some(true), Some(false)));
        assert_eq!((reader.number("a.none").unwrap(), reader.number("b.c").unwrap()), (None, None));
        assert_eq!(reader.unread(), ["a.t"]);
    }

    #[test]
    fn wrong_types_name_the_key_and_what_is_there() {
        let mut reader = reader("{a: {n: many, t: [1], f: 2, x: 1.5, m: '???'}, s: 3}");
        let said = [
            reader.number("a.n").unwrap_err().to_string(),
            reader.text("a.t").unwrap_err().to_string(),
            reader.flag("a.f").unwrap_err().to_string(),
            reader.count("a.x").unwrap_err().to_string(),
            reader.count("s.inner").unwrap_err().to_string(),
        ];
        assert_eq!(
            said,
            [
                "a.n: expected a number, found \"many\"",
                "a.t: expected a text, found [1]",
                "a.f: expected True or False, found 2",
                "a.x: expected a whole number, found 1.5",
                "s: expected a section, found 3",
            ]
        );
        assert!(reader.count("a.m").unwrap_err().to_string().contains("a.m=VALUE"));
    }
}
