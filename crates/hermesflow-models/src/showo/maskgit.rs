//! MaskGIT parallel decoding (arXiv 2202.04200) as in Show-o.
//!
//! Each of T steps draws a code for every masked position, keeps the known codes, and masks again the `mask_len =
//! max(1, min(unknown−1, ⌊N·share((step+1)/T)⌋))` positions of the lowest confidence `log p(drawn) +
//! temperature·gumbel`, where the share is that of a [`MaskSchedule`] (default: cosine). As in the released sampler,
//! the temperature is multiplied by `1−(step+1)/T` in every step, cumulatively. The codes after the last step are the
//! image.
//!
//! Decoding may start from known codes (inpainting, extrapolation), which have infinite confidence and never change. As
//! in Show-o, N counts all positions, known ones too: as long as the schedule asks for more masked positions than there
//! are unknown ones, each step fixes exactly one.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::MaskSchedule;

/// The source of decoding's random numbers: a seed, or a recorded trace.
pub trait Draws {
    /// Draws a code for a position from probabilities, which sum to about 1.
    fn code(&mut self, position: usize, probabilities: &[f32]) -> u32;

    /// The uniform number in [0, 1) from which a position's Gumbel noise is computed.
    fn uniform(&mut self, position: usize) -> f32;
}

/// Draws from a seeded generator (ChaCha8).
#[derive(Debug, Clone)]
pub struct SeededDraws(ChaCha8Rng);

impl SeededDraws {
    /// The draws of one image.
    pub fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    /// A uniform number in [0, 1): the share of the total probability at which the code of a position is found.
    pub fn mark(&mut self) -> f32 {
        self.0.random()
    }
}

impl Draws for SeededDraws {
    fn code(&mut self, _position: usize, probabilities: &[f32]) -> u32 {
        let total: f32 = probabilities.iter().sum();
        draw_index(probabilities, self.mark() * total) as u32
    }

    fn uniform(&mut self, _position: usize) -> f32 {
        self.0.random()
    }
}

/// The first index at which the cumulative weight exceeds `mark`.
pub(super) fn draw_index(weights: &[f32], mark: f32) -> usize {
    let mut sum = 0.0;
    let mut last = 0;
    for (at, &weight) in weights.iter().enumerate() {
        if weight > 0.0 {
            sum += weight;
            last = at;
            if mark < sum {
                return at;
            }
        }
    }
    last
}

/// The state of one image while it is decoded.
#[derive(Debug, Clone)]
pub struct Decoding {
    codes: Vec<Option<u32>>,
    temperature: f64,
    schedule: MaskSchedule,
    steps: usize,
    step: usize,
    last: Vec<u32>,
    /// The step in which each code was settled; of codes that are masked still, the last one.
    settled: Vec<u32>,
    finite: bool,
}

impl Decoding {
    /// An image of `tokens` unknown positions, to be decoded in `steps` steps with the cosine schedule.
    pub fn new(tokens: usize, steps: usize, temperature: f64) -> Self {
        Self::resume(vec![None; tokens], steps, temperature, MaskSchedule::Cosine)
    }

    /// An image of which some codes are known; these never change.
    pub fn resume(codes: Vec<Option<u32>>, steps: usize, temperature: f64, schedule: MaskSchedule) -> Self {
        let last = codes.iter().map(|code| code.unwrap_or(0)).collect();
        let settled = vec![steps.saturating_sub(1) as u32; codes.len()];
        Self { codes, temperature, schedule, steps, step: 0, last, settled, finite: true }
    }

    /// The codes that are known so far; `None` is masked.
    pub fn codes(&self) -> &[Option<u32>] {
        &self.codes
    }

    /// Whether all probabilities of drawn codes were numbers.
    pub fn is_finite(&self) -> bool {
        self.finite
    }

    /// The masked positions, ascending.
    pub fn masked(&self) -> impl Iterator<Item = usize> + '_ {
        self.codes.iter().enumerate().filter(|(_, code)| code.is_none()).map(|(at, _)| at)
    }

    /// Makes one step. `probabilities` has one row of `codebook` numbers per masked position, ascending.
    pub fn advance(&mut self, probabilities: &[f32], codebook: usize, draws: &mut impl Draws) {
        let draw = |(position, row): (usize, &[f32])| {
            let code = draws.code(position, row);
            (code, row[code as usize])
        };
        let drawn: Vec<(u32, f32)> = self.masked().zip(probabilities.chunks_exact(codebook)).map(draw).collect();
        self.advance_by(&drawn, draws);
    }

    /// Makes one step with a code, and its probability, that was drawn for each masked position, ascending.
    pub fn advance_by(&mut self, drawn: &[(u32, f32)], draws: &mut impl Draws) {
        self.finite &= !drawn.iter().any(|(_, probability)| probability.is_nan());
        let masked: Vec<usize> = self.masked().collect();
        let mut sampled: Vec<u32> = self.codes.iter().map(|code| code.unwrap_or(0)).collect();
        let mut confidence = vec![f32::INFINITY; sampled.len()];
        for (&(code, probability), &position) in drawn.iter().zip(&masked) {
            sampled[position] = code;
            confidence[position] = probability.ln();
        }
        let ratio = (self.step + 1) as f64 / self.steps as f64;
        self.temperature *= 1.0 - ratio;
        for &position in &masked {
            // torch: log(t.clamp(min=1e-20)), twice.
            let log = |t: f32| t.max(1e-20).ln();
            let gumbel = -log(-log(draws.uniform(position)));
            confidence[position] += self.temperature as f32 * gumbel;
        }
        // In f32, as in the original: 16·cos(π/3) is 7.9999995 in f32, so 7 positions stay masked.
        let share = self.schedule.ratio_f32(ratio as f32);
        let scheduled = (sampled.len() as f32 * share).floor() as usize;
        let mask_len = scheduled.min(masked.len().saturating_sub(1)).max(1);
        let mut sorted = confidence.clone();
        sorted.sort_by(f32::total_cmp);
        let cut = sorted.get(mask_len).copied().unwrap_or(f32::INFINITY);
        for (position, code) in self.codes.iter_mut().enumerate() {
            let kept = confidence[position] >= cut;
            if kept && code.is_none() {
                self.settled[position] = self.step as u32;
            }
            *code = kept.then_some(sampled[position]);
        }
        self.last = sampled;
        self.step += 1;
    }

    /// The codes drawn in the last step, those of masked positions included.
    pub fn into_codes(self) -> Vec<u32> {
        self.last
    }

    /// The step, from 0, in which each code was drawn for good: codes that are masked after the last step were drawn in it.
    /// Only meant for an image that began without known codes.
    pub fn settled(&self) -> &[u32] {
        &self.settled
    }
}

/// Classifier-free guidance, `(1+g)·cond − g·uncond`, and softmax over one row of logits, in place.
pub fn guided_softmax(cond: &mut [f32], uncond: Option<&[f32]>, guidance: f64) {
    if let Some(uncond) = uncond {
        let g = guidance as f32;
        for (c, u) in cond.iter_mut().zip(uncond) {
            *c = (1.0 + g) * *c - g * u;
        }
    }
    let max = cond.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for value in cond.iter_mut() {
        *value = (*value - max).exp();
        sum += *value;
    }
    for value in cond.iter_mut() {
        *value /= sum;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// After each step, how many positions are masked.
    fn masked(codes: Vec<Option<u32>>, schedule: MaskSchedule) -> (Vec<usize>, Decoding) {
        let mut image = Decoding::resume(codes, 8, 1.0, schedule);
        let mut draws = SeededDraws::new(3);
        let counts = (0..8).map(|_| {
            let rows = image.masked().count();
            // All different, because of equal confidences none is below the other.
            let probabilities: Vec<f32> = (0..rows * 4).map(|at| 0.2 + at as f32 / 1000.0).collect();
            image.advance(&probabilities, 4, &mut draws);
            image.masked().count()
        });
        (counts.collect(), image)
    }

    #[test]
    fn the_schedule_counts_all_positions_and_known_ones_are_never_masked() {
        assert_eq!(masked(vec![None; 16], MaskSchedule::Cosine).0, [15, 14, 13, 11, 8, 6, 3, 1]);
        // max(1, min(unknown - 1, ...)) of six unknown positions: one is fixed per step until one is left.
        let codes: Vec<Option<u32>> = (0..16).map(|at| (at % 8 > 2).then_some(at % 4)).collect();
        let (counts, image) = masked(codes.clone(), MaskSchedule::Cosine);
        assert_eq!(counts, [5, 4, 3, 2, 1, 1, 1, 1]);
        let kept = |made: &[u32]| codes.iter().zip(made).all(|(code, made)| code.is_none_or(|code| code == *made));
        assert!(kept(&image.into_codes()));
        assert_eq!(masked(vec![None; 16], MaskSchedule::Linear).0, [14, 12, 10, 8, 6, 4, 2, 1]);
        let (counts, image) = masked(vec![Some(2); 16], MaskSchedule::Cosine);
        assert_eq!((counts, image.into_codes()), (vec![0; 8], vec![2; 16]), "nothing is unknown");
    }
}
