//! Draws a scene: flat shapes with anti-aliased edges.

use image::{Rgb, RgbImage};

use crate::scene::{CELL, Object, SIDE, Scene, Shape};

/// Samples along each side of a pixel, for anti-aliasing.
const SAMPLES: usize = 4;

impl Scene {
    /// Draws the scene as a picture of 64×64 pixels.
    pub fn render(&self) -> RgbImage {
        let mut image = RgbImage::from_pixel(SIDE as u32, SIDE as u32, Rgb(self.background.rgb()));
        for object in &self.objects {
            paint(&mut image, object);
        }
        image
    }
}

fn paint(image: &mut RgbImage, object: &Object) {
    let (left, top) = (object.column * CELL, object.row * CELL);
    let radius = object.size.pixels() as f64 / 2.0;
    let middle = CELL as f64 / 2.0;
    let colour = object.colour.rgb();
    for y in 0..CELL {
        for x in 0..CELL {
            let mut inside_count = 0;
            for sample in 0..SAMPLES * SAMPLES {
                let offset = |at: usize, sub: usize| at as f64 + (sub as f64 + 0.5) / SAMPLES as f64 - middle;
                let (dx, dy) = (offset(x, sample % SAMPLES), offset(y, sample / SAMPLES));
                inside_count += usize::from(inside(object.shape, ARM, dx / radius, dy / radius));
            }
            let share = inside_count as f64 / (SAMPLES * SAMPLES) as f64;
            let pixel = image.get_pixel_mut((left + x) as u32, (top + y) as u32);
            for (channel, &ink) in pixel.0.iter_mut().zip(&colour) {
                *channel = (f64::from(*channel) * (1.0 - share) + f64::from(ink) * share).round() as u8;
            }
        }
    }
}

/// Half the width of a cross's arms, where the shape spans from -1 to 1.
pub(crate) const ARM: f64 = 0.34;

/// Whether a point of the square [-1, 1]² lies inside a shape; `arm` is half the width of a cross's arms.
pub(crate) fn inside(shape: Shape, arm: f64, x: f64, y: f64) -> bool {
    if x.abs() > 1.0 || y.abs() > 1.0 {
        return false;
    }
    match shape {
        Shape::Square => true,
        Shape::Circle => x * x + y * y <= 1.0,
        Shape::Triangle => x.abs() <= (y + 1.0) / 2.0,
        Shape::Cross => x.abs() <= arm || y.abs() <= arm,
    }
}
