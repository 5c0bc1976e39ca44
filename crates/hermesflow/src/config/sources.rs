//! Where the values of a configuration came from, for whoever must mend one: the file and its line, the argument behind
//! it, or the default. And what a key may have been meant to be.

use std::fmt;

use anyhow::Result;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_yaml_ng::Value;

/// How alike a key and what was written must be, from 0 to 1.
const ALIKE: f64 = 0.7;

/// A file and the arguments behind it.
pub struct Sources<'a> {
    /// The file, as messages name it; none for a text of no file.
    pub file: Option<String>,
    /// What it says.
    pub text: &'a str,
    /// `key=value` arguments.
    pub overrides: &'a [String],
    /// All keys with their defaults.
    pub defaults: &'a Value,
}

impl Sources<'_> {
    /// An error with where the value at fault came from.
    pub fn explain(&self, error: &anyhow::Error) -> anyhow::Error {
        let mut message = format!("{error:#}");
        for (machine, word) in
            [("usize", "a whole number, 0 or more"), ("u64", "a whole number, 0 or more"), ("f64", "a number")]
        {
            message = message.replace(&format!("expected {machine}"), &format!("expected {word}"));
        }
        if let Some(unknown) = unknown_key(&message) {
            message = format!("{unknown}: there is no such key{}", self.meant(&unknown));
        }
        let file = self.file.as_deref().map_or_else(String::new, |file| format!("{file}: "));
        // Of an argument that is none the message shows the whole.
        let Some(key) = key_of(&message) else { return anyhow::anyhow!("{file}{message}") };
        let about = |argument: &&String| {
            let given = argument.split_once('=').map_or(argument.as_str(), |(key, _)| key);
            given == key || within(key, given) || within(given, key)
        };
        if let Some(argument) = self.overrides.iter().rev().find(about) {
            return anyhow::anyhow!("{message} (from the argument {argument})");
        }
        match (line_of(self.text, key), &self.file) {
            (Some(line), Some(file)) => anyhow::anyhow!("{file}, line {line}: {message}"),
            (Some(line), None) => anyhow::anyhow!("line {line}: {message}"),
            _ if at(self.defaults, key).is_some() => anyhow::anyhow!("{file}{message} ({key} has its default)"),
            _ => anyhow::anyhow!("{file}{message}"),
        }
    }

    /// What an unknown key may have been meant to be, in words.
    fn meant(&self, unknown: &str) -> String {
        let mut keys = Vec::new();
        all_keys(self.defaults, "", &mut keys);
        let (section, name) = split(unknown);
        let elsewhere: Vec<&str> = keys.iter().map(String::as_str).filter(|key| split(key).1 == name).collect();
        if !elsewhere.is_empty() {
            return format!("; did you mean {}?", elsewhere.join(" or "));
        }
        let likeness = |key: &&String| strsim::jaro_winkler(split(key).1, name);
        let beside = keys.iter().filter(|key| split(key).0 == section).map(|key| (likeness(&key), key));
        let best = beside.filter(|(likeness, _)| *likeness > ALIKE).max_by(|(a, _), (b, _)| a.total_cmp(b));
        best.map_or_else(String::new, |(_, key)| format!("; did you mean {key}?"))
    }
}

/// A key's section and its name there.
fn split(key: &str) -> (&str, &str) {
    key.rsplit_once('.').unwrap_or(("", key))
}

/// The unknown key that serde's message is about.
fn unknown_key(message: &str) -> Option<String> {
    let (before, rest) = message.split_once("unknown field `")?;
    let (name, _) = rest.split_once('`')?;
    let section = before.trim_end().trim_end_matches(':');
    Some(if section.is_empty() { name.to_owned() } else { format!("{section}.{name}") })
}

/// The dotted key that a message begins with.
fn key_of(message: &str) -> Option<&str> {
    let (key, _) = message.split_once(": ")?;
    let good = |character: char| character.is_ascii_alphanumeric() || "._-[]".contains(character);
    (!key.is_empty() && key.chars().all(good)).then_some(key)
}

/// Whether a key lies in the section of another one.
fn within(key: &str, section: &str) -> bool {
    key.strip_prefix(section).is_some_and(|rest| rest.starts_with(['.', '[']))
}

fn parts(key: &str) -> Vec<&str> {
    key.split(['.', '[']).map(|part| part.trim_end_matches(']')).filter(|part| !part.is_empty()).collect()
}

fn at<'v>(tree: &'v Value, key: &str) -> Option<&'v Value> {
    parts(key).into_iter().try_fold(tree, |place, part| match part.parse::<usize>() {
        Ok(number) => place.get(number),
        Err(_) => place.get(part),
    })
}

fn all_keys(tree: &Value, key: &str, out: &mut Vec<String>) {
    for (name, inner) in tree.as_mapping().into_iter().flatten() {
        let Some(name) = name.as_str() else { continue };
        let inner_key = if key.is_empty() { name.to_owned() } else { format!("{key}.{name}") };
        all_keys(inner, &inner_key, out);
        out.push(inner_key);
    }
}

/// The line on which the value of a key stands, from 1.
pub fn line_of(text: &str, key: &str) -> Option<usize> {
    let found = Find(&parts(key)).deserialize(serde_yaml_ng::Deserializer::from_str(text)).err()?;
    found.location().filter(|_| found.to_string().contains(HERE)).map(|location| location.line())
}

/// Said where the value is: the parser adds the place.
const HERE: &str = "the value that was looked for";

/// Goes down a tree to the value of a key.
struct Find<'k>(&'k [&'k str]);

impl<'de> DeserializeSeed<'de> for Find<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Find<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { HERE } else { "a section" })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Some((first, rest)) = self.0.split_first() else { return Err(A::Error::custom(HERE)) };
        while let Some(name) = map.next_key::<Value>()? {
            if name.as_str() == Some(*first) {
                return map.next_value_seed(Find(rest));
            }
            map.next_value::<IgnoredAny>()?;
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let Some((first, rest)) = self.0.split_first() else { return Err(A::Error::custom(HERE)) };
        let Ok(wanted) = first.parse::<usize>() else { return Ok(()) };
        for _ in 0..wanted {
            list.next_element::<IgnoredAny>()?;
        }
        list.next_element_seed(Find(rest)).map(drop)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_line_of_a_value_is_found_in_any_style() {
        let text = "# a comment\nseed: 1\ntrain:\n  steps: 5 # many\n  watch: { window: 3,\n    stop: true }\n\
                    caption:\n  candidates:\n    - { top_k: 1 }\n    - top_k: 2\n      temperature: 0\n";
        for (key, line) in [
            ("seed", Some(2)),
            ("train.steps", Some(4)),
            ("train.watch.stop", Some(6)),
            ("caption.candidates[1].temperature", Some(11)),
            ("caption.candidates[0]", Some(9)),
            ("train.stepz", None),
            ("seed.x", None),
            ("nothing", None),
        ] {
            assert_eq!(line_of(text, key), line, "{key}");
        }
    }

    #[test]
    fn keys_within_sections() {
        assert!(within("train.steps", "train") && within("a.b[0].c", "a.b") && !within("trainer", "train"));
        assert_eq!(key_of("train.steps: must"), Some("train.steps"));
        assert_eq!(key_of("not YAML: did not find"), None);
        assert_eq!(unknown_key("train: unknown field `stepz`, expected one of `a`, `b`"), Some("train.stepz".into()));
        assert_eq!(unknown_key("unknown field `x`, expected"), Some("x".into()));
    }
}
