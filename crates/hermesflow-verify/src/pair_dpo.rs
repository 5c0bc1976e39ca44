//! The Pair-DPO part of a model case: log-probabilities, losses, gradients, and a trace of training.

use std::collections::HashMap;

use candle_core::backprop::GradStore;
use candle_core::{DType, Tensor};
use hermesflow_models::showo::Phi;
use hermesflow_models::showo::log_probs::Labelled;
use hermesflow_models::showo::sequence::Packed;
use hermesflow_nn::gradients;
use hermesflow_nn::ops::Products;
use hermesflow_nn::weights::Weights;
use hermesflow_train::loss::{PairLogProbs, pair_dpo};
use hermesflow_train::{AdamW, Pair};

use crate::Result;
use crate::case::Loaded;
use crate::check::{Report, ids, integers, largest, values};
use crate::trace;

/// One side of the recorded batch.
struct Side {
    name: &'static str,
    win: Batch,
    lose: Batch,
}

/// Recorded sequences, packed, with their labels.
struct Batch {
    packed: Packed,
    labels: Labelled,
    count: usize,
}

impl Batch {
    fn log_probs(&self, phi: &Phi) -> Result<Tensor> {
        Ok(self.labels.sums(phi, &self.packed, self.count)?)
    }
}

fn batch(loaded: &Loaded, side: &str, which: &str) -> Result<Batch> {
    let name = format!("dpo.{side}.{which}");
    let rows = ids(loaded.get(&name)?, &name)?;
    let labels = integers(loaded.get(&format!("{name}_labels"))?)?;
    let (mut packed, mut labelled) = (Packed::default(), Labelled::default());
    for (at, (row, labels)) in rows.iter().zip(&labels).enumerate() {
        let image = side == "t2i";
        let (first, padding) = match image {
            true => loaded.pack_imagine(&mut packed, row)?,
            false => (loaded.pack_understanding(&mut packed, row)?.0, 0),
        };
        for (position, &label) in labels.iter().enumerate().filter(|(_, label)| **label >= 0) {
            // An image label is predicted at its own position, a text label at the position before it.
            let row = first + position - padding - usize::from(!image);
            labelled.push(row, label as u32, at);
        }
    }
    Ok(Batch { packed, labels: labelled, count: rows.len() })
}

fn both(side: &Side, phi: &Phi) -> Result<Pair<Tensor>> {
    Ok(Pair { win: side.win.log_probs(phi)?, lose: side.lose.log_probs(phi)? })
}

fn recorded_side(loaded: &Loaded, name: &'static str) -> Result<Side> {
    Ok(Side { name, win: batch(loaded, name, "win")?, lose: batch(loaded, name, "lose")? })
}

pub(crate) fn replay(loaded: &Loaded, report: &mut Report) -> Result<()> {
    let sides = [recorded_side(loaded, "t2i")?, recorded_side(loaded, "mmu")?];
    let reference = Weights::load(&loaded.folder.join("showo_ref"), DType::F32, &loaded.device)?;
    let reference = Phi::new(&reference, &loaded.config, &loaded.phi_config)?;
    let weights = loaded.weights.trainable()?;
    let policy = Phi::new(&weights, &loaded.config, &loaded.phi_config)?;
    let references = [both(&sides[0], &reference)?, both(&sides[1], &reference)?];
    for (side, reference) in sides.iter().zip(&references) {
        let policy = both(side, &policy)?;
        for (who, pair) in [("policy", &policy), ("ref", reference)] {
            for (which, ours) in [("win", &pair.win), ("lose", &pair.lose)] {
                let key = format!("dpo.{}.logp.{who}_{which}", side.name);
                report.close(
                    format!("log-prob {} {who} {which}", side.name),
                    &ours.detach(),
                    loaded.get(&key)?,
                    1e-3,
                )?;
            }
        }
    }
    // The losses and the gradient of every parameter.
    let losses = side_losses(loaded, &sides, &references, &policy)?;
    for (side, loss) in sides.iter().zip(&losses) {
        let recorded = loaded.get(&format!("dpo.{}.loss", side.name))?;
        report.close(format!("loss {}", side.name), &loss.detach().reshape(1)?, &recorded.reshape(1)?, 1e-5)?;
    }
    let found = (&losses[0] + &losses[1])?.backward()?;
    compare_gradients(loaded, &weights, &found, "gradients", 1e-3, report)?;
    let recorded_gradients = loaded.trace().keys().filter(|name| name.starts_with("dpo.grad.")).count();
    report.within(
        "recorded gradients of no parameter",
        recorded_gradients.abs_diff(weights.variables().len()) as f64,
        0.0,
    );
    by_whole_blocks(loaded, &sides, &references, report)?;
    training(loaded, &sides, &references, report)
}

/// Replays log-probabilities and gradients as a large model computes them in training with products in bf16: those of a
/// policy in f32, with whole blocks as operators.
///
/// Log-probabilities may differ by 1 % of the largest, gradients by 5 % of each tensor's largest number.
pub(crate) fn replay_narrow(loaded: &Loaded, report: &mut Report) -> Result<()> {
    let sides = [recorded_side(loaded, "t2i")?, recorded_side(loaded, "mmu")?];
    let of_reference = |side: &str| -> Result<Pair<Tensor>> {
        let get = |which: &str| -> Result<Tensor> {
            Ok(loaded.get(&format!("dpo.{side}.logp.ref_{which}"))?.to_device(&loaded.device)?)
        };
        Ok(Pair { win: get("win")?, lose: get("lose")? })
    };
    let references = [of_reference("t2i")?, of_reference("mmu")?];
    let weights = loaded.weights.trainable()?;
    let policy = Phi::new(&weights, &loaded.config, &loaded.phi_config)?.whole(Products::Bf16);
    for side in &sides {
        let ours = both(side, &policy)?;
        for (which, ours) in [("win", &ours.win), ("lose", &ours.lose)] {
            let recorded = loaded.get(&format!("dpo.{}.logp.policy_{which}", side.name))?;
            let size = largest(values(recorded)?.into_iter().map(f64::from));
            let what = format!("log-prob {} policy {which}, products in bf16", side.name);
            report.close(what, &ours.detach(), recorded, 1e-2 * size)?;
        }
    }
    let losses = side_losses(loaded, &sides, &references, &policy)?;
    let found = gradients::backward(&(&losses[0] + &losses[1])?)?;
    compare_gradients(loaded, &weights, &found, "gradients, products in bf16", 5e-2, report)
}

/// The losses and gradients as a large model computes them in training: with blocks that have a backward pass of their
/// own.
fn by_whole_blocks(
    loaded: &Loaded,
    sides: &[Side; 2],
    references: &[Pair<Tensor>; 2],
    report: &mut Report,
) -> Result<()> {
    let weights = loaded.weights.trainable()?;
    let policy = Phi::new(&weights, &loaded.config, &loaded.phi_config)?.whole(Products::F32);
    let losses = side_losses(loaded, sides, references, &policy)?;
    for (side, loss) in sides.iter().zip(&losses) {
        let recorded = loaded.get(&format!("dpo.{}.loss", side.name))?;
        let what = format!("loss {}, by whole blocks", side.name);
        report.close(what, &loss.detach().reshape(1)?, &recorded.reshape(1)?, 1e-5)?;
    }
    let found = gradients::backward(&(&losses[0] + &losses[1])?)?;
    compare_gradients(loaded, &weights, &found, "gradients by whole blocks", 1e-3, report)
}

/// Compares each parameter's gradient, relative to the largest number of it.
pub(crate) fn compare_gradients(
    loaded: &Loaded,
    weights: &Weights,
    found: &GradStore,
    what: &str,
    tolerance: f64,
    report: &mut Report,
) -> Result<()> {
    let (mut worst, mut at) = (0f64, String::new());
    let mut missing = 0;
    for (name, variable) in weights.variables() {
        let recorded = values(loaded.get(&format!("dpo.grad.{name}"))?)?;
        let ours = match found.get(variable.as_tensor()).map(values).transpose()? {
            Some(ours) if ours.len() == recorded.len() => ours,
            _ => {
                missing += 1;
                continue;
            }
        };
        let size = largest(recorded.iter().map(|value| f64::from(*value))).max(f64::MIN_POSITIVE);
        let error = largest(ours.iter().zip(&recorded).map(|(a, b)| f64::from(a - b))) / size;
        if error.is_nan() || error > worst {
            (worst, at) = (error, name);
        }
        if worst.is_nan() {
            break;
        }
    }
    report.within(format!("{what} without a recorded or computed twin"), f64::from(missing), 0.0);
    report.within(format!("{what}, relative to each largest ({at})"), worst, tolerance);
    Ok(())
}

/// The mean Pair-DPO loss of each side.
fn side_losses(
    loaded: &Loaded,
    sides: &[Side; 2],
    references: &[Pair<Tensor>; 2],
    policy: &Phi,
) -> Result<Vec<Tensor>> {
    let mean = |side: &Side, reference: &Pair<Tensor>| -> Result<Tensor> {
        let reference = Pair { win: reference.win.clone(), lose: reference.lose.clone() };
        let log_probs = PairLogProbs { policy: both(side, policy)?, reference };
        Ok(pair_dpo(&log_probs, loaded.case.beta, 0.0)?.loss.mean_all()?)
    };
    sides.iter().zip(references).map(|(side, reference)| mean(side, reference)).collect()
}

/// Replays the recorded optimizer steps on the same batch. Losses must agree to 1e-4 over the first five steps. Adam's
/// division by a small second moment amplifies rounding from step to step, so the final weights may differ by 1 % of
/// what the learning rates of all steps could move a weight.
fn training(loaded: &Loaded, sides: &[Side; 2], references: &[Pair<Tensor>; 2], report: &mut Report) -> Result<()> {
    let case = &loaded.case;
    let rates = case.optimizer.rates(&case.schedule, case.steps);
    let recorded = values(loaded.get("train.lr")?)?;
    if recorded.len() != rates.len() {
        report.fail("learning rates", format!("{} recorded, the case has {} steps", recorded.len(), rates.len()));
        return Ok(());
    }
    let error = largest(rates.iter().zip(&recorded).map(|(a, b)| a - f64::from(*b)));
    report.within("learning rates", error, 1e-8);

    let weights = loaded.weights.trainable()?;
    let policy = Phi::new(&weights, &loaded.config, &loaded.phi_config)?;
    let mut optimizer = AdamW::new(weights.variables(), case.optimizer.settings())?;
    let trace = loaded.get("train.loss_t2i_mmu_gradnorm")?;
    if trace.dims() != [case.steps, 4] {
        report.fail("training trace", format!("shape {:?}, the case has {} steps", trace.dims(), case.steps));
        return Ok(());
    }
    let losses = || side_losses(loaded, sides, references, &policy);
    trace::replay(&mut optimizer, (trace, &rates), 1e-4, losses, Tensor::backward, report)?;
    let finals: HashMap<String, Tensor> =
        weights.variables().into_iter().map(|(name, variable)| (name, variable.as_detached_tensor())).collect();
    let (mut worst, mut unmatched) = (0f64, 0);
    for (key, recorded) in loaded.trace() {
        let Some(name) = key.strip_prefix("train.final.") else { continue };
        match finals.get(name).filter(|ours| ours.dims() == recorded.dims()) {
            Some(ours) => worst = largest([worst, crate::check::largest_difference(ours, recorded)?].into_iter()),
            None => unmatched += 1,
        }
    }
    report.within("final weights of no parameter", f64::from(unmatched), 0.0);
    report.within("final weights", worst, 1e-2 * rates.iter().sum::<f64>());
    Ok(())
}
