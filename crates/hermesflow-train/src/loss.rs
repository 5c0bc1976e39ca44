//! The pure Pair-DPO loss: log-probabilities in, per-pair loss and rewards out.
//!
//! HermesFlow (arXiv 2502.12148) compares captions and images of one record, each side with the loss of
//! DPO (2305.18290); the anchor is that of DPO-Positive (2402.13228):
//!
//! ```text
//! δ_win  = log π(win)  − log π_ref(win)            δ_lose likewise
//! side   = −log σ( β · (δ_win − δ_lose − λ · max(0, −δ_win)) )
//! L      = w_und · side_und + w_gen · side_gen      per pair, then the mean over the batch
//! ```
//!
//! Beside the comparison each side may be given the likelihood of the win, `− α · log π(win)`, as in OSPO and others
//! (an extension; α = 0 is the paper's loss). The distributions of images may be held to the reference's beside both sides
//! (`divergence.rs`; κ = 0 is the paper's loss).
//!
//! By hand, with β = 0.2: let π give the winner −42.0 and the loser −45.0, the reference −43.0 and
//! −44.0. Then δ_win = 1, δ_lose = −1, the rewards are β·δ = 0.2 and −0.2, their margin 0.4, and the
//! loss −log σ(0.4) = ln(1 + e^−0.4) = 0.5130. Now let π give −45.0 and −48.0: δ_win = −2, δ_lose = −4,
//! the margin is 0.4 again and so is the plain loss, although the winner became e² times less likely.
//! With λ = 5 the anchor takes 5·2 off: −log σ(0.2·(2 − 10)) = −log σ(−1.6) = 1.7839.
//!
//! 1. Per pair, then the mean: the released code sums log-probabilities over the batch before one σ.
//! 2. The sum of the two sides' −log σ; the paper prints a product inside one σ in one place.
//! 3. λ = 0 is the paper's loss exactly. At δ_win = 0, where the anchor has a kink, its gradient is 0,
//!    so that a run's first step is the paper's for every λ.

use candle_core::{DType, Result, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Error;

/// Two of the same kind, of which one is preferred.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair<T> {
    /// The preferred one.
    pub win: T,
    /// The rejected one.
    pub lose: T,
}

/// The log-probabilities of one side (captions or images) of a batch.
///
/// # Shapes
/// `[pairs]` each, f32
#[derive(Debug, Clone)]
pub struct PairLogProbs {
    /// Log-probabilities under the trained model, with their graph.
    pub policy: Pair<Tensor>,
    /// Log-probabilities under the frozen reference.
    pub reference: Pair<Tensor>,
}

impl PairLogProbs {
    /// Joins parts of a batch, without their graphs.
    ///
    /// # Errors
    /// If `parts` is empty, or a tensor operation fails.
    pub fn detached(parts: &[&Self]) -> Result<Self> {
        let joined = |of: fn(&Self) -> &Pair<Tensor>| -> Result<Pair<Tensor>> {
            let column = |one: fn(&Pair<Tensor>) -> &Tensor| {
                Tensor::cat(&parts.iter().map(|part| one(of(part)).detach()).collect::<Vec<_>>(), 0)
            };
            Ok(Pair { win: column(|pair| &pair.win)?, lose: column(|pair| &pair.lose)? })
        };
        Ok(Self { policy: joined(|part| &part.policy)?, reference: joined(|part| &part.reference)? })
    }
}

/// The loss of one side of a batch. Only `loss` is meant to be differentiated.
///
/// # Shapes
/// `[pairs]` each, f32
#[derive(Debug, Clone)]
pub struct SideLoss {
    /// The loss of each pair.
    pub loss: Tensor,
    /// δ = log π − log π_ref of each pair.
    pub delta: Pair<Tensor>,
    /// β·δ of each pair: the rewards of TRL's `DPOTrainer`, without the anchor.
    pub rewards: Pair<Tensor>,
}

/// Which loss is minimised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossKind {
    /// The comparison of win and lose: the method.
    PairDpo,
    /// The likelihood of the wins alone: a control.
    SftWins,
}

/// The numbers of the loss of a pair: `w_und · side_und + w_gen · side_gen`, each side
/// `−log σ(β · (δ_win − δ_lose − λ · max(0, −δ_win))) − α · log π(win)`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LossSettings {
    /// Strength β of the comparison of win and lose: the larger, the closer the model stays to its reference.
    ///
    /// Default: 0.2.
    /// Source: paper, training details; released code, `training.beta`.
    #[schemars(range(min = 0.0))]
    pub beta: f64,
    /// Anchor λ of the captions: the penalty, inside the logarithm, on a winning caption that becomes less likely than under
    /// the reference. 0 is the paper's loss.
    ///
    /// Default: 0.0.
    /// Source: DPO-Positive (arXiv 2402.13228); neither the paper nor the released code has it.
    #[schemars(range(min = 0.0))]
    pub anchor_und: f64,
    /// Anchor λ of the images: the penalty, inside the logarithm, on a winning image that becomes less likely than under the
    /// reference. 0 is the paper's loss.
    ///
    /// Default: 0.0.
    /// Source: DPO-Positive (arXiv 2402.13228); neither the paper nor the released code has it.
    #[schemars(range(min = 0.0))]
    pub anchor_gen: f64,
    /// Weight α of the likelihood of the winning caption beside the comparison: `−α · log π(win)`, summed over the caption's
    /// tokens. The comparison pulls on the same log-probability with a strength of β/2 at most when training begins. 0 is the
    /// paper's loss.
    ///
    /// Default: 0.0.
    /// Source: OSPO and others train the likelihood of the win beside the comparison; neither the paper nor the released code
    /// does.
    #[schemars(range(min = 0.0))]
    pub likelihood_und: f64,
    /// Weight α of the likelihood of the winning image beside the comparison, summed over the masked tokens; otherwise like
    /// `likelihood_und`. 0 is the paper's loss.
    ///
    /// Default: 0.0.
    /// Source: OSPO and others train the likelihood of the win beside the comparison; neither the paper nor the released code
    /// does.
    #[schemars(range(min = 0.0))]
    pub likelihood_gen: f64,
    /// Weight κ of how far the distributions of image codes have moved from the reference's: `κ · (KL with the prompt + KL
    /// without it)`, where KL(π ‖ π_ref) is over all codes and summed over the scored tokens of an image. Guidance draws from
    /// both distributions. Costs four more passes of the model for each pair. 0 is the paper's loss.
    ///
    /// Default: 0.0.
    /// Source: this program, after work that trains images with rewards; neither the paper nor the released code has it.
    #[schemars(range(min = 0.0))]
    pub kl: f64,
    /// Weight of the captions' loss in the sum of both sides.
    ///
    /// Default: 1.0.
    /// Source: released code, `training.mmu_coeff`.
    #[schemars(range(min = 0.0))]
    pub weight_und: f64,
    /// Weight of the images' loss in the sum of both sides.
    ///
    /// Default: 1.0.
    /// Source: released code, `training.t2i_coeff`.
    #[schemars(range(min = 0.0))]
    pub weight_gen: f64,
}

impl Default for LossSettings {
    /// The paper's numbers.
    fn default() -> Self {
        Self {
            beta: 0.2,
            anchor_und: 0.0,
            anchor_gen: 0.0,
            likelihood_und: 0.0,
            likelihood_gen: 0.0,
            kl: 0.0,
            weight_und: 1.0,
            weight_gen: 1.0,
        }
    }
}

impl LossSettings {
    /// Checks the ranges.
    ///
    /// # Errors
    /// Names the setting, its value and what is expected.
    pub fn validate(&self) -> crate::Result<()> {
        let setting = |key, problem: String| Err(Error::Setting { key, problem });
        if !(self.beta.is_finite() && self.beta > 0.0) {
            return setting("loss.beta", format!("{} is not above 0", self.beta));
        }
        for (key, value) in [
            ("loss.anchor_und", self.anchor_und),
            ("loss.anchor_gen", self.anchor_gen),
            ("loss.likelihood_und", self.likelihood_und),
            ("loss.likelihood_gen", self.likelihood_gen),
            ("loss.kl", self.kl),
            ("loss.weight_und", self.weight_und),
            ("loss.weight_gen", self.weight_gen),
        ] {
            if !(value.is_finite() && value >= 0.0) {
                return setting(key, format!("{value} is not 0 or more"));
            }
        }
        Ok(())
    }
}

/// The numbers of the loss of one side.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SideTerms {
    /// Strength β of the comparison.
    pub beta: f64,
    /// Anchor λ.
    pub anchor: f64,
    /// Weight α of the win's likelihood.
    pub likelihood: f64,
    /// Weight of the side in the sum of both.
    pub weight: f64,
}

impl LossSettings {
    /// The numbers of both sides, captions first.
    pub fn sides(&self) -> [SideTerms; 2] {
        let Self { beta, anchor_und, anchor_gen, likelihood_und, likelihood_gen, kl: _, weight_und, weight_gen } =
            *self;
        [
            SideTerms { beta, anchor: anchor_und, likelihood: likelihood_und, weight: weight_und },
            SideTerms { beta, anchor: anchor_gen, likelihood: likelihood_gen, weight: weight_gen },
        ]
    }
}

impl LossKind {
    /// This loss of one side of a batch. The likelihood of the wins alone has neither anchor nor further likelihood.
    ///
    /// # Errors
    /// If the tensors have different shapes.
    pub fn side(self, log_probs: &PairLogProbs, terms: SideTerms) -> Result<SideLoss> {
        match self {
            Self::PairDpo => {
                let side = pair_dpo(log_probs, terms.beta, terms.anchor)?;
                if terms.likelihood == 0.0 {
                    return Ok(side);
                }
                let loss = (&side.loss - log_probs.policy.win.affine(terms.likelihood, 0.0)?)?;
                Ok(SideLoss { loss, ..side })
            }
            Self::SftWins => sft_wins(log_probs, terms.beta),
        }
    }
}

/// The Pair-DPO loss of each pair, `−log σ(β(δ_win − δ_lose − λ·max(0, −δ_win)))`; `anchor` is λ.
///
/// # Errors
/// If the tensors have different shapes.
pub fn pair_dpo(log_probs: &PairLogProbs, beta: f64, anchor: f64) -> Result<SideLoss> {
    let delta = deltas(log_probs)?;
    let mut margin = (&delta.win - &delta.lose)?;
    if anchor != 0.0 {
        // max(0, −δ) = −δ·[δ < 0]: candle's relu would let a gradient through at δ = 0.
        let fallen = delta.win.lt(0f64)?.to_dtype(DType::F32)?;
        margin = (margin + (&delta.win * fallen)?.affine(anchor, 0.0)?)?;
    }
    let loss = log_sigmoid(&margin.affine(beta, 0.0)?)?.neg()?;
    let rewards = rewards(&delta, beta)?;
    Ok(SideLoss { loss, delta, rewards })
}

/// The likelihood of the winners alone, scaled like Pair-DPO: `−(β/2)·log π(win)` of each pair.
///
/// The gradient of Pair-DPO with respect to `log π(win)` has strength β·σ(−Δ), which is β/2 at the start (Δ = 0). This
/// loss pulls on the winners as hard as Pair-DPO does in its first step, and never less.
///
/// # Errors
/// If the tensors have different shapes.
pub fn sft_wins(log_probs: &PairLogProbs, beta: f64) -> Result<SideLoss> {
    let delta = deltas(log_probs)?;
    let loss = log_probs.policy.win.affine(-0.5 * beta, 0.0)?;
    let rewards = rewards(&delta, beta)?;
    Ok(SideLoss { loss, delta, rewards })
}

/// The loss to differentiate: for each pair the weighted sum of its sides, then the mean over pairs; `None` if there is
/// no side.
///
/// # Shapes
/// `[pairs]` each → a scalar
///
/// # Errors
/// If the sides have different numbers of pairs.
pub fn total(sides: &[(f64, &SideLoss)]) -> Result<Option<Tensor>> {
    let mut sum: Option<Tensor> = None;
    for (weight, side) in sides {
        let weighted = if *weight == 1.0 { side.loss.clone() } else { side.loss.affine(*weight, 0.0)? };
        sum = Some(match sum {
            None => weighted,
            Some(before) => (before + weighted)?,
        });
    }
    sum.map(|per_pair| per_pair.mean_all()).transpose()
}

/// `log σ(x) = −softplus(−x)`, finite for every finite x and smooth in its gradient.
///
/// For any m, softplus(y) = m + ln(e^−m + e^(y−m)). With m = max(0, y) as a constant no exponential exceeds 1, and the
/// derivative is e^(y−m) / (e^−m + e^(y−m)) = σ(y) without a kink. (`ln(sigmoid(x))`, as in the released code, is −∞
/// for x below about −104, and |x| has no derivative at 0, where every run starts.)
///
/// # Errors
/// If a tensor operation fails.
pub fn log_sigmoid(x: &Tensor) -> Result<Tensor> {
    let y = x.neg()?;
    let m = y.detach().relu()?;
    let sum = (m.neg()?.exp()? + (&y - &m)?.exp()?)?;
    (m + sum.log()?)?.neg()
}

fn deltas(log_probs: &PairLogProbs) -> Result<Pair<Tensor>> {
    let PairLogProbs { policy, reference } = log_probs;
    Ok(Pair { win: (&policy.win - reference.win.detach())?, lose: (&policy.lose - reference.lose.detach())? })
}

fn rewards(delta: &Pair<Tensor>, beta: f64) -> Result<Pair<Tensor>> {
    Ok(Pair { win: delta.win.detach().affine(beta, 0.0)?, lose: delta.lose.detach().affine(beta, 0.0)? })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use candle_core::{Device, Var};

    fn row(values: &[f32]) -> Tensor {
        Tensor::new(values, &Device::Cpu).unwrap()
    }

    fn log_probs(policy: [&[f32]; 2], reference: [&[f32]; 2]) -> PairLogProbs {
        PairLogProbs {
            policy: Pair { win: row(policy[0]), lose: row(policy[1]) },
            reference: Pair { win: row(reference[0]), lose: row(reference[1]) },
        }
    }

    fn values(tensor: &Tensor) -> Vec<f32> {
        tensor.to_vec1().unwrap()
    }

    fn near(actual: &[f32], expected: &[f32], tolerance: f32) {
        assert_eq!(actual.len(), expected.len());
        for (a, e) in actual.iter().zip(expected) {
            assert!((a - e).abs() <= tolerance, "{actual:?} against {expected:?}");
        }
    }

    /// Gradients of the mean loss by (δ_win, δ_lose), one pair at policy values (win, lose), reference 0.
    fn gradient(win: f32, lose: f32, anchor: f64) -> (f32, f32) {
        let policy =
            Pair { win: Var::new(&[win], &Device::Cpu).unwrap(), lose: Var::new(&[lose], &Device::Cpu).unwrap() };
        let log_probs = PairLogProbs {
            policy: Pair { win: policy.win.as_tensor().clone(), lose: policy.lose.as_tensor().clone() },
            reference: Pair { win: row(&[0.0]), lose: row(&[0.0]) },
        };
        let side = pair_dpo(&log_probs, 0.2, anchor).unwrap();
        let gradients = total(&[(1.0, &side)]).unwrap().unwrap().backward().unwrap();
        let of = |var: &Var| values(gradients.get(var).unwrap())[0];
        (of(&policy.win), of(&policy.lose))
    }

    #[test]
    fn win_equal_to_lose_gives_exactly_two_ln_two() {
        let same = log_probs([&[-41.7, -3.0], &[-41.7, -3.0]], [&[-40.0, -7.25], &[-40.0, -7.25]]);
        let side = pair_dpo(&same, 0.2, 0.0).unwrap();
        let loss: f32 = total(&[(1.0, &side), (1.0, &side)]).unwrap().unwrap().to_scalar().unwrap();
        assert_eq!(loss, 2.0 * std::f32::consts::LN_2);
        let start = log_probs([&[-41.7], &[-50.0]], [&[-41.7], &[-50.0]]);
        let side = pair_dpo(&start, 0.2, 5.0).unwrap();
        assert_eq!(values(&side.loss), [std::f32::consts::LN_2], "policy = reference, with any anchor");
    }

    #[test]
    fn the_documentation_s_numbers() {
        let batch = log_probs([&[-42.0, -45.0], &[-45.0, -48.0]], [&[-43.0, -43.0], &[-44.0, -44.0]]);
        let plain = pair_dpo(&batch, 0.2, 0.0).unwrap();
        near(&values(&plain.delta.win), &[1.0, -2.0], 1e-6);
        near(&values(&plain.delta.lose), &[-1.0, -4.0], 1e-6);
        near(&values(&plain.rewards.win), &[0.2, -0.4], 1e-6);
        near(&values(&plain.rewards.lose), &[-0.2, -0.8], 1e-6);
        near(&values(&plain.loss), &[0.513_015_3, 0.513_015_3], 1e-6);
        let anchored = pair_dpo(&batch, 0.2, 5.0).unwrap();
        near(&values(&anchored.loss), &[0.513_015_3, 1.783_900_6], 1e-6);
        let sft = sft_wins(&batch, 0.2).unwrap();
        near(&values(&sft.loss), &[4.2, 4.5], 1e-6);
        let terms = SideTerms { beta: 0.2, anchor: 5.0, likelihood: 0.01, weight: 1.0 };
        let with_likelihood = LossKind::PairDpo.side(&batch, terms).unwrap();
        near(&values(&with_likelihood.loss), &[0.513_015_3 + 0.42, 1.783_900_6 + 0.45], 1e-6);
        near(&values(&with_likelihood.rewards.win), &[0.2, -0.4], 1e-6);
    }

    /// `dpo.{t2i,mmu}.*` of golden `showo-a` (two pairs, β 0.2), from the original's log-probabilities.
    #[test]
    fn the_plain_loss_matches_the_golden_trace() {
        let image = log_probs(
            [&[-63.689_835, -12.197_083], &[-66.413_82, -12.759_483]],
            [&[-64.093_31, -11.929_872], &[-66.652_565, -12.987_25]],
        );
        let caption = log_probs(
            [&[-42.695_28, -30.963_642], &[-45.431_61, -37.805_51]],
            [&[-42.368_233, -30.694_214], &[-45.165_436, -37.245_487]],
        );
        for (batch, expected) in [(image, 0.710_339_9_f32), (caption, 0.681_881_3)] {
            let side = pair_dpo(&batch, 0.2, 0.0).unwrap();
            let loss: f32 = total(&[(1.0, &side)]).unwrap().unwrap().to_scalar().unwrap();
            near(&[loss], &[expected], 1e-5);
        }
    }

    #[test]
    fn gradients_have_the_right_sign_and_size() {
        // At the start β/2 = 0.1 on each, whatever λ.
        for anchor in [0.0, 5.0] {
            let (win, lose) = gradient(0.0, 0.0, anchor);
            near(&[win, lose], &[-0.1, 0.1], 1e-7);
        }
        // δ_win = −2, δ_lose = −4, λ 5: x = −1.6, σ(−x) = .832018; win β(1+λ)σ, lose βσ.
        let (win, lose) = gradient(-2.0, -4.0, 5.0);
        near(&[win, lose], &[-0.998_422, 0.166_404], 1e-5);
        // A winner above its reference has no anchor: x = .4, σ(−x) = .401312.
        let (win, lose) = gradient(1.0, -1.0, 5.0);
        near(&[win, lose], &[-0.080_262, 0.080_262], 1e-6);
    }

    #[test]
    fn without_an_anchor_it_is_the_paper_s_loss() {
        let batch = log_probs([&[-3.0, -9.0, 2.0], &[-1.0, -20.0, 2.5]], [&[0.0, -8.0, 1.0], &[0.5, -8.0, 2.0]]);
        let side = pair_dpo(&batch, 0.2, 0.0).unwrap();
        let expected: Vec<f32> = (0..3)
            .map(|i| {
                let at = |tensor: &Tensor| f64::from(values(tensor)[i]);
                let delta = (at(&batch.policy.win) - at(&batch.reference.win))
                    - (at(&batch.policy.lose) - at(&batch.reference.lose));
                (1.0 + (-0.2 * delta).exp()).ln() as f32
            })
            .collect();
        near(&values(&side.loss), &expected, 1e-6);
    }

    #[test]
    fn huge_margins_neither_overflow_nor_lose_their_gradient() {
        let batch = log_probs([&[-9e5, 9e5, -9e5], &[9e5, -9e5, -9e5]], [&[0.0; 3], &[0.0; 3]]);
        let side = pair_dpo(&batch, 0.2, 5.0).unwrap();
        near(&values(&side.loss), &[1_260_000.0, 0.0, 900_000.0], 0.5);
        let (win, lose) = gradient(-9e5, 9e5, 0.0);
        near(&[win, lose], &[-0.2, 0.2], 1e-6);
        let (win, lose) = gradient(9e5, -9e5, 0.0);
        assert_eq!((win.abs(), lose.abs()), (0.0, 0.0));
    }

    #[test]
    fn weights_select_and_scale_sides() {
        let batch = log_probs([&[1.0], &[0.0]], [&[0.0], &[0.0]]);
        let side = pair_dpo(&batch, 1.0, 0.0).unwrap();
        let one: f32 = total(&[(1.0, &side)]).unwrap().unwrap().to_scalar().unwrap();
        let both: f32 = total(&[(1.0, &side), (0.5, &side)]).unwrap().unwrap().to_scalar().unwrap();
        near(&[one, both], &[0.313_261_7, 0.469_892_5], 1e-6);
        assert!(total(&[]).unwrap().is_none());
    }
}
