//! `loss.kl`: a policy is held to its reference, with the prompt and without it.
#![allow(clippy::unwrap_used, missing_docs)]

use std::ops::ControlFlow;

use hermesflow_models::PairModel;
use hermesflow_models::showo::Showo;
use hermesflow_train::{
    LossSettings, Objective, PairDpo, PairDpoSettings, Position, Schedule, ScheduleKind, Sides, Trainer,
    TrainerSettings, TrainingPair,
};

#[path = "../../hermesflow-models/tests/small/mod.rs"]
mod small;

use small::TOKENS;

fn pairs(count: u32) -> Vec<TrainingPair> {
    let codes = |seed: u32| (0..TOKENS as u32).map(|at| (at * 7 + seed * 11) % 32).collect::<Vec<_>>();
    let pair = |number: u32| TrainingPair {
        id: number.to_string(),
        caption: format!("a large red circle above {number} small blue squares"),
        image_win: codes(10 + number),
        image_lose: codes(20 + number),
        ..TrainingPair::default()
    };
    (0..count).map(pair).collect()
}

fn settings(kl: f64) -> PairDpoSettings {
    PairDpoSettings {
        seed: 3,
        batch_size: 4,
        sides: Sides::Gen,
        masks_per_pair: 2,
        loss: LossSettings { kl, ..LossSettings::default() },
        ..PairDpoSettings::default()
    }
}

fn objective(model: &Showo, kl: f64) -> PairDpo<Showo> {
    PairDpo::new(model.trainable().unwrap(), model.frozen().unwrap(), pairs(6), settings(kl), |_, _| {}).unwrap()
}

fn at(step: usize) -> Position {
    Position { step, micro: 0, micros: 1 }
}

const NAMES: [&str; 2] = ["gen/kl/conditional", "gen/kl/unconditional"];

#[test]
fn it_is_zero_at_first_and_changes_neither_loss_nor_gradients_then() {
    let model = small::model(2);
    let of = |kl: f64| {
        let mut objective = objective(&model, kl);
        let step = objective.micro_batch(at(0)).unwrap();
        let loss = step.loss().unwrap();
        let gradients = hermesflow_nn::gradients::backward(&loss).unwrap();
        let read = |tensor: &hermesflow_models::Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let gradients: Vec<f32> = objective
            .parameters()
            .iter()
            .flat_map(|(_, variable)| gradients.get(variable.as_tensor()).map(read).unwrap_or_default())
            .collect();
        (loss.to_scalar::<f32>().unwrap(), gradients, step.metrics)
    };
    let ((loss, gradients, plain), (held_loss, held_gradients, metrics)) = (of(0.0), of(0.5));
    assert_eq!(NAMES.map(|name| plain.get(name)), [None, None]);
    assert_eq!(NAMES.map(|name| metrics.get(name)), [Some(0.0), Some(0.0)]);
    assert_eq!(loss, held_loss);
    let largest = gradients.iter().fold(0f32, |largest, value| largest.max(value.abs()));
    let apart = gradients.iter().zip(&held_gradients).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
    assert!(gradients.len() == held_gradients.len() && apart <= 1e-5 * largest, "{apart} of {largest}");
}

/// Both distributions move less, the one without a prompt too, and more so the larger the weight.
#[test]
fn training_moves_less_the_larger_its_weight() {
    let moved = |kl: f64| {
        let folder = tempfile::tempdir().unwrap();
        let model = small::model(2);
        let schedule = Schedule { kind: ScheduleKind::Constant, learning_rate: 2e-3, warmup_steps: 0, steps: 12 };
        let mut trainer = Trainer::new(objective(&model, kl), TrainerSettings::new(schedule), folder.path()).unwrap();
        trainer.run(|_| ControlFlow::Continue(())).unwrap();
        // Measured by an objective whose reference is the model of before.
        let policy = trainer.into_objective().into_models().0;
        let mut measure = PairDpo::new(policy, model.frozen().unwrap(), pairs(6), settings(1.0), |_, _| {}).unwrap();
        let metrics = measure.micro_batch(at(40)).unwrap().metrics;
        NAMES.map(|name| metrics.get(name).unwrap())
    };
    let (free, held, tight) = (moved(0.0), moved(0.05), moved(1.0));
    for ((free, held), tight) in free.into_iter().zip(held).zip(tight) {
        assert!(free > held && held > tight && tight > 0.0, "{free} {held} {tight}");
    }
}

/// What is added to the loss is the weight times both divergences.
#[test]
fn the_loss_grows_by_the_weight_times_both() {
    let model = small::model(2);
    let other = small::sized(2, 48, 5);
    let policy = other.trainable().unwrap();
    for (name, variable) in policy.parameters() {
        if name.contains("lm_head") || name.contains("v_proj") {
            variable.set(&(variable.as_detached_tensor() * 1.7).unwrap()).unwrap();
        }
    }
    let of = |kl: f64| {
        let new = PairDpo::new(policy.clone(), model.frozen().unwrap(), pairs(6), settings(kl), |_, _| {});
        let step = new.unwrap().micro_batch(at(2)).unwrap();
        (f64::from(step.loss().unwrap().to_scalar::<f32>().unwrap()), NAMES.map(|name| step.metrics.get(name)))
    };
    let ((plain, _), (held, [Some(with), Some(without)])) = (of(0.0), of(0.3)) else { panic!("no metrics") };
    assert!(with > 1e-3 && without > 1e-3, "{with} {without}");
    assert!((held - plain - 0.3 * (with + without)).abs() < 1e-4 * held.abs(), "{plain} {held} {with} {without}");
}

#[test]
fn without_images_it_is_refused() {
    let model = small::model(1);
    let settings = PairDpoSettings { sides: Sides::Und, ..settings(0.1) };
    let new = PairDpo::new(model.trainable().unwrap(), model.frozen().unwrap(), pairs(2), settings, |_, _| {});
    assert!(new.err().unwrap().to_string().contains("loss.kl"));
    let settings = PairDpoSettings { loss: LossSettings { kl: -0.1, ..LossSettings::default() }, ..settings };
    assert!(settings.validate().unwrap_err().to_string().contains("loss.kl"));
}
