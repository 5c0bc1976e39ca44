//! What saves memory changes no number: steps of Pair-DPO on a small Show-o whose blocks run as one operator each.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

use hermesflow_models::showo::Showo;
use hermesflow_models::{PairModel, Products};
use hermesflow_train::{
    PairDpo, PairDpoSettings, Schedule, ScheduleKind, StatePlace, Trainer, TrainerSettings, TrainingPair,
};

#[path = "../../hermesflow-models/tests/small/mod.rs"]
mod small;

use small::TOKENS;

fn player() -> Showo {
    small::model(3)
}

fn pairs() -> Vec<TrainingPair> {
    let codes = |seed: u32| (0..TOKENS as u32).map(|at| (at * 7 + seed * 11) % 32).collect::<Vec<_>>();
    let pair = |number: u32| TrainingPair {
        id: number.to_string(),
        image: codes(number).into(),
        question: "what is this?".into(),
        caption: format!("a large red circle above {number} small blue squares"),
        caption_win: " a large red circle".into(),
        caption_lose: " small blue squares".into(),
        image_win: codes(10 + number),
        image_lose: codes(20 + number),
        margins: None,
        steps: None,
    };
    (0..4).map(pair).collect()
}

/// A run of three steps in a folder, with blocks kept or computed again and the optimizer's state in this place.
fn trainer(folder: &Path, accumulation: usize, again: bool, place: StatePlace) -> Trainer<PairDpo<Showo>> {
    let player = player();
    let policy = player.trainable().unwrap().training(Products::Bf16).unwrap().recompute(again);
    let reference = player.frozen().unwrap().training(Products::Bf16).unwrap();
    let settings = PairDpoSettings { batch_size: 2, ..PairDpoSettings::default() };
    let objective = PairDpo::new(policy, reference, pairs(), settings, |_, _| {}).unwrap();
    let schedule = Schedule { kind: ScheduleKind::Constant, learning_rate: 1e-3, warmup_steps: 0, steps: 3 };
    let settings = TrainerSettings {
        accumulation,
        max_grad_norm: Some(1.0),
        optimizer_state: place,
        checkpoint_every: 1,
        ..TrainerSettings::new(schedule)
    };
    Trainer::new(objective, settings, folder).unwrap()
}

/// The steps' lines and the trained parameters, to the bit.
fn outcome(folder: &Path, trainer: &Trainer<PairDpo<Showo>>) -> (String, BTreeMap<String, Vec<u32>>) {
    let metrics = std::fs::read_to_string(folder.join("metrics.jsonl")).unwrap();
    let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect();
    let parameters = trainer.objective().policy().parameters();
    let parameters = parameters.into_iter().map(|(name, var)| {
        let values = var.flatten_all().unwrap().to_vec1().unwrap();
        (name, bits(values))
    });
    (metrics, parameters.collect())
}

#[test]
fn blocks_computed_again_and_a_state_on_the_host_train_the_same_model() {
    for accumulation in [1, 2] {
        let run = |again: bool, place: StatePlace| {
            let folder = tempfile::tempdir().unwrap();
            let mut trainer = trainer(folder.path(), accumulation, again, place);
            trainer.run(|_| ControlFlow::Continue(())).unwrap();
            outcome(folder.path(), &trainer)
        };
        let kept = run(false, StatePlace::Device);
        assert_eq!(kept.0.lines().count(), 3);
        for (again, place) in [(true, StatePlace::Device), (false, StatePlace::Host), (true, StatePlace::Host)] {
            assert!(kept == run(again, place), "{again} {place:?}, {accumulation} micro batches");
        }
    }
}

#[test]
fn a_run_goes_on_under_other_memory() {
    let whole = tempfile::tempdir().unwrap();
    let mut trainer_of_all = trainer(whole.path(), 1, false, StatePlace::Device);
    trainer_of_all.run(|_| ControlFlow::Continue(())).unwrap();
    let expected = outcome(whole.path(), &trainer_of_all);
    let changed = tempfile::tempdir().unwrap();
    let mut last = None;
    for (again, place) in [(false, StatePlace::Device), (true, StatePlace::Host), (false, StatePlace::Device)] {
        let mut trainer = trainer(changed.path(), 1, again, place);
        trainer.run(|_| ControlFlow::Break(())).unwrap();
        last = Some(trainer);
    }
    let last = last.unwrap();
    assert!(last.resumed_from().unwrap().ends_with("checkpoint-2"));
    assert!(expected == outcome(changed.path(), &last));
    let saved = |folder: &Path| std::fs::read(folder.join("checkpoint-3/optimizer.safetensors")).unwrap();
    assert!(saved(whole.path()) == saved(changed.path()));
}
