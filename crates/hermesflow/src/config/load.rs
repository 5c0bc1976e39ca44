//! Reads configurations: a file and the `key=value` arguments over it, resolved and validated once.

use std::path::Path;

use anyhow::Result;
use hermesflow_models::{ImageDecoding, NextCodeOptions};
use serde_yaml_ng::Value;

use super::keys::Keys;
use super::model::{BackboneName, ModelSettings};
use super::pretrain::PretrainConfig;
use super::run::RunConfig;
use super::sources::Sources;
use super::train::ImageCodes;
use super::{aliases, bounds, meaning, original, overrides, presets};

/// Says of which kind a checkpoint is, where that is known before it is opened.
pub type FindBackbone = fn(&ModelSettings) -> Option<BackboneName>;

impl RunConfig {
    /// Reads a YAML file, ours or the original's, or one of those inside this program by its name; applies `key=value`
    /// overrides and validates the result.
    ///
    /// What of an original's file is not followed is said on stderr. The file may be given as the original's scripts
    /// take it, `config=FILE`. `find` says of which kind the model is where `model.backbone` leaves it open.
    ///
    /// # Errors
    /// Names the key, its value, what is expected, and the line of the file or the argument that it came from.
    pub fn load(path: &Path, overrides: &[String], find: FindBackbone) -> Result<Self> {
        let path = match path.to_str().and_then(|argument| argument.strip_prefix("config=")) {
            Some(named) if !path.exists() => Path::new(named),
            _ => path,
        };
        let text = presets::read(path)?;
        let named = path.display().to_string();
        let (config, warnings) = Self::explained(Some(named), &text, overrides, find)?;
        for warning in warnings {
            note!("{}", original::wrapped(&format!("WARNING: {}: {warning}", path.display())));
        }
        Ok(config)
    }

    /// As [`RunConfig::load`], from text, without a look at the checkpoint.
    ///
    /// # Errors
    /// As [`RunConfig::load`].
    pub fn parse(yaml: &str, overrides: &[String]) -> Result<Self> {
        Ok(Self::explained(None, yaml, overrides, |_| None)?.0)
    }

    fn explained(
        file: Option<String>,
        text: &str,
        overrides: &[String],
        find: FindBackbone,
    ) -> Result<(Self, Vec<String>)> {
        Self::read(text, overrides, find)
            .map_err(|error| Sources { file, text, overrides, keys: Keys::run() }.explain(&error))
    }

    /// The configuration, and what its user must be told.
    pub(super) fn read(yaml: &str, overrides: &[String], find: FindBackbone) -> Result<(Self, Vec<String>)> {
        let mut tree = overrides::tree(yaml)?;
        let mut warnings = Vec::new();
        if original::is_original(&tree) {
            (tree, warnings) = original::translate(tree, overrides)?;
        } else {
            aliases::rename(&mut tree)?;
            for argument in overrides {
                overrides::apply(&mut tree, argument, Keys::run())?;
            }
        }
        let mut config: Self = overrides::read(&tree)?;
        let found = find(&config.model);
        config.resolve_backbone(found);
        meaning::check(&tree, config.model.backbone)?;
        config.fill(&tree);
        config.resolve();
        config.validate()?;
        bounds::check(&config, Keys::run())?;
        Ok((config, warnings))
    }
}

impl RunConfig {
    /// Gives what a tree leaves open the defaults of the backbone.
    fn fill(&mut self, tree: &Value) {
        if self.model.backbone.image_decoding() == ImageDecoding::NextCode {
            if meaning::given(tree, "imagine.guidance").is_none() {
                self.imagine.guidance = NextCodeOptions::default().guidance;
            }
            if meaning::given(tree, "train.codes").is_none() {
                self.train.codes = ImageCodes::Drawn;
            }
        }
    }
}

impl PretrainConfig {
    /// Reads a YAML file, or the one inside this program of that name; applies `key=value` overrides and validates the
    /// result.
    ///
    /// # Errors
    /// Names the key, its value, what is expected, and the line of the file or the argument that it came from.
    pub fn load(path: &Path, overrides: &[String]) -> Result<Self> {
        let text = presets::read(path)?;
        Self::parse(&text, overrides).map_err(|error| {
            let file = Some(path.display().to_string());
            Sources { file, text: &text, overrides, keys: Keys::pretrain() }.explain(&error)
        })
    }

    /// As [`PretrainConfig::load`], from text.
    pub(super) fn parse(text: &str, overrides: &[String]) -> Result<Self> {
        let keys = Keys::pretrain();
        let mut tree = overrides::tree(text)?;
        for argument in overrides {
            overrides::apply(&mut tree, argument, keys)?;
        }
        // The sizes of models are read from files of others, too, which may say more; here, what nobody reads is a mistake.
        keys.refuse_unknown(&tree)?;
        let config: Self = overrides::read(&tree)?;
        config.validate()?;
        bounds::check(&config, keys)?;
        Ok(config)
    }
}
