//! What was run: the model and its digest, the sampler, the seeds, and every setting that differs from a preset.

use anyhow::Result;
use hermesflow_models::ImageDecoding;
use serde::Serialize;
use serde_json::Value;

use super::folder::RunFolder;
use crate::config::{PRESETS, RunConfig};
use crate::made::Origin;

/// A setting that differs: its key, its value here, and its value in the preset.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Differing {
    key: String,
    here: String,
    preset: String,
}

/// What was run.
#[derive(Debug, Clone, Serialize)]
pub struct Settings {
    /// The main facts, by name.
    facts: Vec<(String, String)>,
    /// The preset with the fewest differences.
    preset: String,
    differing: Vec<Differing>,
}

impl Settings {
    /// The settings of a run.
    ///
    /// # Errors
    /// When a file that says what results were made from cannot be read.
    pub fn of(run: &RunFolder) -> Result<Self> {
        let config = &run.config;
        let (preset, differing) = nearest(config)?;
        let captions = &config.caption.candidates;
        let mut facts = vec![("model".to_owned(), named(config))];
        for (what, digest) in digests(run)? {
            facts.push((format!("digest of {what}"), digest));
        }
        facts.extend([
            ("type and device".to_owned(), format!("{:?}, {}", config.model.dtype, config.model.device)),
            ("sampler of images".to_owned(), sampler(config)),
            (
                "sampler of captions".to_owned(),
                format!(
                    "{} of each image; {}",
                    captions.len(),
                    captions
                        .iter()
                        .map(|one| match one.top_k {
                            1 => "greedy".to_owned(),
                            k => format!("top {k} at {}", one.temperature),
                        })
                        .collect::<Vec<_>>()
                        .join(", ")
                ),
            ),
            ("seed".to_owned(), format!("{}; every draw follows from it, the iteration and the record", config.seed)),
            ("iterations".to_owned(), config.iterations.to_string()),
            ("data".to_owned(), config.data.root.display().to_string()),
        ]);
        Ok(Self { facts, preset, differing })
    }
}

fn named(config: &RunConfig) -> String {
    let model = &config.model;
    if model.is_embedded() { "the embedded model of this program".into() } else { model.checkpoint.clone() }
}

/// How images were drawn, by the settings that mean something to the model.
fn sampler(config: &RunConfig) -> String {
    let imagine = &config.imagine;
    let drawn = format!("guidance {}, temperature {}", imagine.guidance, imagine.temperature);
    match config.model.backbone.image_decoding() {
        ImageDecoding::Masked => {
            format!(
                "{} of each caption; {} steps, {drawn}, schedule {:?}",
                imagine.images, imagine.steps, imagine.schedule
            )
        }
        ImageDecoding::NextCode => format!("{} of each caption; {drawn}", imagine.images),
    }
}

/// Digests of the files that the results of the first iteration were made from.
fn digests(run: &RunFolder) -> Result<Vec<(String, String)>> {
    let first = run.at(1);
    for note in [first.stamp("caption"), first.training_origin()] {
        if let Some(origin) = Origin::read(&note)? {
            let files = origin.files().filter(|(what, _)| what.starts_with("model."));
            return Ok(files.map(|(what, digest)| (what.to_owned(), digest.to_owned())).collect());
        }
    }
    Ok(Vec::new())
}

/// The preset of runs from which the fewest settings differ, and those.
fn nearest(config: &RunConfig) -> Result<(String, Vec<Differing>)> {
    let here = serde_json::to_value(config)?;
    let mut best: Option<(String, Vec<Differing>)> = None;
    for (name, text) in PRESETS {
        let Ok(preset) = RunConfig::parse(text, &[]) else { continue };
        let mut differing = Vec::new();
        compare("", &serde_json::to_value(&preset)?, &here, &mut differing);
        differing.retain(|one| one.key != "output" && one.key != "data.root");
        if best.as_ref().is_none_or(|(_, fewest)| differing.len() < fewest.len()) {
            best = Some((name.to_owned(), differing));
        }
    }
    Ok(best.unwrap_or_default())
}

fn compare(key: &str, preset: &Value, here: &Value, differing: &mut Vec<Differing>) {
    match (preset, here) {
        (Value::Object(preset), Value::Object(here)) => {
            let names = here.keys().chain(preset.keys().filter(|name| !here.contains_key(*name)));
            for name in names {
                let inner = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
                let of = |map: &serde_json::Map<String, Value>| map.get(name).cloned().unwrap_or_default();
                compare(&inner, &of(preset), &of(here), differing);
            }
        }
        (preset, here) if preset != here => {
            let shown = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            differing.push(Differing { key: key.into(), here: shown(here), preset: shown(preset) });
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_nearest_preset_is_found_and_what_differs_is_listed() {
        let changed = ["seed=7", "train.schedule.steps=50", "output=elsewhere", "data.root=there"].map(String::from);
        let config = RunConfig::parse(crate::config::preset("scenes").unwrap(), &changed).unwrap();
        let (preset, differing) = nearest(&config).unwrap();
        assert_eq!(preset, "scenes");
        let keys: Vec<&str> = differing.iter().map(|one| one.key.as_str()).collect();
        assert_eq!(keys, ["seed", "train.schedule.steps"]);
        assert_eq!((differing[1].here.as_str(), differing[1].preset.as_str()), ("50", "240"));
    }
}
