//! 3×3 convolutions by Winograd's minimal filtering (Lavin & Gray, arXiv:1509.09308): `y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A` for a
//! kernel `g` and a tile of inputs `d`.
//!
//! A tile of 4 × 4 results takes 36 products per pair of channels instead of 144. A task takes a block of tiles through all steps
//! while the block stays in a core's cache: read the pixels, transform them, multiply each of the 36 places with the transformed
//! kernel, transform the results.

use rayon::prelude::*;

use super::panels::{self, WIDTH};
use super::source::Source;
use super::target::Target;
use super::tiling::{ACROSS, COLUMNS, DOWN, M, PLACES, Plan, RESULTS, ROWS, TILES};
use super::transforms::{transform_inputs, transform_kernel, transform_results};
use crate::storage::SharedPointer;

/// Writes every element of the output of `b` images.
pub(super) fn run(source: &Source, weight: &[f32], b: usize, target: &Target) {
    let sizes = source.sizes;
    let plan = Plan::new(sizes.c);
    let across = sizes.ow.div_ceil(M * ACROSS);
    let down = sizes.oh.div_ceil(M * DOWN);
    let work = Work { source, weight, target, plan, across, blocks: across * down };
    // The smaller of the two factors is kept whole; the other is taken in parts that stay in the cache.
    match b * work.blocks * TILES <= sizes.o {
        true => work.by_panels(b),
        false => work.by_blocks(b),
    }
}

/// A convolution with its blocks of tiles.
struct Work<'a> {
    source: &'a Source<'a>,
    /// `[o, c, 3, 3]`
    weight: &'a [f32],
    target: &'a Target<'a>,
    plan: Plan,
    /// Blocks in a row of an image.
    across: usize,
    /// Blocks of an image.
    blocks: usize,
}

impl Work<'_> {
    /// Panels of output channels.
    fn panels(&self) -> usize {
        self.source.sizes.o.div_ceil(WIDTH)
    }

    /// For few pixels: each task transforms a panel of the kernel and multiplies all blocks with it.
    fn by_panels(&self, b: usize) {
        let plan = self.plan;
        let blocks = b * self.blocks;
        let mut inputs: Vec<f32> = Vec::with_capacity(blocks * plan.inputs());
        let start = SharedPointer(inputs.as_mut_ptr());
        (0..blocks).into_par_iter().for_each_init(Vec::new, |patch, block| {
            // SAFETY: each block has its own part of the allocation.
            self.read(block, patch, unsafe { start.at(block * plan.inputs()) });
        });
        (0..self.panels()).into_par_iter().for_each_init(Vec::new, |scratch, panel| {
            scratch.resize(plan.kernel() + RESULTS, 0f32);
            let (kernel, results) = scratch.split_at_mut(plan.kernel());
            // SAFETY: the lengths are those of the plan; all inputs have been written.
            unsafe {
                self.kernel(panel, kernel.as_mut_ptr());
                (0..blocks).for_each(|block| {
                    self.multiply(start.at(block * plan.inputs()), kernel.as_ptr(), results, block, panel);
                });
            }
        });
    }

    /// For many pixels: each task takes a block through all panels of the transformed kernel.
    fn by_blocks(&self, b: usize) {
        let plan = self.plan;
        let mut kernel: Vec<f32> = Vec::with_capacity(self.panels() * plan.kernel());
        let start = SharedPointer(kernel.as_mut_ptr());
        (0..self.panels()).into_par_iter().for_each(|panel| {
            // SAFETY: each panel has its own part of the allocation.
            unsafe { self.kernel(panel, start.at(panel * plan.kernel())) };
        });
        (0..b * self.blocks).into_par_iter().for_each_init(Default::default, |scratch, block| {
            let (patch, numbers): &mut (Vec<f32>, Vec<f32>) = scratch;
            numbers.resize(plan.inputs() + RESULTS, 0f32);
            let (inputs, results) = numbers.split_at_mut(plan.inputs());
            self.read(block, patch, inputs.as_mut_ptr());
            for panel in 0..self.panels() {
                // SAFETY: the lengths are those of the plan; the whole kernel has been written.
                unsafe {
                    let kernel = start.at(panel * plan.kernel());
                    self.multiply(inputs.as_ptr(), kernel, results, block, panel);
                }
            }
        });
    }

    /// The image and the first pixel (row, column) of a block, which is counted over the batch.
    fn place(&self, block: usize) -> (usize, (usize, usize)) {
        let (image, block) = (block / self.blocks, block % self.blocks);
        let (down, across) = (block / self.across, block % self.across);
        (image, (down * DOWN * M, across * ACROSS * M))
    }

    /// Transforms the pixels of a block into `to`, which must have room for [`Plan::inputs`] numbers.
    fn read(&self, block: usize, patch: &mut Vec<f32>, to: *mut f32) {
        let (plan, pad) = (self.plan, self.source.sizes.pad);
        let (image, (top, left)) = self.place(block);
        patch.resize(ROWS * COLUMNS * plan.wide, 0f32);
        for (row, line) in patch.chunks_exact_mut(COLUMNS * plan.wide).enumerate() {
            let y = (top + row) as isize - pad.top as isize;
            self.source.read(image, y, left as isize - pad.left as isize, COLUMNS, line);
        }
        // SAFETY: the lengths are those of the plan.
        unsafe { transform_inputs(plan, patch, to) };
    }

    /// Transforms a panel of the kernel into `to`.
    ///
    /// # Safety
    /// `to` has room for [`Plan::kernel`] numbers.
    unsafe fn kernel(&self, panel: usize, to: *mut f32) {
        let c = self.source.sizes.c;
        let lines = panel * WIDTH..((panel + 1) * WIDTH).min(self.source.sizes.o);
        // SAFETY: by the contract of this function.
        unsafe { transform_kernel(self.plan, c, &self.weight[lines.start * 9 * c..lines.end * 9 * c], to) };
    }

    /// Writes the output of a block in a panel's channels.
    ///
    /// # Safety
    /// Inputs and kernel are transformed and lie as the plan says, and no other thread writes these channels of these pixels.
    unsafe fn multiply(&self, inputs: *const f32, kernel: *const f32, results: &mut [f32], block: usize, panel: usize) {
        let plan = self.plan;
        // SAFETY: each place has TILES rows of inputs and of results and `wide` of the kernel; the rest by the contract
        // of this function.
        unsafe {
            for place in 0..PLACES {
                let a = inputs.add(place * TILES * plan.apart);
                let lines = kernel.add(place * plan.wide * WIDTH);
                let c = results[place * TILES * WIDTH..].as_mut_ptr();
                panels::multiply(a, plan.apart, TILES, lines, plan.wide, c, false);
            }
            let size = (self.source.sizes.oh, self.source.sizes.ow);
            let (image, first) = self.place(block);
            transform_results(results, self.target, size, image, first, panel);
        }
    }
}
