//! Which vector instructions this CPU has, and loops that are compiled for each of them: AVX-512, AVX2 and the baseline, chosen
//! at run time.
//!
//! The bodies are ordinary loops over slices that the compiler vectorises. Reductions keep [`LANES`] partial results, whatever
//! the instructions, which fixes the order of their sums.

/// Partial results of a reduction: the f32 lanes of an AVX-512 vector.
pub(crate) const LANES: usize = 16;

/// The words of the environment variable `HERMESFLOW_CPU`, separated by commas.
pub(crate) fn words() -> &'static [String] {
    static WORDS: std::sync::OnceLock<Vec<String>> = std::sync::OnceLock::new();
    WORDS.get_or_init(|| {
        let named = std::env::var("HERMESFLOW_CPU").unwrap_or_default();
        named.split(',').map(|name| name.trim().to_owned()).collect()
    })
}

/// The instruction sets that `HERMESFLOW_CPU` can forbid.
pub(crate) const SETS: [&str; 4] = ["avx2", "avx512", "bf16", "amx"];

/// Whether `HERMESFLOW_CPU` allows an instruction set. The variable names those to do without, such as `no-avx512,no-bf16`, so
/// that the code for other machines can be tried on this one.
pub(crate) fn allowed(set: &str) -> bool {
    !words().iter().any(|name| name.strip_prefix("no-") == Some(set))
}

/// Whether `HERMESFLOW_CPU=plain` asks for compositions of candle's operators on the CPU, as any other device runs them.
pub(crate) fn plain() -> bool {
    words().iter().any(|name| name == "plain")
}

/// Whether AVX-512 F can be used.
pub(crate) fn avx512f() -> bool {
    #[cfg(target_arch = "x86_64")]
    return allowed("avx512") && std::arch::is_x86_feature_detected!("avx512f");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Whether AVX512-BF16, products of bf16 with sums in f32, can be used.
pub(crate) fn bf16() -> bool {
    #[cfg(target_arch = "x86_64")]
    return allowed("bf16")
        && allowed("avx512")
        && std::arch::is_x86_feature_detected!("avx512bf16")
        && std::arch::is_x86_feature_detected!("avx512bw")
        && std::arch::is_x86_feature_detected!("avx512f");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Whether AVX-512 F, BW, VL and DQ can be used, with AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[inline]
pub(crate) fn avx512() -> bool {
    use std::arch::is_x86_feature_detected as detected;
    allowed("avx512")
        && detected!("avx512f")
        && detected!("avx512bw")
        && detected!("avx512vl")
        && detected!("avx512dq")
        && detected!("avx2")
        && detected!("fma")
}

/// Whether AVX2 and FMA can be used.
#[cfg(target_arch = "x86_64")]
#[inline]
pub(crate) fn avx2() -> bool {
    use std::arch::is_x86_feature_detected as detected;
    allowed("avx2") && detected!("avx2") && detected!("fma")
}

/// Declares functions whose body is compiled for AVX-512, for AVX2 and for the baseline; each call runs the best of them.
macro_rules! vectorised {
    ($($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $ret:ty)? $body:block)*) => {$(
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name($($arg: $type),*) $(-> $ret)? {
            #[inline(always)]
            #[allow(clippy::too_many_arguments)]
            fn body($($arg: $type),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")]
                #[allow(clippy::too_many_arguments)]
                fn avx512($($arg: $type),*) $(-> $ret)? {
                    body($($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                #[allow(clippy::too_many_arguments)]
                fn avx2($($arg: $type),*) $(-> $ret)? {
                    body($($arg),*)
                }
                if $crate::simd::avx512() {
                    // SAFETY: the instruction sets were just detected.
                    return unsafe { avx512($($arg),*) };
                }
                if $crate::simd::avx2() {
                    // SAFETY: the instruction sets were just detected.
                    return unsafe { avx2($($arg),*) };
                }
            }
            body($($arg),*)
        }
    )*};
}
pub(crate) use vectorised;

/// `e^x` to about one unit in the last place, without branches; 0 for `x < -87.3` (below the smallest normal number), and
/// `e^88` for any `x` above 88.
///
/// Cody-Waite reduction to `|r| <= ln 2 / 2` and the degree-6 polynomial of the Cephes library's `expf`.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to an integer
    let clamped = if x < 88.0 { x } else { 88.0 };
    let clamped = if clamped > -87.3 { clamped } else { -87.3 };
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = clamped - n * 0.693_359_4;
    let r = r - n * -2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    p = p * r * r + r + 1.0;
    let power = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    if x < -87.3 { 0.0 } else { p * power }
}

/// Sum of the partial results, in order. (Summing halves would be shorter, but then the compiler also splits the loop that fills
/// the lanes.)
#[inline(always)]
pub(crate) fn sum_lanes(lanes: [f32; LANES]) -> f32 {
    lanes.iter().sum()
}

/// Largest element; negative infinity if there is none.
#[inline(always)]
pub(crate) fn max(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, &v) in lanes.iter_mut().zip(chunk) {
            *lane = if v > *lane { v } else { *lane };
        }
    }
    let mut best = f32::NEG_INFINITY;
    for &v in lanes.iter().chain(rest) {
        best = if v > best { v } else { best };
    }
    best
}

/// Sum of `term(x)` over the elements.
#[inline(always)]
pub(crate) fn sum_by(x: &[f32], term: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, &v) in lanes.iter_mut().zip(chunk) {
            *lane += term(v);
        }
    }
    let mut total = sum_lanes(lanes);
    for &v in rest {
        total += term(v);
    }
    total
}

/// Sum of the products of the elements, up to the end of the shorter slice.
#[inline(always)]
pub(crate) fn dot(x: &[f32], y: &[f32]) -> f32 {
    let mut lanes = [0f32; LANES];
    let (xs, x_rest) = x.as_chunks::<LANES>();
    let (ys, y_rest) = y.as_chunks::<LANES>();
    for (a, b) in xs.iter().zip(ys) {
        for ((lane, &a), &b) in lanes.iter_mut().zip(a).zip(b) {
            *lane += a * b;
        }
    }
    let mut total = sum_lanes(lanes);
    for (&a, &b) in x_rest.iter().zip(y_rest) {
        total += a * b;
    }
    total
}

vectorised! {
    /// Largest element and sum of `e^(x - largest)`.
    pub(crate) fn max_and_sum_exp(x: &[f32]) -> (f32, f32) {
        let largest = max(x);
        (largest, sum_by(x, |v| exp(v - largest)))
    }

    /// Adds `x` to `y`.
    pub(crate) fn add_to(y: &mut [f32], x: &[f32]) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y += x;
        }
    }
}

/// The sum of each of four vectors' lanes.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) fn lane_sums(
    a: std::arch::x86_64::__m512,
    b: std::arch::x86_64::__m512,
    c: std::arch::x86_64::__m512,
    d: std::arch::x86_64::__m512,
) -> std::arch::x86_64::__m128 {
    use std::arch::x86_64::*;
    let pairs = |a, b| _mm512_castps_pd(_mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b)));
    let (ab, cd) = (pairs(a, b), pairs(c, d));
    // a, b, c, d in each of the four quarters.
    let quarters =
        _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd)), _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd)));
    let halves = _mm256_add_ps(
        _mm512_castps512_ps256(quarters),
        _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(quarters))),
    );
    _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps::<1>(halves))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_good_to_two_units_in_the_last_place() {
        let mut worst = 0f64;
        for i in 0..2_000_000 {
            let x = -87.0 + i as f32 * (175.0 / 2_000_000.0);
            let exact = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) / exact - 1.0).abs());
        }
        assert!(worst < 2.0 * f64::from(f32::EPSILON), "{worst}");
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-100.0), 0.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert!(exp(1000.0).is_finite());
    }

    #[test]
    fn reductions_agree_with_plain_sums() {
        for n in [0, 1, 15, 16, 17, 100] {
            let x: Vec<f32> = (0..n).map(|i| (i as f32 * 0.7).sin()).collect();
            let largest = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            assert_eq!(max(&x), largest);
            let dotted: f32 = x.iter().map(|v| v * v).sum();
            assert!((dot(&x, &x) - dotted).abs() < 1e-5);
            let summed: f64 = x.iter().map(|&v| f64::from(v).exp()).sum();
            let (_, sum) = max_and_sum_exp(&x);
            assert!((f64::from(sum) * f64::from(largest.exp()) - summed).abs() < 1e-4 * summed.max(1.0) || n == 0);
        }
    }
}
