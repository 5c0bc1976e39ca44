//! Show-o: its three checkpoints, the image tokenizer and the text tokenizer among them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use hermesflow_models::showo::config::{ADDED_TOKENS, read_json};
use hermesflow_models::showo::cost::Sizes;
use hermesflow_models::showo::pretrain::{random_clip, random_magvit, random_projector, random_showo, train_tokenizer};
use hermesflow_models::showo::{
    CheckpointConfigs, ClipConfig, ClipVision, Magvit, MagvitConfig, PhiConfig, Showo, ShowoConfig, check_files,
    check_showo, load_magvit, read_configs, read_magvit_config, write_configs, write_json,
};
use hermesflow_models::{DType, Device, Model, UnifiedModel, Weights};
use image::RgbImage;
use serde_json::{Map, Value, json};

use super::embedded;
use super::hub::{Hub, Parts};
use super::kind::{About, ImageTokenizer, Kind, RandomModel, Size, SmallFile, Source};
use crate::config::{BackboneName, CLIP, Facts, MAGVIT, ModelSettings, PHI};
use crate::digest::{self, digest};
use crate::files;
use crate::progress::Progress;

/// Show-o.
pub struct ShowO;

/// The files of a checkpoint that is not embedded.
#[derive(Debug, Clone)]
struct Files {
    /// The folder of the decoder.
    showo: PathBuf,
    /// The folder of the image tokenizer.
    vq: PathBuf,
    /// The `tokenizer.json`.
    tokenizer: PathBuf,
}

impl Files {
    /// Where the files are: paths, the hub's cache, or what is downloaded now.
    fn find(settings: &ModelSettings, progress: &Progress) -> Result<Self> {
        let hub = Hub::from_environment()?;
        let find = |Source { key, name, parts }: &Source| -> Result<PathBuf> {
            let found = hub.model(name, Some(*parts), progress).context(*key)?;
            let good = *parts == Parts::Tokenizer || found.is_dir();
            ensure!(good, "{key}: {} is not a checkpoint's folder", found.display());
            Ok(found)
        };
        // The smallest first: what is missing is said before gigabytes are fetched.
        let sources = ShowO.sources(settings);
        let small = sources.iter().filter(|source| source.parts == Parts::Tokenizer);
        small.map(find).collect::<Result<Vec<_>>>()?;
        let places: Vec<PathBuf> = sources.iter().map(find).collect::<Result<_>>()?;
        Self::at(&places)
    }

    /// The files at the places of the sources.
    fn at(places: &[PathBuf]) -> Result<Self> {
        let [showo, vq, tokenizer] = places else { bail!("three checkpoints make a model, not {}", places.len()) };
        let tokenizer = if tokenizer.is_dir() { tokenizer.join("tokenizer.json") } else { tokenizer.clone() };
        ensure!(tokenizer.is_file(), "model.tokenizer: {} does not exist", tokenizer.display());
        Ok(Self { showo: showo.clone(), vq: vq.clone(), tokenizer })
    }
}

/// Tokens of a picture, and whether CLIP features are read, of a checkpoint that was published under a name.
fn published(name: &str) -> Option<(usize, bool)> {
    match Hub::known(name)? {
        "showlab/show-o" => Some((256, false)),
        "showlab/show-o-512x512" | "Gen-Verse/HermesFlow" => Some((1024, false)),
        "showlab/show-o-w-clip-vit" => Some((256, true)),
        "showlab/show-o-w-clip-vit-512x512" => Some((1024, true)),
        _ => None,
    }
}

/// What a checkpoint's configurations say.
fn about(configs: &CheckpointConfigs, settings: Option<&ModelSettings>) -> Result<About> {
    let CheckpointConfigs { showo, phi, vq } = configs;
    let clip = settings.and_then(|settings| settings.clip.as_deref()).unwrap_or(CLIP);
    let tower = || Source { key: "model.clip", name: clip.to_owned(), parts: Parts::Checkpoint };
    Ok(About {
        facts: facts(showo, configs.resolution()),
        costs: Box::new(Sizes::new(showo, phi, vq)?),
        trains_captions: !showo.w_clip_vit,
        further: showo.w_clip_vit.then(tower),
    })
}

fn facts(config: &ShowoConfig, resolution: usize) -> Facts {
    Facts {
        vocab_size: config.vocab_size,
        llm_vocab_size: Some(config.llm_vocab_size),
        codebook_size: config.codebook_size,
        image_tokens: config.num_vq_tokens,
        resolution,
        clip: config.w_clip_vit,
    }
}

/// The folder of the vision tower.
fn clip(settings: &ModelSettings, progress: &Progress) -> Result<PathBuf> {
    let name = settings.clip.as_deref().unwrap_or(CLIP);
    let folder = Hub::from_environment()?.model(name, Some(Parts::Checkpoint), progress).with_context(|| {
        format!("model.clip: {} understands pictures by CLIP features (w_clip_vit)", settings.checkpoint)
    })?;
    ensure!(folder.is_dir(), "model.clip: {} is not a checkpoint's folder", folder.display());
    Ok(folder)
}

fn load(files: &Files, settings: &ModelSettings, progress: &Progress) -> Result<Model> {
    // Before the weights are read, which takes its time.
    let (config, _) = read_configs(&files.showo)?;
    let vq = read_magvit_config(&files.vq)?;
    settings.expect.check(&settings.checkpoint, &facts(&config, config.resolution(&vq)))?;
    ensure!(
        config.w_clip_vit || settings.clip.is_none(),
        "model.clip: {} understands image tokens; remove the key",
        settings.checkpoint
    );
    let device = settings.device()?;
    let tower = if config.w_clip_vit { Some(clip(settings, progress)?) } else { None };
    let model = Showo::load(&files.showo, &files.vq, &files.tokenizer, settings.dtype.into(), &device)?;
    Ok(Arc::new(match tower {
        None => model,
        Some(tower) => model.with_clip(ClipVision::load(&tower, DType::F32, &device)?)?,
    }))
}

impl Kind for ShowO {
    fn name(&self) -> BackboneName {
        BackboneName::ShowO
    }

    fn has(&self, config: &Value) -> bool {
        match config.get("_class_name").and_then(Value::as_str) {
            Some(class) => class == "Showo",
            None => config.get("llm_vocab_size").is_some(),
        }
    }

    fn publishes(&self, name: &str) -> bool {
        published(name).is_some()
    }

    fn published(&self, settings: &ModelSettings) -> Result<Option<About>> {
        let Some((tokens, clip)) = published(&settings.checkpoint) else { return Ok(None) };
        if Hub::known(settings.vq.as_deref().unwrap_or(MAGVIT)) != Some(MAGVIT) {
            return Ok(None);
        }
        let (showo, phi, vq) = (ShowoConfig::published(tokens, clip), PhiConfig::default(), MagvitConfig::default());
        about(&CheckpointConfigs { showo, phi, vq }, Some(settings)).map(Some)
    }

    fn sources(&self, settings: &ModelSettings) -> Vec<Source> {
        let source = |key, name: &str, parts| Source { key, name: name.to_owned(), parts };
        vec![
            source("model.checkpoint", &settings.checkpoint, Parts::Checkpoint),
            source("model.vq", settings.vq.as_deref().unwrap_or(MAGVIT), Parts::Checkpoint),
            source("model.tokenizer", settings.tokenizer.as_deref().unwrap_or(PHI), Parts::Tokenizer),
        ]
    }

    fn about(&self, places: &[PathBuf]) -> Result<About> {
        let Files { showo, vq, tokenizer } = Files::at(places)?;
        about(&check_files(&showo, &vq, &tokenizer)?, None)
    }

    fn open(&self, settings: &ModelSettings, progress: &Progress) -> Result<Model> {
        if settings.is_embedded() {
            let model = embedded::open(settings)?;
            let facts = facts(model.config(), model.resolution());
            settings.expect.check(&settings.checkpoint, &facts)?;
            return Ok(Arc::new(model));
        }
        load(&Files::find(settings, progress)?, settings, progress)
    }

    fn open_trained(&self, settings: &ModelSettings, folder: &Path, progress: &Progress) -> Result<Model> {
        if settings.is_embedded() {
            let base: Model = Arc::new(embedded::open(settings)?);
            return super::reopened(&base, folder);
        }
        // The base model's weights need not be read.
        load(&Files { showo: folder.to_owned(), ..Files::find(settings, progress)? }, settings, progress)
    }

    fn image_tokenizer(&self, settings: &ModelSettings, progress: &Progress) -> Result<Box<dyn ImageTokenizer>> {
        if settings.is_embedded() {
            let model = embedded::open(settings)?;
            return Ok(Box::new(Tokenizer { side: model.resolution(), vq: model.vq().clone() }));
        }
        let files = Files::find(settings, progress)?;
        let (config, _) = read_configs(&files.showo)?;
        let vq = load_magvit(&files.vq, &settings.device()?)?;
        Ok(Box::new(Tokenizer { side: config.resolution(vq.config()), vq }))
    }

    fn eyes(&self, settings: &ModelSettings, progress: &Progress) -> Result<String> {
        match settings.is_embedded() {
            true => Ok(digest([embedded::files()?.vq_weights])),
            false => digest::of_loaded_model(&Files::find(settings, progress)?.vq),
        }
    }

    fn files(&self, settings: &ModelSettings, first: bool, progress: &Progress) -> Result<Vec<(String, String)>> {
        let mut found = Vec::new();
        // The names that earlier versions noted.
        let mut add = |what: &str, digest: String| found.push((what.to_owned(), digest));
        if settings.is_embedded() {
            let files = embedded::files()?;
            add("model.vq", digest([files.vq_config.as_bytes(), files.vq_weights]));
            add("model.tokenizer", digest([files.tokenizer]));
            if first {
                add(
                    "model.showo",
                    digest([files.showo_config.as_bytes(), files.phi_config.as_bytes(), files.showo_weights]),
                );
            }
            return Ok(found);
        }
        let files = Files::find(settings, progress)?;
        add("model.vq", digest::of_loaded_model(&files.vq)?);
        add("model.tokenizer", digest::of_file(&files.tokenizer)?);
        if first {
            add("model.showo", digest::of_loaded_model(&files.showo)?);
        }
        // The decoder's configuration may lie elsewhere.
        let (showo, phi) = read_configs(&files.showo)?;
        add("the decoder's configuration", digest([serde_json::to_string(&phi)?]));
        if showo.w_clip_vit {
            add("model.clip", digest::of_loaded_model(&clip(settings, progress)?)?);
        }
        Ok(found)
    }

    fn random(&self, wanted: &RandomModel, folder: &Path) -> Result<()> {
        let seed = wanted.seed;
        let parts = Random::new(wanted)?;
        files::write_atomically(&folder.join("tokenizer.json"), parts.tokenizer.as_bytes())?;
        write_json(&folder.join("vq/config.json"), &parts.vq)?;
        save(&random_magvit(&parts.vq, seed, &Device::Cpu)?, &folder.join("vq"), wanted)?;
        write_configs(&folder.join("showo"), &parts.showo, &parts.phi)?;
        let mut weights = random_showo(&parts.showo, &parts.phi, seed, &Device::Cpu)?;
        if wanted.size == Size::Tiny {
            // Larger than where training would begin, so that replies depend on the picture.
            let larger = weights.tensors().iter().map(|(name, tensor)| {
                let scale = if tensor.rank() == 2 { 12.0 } else { 1.0 };
                Ok((name.clone(), tensor.affine(scale, 0.0)?))
            });
            weights = Weights::from_tensors(larger.collect::<Result<Vec<_>>>()?, "random Show-o");
        }
        if wanted.clip {
            let tower = random_tower(&folder.join("clip"), wanted.size, seed)?;
            let projector = random_projector(tower.hidden_size, parts.phi.hidden_size, seed, &Device::Cpu)?;
            let tensors = weights.tensors().iter().map(|(name, tensor)| (name.clone(), tensor.clone()));
            weights = Weights::from_tensors(tensors.chain(projector), "random Show-o");
        }
        save(&weights, &folder.join("showo"), wanted)
    }

    fn small_files(&self, folder: &Path, config: &Value, weights: &Weights) -> Result<Option<Vec<SmallFile>>> {
        let path = folder.join("config.json");
        let read = |path: &Path| std::fs::read(path).with_context(|| path.display().to_string());
        let whole = |bytes| vec![("config.json".to_owned(), bytes)];
        match config.get("_class_name").and_then(Value::as_str) {
            Some("MAGVITv2") => {
                let config: MagvitConfig = read_json(&path)?;
                config.validate(&path)?;
                Magvit::new(weights, &config)?;
                Ok(Some(whole(read(&path)?)))
            }
            Some("Showo") | None if config.get("model_type").is_none() || self.has(config) => {
                let showo: ShowoConfig = read_json(&path)?;
                showo.validate(&path)?;
                check_showo(folder, &showo, weights)?;
                let phi = folder.join(&showo.llm_model_path);
                let phi = if phi.is_dir() { phi.join("config.json") } else { phi };
                if !phi.is_file() {
                    return Ok(Some(whole(read(&path)?))); // a name that the original knows
                }
                // Wherever the decoder's configuration lies, it comes to lie in the new folder.
                let mut written = read(&path)?;
                if showo.llm_model_path != "phi" {
                    let mut config = config.clone();
                    config["llm_model_path"] = "phi".into();
                    written = (serde_json::to_string_pretty(&config)? + "\n").into_bytes();
                }
                let mut found = whole(written);
                found.push(("phi/config.json".into(), read(&phi)?));
                Ok(Some(found))
            }
            Some(class) if config.get("model_type").is_none() => {
                bail!("{}: class {class:?} is neither Showo nor MAGVITv2", path.display())
            }
            _ => Ok(None),
        }
    }
}

/// The image tokenizer alone.
struct Tokenizer {
    side: usize,
    vq: Magvit,
}

impl ImageTokenizer for Tokenizer {
    fn side(&self) -> usize {
        self.side
    }

    fn reconstruct(&self, pictures: &[RgbImage]) -> Result<Vec<RgbImage>> {
        Ok(self.vq.decode_images(&self.vq.encode_images(pictures)?)?)
    }
}

/// The configurations of a random model, and its text tokenizer.
struct Random {
    showo: ShowoConfig,
    phi: PhiConfig,
    vq: MagvitConfig,
    tokenizer: String,
}

impl Random {
    fn new(wanted: &RandomModel) -> Result<Self> {
        let (tokenizer, words) = train_tokenizer(&hermesflow_scenes::corpus(200, wanted.seed), 300)?;
        let (tokenizer, words, bits, side, text, decoder, vq) = match wanted.size {
            Size::Tiny => {
                ensure!(wanted.resolution.is_none_or(|side| side == 64), "--resolution: a tiny model has 64");
                let decoder = json!({ "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
                                      "num_attention_heads": 2 });
                let vq = json!({ "ch": 8, "ch_mult": [1, 1, 1, 1, 1], "num_res_blocks": [1, 1, 1, 1, 1],
                                 "z_channels": 6, "resolution": 64, "norm_groups": 4 });
                (tokenizer, words, 6, 4, 64, decoder, vq)
            }
            Size::Medium | Size::Full => {
                let pixels = wanted.resolution.unwrap_or(256);
                ensure!(pixels == 256 || pixels == 512, "--resolution: {pixels} is neither 256 nor 512");
                let decoder = match wanted.size {
                    Size::Full => json!({}),
                    _ => json!({ "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 8,
                                 "num_attention_heads": 8 }),
                };
                (widened(&tokenizer, PHI_WORDS)?, PHI_WORDS, 13, pixels / 16, 129, decoder, json!({}))
            }
        };
        let mut decoder: Map<String, Value> = serde_json::from_value(decoder)?;
        if let Some(layers) = wanted.layers {
            decoder.insert("num_hidden_layers".into(), json!(layers));
        }
        let codebook = 1usize << bits;
        let showo = serde_json::from_value(json!({
            "vocab_size": words + ADDED_TOKENS.len() + codebook + 1, "llm_vocab_size": words,
            "codebook_size": codebook, "num_vq_tokens": side * side, "max_text_len": text, "w_clip_vit": wanted.clip,
        }))?;
        Ok(Self { showo, phi: serde_json::from_value(decoder.into())?, vq: serde_json::from_value(vq)?, tokenizer })
    }
}

/// Words of Phi-1.5's tokenizer.
const PHI_WORDS: usize = 50_295;

/// A tokenizer with words that no text has, up to `words` of them.
fn widened(tokenizer: &str, words: usize) -> Result<String> {
    let mut json: Value = serde_json::from_str(tokenizer)?;
    let end = json["added_tokens"][0]["content"].as_str().map(str::to_owned).context("no end of text")?;
    let vocabulary = json["model"]["vocab"].as_object_mut().context("no vocabulary")?;
    if !vocabulary.contains_key(&end) {
        vocabulary.insert(end, json!(vocabulary.len()));
    }
    for number in vocabulary.len()..words {
        vocabulary.insert(format!("Ġw{number}"), json!(number));
    }
    Ok(json.to_string())
}

fn save(weights: &Weights, folder: &Path, wanted: &RandomModel) -> Result<()> {
    weights.save_as(folder, wanted.format, None).with_context(|| folder.display().to_string())?;
    Ok(())
}

/// Writes a vision tower: the published ViT-L/14-336, or 56×56 pictures as 4×4 patches and three blocks of width 24.
fn random_tower(folder: &Path, size: Size, seed: u64) -> Result<ClipConfig> {
    let config: ClipConfig = serde_json::from_value(match size {
        Size::Tiny => json!({ "hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 3,
                              "num_attention_heads": 3, "image_size": 56, "patch_size": 14 }),
        Size::Medium | Size::Full => json!({ "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
                                             "num_attention_heads": 16, "image_size": 336, "patch_size": 14 }),
    })?;
    write_json(&folder.join("config.json"), &config)?;
    let weights = random_clip(&config, seed, &Device::Cpu)?;
    weights.save(&folder.join("model.safetensors"), DType::F32).context("clip")?;
    Ok(config)
}
