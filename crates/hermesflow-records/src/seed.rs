//! Seeds of random numbers: every candidate of a run has its own, so any part of a run can be repeated alone.

/// The seed of one part of a run, for example of (stage, iteration, record, candidate): SplitMix64 folded over `parts`.
///
/// The order of the parts matters. The seeds never change between versions, because the files of a run depend on them.
/// `base` is mixed twice, so that it and the first part cannot cancel or be exchanged.
pub fn derive_seed(base: u64, parts: &[u64]) -> u64 {
    let mix = |mut z: u64| {
        z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    parts.iter().fold(mix(mix(base)), |seed, part| mix(seed ^ mix(*part)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_stay_what_they_are() {
        assert_eq!(derive_seed(0, &[]), 12_035_550_249_420_947_055);
        assert_ne!(derive_seed(1, &[2]), derive_seed(2, &[1]));
        assert_ne!(derive_seed(1, &[1]), derive_seed(2, &[2]));
        assert_ne!(derive_seed(0, &[1, 2]), derive_seed(0, &[2, 1]));
        assert_eq!(derive_seed(7, &[1, 2, 3]), 0x489f_3f00_b4b0_6529);
    }
}
