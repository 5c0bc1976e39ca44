//! Pictures on their way into the vision tower, and out of the image tokenizer.

use candle_core::{Device, Tensor};
use image::RgbImage;

use super::config::PreprocessorConfig;
use crate::preprocess::pillow;
use crate::{Error, Result};

/// Bytes between the two passes of resizing, at most.
const MOST_BYTES: u64 = 1 << 30;

/// Where a fitted picture stands on its square.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Width of the fitted picture.
    pub width: u32,
    /// Height of the fitted picture.
    pub height: u32,
    /// Columns before it.
    pub left: u32,
    /// Rows above it.
    pub top: u32,
}

impl Place {
    /// Of a picture of this width and height. The longer side becomes the configuration's size; sides are cut off to whole
    /// pixels, not rounded.
    pub fn of((width, height): (u32, u32), config: &PreprocessorConfig) -> Self {
        let longer = f64::from(width.max(height));
        let size = |side: u32| {
            let fitted = f64::from(side) / longer * config.image_size as f64;
            (fitted as usize).max(config.min_size) as u32
        };
        let (width, height) = (size(width), size(height));
        let side = width.max(height);
        Self { width, height, left: (side - width) / 2, top: (side - height) / 2 }
    }

    /// Whether a pixel of the square is one of the picture.
    pub fn holds(&self, x: u32, y: u32) -> bool {
        (self.left..self.left + self.width).contains(&x) && (self.top..self.top + self.height).contains(&y)
    }
}

/// Fits a picture into a square of the configuration's size, filled up with the mean colour.
///
/// # Errors
/// When the picture has no pixels, or is too long and narrow to be resized.
pub fn fit(picture: &RgbImage, config: &PreprocessorConfig) -> Result<RgbImage> {
    let (width, height) = picture.dimensions();
    if width == 0 || height == 0 {
        return Err(Error::Invalid("the picture has no pixels".into()));
    }
    let place = Place::of((width, height), config);
    if 3 * u64::from(place.width) * u64::from(height) > MOST_BYTES {
        let message = format!("a picture of {width}×{height} pixels is too long and narrow to be fitted; crop it");
        return Err(Error::Invalid(message));
    }
    let fitted = pillow::bicubic(picture, place.width, place.height);
    if place.width == place.height {
        return Ok(fitted);
    }
    let side = place.width.max(place.height);
    let background = config.image_mean.map(|mean| (mean * 255.0) as u8);
    let mut square = RgbImage::from_pixel(side, side, image::Rgb(background));
    image::imageops::replace(&mut square, &fitted, i64::from(place.left), i64::from(place.top));
    Ok(square)
}

/// Pixels as the vision tower reads them: rescaled, then by mean and deviation.
///
/// # Shapes
/// `[pictures, 3, image_size, image_size]`
///
/// # Errors
/// When a picture is not of that size ([`fit`]).
pub fn pixels(squares: &[RgbImage], config: &PreprocessorConfig, device: &Device) -> Result<Tensor> {
    let side = config.image_size;
    let value = |level: u8, channel: usize| {
        let value = f64::from(level) * config.rescale_factor;
        match config.do_normalize {
            true => (value as f32 - config.image_mean[channel] as f32) / config.image_std[channel] as f32,
            false => value as f32,
        }
    };
    planes(squares, side, value, device)
}

/// Pixels as the image tokenizer reads them, in [-1, 1].
///
/// # Shapes
/// `[pictures, 3, side, side]`
///
/// # Errors
/// When a picture is not of that size.
pub fn symmetric(squares: &[RgbImage], side: usize, device: &Device) -> Result<Tensor> {
    planes(squares, side, |level, _| f32::from(level) / 127.5 - 1.0, device)
}

fn planes(squares: &[RgbImage], side: usize, value: impl Fn(u8, usize) -> f32, device: &Device) -> Result<Tensor> {
    if let Some(other) = squares.iter().find(|square| square.dimensions() != (side as u32, side as u32)) {
        let message = format!("the model reads {side}×{side} pictures, this one has {:?}", other.dimensions());
        return Err(Error::Invalid(message));
    }
    let mut values = vec![0f32; squares.len() * 3 * side * side];
    for (square, planes) in squares.iter().zip(values.chunks_exact_mut(3 * side * side)) {
        for (at, pixel) in square.pixels().enumerate() {
            for channel in 0..3 {
                planes[channel * side * side + at] = value(pixel[channel], channel);
            }
        }
    }
    Ok(Tensor::from_vec(values, (squares.len(), 3, side, side), device)?)
}

/// A level of a decoded picture: from about [-1, 1] to 0 … 255, cut off and not rounded.
pub fn level(value: f32) -> u8 {
    ((value + 1.0) / 2.0 * 255.0).clamp(0.0, 255.0) as u8
}
