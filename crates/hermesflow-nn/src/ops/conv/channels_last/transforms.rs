//! Winograd's transforms for tiles of 4 × 4 results, sixteen channels at a time.

use super::lanes::{LANES, Lanes, each_cpu};
use super::panels::WIDTH;
use super::target::Target;
use super::tiling::{A, ACROSS, COLUMNS, M, Plan, RESULTS, ROWS, TILES};

/// The transform's points are 0, ±P, ±Q and infinity. With these the rounding error is about one and a half times that of a
/// plain sum, half of what the usual ±1 and ±2 lose.
const P: f32 = 0.625;
/// The second of the transform's points.
const Q: f32 = 1.5;
/// `P²`.
const P2: f32 = P * P;
/// `Q²`.
const Q2: f32 = Q * Q;

/// One dimension of the inputs' transform.
///
/// # Safety
/// The CPU has the instructions of the vectors.
#[inline(always)]
unsafe fn inward<L: Lanes>(d: [L; A]) -> [L; A] {
    // SAFETY: by the contract of this function.
    unsafe {
        let (even_p, odd_p) = (d[2].times_add(-Q2, d[4]), d[1].times_add(-Q2, d[3]).times(P));
        let (even_q, odd_q) = (d[2].times_add(-P2, d[4]), d[1].times_add(-P2, d[3]).times(Q));
        [
            d[0].times_add(P2 * Q2, d[2].times_add(-P2 - Q2, d[4])),
            even_p.add(odd_p),
            even_p.sub(odd_p),
            even_q.add(odd_q),
            even_q.sub(odd_q),
            d[1].times_add(P2 * Q2, d[3].times_add(-P2 - Q2, d[5])),
        ]
    }
}

/// One dimension of the results' transform.
///
/// # Safety
/// The CPU has the instructions of the vectors.
#[inline(always)]
unsafe fn outward<L: Lanes>(t: [L; A]) -> [L; M] {
    // SAFETY: by the contract of this function.
    unsafe {
        let (sum_p, difference_p) = (t[1].add(t[2]), t[1].sub(t[2]));
        let (sum_q, difference_q) = (t[3].add(t[4]), t[3].sub(t[4]));
        [
            t[0].add(sum_p).add(sum_q),
            difference_p.times_add(P, difference_q.times(Q)),
            sum_p.times_add(P2, sum_q.times(Q2)),
            difference_p.times_add(P * P2, difference_q.times_add(Q * Q2, t[5])),
        ]
    }
}

/// One dimension of the kernel's transform.
///
/// # Safety
/// The CPU has the instructions of the vectors.
#[inline(always)]
unsafe fn kernel_line<L: Lanes>(g: [L; 3]) -> [L; A] {
    const AT_0: f32 = 1.0 / (P2 * Q2);
    const AT_P: f32 = 1.0 / (2.0 * P2 * (P2 - Q2));
    const AT_Q: f32 = 1.0 / (2.0 * Q2 * (Q2 - P2));
    // SAFETY: by the contract of this function.
    unsafe {
        let (ends_p, middle_p) = (g[2].times_add(P2, g[0]).times(AT_P), g[1].times(P * AT_P));
        let (ends_q, middle_q) = (g[2].times_add(Q2, g[0]).times(AT_Q), g[1].times(Q * AT_Q));
        [g[0].times(AT_0), ends_p.add(middle_p), ends_p.sub(middle_p), ends_q.add(middle_q), ends_q.sub(middle_q), g[2]]
    }
}

each_cpu! {
    /// Transforms `kernels [≤ WIDTH, c, 3, 3]` into `to [PLACES, wide, WIDTH]`, with zeros for missing kernels and channels.
    ///
    /// # Safety
    /// `to` has room for [`Plan::kernel`] numbers.
    pub(super) unsafe fn transform_kernel(plan: Plan, c: usize, kernels: &[f32], to: *mut f32) = kernel_by
}

/// [`transform_kernel`] with vectors `L`.
///
/// # Safety
/// As there, on a CPU that has the vectors' instructions.
#[inline(always)]
unsafe fn kernel_by<L: Lanes>(plan: Plan, c: usize, kernels: &[f32], to: *mut f32) {
    let mut by_place = [[0f32; WIDTH]; 9];
    for channel in 0..plan.wide {
        for (lane, kernel) in kernels.chunks_exact(c * 9).enumerate() {
            for (place, line) in by_place.iter_mut().enumerate() {
                line[lane] = if channel < c { kernel[channel * 9 + place] } else { 0.0 };
            }
        }
        for half in (0..WIDTH).step_by(LANES) {
            // SAFETY: the places of this channel lie in the target.
            unsafe {
                let mut lines = [[L::load(by_place[0].as_ptr()); A]; 3];
                for (row, line) in lines.iter_mut().enumerate() {
                    let [a, b, c] = [0, 1, 2].map(|column| L::load(by_place[3 * row + column].as_ptr().add(half)));
                    *line = kernel_line([a, b, c]);
                }
                let [first, second, third] = lines;
                for (column, ((a, b), c)) in first.into_iter().zip(second).zip(third).enumerate() {
                    for (row, value) in kernel_line([a, b, c]).into_iter().enumerate() {
                        value.store(to.add(((row * A + column) * plan.wide + channel) * WIDTH + half));
                    }
                }
            }
        }
    }
}

each_cpu! {
    /// Transforms the tiles of a patch `[ROWS, COLUMNS, wide]` into `to [PLACES, TILES, apart]`.
    ///
    /// # Safety
    /// The patch has that size, and `to` has room for [`Plan::inputs`] numbers.
    pub(super) unsafe fn transform_inputs(plan: Plan, patch: &[f32], to: *mut f32) = inputs_by
}

/// [`transform_inputs`] with vectors `L`.
///
/// # Safety
/// As there, on a CPU that has the vectors' instructions.
#[inline(always)]
unsafe fn inputs_by<L: Lanes>(plan: Plan, patch: &[f32], to: *mut f32) {
    debug_assert!(patch.len() == ROWS * COLUMNS * plan.wide);
    for tile in 0..TILES {
        let corner = (tile / ACROSS * M * COLUMNS + tile % ACROSS * M) * plan.wide;
        for channel in (0..plan.wide).step_by(LANES) {
            // SAFETY: tiles and channels lie in the patch, and their places in the target.
            unsafe {
                let from = patch.as_ptr().add(corner + channel);
                let mut lines = [[L::load(from); A]; A];
                for (row, line) in lines.iter_mut().enumerate() {
                    for (column, value) in line.iter_mut().enumerate() {
                        *value = L::load(from.add((row * COLUMNS + column) * plan.wide));
                    }
                    *line = inward(*line);
                }
                let to = to.add(tile * plan.apart + channel);
                for column in 0..A {
                    let mut values = [lines[0][column]; A];
                    values.iter_mut().zip(&lines).for_each(|(value, line)| *value = line[column]);
                    for (row, value) in inward(values).into_iter().enumerate() {
                        value.store(to.add((row * A + column) * TILES * plan.apart));
                    }
                }
            }
        }
    }
}

each_cpu! {
    /// Transforms the results of a block of tiles in a panel of channels, `results [PLACES, TILES, WIDTH]`, and writes them to an
    /// image of the output, of height and width `size`, from the pixel `first` (row, column) on.
    ///
    /// # Safety
    /// No other thread writes these channels of these pixels.
    pub(super) unsafe fn transform_results(
        results: &[f32],
        target: &Target,
        size: (usize, usize),
        image: usize,
        first: (usize, usize),
        panel: usize,
    ) = results_by
}

/// [`transform_results`] with vectors `L`.
///
/// # Safety
/// As there, on a CPU that has the vectors' instructions.
#[inline(always)]
unsafe fn results_by<L: Lanes>(
    results: &[f32],
    target: &Target,
    (height, width): (usize, usize),
    image: usize,
    first: (usize, usize),
    panel: usize,
) {
    debug_assert!(results.len() == RESULTS);
    for tile in 0..TILES {
        let (top, left) = (first.0 + tile / ACROSS * M, first.1 + tile % ACROSS * M);
        if top >= height || left >= width {
            continue;
        }
        for half in (0..WIDTH).step_by(LANES) {
            let channel = panel * WIDTH + half;
            if channel >= target.o {
                break;
            }
            // SAFETY: tile and channels lie in the results; the pixels are in the output, by the checks.
            unsafe {
                let from = results.as_ptr().add(tile * WIDTH + half);
                let mut lines = [[L::load(from); M]; A];
                for (row, line) in lines.iter_mut().enumerate() {
                    let mut values = [L::load(from); A];
                    for (column, value) in values.iter_mut().enumerate() {
                        *value = L::load(from.add((row * A + column) * TILES * WIDTH));
                    }
                    *line = outward(values);
                }
                for column in 0..M.min(width - left) {
                    let mut values = [lines[0][column]; A];
                    values.iter_mut().zip(&lines).for_each(|(value, line)| *value = line[column]);
                    for (row, value) in outward(values).into_iter().enumerate().take(height - top) {
                        let pixel = (image * height + top + row) * width + left + column;
                        target.write_lanes(pixel, channel, value);
                    }
                }
            }
        }
    }
}
