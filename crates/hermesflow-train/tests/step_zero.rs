//! Before the first step a policy is its reference: every difference is exactly zero, in whatever type the reference is
//! held and however products are computed.
#![allow(clippy::unwrap_used, missing_docs)]

use hermesflow_models::showo::Showo;
use hermesflow_models::{DType, Products};
use hermesflow_train::{Objective, PairDpo, PairDpoSettings, Position, TrainingPair};

#[path = "../../hermesflow-models/tests/small/mod.rs"]
mod small;

use small::TOKENS;

/// Pairs whose texts and labels are of many lengths, so that what stands beside an example differs from part to part.
fn pairs(count: u32) -> Vec<TrainingPair> {
    let codes = |seed: u32| (0..TOKENS as u32).map(|at| (at * 7 + seed * 11) % 32).collect::<Vec<_>>();
    let pair = |number: u32| TrainingPair {
        id: number.to_string(),
        image: codes(number % 3).into(),
        question: "what is this?".into(),
        caption: format!("a large red circle above {number} small blue squares"),
        caption_win: " a large red circle above".repeat(1 + number as usize % 3),
        caption_lose: " small blue squares".chars().take(number as usize * 5 % 19).collect(),
        image_win: codes(10 + number),
        image_lose: codes(20 + number),
        margins: None,
        steps: None,
    };
    (0..count).map(pair).collect()
}

/// The differences of the first step, und and gen, with so many masks per pair and under this guidance.
fn deltas(player: &Showo, products: Products, recompute: bool, (masks_per_pair, guidance): (usize, f64)) -> Vec<f64> {
    let policy = player.trainable().unwrap().training(products).unwrap().recompute(recompute);
    let reference = player.frozen().unwrap().training(products).unwrap();
    let prompt_dropout = if guidance == 0.0 { 0.1 } else { 0.0 };
    let settings =
        PairDpoSettings { batch_size: 5, masks_per_pair, guidance, prompt_dropout, ..PairDpoSettings::default() };
    let mut objective = PairDpo::new(policy, reference, pairs(7), settings, |_, _| {}).unwrap();
    let metrics = objective.micro_batch(Position { step: 0, micro: 0, micros: 1 }).unwrap().metrics;
    let of = |name: &str| metrics.get(name).unwrap();
    assert!(of("und/logps/chosen") < -1.0 && of("gen/logps/rejected") < -1.0);
    ["und/delta/chosen", "und/delta/rejected", "gen/delta/chosen", "gen/delta/rejected"].map(of).to_vec()
}

#[test]
fn every_difference_is_exactly_zero_before_the_first_step() {
    // By operators, by whole blocks, and by whole blocks as a large model in f32 has them.
    for (width, bits, masks) in [(48, 5, 1), (516, 5, 3), (384, 16, 6)] {
        let model = small::sized(2, width, bits);
        let dtypes = [DType::F32, DType::BF16, DType::F16];
        for &dtype in if bits == 5 { &dtypes[..] } else { &dtypes[..2] } {
            let player = small::held(&model, dtype);
            for products in [Products::F32, Products::Bf16] {
                for (recompute, guidance) in [(false, 0.0), (width == 48, 0.0), (width == 48, 1.5)] {
                    let found = deltas(&player, products, recompute, (masks, guidance));
                    let what = format!("width {width}, {dtype:?}, {products:?}, {recompute}, guidance {guidance}");
                    assert_eq!(found, [0.0; 4], "{what}");
                }
            }
        }
    }
}
