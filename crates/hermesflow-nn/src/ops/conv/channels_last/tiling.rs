//! The tiles of Winograd's convolution, and how their numbers lie in memory.

use super::lanes::LANES;
use super::panels::WIDTH;

/// Results along a tile's side.
pub(super) const M: usize = 4;
/// Inputs along a tile's side.
pub(super) const A: usize = M + 2;
/// Products per tile and pair of channels.
pub(super) const PLACES: usize = A * A;
/// Rows of tiles in a block.
pub(super) const DOWN: usize = 4;
/// Columns of tiles in a block.
pub(super) const ACROSS: usize = 8;
/// Tiles of a block.
pub(super) const TILES: usize = DOWN * ACROSS;
/// Rows of pixels that a block reads.
pub(super) const ROWS: usize = M * DOWN + 2;
/// Columns of pixels that a block reads.
pub(super) const COLUMNS: usize = M * ACROSS + 2;
/// Numbers of a block's results in a panel `[PLACES, TILES, WIDTH]`.
pub(super) const RESULTS: usize = PLACES * TILES * WIDTH;

/// The distances of a convolution's numbers in memory, which depend on its channels.
#[derive(Clone, Copy)]
pub(super) struct Plan {
    /// Numbers per pixel of a block: its channels, then zeros up to whole vectors.
    pub(super) wide: usize,
    /// Distance of transformed tiles: not a power of two, so that they do not compete for the same cache lines.
    pub(super) apart: usize,
}

impl Plan {
    /// The plan for `c` channels.
    pub(super) fn new(c: usize) -> Self {
        let wide = c.next_multiple_of(LANES);
        Self { wide, apart: wide + LANES }
    }

    /// Numbers of a block's transformed inputs `[PLACES, TILES, apart]`.
    pub(super) fn inputs(self) -> usize {
        PLACES * TILES * self.apart
    }

    /// Numbers of a panel's transformed kernel `[PLACES, wide, WIDTH]`.
    pub(super) fn kernel(self) -> usize {
        PLACES * self.wide * WIDTH
    }
}
