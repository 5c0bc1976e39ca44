//! The sizes that a model's configuration may have. They are checked before anything is computed from them or reserved for them.
//! The limits are far above any published model, and small enough that a product of a few sizes does not overflow.

use std::ops::RangeInclusive;

/// The size of a residual stream, of a head, or of a convolution's channels.
pub const WIDTH: RangeInclusive<usize> = 1..=1 << 16;
/// The inner size of a feed-forward layer.
pub const WIDE: RangeInclusive<usize> = 1..=1 << 20;
/// The number of blocks (layers).
pub const LAYERS: RangeInclusive<usize> = 1..=1024;
/// The size of a vocabulary: ids up to 2^24 are exact in f32.
pub const IDS: RangeInclusive<usize> = 1..=1 << 24;
/// The number of positions of a sequence.
pub const POSITIONS: RangeInclusive<usize> = 1..=1 << 22;

/// Checks sizes, each with its name, against their allowed ranges.
///
/// # Errors
/// Names the first size outside its range, and the range.
pub fn check_ranges(named: &[(&str, usize, RangeInclusive<usize>)]) -> Result<(), String> {
    match named.iter().find(|(_, size, range)| !range.contains(size)) {
        Some((name, size, range)) => Err(format!("{name} {size} is not within {} … {}", range.start(), range.end())),
        None => Ok(()),
    }
}

/// Checks that numbers, each with its name, are finite and above 0 (in f32).
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
