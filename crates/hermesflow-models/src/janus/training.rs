//! Which parts of the model are trained, and a digest of all that decides its likelihoods.

use candle_core::{DType, Tensor};
use hermesflow_nn::device::{describe, multiplies_bf16, uses_kernels};
use hermesflow_nn::ops::Products;
use hermesflow_nn::parallel;

use super::Janus;
use crate::cost::TrainedSides;
use crate::decoder::Decoder;
use crate::{Error, Result};

/// What the names of the parameters begin with that are trained where nothing else is said.
pub const TRAINED: [&str; 4] = ["language_model.", "gen_embed.", "gen_aligner.", "gen_head."];
/// Parts that can be trained: likelihoods depend on them.
const TRAINABLE: [&str; 5] = ["language_model.", "gen_embed.", "gen_aligner.", "gen_head.", "aligner."];
/// Parts that only the likelihood of an image depends on.
const OF_IMAGES: [&str; 3] = ["gen_embed.", "gen_aligner.", "gen_head."];
/// Parts that only the likelihood of a caption depends on.
const OF_CAPTIONS: [&str; 2] = ["language_model.lm_head.", "aligner."];

/// Whether training computes by a copy in f32 of a parameter that is held as `dtype`: what whole operators do not multiply by
/// is in f32 under all products.
pub(super) fn is_widened(name: &str, products: Products, dtype: DType) -> bool {
    let whole = name.starts_with("language_model.") || name.starts_with("gen_head.vision_head.");
    TRAINABLE.iter().any(|part| name.starts_with(part)) && !(whole && products.take(dtype))
}

/// Whether a parameter is trained on these sides, where those are that begin with one of `prefixes`.
fn is_trained<S: AsRef<str>>(name: &str, prefixes: &[S], sides: TrainedSides) -> bool {
    let idle: &[&str] = match sides {
        TrainedSides::Both => &[],
        TrainedSides::Captions => &OF_IMAGES,
        TrainedSides::Images => &OF_CAPTIONS,
    };
    prefixes.iter().any(|prefix| name.starts_with(prefix.as_ref())) && !idle.iter().any(|part| name.starts_with(part))
}

/// Checks that each prefix begins the names of parameters, that all of these can be trained, and that some of them are
/// trained on these sides.
///
/// # Errors
/// Names the prefixes that do not.
pub(super) fn check_parts<'a, S: AsRef<str>, I: Iterator<Item = &'a str>>(
    prefixes: &[S],
    sides: TrainedSides,
    names: impl Fn() -> I,
) -> Result<()> {
    for prefix in prefixes.iter().map(AsRef::as_ref) {
        let mut known = names().filter(|name| name.starts_with(prefix)).peekable();
        let can = known.peek().is_some() && known.all(|name| TRAINABLE.iter().any(|part| name.starts_with(part)));
        if !can {
            let message = format!(
                "train.parameters: {prefix:?} is not the beginning of names of parameters that can be trained; those \
                 begin with {}",
                TRAINABLE.join(", ")
            );
            return Err(Error::Invalid(message));
        }
    }
    if prefixes.is_empty() || names().any(|name| is_trained(name, prefixes, sides)) {
        return Ok(());
    }
    let given: Vec<&str> = prefixes.iter().map(AsRef::as_ref).collect();
    let what = if sides == TrainedSides::Captions { "captions" } else { "images" };
    let message = format!(
        "train.parameters: the likelihood of {what}, which is all that train.sides trains, depends on nothing in {}",
        given.join(", ")
    );
    Err(Error::Invalid(message))
}

impl Janus {
    /// The model over trainable copies of the parameters whose names begin with one of `prefixes`; the others are shared
    /// with this one.
    ///
    /// # Errors
    /// When a prefix is that of no parameter that can be trained, or a weight cannot be copied.
    pub fn trainable<S: AsRef<str>>(&self, prefixes: &[S]) -> Result<Self> {
        self.trainable_for(prefixes, TrainedSides::Both)
    }

    /// As [`Janus::trainable`], without the parameters on which no likelihood of these sides depends.
    ///
    /// # Errors
    /// As [`Janus::trainable`], and when no parameter is left.
    pub fn trainable_for<S: AsRef<str>>(&self, prefixes: &[S], sides: TrainedSides) -> Result<Self> {
        check_parts(prefixes, sides, || self.weights.tensors().keys().map(String::as_str))?;
        self.with_weights(self.weights.trainable_by_name(|name| is_trained(name, prefixes, sides))?)
    }

    /// The model over trainable copies of everything but the image tokenizer, the vision tower included: for a small model
    /// that is trained from nothing.
    ///
    /// # Errors
    /// When a weight cannot be copied.
    pub fn trainable_from_nothing(&self) -> Result<Self> {
        let is_trained = |name: &str| !name.starts_with(super::vq::ROOT) && !super::is_unused(name);
        self.with_weights(self.weights.trainable_by_name(is_trained)?)
    }

    /// The model over the same storage without gradients: it follows the training.
    ///
    /// # Errors
    /// Never for a model that was loaded.
    pub fn frozen(&self) -> Result<Self> {
        self.with_weights(self.weights.frozen())
    }

    /// The model as it is now: what is trained is copied and does not follow the training, what is not is shared.
    ///
    /// # Errors
    /// When a weight cannot be copied.
    pub fn snapshot(&self) -> Result<Self> {
        self.with_weights(self.weights.snapshot_of_trained()?)
    }

    /// The model as Pair-DPO trains it or compares with it: with these products, and by whole blocks, but for a small one
    /// in f32 on the CPU, which goes on operator by operator.
    ///
    /// A policy and the reference that it begins from compute the same likelihoods, bit for bit, whatever type the
    /// reference is held in: products that do not take its weights get them widened to f32, which is what is trained.
    ///
    /// The gradients of its likelihoods come from [`hermesflow_nn::gradients::backward`] only.
    ///
    /// # Errors
    /// When a weight cannot be widened.
    pub fn training(&self, products: Products) -> Result<Self> {
        let is_widened = |name: &str| {
            let dtype = self.weights.tensors().get(name).map_or(DType::F32, Tensor::dtype);
            is_widened(name, products, dtype)
        };
        let held = self.with_weights(self.weights.widened_by_name(is_widened)?)?;
        let small = self.weights.parameter_count() < parallel::SMALL;
        if products == Products::F32 && small && uses_kernels(self.llama.device()) {
            return Ok(held);
        }
        Ok(Self { llama: held.llama.clone().whole(products), hand: held.hand.clone().whole(products), ..held })
    }

    /// The model, whose whole blocks ([`Self::training`]) keep for the backward pass their inputs only, if `on`, and compute
    /// the rest again: the same numbers for less memory and more time. One that runs operator by operator stays as it is.
    pub fn recompute(&self, on: bool) -> Self {
        Self { llama: self.llama.clone().recompute(on), ..self.clone() }
    }

    /// Everything that decides the model's likelihoods, piece by piece, for a digest: the small files, and the weights as
    /// they are held.
    ///
    /// # Errors
    /// When a weight cannot be read.
    pub fn each_part(&self, mut see: impl FnMut(&[u8])) -> Result<()> {
        for (name, bytes) in self.files.all() {
            see(name.as_bytes());
            see(bytes);
        }
        see(format!("{:?} {}", self.llama.products(), multiplies_bf16(self.llama.device())).as_bytes());
        let device = self.llama.device();
        if !uses_kernels(device) {
            // They round otherwise than the CPU's kernels.
            see(format!("compositions on {}", describe(device)).as_bytes());
        }
        self.weights.each_bytes(|described, bytes| {
            see(described.as_bytes());
            see(bytes);
        })?;
        Ok(())
    }
}
