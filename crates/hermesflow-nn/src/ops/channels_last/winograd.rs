//! 3×3 convolutions by Winograd's minimal filtering (Lavin and Gray, arXiv 1509.09308).
//!
//! A tile of 4 × 4 results takes 36 products per pair of channels instead of 144. A task takes a block of tiles through
//! all of it while the block stays in a core's cache: read the pixels, transform them, multiply each of the 36 places with
//! the transformed kernel, transform back.

use rayon::prelude::*;

use super::super::panels::{self, WIDTH};
use super::super::raw::Shared;
use super::lanes::{LANES, Lanes, each_cpu};
use super::{Source, Target};

/// Results along a tile's side, and inputs.
const M: usize = 4;
const A: usize = M + 2;
/// Products per tile and pair of channels.
const PLACES: usize = A * A;
/// Tiles of a block, down and across, and together.
const DOWN: usize = 4;
const ACROSS: usize = 8;
const TILES: usize = DOWN * ACROSS;
/// Rows and columns of pixels that a block reads.
const ROWS: usize = M * DOWN + 2;
const COLUMNS: usize = M * ACROSS + 2;
/// Numbers of a block's results in a panel `[PLACES, TILES, WIDTH]`.
const RESULTS: usize = PLACES * TILES * WIDTH;

/// The points of the transform: 0, ±P, ±Q and infinity. The usual ±1 and ±2 lose twice as much to rounding as these,
/// which lose one and a half times what a plain sum does.
const P: f32 = 0.625;
const Q: f32 = 1.5;
const P2: f32 = P * P;
const Q2: f32 = Q * Q;

/// How a convolution's numbers lie while it works.
#[derive(Clone, Copy)]
struct Plan {
    /// Numbers of a pixel in a block: its channels, and zeros up to whole registers.
    wide: usize,
    /// The distance of transformed tiles: not a power of two, lest they share the cache's lines.
    apart: usize,
}

impl Plan {
    fn new(c: usize) -> Self {
        let wide = c.next_multiple_of(LANES);
        Self { wide, apart: wide + LANES }
    }

    /// Numbers of a block's transformed inputs `[PLACES, TILES, apart]`.
    fn inputs(self) -> usize {
        PLACES * TILES * self.apart
    }

    /// Numbers of a panel's transformed kernel `[PLACES, wide, WIDTH]`.
    fn kernel(self) -> usize {
        PLACES * self.wide * WIDTH
    }
}

/// Writes every element of the output.
pub(super) fn run(source: &Source, weight: &[f32], b: usize, target: &Target) {
    let sizes = source.sizes;
    let plan = Plan::new(sizes.c);
    let across = sizes.ow.div_ceil(M * ACROSS);
    let down = sizes.oh.div_ceil(M * DOWN);
    let work = Work { source, weight, target, plan, across, blocks: across * down };
    // The smaller of the two factors is kept whole, the other goes by in parts that stay in the cache.
    match b * work.blocks * TILES <= sizes.o {
        true => work.by_panels(b),
        false => work.by_blocks(b),
    }
}

struct Work<'a> {
    source: &'a Source<'a>,
    /// `[o, c, 3, 3]`
    weight: &'a [f32],
    target: &'a Target<'a>,
    plan: Plan,
    /// Blocks of an image, in a row and together.
    across: usize,
    blocks: usize,
}

impl Work<'_> {
    fn panels(&self) -> usize {
        self.source.sizes.o.div_ceil(WIDTH)
    }

    /// For few pixels: each task transforms a panel of the kernel and multiplies all blocks with it.
    fn by_panels(&self, b: usize) {
        let plan = self.plan;
        let blocks = b * self.blocks;
        let mut inputs: Vec<f32> = Vec::with_capacity(blocks * plan.inputs());
        let start = Shared(inputs.as_mut_ptr());
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
        let start = Shared(kernel.as_mut_ptr());
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

    /// The image of a block (counted over the batch) and its first pixel.
    fn place(&self, block: usize) -> (usize, (usize, usize)) {
        let (image, block) = (block / self.blocks, block % self.blocks);
        let (down, across) = (block / self.across, block % self.across);
        (image, (down * DOWN * M, across * ACROSS * M))
    }

    /// Transforms the pixels of a block into `to`, which has room for them.
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
    /// There is room for it.
    unsafe fn kernel(&self, panel: usize, to: *mut f32) {
        let c = self.source.sizes.c;
        let lines = panel * WIDTH..((panel + 1) * WIDTH).min(self.source.sizes.o);
        // SAFETY: by the contract of this function.
        unsafe { transform_kernel(self.plan, c, &self.weight[lines.start * 9 * c..lines.end * 9 * c], to) };
    }

    /// Writes the output of a block in a panel's channels.
    ///
    /// # Safety
    /// Inputs and kernel are transformed as the plan has it, and no other thread writes these channels of these pixels.
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

/// One dimension of the inputs' transform.
///
/// # Safety
/// The CPU has the registers.
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
/// The CPU has the registers.
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
/// The CPU has the registers.
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
    /// `kernels [≤ WIDTH, c, 3, 3]`, transformed: `[PLACES, wide, WIDTH]`, with zeros where there is none.
    ///
    /// # Safety
    /// `to` has room for it.
    unsafe fn transform_kernel(plan: Plan, c: usize, kernels: &[f32], to: *mut f32) = kernel_by
}

#[inline(always)]
unsafe fn kernel_by<L: Lanes>(plan: Plan, c: usize, kernels: &[f32], to: *mut f32) {
    let mut turned = [[0f32; WIDTH]; 9];
    for channel in 0..plan.wide {
        for (lane, kernel) in kernels.chunks_exact(c * 9).enumerate() {
            for (place, turned) in turned.iter_mut().enumerate() {
                turned[lane] = if channel < c { kernel[channel * 9 + place] } else { 0.0 };
            }
        }
        for half in (0..WIDTH).step_by(LANES) {
            // SAFETY: the places of this channel lie in the target.
            unsafe {
                let mut lines = [[L::load(turned[0].as_ptr()); A]; 3];
                for (row, line) in lines.iter_mut().enumerate() {
                    let [a, b, c] = [0, 1, 2].map(|column| L::load(turned[3 * row + column].as_ptr().add(half)));
                    *line = kernel_line([a, b, c]);
                }
                for column in 0..A {
                    let values = kernel_line([lines[0][column], lines[1][column], lines[2][column]]);
                    for row in 0..A {
                        values[row].store(to.add(((row * A + column) * plan.wide + channel) * WIDTH + half));
                    }
                }
            }
        }
    }
}

each_cpu! {
    /// The tiles of a patch `[rows, columns, wide]`, transformed: `[PLACES, TILES, apart]`.
    ///
    /// # Safety
    /// The patch has the plan's size, and `to` room for the inputs.
    unsafe fn transform_inputs(plan: Plan, patch: &[f32], to: *mut f32) = inputs_by
}

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
                    let values = inward(values);
                    for row in 0..A {
                        values[row].store(to.add((row * A + column) * TILES * plan.apart));
                    }
                }
            }
        }
    }
}

each_cpu! {
    /// Writes the results of a block of tiles for a panel of channels: `results [PLACES, TILES, WIDTH]`, the output's size,
    /// the image, and the block's first pixel.
    ///
    /// # Safety
    /// The results are a block's, and no other thread writes these channels of these pixels.
    unsafe fn transform_results(
        results: &[f32],
        target: &Target,
        size: (usize, usize),
        image: usize,
        first: (usize, usize),
        panel: usize,
    ) = results_by
}

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
                    let values = outward(values);
                    for (row, value) in values.iter().enumerate().take(height - top) {
                        let pixel = (image * height + top + row) * width + left + column;
                        target.write_lanes(pixel, channel, *value);
                    }
                }
            }
        }
    }
}
