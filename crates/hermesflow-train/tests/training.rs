//! The loop as a whole: a resumed run is the uninterrupted run, accumulated micro batches are the batch.
#![allow(clippy::unwrap_used)]

mod files;

use std::ops::ControlFlow;
use std::path::Path;

use candle_core::{Device, Tensor, Var};
use hermesflow_train::draws::{Purpose, stream};
use hermesflow_train::trainer::ObjectiveError;
use hermesflow_train::{
    Error, Metrics, Objective, Outcome, Position, Schedule, ScheduleKind, Step, Trainer, TrainerSettings,
    WatchSettings, checkpoint,
};
use rand::Rng;
use serde_json::{Value, json};

use files::files;

/// A small perceptron that learns `sin(x₀ + x₁)` from points drawn by example number.
struct Toy {
    parameters: Vec<(String, Var)>,
    seed: u64,
    batch_size: usize,
    /// Adds `und/delta/chosen` falling by this much per step.
    fall: f64,
    /// The loss is NaN from this step on.
    breaks_at: usize,
    /// The bias is cut from the graph.
    cut: bool,
}

impl Toy {
    fn new(seed: u64, batch_size: usize) -> Self {
        let random = |index: u64, rows: usize, columns: usize| {
            let mut rng = stream(seed, Purpose::Objective, u64::MAX, index);
            let values: Vec<f32> = (0..rows * columns).map(|_| rng.random_range(-0.7..0.7)).collect();
            Var::from_tensor(&Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap()).unwrap()
        };
        let bias = Var::from_tensor(&Tensor::zeros(8, candle_core::DType::F32, &Device::Cpu).unwrap()).unwrap();
        let parameters = vec![
            ("in.weight".into(), random(0, 2, 8)),
            ("in.bias".into(), bias),
            ("out.weight".into(), random(1, 8, 1)),
        ];
        Self { parameters, seed, batch_size, fall: 0.0, breaks_at: usize::MAX, cut: false }
    }
}

impl Objective for Toy {
    fn parameters(&self) -> Vec<(String, Var)> {
        self.parameters.clone()
    }

    fn micro_batch(&mut self, at: Position) -> Result<Step, ObjectiveError> {
        let points: Vec<[f32; 2]> = (0..self.batch_size)
            .map(|index| stream(self.seed, Purpose::Objective, at.example(index, self.batch_size), 0).random())
            .collect();
        let targets: Vec<f32> = points.iter().map(|[a, b]| (a + b).sin()).collect();
        let x = Tensor::from_vec(points.concat(), (self.batch_size, 2), &Device::Cpu)?;
        let y = Tensor::from_vec(targets, (self.batch_size, 1), &Device::Cpu)?;
        let [w, b, o] = [0, 1, 2].map(|index| self.parameters[index].1.as_tensor());
        let b = if self.cut { &b.detach() } else { b };
        let mut loss = (x.matmul(w)?.broadcast_add(b)?.tanh()?.matmul(o)? - y)?.sqr()?.mean_all()?;
        if at.step >= self.breaks_at {
            loss = (loss * f64::NAN)?;
        }
        let mut metrics = Metrics::new();
        metrics.insert("mse", f64::from(loss.to_scalar::<f32>()?));
        if self.fall != 0.0 {
            metrics.insert("und/delta/chosen", -self.fall * at.step as f64);
        }
        Ok(Step { losses: vec![loss], metrics })
    }

    fn epoch(&self, at: Position) -> f64 {
        at.example(0, self.batch_size) as f64 / 100.0
    }

    fn settings(&self) -> Value {
        json!({ "toy": { "seed": self.seed, "batch_size": self.batch_size } })
    }
}

fn settings(steps: usize) -> TrainerSettings {
    let schedule = Schedule { kind: ScheduleKind::Cosine, learning_rate: 0.02, warmup_steps: 3, steps };
    TrainerSettings { max_grad_norm: Some(0.5), checkpoint_every: 5, ..TrainerSettings::new(schedule) }
}

fn go_on(_: &hermesflow_train::StepReport) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn weights(toy: &Toy) -> Vec<f32> {
    toy.parameters.iter().flat_map(|(_, var)| var.flatten_all().unwrap().to_vec1::<f32>().unwrap()).collect()
}

#[test]
fn a_killed_and_resumed_run_is_the_uninterrupted_run_byte_for_byte() {
    let whole = tempfile::tempdir().unwrap();
    let mut trainer = Trainer::new(Toy::new(1, 4), settings(23), whole.path()).unwrap();
    assert_eq!(trainer.run(go_on).unwrap(), Outcome::Finished);
    let expected = files(whole.path());
    assert!(expected.contains_key("checkpoint-23/optimizer.safetensors"), "{:?}", expected.keys());
    assert_eq!(expected["metrics.jsonl"].iter().filter(|byte| **byte == b'\n').count(), 23);

    // Killed again and again: before, at and after checkpoints, in the middle of a line, while a
    // checkpoint is being written and while an old one is being removed.
    let killed = tempfile::tempdir().unwrap();
    for (run, until) in [2, 5, 7, 14, 15, 21, 22].into_iter().enumerate() {
        let mut trainer = Trainer::new(Toy::new(1, 4), settings(23), killed.path()).unwrap();
        let outcome = trainer
            .run(|report| if report.record.step >= until { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
            .unwrap();
        assert_eq!(outcome, Outcome::Interrupted { step: until }, "run {run}");
        drop(trainer);
        let mut metrics = std::fs::OpenOptions::new().append(true).open(killed.path().join("metrics.jsonl")).unwrap();
        std::io::Write::write_all(&mut metrics, b"{\"step\":99,\"epo").unwrap();
        for half in [".checkpoint-25.tmp", ".checkpoint-1.old"] {
            std::fs::create_dir_all(killed.path().join(half)).unwrap();
            std::fs::write(killed.path().join(half).join("pytorch_model.safetensors"), b"half").unwrap();
        }
    }
    let mut trainer = Trainer::new(Toy::new(1, 4), settings(23), killed.path()).unwrap();
    assert_eq!(trainer.resumed_from().unwrap().file_name().unwrap(), "checkpoint-20");
    assert_eq!(trainer.run(go_on).unwrap(), Outcome::Finished);
    assert!(expected == files(killed.path()), "some file differs");

    // And once finished, nothing is done again but the cleaning.
    std::fs::create_dir_all(killed.path().join(".checkpoint-15.old")).unwrap();
    let mut trainer = Trainer::new(Toy::new(1, 4), settings(23), killed.path()).unwrap();
    assert_eq!(trainer.run(|_| unreachable!("no step is left")).unwrap(), Outcome::Finished);
    assert!(expected == files(killed.path()), "a finished run was touched");
}

#[test]
fn the_loss_falls_and_only_the_last_checkpoints_stay() {
    let folder = tempfile::tempdir().unwrap();
    let mut losses = Vec::new();
    let settings = TrainerSettings { max_grad_norm: None, ..settings(200) };
    let mut trainer = Trainer::new(Toy::new(2, 8), settings, folder.path()).unwrap();
    trainer
        .run(|report| {
            losses.push(report.record.loss);
            ControlFlow::Continue(())
        })
        .unwrap();
    let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
    assert!(mean(&losses[190..]) < 0.1 * mean(&losses[..10]), "{losses:?}");
    let steps: Vec<usize> = checkpoint::list(folder.path()).unwrap().into_iter().map(|(step, _)| step).collect();
    assert_eq!(steps, [195, 200]);
}

#[test]
fn batch_4_equals_batch_1_accumulated_4_times() {
    let run = |batch_size: usize, accumulation: usize| {
        let folder = tempfile::tempdir().unwrap();
        let settings = TrainerSettings { accumulation, ..settings(12) };
        let mut records = Vec::new();
        let mut trainer = Trainer::new(Toy::new(3, batch_size), settings, folder.path()).unwrap();
        trainer
            .run(|report| {
                records.push(report.record.clone());
                ControlFlow::Continue(())
            })
            .unwrap();
        (weights(&trainer.into_objective()), records)
    };
    let ((whole, whole_records), (parts, part_records)) = (run(4, 1), run(1, 4));
    for (a, b) in whole.iter().zip(&parts) {
        assert!((a - b).abs() < 1e-5, "{a} against {b}");
    }
    for (a, b) in whole_records.iter().zip(&part_records) {
        assert!((a.loss - b.loss).abs() < 1e-6 && (a.grad_norm - b.grad_norm).abs() < 1e-5, "{a:?} against {b:?}");
        assert_eq!((a.step, a.epoch, a.learning_rate), (b.step, b.epoch, b.learning_rate));
        assert!((a.metrics.get("mse").unwrap() - b.metrics.get("mse").unwrap()).abs() < 1e-6);
    }
    assert!(whole_records.iter().any(|record| record.grad_norm > 0.5), "nothing was ever clipped");
}

#[test]
fn other_settings_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    Trainer::new(Toy::new(1, 4), settings(10), folder.path()).unwrap().run(go_on).unwrap();
    let before = files(folder.path());
    let mut other = settings(10);
    other.schedule.learning_rate = 0.01;
    let error = Trainer::new(Toy::new(9, 4), other, folder.path()).err().unwrap().to_string();
    assert!(error.contains("checkpoint-10 was written under other settings"), "{error}");
    assert!(error.contains("objective.toy.seed: there 1, here 9"), "{error}");
    assert!(error.contains("schedule.learning_rate: there 0.02, here 0.01"), "{error}");
    assert!(before == files(folder.path()), "the refused run changed the folder");
    // How often checkpoints are written is nobody's business.
    let more = TrainerSettings { checkpoint_every: 1, keep_checkpoints: 9, ..settings(10) };
    assert!(Trainer::new(Toy::new(1, 4), more, folder.path()).is_ok());
}

#[test]
fn a_parameter_cut_from_the_graph_stops_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let toy = Toy { cut: true, ..Toy::new(1, 4) };
    let error = Trainer::new(toy, settings(10), folder.path()).unwrap().run(go_on).unwrap_err();
    assert!(matches!(&error, Error::NoGradient { name } if name == "in.bias"), "{error}");
}

#[test]
fn a_loss_that_is_not_a_number_stops_the_run_and_keeps_what_is_computed() {
    let folder = tempfile::tempdir().unwrap();
    let toy = Toy { breaks_at: 7, ..Toy::new(1, 4) };
    let error = Trainer::new(toy, settings(10), folder.path()).unwrap().run(go_on).unwrap_err().to_string();
    assert!(error.contains("the loss is NaN at step 8"), "{error}");
    let trainer = Trainer::new(Toy::new(1, 4), settings(10), folder.path()).unwrap();
    assert_eq!(trainer.steps(), 5);
    assert!(weights(trainer.objective()).iter().all(|weight| weight.is_finite()));
}

#[test]
fn a_falling_likelihood_is_said_loudly_and_stops_the_run_if_told_to() {
    let run = |stop: bool, folder: &Path| {
        let mut settings = settings(30);
        settings.watch = Some(WatchSettings { window: 4, threshold: -3.0, stop });
        let toy = Toy { fall: 1.0, ..Toy::new(1, 4) };
        let mut warnings = Vec::new();
        let mut trainer = Trainer::new(toy, settings, folder).unwrap();
        let outcome = trainer
            .run(|report| {
                assert_eq!(report.falls.len(), report.record.warnings.len());
                warnings.extend(report.record.warnings.clone());
                ControlFlow::Continue(())
            })
            .unwrap();
        (outcome, warnings)
    };
    let folder = tempfile::tempdir().unwrap();
    let (outcome, warnings) = run(false, folder.path());
    assert_eq!((outcome, warnings.len()), (Outcome::Finished, 6));
    assert!(warnings[0].contains("und/delta/chosen is -5.50 nats over the last 4 steps"), "{warnings:?}");
    let text = std::fs::read_to_string(folder.path().join("metrics.jsonl")).unwrap();
    assert!(text.lines().nth(7).unwrap().contains("keeps falling"), "the file must say it too");

    let folder = tempfile::tempdir().unwrap();
    assert_eq!(run(true, folder.path()).0, Outcome::LikelihoodFell { step: 8 });
    assert_eq!(checkpoint::list(folder.path()).unwrap().pop().unwrap().1.file_name().unwrap(), "checkpoint-8");
    let before = files(folder.path());
    assert_eq!(run(true, folder.path()).0, Outcome::LikelihoodFell { step: 8 }, "a stopped run stays stopped");
    assert!(before == files(folder.path()));
}

#[test]
fn settings_that_cannot_be_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    for (bad, key) in [
        (TrainerSettings { accumulation: 0, ..settings(10) }, "accumulation"),
        (TrainerSettings { max_grad_norm: Some(0.0), ..settings(10) }, "max_grad_norm"),
        (settings(3), "warmup_steps"),
    ] {
        let error = Trainer::new(Toy::new(1, 4), bad, folder.path()).err().unwrap().to_string();
        assert!(error.contains(key), "{error}");
    }
}
