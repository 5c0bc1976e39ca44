//! The keys of a kind of file, read off its schema.

use std::sync::OnceLock;

use anyhow::{Result, bail};
use serde_json::Value;

use super::schema::{self, object};
use super::words::{Words, allowed, flow, is_text, kind, nullable};
use crate::config::aliases;
use crate::config::pretrain::PretrainConfig;
use crate::config::run::RunConfig;

/// One key.
#[derive(Debug, Clone, PartialEq)]
pub struct Key {
    /// The dotted name; `[]` stands for the entries of a list.
    pub name: String,
    /// The type and the range of its values, in words.
    pub kind: String,
    /// What its number counts.
    pub unit: Option<String>,
    /// The default as it would stand in YAML; none where it must be given.
    pub default: Option<String>,
    /// The meaning.
    pub meaning: String,
    /// Where it comes from.
    pub source: Option<String>,
    /// The values that it may have, with their meaning, where these are few.
    pub allowed: Vec<(String, String)>,
    /// Earlier names, which are accepted.
    pub earlier: Vec<&'static str>,
}

/// A section and the keys in it, or the keys outside all sections.
#[derive(Debug, Clone, PartialEq)]
pub struct Section {
    /// The dotted name; empty for the top of the file.
    pub name: String,
    /// The meaning.
    pub meaning: String,
    /// The keys in it, without those of sections within it.
    pub keys: Vec<Key>,
}

/// The keys of a kind of file.
#[derive(Debug)]
pub struct Keys {
    schema: Value,
    pub(super) sections: Vec<Section>,
    /// Dotted names of the keys that hold any text or a path.
    texts: Vec<String>,
}

impl Keys {
    /// The keys of a run's file.
    pub fn run() -> &'static Self {
        static KEYS: OnceLock<Keys> = OnceLock::new();
        KEYS.get_or_init(|| Self::of(schema::of::<RunConfig>()))
    }

    /// The keys of a pretraining's file.
    pub fn pretrain() -> &'static Self {
        static KEYS: OnceLock<Keys> = OnceLock::new();
        KEYS.get_or_init(|| Self::of(schema::of::<PretrainConfig>()))
    }

    fn of(schema: Value) -> Self {
        let mut keys = Self { schema: Value::Null, sections: Vec::new(), texts: Vec::new() };
        keys.section("", &schema);
        keys.schema = schema;
        keys
    }

    /// The schema of the values of today's keys.
    pub fn schema(&self) -> &Value {
        &self.schema
    }

    /// The schema as a file for editors, which accepts earlier names of keys, too.
    pub fn schema_file(&self) -> String {
        format!("{:#}\n", schema::with_earlier_names(&self.schema))
    }

    /// Whether a key holds any text or a path: behind the file its value is taken as it stands.
    pub fn takes_any_text(&self, key: &str) -> bool {
        self.texts.iter().any(|text| text == key)
    }

    /// Takes in the keys of a section.
    fn section(&mut self, name: &str, schema: &Value) {
        let Some(section) = object(schema) else { return };
        let required = |part: &str| section["required"].as_array().is_some_and(|all| all.iter().any(|one| one == part));
        let at = self.sections.len();
        let meaning = Words::of(schema["description"].as_str().unwrap_or_default()).meaning;
        self.sections.push(Section { name: name.to_owned(), meaning, keys: Vec::new() });
        for (part, property) in section["properties"].as_object().into_iter().flatten() {
            let inner = if name.is_empty() { part.clone() } else { format!("{name}.{part}") };
            if !schema::is_section(property) {
                self.sections[at].keys.push(key(&inner, property, required(part)));
                if is_text(property) {
                    self.texts.push(inner.clone());
                }
            }
            let entries = &property["items"];
            match object(entries) {
                Some(_) => self.section(&format!("{inner}[]"), entries),
                None => self.section(&inner, property),
            }
        }
    }

    /// Refuses a key of a tree that nothing reads.
    ///
    /// # Errors
    /// Names the key, in serde's words.
    pub fn refuse_unknown(&self, tree: &serde_yaml_ng::Value) -> Result<()> {
        unknown("", tree, &self.schema)
    }
}

fn unknown(key: &str, tree: &serde_yaml_ng::Value, schema: &Value) -> Result<()> {
    if let (Some(map), Some(section)) = (tree.as_mapping(), object(schema)) {
        for (name, value) in map {
            let name = name.as_str().unwrap_or_default();
            let Some(inner) = section["properties"].get(name) else {
                let place = if key.is_empty() { String::new() } else { format!("{key}: ") };
                bail!("{place}unknown field `{name}`");
            };
            unknown(&if key.is_empty() { name.to_owned() } else { format!("{key}.{name}") }, value, inner)?;
        }
    }
    for (at, value) in tree.as_sequence().into_iter().flatten().enumerate() {
        unknown(&format!("{key}[{at}]"), value, &schema["items"])?;
    }
    Ok(())
}

fn key(name: &str, schema: &Value, required: bool) -> Key {
    let Words { meaning, unit, default, source } = Words::of(schema["description"].as_str().unwrap_or_default());
    let default = match schema.get("default") {
        // Of what is long or decided elsewhere, the words are the better answer.
        Some(Value::Null | Value::Array(_)) if default.is_some() => default,
        Some(given) => Some(flow(given)),
        None => Some("null".to_owned()).filter(|_| !required),
    };
    let allowed = allowed(schema);
    let kind = if allowed.is_empty() { kind(schema) } else { nullable("one of", schema) };
    Key { name: name.to_owned(), kind, unit, default, meaning, source, allowed, earlier: aliases::of(name).collect() }
}
