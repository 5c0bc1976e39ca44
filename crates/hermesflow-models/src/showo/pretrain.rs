//! Starting a Show-o from scratch: random weights, training the text tokenizer, and the loss of the image tokenizer.
//! Pretraining the transformer needs only [`PairModel`](crate::PairModel), since its objectives (masked image tokens,
//! captions, answers) are all sums of log-probabilities.

use candle_core::{DType, Device, Tensor};
use hermesflow_nn::weights::Weights;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer};

use super::clip::{ClipConfig, ClipVision};
use super::config::{PhiConfig, ShowoConfig};
use super::magvit::{Magvit, MagvitConfig};
use super::phi;
use crate::{Error, Result};

/// Random weights of a decoder: N(0, 0.02²), with the projections into the residual stream scaled by 1/√(2·layers) (as
/// in GPT-2); biases zero, norms one.
///
/// # Errors
/// If a tensor cannot be allocated.
pub fn random_showo(showo: &ShowoConfig, phi: &PhiConfig, seed: u64, device: &Device) -> Result<Weights> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let residual = 0.02 / (2.0 * phi.num_hidden_layers as f64).sqrt();
    let tensors = phi::parameter_shapes(showo, phi)
        .into_iter()
        .map(|(name, shape)| {
            let count = shape.iter().product();
            let values = if name.ends_with(".bias") {
                vec![0.0; count]
            } else if name.contains("layernorm") {
                vec![1.0; count]
            } else {
                let scaled = name.ends_with("dense.weight") || name.ends_with("fc2.weight");
                let deviation = if scaled { residual } else { 0.02 };
                normals(&mut random, count, deviation)
            };
            Ok((name, Tensor::from_vec(values, shape, device)?))
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(Weights::from_tensors(tensors, "random Show-o"))
}

/// Random weights of a CLIP vision tower: N(0, 1/width); biases zero, norms one.
///
/// # Errors
/// If a tensor cannot be allocated.
pub fn random_clip(config: &ClipConfig, seed: u64, device: &Device) -> Result<Weights> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let deviation = 1.0 / (config.hidden_size as f64).sqrt();
    let tensors = ClipVision::parameter_shapes(config)
        .into_iter()
        .map(|(name, shape)| {
            let count = shape.iter().product();
            let values = match (name.ends_with(".bias"), name.contains("norm")) {
                (true, _) => vec![0.0; count],
                (false, true) => vec![1.0; count],
                (false, false) => (0..count).map(|_| (normal(&mut random) * deviation) as f32).collect(),
            };
            Ok((name, Tensor::from_vec(values, shape, device)?))
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(Weights::from_tensors(tensors, "random CLIP"))
}

/// Random weights of the projector from a tower of `width` numbers into a decoder of `hidden`: N(0, 1/fan-in); biases
/// zero.
///
/// # Errors
/// If a tensor cannot be allocated.
pub fn random_projector(width: usize, hidden: usize, seed: u64, device: &Device) -> Result<Vec<(String, Tensor)>> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut tensors = Vec::new();
    for (layer, input) in [(0, width), (2, hidden)] {
        let deviation = 1.0 / (input as f64).sqrt();
        let weight = (0..hidden * input).map(|_| (normal(&mut random) * deviation) as f32).collect();
        tensors.push((format!("mm_projector.{layer}.weight"), Tensor::from_vec(weight, (hidden, input), device)?));
        tensors.push((format!("mm_projector.{layer}.bias"), Tensor::zeros(hidden, DType::F32, device)?));
    }
    Ok(tensors)
}

/// Random weights of an image tokenizer: U(±1/√fan-in) for convolutions and their biases; norms' weights one, biases
/// zero.
///
/// # Errors
/// If a tensor cannot be allocated.
pub fn random_magvit(config: &MagvitConfig, seed: u64, device: &Device) -> Result<Weights> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut bound = 0.0;
    let tensors = Magvit::parameter_shapes(config)?
        .into_iter()
        .map(|(name, shape)| {
            let count = shape.iter().product();
            let norm = name.contains("norm");
            if shape.len() == 4 {
                bound = 1.0 / ((shape[1] * shape[2] * shape[3]) as f64).sqrt();
            }
            let values = match (norm, name.ends_with(".bias")) {
                (true, true) => vec![0.0; count],
                (true, false) => vec![1.0; count],
                // A bias follows its weight in the list and has the same bound.
                (false, _) => (0..count).map(|_| random.random_range(-bound..bound) as f32).collect(),
            };
            Ok((name, Tensor::from_vec(values, shape, device)?))
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(Weights::from_tensors(tensors, "random image tokenizer"))
}

/// Normal numbers that do not depend on the number of threads: each chunk starts at its own place of the random stream.
fn normals(random: &mut ChaCha8Rng, count: usize, deviation: f64) -> Vec<f32> {
    const SHARE: usize = 1 << 16;
    /// Words of the stream behind one number: two of 64 bits.
    const WORDS: u128 = 4;
    let start = random.get_word_pos();
    let mut values = vec![0f32; count];
    values.par_chunks_mut(SHARE).enumerate().for_each(|(share, values)| {
        let mut random = random.clone();
        random.set_word_pos(start + WORDS * (share * SHARE) as u128);
        values.iter_mut().for_each(|value| *value = (normal(&mut random) * deviation) as f32);
    });
    random.set_word_pos(start + WORDS * count as u128);
    values
}

pub(crate) fn normal(random: &mut ChaCha8Rng) -> f64 {
    let (u, v): (f64, f64) = (random.random(), random.random());
    (-2.0 * (1.0 - u).ln()).sqrt() * (std::f64::consts::TAU * v).cos()
}

/// Trains a byte-level BPE of at most `vocab_size` tokens on lines of text; the last token is `<|endoftext|>`.
///
/// Returns the `tokenizer.json` (without the ten tokens that Show-o adds) and the size of its vocabulary.
///
/// # Errors
/// If the trainer fails.
pub fn train_tokenizer(lines: &[String], vocab_size: usize) -> Result<(String, usize)> {
    let fault = |e: tokenizers::Error| Error::Invalid(format!("cannot train a tokenizer: {e}"));
    let trainer = BpeTrainerBuilder::new()
        .show_progress(false)
        .vocab_size(vocab_size.saturating_sub(1))
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    let mut tokenizer = Tokenizer::new(BPE::default());
    tokenizer.with_pre_tokenizer(Some(ByteLevel::new(false, true, true)));
    tokenizer.with_decoder(Some(ByteLevel::new(false, true, true)));
    let mut wrapped: tokenizers::models::TrainerWrapper = trainer.into();
    tokenizer.train(&mut wrapped, lines.iter()).map_err(fault)?;
    tokenizer.add_special_tokens([AddedToken::from("<|endoftext|>", true)]).map_err(fault)?;
    let size = tokenizer.get_vocab_size(true);
    Ok((tokenizer.to_string(true).map_err(fault)?, size))
}

/// The loss of the image tokenizer and its parts, each a scalar.
#[derive(Debug, Clone)]
pub struct VqLoss {
    /// The loss to minimise.
    pub total: Tensor,
    /// The mean absolute error of pixels in [-1, 1], weighted by their salience.
    pub reconstruction: Tensor,
    /// The mean squared distance between the encoder's output and its code.
    pub commitment: Tensor,
    /// The mean entropy, in bits, of how often each bit of a code is set over the batch; 1 means balanced.
    pub bit_entropy: Tensor,
}

/// The weights of the parts of [`VqLoss`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct VqLossWeights {
    /// The weight of the commitment.
    pub commitment: f64,
    /// The weight of the entropy of the bits' use, which is maximised.
    pub entropy: f64,
    /// By how much a pixel's weight grows per unit of distance from the mean colour of its image.
    pub salience: f64,
}

/// The loss of a lookup-free autoencoder (MAGVIT-v2, arXiv 2310.05737 §3.1, without the adversarial and perceptual
/// terms):
/// |x − x̂| + (x − x̂)², weighted by salience, + commitment − entropy.
///
/// The decoder receives `tanh z + hardness·(sign z − tanh z)` with the gradient of `tanh z`: hardness 0 is a plain
/// autoencoder, 1 the quantized one. From random weights, signs alone collapse to a single code, so hardness should
/// rise over the first steps.
///
/// # Shapes
/// `images` `[b, 3, R, R]` in [-1, 1]
///
/// # Errors
/// If the images have another shape.
pub fn vq_loss(vq: &Magvit, images: &Tensor, weights: VqLossWeights, hardness: f64) -> Result<VqLoss> {
    let encoded = vq.encode(images)?;
    let positive = encoded.detach().gt(0f32)?.to_dtype(encoded.dtype())?;
    let code = positive.affine(2.0, -1.0)?;
    let soft = encoded.tanh()?;
    let through = (&soft + (&code - soft.detach())?.affine(hardness, 0.0)?)?;
    let error = (vq.decode(&through)? - images)?;
    // Objects are far from the image's mean colour. With a plain mean over pixels, reproducing the background
    // would be enough.
    let mean = images.mean_keepdim((2, 3))?;
    let salience = images.broadcast_sub(&mean)?.abs()?.mean_keepdim(1)?.affine(weights.salience, 1.0)?;
    let reconstruction = error.abs()?.broadcast_mul(&salience)?.mean_all()?;
    let commitment = (&encoded - &code)?.sqr()?.mean_all()?;
    let (b, bits, h, w) = encoded.dims4()?;
    // σ(4z) = (1 + tanh 2z) / 2, averaged over the batch: how often each bit is set.
    let set = encoded.affine(2.0, 0.0)?.tanh()?.affine(0.5, 0.5)?;
    let used = set.transpose(0, 1)?.reshape((bits, b * h * w))?.mean(1)?.affine(0.9998, 0.0001)?;
    let unused = used.affine(-1.0, 1.0)?;
    let entropy = ((&used * used.log()?)? + (&unused * unused.log()?)?)?.mean_all()?;
    let bit_entropy = entropy.affine(-1.0 / std::f64::consts::LN_2, 0.0)?;
    let total = ((&reconstruction + error.sqr()?.broadcast_mul(&salience)?.mean_all()?)?
        + (commitment.affine(weights.commitment, 0.0)? - bit_entropy.affine(weights.entropy, 0.0)?)?)?;
    debug_assert_eq!(total.dtype(), DType::F32);
    Ok(VqLoss { total, reconstruction, commitment, bit_entropy })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normals_are_one_stream() {
        let (mut together, mut apart) = (ChaCha8Rng::seed_from_u64(3), ChaCha8Rng::seed_from_u64(3));
        let all = [normals(&mut together, 70_001, 0.5), normals(&mut together, 5, 0.5)].concat();
        let one_by_one: Vec<f32> = (0..all.len()).map(|_| (normal(&mut apart) * 0.5) as f32).collect();
        assert_eq!(all, one_by_one);
    }
}
