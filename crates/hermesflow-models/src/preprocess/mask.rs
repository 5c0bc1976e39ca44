//! Mask images of inpainting: which codes of an image are to be generated again.

use std::path::Path;

use image::RgbImage;

use super::Centre;
use super::fit_square;
use super::load;
use crate::Result;

/// A mask image, and the image codes that it covers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mask {
    /// The mask in shades of grey, cropped and scaled like the image that it belongs to.
    pub picture: RgbImage,
    /// Row by row, `grid`² values: whether a code is to be generated again (white in the mask).
    pub painted: Vec<bool>,
}

/// Reads a mask image (white: generate; black: keep) for an image of `side`² pixels and `grid`² codes.
///
/// As in Show-o: shades of grey by Pillow's weights, cropped and scaled as images are, then reduced to the grid
/// bicubically without antialiasing (torch's `interpolate`, a = −0.75); a code is generated if its shade is at least
/// 0.5.
///
/// # Errors
/// If the file is missing or is not an image; the file is named.
pub fn load_mask(path: &Path, side: usize, grid: usize) -> Result<Mask> {
    let mut grey = load(path)?;
    for pixel in grey.pixels_mut() {
        let [r, g, b] = pixel.0.map(u32::from);
        pixel.0 = [((r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16) as u8; 3];
    }
    let picture = fit_square(grey, side, Centre::HalfToEven)?;
    let shades: Vec<f32> = picture.pixels().map(|pixel| f32::from(pixel.0[0]) / 255.0).collect();
    let painted = reduce(&shades, side, grid).into_iter().map(|shade| shade >= 0.5).collect();
    Ok(Mask { picture, painted })
}

/// Scales `side`² values to `grid`²: torch's bicubic `interpolate` without antialiasing, corners not aligned.
fn reduce(values: &[f32], side: usize, grid: usize) -> Vec<f32> {
    const A: f32 = -0.75;
    let near = |x: f32| ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0;
    let far = |x: f32| ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A;
    // Four neighbours of every target with their weights; edge values are repeated beyond the edge.
    let taps: Vec<[(usize, f32); 4]> = (0..grid)
        .map(|target| {
            let place = (target as f32 + 0.5) * (side as f32 / grid as f32) - 0.5;
            let first = place.floor();
            let t = place - first;
            let weights = [far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)];
            std::array::from_fn(|tap| {
                let source = first as i64 - 1 + tap as i64;
                (source.clamp(0, side as i64 - 1) as usize, weights[tap])
            })
        })
        .collect();
    let across = |row: usize, columns: &[(usize, f32); 4]| -> f32 {
        columns.iter().map(|&(column, weight)| values[row * side + column] * weight).sum()
    };
    let value = |rows: &[(usize, f32); 4], columns: &[(usize, f32); 4]| -> f32 {
        rows.iter().map(|&(row, weight)| across(row, columns) * weight).sum()
    };
    taps.iter().flat_map(|rows| taps.iter().map(move |columns| value(rows, columns))).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn reducing_matches_torch() {
        // F.interpolate(mode="bicubic") of ((37·i + 11) mod 64) / 63 in torch 2.7.1.
        let values = |side: usize| (0..side * side).map(|i| ((i * 37 + 11) % 64) as f32 / 63.0).collect::<Vec<_>>();
        let close = |side: usize, grid: usize, expected: &[f32]| {
            let ours = reduce(&values(side), side, grid);
            assert_eq!(ours.len(), expected.len());
            for (ours, expected) in ours.iter().zip(expected) {
                assert!((ours - expected).abs() < 1e-6, "{side} to {grid}: {ours}, not {expected}");
            }
        };
        close(8, 2, &[0.484_126_96, 0.538_690_5, 0.484_127, 0.613_095_2]);
        close(
            8,
            4,
            &[
                0.560_019_85,
                0.782_738_15,
                0.281_746,
                0.486_607_2,
                0.231_646_85,
                0.379_960_3,
                0.586_309_55,
                0.516_369_04,
                0.515_377,
                0.379_960_36,
                0.651_785_8,
                0.516_369_04,
                0.536_210_36,
                0.457_341_25,
                0.654_761_9,
                0.462_797_64,
            ],
        );
        close(
            9,
            3,
            &[
                0.968_253_97,
                0.698_412_7,
                0.428_571_43,
                0.571_428_6,
                0.301_587_3,
                0.031_746_034,
                0.174_603_18,
                0.920_634_9,
                0.650_793_7,
            ],
        );
    }

    #[test]
    fn a_mask_is_white_where_codes_are_painted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mask.png");
        // Twice as wide as high, so the middle is cropped: its left half is white, its lower right bright yellow.
        let mask = RgbImage::from_fn(64, 32, |x, y| match (x < 32, y < 16) {
            (true, _) => image::Rgb([255; 3]),
            (false, true) => image::Rgb([0, 0, 255]),    // 29 of 255
            (false, false) => image::Rgb([255, 255, 0]), // 226 of 255
        });
        mask.save(&path).unwrap();
        let mask = load_mask(&path, 16, 4).unwrap();
        assert_eq!(mask.picture.dimensions(), (16, 16));
        let [a, b] = [true, false];
        assert_eq!(mask.painted, [a, a, b, b, a, a, b, b, a, a, a, a, a, a, a, a]);
        assert_eq!(mask.picture.get_pixel(15, 0).0, [29; 3], "Pillow's grey of blue");
        assert!(load_mask(&folder.path().join("no.png"), 16, 4).unwrap_err().to_string().contains("no.png"));
    }
}
