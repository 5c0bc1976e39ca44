//! Janus-Pro: one checkpoint with everything in it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use hermesflow_models::janus::config::JanusConfig;
use hermesflow_models::janus::cost::Sizes;
use hermesflow_models::janus::pretrain::{config_around, files, published_config, random_janus, tokenizer};
use hermesflow_models::janus::{Janus, JanusFiles};
use hermesflow_models::{Device, Model, UnifiedModel, Weights};
use image::RgbImage;
use serde_json::{Value, json};

use super::embedded;
use super::hub::{Hub, Parts};
use super::kind::{About, ImageTokenizer, Kind, RandomModel, Size, SmallFile, Source};
use crate::config::{BackboneName, Facts, ModelSettings};
use crate::digest;
use crate::progress::Progress;

/// Janus-Pro.
pub struct JanusPro;

/// Whether a checkpoint that was published under a name is the one of 7B.
fn published(name: &str) -> Option<bool> {
    match Hub::known(name)? {
        "deepseek-ai/Janus-Pro-1B" => Some(false),
        "deepseek-ai/Janus-Pro-7B" => Some(true),
        _ => None,
    }
}

/// The folder of the checkpoint: a path, the hub's cache, or what is downloaded now.
fn folder(settings: &ModelSettings, progress: &Progress) -> Result<PathBuf> {
    let hub = Hub::from_environment()?;
    let folder = hub.model(&settings.checkpoint, Some(Parts::Text), progress).context("model.checkpoint")?;
    ensure!(folder.is_dir(), "model.checkpoint: {} is not a checkpoint's folder", folder.display());
    Ok(folder)
}

fn facts(config: &JanusConfig) -> Facts {
    Facts {
        vocab_size: config.language.vocab_size,
        llm_vocab_size: None,
        codebook_size: config.vq.codes,
        image_tokens: config.image_tokens,
        resolution: config.resolution(),
        clip: false,
    }
}

fn about(config: &JanusConfig, costs: Sizes) -> About {
    About { facts: facts(config), costs: Box::new(costs), trains_captions: true, further: None }
}

fn load(folder: &Path, settings: &ModelSettings) -> Result<Janus> {
    // Before the weights are read, which takes its time.
    let config = JanusConfig::read(&JanusFiles::read(folder)?)?;
    settings.expect.check(&settings.checkpoint, &facts(&config))?;
    Ok(Janus::load(folder, settings.dtype.into(), &settings.device()?)?)
}

/// The model that a run begins with.
fn first(settings: &ModelSettings, progress: &Progress) -> Result<Janus> {
    if !settings.is_embedded() {
        return load(&folder(settings, progress)?, settings);
    }
    let (files, weights) = embedded::next_code_files()?;
    settings.expect.check(&settings.checkpoint, &facts(&JanusConfig::read(&files)?))?;
    Ok(Janus::embedded(files, weights, settings.dtype.into(), &settings.device()?)?)
}

/// A digest of everything of the model that a run begins with.
fn identity(settings: &ModelSettings, progress: &Progress) -> Result<String> {
    if !settings.is_embedded() {
        return digest::of_loaded_model(&folder(settings, progress)?);
    }
    let (files, weights) = embedded::next_code_files()?;
    Ok(digest::digest(files.all().map(|(_, bytes)| bytes).chain([weights])))
}

impl Kind for JanusPro {
    fn name(&self) -> BackboneName {
        BackboneName::JanusPro
    }

    fn has(&self, config: &Value) -> bool {
        config.get("model_type").and_then(Value::as_str).is_some_and(|kind| ["multi_modality", "janus"].contains(&kind))
    }

    fn publishes(&self, name: &str) -> bool {
        published(name).is_some()
    }

    fn published(&self, settings: &ModelSettings) -> Result<Option<About>> {
        let Some(seven) = published(&settings.checkpoint) else { return Ok(None) };
        let config = JanusConfig::read(&files(&published_config(seven), 576, 384, "{}"))?;
        Ok(Some(about(&config, Sizes::published(&config)?)))
    }

    fn sources(&self, settings: &ModelSettings) -> Vec<Source> {
        vec![Source { key: "model.checkpoint", name: settings.checkpoint.clone(), parts: Parts::Text }]
    }

    fn about(&self, places: &[PathBuf]) -> Result<About> {
        let [folder] = places else { bail!("one checkpoint makes a model, not {}", places.len()) };
        let (config, costs) = Sizes::of_files(folder)?;
        Ok(about(&config, costs))
    }

    fn open(&self, settings: &ModelSettings, progress: &Progress) -> Result<Model> {
        Ok(Arc::new(first(settings, progress)?))
    }

    fn open_trained(&self, settings: &ModelSettings, folder: &Path, _: &Progress) -> Result<Model> {
        Ok(Arc::new(load(folder, settings)?))
    }

    fn image_tokenizer(&self, settings: &ModelSettings, progress: &Progress) -> Result<Box<dyn ImageTokenizer>> {
        Ok(Box::new(Tokenizer(first(settings, progress)?)))
    }

    fn eyes(&self, settings: &ModelSettings, progress: &Progress) -> Result<String> {
        // Features are computed in the type in which the tower is held.
        let files = identity(settings, progress)?;
        Ok(digest::digest([files, serde_json::to_string(&settings.dtype)?]))
    }

    fn files(&self, settings: &ModelSettings, _: bool, progress: &Progress) -> Result<Vec<(String, String)>> {
        // What is not trained comes from it in every iteration.
        Ok(vec![("model.checkpoint".into(), identity(settings, progress)?)])
    }

    fn random(&self, wanted: &RandomModel, folder: &Path) -> Result<()> {
        ensure!(!wanted.clip, "--clip: this kind of model brings its own vision tower; leave it away");
        let (mut config, side, words) = match wanted.size {
            Size::Tiny => (tiny(), 64, 400),
            Size::Medium => (medium(), 384, 400),
            Size::Full => (published_config(false), 384, 400),
        };
        let given = wanted.resolution;
        ensure!(given.is_none_or(|given| given == side), "--resolution: a model of this size has {side} and no other");
        let lines = hermesflow_scenes::corpus(200, wanted.seed);
        let (text, size) = tokenizer(&lines, words)?;
        if wanted.size == Size::Tiny {
            config["language_config"]["vocab_size"] = json!(size + 9);
        }
        if let Some(layers) = wanted.layers {
            config["language_config"]["num_hidden_layers"] = json!(layers);
        }
        let tokens = if wanted.size == Size::Tiny { 16 } else { 576 };
        let files = files(&config, tokens, side, &text);
        let config = JanusConfig::read(&files)?;
        let mut weights = random_janus(&config, wanted.seed, &Device::Cpu)?;
        if wanted.size == Size::Tiny {
            // Larger than where training would begin, so that replies depend on the picture.
            let larger = weights.tensors().iter().map(|(name, tensor)| {
                let scale = if name.starts_with("language_model") && tensor.rank() == 2 { 8.0 } else { 1.0 };
                Ok((name.clone(), tensor.affine(scale, 0.0)?))
            });
            weights = Weights::from_tensors(larger.collect::<Result<Vec<_>>>()?, "random Janus-Pro");
        }
        files.write(folder)?;
        weights.save_as(folder, wanted.format, None).with_context(|| folder.display().to_string())?;
        Ok(())
    }

    fn small_files(&self, folder: &Path, config: &Value, weights: &Weights) -> Result<Option<Vec<SmallFile>>> {
        if !self.has(config) {
            return Ok(None);
        }
        let files = JanusFiles::read(folder)?;
        let tensors = weights.tensors().iter().map(|(name, tensor)| (name.clone(), tensor.clone()));
        Janus::new(files.clone(), Weights::from_tensors(tensors, folder))?;
        Ok(Some(files.all().map(|(name, bytes)| (name.to_owned(), bytes.to_vec())).collect()))
    }
}

/// The image tokenizer within the whole model.
struct Tokenizer(Janus);

impl ImageTokenizer for Tokenizer {
    fn side(&self) -> usize {
        self.0.resolution()
    }

    fn reconstruct(&self, pictures: &[RgbImage]) -> Result<Vec<RgbImage>> {
        Ok(self.0.decode_images(&self.0.encode_images(pictures)?)?)
    }
}

/// Two blocks of width 32, and 64×64 pictures of 4×4 tokens.
fn tiny() -> Value {
    json!({
        "model_type": "multi_modality",
        "language_config": {
            "vocab_size": 0, "hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024,
        },
        "vision_config": { "cls": "CLIPVisionTower", "params": {
            "image_size": 64, "model_name": "siglip_large_patch16_384", "select_feature": "same", "select_layer": -1,
            "patch_size": 16, "width": 24, "layers": 2, "heads": 3, "mlp_ratio": 2.0,
        } },
        "aligner_config": { "cls": "MlpProjector", "params": {
            "depth": 2, "input_dim": 24, "n_embed": 32, "projector_type": "mlp_gelu"
        } },
        "gen_vision_config": { "cls": "VQ-16", "params": {
            "image_token_size": 64, "n_embed": 8, "ch": 32, "encoder_ch_mult": [1, 1, 1, 1, 1],
            "decoder_ch_mult": [1, 1, 1, 1, 1], "num_res_blocks": 1, "z_channels": 16,
        } },
        "gen_aligner_config": { "cls": "MlpProjector", "params": {
            "depth": 2, "input_dim": 8, "n_embed": 32, "projector_type": "mlp_gelu"
        } },
        "gen_head_config": { "cls": "vision_head", "params": {
            "image_token_embed": 32, "image_token_size": 64, "n_embed": 32
        } },
    })
}

/// The published vocabulary, vision tower and image tokenizer around eight blocks of width 512.
fn medium() -> Value {
    let language = json!({
        "vocab_size": 102_400, "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8,
        "num_attention_heads": 8, "max_position_embeddings": 16_384, "model_type": "llama",
    });
    config_around(language, 512)
}
