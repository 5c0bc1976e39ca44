//! What no judge looks at: edges, colours, brightness and variety of pictures, before and after.
//!
//! Rewards can rise while pictures lose their backgrounds or all come to look alike. These four numbers are of the pixels
//! alone, and nothing in the loop sees them.

use std::path::{Path, PathBuf};

use hermesflow_models::preprocess;
use image::imageops::{FilterType, resize, thumbnail};
use image::{DynamicImage, RgbImage};
use rayon::prelude::*;
use serde::Serialize;

use crate::world::statistics::Mean;

/// Pictures are measured at this length of their longer side.
const SIDE: u32 = 128;
/// Prompts whose pictures are measured, spread over all, and pictures of each.
pub const PROMPTS: usize = 48;
pub const PICTURES: usize = 4;
/// A change by more than this share of what was before is warned of.
const MUCH: f64 = 0.2;
/// The names of the four numbers, and what they are.
const NAMES: [(&str, &str); 4] = [
    ("edge density", "share of pixels on an edge; falls where pictures lose detail"),
    ("colour entropy", "in bits, of 512 colours; falls where few colours are left"),
    ("brightness", "mean, from 0 to 1"),
    (
        "diversity within a prompt",
        "mean difference between pictures of one prompt, from 0 to 1; falls where all look alike",
    ),
];

/// The four numbers of pictures by prompt.
pub type Looks = [Mean; 4];

/// Measures pictures, given by prompt; pictures that cannot be read are left out. None where nothing is left.
pub fn measure(prompts: &[Vec<PathBuf>]) -> Option<Looks> {
    let of_prompt = |files: &Vec<PathBuf>| -> Option<[f64; 4]> {
        let pictures: Vec<RgbImage> = files.iter().filter_map(|file| open(file)).collect();
        (!pictures.is_empty()).then(|| {
            let mean = |of: fn(&RgbImage) -> f64| pictures.iter().map(of).sum::<f64>() / pictures.len() as f64;
            [mean(edges), mean(entropy), mean(brightness), diversity(&pictures)]
        })
    };
    let all: Vec<[f64; 4]> = prompts.par_iter().filter_map(of_prompt).collect();
    let mean = |at: usize| Mean::of(all.iter().map(|one| one[at]).filter(|value| value.is_finite()));
    (!all.is_empty()).then(|| [mean(0), mean(1), mean(2), mean(3)])
}

/// Some of the items, spread over all.
pub fn spread<T>(items: Vec<T>, most: usize) -> Vec<T> {
    let step = items.len().div_ceil(most.max(1)).max(1);
    items.into_iter().step_by(step).collect()
}

fn open(file: &Path) -> Option<RgbImage> {
    let picture = preprocess::open(file).ok()?.to_rgb8();
    Some(match picture.width().max(picture.height()) > SIDE {
        true => DynamicImage::from(picture).resize(SIDE, SIDE, FilterType::Triangle).to_rgb8(),
        false => picture,
    })
}

fn luma(picture: &RgbImage) -> Vec<f64> {
    picture.pixels().map(|p| 0.299 * f64::from(p[0]) + 0.587 * f64::from(p[1]) + 0.114 * f64::from(p[2])).collect()
}

/// The share of pixels where the brightness changes by more than a tenth of what is possible (Sobel).
fn edges(picture: &RgbImage) -> f64 {
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    if width < 3 || height < 3 {
        return 0.0;
    }
    let luma = luma(picture);
    let at = |x: usize, y: usize| luma[y * width + x];
    let mut found = 0;
    for y in 1..height - 1 {
        for x in 1..width - 1 {
            let across = at(x + 1, y - 1) + 2.0 * at(x + 1, y) + at(x + 1, y + 1)
                - at(x - 1, y - 1)
                - 2.0 * at(x - 1, y)
                - at(x - 1, y + 1);
            let down = at(x - 1, y + 1) + 2.0 * at(x, y + 1) + at(x + 1, y + 1)
                - at(x - 1, y - 1)
                - 2.0 * at(x, y - 1)
                - at(x + 1, y - 1);
            found += usize::from(across.hypot(down) > 0.1 * 4.0 * 255.0);
        }
    }
    found as f64 / ((width - 2) * (height - 2)) as f64
}

/// The entropy of colours of three bits per channel, in bits.
fn entropy(picture: &RgbImage) -> f64 {
    let mut counts = [0usize; 512];
    for pixel in picture.pixels() {
        let [r, g, b] = pixel.0.map(|value| usize::from(value >> 5));
        counts[r << 6 | g << 3 | b] += 1;
    }
    let all = picture.pixels().len().max(1) as f64;
    counts.iter().filter(|count| **count > 0).map(|&count| count as f64 / all).map(|p| -p * p.log2()).sum()
}

fn brightness(picture: &RgbImage) -> f64 {
    let luma = luma(picture);
    luma.iter().sum::<f64>() / luma.len().max(1) as f64 / 255.0
}

/// The mean over pairs of pictures of the root mean square of their differences, at 16×16 pixels; NaN for a single one.
fn diversity(pictures: &[RgbImage]) -> f64 {
    let small: Vec<RgbImage> = pictures
        .iter()
        .map(|picture| match picture.width() < 16 || picture.height() < 16 {
            true => resize(picture, 16, 16, FilterType::Triangle),
            false => thumbnail(picture, 16, 16),
        })
        .collect();
    let distance = |a: &RgbImage, b: &RgbImage| {
        let square = |(a, b): (&u8, &u8)| (f64::from(*a) - f64::from(*b)).powi(2);
        (a.as_raw().iter().zip(b.as_raw()).map(square).sum::<f64>() / a.as_raw().len() as f64).sqrt() / 255.0
    };
    let pairs = (0..small.len()).flat_map(|a| (a + 1..small.len()).map(move |b| (a, b)));
    let (sum, count) = pairs.fold((0.0, 0), |(sum, count), (a, b)| (sum + distance(&small[a], &small[b]), count + 1));
    if count == 0 { f64::NAN } else { sum / f64::from(count) }
}

/// The numbers of several sets of pictures, side by side.
#[derive(Debug, Clone, Serialize)]
pub struct Comparison {
    title: String,
    note: String,
    /// The names of the sets.
    sets: Vec<String>,
    rows: Vec<Row>,
    /// What moved much, in words.
    pub warnings: Vec<String>,
}

#[derive(Debug, Clone, Serialize)]
struct Row {
    name: &'static str,
    meaning: &'static str,
    cells: Vec<String>,
    /// The change from `before` to the last set.
    change: String,
    much: bool,
}

impl Comparison {
    /// Sets side by side; the change is that from set number `before` to the last one.
    pub fn new(title: &str, note: &str, sets: Vec<(String, Looks)>, before: usize) -> Self {
        let changes = before + 1 < sets.len();
        let mut warnings = Vec::new();
        let rows = NAMES.iter().enumerate().map(|(at, (name, meaning))| {
            let of = |set: usize| sets[set].1[at];
            let last = sets.len() - 1;
            let known = changes && of(before).count > 0 && of(last).count > 0 && of(before).mean.abs() > 1e-9;
            let change = if known { of(last).mean / of(before).mean - 1.0 } else { 0.0 };
            let much = change.abs() > MUCH;
            if much {
                let moved = if change > 0.0 { "rose" } else { "fell" };
                let percent = change.abs() * 100.0;
                let (from, to) = (of(before).mean, of(last).mean);
                warnings.push(format!("{title}: {name} {moved} by {percent:.0} %, from {from:.3} to {to:.3}"));
            }
            Row {
                name,
                meaning,
                cells: (0..sets.len()).map(|set| of(set).to_string()).collect(),
                change: match (change * 100.0).round() {
                    _ if !known => "–".into(),
                    0.0 => "0 %".into(),
                    percent => format!("{percent:+.0} %"),
                },
                much,
            }
        });
        let rows = rows.collect();
        Self {
            title: title.into(),
            note: note.into(),
            sets: sets.into_iter().map(|(name, _)| name).collect(),
            rows,
            warnings,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use image::Rgb;

    #[test]
    fn numbers_of_pictures_worked_by_hand() {
        let flat = RgbImage::from_pixel(32, 32, Rgb([51, 51, 51]));
        assert_eq!((edges(&flat), entropy(&flat)), (0.0, 0.0));
        assert!((brightness(&flat) - 0.2).abs() < 1e-9);
        // Half black, half white: one bit; the two columns at the border have edges, of the 30 that are looked at.
        let halves = RgbImage::from_fn(32, 32, |x, _| if x < 16 { Rgb([0; 3]) } else { Rgb([255; 3]) });
        assert!((entropy(&halves) - 1.0).abs() < 1e-12);
        assert!((edges(&halves) - 2.0 / 30.0).abs() < 1e-12);
        let white = RgbImage::from_pixel(32, 32, Rgb([255; 3]));
        let black = RgbImage::new(32, 32);
        assert!((diversity(&[white.clone(), black.clone()]) - 1.0).abs() < 1e-9);
        // Three pairs: equal, and twice apart.
        assert!((diversity(&[white.clone(), white.clone(), black]) - 2.0 / 3.0).abs() < 1e-9);
        assert!(diversity(&[white]).is_nan());
    }

    #[test]
    fn what_moves_by_more_than_a_fifth_is_warned_of() {
        let looks = |edge: f64| [edge, 1.0, 0.5, 0.1].map(|mean| Mean { mean, error: 0.0, count: 4 });
        let sets = |after: f64| {
            vec![("real".into(), looks(9.0)), ("before".into(), looks(0.5)), ("after".into(), looks(after))]
        };
        assert!(Comparison::new("t", "", sets(0.41), 1).warnings.is_empty());
        let found = Comparison::new("t", "", sets(0.39), 1);
        assert_eq!(found.warnings, ["t: edge density fell by 22 %, from 0.500 to 0.390"]);
        assert!(found.rows[0].much && !found.rows[1].much);
    }

    #[test]
    fn items_are_spread_over_all() {
        assert_eq!(spread((0..10).collect(), 4), [0, 3, 6, 9]);
        assert_eq!(spread((0..3).collect(), 4), [0, 1, 2]);
    }
}
