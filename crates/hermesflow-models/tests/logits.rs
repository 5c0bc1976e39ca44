//! The logits of image codes: what guided likelihoods are made of, with and without the prompt, and their gradients.
#![allow(clippy::unwrap_used, missing_docs)]

mod small;
mod tiny;

use hermesflow_models::model::PairModel;
use hermesflow_models::{ImageExample, Products, Scored, Tensor};
use hermesflow_nn::gradients;

const GUIDANCE: f64 = 1.5;

/// The likelihoods of examples under guidance, from logits with and without their prompts.
fn by_logits(model: &dyn PairModel, examples: &[ImageExample], scored: &[Vec<u32>]) -> Tensor {
    let without: Vec<ImageExample> =
        examples.iter().map(|example| ImageExample { unconditional: true, ..example.clone() }).collect();
    let (cond, uncond) = (model.image_logits(examples).unwrap(), model.image_logits(&without).unwrap());
    let logits = (cond.affine(1.0 + GUIDANCE, 0.0).unwrap() - uncond.affine(GUIDANCE, 0.0).unwrap()).unwrap();
    let log_probs = logits.broadcast_sub(&logits.exp().unwrap().sum_keepdim(1).unwrap().log().unwrap()).unwrap();
    let targets: Vec<u32> = examples
        .iter()
        .zip(scored)
        .flat_map(|(example, scored)| scored.iter().map(|&position| example.codes[position as usize]))
        .collect();
    let targets = Tensor::new(targets, logits.device()).unwrap().unsqueeze(1).unwrap();
    let log_probs = log_probs.gather(&targets, 1).unwrap().squeeze(1).unwrap();
    let mut first = 0;
    let sums = scored.iter().map(|scored| {
        first += scored.len();
        log_probs.narrow(0, first - scored.len(), scored.len()).unwrap().sum_all().unwrap()
    });
    Tensor::stack(&sums.collect::<Vec<_>>(), 0).unwrap()
}

/// Values, then gradients by parameter.
fn compare(model: &dyn PairModel, examples: &[ImageExample], scored: &[Vec<u32>], tolerance: f32) {
    let ours = model.image_log_probs(examples, GUIDANCE).unwrap();
    let expected = by_logits(model, examples, scored);
    for (a, b) in ours.to_vec1::<f32>().unwrap().iter().zip(expected.to_vec1::<f32>().unwrap()) {
        assert!((a - b).abs() < tolerance * b.abs(), "{a} {b}");
    }
    let of = |sums: &Tensor| gradients::backward(&sums.sum_all().unwrap()).unwrap();
    let (ours, expected) = (of(&ours), of(&expected));
    let mut seen = 0;
    for (name, variable) in model.parameters() {
        let (Some(ours), Some(expected)) = (ours.get(&variable), expected.get(&variable)) else { continue };
        let read = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let (ours, expected) = (read(ours), read(expected));
        let largest = expected.iter().fold(0f32, |largest, number| largest.max(number.abs()));
        let apart = ours.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
        assert!(apart <= tolerance * largest + 1e-5, "{name}: {apart} of {largest}");
        seen += usize::from(largest > 0.0);
    }
    assert!(seen > 10, "{seen} parameters have gradients");
}

#[test]
fn masked_codes_have_the_logits_of_their_likelihood() {
    let model = small::model(2);
    let codes = |seed: u32| (0..small::TOKENS as u32).map(|at| (at * 7 + seed * 11) % 32).collect::<Vec<_>>();
    let scored = [vec![5u32, 0, 6], vec![3, 15], vec![2, 9]];
    let examples: Vec<ImageExample> = ["a large red circle", "small blue squares", "a large red circle"]
        .into_iter()
        .zip(&scored)
        .enumerate()
        .map(|(number, (prompt, positions))| ImageExample {
            prompt: prompt.into(),
            unconditional: false,
            codes: codes(number as u32),
            scored: match number {
                2 => Scored::Settled { masked: vec![1, 2, 7, 9, 12], settled: positions.clone() },
                _ => Scored::Masked(positions.clone()),
            },
        })
        .collect();
    let logits = model.image_logits(&examples).unwrap();
    assert_eq!(logits.dims(), [7, 32]);
    compare(&model.trainable().unwrap(), &examples, &scored, 2e-3);
    compare(&model.trainable().unwrap().training(Products::F32).unwrap(), &examples, &scored, 2e-3);
    compare(&model.trainable().unwrap().training(Products::Bf16).unwrap(), &examples, &scored, 0.1);
    let outside = ImageExample { scored: Scored::All, ..examples[0].clone() };
    assert!(model.image_logits(&[outside]).is_err());
}

#[test]
fn codes_drawn_one_after_the_other_have_the_logits_of_their_likelihood() {
    let model = tiny::model(2);
    let all: Vec<u32> = (0..tiny::TOKENS as u32).collect();
    let examples: Vec<ImageExample> = (0..2)
        .map(|number| ImageExample {
            prompt: ["a large red circle", "small blue squares"][number].into(),
            unconditional: false,
            codes: tiny::codes(number as u32),
            scored: Scored::All,
        })
        .collect();
    let parts = ["language_model.", "gen_embed.", "gen_aligner.", "gen_head."];
    let scored = [all.clone(), all];
    compare(&model.trainable(&parts).unwrap(), &examples, &scored, 2e-3);
    compare(&model.trainable(&parts).unwrap().training(Products::F32).unwrap(), &examples, &scored, 2e-3);
    let masked = ImageExample { scored: Scored::Masked(vec![1]), ..examples[0].clone() };
    assert!(model.image_logits(&[masked]).unwrap_err().to_string().contains("masked"));
}
