//! Products `x Wᵀ` that read the weight where it lies, without packing it, on CPUs with AVX-512: in f32, or in bf16 with sums in
//! f32 (AVX512-BF16).
//!
//! In both operands the summed dimension is contiguous, so that each result of a tile of `ROWS × COLUMNS` has one vector of
//! partial sums. The order in which a result is summed does not depend on what else is computed: a row has the same bits
//! alone and in any batch.

use std::ops::Range;

use half::bf16;

use crate::measure::count;
use crate::parallel;
use crate::simd;
use crate::storage::SharedPointer;

/// Rows of `x` in a tile.
const ROWS: usize = 6;
/// Lines (rows) of the weight in a tile: columns of the result.
const COLUMNS: usize = 4;
/// Rows of `x` per block: with a part of the summed dimension they stay in a core's L2 cache while the weight is read once for
/// all of them.
const BLOCK: usize = 16 * ROWS;
/// Bytes of the summed dimension per pass: a tile's operands stay in the L1 cache, and adding up a vector's lanes at the end
/// costs little.
const DEPTH: usize = 4096;
/// Fewest lines of the weight per task.
const LINES: usize = 8 * COLUMNS;

/// A type of which the CPU multiplies whole vectors.
pub(crate) trait Element: Copy + Sync {
    /// Whether the CPU has the instructions and `HERMESFLOW_CPU` allows them.
    fn available() -> bool;

    /// `y [n, out] += x [n, depth] wᵀ [depth, out]` in the columns `lines`, over `part` of the summed dimension and the
    /// rows `rows`.
    ///
    /// # Safety
    /// [`Element::available`], and no other thread touches these columns.
    #[allow(clippy::too_many_arguments)]
    unsafe fn add_block(
        x: &[Self],
        w: &[Self],
        depth: usize,
        part: Range<usize>,
        rows: Range<usize>,
        lines: Range<usize>,
        y: SharedPointer,
        out: usize,
    );
}

/// One product `x Wᵀ + b` of `x [n, depth]` and `weight [out, depth]`.
pub(crate) struct Product<'a, T> {
    pub(crate) x: &'a [T],
    pub(crate) weight: &'a [T],
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) depth: usize,
}

impl<T: Element> Product<'_, T> {
    fn rows(&self) -> usize {
        self.x.len() / self.depth.max(1)
    }

    fn out(&self) -> usize {
        self.weight.len() / self.depth.max(1)
    }

    /// Computes the columns `lines` of the result `y`, which need not be initialised.
    ///
    /// # Safety
    /// [`Element::available`]; `y` has room for `[rows, out]`, and no other thread touches these columns.
    unsafe fn columns(&self, lines: Range<usize>, y: SharedPointer) {
        let (n, out, step) = (self.rows(), self.out(), DEPTH / size_of::<T>());
        // SAFETY: by the contract of this function.
        unsafe {
            for row in 0..n {
                let y = y.at(row * out + lines.start);
                match self.bias {
                    Some(bias) => y.copy_from_nonoverlapping(bias[lines.clone()].as_ptr(), lines.len()),
                    None => y.write_bytes(0, lines.len()),
                }
            }
            for from in (0..self.depth).step_by(step) {
                let part = from..(from + step).min(self.depth);
                for first in (0..n).step_by(BLOCK) {
                    let rows = first..(first + BLOCK).min(n);
                    T::add_block(self.x, self.weight, self.depth, part.clone(), rows, lines.clone(), y, out);
                }
            }
        }
    }
}

/// `x Wᵀ + b`, on CPUs where the type is [`Element::available`].
///
/// # Shapes
/// `[rows, out]`
pub(crate) fn linear<T: Element>(product: Product<'_, T>) -> Vec<f32> {
    linear_all(&[product]).pop().unwrap_or_default()
}

/// Several products, as [`linear`], that start and end together: the threads are woken and waited for once.
pub(crate) fn linear_all<T: Element>(products: &[Product<'_, T>]) -> Vec<Vec<f32>> {
    debug_assert!(T::available());
    let mut results: Vec<Vec<f32>> =
        products.iter().map(|product| Vec::with_capacity(product.rows() * product.out())).collect();
    let targets: Vec<SharedPointer> = results.iter_mut().map(|result| SharedPointer(result.as_mut_ptr())).collect();
    // Several tasks per thread, so that no thread waits long for the last one.
    let work: usize = products.iter().map(|product| product.weight.len()).sum();
    let share = work.div_ceil(8 * rayon::current_num_threads());
    let tasks: Vec<(usize, Range<usize>)> = products
        .iter()
        .enumerate()
        .flat_map(|(at, product)| {
            let lines = share.div_ceil(product.depth.max(1)).next_multiple_of(COLUMNS).max(LINES);
            let out = product.out();
            (0..out).step_by(lines).map(move |first| (at, first..(first + lines).min(out)))
        })
        .collect();
    let all = products.iter().map(|product| product.x.len() * product.out()).sum();
    count::product((all, 1, 1), true, || {
        parallel::each(tasks.len(), |task| {
            let (at, lines) = &tasks[task];
            // SAFETY: the type is available, as the caller promises; no other task has these columns.
            unsafe { products[*at].columns(lines.clone(), targets[*at]) };
        });
    });
    for (result, product) in results.iter_mut().zip(products) {
        // SAFETY: the tasks have written every column of every row.
        unsafe { result.set_len(product.rows() * product.out()) };
    }
    results
}

/// The numbers rounded to the nearest bf16.
pub(crate) fn rounded(x: &[f32]) -> Vec<bf16> {
    use half::slice::HalfFloatSliceExt;
    const RUN: usize = 1 << 13;
    let mut y = vec![bf16::ZERO; x.len()];
    parallel::each_run(&mut y, RUN, |at, to| to.convert_from_f32_slice(&x[at * RUN..][..to.len()]));
    y
}

/// Implements [`Element`] with vectors of `$wide` elements: `$load` reads one, `$load_few` its first few elements, and
/// `$multiply_add` adds the products of two to a vector of sums.
macro_rules! element {
    ($type:ty, $features:literal, $available:expr, $wide:literal, $load:expr, $load_few:expr, $multiply_add:expr) => {
        #[cfg(target_arch = "x86_64")]
        const _: () = {
            use std::arch::x86_64::*;

            use crate::simd::lane_sums;

            /// `y[r][c] += Σ x[r][i]·w[c][i]` over `length` elements; rows of `x` and lines of `w` are `depth` apart, rows of
            /// `y` are `out` apart. With `PREFETCH` the next `C` lines of `w` are prefetched: few rows are done with a line
            /// before the CPU's own prefetcher asks for the next one.
            ///
            /// # Safety
            /// The CPU has the instructions; the operands can be read, and `y` can be read and written, in these shapes.
            #[target_feature(enable = $features)]
            unsafe fn tile<const R: usize, const C: usize, const PREFETCH: bool>(
                x: *const $type,
                w: *const $type,
                depth: usize,
                length: usize,
                y: *mut f32,
                out: usize,
            ) {
                // SAFETY: by the contract of this function; the rest after the last whole vector is read under a mask.
                unsafe {
                    let mut sums = [[_mm512_setzero_ps(); C]; R];
                    let mut at = 0;
                    while at + $wide <= length {
                        let mut lines = [$load(w.add(at)); C];
                        for c in 1..C {
                            lines[c] = $load(w.add(c * depth + at));
                        }
                        if PREFETCH {
                            for c in C..2 * C {
                                _mm_prefetch::<_MM_HINT_T0>(w.wrapping_add(c * depth + at).cast());
                            }
                        }
                        for r in 0..R {
                            let row = $load(x.add(r * depth + at));
                            for c in 0..C {
                                sums[r][c] = $multiply_add(sums[r][c], row, lines[c]);
                            }
                        }
                        at += $wide;
                    }
                    if at < length {
                        for r in 0..R {
                            let row = $load_few(x.add(r * depth + at), length - at);
                            for c in 0..C {
                                let line = $load_few(w.add(c * depth + at), length - at);
                                sums[r][c] = $multiply_add(sums[r][c], row, line);
                            }
                        }
                    }
                    for r in 0..R {
                        let y = y.add(r * out);
                        if let &[a, b, c, d] = &sums[r][..] {
                            _mm_storeu_ps(y, _mm_add_ps(_mm_loadu_ps(y), lane_sums(a, b, c, d)));
                        } else {
                            sums[r].iter().enumerate().for_each(|(c, sum)| *y.add(c) += _mm512_reduce_add_ps(*sum));
                        }
                    }
                }
            }

            /// [`Element::add_block`], compiled for the instructions.
            ///
            /// # Safety
            /// The CPU has the instructions, and no other thread touches these columns of `y`.
            #[target_feature(enable = $features)]
            #[allow(clippy::too_many_arguments)]
            unsafe fn block(
                x: &[$type],
                w: &[$type],
                depth: usize,
                part: Range<usize>,
                rows: Range<usize>,
                lines: Range<usize>,
                y: SharedPointer,
                out: usize,
            ) {
                let length = part.len();
                for line in lines.clone().step_by(COLUMNS) {
                    let columns = COLUMNS.min(lines.end - line);
                    let w = w[line * depth + part.start..].as_ptr();
                    for row in rows.clone().step_by(ROWS) {
                        let x = x[row * depth + part.start..].as_ptr();
                        // SAFETY: the tile's operands lie in x and w, its results in y, in columns of this task alone.
                        unsafe {
                            let y = y.at(row * out + line);
                            match (ROWS.min(rows.end - row), columns) {
                                (6, 4) if row == rows.start => tile::<6, 4, true>(x, w, depth, length, y, out),
                                (6, 4) => tile::<6, 4, false>(x, w, depth, length, y, out),
                                (5, 4) => tile::<5, 4, true>(x, w, depth, length, y, out),
                                (4, 4) => tile::<4, 4, true>(x, w, depth, length, y, out),
                                (3, 4) => tile::<3, 4, true>(x, w, depth, length, y, out),
                                (2, 4) => tile::<2, 4, true>(x, w, depth, length, y, out),
                                (1, 4) => tile::<1, 4, true>(x, w, depth, length, y, out),
                                (rows, columns) => {
                                    for (r, c) in (0..rows).flat_map(|r| (0..columns).map(move |c| (r, c))) {
                                        let (x, w) = (x.add(r * depth), w.add(c * depth));
                                        tile::<1, 1, false>(x, w, depth, length, y.add(r * out + c), out);
                                    }
                                }
                            }
                        }
                    }
                }
            }

            impl Element for $type {
                fn available() -> bool {
                    $available
                }

                unsafe fn add_block(
                    x: &[Self],
                    w: &[Self],
                    depth: usize,
                    part: Range<usize>,
                    rows: Range<usize>,
                    lines: Range<usize>,
                    y: SharedPointer,
                    out: usize,
                ) {
                    // SAFETY: by the contract of the trait.
                    unsafe { block(x, w, depth, part, rows, lines, y, out) }
                }
            }
        };

        #[cfg(not(target_arch = "x86_64"))]
        impl Element for $type {
            fn available() -> bool {
                false
            }

            unsafe fn add_block(
                _: &[Self],
                _: &[Self],
                _: usize,
                _: Range<usize>,
                _: Range<usize>,
                _: Range<usize>,
                _: SharedPointer,
                _: usize,
            ) {
                unreachable!("not available")
            }
        }
    };
}

element!(
    f32,
    "avx512f",
    simd::avx512f(),
    16,
    |at| _mm512_loadu_ps(at),
    |at, few: usize| _mm512_maskz_loadu_ps((1u16 << few) - 1, at),
    |sum, row, line| _mm512_fmadd_ps(row, line, sum)
);

element!(
    half::bf16,
    "avx512f,avx512bw,avx512bf16",
    simd::bf16(),
    32,
    |at: *const half::bf16| std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(at.cast())),
    |at: *const half::bf16, few: usize| {
        std::mem::transmute::<__m512i, __m512bh>(_mm512_maskz_loadu_epi16((1u32 << few) - 1, at.cast()))
    },
    |sum, row, line| _mm512_dpbf16_ps(sum, row, line)
);
