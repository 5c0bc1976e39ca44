//! The product by AVX-512: of pairs in bf16, and of numbers in f32.

use std::arch::x86_64::*;
use std::ops::Range;

use half::bf16;
use rayon::prelude::*;

use super::{Matrix, Start, Values};

/// Rows and columns of a tile: 24 vectors of sums leave registers for two of the right operand and one of the left.
const ROWS: usize = 12;
const COLUMNS: usize = 32;
/// The most lanes of the summed dimension that are taken at a time.
const DEPTH: usize = 768;
/// Lanes of the left operand that a task multiplies with what passes by: a quarter of a core's second cache.
const BLOCK: usize = 64 << 10;
/// Lanes of each operand that are packed at a time: an eighth of the third cache.
const PACKED: usize = 1 << 20;

/// Sixteen lanes, as a vector takes them.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Vector(#[allow(dead_code)] [u32; 16]);

/// A packed operand: panels of so many lines, lane by lane. Only what was packed may be read.
struct PackedOperand(Vec<Vector>);

/// An element that is packed as it is.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Exact(#[allow(dead_code)] f32);

/// A pointer that tasks share, each for its own part.
#[derive(Clone, Copy)]
struct Place<T>(*mut T);

// SAFETY: the users write disjoint parts, as each of them states.
unsafe impl<T> Send for Place<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Place<T> {}

impl<T> Place<T> {
    /// # Safety
    /// The offset lies inside the allocation.
    unsafe fn at(self, offset: usize) -> *mut T {
        // SAFETY: by the contract of this function.
        unsafe { self.0.add(offset) }
    }
}

impl PackedOperand {
    /// Room for `lines` in panels of `WIDTH`, over `lanes` of the summed dimension.
    fn new<const WIDTH: usize>(lines: usize, lanes: usize) -> Self {
        Self(Vec::with_capacity((lines.next_multiple_of(WIDTH) * lanes).div_ceil(16)))
    }

    /// Packs `lines` of a matrix whose columns are the summed dimension, over `part` of that.
    ///
    /// # Safety
    /// The CPU has the instructions, and there is room.
    unsafe fn fill<const WIDTH: usize>(&mut self, matrix: Matrix<'_>, lines: Range<usize>, part: Range<usize>) {
        let (to, lanes) = (Place(self.0.as_mut_ptr().cast::<u32>()), part.len().div_ceil(matrix.in_a_lane()));
        (0..lines.len().div_ceil(WIDTH)).into_par_iter().with_min_len(4).for_each(|panel| {
            let first = lines.start + panel * WIDTH;
            let few = WIDTH.min(lines.end - first);
            // SAFETY: by the contract of this function; each panel is one task's.
            unsafe {
                let to = to.at(panel * WIDTH * lanes);
                match matrix.values {
                    Values::Wide(values) if matrix.exact => {
                        let values = std::slice::from_raw_parts(values.as_ptr().cast::<Exact>(), values.len());
                        pack::<Exact, WIDTH>(to, values, matrix, first, few, part.clone());
                    }
                    Values::Wide(values) => pack::<f32, WIDTH>(to, values, matrix, first, few, part.clone()),
                    Values::Brain(values) => pack::<bf16, WIDTH>(to, values, matrix, first, few, part.clone()),
                }
            }
        });
    }

    fn start(&self) -> Place<u32> {
        Place(self.0.as_ptr().cast_mut().cast())
    }
}

/// # Safety
/// As [`super::run`]; the CPU has AVX512-BF16, and nothing is empty.
pub(super) unsafe fn run(out: *mut f32, lhs: Matrix<'_>, rhs: Matrix<'_>, start: Start<'_>) {
    let (m, n, k) = (lhs.rows, rhs.columns, lhs.columns);
    let each = lhs.in_a_lane();
    assert_eq!(each, rhs.in_a_lane());
    let all = k.div_ceil(each);
    let lanes = all.div_ceil(all.div_ceil(DEPTH));
    let depth = lanes * each;
    let most = |width: usize, lines: usize| (PACKED / lanes / width * width).min(lines.next_multiple_of(width));
    let (high, wide) = (most(ROWS, m), most(COLUMNS, n));
    let (mut left, mut right) = (PackedOperand::new::<ROWS>(high, lanes), PackedOperand::new::<COLUMNS>(wide, lanes));
    let out = Place(out);
    for column in (0..n).step_by(wide) {
        let columns = column..(column + wide).min(n);
        for from in (0..k).step_by(depth) {
            let part = from..(from + depth).min(k);
            let start = if from == 0 { start } else { Start::Kept };
            // SAFETY: the caller knows the CPU; there is room for `wide` columns and `high` rows.
            unsafe { right.fill::<COLUMNS>(rhs.t(), columns.clone(), part.clone()) };
            for row in (0..m).step_by(high) {
                let rows = row..(row + high).min(m);
                // SAFETY: as above; both are packed, and out is [m, n] by the contract of this function.
                unsafe {
                    left.fill::<ROWS>(lhs, rows.clone(), part.clone());
                    let lanes = part.len().div_ceil(each);
                    match each {
                        1 => tasks::<true>(out, n, &left, &right, rows, columns.clone(), lanes, start),
                        _ => tasks::<false>(out, n, &left, &right, rows, columns.clone(), lanes, start),
                    }
                }
            }
        }
    }
}

/// All tiles of packed rows and columns; `EXACT` are numbers in f32, others pairs in bf16.
///
/// # Safety
/// As [`run`]; the operands are packed.
#[allow(clippy::too_many_arguments)]
unsafe fn tasks<const EXACT: bool>(
    out: Place<f32>,
    stride: usize,
    left: &PackedOperand,
    right: &PackedOperand,
    rows: Range<usize>,
    columns: Range<usize>,
    lanes: usize,
    start: Start<'_>,
) {
    let (down, across) = (rows.len().div_ceil(ROWS), columns.len().div_ceil(COLUMNS));
    let tall = (BLOCK / lanes / ROWS).clamp(1, down);
    let down_tasks = down.div_ceil(tall);
    // Several tasks a thread, so that none waits long for the last one.
    let across_tasks = (8 * rayon::current_num_threads()).div_ceil(down_tasks).min(across);
    let broad = across.div_ceil(across_tasks);
    let (left, right) = (left.start(), right.start());
    (0..down_tasks * across.div_ceil(broad)).into_par_iter().for_each(|task| {
        let (down_from, across_from) = (task % down_tasks * tall, task / down_tasks * broad);
        let block = Block {
            down: down_from..(down_from + tall).min(down),
            across: across_from..(across_from + broad).min(across),
            rows: rows.clone(),
            columns: columns.clone(),
            lanes,
            stride,
        };
        // SAFETY: by the contract of this function; the tiles of a task are its alone.
        unsafe { block.run::<EXACT>(out, left, right, start) }
    });
}

/// The tiles of a task.
struct Block {
    /// Panels of the left and of the right operand.
    down: Range<usize>,
    across: Range<usize>,
    /// What the operands hold.
    rows: Range<usize>,
    columns: Range<usize>,
    lanes: usize,
    /// The distance of two rows of the result.
    stride: usize,
}

impl Block {
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn run<const EXACT: bool>(&self, out: Place<f32>, left: Place<u32>, right: Place<u32>, start: Start<'_>) {
        for panel in self.across.clone() {
            let column = self.columns.start + panel * COLUMNS;
            let few = COLUMNS.min(self.columns.end - column);
            let masks = [mask(few), mask(few.saturating_sub(16))];
            for strip in self.down.clone() {
                let row = self.rows.start + strip * ROWS;
                let rows = ROWS.min(self.rows.end - row);
                // SAFETY: the panels are packed; of the tile only what lies in the result is touched.
                unsafe {
                    let (a, b) = (left.at(strip * ROWS * self.lanes), right.at(panel * COLUMNS * self.lanes));
                    let sums = tile::<EXACT>(a, b, self.lanes);
                    for (r, sums) in sums.iter().enumerate().take(rows) {
                        let y = out.at((row + r) * self.stride + column);
                        for (half, &sum) in sums.iter().enumerate() {
                            let (y, mask) = (y.wrapping_add(16 * half), masks[half]);
                            let sum = match start {
                                Start::Zero => sum,
                                Start::Bias(bias) => {
                                    let bias = bias.as_ptr().wrapping_add(column + 16 * half);
                                    _mm512_add_ps(_mm512_maskz_loadu_ps(mask, bias), sum)
                                }
                                Start::Kept => _mm512_add_ps(_mm512_maskz_loadu_ps(mask, y), sum),
                            };
                            _mm512_mask_storeu_ps(y, mask, sum);
                        }
                    }
                }
            }
        }
    }
}

/// The products of two panels.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn tile<const EXACT: bool>(mut a: *const u32, mut b: *const u32, lanes: usize) -> [[__m512; 2]; ROWS] {
    let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
    for _ in 0..lanes {
        // SAFETY: the panels hold so many lanes.
        unsafe {
            let columns = [_mm512_load_si512(b.cast()), _mm512_load_si512(b.add(16).cast())];
            for (r, sums) in sums.iter_mut().enumerate() {
                let row = _mm512_set1_epi32(*a.add(r) as i32);
                for (sum, column) in sums.iter_mut().zip(columns) {
                    *sum = match EXACT {
                        true => _mm512_fmadd_ps(_mm512_castsi512_ps(row), _mm512_castsi512_ps(column), *sum),
                        false => _mm512_dpbf16_ps(*sum, bits(row), bits(column)),
                    };
                }
            }
            a = a.add(ROWS);
            b = b.add(COLUMNS);
        }
    }
    sums
}

/// Packs `few` lines from `first` into a panel of `WIDTH`; the others, and what a last lane lacks, are zeros.
///
/// # Safety
/// The matrix holds the lines and the part, and the panel has room.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn pack<T: Packable, const WIDTH: usize>(
    to: *mut u32,
    values: &[T],
    matrix: Matrix<'_>,
    first: usize,
    few: usize,
    part: Range<usize>,
) {
    let lanes = part.len().div_ceil(T::IN_A_LANE);
    // SAFETY: by the contract of this function; beyond the part and the lines nothing is read or written.
    unsafe {
        if matrix.turned {
            for lane in 0..lanes {
                let at = part.start + T::IN_A_LANE * lane;
                let line = values.as_ptr().add(at * matrix.rows + first);
                let second = (at + 1 < part.end).then(|| line.wrapping_add(matrix.rows));
                for from in (0..WIDTH).step_by(16) {
                    let here = few.saturating_sub(from).min(16);
                    let both = T::zipped(line.wrapping_add(from), second.map(|line| line.wrapping_add(from)), here);
                    let room = mask((WIDTH - from).min(16));
                    _mm512_mask_storeu_epi32(to.add(lane * WIDTH + from).cast(), room, both);
                }
            }
            return;
        }
        for lane in (0..lanes).step_by(16) {
            let at = part.start + T::IN_A_LANE * lane;
            let length = (part.end - at).min(16 * T::IN_A_LANE);
            for from in (0..WIDTH).step_by(16) {
                let mut lines = [_mm512_setzero_si512(); 16];
                for (line, number) in lines.iter_mut().zip(from..few) {
                    *line = T::run(values.as_ptr().add((first + number) * matrix.columns + at), length);
                }
                let room = mask((WIDTH - from).min(16));
                for (l, turned) in turned(lines).into_iter().enumerate().take(lanes - lane) {
                    _mm512_mask_storeu_epi32(to.add((lane + l) * WIDTH + from).cast(), room, turned);
                }
            }
        }
    }
}

/// Sixteen lines of sixteen lanes, transposed.
#[inline]
#[target_feature(enable = "avx512f")]
fn turned(lines: [__m512i; 16]) -> [__m512i; 16] {
    let mut fours = lines;
    for i in (0..16).step_by(4) {
        let [a, b, c, d] = [lines[i], lines[i + 1], lines[i + 2], lines[i + 3]];
        let (ab, cd) = (_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d));
        (fours[i], fours[i + 1]) = (_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
        let (ab, cd) = (_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d));
        (fours[i + 2], fours[i + 3]) = (_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
    }
    // Quarter q of fours[i + j] is column 4q + j of the lines i to i + 3.
    let mut columns = lines;
    for j in 0..4 {
        let [a, b, c, d] = [fours[j], fours[4 + j], fours[8 + j], fours[12 + j]];
        let (ab, cd) = (_mm512_shuffle_i32x4::<0x44>(a, b), _mm512_shuffle_i32x4::<0x44>(c, d));
        columns[j] = _mm512_shuffle_i32x4::<0x88>(ab, cd);
        columns[4 + j] = _mm512_shuffle_i32x4::<0xdd>(ab, cd);
        let (ab, cd) = (_mm512_shuffle_i32x4::<0xee>(a, b), _mm512_shuffle_i32x4::<0xee>(c, d));
        columns[8 + j] = _mm512_shuffle_i32x4::<0x88>(ab, cd);
        columns[12 + j] = _mm512_shuffle_i32x4::<0xdd>(ab, cd);
    }
    columns
}

impl Matrix<'_> {
    /// Elements of the summed dimension in a lane of a packed operand.
    fn in_a_lane(self) -> usize {
        match self.values {
            Values::Wide(_) if self.exact => Exact::IN_A_LANE,
            Values::Wide(_) => f32::IN_A_LANE,
            Values::Brain(_) => bf16::IN_A_LANE,
        }
    }
}

/// What operands hold.
trait Packable: Copy {
    /// Elements of the summed dimension in a lane.
    const IN_A_LANE: usize;

    /// Up to as many elements as a vector holds, then zeros.
    unsafe fn run(from: *const Self, few: usize) -> __m512i;

    /// Up to 16 elements of one line, then zeros; or of two in turn, where a lane holds two.
    unsafe fn zipped(line: *const Self, second: Option<*const Self>, few: usize) -> __m512i;
}

impl Packable for Exact {
    const IN_A_LANE: usize = 1;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn run(from: *const Exact, few: usize) -> __m512i {
        // SAFETY: what is read under the mask is there by the contract.
        unsafe { _mm512_maskz_loadu_epi32(mask(few), from.cast()) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn zipped(line: *const Exact, _: Option<*const Exact>, few: usize) -> __m512i {
        // SAFETY: as above.
        unsafe { Self::run(line, few) }
    }
}

impl Packable for f32 {
    const IN_A_LANE: usize = 2;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn run(from: *const f32, few: usize) -> __m512i {
        // SAFETY: what is read under the mask is there by the contract.
        unsafe {
            let low = _mm512_maskz_loadu_ps(mask(few), from);
            let high = _mm512_maskz_loadu_ps(mask(few.saturating_sub(16)), from.wrapping_add(16));
            rounded(high, low)
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn zipped(line: *const f32, second: Option<*const f32>, few: usize) -> __m512i {
        // SAFETY: as above.
        unsafe {
            let low = _mm512_maskz_loadu_ps(mask(few), line);
            let high = second.map_or(_mm512_setzero_ps(), |line| _mm512_maskz_loadu_ps(mask(few), line));
            zip(rounded(high, low))
        }
    }
}

impl Packable for bf16 {
    const IN_A_LANE: usize = 2;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn run(from: *const bf16, few: usize) -> __m512i {
        let mask = if few >= 32 { u32::MAX } else { (1 << few) - 1 };
        // SAFETY: what is read under the mask is there by the contract.
        unsafe { _mm512_maskz_loadu_epi16(mask, from.cast()) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn zipped(line: *const bf16, second: Option<*const bf16>, few: usize) -> __m512i {
        // SAFETY: as above.
        unsafe {
            let low = _mm512_castsi512_si256(Self::run(line, few));
            let high = second.map_or(_mm256_setzero_si256(), |line| _mm512_castsi512_si256(Self::run(line, few)));
            zip(_mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high))
        }
    }
}

#[inline]
fn mask(few: usize) -> __mmask16 {
    if few >= 16 { u16::MAX } else { (1 << few) - 1 }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn rounded(high: __m512, low: __m512) -> __m512i {
    // SAFETY: both are 64 bytes of bits.
    unsafe { std::mem::transmute(_mm512_cvtne2ps_pbh(high, low)) }
}

#[inline]
fn bits(pairs: __m512i) -> __m512bh {
    // SAFETY: both are 64 bytes of bits.
    unsafe { std::mem::transmute(pairs) }
}

/// The lower and the upper half in turn.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn zip(halves: __m512i) -> __m512i {
    const TURNS: [u16; 32] = {
        let mut turns = [0; 32];
        let mut at = 0;
        while at < 32 {
            turns[at] = (at / 2 + at % 2 * 16) as u16;
            at += 1;
        }
        turns
    };
    // SAFETY: an unaligned read of 64 bytes.
    let turns = unsafe { _mm512_loadu_si512(TURNS.as_ptr().cast()) };
    _mm512_permutexvar_epi16(turns, halves)
}
