//! The recorded optimizer steps on the recorded pairs.

use hermesflow_nn::gradients;
use hermesflow_train::AdamW;

use super::Loaded;
use super::pairs::{Batch, references};
use crate::Result;
use crate::check::{Report, largest, values};
use crate::trace;

/// The share of final weights that may be further off than the others: Adam makes a full step of a gradient that is zero
/// but for rounding.
const OUTLIERS: f64 = 1e-3;

pub(super) fn replay(loaded: &Loaded, report: &mut Report) -> Result<()> {
    let case = &loaded.case;
    let rates = case.optimizer.rates(&case.schedule, case.steps);
    let (recorded, trace) = (values(loaded.get("train.lr")?)?, loaded.get("train.loss_t2i_mmu_gradnorm")?);
    if recorded.len() != rates.len() || trace.dims() != [case.steps, 4] {
        report.fail("training trace", format!("shape {:?}, the case has {} steps", trace.dims(), case.steps));
        return Ok(());
    }
    report.within("learning rates", largest(rates.iter().zip(&recorded).map(|(a, b)| a - f64::from(*b))), 1e-8);
    let policy = loaded.model.trainable(&case.trained)?;
    let mut optimizer = AdamW::new(policy.weights().variables(), case.optimizer.settings())?;
    let (batch, references) = (Batch::new(loaded, &loaded.features)?, references(loaded)?);
    let losses = || batch.losses(&policy, &references);
    trace::replay(&mut optimizer, (trace, &rates), 3e-4, losses, gradients::backward, report)?;
    final_weights(loaded, &optimizer, 1e-2 * rates.iter().sum::<f64>(), report)
}

/// Every trained weight after the last step.
fn final_weights(loaded: &Loaded, optimizer: &AdamW, tolerance: f64, report: &mut Report) -> Result<()> {
    let mut recorded = loaded.below("train.final.");
    let (mut outliers, mut count, mut worst, mut missing) = (0usize, 0usize, 0f64, 0);
    for (name, variable) in optimizer.parameters() {
        let Some(theirs) = recorded.remove(name.as_str()).filter(|theirs| theirs.dims() == variable.dims()) else {
            missing += 1;
            continue;
        };
        let (ours, theirs) = (values(&variable.as_detached_tensor())?, values(theirs)?);
        for (a, b) in ours.iter().zip(&theirs) {
            let off = (f64::from(*a) - f64::from(*b)).abs();
            worst = largest([worst, off].into_iter());
            outliers += usize::from(off > tolerance || off.is_nan());
            count += 1;
        }
    }
    report.within("final weights without a recorded twin", f64::from(missing), 0.0);
    report.within("final weights of no parameter", recorded.len() as f64, 0.0);
    let share = outliers as f64 / count.max(1) as f64;
    report.within(format!("share of final weights off by more than {tolerance:.1e}"), share, OUTLIERS);
    // No weight can be further off than all steps could move it, there and back.
    report.within("final weights", worst, 2e2 * tolerance);
    Ok(())
}
