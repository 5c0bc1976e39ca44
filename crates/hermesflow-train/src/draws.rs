//! Every random number of a training run, as a function of (seed, purpose, index).
//!
//! Nothing is carried from step to step, so the step number *is* the position in the data and the
//! state of the random numbers: a run that continues from step s draws what it would have drawn.

use rand::{Rng, SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;

/// What a stream of random numbers is for; streams of different purposes never meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub enum Purpose {
    /// The order of the examples in an epoch.
    Order = 1,
    /// Mask and prompt dropout of one image comparison.
    Image = 2,
    /// Free for an objective of another crate (pretraining draws its masks from it).
    Objective = 3,
}

/// The stream of `(seed, purpose, first, second)`. All four are the key itself, so two different
/// quadruples never share a stream.
pub fn stream(seed: u64, purpose: Purpose, first: u64, second: u64) -> ChaCha8Rng {
    let mut key = [0u8; 32];
    for (slot, word) in key.chunks_exact_mut(8).zip([seed, purpose as u64, first, second]) {
        slot.copy_from_slice(&word.to_le_bytes());
    }
    ChaCha8Rng::from_seed(key)
}

/// Which example of a data set of `len` the `number`-th example of a run is: a fresh permutation of
/// all of them per epoch.
///
/// The permutation of the current epoch is kept, because neighbouring numbers share it.
#[derive(Debug, Clone)]
pub struct Order {
    seed: u64,
    len: usize,
    epoch: u64,
    permutation: Vec<usize>,
}

impl Order {
    /// The order of a data set of `len` examples (at least one).
    pub fn new(seed: u64, len: usize) -> Self {
        Self { seed, len, epoch: 0, permutation: permutation(seed, 0, len) }
    }

    /// The index of the run's `number`-th example, counted from 0.
    pub fn index(&mut self, number: u64) -> usize {
        let epoch = number / self.len as u64;
        if epoch != self.epoch {
            self.permutation = permutation(self.seed, epoch, self.len);
            self.epoch = epoch;
        }
        self.permutation[(number % self.len as u64) as usize]
    }
}

fn permutation(seed: u64, epoch: u64, len: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..len).collect();
    order.shuffle(&mut stream(seed, Purpose::Order, epoch, 0));
    order
}

/// How many of `tokens` are masked at time `t` in [0, 1]: `max(1, round(N·cos(πt/2)))`.
pub fn mask_count(t: f64, tokens: usize) -> usize {
    let count = (tokens as f64 * (std::f64::consts::FRAC_PI_2 * t).cos()).round_ties_even() as usize;
    count.clamp(1, tokens.max(1))
}

/// `count` different positions below `tokens`, in rising order, every set equally likely.
pub fn positions(rng: &mut impl Rng, tokens: usize, count: usize) -> Vec<u32> {
    let mut all: Vec<u32> = (0..tokens as u32).collect();
    let (chosen, _) = all.partial_shuffle(rng, count);
    let mut chosen = chosen.to_vec();
    chosen.sort_unstable();
    chosen
}

/// The mask of one image of `tokens` tokens under a seed of its own: t ~ U(0, 1), then
/// [`mask_count`] random [`positions`]. For objectives that keep their own seeds (pretraining).
pub fn mask_positions(tokens: usize, seed: u64) -> Vec<u32> {
    let mut rng = stream(seed, Purpose::Objective, 0, 0);
    let t = rng.random::<f64>();
    positions(&mut rng, tokens, mask_count(t, tokens))
}

/// What is drawn for one image comparison; win and lose share all of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageDraw {
    /// The prompt is replaced by the empty text.
    pub drop_prompt: bool,
    /// Masked positions, one set per mask draw.
    pub masks: Vec<Vec<u32>>,
}

/// The draw of the run's `example`-th comparison.
///
/// Of `masks` > 1 draws, the j-th takes its time from the j-th of `masks` equal parts of [0, 1): each
/// time is still uniform when averaged over them, and their mean varies less. One mask is t ~ U(0, 1).
pub fn image_draw(seed: u64, example: u64, tokens: usize, masks: usize, prompt_dropout: f64) -> ImageDraw {
    let mut rng = stream(seed, Purpose::Image, example, 0);
    let drop_prompt = rng.random::<f64>() < prompt_dropout;
    let masks = (0..masks)
        .map(|part| {
            let t = (part as f64 + rng.random::<f64>()) / masks as f64;
            positions(&mut rng, tokens, mask_count(t, tokens))
        })
        .collect();
    ImageDraw { drop_prompt, masks }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mask_counts_by_hand() {
        assert_eq!(mask_count(0.0, 16), 16);
        assert_eq!(mask_count(1.0, 16), 1, "never none");
        assert_eq!(mask_count(0.5, 16), 11, "16 * 0.7071 = 11.3");
        // The golden trace's ratios: cos(pi t / 2) of 0.6361 and 0.1020 give 10 and 2 of 16.
        for (ratio, count) in [(0.636_127_95_f64, 10), (0.101_981_61, 2)] {
            assert_eq!(mask_count(ratio.acos() / std::f64::consts::FRAC_PI_2, 16), count);
        }
    }

    #[test]
    fn positions_are_distinct_sorted_and_cover_everything() {
        let mut seen = [0usize; 16];
        for example in 0..400 {
            let draw = image_draw(7, example, 16, 1, 0.1);
            let mask = &draw.masks[0];
            assert!(mask.windows(2).all(|pair| pair[0] < pair[1]), "{mask:?}");
            mask.iter().for_each(|&position| seen[position as usize] += 1);
        }
        // E[mask share] = 2/pi, so each position is masked about 255 times of 400.
        assert!(seen.iter().all(|&count| (200..310).contains(&count)), "{seen:?}");
    }

    #[test]
    fn a_seed_gives_its_mask() {
        let shares: f64 = (0..400).map(|seed| mask_positions(64, seed).len() as f64 / 64.0).sum::<f64>() / 400.0;
        assert!((shares - std::f64::consts::FRAC_2_PI).abs() < 0.05, "E[cos(pi t / 2)] = 2 / pi, not {shares}");
        assert_eq!(mask_positions(64, 5), mask_positions(64, 5));
        assert_ne!(mask_positions(64, 5), mask_positions(64, 6));
    }

    #[test]
    fn dropout_happens_at_its_rate_and_draws_differ() {
        let draws: Vec<ImageDraw> = (0..2000).map(|example| image_draw(7, example, 16, 1, 0.1)).collect();
        let dropped = draws.iter().filter(|draw| draw.drop_prompt).count();
        assert!((150..250).contains(&dropped), "{dropped} of 2000");
        assert_ne!(draws[0].masks, draws[1].masks);
        assert_eq!(draws[0], image_draw(7, 0, 16, 1, 0.1));
        assert_ne!(draws[0].masks, image_draw(8, 0, 16, 1, 0.1).masks);
    }

    #[test]
    fn several_masks_are_spread_over_time() {
        for example in 0..50 {
            let counts: Vec<usize> = image_draw(7, example, 1000, 4, 0.0).masks.iter().map(Vec::len).collect();
            // cos(pi/2 * {0, 1/4, 1/2, 3/4, 1}) * 1000
            let bounds = [1000, 924, 707, 383, 0];
            for (part, count) in counts.iter().enumerate() {
                assert!((bounds[part + 1].max(1)..=bounds[part]).contains(count), "{counts:?}");
            }
        }
    }

    #[test]
    fn every_epoch_is_a_permutation_and_any_number_can_be_asked_alone() {
        let mut order = Order::new(3, 10);
        let run: Vec<usize> = (0..30).map(|number| order.index(number)).collect();
        for epoch in run.chunks(10) {
            let mut sorted = epoch.to_vec();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..10).collect::<Vec<_>>());
        }
        assert_ne!(run[..10], run[10..20]);
        assert_eq!(Order::new(3, 10).index(25), run[25]);
    }
}
