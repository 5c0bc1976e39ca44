//! SigLIP (arXiv 2303.15343): the vision tower through which Janus-Pro reads pictures.
//!
//! A ViT without a class token. Its pooling head (`attn_pool.*`) is in checkpoints and is never used. Weight paths mirror
//! the checkpoint's names.

use std::sync::Arc;

use candle_core::{DType, Tensor};
use hermesflow_nn::ops::{self, Segment};
use hermesflow_nn::weights::{Scope, Weights};

use super::config::SiglipConfig;
use super::layers::{LayerNorm, Linear};
use crate::{Error, Result};

/// What the names of its parameters begin with.
pub(super) const ROOT: &str = "vision_model.vision_tower";

#[derive(Debug, Clone)]
struct Block {
    norm1: LayerNorm,
    qkv: Linear,
    proj: Linear,
    norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
}

impl Block {
    fn load(scope: &Scope, config: &SiglipConfig) -> Result<Self> {
        let (width, mlp) = (config.width, config.mlp_width);
        Ok(Self {
            norm1: LayerNorm::load(&scope.pp("norm1"), width)?,
            qkv: Linear::load(&scope.pp("attn.qkv"), (3 * width, width))?,
            proj: Linear::load(&scope.pp("attn.proj"), (width, width))?,
            norm2: LayerNorm::load(&scope.pp("norm2"), width)?,
            fc1: Linear::load(&scope.pp("mlp.fc1"), (mlp, width))?,
            fc2: Linear::load(&scope.pp("mlp.fc2"), (width, mlp))?,
        })
    }
}

/// The vision tower.
#[derive(Debug, Clone)]
pub struct Siglip {
    config: SiglipConfig,
    patch_embed: Linear,
    pos_embed: Tensor,
    blocks: Vec<Block>,
    norm: LayerNorm,
}

impl Siglip {
    /// Names and shapes of all parameters that are used.
    pub fn parameter_shapes(config: &SiglipConfig) -> Vec<(String, Vec<usize>)> {
        let (width, mlp, patch) = (config.width, config.mlp_width, config.patch_size);
        let mut shapes = vec![(format!("{ROOT}.pos_embed"), vec![1, config.patches(), width])];
        let mut pair = |name: String, shape: Vec<usize>| {
            shapes.push((format!("{ROOT}.{name}.bias"), vec![shape[0]]));
            shapes.push((format!("{ROOT}.{name}.weight"), shape));
        };
        pair("patch_embed.proj".into(), vec![width, 3, patch, patch]);
        for block in 0..config.blocks {
            pair(format!("blocks.{block}.norm1"), vec![width]);
            pair(format!("blocks.{block}.attn.qkv"), vec![3 * width, width]);
            pair(format!("blocks.{block}.attn.proj"), vec![width, width]);
            pair(format!("blocks.{block}.norm2"), vec![width]);
            pair(format!("blocks.{block}.mlp.fc1"), vec![mlp, width]);
            pair(format!("blocks.{block}.mlp.fc2"), vec![width, mlp]);
        }
        pair("norm".into(), vec![width]);
        shapes
    }

    /// Takes the weights.
    ///
    /// # Errors
    /// Says what is missing or mis-shaped.
    pub fn new(weights: &Weights, config: &SiglipConfig) -> Result<Self> {
        let root = weights.scope(ROOT);
        let (width, patch) = (config.width, config.patch_size);
        let proj = root.pp("patch_embed.proj");
        let patch_embed = Linear {
            weight: proj.get("weight", &[width, 3, patch, patch])?.reshape((width, 3 * patch * patch))?,
            bias: Some(proj.get("bias", &[width])?),
        };
        let blocks = (0..config.blocks).map(|block| Block::load(&root.pp("blocks").pp(block), config));
        Ok(Self {
            patch_embed,
            pos_embed: root.get("pos_embed", &[1, config.patches(), width])?.to_dtype(DType::F32)?,
            blocks: blocks.collect::<Result<_>>()?,
            norm: LayerNorm::load(&root.pp("norm"), width)?,
            config: config.clone(),
        })
    }

    /// The features of pictures.
    ///
    /// # Shapes
    /// `pixels [pictures, 3, image_size, image_size]` → `[pictures, patches, width]`
    ///
    /// # Errors
    /// When the pictures have another size.
    pub fn forward(&self, pixels: &Tensor) -> Result<Tensor> {
        let SiglipConfig { image_size, patch_size: patch, width, heads, .. } = self.config;
        let (pictures, channels, height, wide) = pixels.dims4()?;
        if (channels, height, wide) != (3, image_size, image_size) {
            let message = format!("the vision tower reads {image_size}×{image_size} pixels, not {:?}", pixels.dims());
            return Err(Error::Invalid(message));
        }
        let (side, count, head) = (self.config.side(), self.config.patches(), width / heads);
        // The pixels of each patch as one row, in the order of the patch embedding's weight; what no patch holds is left out.
        let pixels = pixels.narrow(2, 0, side * patch)?.narrow(3, 0, side * patch)?.contiguous()?;
        let pixels = pixels.reshape(&[pictures, 3, side, patch, side, patch][..])?.permute([0, 2, 4, 1, 3, 5])?;
        let pixels = pixels.contiguous()?.reshape((pictures * count, 3 * patch * patch))?;
        let xs = self.patch_embed.forward(&pixels)?.reshape((pictures, count, width))?;
        let mut xs = xs.broadcast_add(&self.pos_embed)?.reshape((pictures * count, width))?;
        let scale = 1.0 / (head as f32).sqrt();
        let rows = |picture: usize| picture * count..(picture + 1) * count;
        let segments: Arc<[Segment]> = (0..pictures).map(|at| Segment::block(rows(at), rows(at))).collect();
        for block in &self.blocks {
            let qkv = block.qkv.forward(&block.norm1.forward(&xs)?)?.reshape((pictures * count, 3 * heads, head))?;
            let part = |number: usize| qkv.narrow(1, number * heads, heads);
            let seen = ops::attention(&part(0)?, &part(1)?, &part(2)?, &segments, scale)?;
            xs = (xs + block.proj.forward(&seen)?)?;
            let inner = block.fc1.forward(&block.norm2.forward(&xs)?)?;
            xs = (xs + block.fc2.forward(&ops::gelu_erf(&inner)?)?)?;
        }
        Ok(self.norm.forward(&xs)?.reshape((pictures, count, width))?)
    }
}
