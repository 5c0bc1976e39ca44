//! Where the time of a piece of work goes, part by part.
//!
//! The device is waited for at both ends of a part, so that its time is its own; all of it takes longer for that, which is
//! why this is a run apart. A part within another counts as the outer one (the products of attention as attention). What
//! candle's own backward passes take belongs to no part.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use candle_core::{Device, Result};

/// The parts that are told apart.
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
    /// Weights and gradients brought into the type of products.
    Conversions,
    /// The vocabulary head with its log-probabilities.
    Head,
    /// The optimizer's step.
    Optimizer,
}

impl Part {
    /// All of them, in order.
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

    /// Its name.
    pub fn label(self) -> &'static str {
        ["products", "attention", "norms", "convolutions", "activations", "conversions", "head", "optimizer"]
            [self as usize]
    }
}

/// Seconds of each part, and of all.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Profile {
    /// In the order of [`Part::ALL`].
    pub parts: [f64; Part::ALL.len()],
    /// From beginning to end.
    pub all: f64,
}

impl Profile {
    /// The shares of the parts, and last that of what belongs to none, by their names.
    ///
    /// Where several threads work side by side their parts may sum to more than all: shares are of the sum then.
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

/// Does `work` on a device and tells where its time went, and that of whatever else this process does meanwhile.
///
/// # Errors
/// When the device fails.
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

/// Reports a part of the work on a device.
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

/// As [`part`], of work that is on the host.
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
