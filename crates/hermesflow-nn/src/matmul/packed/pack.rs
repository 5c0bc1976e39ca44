//! Packing with AVX-512: elements along the summed dimension become the lanes of panels, rounded to bf16 where they are not
//! multiplied in f32.

use std::arch::x86_64::*;
use std::ops::Range;

use half::bf16;

use super::matrix::{Matrix, Values};

/// An f32 element that is packed without rounding.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct AsF32(#[allow(dead_code)] f32);

/// Packs `few` lines (rows) from `first` on of a matrix into a panel of `WIDTH` lines, over the columns `part`: lane by lane,
/// each lane of all lines together. Further lines, and the missing half of a last lane, are zeros.
///
/// # Safety
/// The CPU has AVX512-BF16 and AVX-512 BW, the matrix holds the lines and the part, and the panel has room.
pub(super) unsafe fn pack_lines<const WIDTH: usize>(
    to: *mut u32,
    matrix: Matrix<'_>,
    first: usize,
    few: usize,
    part: Range<usize>,
) {
    // SAFETY: by the contract of this function.
    unsafe {
        match matrix.values {
            Values::F32(values) if matrix.as_f32 => {
                let values = std::slice::from_raw_parts(values.as_ptr().cast::<AsF32>(), values.len());
                pack::<AsF32, WIDTH>(to, values, matrix, first, few, part);
            }
            Values::F32(values) => pack::<f32, WIDTH>(to, values, matrix, first, few, part),
            Values::Bf16(values) => pack::<bf16, WIDTH>(to, values, matrix, first, few, part),
        }
    }
}

/// Packs `few` lines of a matrix, rounded to bf16, as [`pack_lines`] with 16 lines does, but line by line: of every 16 lanes
/// first those of the first line. Lanes are filled up with zeros to a multiple of 16.
///
/// # Safety
/// As [`pack_lines`].
pub(super) unsafe fn pack_rows(to: *mut u32, matrix: Matrix<'_>, first: usize, few: usize, part: Range<usize>) {
    // SAFETY: by the contract of this function.
    unsafe {
        match (matrix.transposed, matrix.values) {
            (false, Values::F32(values)) => rows(to, values, matrix.columns, first, few, part),
            (false, Values::Bf16(values)) => rows(to, values, matrix.columns, first, few, part),
            (true, _) => {
                pack_columns(to, matrix, first, few, part.clone());
                (0..part.len().div_ceil(32)).for_each(|tile| transpose(to.add(tile * 256)));
            }
        }
    }
}

/// Packs `few` lines of a matrix, rounded to bf16, as [`pack_lines`] with 16 lines does. Lanes are filled up with zeros to a
/// multiple of 16.
///
/// # Safety
/// As [`pack_lines`].
pub(super) unsafe fn pack_columns(to: *mut u32, matrix: Matrix<'_>, first: usize, few: usize, part: Range<usize>) {
    let lanes = part.len().div_ceil(2);
    // SAFETY: by the contract of this function.
    unsafe {
        pack_lines::<16>(to, matrix, first, few, part);
        to.add(lanes * 16).write_bytes(0, lanes.next_multiple_of(16) * 16 - lanes * 16);
    }
}

/// [`pack_rows`] of lines that are contiguous.
///
/// # Safety
/// As [`pack_lines`].
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn rows<T: Packable>(to: *mut u32, values: &[T], columns: usize, first: usize, few: usize, part: Range<usize>) {
    for line in 0..16 {
        for (tile, at) in part.clone().step_by(32).enumerate() {
            // SAFETY: by the contract of this function; a line that is not there is not read.
            unsafe {
                let lanes = match line < few {
                    true => T::run(values.as_ptr().add((first + line) * columns + at), (part.end - at).min(32)),
                    false => _mm512_setzero_si512(),
                };
                _mm512_storeu_si512(to.add(tile * 256 + line * 16).cast(), lanes);
            }
        }
    }
}

/// Transposes 16 lines of 16 lanes in place.
///
/// # Safety
/// The CPU has AVX-512 F, and no other thread touches the lines.
#[target_feature(enable = "avx512f")]
unsafe fn transpose(tile: *mut u32) {
    let mut lines = [_mm512_setzero_si512(); 16];
    // SAFETY: by the contract of this function.
    unsafe {
        lines.iter_mut().enumerate().for_each(|(at, line)| *line = _mm512_loadu_si512(tile.add(at * 16).cast()));
        for (at, line) in transposed(lines).into_iter().enumerate() {
            _mm512_storeu_si512(tile.add(at * 16).cast(), line);
        }
    }
}

/// Packs `few` lines from `first` on into a panel of `WIDTH` lines; further lines, and the missing half of a last lane, are zeros.
///
/// # Safety
/// The CPU has the instructions, the matrix holds the lines and the part, and the panel has room.
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
    // SAFETY: by the contract of this function; masks keep reads and writes within the part and the lines.
    unsafe {
        if matrix.transposed {
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
                for (l, lanes_of) in transposed(lines).into_iter().enumerate().take(lanes - lane) {
                    _mm512_mask_storeu_epi32(to.add((lane + l) * WIDTH + from).cast(), room, lanes_of);
                }
            }
        }
    }
}

/// The transpose of sixteen lines of sixteen lanes.
#[inline]
#[target_feature(enable = "avx512f")]
fn transposed(lines: [__m512i; 16]) -> [__m512i; 16] {
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
    /// Elements of the summed dimension per lane of the packed operand.
    pub(super) fn in_a_lane(self) -> usize {
        match self.values {
            Values::F32(_) if self.as_f32 => AsF32::IN_A_LANE,
            Values::F32(_) => f32::IN_A_LANE,
            Values::Bf16(_) => bf16::IN_A_LANE,
        }
    }
}

/// An element of an operand, and how vectors of it are packed.
trait Packable: Copy {
    /// Elements of the summed dimension per lane.
    const IN_A_LANE: usize;

    /// The first `few` elements (at most a vector of them), then zeros.
    ///
    /// # Safety
    /// The CPU has the instructions, and `few` elements can be read.
    unsafe fn run(from: *const Self, few: usize) -> __m512i;

    /// The first `few` elements of a line (at most 16), then zeros; where a lane holds two, alternating with the same of
    /// `second`, or with zeros.
    ///
    /// # Safety
    /// The CPU has the instructions, and `few` elements of each line can be read.
    unsafe fn zipped(line: *const Self, second: Option<*const Self>, few: usize) -> __m512i;
}

impl Packable for AsF32 {
    const IN_A_LANE: usize = 1;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn run(from: *const AsF32, few: usize) -> __m512i {
        // SAFETY: by the contract; the mask reads `few` elements.
        unsafe { _mm512_maskz_loadu_epi32(mask(few), from.cast()) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn zipped(line: *const AsF32, _: Option<*const AsF32>, few: usize) -> __m512i {
        // SAFETY: as above.
        unsafe { Self::run(line, few) }
    }
}

impl Packable for f32 {
    const IN_A_LANE: usize = 2;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn run(from: *const f32, few: usize) -> __m512i {
        // SAFETY: by the contract; the mask reads `few` elements.
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
        // SAFETY: by the contract; the mask reads `few` elements.
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

/// A mask of the first `few` lanes, at most 16.
#[inline]
pub(super) fn mask(few: usize) -> __mmask16 {
    if few >= 16 { u16::MAX } else { (1 << few) - 1 }
}

/// Two vectors of f32 rounded to one of bf16, `low` first.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn rounded(high: __m512, low: __m512) -> __m512i {
    // SAFETY: both are 64 bytes of bits.
    unsafe { std::mem::transmute(_mm512_cvtne2ps_pbh(high, low)) }
}

/// The 16-bit elements of the lower and of the upper half, alternating.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn zip(halves: __m512i) -> __m512i {
    const ORDER: [u16; 32] = {
        let mut order = [0; 32];
        let mut at = 0;
        while at < 32 {
            order[at] = (at / 2 + at % 2 * 16) as u16;
            at += 1;
        }
        order
    };
    // SAFETY: an unaligned read of 64 bytes.
    let order = unsafe { _mm512_loadu_si512(ORDER.as_ptr().cast()) };
    _mm512_permutexvar_epi16(order, halves)
}
