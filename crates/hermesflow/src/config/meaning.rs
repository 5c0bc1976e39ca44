//! Keys that have a meaning for some backbones only: where a user set one that has none for the model at hand, it is refused
//! by its name.

use anyhow::{Result, bail};
use hermesflow_models::ImageDecoding;
use serde_yaml_ng::Value;

use super::model::BackboneName;

/// Keys of models that fill in masked codes over several steps, and of checkpoints whose tokenizers lie elsewhere.
const OF_MASKED: [&str; 10] = [
    "imagine.steps",
    "imagine.schedule",
    "train.masks",
    "train.masks_per_pair",
    "train.masking",
    "model.vq",
    "model.tokenizer",
    "model.clip",
    "model.expect.llm_vocab_size",
    "model.expect.clip",
];

/// Keys of models that draw one code after the other.
const OF_NEXT_CODE: [&str; 2] = ["imagine.cache", "train.parameters"];

/// The keys without a meaning for a backbone, and why; none for a kind that is not known yet.
fn meaningless(backbone: BackboneName) -> (&'static [&'static str], &'static str) {
    match (backbone, backbone.image_decoding()) {
        (BackboneName::Auto, _) => (&[], ""),
        (_, ImageDecoding::Masked) => (&OF_NEXT_CODE, "fills in masked codes and is trained as a whole"),
        (_, ImageDecoding::NextCode) => (&OF_MASKED, "draws one code after the other and brings its own tokenizers"),
    }
}

/// What a tree holds under a dotted key; nothing where it is null or an empty section.
pub fn given<'t>(tree: &'t Value, key: &str) -> Option<&'t Value> {
    let value = key.split('.').try_fold(tree, |place, part| place.get(part))?;
    let empty = value.is_null() || value.as_mapping().is_some_and(serde_yaml_ng::Mapping::is_empty);
    (!empty).then_some(value)
}

/// Refuses the keys of a tree that have no meaning for a backbone.
///
/// # Errors
/// Names the first key, and what to do.
pub fn check(tree: &Value, backbone: BackboneName) -> Result<()> {
    let (keys, why) = meaningless(backbone);
    if let Some(key) = keys.iter().find(|key| given(tree, key).is_some()) {
        bail!("{key}: has no meaning for model.backbone={backbone}, which {why}; remove the key");
    }
    Ok(())
}

/// Takes the keys that have no meaning for a backbone out of a tree.
pub fn strip(tree: &mut Value, backbone: BackboneName) {
    for key in meaningless(backbone).0 {
        let (section, name) = key.rsplit_once('.').unwrap_or(("", key));
        let place = section.split('.').try_fold(&mut *tree, |place, part| place.get_mut(part));
        if let Some(map) = place.and_then(Value::as_mapping_mut) {
            map.shift_remove(name);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::{ImageCodes, RunConfig};
    use super::*;

    const GUIDANCE: f64 = 4.0;

    fn parse(overrides: &[&str]) -> Result<RunConfig> {
        let overrides: Vec<String> = overrides.iter().map(|one| (*one).to_owned()).collect();
        RunConfig::parse("model: { checkpoint: m }", &overrides)
    }

    #[test]
    fn keys_without_a_meaning_are_refused_where_they_were_set() {
        for (backbone, setting, key) in [
            ("janus-pro", "imagine.steps=20", "imagine.steps"),
            ("janus-pro", "imagine.schedule=linear", "imagine.schedule"),
            ("janus-pro", "train.masks_per_pair=2", "train.masks_per_pair"),
            ("janus-pro", "train.masks=stratified", "train.masks"),
            ("janus-pro", "train.masking.min_masking_rate=0.1", "train.masking"),
            ("janus-pro", "train.mask_schedule=linear", "train.masking"),
            ("janus-pro", "model.vq=v", "model.vq"),
            ("janus-pro", "model.tokenizer=t", "model.tokenizer"),
            ("show-o", "imagine.cache=2", "imagine.cache"),
            ("show-o", "train.parameters=[language_model.]", "train.parameters"),
        ] {
            let named = format!("model.backbone={backbone}");
            let said = parse(&[&named, setting]).unwrap_err().to_string();
            assert!(said.contains(&format!("{key}: has no meaning for {named}")), "{said}");
            assert!(parse(&[setting]).is_ok() || setting.starts_with("model"), "{setting}: not known yet");
        }
    }

    #[test]
    fn what_is_not_set_has_the_defaults_of_the_backbone_and_what_is_saved_is_read_again() {
        let config = parse(&["model.backbone=janus-pro"]).unwrap();
        assert_eq!((config.imagine.guidance, config.train.codes), (GUIDANCE, ImageCodes::Drawn));
        assert_eq!((config.model.vq.as_deref(), config.model.tokenizer.as_deref()), (None, None));
        let saved = config.to_yaml().unwrap();
        assert!(!saved.contains("masks_per_pair") && !saved.contains("steps: 50"), "{saved}");
        assert_eq!(RunConfig::parse(&saved, &[]).unwrap(), config);
        let given = parse(&["model.backbone=janus-pro", "imagine.guidance=5", "train.codes=encoded"]).unwrap();
        assert_eq!((given.imagine.guidance, given.train.codes), (5.0, ImageCodes::Encoded));
        let other = parse(&["model.backbone=show-o"]).unwrap();
        assert_eq!((other.imagine.guidance, other.train.codes), (5.0, ImageCodes::Encoded));
        assert_eq!(RunConfig::parse(&other.to_yaml().unwrap(), &[]).unwrap(), other);
        // There is an embedded one of each kind, and one that is usual.
        for (named, expected) in [("auto", BackboneName::ShowO), ("janus-pro", BackboneName::JanusPro)] {
            let embedded = RunConfig::parse("", &[format!("model.backbone={named}")]).unwrap().model;
            assert!(embedded.is_embedded() && embedded.backbone == expected, "{embedded:?}");
        }
    }
}
