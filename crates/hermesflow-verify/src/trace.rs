//! A recorded trace of training, replayed step by step.

use candle_core::Tensor;
use candle_core::backprop::GradStore;
use hermesflow_train::AdamW;

use crate::Result;
use crate::check::{Report, largest};

/// Takes a step of `optimizer` for each recorded row (the loss, that of images, that of captions, the gradient's norm) and compares
/// these, relative to what was recorded: over the first five steps within `tolerance`, later within 1 %. `losses` are those of
/// images and captions on the recorded batch, `backward` gives the gradients of their sum.
///
/// # Errors
/// When the model fails.
pub(crate) fn replay<L: AsRef<[Tensor]>>(
    optimizer: &mut AdamW,
    (recorded, rates): (&Tensor, &[f64]),
    tolerance: f64,
    losses: impl Fn() -> Result<L>,
    backward: impl Fn(&Tensor) -> candle_core::Result<GradStore>,
    report: &mut Report,
) -> Result<()> {
    let (mut first, mut later) = (0f64, 0f64);
    for (step, (recorded, rate)) in recorded.to_vec2::<f32>()?.iter().zip(rates).enumerate() {
        let losses = losses()?;
        let losses = losses.as_ref();
        let total = (&losses[0] + &losses[1])?;
        let mut sums = optimizer.gradients();
        sums.add(optimizer.parameters(), &backward(&total)?)?;
        let sum = sums.sum()?;
        let scalar = |tensor: &Tensor| -> Result<f64> { Ok(f64::from(tensor.to_scalar::<f32>()?)) };
        let ours = [scalar(&total)?, scalar(&losses[0])?, scalar(&losses[1])?, sum.norm(optimizer.parameters())?];
        let error = largest(ours.iter().zip(recorded).map(|(a, b)| (a - f64::from(*b)) / f64::from(*b)));
        let worst = if step < 5 { &mut first } else { &mut later };
        *worst = largest([*worst, error].into_iter());
        optimizer.step(&sum, *rate, 1.0)?;
    }
    report.within("training trace, first five steps (relative)", first, tolerance);
    report.within("training trace, later steps (relative)", later, 1e-2);
    Ok(())
}
