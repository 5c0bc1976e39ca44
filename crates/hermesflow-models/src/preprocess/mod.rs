//! From picture files to the square RGB images that the models read.

use std::path::Path;

use fast_image_resize::images::{TypedImage, TypedImageRef};
use fast_image_resize::pixels::U8x3;
use fast_image_resize::{FilterType, ResizeAlg, ResizeOptions, Resizer};
use image::RgbImage;

mod decode;
mod mask;

pub use decode::{check_header, decode, look, open, read};
pub use mask::{Mask, load_mask};

use crate::{Error, Result};

/// How many times longer than wide a picture may be before its ends, far from the centre that is read, are cut off:
/// fitting a line of one pixel to the model's resolution would take gigabytes.
const LONGEST: u32 = 64;

/// Where the centre begins of a margin that cannot be halved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Centre {
    /// Half to even, as torchvision crops.
    HalfToEven,
    /// Rounded down, as transformers crops.
    Down,
}

/// Reads a picture, upright as its EXIF orientation says, and converts it to RGB (alpha is dropped, not blended).
///
/// # Errors
/// Names the file when it is missing or not a picture.
pub fn load(path: &Path) -> Result<RgbImage> {
    Ok(open(path)?.into_rgb8())
}

/// Reads a picture and fits it to `side`² as torchvision does.
///
/// # Errors
/// Names the file when it is missing or not a picture.
pub fn load_square(path: &Path, side: usize) -> Result<RgbImage> {
    fit_square(load(path)?, side, Centre::HalfToEven)
}

/// Resizes the short side to `side` (bicubic, a = −0.5, with antialiasing, as Pillow does) and cuts
/// the centre `side`² out.
///
/// # Errors
/// When the picture has no pixels.
pub fn fit_square(picture: RgbImage, side: usize, centre: Centre) -> Result<RgbImage> {
    let picture = without_ends(picture);
    let (width, height) = picture.dimensions();
    if width == 0 || height == 0 {
        return Err(Error::Invalid("the picture has no pixels".into()));
    }
    let side = side as u32;
    if (width, height) == (side, side) {
        return Ok(picture);
    }
    // torchvision and transformers: the short side is `side`, the long side is truncated.
    let scale = |long: u32, short: u32| ((u64::from(side) * u64::from(long)) / u64::from(short)) as u32;
    let (new_width, new_height) =
        if width <= height { (side, scale(height, width)) } else { (scale(width, height), side) };
    // Across first, then down, with whole levels between, as Pillow does: overshoot is cut in between.
    let across = convolve(picture, new_width, height)?;
    let resized = convolve(across, new_width, new_height)?;
    let offset = |long: u32| {
        let double = long - side;
        let half = double / 2;
        if centre == Centre::HalfToEven && double % 2 == 1 && half % 2 == 1 { half + 1 } else { half }
    };
    Ok(image::imageops::crop_imm(&resized, offset(new_width), offset(new_height), side, side).to_image())
}

/// The middle of a picture that is more than [`LONGEST`] times as long as wide.
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

fn convolve(picture: RgbImage, width: u32, height: u32) -> Result<RgbImage> {
    if picture.dimensions() == (width, height) {
        return Ok(picture);
    }
    let failed = |e: &dyn std::fmt::Display| Error::Invalid(format!("cannot resize a picture: {e}"));
    let (old_width, old_height) = picture.dimensions();
    let mut resized = RgbImage::new(width, height);
    // One type of pixel, named: the untyped form compiles all of them into this crate, which takes a minute.
    let source = TypedImageRef::<U8x3>::from_buffer(old_width, old_height, &picture).map_err(|e| failed(&e))?;
    let mut target = TypedImage::<U8x3>::from_buffer(width, height, &mut resized).map_err(|e| failed(&e))?;
    let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::CatmullRom));
    Resizer::new().resize_typed(&source, &mut target, &options).map_err(|e| failed(&e))?;
    Ok(resized)
}
