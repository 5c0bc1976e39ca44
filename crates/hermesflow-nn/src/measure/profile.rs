//! Where the time of a piece of work goes, by part of a model (matrix products, attention, norms, …).
//!
//! Before and after each part the device is synchronised, so that a part's time is its own. That slows the whole down, which
//! is why [`profile`] is a run of its own. A part inside another counts as the outer one: the products of attention are
//! attention. Time in candle's own backward passes belongs to no part.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use candle_core::{Device, Result};

/// A part of a model whose time is reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Matrix products with a weight.
    Products,
    /// Attention, its products included.
    Attention,
    /// LayerNorm and GroupNorm.
    Norms,
    /// Convolutions.
    Convolutions,
    /// Activations of a decoder's inner layer.
    Activations,
    /// Conversion of weights and gradients to the type of matrix products.
    Conversions,
    /// The vocabulary head with its log-probabilities.
    Head,
    /// The optimizer's step.
    Optimizer,
}

impl Part {
    /// All parts, in the order in which they are reported.
    pub const ALL: [Self; 8] = [
        Self::Products,
        Self::Attention,
        Self::Norms,
        Self::Convolutions,
        Self::Activations,
        Self::Conversions,
        Self::Head,
        Self::Optimizer,
    ];

    /// The part's name in reports, in lower case.
    pub fn label(self) -> &'static str {
        ["products", "attention", "norms", "convolutions", "activations", "conversions", "head", "optimizer"]
            [self as usize]
    }
}

/// Seconds that each part of a piece of work took, and the whole.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Profile {
    /// Seconds of each part, in the order of [`Part::ALL`].
    pub parts: [f64; Part::ALL.len()],
    /// Seconds from the beginning to the end of the work.
    pub all: f64,
}

impl Profile {
    /// Each part's name with its share of the whole, between 0 and 1, and last `rest`: what belongs to no part.
    ///
    /// Where threads work in parallel their parts may add up to more than the whole; shares are of that sum then.
    pub fn shares(&self) -> Vec<(&'static str, f64)> {
        let parts: f64 = self.parts.iter().sum();
        let whole = self.all.max(parts).max(f64::MIN_POSITIVE);
        let named = Part::ALL.iter().map(|part| (part.label(), self.parts[*part as usize] / whole));
        named.chain([("rest", (whole - parts) / whole)]).collect()
    }
}

static WATCHED: AtomicBool = AtomicBool::new(false);
static NANOSECONDS: [AtomicU64; Part::ALL.len()] = [const { AtomicU64::new(0) }; Part::ALL.len()];

thread_local! {
    static WITHIN: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work` on a device and reports where the time of the whole process went meanwhile.
///
/// # Errors
/// When the device cannot be synchronised.
pub fn profile<R>(device: &Device, work: impl FnOnce() -> R) -> Result<(R, Profile)> {
    NANOSECONDS.iter().for_each(|part| part.store(0, Ordering::Relaxed));
    device.synchronize()?;
    WATCHED.store(true, Ordering::Relaxed);
    let started = Instant::now();
    let result = work();
    WATCHED.store(false, Ordering::Relaxed);
    device.synchronize()?;
    let all = started.elapsed().as_secs_f64();
    let parts = NANOSECONDS.each_ref().map(|part| part.load(Ordering::Relaxed) as f64 / 1e9);
    Ok((result, Profile { parts, all }))
}

/// Runs `work`, a part of the work on `device`, and adds its time to the part while a profile is taken.
#[inline]
pub(crate) fn part<R>(part: Part, device: &Device, work: impl FnOnce() -> Result<R>) -> Result<R> {
    if !WATCHED.load(Ordering::Relaxed) || WITHIN.get() {
        return work();
    }
    device.synchronize()?;
    let started = Instant::now();
    WITHIN.set(true);
    let result = work();
    WITHIN.set(false);
    device.synchronize()?;
    NANOSECONDS[part as usize].fetch_add(started.elapsed().as_nanos() as u64, Ordering::Relaxed);
    result
}

/// [`part`] for work on the CPU.
#[inline]
pub(crate) fn on_host<R>(which: Part, work: impl FnOnce() -> Result<R>) -> Result<R> {
    part(which, &Device::Cpu, work)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::ops;
    use crate::testing::normal;

    #[test]
    fn the_time_of_parts_is_told_apart() {
        let (x, weight, ones) = (normal(&[300, 256]), normal(&[256, 256]), normal(&[256]));
        let work = || {
            let x = ops::layer_norm(&x, &ones, &ones, 1e-5)?;
            ops::linear(&x, &weight, None)
        };
        let (y, profile) = profile(&Device::Cpu, work).unwrap();
        assert_eq!(y.unwrap().dims(), [300, 256]);
        let [products, _, norms, ..] = profile.parts;
        assert!(products > 0.0 && norms > 0.0 && profile.all > 0.0, "{profile:?}");
        let shares = profile.shares();
        assert_eq!(
            shares.iter().map(|(name, _)| *name).collect::<Vec<_>>(),
            [
                "products",
                "attention",
                "norms",
                "convolutions",
                "activations",
                "conversions",
                "head",
                "optimizer",
                "rest"
            ]
        );
        assert!((shares.iter().map(|(_, share)| share).sum::<f64>() - 1.0).abs() < 1e-9);
        assert!(shares.iter().all(|(_, share)| (0.0..=1.0).contains(share)));
    }
}
