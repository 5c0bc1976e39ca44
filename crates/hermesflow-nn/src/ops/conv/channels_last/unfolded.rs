//! Convolutions as matrix products: the input patch of each output pixel is a row.

use rayon::prelude::*;

use super::panels::{self, WIDTH};
use super::source::Source;
use super::target::Target;

/// Output pixels per block.
const ROWS: usize = 48;
/// Rows of a panel per product: they stay in the L1 and L2 caches.
const DEPTH: usize = 256;

/// Writes every element of the output of `b` images.
pub(super) fn run(source: &Source, weight: &[f32], b: usize, target: &Target) {
    let sizes = source.sizes;
    let (k, depth) = (sizes.k, sizes.k * sizes.k * sizes.c);
    let kernel = pack(weight, sizes.c, k, sizes.o);
    let pixels = b * sizes.oh * sizes.ow;
    let panels = sizes.o.div_ceil(WIDTH);
    let blocks = pixels.div_ceil(ROWS);
    let groups = groups(blocks, panels);
    (0..blocks * groups).into_par_iter().for_each_init(Vec::new, |scratch, task| {
        let (block, group) = (task / groups, task % groups);
        let (first, last) = (block * ROWS, ((block + 1) * ROWS).min(pixels));
        scratch.resize(ROWS * (depth + WIDTH), 0f32);
        let (patches, results) = scratch.split_at_mut(ROWS * depth);
        for (pixel, patch) in (first..last).zip(patches.chunks_exact_mut(depth)) {
            let (image, y, x) = (pixel / (sizes.oh * sizes.ow), pixel / sizes.ow % sizes.oh, pixel % sizes.ow);
            let x = (x * sizes.stride) as isize - sizes.pad.left as isize;
            for (ky, line) in patch.chunks_exact_mut(k * sizes.c).enumerate() {
                let y = (y * sizes.stride + ky) as isize - sizes.pad.top as isize;
                source.read(image, y, x, k, line);
            }
        }
        let rows = (last - first).next_multiple_of(panels::STEP);
        for panel in share(group, groups, panels) {
            for from in (0..depth).step_by(DEPTH) {
                let part = DEPTH.min(depth - from);
                let lines = &kernel[(panel * depth + from) * WIDTH..][..part * WIDTH];
                // SAFETY: the patches have ROWS rows of `depth` numbers, the results ROWS of WIDTH.
                unsafe {
                    let (a, c) = (patches[from..].as_ptr(), results.as_mut_ptr());
                    panels::multiply(a, depth, rows, lines.as_ptr(), part, c, from > 0);
                }
            }
            for (pixel, values) in (first..last).zip(results.chunks_exact(WIDTH)) {
                // SAFETY: no other task has these panels of this block of pixels.
                unsafe { target.write(pixel, panel * WIDTH, values) };
            }
        }
    });
}

/// `weight [o, c, k, k]` as panels `[o / WIDTH, k·k·c, WIDTH]`.
fn pack(weight: &[f32], c: usize, k: usize, o: usize) -> Vec<f32> {
    let (depth, places) = (k * k * c, k * k);
    let mut panels = vec![0f32; o.div_ceil(WIDTH) * depth * WIDTH];
    panels.par_chunks_mut(depth * WIDTH).zip(weight.par_chunks(WIDTH * depth)).for_each(|(panel, kernels)| {
        for (lane, kernel) in kernels.chunks_exact(depth).enumerate() {
            for (channel, values) in kernel.chunks_exact(places).enumerate() {
                for (place, value) in values.iter().enumerate() {
                    panel[(place * c + channel) * WIDTH + lane] = *value;
                }
            }
        }
    });
    panels
}

/// The number of groups among which the panels of a block are shared, so that few blocks still occupy all threads.
fn groups(blocks: usize, panels: usize) -> usize {
    match rayon::current_num_threads() {
        1 => 1,
        threads => (2 * threads).div_ceil(blocks.max(1)).clamp(1, panels.max(1)),
    }
}

/// The panels of one group.
fn share(group: usize, groups: usize, panels: usize) -> std::ops::Range<usize> {
    group * panels / groups..(group + 1) * panels / groups
}
