//! How far the distribution of image codes has moved from the reference's: KL(π ‖ π_ref), with the prompt and without it.
//!
//! The comparison of Pair-DPO holds the two images of a pair to the reference, and nothing else: whatever else the model would
//! draw may drift. Under classifier-free guidance two distributions decide what is drawn, the conditional and the unconditional
//! one, and either may drift. This term holds both, over all codes and not only those that were drawn:
//!
//! ```text
//! KL(π ‖ π_ref) = Σ_c π(c) · (log π(c) − log π_ref(c))     at each scored position, c over the image codes
//! L             = … + κ · (KL with the prompt + KL without it)
//! ```
//!
//! Each is the sum over the scored positions of an image, in one of the states that the pair's draw looks at, and the mean of
//! the pair's two images. By hand, with two codes, π = (.8, .2) and π_ref = (.5, .5): .8·ln 1.6 + .2·ln .4 = .1927.
//!
//! The derivative by a logit is π(c) · (log π(c) − log π_ref(c) − KL). The graph is that of a linear function of the logits
//! with these slopes, so that it holds the logits alone, and is exactly flat where both models are one.

use candle_core::{D, Tensor};
use hermesflow_models::{ImageExample, PairModel, Scored};
use hermesflow_nn::ops;

use crate::Result;
use crate::draws::ImageDraw;
use crate::metrics::Metrics;
use crate::states;
use crate::training_pair::TrainingPair;

/// How far the images of some pairs have moved.
pub(crate) struct Divergence {
    /// What is minimised: of each pair, both divergences added up.
    ///
    /// # Shapes
    /// `[pairs]`, f32, with its graph
    pub loss: Tensor,
    /// The divergence of each pair with the prompt, then without it.
    pub parts: [Vec<f32>; 2],
}

impl Divergence {
    /// Adds the means of a batch's pairs to its metrics, with the prompt and without it; `batch` has the [`Self::parts`] of
    /// its parts.
    pub fn insert(batch: &[&[Vec<f32>; 2]], metrics: &mut Metrics) {
        for (at, name) in ["gen/kl/conditional", "gen/kl/unconditional"].into_iter().enumerate() {
            let values: Vec<f64> = batch.iter().flat_map(|part| part[at].iter().copied().map(f64::from)).collect();
            metrics.insert(name, values.iter().sum::<f64>() / values.len().max(1) as f64);
        }
    }
}

/// The divergence of `policy` from `reference` on the images of some pairs. `numbers` are those of the comparisons in the
/// run; they choose which state of a draw is looked at, all of them in turn.
pub(crate) fn divergence<M: PairModel>(
    policy: &M,
    reference: &M,
    pairs: &[&TrainingPair],
    draws: &[ImageDraw],
    numbers: &[u64],
) -> Result<Divergence> {
    let (mut examples, mut members) = (Vec::new(), Vec::new());
    for unconditional in [false, true] {
        for (at, (pair, (draw, number))) in pairs.iter().zip(draws.iter().zip(numbers)).enumerate() {
            for (side, codes) in [&pair.image_win, &pair.image_lose].into_iter().enumerate() {
                let steps = pair.steps.as_ref().map_or(&[][..], |steps| &steps[side]);
                let states = states::scored(draw, steps);
                // Where all positions are scored there is one state.
                let chosen = (*number % states.len().max(1) as u64) as usize;
                let (scored, weight) = states.get(chosen).cloned().unwrap_or((Scored::All, 1.0));
                let rows = match &scored {
                    Scored::All => codes.len(),
                    Scored::Masked(scored) | Scored::Settled { settled: scored, .. } => scored.len(),
                };
                members
                    .extend(std::iter::repeat_n((usize::from(unconditional) * pairs.len() + at, 0.5 * weight), rows));
                examples.push(ImageExample {
                    prompt: pair.caption.clone(),
                    unconditional,
                    codes: codes.clone(),
                    scored,
                });
            }
        }
    }
    let rows = of_rows(&policy.image_logits(&examples)?, &reference.image_logits(&examples)?)?;
    let sums = ops::sums_of_values(&rows, members, 2 * pairs.len())?;
    let part = |first: usize| sums.narrow(0, first, pairs.len());
    let (with, without) = (part(0)?, part(pairs.len())?);
    let parts = [with.detach().to_vec1()?, without.detach().to_vec1()?];
    Ok(Divergence { loss: (with + without)?, parts })
}

/// KL(softmax of `policy` ‖ softmax of `reference`) of each row; gradients flow to `policy`.
///
/// # Shapes
/// `[rows, codes]` twice → `[rows]`
fn of_rows(policy: &Tensor, reference: &Tensor) -> candle_core::Result<Tensor> {
    let (log_p, log_q) = (log_softmax(&policy.detach())?, log_softmax(&reference.detach())?);
    let (p, apart) = (log_p.exp()?, (log_p - log_q)?);
    let divergence = (&p * &apart)?.sum_keepdim(D::Minus1)?;
    let slopes = (p * apart.broadcast_sub(&divergence)?)?;
    let linear = (policy * slopes)?.sum(D::Minus1)?;
    // Zero, with the derivative of the divergence.
    let derivative = (&linear - linear.detach())?;
    derivative + divergence.squeeze(D::Minus1)?
}

fn log_softmax(logits: &Tensor) -> candle_core::Result<Tensor> {
    let shifted = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?)?;
    let total = shifted.exp()?.sum_keepdim(D::Minus1)?.log()?;
    shifted.broadcast_sub(&total)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use candle_core::{Device, Var};

    fn by_hand(policy: &[f64], reference: &[f64]) -> f64 {
        let softmax = |logits: &[f64]| {
            let total: f64 = logits.iter().map(|logit| logit.exp()).sum();
            logits.iter().map(|logit| logit.exp() / total).collect::<Vec<_>>()
        };
        softmax(policy).iter().zip(softmax(reference)).map(|(p, q)| p * (p / q).ln()).sum()
    }

    #[test]
    fn the_documentation_s_numbers() {
        let policy = Tensor::new(&[[0.8f32.ln(), 0.2f32.ln()]], &Device::Cpu).unwrap();
        let reference = Tensor::new(&[[3.0f32, 3.0]], &Device::Cpu).unwrap();
        let found = of_rows(&policy, &reference).unwrap().to_vec1::<f32>().unwrap()[0];
        assert!((found - 0.1927).abs() < 1e-4, "{found}");
    }

    #[test]
    fn values_and_gradients_are_those_of_differences() {
        let (rows, codes) = (3, 5);
        let number = |seed: usize, at: usize| ((at * 37 + seed * 11) % 17) as f64 / 4.0 - 2.0;
        let of = |seed: usize| (0..rows * codes).map(|at| number(seed, at)).collect::<Vec<f64>>();
        let (policy, reference) = (of(1), of(2));
        let tensor = |values: &[f64]| {
            let values: Vec<f32> = values.iter().map(|value| *value as f32).collect();
            Tensor::from_vec(values, (rows, codes), &Device::Cpu).unwrap()
        };
        let variable = Var::from_tensor(&tensor(&policy)).unwrap();
        let found = of_rows(&variable, &tensor(&reference)).unwrap();
        let row = |values: &[f64], row: usize| values[row * codes..(row + 1) * codes].to_vec();
        for (at, found) in found.to_vec1::<f32>().unwrap().into_iter().enumerate() {
            let expected = by_hand(&row(&policy, at), &row(&reference, at));
            assert!((f64::from(found) - expected).abs() < 1e-5 && expected > 0.01, "{found} {expected}");
        }
        let gradients = found.sum_all().unwrap().backward().unwrap();
        let gradient = gradients.get(&variable).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for (at, ours) in gradient.into_iter().enumerate() {
            let shifted = |by: f64| {
                let mut policy = policy.clone();
                policy[at] += by;
                by_hand(&row(&policy, at / codes), &row(&reference, at / codes))
            };
            let expected = (shifted(1e-5) - shifted(-1e-5)) / 2e-5;
            assert!((f64::from(ours) - expected).abs() < 1e-5, "{at}: {ours}, by differences {expected}");
        }
    }

    #[test]
    fn two_equal_models_are_not_apart_and_pull_nowhere() {
        let logits = Tensor::new(&[[1.3f32, -0.4, 40.0, 2.2], [0.1, 0.2, 0.3, 0.7]], &Device::Cpu).unwrap();
        let variable = Var::from_tensor(&logits).unwrap();
        let found = of_rows(&variable, &logits).unwrap();
        assert_eq!(found.to_vec1::<f32>().unwrap(), [0.0, 0.0]);
        let gradients = found.sum_all().unwrap().backward().unwrap();
        let gradient = gradients.get(&variable).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert!(gradient.iter().all(|value| *value == 0.0), "{gradient:?}");
    }
}
