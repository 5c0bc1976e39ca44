//! What Janus-Pro makes pictures by: a code's embedding with its aligner on the way in, and a head over all codes on the
//! way out. The embedding is not the codebook of the image tokenizer.

use candle_core::Tensor;
use hermesflow_nn::ops::{self, Products};
use hermesflow_nn::weights::Weights;

use super::config::JanusConfig;
use super::layers::{Aligner, Linear, rooted};
use crate::{Error, Result};

/// `gen_embed`, `gen_aligner.*` and `gen_head.*`.
#[derive(Debug, Clone)]
pub struct Hand {
    gen_embed: Tensor,
    gen_aligner: Aligner,
    output_mlp_projector: Linear,
    vision_head: Linear,
    /// How likelihoods are computed by one operator over the head; none is operator by operator.
    whole: Option<Products>,
}

impl Hand {
    /// Names and shapes of all parameters.
    pub fn parameter_shapes(config: &JanusConfig) -> Vec<(String, Vec<usize>)> {
        let head = &config.gen_head;
        let mut shapes = vec![("gen_embed.weight".to_string(), vec![config.vq.codes, config.vq.code_width])];
        shapes.extend(Aligner::parameter_shapes("gen_aligner", &config.gen_aligner));
        for (name, out, input) in
            [("output_mlp_projector", head.inner, head.input), ("vision_head", head.codes, head.inner)]
        {
            shapes.push((format!("gen_head.{name}.weight"), vec![out, input]));
            shapes.push((format!("gen_head.{name}.bias"), vec![out]));
        }
        shapes
    }

    /// Takes the weights.
    ///
    /// # Errors
    /// Says what is missing or mis-shaped.
    pub fn new(weights: &Weights, config: &JanusConfig) -> Result<Self> {
        let head = weights.scope("gen_head");
        let sizes = &config.gen_head;
        Ok(Self {
            gen_embed: weights.scope("gen_embed").get("weight", &[config.vq.codes, config.vq.code_width])?,
            gen_aligner: Aligner::load(&weights.scope("gen_aligner"), &config.gen_aligner)?,
            output_mlp_projector: Linear::load(&head.pp("output_mlp_projector"), (sizes.inner, sizes.input))?,
            vision_head: Linear::load(&head.pp("vision_head"), (sizes.codes, sizes.inner))?,
            whole: None,
        })
    }

    /// Codes as the LLaMA sees them.
    ///
    /// # Shapes
    /// `[codes, hidden]`
    ///
    /// # Errors
    /// When a code is outside the codebook.
    pub fn embed(&self, codes: &[u32]) -> Result<Tensor> {
        let most = self.gen_embed.dim(0)?;
        if let Some(code) = codes.iter().find(|&&code| code as usize >= most) {
            return Err(Error::Invalid(format!("code {code} is outside the codebook of {most}")));
        }
        self.gen_aligner.forward(&ops::embedding(&self.gen_embed, codes)?)
    }

    /// What the last layer of the head sees.
    ///
    /// # Shapes
    /// `[rows, hidden]` → `[rows, inner]`
    pub(super) fn inner(&self, hidden: &Tensor) -> Result<Tensor> {
        Ok(ops::gelu_erf(&self.output_mlp_projector.forward(hidden)?)?)
    }

    /// Logits of the next code, from what the last layer of the head sees.
    ///
    /// # Shapes
    /// `[rows, inner]` → `[rows, codes]`
    ///
    /// # Errors
    /// When shapes do not fit.
    pub(super) fn logits_of(&self, inner: &Tensor) -> Result<Tensor> {
        self.vision_head.forward(inner)
    }

    /// Logits of the next code.
    ///
    /// # Shapes
    /// `[rows, hidden]` → `[rows, codes]`
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        self.logits_of(&self.inner(hidden)?)
    }

    /// The log-probability of each row's target.
    ///
    /// # Shapes
    /// `[rows, hidden]`, one target per row → `[rows]`, f32
    ///
    /// # Errors
    /// When a target is outside the codebook.
    pub fn log_probs(&self, hidden: &Tensor, targets: &[u32]) -> Result<Tensor> {
        self.log_probs_of(self.inner(hidden)?, targets)
    }

    /// The log-probability of each row's target under guidance g: softmax of `(1+g)·cond − g·uncond` over the codes. The
    /// last layer is affine, so that it runs once, over the same combination of what it sees.
    ///
    /// # Shapes
    /// twice `[rows, hidden]`, with and without the prompt, one target per row → `[rows]`, f32
    ///
    /// # Errors
    /// When a target is outside the codebook.
    pub fn guided_log_probs(&self, cond: &Tensor, uncond: &Tensor, guidance: f64, targets: &[u32]) -> Result<Tensor> {
        let (cond, uncond) = (self.inner(cond)?, self.inner(uncond)?);
        self.log_probs_of((cond.affine(1.0 + guidance, 0.0)? - uncond.affine(guidance, 0.0)?)?, targets)
    }

    /// The log-probability of each row's target, from what the last layer sees.
    fn log_probs_of(&self, inner: Tensor, targets: &[u32]) -> Result<Tensor> {
        let Linear { weight, bias } = &self.vision_head;
        match (self.whole, bias) {
            (Some(products), Some(bias)) => {
                let inner = rooted(inner, weight.track_op() || bias.track_op())?;
                Ok(ops::head_log_prob(&inner, weight, bias, targets, products)?)
            }
            _ => Ok(ops::log_prob(&self.vision_head.forward(&inner)?, targets)?),
        }
    }

    /// The same, whose likelihoods are computed by one operator over the head with these products, where they take its
    /// weights; their gradients come from [`hermesflow_nn::gradients::backward`] only.
    pub fn whole(mut self, products: Products) -> Self {
        self.whole = products.take(self.gen_embed.dtype()).then_some(products);
        self
    }
}
