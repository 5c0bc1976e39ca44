//! Single queries that each see many keys of their own, such as pictures that are drawn code by code: nothing is shared, and
//! reading keys and values is what takes the time. They are read once, row by row for all heads of a task, so that memory is read
//! in order; they may be kept in bf16, which halves it. Sums are in f32. For CPUs with AVX-512.
//!
//! Numbers come in steps of 32, as two vectors: of f32 the first and the last sixteen, of bf16 the even and the odd ones. A query
//! is arranged in the same way, and the sums of values are put back in order.

use candle_core::{CpuStorage, Layout, Result};
use half::bf16;

use super::plan::Block;
use crate::simd;
use crate::storage::{HeadRows, SharedPointer};

/// Numbers of a step.
const STEP: usize = 32;
/// Fewest own keys of a query in f32 that takes this path; fewer are in the caches.
const OWN_FROM: usize = 96;

/// Whether heads of this size can be computed here.
pub(super) fn takes(d: usize) -> bool {
    d > 0 && d.is_multiple_of(STEP) && simd::avx512f()
}

/// Whether a block whose keys are in f32 is computed here: it has many keys of its own, and none that are shared by more.
pub(super) fn suits(block: &Block, d: usize) -> bool {
    let own = block.last_range().map_or(0, |range| range.len());
    let first = block.first_range().map_or(0, |range| range.len());
    block.rows == 1 && own >= OWN_FROM && own >= first && takes(d)
}

/// Rows of keys or values as they are kept.
#[derive(Clone, Copy)]
pub(super) enum KeptRows<'a> {
    F32(HeadRows<'a>),
    /// Rows of `stride` elements.
    Bf16(&'a [bf16], usize),
}

impl<'a> KeptRows<'a> {
    /// The rows of a tensor on the CPU that [`HeadRows::arrange`] gave.
    pub(super) fn new(storage: &'a CpuStorage, layout: &Layout) -> Result<Self> {
        match (storage, HeadRows::stride_of(layout)) {
            (CpuStorage::BF16(values), Some(stride)) => Ok(Self::Bf16(&values[layout.start_offset()..], stride)),
            _ => Ok(Self::F32(HeadRows::new(storage, layout)?)),
        }
    }
}

/// What a task is given: queries `[tq, heads, d]`, keys and values.
pub(super) struct Alone<'a> {
    pub(super) q: HeadRows<'a>,
    pub(super) k: KeptRows<'a>,
    pub(super) v: KeptRows<'a>,
    pub(super) d: usize,
    pub(super) scale: f32,
}

#[cfg(target_arch = "x86_64")]
impl Alone<'_> {
    /// Attention of one query in the heads from `head` on, as many as `out [heads, d]` holds; `normalizers [heads]` get the
    /// log-sum-exp of the scores.
    ///
    /// # Safety
    /// [`takes`] is true of `d`; the block has one query and at least one key, which lie in the inputs with all of these heads.
    pub(super) unsafe fn forward(
        &self,
        block: &Block,
        head: usize,
        scratch: &mut Vec<f32>,
        out: &mut [f32],
        normalizers: &mut [f32],
    ) {
        let first = head * self.d;
        let query = &self.q.data[block.query * self.q.stride + first..][..out.len()];
        // SAFETY: by the contract of this function.
        unsafe {
            match (self.k, self.v) {
                (KeptRows::F32(k), KeptRows::F32(v)) => {
                    let (k, v) = ((&k.data[first..], k.stride), (&v.data[first..], v.stride));
                    kernel::forward(block, query, self.d, self.scale, k, v, scratch, out, normalizers);
                }
                (KeptRows::Bf16(k, rows), KeptRows::Bf16(v, v_rows)) => {
                    let (k, v) = ((&k[first..], rows), (&v[first..], v_rows));
                    kernel::forward(block, query, self.d, self.scale, k, v, scratch, out, normalizers);
                }
                // Keys and values are kept in one type.
                _ => unreachable!("keys and values in different types"),
            }
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
impl Alone<'_> {
    pub(super) unsafe fn forward(&self, _: &Block, _: usize, _: &mut Vec<f32>, _: &mut [f32], _: &mut [f32]) {
        unreachable!("not available")
    }
}

#[cfg(target_arch = "x86_64")]
mod kernel {
    use std::arch::x86_64::*;

    use half::bf16;

    use super::super::block::{sections, soften_one};
    use super::super::plan::Block;
    use super::STEP;
    use crate::simd::lane_sums;

    /// Keys whose scores are computed together.
    const KEYS: usize = 4;
    /// Keys whose values are added before the sums go back to memory.
    const RUN: usize = 16;
    /// Steps whose sums stay in registers.
    const WIDE: usize = 8;
    /// Rows ahead of which memory is asked for the next ones.
    const AHEAD: usize = 8;

    /// A type in which keys and values are kept.
    pub(super) trait Kept: Copy {
        /// A step of numbers.
        ///
        /// # Safety
        /// They can be read, and the CPU has AVX-512.
        unsafe fn step(at: *const Self) -> [__m512; 2];

        /// The place of number `i` of a step in its two vectors.
        fn place(i: usize) -> usize;
    }

    impl Kept for f32 {
        #[inline]
        #[target_feature(enable = "avx512f")]
        unsafe fn step(at: *const Self) -> [__m512; 2] {
            // SAFETY: by the contract of the trait.
            unsafe { [_mm512_loadu_ps(at), _mm512_loadu_ps(at.add(16))] }
        }

        fn place(i: usize) -> usize {
            i
        }
    }

    impl Kept for bf16 {
        #[inline]
        #[target_feature(enable = "avx512f")]
        unsafe fn step(at: *const Self) -> [__m512; 2] {
            // SAFETY: by the contract of the trait.
            let both = unsafe { _mm512_loadu_si512(at.cast()) };
            let odd = _mm512_and_si512(both, _mm512_set1_epi32(0xffff_0000_u32 as i32));
            [_mm512_castsi512_ps(_mm512_slli_epi32::<16>(both)), _mm512_castsi512_ps(odd)]
        }

        fn place(i: usize) -> usize {
            i % 2 * 16 + i / 2
        }
    }

    /// [`super::Alone::forward`] over slices that begin at the first head.
    ///
    /// # Safety
    /// As there.
    #[target_feature(enable = "avx512f")]
    #[allow(clippy::too_many_arguments)]
    pub(super) unsafe fn forward<K: Kept>(
        block: &Block,
        query: &[f32],
        d: usize,
        scale: f32,
        (k, k_stride): (&[K], usize),
        (v, v_stride): (&[K], usize),
        scratch: &mut Vec<f32>,
        out: &mut [f32],
        normalizers: &mut [f32],
    ) {
        let keys = block.keys;
        let [arranged, sums, scores] = sections(scratch, [query.len(), query.len(), keys * normalizers.len()]);
        for (to, from) in arranged.chunks_exact_mut(STEP).zip(query.chunks_exact(STEP)) {
            from.iter().enumerate().for_each(|(i, x)| to[K::place(i)] = x * scale);
        }
        for (place, range) in block.places() {
            let rows = &k[range.start * k_stride..];
            // SAFETY: by the contract of this function.
            unsafe { own_scores(arranged, d, rows, k_stride, range.len(), &mut scores[place..], keys) };
        }
        for (weights, normalizer) in scores.chunks_exact_mut(keys).zip(&mut *normalizers) {
            let (sum, largest) = soften_one(weights);
            *normalizer = largest + sum.ln();
            let by = 1.0 / sum;
            weights.iter_mut().for_each(|weight| *weight *= by);
        }
        sums.fill(0.0);
        for (place, range) in block.places() {
            for from in (0..range.len()).step_by(RUN) {
                let count = RUN.min(range.len() - from);
                let rows = &v[(range.start + from) * v_stride..];
                // SAFETY: by the contract of this function.
                unsafe { add_values(sums, d, rows, v_stride, count, &scores[place + from..], keys) };
            }
        }
        for (to, from) in out.chunks_exact_mut(STEP).zip(sums.chunks_exact(STEP)) {
            to.iter_mut().enumerate().for_each(|(i, x)| *x = from[K::place(i)]);
        }
    }

    /// Scores of `count` keys: of each head its own row of `scores`, which begin `line` apart.
    ///
    /// # Safety
    /// The keys can be read, and `scores` can be written.
    #[target_feature(enable = "avx512f")]
    unsafe fn own_scores<K: Kept>(
        query: &[f32],
        d: usize,
        keys: &[K],
        stride: usize,
        count: usize,
        scores: &mut [f32],
        line: usize,
    ) {
        let width = query.len();
        for key in (0..count).step_by(KEYS) {
            let here = KEYS.min(count - key);
            let rows: [*const K; KEYS] = std::array::from_fn(|i| keys[(key + i.min(here - 1)) * stride..].as_ptr());
            // SAFETY: by the contract of this function; beyond the last key stands the last one again.
            unsafe {
                if here == KEYS {
                    for row in rows {
                        fetch(row.wrapping_add(AHEAD * stride), width);
                    }
                }
                for (head, query) in query.chunks_exact(d).enumerate() {
                    let mut sums = [_mm512_setzero_ps(); KEYS];
                    for at in (0..d).step_by(STEP) {
                        let q = <f32 as Kept>::step(query.as_ptr().add(at));
                        for (sum, row) in sums.iter_mut().zip(rows) {
                            let x = K::step(row.add(head * d + at));
                            *sum = _mm512_fmadd_ps(x[0], q[0], *sum);
                            *sum = _mm512_fmadd_ps(x[1], q[1], *sum);
                        }
                    }
                    let [a, b, c, e] = sums;
                    let mask = (1u8 << here) - 1;
                    let to = scores.as_mut_ptr().add(head * line + key);
                    let sums = _mm512_castps128_ps512(lane_sums(a, b, c, e));
                    _mm512_mask_storeu_ps(to, u16::from(mask), sums);
                }
            }
        }
    }

    /// Adds `count` rows of values by their weights, which of each head lie `line` apart.
    ///
    /// # Safety
    /// The rows and weights can be read.
    #[target_feature(enable = "avx512f")]
    unsafe fn add_values<K: Kept>(
        sums: &mut [f32],
        d: usize,
        rows: &[K],
        stride: usize,
        count: usize,
        weights: &[f32],
        line: usize,
    ) {
        let steps = sums.len() / STEP;
        let whole = steps - steps % WIDE;
        // SAFETY: by the contract of this function.
        unsafe {
            for step in (0..whole).step_by(WIDE) {
                add_steps::<K, WIDE>(sums, step, d, rows, stride, count, weights, line);
            }
            for step in whole..steps {
                add_steps::<K, 1>(sums, step, d, rows, stride, count, weights, line);
            }
        }
    }

    /// [`add_values`] in the steps `step .. step + N`.
    ///
    /// # Safety
    /// As there.
    #[inline]
    #[target_feature(enable = "avx512f")]
    #[allow(clippy::too_many_arguments)]
    unsafe fn add_steps<K: Kept, const N: usize>(
        sums: &mut [f32],
        step: usize,
        d: usize,
        rows: &[K],
        stride: usize,
        count: usize,
        weights: &[f32],
        line: usize,
    ) {
        // SAFETY: by the contract of this function.
        unsafe {
            let to = sums.as_mut_ptr().add(step * STEP);
            let mut all: [[__m512; 2]; N] = std::array::from_fn(|n| <f32 as Kept>::step(to.add(n * STEP)));
            let heads: [*const f32; N] = std::array::from_fn(|n| weights.as_ptr().add((step + n) * STEP / d * line));
            for key in 0..count {
                let row = rows.as_ptr().add(key * stride + step * STEP);
                fetch(row.wrapping_add(AHEAD * stride), N * STEP);
                for n in 0..N {
                    let weight = _mm512_set1_ps(*heads[n].add(key));
                    let x = K::step(row.add(n * STEP));
                    all[n] = [_mm512_fmadd_ps(x[0], weight, all[n][0]), _mm512_fmadd_ps(x[1], weight, all[n][1])];
                }
            }
            for (n, [a, b]) in all.into_iter().enumerate() {
                _mm512_storeu_ps(to.add(n * STEP), a);
                _mm512_storeu_ps(to.add(n * STEP + 16), b);
            }
        }
    }

    /// Asks memory for `count` numbers, which may lie anywhere.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn fetch<K: Kept>(at: *const K, count: usize) {
        let line = 64 / size_of::<K>();
        for offset in (0..count).step_by(line) {
            _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(offset).cast());
        }
    }
}

/// The tasks of single queries: which of them, and which heads. As few pieces of a row as keep all threads busy.
pub(super) fn heads_at_once(queries: usize, heads: usize) -> usize {
    let pieces = (4 * rayon::current_num_threads()).div_ceil(queries.max(1)).clamp(1, heads.max(1));
    heads.div_ceil(pieces)
}

/// A part of a query's result.
///
/// # Safety
/// `out` holds it, and no other task touches it.
pub(super) unsafe fn part<'a>(out: SharedPointer, at: usize, length: usize) -> &'a mut [f32] {
    // SAFETY: by the contract of this function.
    unsafe { std::slice::from_raw_parts_mut(out.at(at), length) }
}
