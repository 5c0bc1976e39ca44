//! Where the values of a configuration came from, for whoever must correct one: the file and its line, the argument behind
//! it, or the default. And what a key that does not exist may have been meant to be.

use std::fmt;

use anyhow::Result;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_yaml_ng::Value;

use super::aliases;
use super::keys::Keys;

/// A file and the arguments behind it.
pub struct Sources<'a> {
    /// The file, as messages name it; none for a text of no file.
    pub file: Option<String>,
    /// What it says.
    pub text: &'a str,
    /// `key=value` arguments.
    pub overrides: &'a [String],
    /// All keys that the file may hold.
    pub keys: &'a Keys,
}

impl Sources<'_> {
    /// An error with where the value at fault came from, under the name of the key that was written there.
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
        let Some(key) = key_of(&message).map(str::to_owned) else { return anyhow::anyhow!("{file}{message}") };
        let about = |argument: &&String| {
            let given = argument.split_once('=').map_or(argument.as_str(), |(key, _)| key);
            let today = aliases::today(given, ["train.schedule.kind", "model.checkpoint"].contains(&key.as_str()));
            [given, &today].into_iter().any(|given| given == key || within(&key, given) || within(given, &key))
        };
        if let Some(argument) = self.overrides.iter().rev().find(about) {
            let given = argument.split_once('=').map_or(argument.as_str(), |(key, _)| key);
            if aliases::of(&key).any(|earlier| earlier == given) {
                message.replace_range(..key.len(), given);
            }
            return anyhow::anyhow!("{message} (from the argument {argument})");
        }
        let mut line = line_of(self.text, &key);
        if let (None, Some(earlier)) = (line, aliases::of(&key).find(|earlier| line_of(self.text, earlier).is_some())) {
            line = line_of(self.text, earlier);
            message.replace_range(..key.len(), earlier);
        }
        match (line, &self.file) {
            (Some(line), Some(file)) => anyhow::anyhow!("{file}, line {line}: {message}"),
            (Some(line), None) => anyhow::anyhow!("line {line}: {message}"),
            _ if self.keys.names().any(|known| known == key) => {
                anyhow::anyhow!("{file}{message} ({key} has its default)")
            }
            _ => anyhow::anyhow!("{file}{message}"),
        }
    }

    /// What an unknown key may have been meant to be, in words.
    fn meant(&self, unknown: &str) -> String {
        match self.keys.nearest(unknown) {
            nearest if nearest.is_empty() => "; `hermesflow keys` lists all".into(),
            nearest => format!("; did you mean {}?", nearest.join(" or ")),
        }
    }
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
