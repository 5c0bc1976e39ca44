//! From picture files to the square RGB images that the models read.

use std::io::Cursor;
use std::path::Path;

use fast_image_resize::images::{TypedImage, TypedImageRef};
use fast_image_resize::pixels::U8x3;
use fast_image_resize::{FilterType, ResizeAlg, ResizeOptions, Resizer};
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits, RgbImage};

use crate::{Error, Result};

/// More pixels are refused: a small file can claim any size and would take all memory.
const MOST_PIXELS: u64 = 100_000_000;

/// What a decoder may allocate: 16 bits of red, green, blue and alpha of [`MOST_PIXELS`], and its own tables.
const MOST_BYTES: u64 = 1 << 30;

/// How many times longer than wide a picture may be before its ends, far from the centre that is read, are cut off:
/// fitting a line of one pixel to the model's resolution would take gigabytes.
const LONGEST: u32 = 64;

/// Reads a picture, converts it to RGB (alpha is dropped, not blended) and fits it to `side`².
///
/// # Errors
/// Names the file when it is missing or not a picture.
pub fn load_square(path: &Path, side: usize) -> Result<RgbImage> {
    fit_square(&open(path)?, side)
}

/// Reads a picture, upright as its EXIF orientation says.
///
/// # Errors
/// Names the file when it is missing or not a picture.
pub fn open(path: &Path) -> Result<DynamicImage> {
    decode(&read(path)?, path)
}

/// The bytes of a picture's file.
///
/// # Errors
/// Names the file when it is missing or too large for a picture.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    let io = |source| Error::io(path, source);
    let size = std::fs::metadata(path).map_err(io)?.len();
    if size > MOST_BYTES {
        return Err(broken(path, &format!("{size} bytes are more than a picture has")));
    }
    std::fs::read(path).map_err(io)
}

/// Decodes a picture, PNG, JPEG or WebP by its content, upright as its EXIF orientation says; `path` is named in errors.
///
/// # Errors
/// When it is not a picture, is cut off, or is a larger one than is read.
pub fn decode(bytes: &[u8], path: &Path) -> Result<DynamicImage> {
    let mut decoder = decoder(bytes, path)?;
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms); // a broken note, not a broken picture
    let mut picture = DynamicImage::from_decoder(decoder).map_err(|e| broken(path, &e))?;
    picture.apply_orientation(orientation);
    Ok(picture)
}

/// Looks at a picture without decoding its pixels: whether it is one, and of a size that is read.
///
/// # Errors
/// As [`decode`].
pub fn check_header(bytes: &[u8], path: &Path) -> Result<()> {
    decoder(bytes, path).map(drop)
}

fn decoder<'a>(bytes: &'a [u8], path: &Path) -> Result<impl ImageDecoder + 'a> {
    let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format();
    let mut reader = reader.map_err(|source| Error::io(path, source))?;
    match reader.format() {
        // Its decoder paints what is missing grey and says nothing.
        Some(ImageFormat::Jpeg) if !jpeg_ends(bytes) => return Err(broken(path, &"the JPEG is cut off")),
        Some(ImageFormat::Png | ImageFormat::Jpeg | ImageFormat::WebP) => {}
        _ => return Err(broken(path, &"neither PNG nor JPEG nor WebP")),
    }
    let mut limits = Limits::default();
    limits.max_alloc = Some(MOST_BYTES);
    reader.limits(limits);
    let decoder = reader.into_decoder().map_err(|e| broken(path, &e))?;
    let (width, height) = decoder.dimensions();
    if u64::from(width) * u64::from(height) > MOST_PIXELS {
        let most = MOST_PIXELS / 1_000_000;
        let message = format!("{width}×{height} pixels are more than the {most} million that are read");
        return Err(broken(path, &message));
    }
    Ok(decoder)
}

/// Whether the marker of the end follows the first scan; before it are segments, which may hold a whole thumbnail.
fn jpeg_ends(bytes: &[u8]) -> bool {
    let mut at = 2;
    while let Some(&[0xff, marker, high, low]) = bytes.get(at..at + 4) {
        match marker {
            0xff => at += 1, // padding
            0xda => return bytes[at + 2..].windows(2).any(|pair| pair == [0xff, 0xd9]),
            _ => at += 2 + usize::from(u16::from_be_bytes([high, low])),
        }
    }
    false
}

/// An unreadable picture; the decoders' messages can be several lines.
fn broken(path: &Path, message: &dyn std::fmt::Display) -> Error {
    let message = message.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
    Error::Image { path: path.to_path_buf(), message }
}

/// Resizes the short side to `side` (bicubic, a = −0.5, with antialiasing, as Pillow does) and cuts
/// the centre `side`² out.
///
/// # Errors
/// When the picture has no pixels.
pub fn fit_square(picture: &DynamicImage, side: usize) -> Result<RgbImage> {
    let side = side as u32;
    let rgb = without_ends(picture.to_rgb8());
    let (width, height) = rgb.dimensions();
    if width == 0 || height == 0 {
        return Err(Error::Invalid("the picture has no pixels".into()));
    }
    if (width, height) == (side, side) {
        return Ok(rgb);
    }
    // torchvision: the short side is `side`, the long side is truncated.
    let scale = |long: u32, short: u32| ((u64::from(side) * u64::from(long)) / u64::from(short)) as u32;
    let (new_width, new_height) =
        if width <= height { (side, scale(height, width)) } else { (scale(width, height), side) };
    // Across first, then down, with whole levels between, as Pillow does: overshoot is cut in between.
    let across = convolve(rgb, new_width, height)?;
    let resized = convolve(across, new_width, new_height)?;
    // torchvision's centre crop rounds half to even.
    let offset = |long: u32| {
        let double = long - side;
        let half = double / 2;
        if double % 2 == 1 && half % 2 == 1 { half + 1 } else { half }
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
