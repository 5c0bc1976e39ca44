//! The CLIP vision tower (arXiv 2103.00020 §2.4) by whose features the CLIP variant of Show-o (arXiv 2408.12528 §4)
//! understands images.
//!
//! A vision transformer: embeddings of patches and a class token with learned positions, a LayerNorm called
//! `pre_layrnorm` (the checkpoint's spelling), then blocks. As in LLaVA, the features are the hidden states before the
//! last block, without the class token, so the last block and `post_layernorm` are never computed. Fields are named
//! like the checkpoint's weights.

use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use hermesflow_nn::ops::{self, Segment};
use hermesflow_nn::weights::{Scope, Weights};
use hermesflow_nn::{parallel, sizes};
use image::RgbImage;
use serde::{Deserialize, Serialize};

use super::affine::{Affine, AffineLayer};
use super::config::read_json;
use crate::preprocess::{Centre, fit_square};
use crate::{Error, Result};

/// The largest side of an image, in pixels.
const MOST_PIXELS: usize = 4096;
/// Images that go through the tower as one batch.
const BATCH: usize = 8;
/// The mean and the standard deviation of each channel by which CLIP's inputs are normalised.
const MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
const DEVIATION: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];

/// The `config.json` of a `CLIPVisionModel`, or the `vision_config` in that of a `CLIPModel`.
///
/// Absent keys have transformers' defaults.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClipConfig {
    /// The kind of model; only `clip_vision_model` is accepted.
    pub model_type: String,
    /// The width of the residual stream. Default: 768.
    pub hidden_size: usize,
    /// The width of the MLP. Default: 3072.
    pub intermediate_size: usize,
    /// The number of blocks, the last of which is not computed. Default: 12.
    pub num_hidden_layers: usize,
    /// The number of attention heads. Default: 12.
    pub num_attention_heads: usize,
    /// The side of the square input images, in pixels. Default: 224.
    pub image_size: usize,
    /// The side of a patch, in pixels. Default: 32.
    pub patch_size: usize,
    /// The activation of the MLP: `quick_gelu` (the default) or `gelu`.
    pub hidden_act: String,
    /// The epsilon of every LayerNorm. Default: 1e-5.
    pub layer_norm_eps: f64,
}

impl Default for ClipConfig {
    fn default() -> Self {
        Self {
            model_type: "clip_vision_model".into(),
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            image_size: 224,
            patch_size: 32,
            hidden_act: "quick_gelu".into(),
            layer_norm_eps: 1e-5,
        }
    }
}

/// The `config.json` of a `CLIPModel`, which has a text and a vision tower.
#[derive(Debug, Deserialize)]
struct Towers {
    vision_config: ClipConfig,
}

impl ClipConfig {
    /// Reads the `config.json` of a model folder.
    ///
    /// # Errors
    /// If the file is missing, malformed or of another kind of model; the file is named.
    pub fn read(folder: &Path) -> Result<Self> {
        let file = folder.join("config.json");
        let json: serde_json::Value = read_json(&file)?;
        let config = match json.get("vision_config") {
            Some(_) => serde_json::from_value::<Towers>(json).map(|towers| towers.vision_config),
            None => serde_json::from_value(json),
        };
        let config = config.map_err(|e| Error::config(&file, e.to_string()))?;
        config.validate(&file)?;
        Ok(config)
    }

    /// Checks the numbers against each other; `path` is named in errors.
    ///
    /// # Errors
    /// Says which number is out of range or contradicts another.
    pub fn validate(&self, path: &Path) -> Result<()> {
        let fault = |message: String| Err(Error::config(path, message));
        let sized = sizes::check_ranges(&[
            ("hidden_size", self.hidden_size, sizes::WIDTH),
            ("intermediate_size", self.intermediate_size, sizes::WIDE),
            ("num_hidden_layers", self.num_hidden_layers, sizes::LAYERS),
            ("image_size", self.image_size, 1..=MOST_PIXELS),
        ]);
        let sized = sized.and_then(|()| sizes::check_positive(&[("layer_norm_eps", self.layer_norm_eps)]));
        sized.map_err(|message| Error::config(path, message))?;
        let (heads, patch) = (self.num_attention_heads, self.patch_size);
        if self.model_type != "clip_vision_model" {
            return fault(format!(
                "model_type {:?} is not CLIP; Show-o was trained with openai/clip-vit-large-patch14-336",
                self.model_type
            ));
        }
        if heads == 0 || !self.hidden_size.is_multiple_of(heads) {
            return fault(format!("hidden_size {} is not a multiple of {heads} heads", self.hidden_size));
        }
        if patch == 0 || self.image_size < patch {
            return fault(format!("image_size {} has no patch of {patch}", self.image_size));
        }
        if !["quick_gelu", "gelu"].contains(&self.hidden_act.as_str()) {
            return fault(format!("hidden_act {:?} is neither quick_gelu nor gelu", self.hidden_act));
        }
        Ok(())
    }

    /// The number of patches of an image.
    pub fn patches(&self) -> usize {
        (self.image_size / self.patch_size).pow(2)
    }
}

#[derive(Debug, Clone)]
struct Block {
    layer_norm1: Affine,
    q_proj: Affine,
    k_proj: Affine,
    v_proj: Affine,
    out_proj: Affine,
    layer_norm2: Affine,
    fc1: Affine,
    fc2: Affine,
}

impl Block {
    fn load(scope: &Scope, config: &ClipConfig) -> Result<Self> {
        let (hidden, mlp) = (config.hidden_size, config.intermediate_size);
        let attention = scope.pp("self_attn");
        Ok(Self {
            layer_norm1: Affine::load(&scope.pp("layer_norm1"), &[hidden])?,
            q_proj: Affine::load(&attention.pp("q_proj"), &[hidden, hidden])?,
            k_proj: Affine::load(&attention.pp("k_proj"), &[hidden, hidden])?,
            v_proj: Affine::load(&attention.pp("v_proj"), &[hidden, hidden])?,
            out_proj: Affine::load(&attention.pp("out_proj"), &[hidden, hidden])?,
            layer_norm2: Affine::load(&scope.pp("layer_norm2"), &[hidden])?,
            fc1: Affine::load(&scope.pp("mlp.fc1"), &[mlp, hidden])?,
            fc2: Affine::load(&scope.pp("mlp.fc2"), &[hidden, mlp])?,
        })
    }
}

/// The vision tower, up to the hidden states that Show-o reads.
#[derive(Debug, Clone)]
pub struct ClipVision {
    config: ClipConfig,
    class_embedding: Tensor,
    patch_embedding: Tensor,
    position_embedding: Tensor,
    pre_layrnorm: Affine,
    blocks: Vec<Block>,
    small: bool,
}

impl ClipVision {
    /// Loads a folder of a `CLIPModel` or `CLIPVisionModel`; a text tower in it is ignored. Weights are held as
    /// `dtype`.
    ///
    /// # Errors
    /// If a file is missing, broken or does not fit the configuration; the file is named.
    pub fn load(folder: &Path, dtype: DType, device: &Device) -> Result<Self> {
        let config = ClipConfig::read(folder)?;
        Self::new(&Weights::load(folder, dtype, device)?, config)
    }

    /// Builds the tower from its weights.
    ///
    /// # Errors
    /// If a weight is missing or has another shape than the configuration asks for.
    pub fn new(weights: &Weights, config: ClipConfig) -> Result<Self> {
        let root = weights.scope("vision_model");
        let embeddings = root.pp("embeddings");
        let (hidden, patch) = (config.hidden_size, config.patch_size);
        let pixels = [hidden, 3, patch, patch];
        let blocks = (0..config.num_hidden_layers - 1)
            .map(|layer| Block::load(&root.pp("encoder.layers").pp(layer), &config))
            .collect::<Result<_>>()?;
        Ok(Self {
            class_embedding: embeddings.get("class_embedding", &[hidden])?,
            patch_embedding: embeddings.pp("patch_embedding").get("weight", &pixels)?.reshape((hidden, ()))?,
            position_embedding: embeddings.pp("position_embedding").get("weight", &[config.patches() + 1, hidden])?,
            pre_layrnorm: Affine::load(&root.pp("pre_layrnorm"), &[hidden])?,
            blocks,
            small: weights.parameter_count() < parallel::SMALL,
            config,
        })
    }

    /// Names and shapes of all parameters of a `CLIPVisionModel`, the unused last block included.
    pub fn parameter_shapes(config: &ClipConfig) -> Vec<(String, Vec<usize>)> {
        let (hidden, mlp, patch) = (config.hidden_size, config.intermediate_size, config.patch_size);
        let embeddings = "vision_model.embeddings";
        let mut shapes = vec![
            (format!("{embeddings}.class_embedding"), vec![hidden]),
            (format!("{embeddings}.patch_embedding.weight"), vec![hidden, 3, patch, patch]),
            (format!("{embeddings}.position_embedding.weight"), vec![config.patches() + 1, hidden]),
        ];
        let mut pair = |name: String, shape: Vec<usize>| {
            shapes.push((format!("{name}.bias"), vec![shape[0]]));
            shapes.push((format!("{name}.weight"), shape));
        };
        pair("vision_model.pre_layrnorm".into(), vec![hidden]);
        for layer in 0..config.num_hidden_layers {
            let base = format!("vision_model.encoder.layers.{layer}");
            for name in ["q_proj", "k_proj", "v_proj", "out_proj"] {
                pair(format!("{base}.self_attn.{name}"), vec![hidden, hidden]);
            }
            pair(format!("{base}.layer_norm1"), vec![hidden]);
            pair(format!("{base}.mlp.fc1"), vec![mlp, hidden]);
            pair(format!("{base}.mlp.fc2"), vec![hidden, mlp]);
            pair(format!("{base}.layer_norm2"), vec![hidden]);
        }
        pair("vision_model.post_layernorm".into(), vec![hidden]);
        shapes
    }

    /// The tower's configuration.
    pub fn config(&self) -> &ClipConfig {
        &self.config
    }

    /// The features of images of any size, which are preprocessed as by transformers' `CLIPImageProcessor`.
    ///
    /// # Shapes
    /// `[patches, hidden]` for each image
    ///
    /// # Errors
    /// If an image has no pixels.
    pub fn features(&self, pictures: &[RgbImage]) -> Result<Vec<Tensor>> {
        let chunks: Vec<&[RgbImage]> = pictures.chunks(BATCH).collect();
        let features = parallel::map(self.small, &chunks, |chunk| -> Result<Vec<Tensor>> {
            let squares = chunk.iter().map(|picture| self.square(picture)).collect::<Result<Vec<_>>>()?;
            let states = self.forward(&self.patch_matrix(&squares)?, chunk.len())?;
            (0..chunk.len()).map(|image| Ok(states.get(image)?)).collect()
        });
        Ok(features.into_iter().collect::<Result<Vec<_>>>()?.concat())
    }

    /// The part of an image that the tower reads, at the size at which it reads it.
    ///
    /// # Errors
    /// If the image has no pixels.
    pub fn square(&self, picture: &RgbImage) -> Result<RgbImage> {
        fit_square(picture.clone(), self.config.image_size, Centre::Down)
    }

    /// The pixels of each patch as one row, in the order of the patch embedding's weight.
    ///
    /// # Shapes
    /// `[images · patches, 3 · patch²]`
    fn patch_matrix(&self, squares: &[RgbImage]) -> Result<Tensor> {
        let patch = self.config.patch_size;
        let side = self.config.image_size / patch;
        let mut values = Vec::with_capacity(squares.len() * self.config.patches() * 3 * patch * patch);
        for square in squares {
            for (row, column) in (0..side).flat_map(|row| (0..side).map(move |column| (row, column))) {
                for channel in 0..3 {
                    for (y, x) in (0..patch).flat_map(|y| (0..patch).map(move |x| (y, x))) {
                        let pixel = square.get_pixel((column * patch + x) as u32, (row * patch + y) as u32);
                        values.push((f32::from(pixel[channel]) / 255.0 - MEAN[channel]) / DEVIATION[channel]);
                    }
                }
            }
        }
        let weight = &self.patch_embedding;
        Ok(Tensor::from_vec(values, ((), 3 * patch * patch), weight.device())?.to_dtype(weight.dtype())?)
    }

    /// `[images · patches, 3 · patch²]` → `[images, patches, hidden]`
    fn forward(&self, patches: &Tensor, images: usize) -> Result<Tensor> {
        let ClipConfig { hidden_size: hidden, num_attention_heads: heads, layer_norm_eps: eps, .. } = self.config;
        let (count, head_dim) = (self.config.patches(), hidden / heads);
        let (tokens, scale) = (count + 1, 1.0 / (head_dim as f32).sqrt());
        let patches = ops::linear(patches, &self.patch_embedding, None)?.reshape((images, count, hidden))?;
        let class = self.class_embedding.reshape((1, 1, hidden))?.broadcast_as((images, 1, hidden))?;
        let embedded = Tensor::cat(&[&class.contiguous()?, &patches], 1)?.broadcast_add(&self.position_embedding)?;
        let mut xs = self.pre_layrnorm.norm(&embedded.reshape((images * tokens, hidden))?, eps)?;
        let block = |image: usize| image * tokens..(image + 1) * tokens;
        let segments: Arc<[Segment]> = (0..images).map(|image| Segment::block(block(image), block(image))).collect();
        for block in &self.blocks {
            let normed = block.layer_norm1.norm(&xs, eps)?;
            let split = |projection: &Affine| -> Result<Tensor> {
                Ok(projection.linear(&normed)?.reshape((images * tokens, heads, head_dim))?)
            };
            let (q, k, v) = (split(&block.q_proj)?, split(&block.k_proj)?, split(&block.v_proj)?);
            xs = (xs + block.out_proj.linear(&ops::attention(&q, &k, &v, &segments, scale)?)?)?;
            let wide = block.fc1.linear(&block.layer_norm2.norm(&xs, eps)?)?;
            let active = if self.config.hidden_act == "gelu" { ops::gelu_erf(&wide) } else { ops::gelu_quick(&wide) };
            xs = (xs + block.fc2.linear(&active?)?)?;
        }
        Ok(xs.reshape((images, tokens, hidden))?.narrow(1, 1, count)?.contiguous()?)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn read(json: &str) -> Result<ClipConfig> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.json"), json).unwrap();
        ClipConfig::read(folder.path())
    }

    #[test]
    fn both_kinds_of_configuration_are_read() {
        let vision = r#"{ "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
            "num_attention_heads": 16, "image_size": 336, "patch_size": 14, "projection_dim": 768 }"#;
        let alone = read(vision).unwrap();
        assert_eq!((alone.hidden_size, alone.patches(), alone.hidden_act.as_str()), (1024, 576, "quick_gelu"));
        let both = format!(r#"{{ "model_type": "clip", "text_config": {{}}, "vision_config": {vision} }}"#);
        assert_eq!(read(&both).unwrap(), alone);
    }

    #[test]
    fn other_models_are_refused() {
        for (json, expected) in [
            (r#"{ "model_type": "siglip_vision_model" }"#, "not CLIP"),
            (r#"{ "num_attention_heads": 5 }"#, "multiple of 5 heads"),
            (r#"{ "patch_size": 500 }"#, "no patch of 500"),
            (r#"{ "num_hidden_layers": 0 }"#, "num_hidden_layers"),
            (r#"{ "hidden_act": "relu" }"#, "neither quick_gelu nor gelu"),
        ] {
            let said = read(json).unwrap_err().to_string();
            assert!(said.contains(expected) && said.contains("config.json"), "{said}");
        }
    }
}
