//! Seeds: every candidate of a run has its own, so any part can be repeated alone.

/// A seed for one part of a run, such as (stage, iteration, record, candidate): SplitMix64 folded over `parts`.
///
/// The order of the parts counts, and the numbers never change between versions: the files of a run depend on them.
/// A first part that equals `base` is lost (their mixtures cancel), so let it name the purpose, as a hash does.
pub fn derive_seed(base: u64, parts: &[u64]) -> u64 {
    let mix = |mut z: u64| {
        z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    parts.iter().fold(mix(base), |seed, part| mix(seed ^ mix(*part)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_stay_what_they_are() {
        // The first output of SplitMix64 seeded with 0, as Vigna's reference gives it.
        assert_eq!(derive_seed(0, &[]), 0xe220_a839_7b1d_cdaf);
        assert_ne!(derive_seed(0, &[1, 2]), derive_seed(0, &[2, 1]));
        assert_eq!(derive_seed(7, &[1, 2, 3]), 0x2192_a1a2_0b52_df02);
    }
}
