//! Several processes train together: the files of one process, byte for byte, however many they are and whatever holds
//! the optimizer's state. The processes are threads here; the program's tests have real ones.
#![allow(clippy::unwrap_used)]

mod files;

use std::ops::ControlFlow;
use std::path::Path;

use candle_core::{Device, Tensor, Var};
use hermesflow_group::Group;
use hermesflow_models::{CaptionExample, ImageExample, PairModel, Result, Scored};
use hermesflow_train::{
    LossSettings, MaskStates, PairDpo, PairDpoSettings, PairWeights, Schedule, ScheduleKind, StatePlace, Trainer,
    TrainerSettings, TrainingPair,
};

use files::files;

/// Log-probabilities from a table of more numbers than one share has.
#[derive(Clone)]
struct Tables {
    letters: Var,
    codes: Var,
    bias: Var,
}

impl Tables {
    fn new(shift: f32) -> Self {
        let table = |rows: usize, columns: usize, of: f32| {
            let values: Vec<f32> = (0..rows * columns).map(|at| ((at as f32 + shift) * of).sin()).collect();
            Var::from_tensor(&Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap()).unwrap()
        };
        Self { letters: table(128, 300, 0.37), codes: table(8, 40, 0.73), bias: table(1, 300, 0.11) }
    }

    fn log_probs(&self, table: &Var, rows: Vec<Vec<u32>>) -> Result<Tensor> {
        let of_row = |row: Vec<u32>| -> Result<Tensor> {
            let row = Tensor::new(row, &Device::Cpu)?;
            let chosen = table.as_tensor().index_select(&row, 0)?;
            let bias = self.bias.as_tensor().narrow(1, 0, chosen.dim(1)?)?;
            Ok(chosen.broadcast_add(&bias)?.tanh()?.sum_all()?.affine(0.1, -1.0)?)
        };
        Ok(Tensor::stack(&rows.into_iter().map(of_row).collect::<Result<Vec<_>>>()?, 0)?)
    }
}

impl PairModel for Tables {
    fn parameters(&self) -> Vec<(String, Var)> {
        [("letters.weight", &self.letters), ("codes.weight", &self.codes), ("bias", &self.bias)]
            .map(|(name, var)| (name.to_owned(), var.clone()))
            .into()
    }

    fn caption_log_probs(&self, examples: &[CaptionExample]) -> Result<Tensor> {
        self.log_probs(
            &self.letters,
            examples.iter().map(|one| one.caption.bytes().map(|b| b.into()).collect()).collect(),
        )
    }

    fn image_log_probs(&self, examples: &[ImageExample], _: f64) -> Result<Tensor> {
        let codes = |one: &ImageExample| places(one).into_iter().map(|at| one.codes[at as usize]).collect();
        self.log_probs(&self.codes, examples.iter().map(codes).collect())
    }

    fn image_logits(&self, examples: &[ImageExample]) -> Result<Tensor> {
        let row = |one: &ImageExample, at: u32| (at + u32::from(one.unconditional) * 3 + one.codes[0]) % 8;
        let rows: Vec<u32> =
            examples.iter().flat_map(|one| places(one).into_iter().map(move |at| row(one, at))).collect();
        let rows = self.codes.as_tensor().index_select(&Tensor::new(rows, &Device::Cpu)?, 0)?;
        Ok(rows.narrow(1, 0, 8)?.contiguous()?)
    }

    fn describe(&self, folder: &Path) -> Result<()> {
        std::fs::write(folder.join("config.json"), "{}\n").unwrap();
        Ok(())
    }
}

/// The positions that are scored.
fn places(one: &ImageExample) -> Vec<u32> {
    match &one.scored {
        Scored::Masked(places) | Scored::Settled { settled: places, .. } => places.clone(),
        Scored::All => (0..one.codes.len() as u32).collect(),
    }
}

fn pairs(count: usize) -> Vec<TrainingPair> {
    let pair = |at: usize| TrainingPair {
        id: at.to_string(),
        image: vec![at as u32 % 8; 9].into(),
        question: "what".into(),
        caption: format!("caption {at}"),
        caption_win: format!("a win of {at}"),
        caption_lose: format!("lost {}", at * 7),
        image_win: (0..9).map(|code| (code + at as u32) % 8).collect(),
        image_lose: (0..9).map(|code| (code * 3 + at as u32) % 8).collect(),
        margins: Some([0.1 + at as f64 * 0.3, 0.2]),
        steps: Some([0, 1].map(|side| (0..9).map(|code| (code + side + at as u32) % 3).collect())),
    };
    (0..count).map(pair).collect()
}

struct Plan {
    batch_size: usize,
    accumulation: usize,
    place: StatePlace,
    /// Whether images are held to the reference, in the states that were visited.
    held: bool,
}

/// Trains in `size` processes until step `until`; what the first of them says.
fn train(folder: &Path, size: usize, plan: &Plan, until: usize) -> std::result::Result<(), String> {
    let work = |group: Group| -> hermesflow_train::Result<()> {
        let settings = PairDpoSettings {
            batch_size: plan.batch_size,
            weights: PairWeights::Margin,
            masks: if plan.held { MaskStates::Visited } else { MaskStates::Random },
            loss: LossSettings { kl: if plan.held { 0.5 } else { 0.0 }, ..LossSettings::default() },
            ..PairDpoSettings::default()
        };
        let mut memory = Forgetful;
        let objective = PairDpo::remembering(
            Tables::new(0.0),
            Tables::new(5.0),
            pairs(10),
            settings,
            &mut memory,
            &group,
            |_, _| {},
        )?;
        let schedule = Schedule { kind: ScheduleKind::Cosine, learning_rate: 0.01, warmup_steps: 1, steps: 9 };
        let settings = TrainerSettings {
            accumulation: plan.accumulation,
            optimizer_state: plan.place,
            max_grad_norm: Some(0.05),
            checkpoint_every: 2,
            ..TrainerSettings::new(schedule)
        };
        let mut trainer = Trainer::in_group(objective, settings, folder, group.clone())?;
        trainer.run(|report| match report.record.step == until {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        })?;
        Ok(())
    };
    let said = std::thread::scope(|scope| {
        let work = &work;
        let started: Vec<_> = Group::of_threads(size)
            .into_iter()
            .map(|group| {
                scope.spawn(move || {
                    let said = work(group.clone());
                    if said.is_err() {
                        group.abort(1);
                    }
                    said
                })
            })
            .collect();
        started.into_iter().map(|one| one.join().unwrap()).collect::<Vec<_>>()
    });
    said.into_iter().collect::<hermesflow_train::Result<()>>().map_err(|error| error.to_string())
}

struct Forgetful;

impl hermesflow_train::CaptionMemory for Forgetful {
    fn recall(&mut self, _: &[&TrainingPair]) -> Option<Vec<hermesflow_train::Pair<f32>>> {
        None
    }

    fn knows(&self, _: &[&TrainingPair]) -> bool {
        false
    }

    fn remember(
        &mut self,
        _: &[&TrainingPair],
        _: &[hermesflow_train::Pair<f32>],
    ) -> std::result::Result<(), hermesflow_train::ObjectiveError> {
        Ok(())
    }
}

const PLACES: [StatePlace; 3] = [StatePlace::Device, StatePlace::Host, StatePlace::Shared];

#[test]
fn any_number_of_processes_writes_the_same_files() {
    for (batch_size, accumulation, held) in [(8, 2, false), (1, 8, false), (4, 4, false), (8, 2, true)] {
        let of = |size: usize, place: StatePlace| {
            let folder = tempfile::tempdir().unwrap();
            train(folder.path(), size, &Plan { batch_size, accumulation, place, held }, 0).unwrap();
            files(folder.path())
        };
        let one = of(1, StatePlace::Device);
        let metrics = String::from_utf8_lossy(&one["metrics.jsonl"]);
        assert_eq!(metrics.matches("gen/kl/unconditional").count(), if held { 9 } else { 0 }, "{metrics}");
        assert!(one.contains_key("checkpoint-9/optimizer.safetensors"), "{:?}", one.keys());
        for size in [1, 2, 4, 8] {
            for place in PLACES {
                assert!(of(size, place) == one, "{size} processes, {place:?}, {batch_size} pairs × {accumulation}");
            }
        }
    }
}

#[test]
fn what_one_number_of_processes_began_another_continues() {
    let plan = |place| Plan { batch_size: 8, accumulation: 1, place, held: true };
    let (whole, killed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    train(whole.path(), 1, &plan(StatePlace::Device), 0).unwrap();
    for (size, place, until) in
        [(4, StatePlace::Shared, 3), (1, StatePlace::Host, 5), (2, StatePlace::Shared, 6), (4, StatePlace::Device, 9)]
    {
        train(killed.path(), size, &plan(place), until).unwrap();
    }
    assert!(files(whole.path()) == files(killed.path()));
}

#[test]
fn a_number_that_does_not_divide_the_parts_is_refused_with_those_that_do() {
    let said = |size: usize, batch_size: usize, accumulation: usize| {
        let folder = tempfile::tempdir().unwrap();
        let plan = Plan { batch_size, accumulation, place: StatePlace::Device, held: false };
        train(folder.path(), size, &plan, 0).unwrap_err()
    };
    // Parts of two pairs.
    let message = said(3, 8, 3);
    assert!(
        message.contains("3 processes") && message.contains("12 parts") && message.contains("1, 2 or 4 can"),
        "{message}"
    );
    let message = said(8, 4, 2);
    assert!(message.contains("8 processes") && message.contains("1, 2 or 4 can"), "{message}");
    let message = said(2, 2, 1);
    assert!(message.contains("the 1 part ") && message.contains("evenly: 1 can"), "{message}");
}
