//! `vision_config` and the aligners: the sizes of SigLIP, and of the layers between it, the codes and the LLaMA.

use hermesflow_nn::sizes;
use serde::Deserialize;

/// The side of a picture, at most.
pub(super) const MOST_PIXELS: usize = 4096;
/// Layers of an aligner, at most.
const MOST_DEPTH: usize = 64;
/// The greatest ratio of an MLP's width to that of its block.
const MOST_RATIO: f64 = 64.0;

/// `vision_config.params`, as the file has them.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct VisionParams {
    model_name: String,
    image_size: usize,
    #[serde(default = "last")]
    select_layer: i64,
    #[serde(default = "same")]
    select_feature: String,
    width: Option<usize>,
    layers: Option<usize>,
    heads: Option<usize>,
    mlp_ratio: Option<f64>,
    patch_size: Option<usize>,
}

fn last() -> i64 {
    -1
}

fn same() -> String {
    "same".into()
}

/// The sizes of the vision tower.
#[derive(Debug, Clone, PartialEq)]
pub struct SiglipConfig {
    /// Side of the square pictures that it reads, in pixels.
    pub image_size: usize,
    /// Side of a patch, in pixels.
    pub patch_size: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Attention heads.
    pub heads: usize,
    /// Width of the MLP.
    pub mlp_width: usize,
    /// Blocks that exist, all of which are computed.
    pub blocks: usize,
}

impl SiglipConfig {
    /// The sizes that a name means, over which extra keys win.
    pub(super) fn new(params: &VisionParams) -> Result<Self, String> {
        // Width, layers, heads, ratio of the MLP, side of a patch.
        let named = match params.model_name.as_str() {
            "siglip_large_patch16_384" => Some((1024, 24, 16, 4.0, 16)),
            _ => None,
        };
        let missing = |key: &str| {
            format!(
                "vision_config.params.model_name {:?} is not known, and {key} is not given; known: \
                 siglip_large_patch16_384",
                params.model_name
            )
        };
        let width = params.width.or(named.map(|n| n.0)).ok_or_else(|| missing("width"))?;
        let layers = params.layers.or(named.map(|n| n.1)).ok_or_else(|| missing("layers"))?;
        let heads = params.heads.or(named.map(|n| n.2)).ok_or_else(|| missing("heads"))?;
        let ratio = params.mlp_ratio.or(named.map(|n| n.3)).ok_or_else(|| missing("mlp_ratio"))?;
        let patch_size = params.patch_size.or(named.map(|n| n.4)).ok_or_else(|| missing("patch_size"))?;
        sizes::check_ranges(&[
            ("vision_config.params.image_size", params.image_size, 1..=MOST_PIXELS),
            ("vision_config.params.patch_size", patch_size, 1..=MOST_PIXELS),
            ("vision_config.params.width", width, sizes::WIDTH),
            ("vision_config.params.layers", layers, sizes::LAYERS),
            ("vision_config.params.heads", heads, sizes::WIDTH),
        ])?;
        if !(ratio > 0.0 && ratio <= MOST_RATIO) {
            return Err(format!("vision_config.params.mlp_ratio {ratio} is not within 0 … {MOST_RATIO}"));
        }
        let mlp_width = (width as f64 * ratio) as usize;
        sizes::check_ranges(&[("the width of the vision tower's MLP", mlp_width, sizes::WIDE)])?;
        if !width.is_multiple_of(heads) {
            return Err(format!("vision_config.params.width {width} is not a multiple of {heads} heads"));
        }
        if params.image_size < patch_size {
            return Err(format!("vision_config.params.image_size {} has no patch of {patch_size}", params.image_size));
        }
        if params.select_feature != "same" {
            return Err(format!("vision_config.params.select_feature {:?} is not same", params.select_feature));
        }
        Ok(Self {
            image_size: params.image_size,
            patch_size,
            width,
            heads,
            mlp_width,
            blocks: blocks(layers, params.select_layer),
        })
    }

    /// Patches of a side.
    pub fn side(&self) -> usize {
        self.image_size / self.patch_size
    }

    /// Patches of a picture.
    pub fn patches(&self) -> usize {
        self.side().pow(2)
    }
}

/// The blocks that exist: up to the selected one, which is counted from the end if it is not above 0.
fn blocks(layers: usize, select_layer: i64) -> usize {
    if select_layer > 0 {
        return layers.min(usize::try_from(select_layer).unwrap_or(layers));
    }
    let left_out = usize::try_from(select_layer.saturating_add(1).min(0).unsigned_abs()).unwrap_or(layers);
    layers.saturating_sub(left_out)
}

/// `params` of an aligner, as the file has them.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct AlignerParams {
    projector_type: String,
    #[serde(default = "one")]
    depth: usize,
    input_dim: usize,
    n_embed: usize,
}

fn one() -> usize {
    1
}

/// The sizes of an aligner: linear layers with GELU between.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AlignerConfig {
    /// Linear layers.
    pub depth: usize,
    /// Width of what goes in.
    pub input: usize,
    /// Width of what comes out, and between.
    pub output: usize,
}

impl AlignerConfig {
    /// `name` is the part of the file.
    pub(super) fn new(name: &str, params: &AlignerParams) -> Result<Self, String> {
        if params.projector_type != "mlp_gelu" {
            let found = &params.projector_type;
            return Err(format!("{name}.params.projector_type {found:?} is not known; known: mlp_gelu"));
        }
        sizes::check_ranges(&[
            (&format!("{name}.params.depth"), params.depth, 1..=MOST_DEPTH),
            (&format!("{name}.params.input_dim"), params.input_dim, sizes::WIDTH),
            (&format!("{name}.params.n_embed"), params.n_embed, sizes::WIDTH),
        ])?;
        Ok(Self { depth: params.depth, input: params.input_dim, output: params.n_embed })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_selected_layer_says_how_many_blocks_exist() {
        let count = [-1, -2, -3, -4, -5, -9, 0, 1, 2, 3, 4, i64::MIN, i64::MAX].map(|layer| blocks(3, layer));
        assert_eq!(count, [3, 2, 1, 0, 0, 0, 3, 1, 2, 3, 3, 0, 3]);
    }
}
