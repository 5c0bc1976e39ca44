//! The YAML files of the original, HermesFlow's and Show-o's, as they are.
//!
//! A file is recognised by its sections. `key=value` arguments in its own names go over it, its `${…}` references are
//! resolved, and its keys are translated into a tree of [`super::RunConfig`]; our own keys, in the file or as
//! arguments, go over that. Nothing is dropped in silence: what has no meaning here, what is not followed and what
//! nobody knows is named in one warning.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use serde_yaml_ng::{Mapping, Value};

use self::reader::Reader;
use self::translation::Translation;
use super::data::DataSettings;
use super::keys::Keys;
use super::run::RunConfig;
use super::train::TrainSettings;
use super::{aliases, overrides, yaml};

mod keys;
mod reader;
mod references;
#[cfg(test)]
mod tests;
mod training;
mod translation;

/// Columns of a warning.
const COLUMNS: usize = 100;

/// Sections that the original's files have and ours have not.
const SECTIONS: [&str; 6] = ["wandb", "experiment", "dataset", "optimizer", "lr_scheduler", "training"];

/// Keys of the original that hold a text or a path: behind the file their values are taken as they stand.
const TEXTS: [&str; 8] = [
    "experiment.output_dir",
    "dataset.params.dpo_data_path",
    "model.vq_model.vq_model_name",
    "model.vq_model.pretrained_model_path",
    "model.showo.pretrained_model_path",
    "model.showo.llm_model_path",
    "pretrained_model_path",
    "question",
];

/// Whether a tree is of the original's form.
pub fn is_original(tree: &Value) -> bool {
    let section = |key: &str| tree.get("model").and_then(|model| model.get(key));
    if let Some(showo) = section("showo") {
        return showo.is_mapping();
    }
    let own = OwnKeys::new();
    let ours = |name: &Value| name.as_str().is_some_and(|name| own.sections.contains(name));
    let theirs = section("vq_model").is_some() || SECTIONS.iter().any(|name| tree.get(*name).is_some());
    theirs && tree.as_mapping().is_some_and(|map| !map.keys().any(ours))
}

/// The tree of a run's configuration, and what its user must be told.
///
/// # Errors
/// Names the original key whose value is of the wrong type, contradicts another, or asks for what is not here.
pub fn translate(mut tree: Value, arguments: &[String]) -> Result<(Value, Vec<String>)> {
    let own = OwnKeys::new();
    let (ours, theirs): (Vec<&String>, Vec<&String>) = arguments.iter().partition(|argument| own.has(key_of(argument)));
    for argument in &theirs {
        let (key, value) = overrides::split(argument, |key| TEXTS.contains(&key))?;
        yaml::set(&mut tree, &key, value)?;
    }
    let mut tree = references::resolve(&tree)?;
    let mut over = own.take(&mut tree);
    aliases::rename(&mut over)?;

    let given: BTreeSet<String> = arguments.iter().map(|argument| aliases::today(key_of(argument), false)).collect();
    let Translation { into: mut out, mut warnings, .. } = Translation::of(Reader::new(tree), &given)?;
    merge(&mut out, over);
    for argument in &ours {
        overrides::apply(&mut out, argument, Keys::run())?;
    }
    ensure!(
        out.get("model").is_some_and(|model| model.get("checkpoint").is_some()),
        "model.showo.pretrained_model_path: missing; give the checkpoint's folder or name, as \
         model.showo.pretrained_model_path=showlab/show-o behind the file"
    );
    warnings.extend(fit_warmup(&mut out, &given)?);
    warnings.extend(fit_resolution(&mut out));
    warnings.extend(fit_spelling(&mut out));
    Ok((out, warnings))
}

/// The key of a `key=value` argument.
fn key_of(argument: &str) -> &str {
    argument.split_once('=').map_or(argument, |(key, _)| key)
}

/// The keys of our own configuration, as far as they are none of the original's.
struct OwnKeys {
    sections: BTreeSet<String>,
    model: BTreeSet<String>,
}

impl OwnKeys {
    fn new() -> Self {
        let names = |value: &Value| -> BTreeSet<String> {
            let map = value.as_mapping().into_iter().flat_map(Mapping::keys);
            map.filter_map(|name| name.as_str().map(str::to_owned)).collect()
        };
        let defaults = serde_yaml_ng::to_value(RunConfig::default()).unwrap_or_default();
        let mut sections = names(&defaults);
        sections.remove("model"); // both have one
        let mut model = names(&defaults["model"]);
        model.insert("expect".into());
        Self { sections, model }
    }

    /// Whether a dotted key is ours.
    fn has(&self, key: &str) -> bool {
        let mut parts = key.split('.');
        match (parts.next(), parts.next()) {
            (Some("model"), Some("showo")) => parts.next().is_none(),
            (Some("model"), Some(second)) => self.model.contains(second),
            (Some(first), _) => self.sections.contains(first),
            (None, _) => false,
        }
    }

    /// Takes our keys out of a tree.
    fn take(&self, tree: &mut Value) -> Value {
        let mut taken = Mapping::new();
        let split = |map: &mut Mapping, names: &BTreeSet<String>, into: &mut Mapping| {
            for name in names {
                if let Some(value) = map.remove(name.as_str()) {
                    into.insert(name.as_str().into(), value);
                }
            }
        };
        if let Some(map) = tree.as_mapping_mut() {
            split(map, &self.sections, &mut taken);
            if let Some(model) = map.get_mut("model").and_then(Value::as_mapping_mut) {
                let mut own = Mapping::new();
                split(model, &self.model, &mut own);
                if model.get("showo").is_some_and(Value::is_string) {
                    own.extend(model.remove("showo").map(|showo| ("showo".into(), showo)));
                }
                taken.insert("model".into(), own.into());
            }
        }
        taken.into()
    }
}

/// Puts the values of `over` over those of `tree`.
fn merge(tree: &mut Value, over: Value) {
    match (tree, over) {
        (Value::Mapping(tree), Value::Mapping(over)) => {
            for (name, value) in over {
                merge(tree.entry(name).or_insert(Value::Null), value);
            }
        }
        (tree, over) => *tree = over,
    }
}

/// Shortens a warm-up that is longer than the run, unless it was asked for on the command line.
fn fit_warmup(out: &mut Value, given: &BTreeSet<String>) -> Result<Option<String>> {
    let asked =
        ["lr_scheduler.params.warmup_steps", "train.schedule.warmup_steps"].iter().any(|key| given.contains(*key));
    let defaults = TrainSettings::default().schedule;
    let schedule = out.get("train").and_then(|train| train.get("schedule"));
    let given = |key: &str| schedule.and_then(|schedule| schedule.get(key));
    let count = |key: &str, default: usize| given(key).map_or(Some(default as u64), Value::as_u64);
    let (Some(steps), Some(warmup)) = (count("steps", defaults.steps), count("warmup_steps", defaults.warmup_steps))
    else {
        return Ok(None); // of the wrong type, which is said where the tree is read
    };
    if asked || warmup < steps {
        return Ok(None);
    }
    let fitting = steps / 10;
    yaml::set(out, "train.schedule.warmup_steps", fitting.into())?;
    Ok(Some(format!(
        "the warm-up of {warmup} steps (lr_scheduler.params.warmup_steps) does not fit into a training of {steps} \
         steps (training.max_train_steps): the learning rate would never reach its peak. It is shortened to \
         {fitting} steps; give train.schedule.warmup_steps=N for another one"
    )))
}

/// Leaves the resolution to a 512×512 checkpoint whose file says 256, as the released training file does.
fn fit_resolution(out: &mut Value) -> Option<String> {
    let showo = out["model"]["checkpoint"].as_str()?.to_owned();
    let named = showo.trim_end_matches('/').rsplit('/').next().is_some_and(|name| name.contains("512"));
    let expect = out["model"].get_mut("expect")?.as_mapping_mut()?;
    let small = |key: &str, number: u64| expect.get(key).is_none_or(|value| value.as_u64() == Some(number));
    if !named || !small("image_tokens", 256) || !small("resolution", 256) {
        return None;
    }
    let there = [expect.remove("image_tokens"), expect.remove("resolution")];
    there.iter().any(Option::is_some).then(|| {
        format!(
            "the file says 256 image tokens and 256 pixels (model.showo.num_vq_tokens, dataset.params.resolution), but \
             {showo} is a checkpoint of 512 × 512 pixels, 1024 tokens: a fault of the released training file. The \
             checkpoint decides: this run works at its resolution"
        )
    })
}

/// The data root under the spelling that exists: the original's files and scripts have two.
fn fit_spelling(out: &mut Value) -> Option<String> {
    let default = DataSettings::default().root;
    let written = match out.get("data").and_then(|data| data.get("root")) {
        Some(root) => std::path::PathBuf::from(root.as_str()?),
        None => default,
    };
    let other = written.with_file_name(match written.file_name()?.to_str()? {
        "journydb" => "journeydb",
        "journeydb" => "journydb",
        _ => return None,
    });
    if written.exists() || !other.is_dir() {
        return None;
    }
    yaml::set(out, "data.root", other.to_str()?.into()).ok()?;
    Some(format!("{} does not exist; the data root is {}", written.display(), other.display()))
}

/// A paragraph in lines of [`COLUMNS`], all but the first indented.
pub fn wrapped(text: &str) -> String {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().filter(|line| line.is_empty() || line.chars().count() + word.len() < COLUMNS);
        match line {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) => *line += &format!(" {word}"),
            None => lines.push(format!("  {word}")),
        }
    }
    lines.join("\n")
}
