//! Pillow's bicubic resizing, level for level: two passes with antialiasing where a picture becomes smaller.
//!
//! A weight is `w(distance / scale)` with Keys' kernel (a = −0.5) and is rounded to 22 bits after the point, as in Pillow's
//! `Resample.c`. Between the passes levels are whole and within 0 … 255, so that the order of the passes matters where a
//! picture has strong contrasts: up to a dozen levels for random pixels. Recent versions of Pillow (13.0 was compared) resize
//! the columns first where that takes away more than twice as many rows as the other pass takes away columns, earlier ones
//! always the rows; the recorded pictures were made by a recent one.

use image::RgbImage;
use rayon::prelude::*;

/// Bits behind the point of a weight.
const PRECISION: u32 = 32 - 8 - 2;
/// How far the kernel reaches, before it is stretched.
const SUPPORT: f64 = 2.0;

/// The picture at another size.
pub fn bicubic(picture: &RgbImage, width: u32, height: u32) -> RgbImage {
    let across = |picture: &RgbImage| match picture.width() == width {
        true => picture.clone(),
        false => resized_across(picture, width),
    };
    let down = |picture: &RgbImage| match picture.height() == height {
        true => picture.clone(),
        false => resized_down(picture, height),
    };
    match down_first(picture.dimensions(), (width, height)) {
        true => across(&down(picture)),
        false => down(&across(picture)),
    }
}

/// Whether the columns are resized before the rows, from one size to another.
fn down_first((width, height): (u32, u32), (new_width, new_height): (u32, u32)) -> bool {
    let less = |old: u32, new: u32| i64::from(old) - i64::from(new);
    new_height < height && less(height, new_height) > 2 * less(width, new_width)
}

/// Keys' cubic kernel with a = −0.5.
fn kernel(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

/// What one pixel of the new picture is made of: the first pixel, and the weights of it and those behind it.
struct Taps {
    first: usize,
    weights: Vec<i32>,
}

/// The taps of each of `to` pixels from `from` pixels.
fn taps(from: usize, to: usize) -> Vec<Taps> {
    let scale = from as f64 / to as f64;
    let stretch = scale.max(1.0);
    let support = SUPPORT * stretch;
    let tap = |at: usize| {
        let centre = (at as f64 + 0.5) * scale;
        // The casts cut off towards zero and end at 0, as C's do after its check.
        let first = (centre - support + 0.5) as usize;
        let end = ((centre + support + 0.5) as usize).min(from);
        let weights: Vec<f64> =
            (first..end).map(|pixel| kernel((pixel as f64 - centre + 0.5) * (1.0 / stretch))).collect();
        let sum: f64 = weights.iter().sum();
        let whole = |weight: &f64| {
            let scaled = weight / sum * f64::from(1u32 << PRECISION);
            if scaled < 0.0 { (scaled - 0.5) as i32 } else { (scaled + 0.5) as i32 }
        };
        Taps { first, weights: weights.iter().map(whole).collect() }
    };
    (0..to).map(tap).collect()
}

/// A sum of weighted levels as a level.
fn level(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

const HALF: i32 = 1 << (PRECISION - 1);

fn resized_across(picture: &RgbImage, width: u32) -> RgbImage {
    let (old_width, height) = (picture.width() as usize, picture.height());
    let taps = taps(old_width, width as usize);
    let mut new = RgbImage::new(width, height);
    let rows = new.par_chunks_exact_mut(3 * width as usize).zip(picture.par_chunks_exact(3 * old_width));
    rows.for_each(|(new, old)| {
        for (pixel, taps) in new.chunks_exact_mut(3).zip(&taps) {
            let mut sums = [HALF; 3];
            for (weight, old) in taps.weights.iter().zip(old[3 * taps.first..].chunks_exact(3)) {
                for channel in 0..3 {
                    sums[channel] += weight * i32::from(old[channel]);
                }
            }
            pixel.copy_from_slice(&sums.map(level));
        }
    });
    new
}

fn resized_down(picture: &RgbImage, height: u32) -> RgbImage {
    let (width, old_height) = (picture.width() as usize, picture.height() as usize);
    let taps = taps(old_height, height as usize);
    let mut new = RgbImage::new(picture.width(), height);
    new.par_chunks_exact_mut(3 * width).zip(&taps).for_each(|(new, taps)| {
        let mut sums = vec![HALF; new.len()];
        for (weight, old) in taps.weights.iter().zip(picture.as_raw()[3 * width * taps.first..].chunks_exact(3 * width))
        {
            sums.iter_mut().zip(old).for_each(|(sum, level)| *sum += weight * i32::from(*level));
        }
        new.iter_mut().zip(sums).for_each(|(new, sum)| *new = level(sum));
    });
    new
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn picture(width: u32, height: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |x, y| {
            image::Rgb([(x * 37 % 256) as u8, (y * 91 % 256) as u8, ((x * y) % 251) as u8])
        })
    }

    #[test]
    fn a_picture_of_one_colour_stays_it_and_sizes_are_those_asked_for() {
        let plain = RgbImage::from_pixel(31, 17, image::Rgb([0, 127, 255]));
        for (width, height) in [(31, 17), (7, 40), (40, 3), (1, 1)] {
            let new = bicubic(&plain, width, height);
            assert_eq!(new.dimensions(), (width, height));
            assert!(new.pixels().all(|pixel| pixel.0 == [0, 127, 255]));
        }
        assert_eq!(bicubic(&picture(9, 8), 9, 8), picture(9, 8));
    }

    #[test]
    fn weights_sum_to_one_and_reach_over_the_kernel() {
        let taps = taps(8, 4);
        assert_eq!(
            taps.iter().map(|taps| (taps.first, taps.weights.len())).collect::<Vec<_>>(),
            [(0, 5), (0, 7), (1, 7), (3, 5)]
        );
        for taps in &taps {
            let sum: i32 = taps.weights.iter().sum();
            assert!((sum - (1 << PRECISION)).abs() <= 4, "{sum}");
        }
    }

    /// Pillow 13.0 on random pixels: which order of passes gives its very levels.
    #[test]
    fn the_order_of_the_passes_is_pillow_s() {
        for (old, new) in [((30, 63), (15, 32)), ((40, 40), (60, 20)), ((43, 39), (39, 26)), ((50, 100), (49, 20))] {
            assert!(down_first(old, new), "{old:?} to {new:?}");
        }
        for (old, new) in [
            ((63, 30), (32, 15)),
            ((64, 64), (32, 32)),
            ((28, 33), (25, 27)),
            ((43, 27), (27, 4)),
            ((22, 24), (34, 42)),
            ((50, 100), (25, 99)),
        ] {
            assert!(!down_first(old, new), "{old:?} to {new:?}");
        }
    }
}
