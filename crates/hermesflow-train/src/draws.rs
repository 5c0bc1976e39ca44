//! All random numbers of a training run, as a function of (seed, purpose, index).
//!
//! No state is carried from step to step: the step number alone says which data and random numbers come next, so a
//! resumed run draws what it would have drawn without the interruption.

use hermesflow_models::MaskSchedule;
use rand::{Rng, SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The purpose of a stream of random numbers; streams of different purposes are independent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub enum Purpose {
    /// The order of the examples in an epoch.
    Order = 1,
    /// Masks and prompt dropout of one comparison of images.
    Image = 2,
    /// Free for objectives of other crates (pretraining draws its masks from it).
    Objective = 3,
}

/// The stream of random numbers of `(seed, purpose, first, second)`. These four are the generator's key, so different
/// ones never share a stream.
pub fn stream(seed: u64, purpose: Purpose, first: u64, second: u64) -> ChaCha8Rng {
    let mut key = [0u8; 32];
    for (slot, word) in key.chunks_exact_mut(8).zip([seed, purpose as u64, first, second]) {
        slot.copy_from_slice(&word.to_le_bytes());
    }
    ChaCha8Rng::from_seed(key)
}

/// The order in which a run sees the examples of a data set: a new permutation of all of them in every epoch.
///
/// The permutation of the current epoch is kept, because consecutive examples share it.
#[derive(Debug, Clone)]
pub struct Order {
    seed: u64,
    len: usize,
    epoch: u64,
    permutation: Vec<usize>,
}

impl Order {
    /// The order of a data set of `len` examples, at least one.
    pub fn new(seed: u64, len: usize) -> Self {
        Self { seed, len, epoch: 0, permutation: permutation(seed, 0, len) }
    }

    /// The index in the data set of the run's `number`-th example, from 0.
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

/// How image tokens are masked in training. The names are those of the released code.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Masking {
    /// Share of an image's tokens that is masked at time t, which is drawn uniformly from [0, 1].
    ///
    /// Default: cosine.
    /// Source: paper; released code, `mask_schedule.schedule` or `training.mask_schedule`.
    pub mask_schedule: MaskSchedule,
    /// Smallest share of an image's tokens that is masked, whatever the schedule says. At least one token always is.
    ///
    /// Default: 0.0.
    /// Source: released code, `training.min_masking_rate`.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub min_masking_rate: f64,
    /// Probability that one rectangle of the image is masked instead of scattered tokens. Drawn for each mask; the
    /// released code draws it for each batch.
    ///
    /// Default: 0.0.
    /// Source: released code, `training.mask_contiguous_region_prob`.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub mask_contiguous_region_prob: f64,
}

impl Masking {
    /// Checks the ranges.
    ///
    /// # Errors
    /// Names the setting, its value and what is expected.
    pub fn validate(&self) -> Result<()> {
        let check = |good: bool, key, problem: String| if good { Ok(()) } else { Err(Error::Setting { key, problem }) };
        self.mask_schedule.validate().map_err(|problem| Error::Setting { key: "masking.mask_schedule", problem })?;
        let share = |value: f64| (0.0..=1.0).contains(&value);
        let (least, region) = (self.min_masking_rate, self.mask_contiguous_region_prob);
        check(share(least), "masking.min_masking_rate", format!("{least} is not between 0 and 1"))?;
        check(share(region), "masking.mask_contiguous_region_prob", format!("{region} is not a probability"))
    }

    /// The number of masked tokens of `tokens` at time `t` in [0, 1]: `max(1, round(tokens·share(t)))`, ties to even.
    pub fn count(&self, t: f64, tokens: usize) -> usize {
        let share = self.mask_schedule.ratio(t).max(self.min_masking_rate);
        let count = (tokens as f64 * share).round_ties_even() as usize;
        count.clamp(1, tokens.max(1))
    }

    /// The masked positions of an image of `tokens` tokens at time `t` in [0, 1], ascending.
    pub fn draw(&self, rng: &mut impl Rng, t: f64, tokens: usize) -> Vec<u32> {
        let count = self.count(t, tokens);
        // Nothing is drawn if there is no choice, so that the default's draws do not depend on this setting.
        let region = self.mask_contiguous_region_prob;
        if region > 0.0 && rng.random::<f64>() < region {
            rectangle(rng, tokens.isqrt(), count)
        } else {
            positions(rng, tokens, count)
        }
    }
}

/// States of a partly drawn image in which pairs of images are scored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MaskStates {
    /// Codes masked anywhere in the image, as many as `train.masking` says at a random time, as in the paper.
    Random,
    /// As `random`, but the pairs of a micro batch share out the times, so that each sees all shares of masked codes.
    Stratified,
    /// The states that the sampler visited when it drew the image, each with the codes that were settled there. Needs the
    /// drawn codes (`train.codes: drawn`) and the steps that `hermesflow imagine` stores beside them.
    Visited,
}

/// The positions of a random rectangle of at least `count` codes in an image of `side`² codes, ascending.
///
/// As in the original, the height is uniform in `⌈count/side⌉ ..= min(side, count)`, the width is `⌈count/height⌉`, and
/// the place is uniform. The rectangle has up to `height − 1` more codes than `count`.
pub fn rectangle(rng: &mut impl Rng, side: usize, count: usize) -> Vec<u32> {
    let height = rng.random_range(count.div_ceil(side)..=side.min(count));
    let width = count.div_ceil(height).min(side);
    let top = rng.random_range(0..=side - height);
    let left = rng.random_range(0..=side - width);
    let rows = top..top + height;
    rows.flat_map(|row| (left..left + width).map(move |column| (row * side + column) as u32)).collect()
}

/// `count` different positions below `tokens`, ascending; every set is equally likely.
pub fn positions(rng: &mut impl Rng, tokens: usize, count: usize) -> Vec<u32> {
    let mut all: Vec<u32> = (0..tokens as u32).collect();
    let (chosen, _) = all.partial_shuffle(rng, count);
    let mut chosen = chosen.to_vec();
    chosen.sort_unstable();
    chosen
}

/// The masked positions of an image of `tokens` tokens, as a function of `seed`: t ~ U(0, 1), then [`Masking::draw`].
/// For objectives with seeds of their own, such as pretraining.
pub fn mask_positions(tokens: usize, seed: u64, masking: &Masking) -> Vec<u32> {
    let mut rng = stream(seed, Purpose::Objective, 0, 0);
    let t = rng.random::<f64>();
    masking.draw(&mut rng, t, tokens)
}

/// The random draw of one comparison of images, shared by win and lose.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ImageDraw {
    /// Whether the prompt is replaced by the empty text.
    pub drop_prompt: bool,
    /// The masked positions of each mask.
    pub masks: Vec<Vec<u32>>,
    /// In place of masks: moments of an image's drawing, from 0 to 1, whose states are scored (see [`crate::states`]).
    pub moments: Vec<f64>,
}

/// The draw of the run's `example`-th comparison, from 0, for images of `tokens` tokens.
///
/// If there are several masks, the j-th of `masks` draws its time from the j-th of as many equal parts of [0, 1).
/// Averaged over masks the time is still uniform, and its mean varies less. A single mask draws t ~ U(0, 1).
pub fn image_draw(
    seed: u64,
    example: u64,
    tokens: usize,
    masks: usize,
    masking: &Masking,
    prompt_dropout: f64,
) -> ImageDraw {
    let (mut rng, drop_prompt) = comparison(seed, example, prompt_dropout);
    let masks = (0..masks)
        .map(|part| {
            let t = (part as f64 + rng.random::<f64>()) / masks as f64;
            masking.draw(&mut rng, t, tokens)
        })
        .collect();
    ImageDraw { drop_prompt, masks, moments: Vec::new() }
}

/// The random numbers of the run's `example`-th comparison, and whether its prompt is dropped.
pub(crate) fn comparison(seed: u64, example: u64, prompt_dropout: f64) -> (ChaCha8Rng, bool) {
    let mut rng = stream(seed, Purpose::Image, example, 0);
    let drop_prompt = rng.random::<f64>() < prompt_dropout;
    (rng, drop_prompt)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// The draw under the paper's masking.
    fn image_draw(seed: u64, example: u64, tokens: usize, masks: usize, prompt_dropout: f64) -> ImageDraw {
        super::image_draw(seed, example, tokens, masks, &Masking::default(), prompt_dropout)
    }

    fn mask_positions(tokens: usize, seed: u64) -> Vec<u32> {
        super::mask_positions(tokens, seed, &Masking::default())
    }

    #[test]
    fn the_papers_draws_are_what_they_were_before_there_was_a_choice() {
        for example in 0..300 {
            let mut rng = stream(7, Purpose::Image, example, 0);
            let drop_prompt = rng.random::<f64>() < 0.1;
            let t = rng.random::<f64>();
            let count = (64.0 * (std::f64::consts::FRAC_PI_2 * t).cos()).round_ties_even() as usize;
            let masks = vec![positions(&mut rng, 64, count.clamp(1, 64))];
            assert_eq!(image_draw(7, example, 64, 1, 0.1), ImageDraw { drop_prompt, masks, moments: vec![] });
        }
    }

    #[test]
    fn counts_follow_schedule_and_least_rate() {
        let masking = |schedule: &str, least| Masking {
            mask_schedule: schedule.parse().unwrap(),
            min_masking_rate: least,
            ..Masking::default()
        };
        // torch: (16 * schedule(t).clip(least)).round().clamp(min=1) at t = 0.25, 0.5, 0.75, 1.
        for (schedule, least, expected) in [
            ("cosine", 0.0, [15, 11, 6, 1]),
            ("linear", 0.0, [12, 8, 4, 1]),
            ("pow2", 0.0, [15, 12, 7, 1]),
            ("sigmoid", 0.0, [14, 8, 2, 1]),
            ("sigmoid", 0.4, [14, 8, 6, 6]),
        ] {
            let masking = masking(schedule, least);
            assert_eq!([0.25, 0.5, 0.75, 1.0].map(|t| masking.count(t, 16)), expected, "{schedule}, {least}");
        }
        assert!(masking("linear", 1.5).validate().is_err());
        assert!(Masking { mask_contiguous_region_prob: -0.1, ..Masking::default() }.validate().is_err());
    }

    #[test]
    fn a_contiguous_mask_is_a_rectangle_of_about_the_count_anywhere() {
        let masking = Masking { mask_contiguous_region_prob: 1.0, ..Masking::default() };
        let (mut seen, mut shapes) = ([0usize; 64], std::collections::BTreeSet::new());
        for example in 0..400 {
            let draw = super::image_draw(7, example, 64, 1, &masking, 0.0);
            let mask = &draw.masks[0];
            // The time of the example, from the same stream.
            let mut rng = stream(7, Purpose::Image, example, 0);
            let _dropout = rng.random::<f64>();
            let count = masking.count(rng.random::<f64>(), 64);
            let rows: std::collections::BTreeSet<u32> = mask.iter().map(|at| at / 8).collect();
            let columns: std::collections::BTreeSet<u32> = mask.iter().map(|at| at % 8).collect();
            let gapless = |set: &std::collections::BTreeSet<u32>| {
                set.last().unwrap() - set.first().unwrap() + 1 == set.len() as u32
            };
            assert!(gapless(&rows) && gapless(&columns), "{mask:?}");
            assert_eq!(mask.len(), rows.len() * columns.len(), "{mask:?}");
            assert!(mask.windows(2).all(|pair| pair[0] < pair[1]), "{mask:?}");
            assert!((count..count + rows.len()).contains(&mask.len()), "{} of {count}", mask.len());
            mask.iter().for_each(|&at| seen[at as usize] += 1);
            shapes.insert((rows.len(), columns.len()));
        }
        assert!(seen.iter().all(|&count| count > 120), "every place: {seen:?}");
        assert!(shapes.len() > 30, "{shapes:?}");
        let half = Masking { mask_contiguous_region_prob: 0.5, ..Masking::default() };
        let same = (0..400).filter(|&example| {
            let mut rng = stream(7, Purpose::Image, example, 0);
            let (_dropout, t, choice): (f64, f64, f64) = (rng.random(), rng.random(), rng.random());
            let mask = &super::image_draw(7, example, 64, 1, &half, 0.0).masks[0];
            (choice < 0.5) == (*mask == rectangle(&mut rng.clone(), 8, half.count(t, 64)))
        });
        assert!(same.count() > 380, "half of the masks are rectangles (one code is always one)");
    }

    #[test]
    fn mask_counts_by_hand() {
        let mask_count = |t, tokens| Masking::default().count(t, tokens);
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
