//! From image files to the square RGB images that models read.

use std::path::Path;

use image::RgbImage;

mod decode;
mod mask;
pub mod pillow;

pub use decode::{check_header, decode, look, open, read};
pub use mask::{Mask, load_mask};

use crate::{Error, Result};

/// Images whose long side is more than this many times the short one lose their ends first. These lie far outside of
/// the central square, and scaling a line one pixel wide would take gigabytes.
const LONGEST: u32 = 64;

/// A name of how [`fit_square`] scales. It changes with the levels that come out, so that nothing cached before is mixed with them.
pub const FITTING: &str = "pillow";

/// The rounding of the central crop's first row or column where the margin is odd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Centre {
    /// Half to even, as torchvision crops.
    HalfToEven,
    /// Down, as transformers crops.
    Down,
}

/// Reads an image file, turns it upright by its EXIF orientation and converts it to RGB; alpha is dropped, not blended.
///
/// # Errors
/// If the file is missing or is not an image; the file is named.
pub fn load(path: &Path) -> Result<RgbImage> {
    Ok(open(path)?.into_rgb8())
}

/// Reads an image file and crops and scales it to `side`² pixels as torchvision does (see [`fit_square`]).
///
/// # Errors
/// If the file is missing or is not an image; the file is named.
pub fn load_square(path: &Path, side: usize) -> Result<RgbImage> {
    fit_square(load(path)?, side, Centre::HalfToEven)
}

/// Scales an image so that its short side has `side` pixels (bicubic, a = −0.5, with antialiasing, as Pillow does) and
/// crops the central `side`² pixels.
///
/// # Errors
/// If the image has no pixels.
pub fn fit_square(picture: RgbImage, side: usize, centre: Centre) -> Result<RgbImage> {
    let picture = without_ends(picture);
    let (width, height) = picture.dimensions();
    if width == 0 || height == 0 {
        return Err(Error::Invalid("the image has no pixels".into()));
    }
    let side = side as u32;
    if (width, height) == (side, side) {
        return Ok(picture);
    }
    // torchvision and transformers: the short side is `side`, the long side is truncated.
    let scale = |long: u32, short: u32| ((u64::from(side) * u64::from(long)) / u64::from(short)) as u32;
    let (new_width, new_height) =
        if width <= height { (side, scale(height, width)) } else { (scale(width, height), side) };
    let resized = pillow::bicubic(&picture, new_width, new_height);
    let offset = |long: u32| {
        let double = long - side;
        let half = double / 2;
        if centre == Centre::HalfToEven && double % 2 == 1 && half % 2 == 1 { half + 1 } else { half }
    };
    Ok(image::imageops::crop_imm(&resized, offset(new_width), offset(new_height), side, side).to_image())
}

/// The middle of an image that is more than [`LONGEST`] times as long as wide; other images unchanged.
fn without_ends(picture: RgbImage) -> RgbImage {
    let (width, height) = picture.dimensions();
    let (new_width, new_height) =
        (width.min(height.saturating_mul(LONGEST)), height.min(width.saturating_mul(LONGEST)));
    if (new_width, new_height) == (width, height) {
        return picture;
    }
    let (left, top) = ((width - new_width) / 2, (height - new_height) / 2);
    image::imageops::crop_imm(&picture, left, top, new_width, new_height).to_image()
}
