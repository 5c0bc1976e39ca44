//! The layout of tiles in memory.

/// Lines (rows of the left operand, columns of the right one) of a tile.
pub(super) const LINES: usize = 16;
/// Lanes of 32 bits along the summed dimension; each holds two bf16 elements.
pub(super) const LANES: usize = 16;
/// Elements along the summed dimension.
pub(super) const DEPTH: usize = 2 * LANES;
/// Lanes of a tile, and sums of a tile of results.
pub(super) const WORDS: usize = LINES * LANES;

/// Rows and columns of a block of results: two tiles.
pub(super) const SIDE: usize = 2 * LINES;

/// A tile, aligned to the CPU's cache lines.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(super) struct Tile(#[allow(dead_code)] [u32; WORDS]);

/// Room for tiles, which need not be initialised.
#[derive(Default)]
pub(super) struct Tiles(Vec<Tile>);

impl Tiles {
    /// The start of room for at least so many tiles.
    pub(super) fn room(&mut self, tiles: usize) -> *mut u32 {
        self.0.clear();
        self.0.reserve(tiles);
        self.0.as_mut_ptr().cast()
    }
}
