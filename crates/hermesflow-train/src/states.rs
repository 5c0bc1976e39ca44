//! The states of a partly drawn image in which its likelihood is estimated.
//!
//! A model that fills in masked codes gives the likelihood of codes in a state of the image, in which some are masked. Which
//! states a training looks at decides what it learns:
//!
//! - *random*, as in the paper: a share of masked codes is drawn by the schedule, and that many anywhere in the image. All
//!   masked codes are scored.
//! - *stratified*: the same, but the comparisons of a micro batch share out the times at which the schedule is read, so that
//!   every batch sees every share of masked codes (as LLaDA 1.5, arXiv 2505.19223, does). A comparison by itself is drawn
//!   as before.
//! - *visited*: the states in which the sampler was when it drew the image, as in Mask-GRPO. In step s the codes settled
//!   before it were known, all others masked, and the codes *settled* in it, those that were kept, are scored.
//!
//! Summed over all steps of a sampler, visited states score every code of an image exactly once, in the state from which it
//! was drawn: that is the log-likelihood of the image's codes in the order in which they were settled. One state estimates
//! it: its step is that of a code that is drawn at random of all N, so that a step in which n codes were settled is chosen
//! with probability n/N, and what its codes give counts N/n times. By hand, of four codes that were settled in the steps 0,
//! 1, 1 and 1: the first quarter of the moments looks at step 0, all masked, and counts its one code four times; the others
//! look at step 1, three masked, and count each of its three codes 4/3 times. The mean over moments is the sum over codes.
//!
//! Win and lose share a moment, so that both are looked at when as much of them was drawn.

use hermesflow_models::Scored;
use rand::Rng;

use crate::draws::{ImageDraw, MaskStates, comparison, image_draw};
use crate::pair_settings::PairDpoSettings;

/// The draw of the run's `number`-th comparison, from 0, for images of `tokens` tokens: of `masks` states.
pub fn draw(settings: &PairDpoSettings, number: u64, tokens: usize, masks: usize) -> ImageDraw {
    let PairDpoSettings { seed, masking, prompt_dropout, batch_size, .. } = *settings;
    match settings.masks {
        MaskStates::Random => image_draw(seed, number, tokens, masks, &masking, prompt_dropout),
        MaskStates::Stratified => {
            let (mut rng, drop_prompt) = comparison(seed, number, prompt_dropout);
            let (place, places) = (number % batch_size as u64, (masks * batch_size) as f64);
            let masks = (0..masks)
                .map(|part| {
                    let stratum = part * batch_size + place as usize;
                    let t = (stratum as f64 + rng.random::<f64>()) / places;
                    masking.draw(&mut rng, t, tokens)
                })
                .collect();
            ImageDraw { drop_prompt, masks, moments: Vec::new() }
        }
        MaskStates::Visited => {
            let (mut rng, drop_prompt) = comparison(seed, number, prompt_dropout);
            let moments = (0..masks).map(|part| (part as f64 + rng.random::<f64>()) / masks as f64).collect();
            ImageDraw { drop_prompt, masks: Vec::new(), moments }
        }
    }
}

/// What is scored of an image by a draw, and how often each counts. `steps` are those in which its codes were drawn; they
/// are only looked at where the draw has moments.
pub fn scored(draw: &ImageDraw, steps: &[u32]) -> Vec<(Scored, f32)> {
    let masked = draw.masks.iter().cloned().map(|masked| (Scored::Masked(masked), 1.0));
    masked.chain(draw.moments.iter().map(|moment| visited(steps, *moment))).collect()
}

/// The state that the sampler visited at a moment from 0 to 1 of an image's drawing, and how often its settled codes count.
fn visited(steps: &[u32], moment: f64) -> (Scored, f32) {
    let mut order = steps.to_vec();
    order.sort_unstable();
    let code = ((moment * steps.len() as f64) as usize).min(steps.len().saturating_sub(1));
    let Some(&step) = order.get(code) else { return (Scored::Masked(Vec::new()), 1.0) };
    let at = |keep: fn(&u32, &u32) -> bool| -> Vec<u32> {
        let kept = steps.iter().enumerate().filter(|(_, settled)| keep(settled, &step));
        kept.map(|(position, _)| position as u32).collect()
    };
    let settled = at(|settled, step| settled == step);
    let weight = steps.len() as f32 / settled.len() as f32;
    (Scored::Settled { masked: at(|settled, step| settled >= step), settled }, weight)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::draws::Masking;

    fn settings(masks: MaskStates, batch_size: usize) -> PairDpoSettings {
        PairDpoSettings { seed: 7, masks, batch_size, ..PairDpoSettings::default() }
    }

    #[test]
    fn the_documentation_s_states() {
        let steps = [1, 0, 1, 1];
        let first = (Scored::Settled { masked: vec![0, 1, 2, 3], settled: vec![1] }, 4.0);
        let second = (Scored::Settled { masked: vec![0, 2, 3], settled: vec![0, 2, 3] }, 4.0 / 3.0);
        assert_eq!([0.0, 0.24].map(|moment| visited(&steps, moment)), [first.clone(), first]);
        assert_eq!([0.25, 0.6, 0.999_999].map(|moment| visited(&steps, moment)), [&second; 3].map(Clone::clone));
        assert_eq!(visited(&[3], 1.0).0, Scored::Settled { masked: vec![0], settled: vec![0] });
    }

    /// Over all moments every code counts once, in the state from which it was drawn.
    #[test]
    fn the_mean_over_moments_scores_every_code_once() {
        let steps = [2u32, 0, 5, 5, 1, 2, 2, 5, 0, 3];
        let mut counted = [0.0; 10];
        for moment in 0..1000 {
            let (Scored::Settled { masked, settled }, weight) = visited(&steps, moment as f64 / 1000.0) else {
                unreachable!()
            };
            let step = steps[settled[0] as usize];
            for position in 0..10u32 {
                assert_eq!(masked.contains(&position), steps[position as usize] >= step);
            }
            settled.iter().for_each(|code| counted[*code as usize] += f64::from(weight) / 1000.0);
        }
        assert!(counted.iter().all(|count| (count - 1.0).abs() < 1e-6), "{counted:?}");
    }

    #[test]
    fn a_batch_shares_out_the_times() {
        let masking = Masking { mask_schedule: "linear".parse().unwrap(), ..Masking::default() };
        let settings = PairDpoSettings { masking, ..settings(MaskStates::Stratified, 5) };
        for batch in 0..20 {
            let of = |place: u64| draw(&settings, 5 * batch + place, 1000, 2).masks;
            for place in 0..5 {
                for (part, mask) in of(place).iter().enumerate() {
                    // The stratum of ten whose times give this many masked codes.
                    let (from, to) = (5 * part + place as usize, 5 * part + place as usize + 1);
                    assert!(
                        (1000 - 100 * to..=1000 - 100 * from).contains(&mask.len()),
                        "{place} {part} {}",
                        mask.len()
                    );
                }
            }
        }
    }

    #[test]
    fn a_comparison_alone_is_drawn_as_at_random() {
        for number in 0..50 {
            let random = draw(&settings(MaskStates::Random, 1), number, 64, 3);
            assert_eq!(draw(&settings(MaskStates::Stratified, 1), number, 64, 3), random);
            let visited = draw(&settings(MaskStates::Visited, 4), number, 64, 3);
            assert_eq!((visited.drop_prompt, visited.masks.len()), (random.drop_prompt, 0));
            for (part, moment) in visited.moments.iter().enumerate() {
                assert!((part as f64 / 3.0..(part + 1) as f64 / 3.0).contains(moment));
            }
        }
    }

    #[test]
    fn other_masking_is_refused_where_the_sampler_masked() {
        let masking = Masking { min_masking_rate: 0.2, ..Masking::default() };
        let said = PairDpoSettings { masking, ..settings(MaskStates::Visited, 4) }.validate().unwrap_err().to_string();
        assert!(said.contains("masking") && said.contains("visited"), "{said}");
        assert!(PairDpoSettings { masking, ..settings(MaskStates::Stratified, 4) }.validate().is_ok());
    }
}
