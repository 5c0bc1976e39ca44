//! How picture files are read, against what Pillow 11 makes of the same bytes (tests/data/orientations.tar.gz).
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::HashMap;
use std::io::{Cursor, Read};
use std::path::Path;

use hermesflow_models::preprocess::{Centre, check_header, decode, fit_square};
use image::{DynamicImage, GenericImageView, ImageFormat, RgbImage};

/// The members of a shard by name.
fn members(name: &str) -> HashMap<String, Vec<u8>> {
    let file = std::fs::File::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)).unwrap();
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(file));
    let read = |member: std::io::Result<tar::Entry<'_, _>>| {
        let mut member = member.unwrap();
        let name = member.path().unwrap().display().to_string();
        let mut bytes = Vec::new();
        Read::read_to_end(&mut member, &mut bytes).unwrap();
        (name, bytes)
    };
    archive.entries().unwrap().map(read).collect()
}

fn read(bytes: &[u8]) -> Result<DynamicImage, String> {
    decode(bytes, Path::new("it.png")).map_err(|error| error.to_string())
}

#[test]
fn all_orientations_match_pillow() {
    let members = members("orientations.tar.gz");
    for format in ["png", "webp", "jpg"] {
        for orientation in 1..=8 {
            let ours = read(&members[&format!("{format}{orientation}.{format}")]).unwrap().to_rgb8();
            let pillow = &members[&format!("{format}{orientation}.rgb")];
            assert_eq!(ours.dimensions(), (pillow[0].into(), pillow[1].into()), "{format} {orientation}");
            // Two decoders of JPEG round differently.
            let allowed = if format == "jpg" { 3 } else { 0 };
            let furthest = ours.iter().zip(&pillow[2..]).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
            assert!(furthest <= allowed, "{format} {orientation}: {furthest}");
        }
    }
}

/// A JPEG of orientation 1 turned by hand is the same file under another orientation, to the pixel.
#[test]
fn a_turned_jpeg_is_the_upright_one_turned() {
    let members = members("orientations.tar.gz");
    let upright = read(&members["jpg1.jpg"]).unwrap();
    let turned = [upright.fliph(), upright.rotate180(), upright.flipv()];
    for (orientation, expected) in [(2, &turned[0]), (3, &turned[1]), (4, &turned[2])] {
        assert_eq!(&read(&members[&format!("jpg{orientation}.jpg")]).unwrap(), expected);
    }
    assert_eq!(read(&members["jpg6.jpg"]).unwrap(), upright.rotate90());
    assert_eq!(read(&members["jpg8.jpg"]).unwrap(), upright.rotate270());
}

#[test]
fn every_mode_becomes_rgb_without_its_alpha() {
    let colour = DynamicImage::ImageRgba8(image::RgbaImage::from_fn(20, 10, |x, y| {
        image::Rgba([x as u8 * 12, y as u8 * 25, 77, (x * y) as u8])
    }));
    let encoded = |picture: &DynamicImage, format| {
        let mut bytes = Cursor::new(Vec::new());
        picture.write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    };
    let (plain, grey) = (DynamicImage::ImageRgb8(colour.to_rgb8()), DynamicImage::ImageLuma8(colour.to_luma8()));
    for format in [ImageFormat::Png, ImageFormat::WebP] {
        assert_eq!(read(&encoded(&colour, format)).unwrap().to_rgb8(), plain.to_rgb8(), "alpha is dropped");
        assert_eq!(read(&encoded(&plain, format)).unwrap().to_rgb8(), plain.to_rgb8());
    }
    for deep in [DynamicImage::ImageRgba16(colour.to_rgba16()), DynamicImage::ImageRgb16(colour.to_rgb16())] {
        assert_eq!(read(&encoded(&deep, ImageFormat::Png)).unwrap().to_rgb8(), plain.to_rgb8(), "16 bits are scaled");
    }
    let alpha = DynamicImage::ImageLumaA8(colour.to_luma_alpha8());
    for picture in [&grey, &alpha, &DynamicImage::ImageLuma16(grey.to_luma16())] {
        assert_eq!(read(&encoded(picture, ImageFormat::Png)).unwrap().to_rgb8(), grey.to_rgb8());
    }
}

/// A small file that claims to be huge costs nothing but a message.
#[test]
fn a_bomb_is_an_error() {
    let small = DynamicImage::ImageRgb8(RgbImage::new(8, 8));
    let encoded = |format| {
        let mut bytes = Cursor::new(Vec::new());
        small.write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    };
    let mut png = encoded(ImageFormat::Png);
    png[16..20].copy_from_slice(&60_000u32.to_be_bytes());
    png[20..24].copy_from_slice(&50_000u32.to_be_bytes());
    let mut sum = flate2::Crc::new();
    sum.update(&png[12..29]);
    png[29..33].copy_from_slice(&sum.sum().to_be_bytes());
    let mut jpeg = encoded(ImageFormat::Jpeg);
    let frame = jpeg.windows(2).position(|two| two == [0xff, 0xc0]).unwrap();
    jpeg[frame + 5..frame + 7].copy_from_slice(&50_000u16.to_be_bytes());
    jpeg[frame + 7..frame + 9].copy_from_slice(&60_000u16.to_be_bytes());
    for bomb in [png, jpeg] {
        let said = read(&bomb).unwrap_err();
        assert!(said.contains("60000×50000 pixels are more than the 100 million"), "{said}");
        assert!(check_header(&bomb, Path::new("it.png")).is_err());
    }
}

#[test]
fn what_is_no_picture_is_named() {
    let picture = DynamicImage::ImageRgb8(RgbImage::from_fn(40, 40, |x, y| image::Rgb([(x * y) as u8, 7, y as u8])));
    for format in [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP] {
        let mut bytes = Cursor::new(Vec::new());
        picture.write_to(&mut bytes, format).unwrap();
        let whole = bytes.into_inner();
        for length in [0, 1, 3, 7, 12, 40, whole.len() / 4, whole.len() / 2, whole.len() * 3 / 4, whole.len() - 13] {
            let said = read(&whole[..length]).unwrap_err();
            assert!(said.contains("it.png: not a readable image"), "{format:?} {length}: {said}");
        }
        assert!(read(&whole).is_ok(), "{format:?}");
        // A PNG's last twelve bytes say that it ends.
        let without = (1..=12).all(|cut| read(&whole[..whole.len() - cut]) == read(&whole));
        assert_eq!(without, format == ImageFormat::Png, "{format:?}");
        assert!(read(&[&whole[..], b"more"].concat()).is_ok(), "{format:?}: what follows is no part of it");
    }
    for other in [b"GIF89a".as_slice(), b"hello"] {
        assert!(read(other).unwrap_err().contains("neither PNG nor JPEG nor WebP"));
    }
}

/// A line of one pixel is fitted in a moment, and to what is in its middle.
#[test]
fn extreme_shapes_are_fitted() {
    for (width, height) in [(1, 1), (2, 3), (3000, 20), (20, 3000), (60_000, 1), (1, 60_000), (63, 64)] {
        let picture =
            RgbImage::from_fn(width, height, |x, y| image::Rgb([(x * 255 / width) as u8, (y * 255 / height) as u8, 9]));
        let fitted = fit_square(picture, 64, Centre::HalfToEven).unwrap();
        assert_eq!(fitted.dimensions(), (64, 64));
        let middle = fitted.get_pixel(32, 32).0;
        let about = |value: u8, long: bool| !long || value.abs_diff(127) < 4;
        assert!(about(middle[0], width > 1000) && about(middle[1], height > 1000) && middle[2] == 9, "{middle:?}");
        assert_eq!(DynamicImage::ImageRgb8(fitted).dimensions(), (64, 64));
    }
}
