//! What multiplies tiles: a trait with the few operations that need the hardware, and the same in software.

use super::tile::{LANES, LINES, SIDE, WORDS};
use crate::simd::vectorised;

/// Multiplies tiles of bf16 pairs with sums in f32.
///
/// A tile of the left operand holds 16 lines of 16 pairs of neighbours along the summed dimension; a tile of the right operand
/// holds 16 such pairs of 16 lines each, pair by pair. Tiles that follow each other along the summed dimension are contiguous.
pub(super) trait TileUnit: Copy + Sync {
    /// Prepares the calling thread for [`Self::block`]; [`Self::leave`] must follow on the same thread.
    ///
    /// # Safety
    /// The CPU has the instructions, and the system lets this process use them.
    unsafe fn enter(self);

    /// Ends what [`Self::enter`] began.
    ///
    /// # Safety
    /// The calling thread has entered.
    unsafe fn leave(self);

    /// Adds the products of two (`tall`) or one left tile with two right tiles, over `steps` tiles of the summed dimension, to
    /// `sums`, or writes them there unless `more`. `sums` is a row-major block of 32 × 32; its lower half is not touched unless
    /// `tall`.
    ///
    /// Every element of `sums` takes the tiles one after the other, in their order. So its value depends on its own line and
    /// column alone, and not on where the summed dimension was cut.
    ///
    /// # Safety
    /// The calling thread has entered; the operands hold `steps` tiles, and `sums` a block.
    unsafe fn block(
        self,
        left: [*const u32; 2],
        right: [*const u32; 2],
        steps: usize,
        sums: *mut f32,
        more: bool,
        tall: bool,
    );
}

/// The tiles in software, on any CPU: the operation that Intel's manual gives for `TDPBF16PS`. For tests, and where results of
/// another machine must be found again; slow.
#[derive(Debug, Clone, Copy)]
pub(super) struct Software;

/// A number, or a zero of its sign if it is too small to be normal.
#[inline(always)]
fn flushed(x: f32) -> f32 {
    let bits = x.to_bits();
    f32::from_bits(if bits & 0x7f80_0000 == 0 { bits & 0x8000_0000 } else { bits })
}

/// The even and the odd element of a pair, in f32.
#[inline(always)]
fn pair(word: u32) -> [f32; 2] {
    [flushed(f32::from_bits(word << 16)), flushed(f32::from_bits(word & 0xffff_0000))]
}

vectorised! {
    /// `TDPBF16PS`: adds the product of a left and a right tile to a tile of sums.
    ///
    /// Even and odd elements of the pairs are summed apart, from zero, by fused multiplication and addition in the pairs' order;
    /// then both sums are added up, and the result is added to the tile. Each step rounds to the nearest, ties to even; numbers
    /// below the smallest normal one count and come out as zero.
    fn dot(sums: &mut [f32], left: &[u32], right: &[u32]) {
        for (row, sums) in left.chunks_exact(LANES).zip(sums.chunks_exact_mut(LINES)) {
            let (mut even, mut odd) = ([0f32; LINES], [0f32; LINES]);
            for (&word, words) in row.iter().zip(right.chunks_exact(LINES)) {
                let [a, b] = pair(word);
                for ((even, odd), &word) in even.iter_mut().zip(&mut odd).zip(words) {
                    let [c, d] = pair(word);
                    *even = flushed(a.mul_add(c, *even));
                    *odd = flushed(b.mul_add(d, *odd));
                }
            }
            for ((sum, even), odd) in sums.iter_mut().zip(even).zip(odd) {
                *sum = flushed(flushed(*sum) + flushed(even + odd));
            }
        }
    }
}

impl TileUnit for Software {
    unsafe fn enter(self) {}

    unsafe fn leave(self) {}

    unsafe fn block(
        self,
        left: [*const u32; 2],
        right: [*const u32; 2],
        steps: usize,
        sums: *mut f32,
        more: bool,
        tall: bool,
    ) {
        for (row, left) in left.into_iter().enumerate().take(if tall { 2 } else { 1 }) {
            for (column, &right) in right.iter().enumerate() {
                let mut tile = [0f32; WORDS];
                // SAFETY: by the contract of the trait.
                unsafe {
                    let sums = |line: usize| sums.add((row * LINES + line) * SIDE + column * LINES);
                    let lines = tile.chunks_exact_mut(LINES).enumerate();
                    if more {
                        lines.for_each(|(at, line)| line.as_mut_ptr().copy_from_nonoverlapping(sums(at), LINES));
                    }
                    for step in 0..steps {
                        let words = |of: *const u32| std::slice::from_raw_parts(of.add(step * WORDS), WORDS);
                        dot(&mut tile, words(left), words(right));
                    }
                    let lines = tile.chunks_exact(LINES).enumerate();
                    lines.for_each(|(at, line)| sums(at).copy_from_nonoverlapping(line.as_ptr(), LINES));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tile of one pair per line, the others zero.
    fn left(pairs: &[(f32, f32)]) -> Vec<u32> {
        let mut tile = vec![0; WORDS];
        for (lane, (even, odd)) in pairs.iter().enumerate() {
            tile[lane] = even.to_bits() >> 16 | odd.to_bits() & 0xffff_0000;
        }
        tile
    }

    fn right(pairs: &[(f32, f32)]) -> Vec<u32> {
        let mut tile = vec![0; WORDS];
        for (lane, word) in left(pairs).into_iter().enumerate().take(LANES) {
            tile[lane * LINES] = word;
        }
        tile
    }

    /// The first sum of two tiles of a few pairs, added to `sum`.
    fn first(sum: f32, a: &[(f32, f32)], b: &[(f32, f32)]) -> f32 {
        let mut sums = vec![0f32; WORDS];
        sums[0] = sum;
        dot(&mut sums, &left(a), &right(b));
        assert!(sums[1..].iter().all(|other| *other == 0.0 || a.first().is_some_and(|a| a.0.is_nan())));
        sums[0]
    }

    #[test]
    fn even_and_odd_elements_are_summed_apart_before_the_sum_is_added() {
        let one = 1.0f32;
        // 2^24 + 1 rounds to 2^24 in f32, and 2^24 + 2 does not.
        let big = 16_777_216.0;
        assert_eq!(first(big, &[(one, one)], &[(one, one)]), big + 2.0, "one after the other both would be lost");
        assert_eq!(first(0.0, &[(big, one)], &[(one, one)]), big);
        assert_eq!(first(0.0, &[(big, one), (one, one)], &[(one, one), (one, one)]), big + 2.0, "odd: 1 + 1");
        assert_eq!(first(0.0, &[(big, 0.0), (one, 0.0), (one, 0.0)], &[(one, 0.0); 3]), big, "even, in order");
        assert_eq!(first(-big, &[(big, 0.0), (one, 0.0)], &[(one, 0.0); 2]), 0.0, "the tile's sum comes last");
    }

    #[test]
    fn numbers_below_the_smallest_normal_one_are_zero() {
        let (tiny, small) = (f32::from_bits(0x0040_0000), f32::MIN_POSITIVE);
        assert_eq!(first(0.0, &[(tiny, 0.0)], &[(1e30, 0.0)]), 0.0, "as an operand");
        assert_eq!(first(0.0, &[(small, 0.0)], &[(0.5, 0.0)]), 0.0, "as a result");
        assert_eq!(first(f32::from_bits(1), &[], &[]), 0.0, "as a sum");
        assert_eq!(first(0.0, &[(small, 0.0)], &[(1.0, 0.0)]), small);
        assert_eq!(flushed(-f32::from_bits(1)).to_bits(), 0x8000_0000);
        assert!(first(f32::INFINITY, &[(1.0, 0.0)], &[(1.0, 0.0)]).is_infinite());
        assert!(first(0.0, &[(f32::NAN, 0.0)], &[(1.0, 0.0)]).is_nan());
    }
}
