//! Which sizes a model's configuration may have, asked before anything is computed from them or reserved for them: far
//! above any published model, and small enough that no product of a few overflows.

use std::ops::RangeInclusive;

/// Of a residual stream, of a head, or of a convolution.
pub const WIDTH: RangeInclusive<usize> = 1..=1 << 16;
/// Of a feed-forward layer.
pub const WIDE: RangeInclusive<usize> = 1..=1 << 20;
/// Blocks.
pub const LAYERS: RangeInclusive<usize> = 1..=1024;
/// Token ids; numbers up to 2^24 are exact in f32.
pub const IDS: RangeInclusive<usize> = 1..=1 << 24;
/// Positions of a sequence.
pub const POSITIONS: RangeInclusive<usize> = 1..=1 << 22;

/// Checks named sizes against the ranges that they must be in.
///
/// # Errors
/// Names the first that is not, and its range.
pub fn check(named: &[(&str, usize, RangeInclusive<usize>)]) -> Result<(), String> {
    match named.iter().find(|(_, size, range)| !range.contains(size)) {
        Some((name, size, range)) => Err(format!("{name} {size} is not within {} … {}", range.start(), range.end())),
        None => Ok(()),
    }
}

/// Checks named numbers, each of which must be finite and above 0.
///
/// # Errors
/// Names the first that is not.
pub fn check_positive(named: &[(&str, f64)]) -> Result<(), String> {
    let good = |number: f64| number > 0.0 && (number as f32).is_finite();
    match named.iter().find(|(_, number)| !good(*number)) {
        Some((name, number)) => Err(format!("{name} {number} is no number above 0")),
        None => Ok(()),
    }
}
