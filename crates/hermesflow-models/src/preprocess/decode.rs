//! From image files to pixels: PNG, JPEG and WebP, recognised by their content, turned upright, within limits of size.
//!
//! Whatever goes wrong in a decoder, panics included, becomes an error that names the file.

use std::borrow::Cow;
use std::io::Cursor;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use hermesflow_nn::foreign::{contained, stands_in};
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits};

use crate::{Error, Result};

/// Larger images are refused: a small file can claim any size and would exhaust memory.
const MOST_PIXELS: u64 = 100_000_000;

/// The memory that a decoder may allocate: [`MOST_PIXELS`] pixels of 16-bit red, green, blue and alpha, and some
/// tables.
const MOST_BYTES: u64 = 1 << 30;

/// Images with more pixels are decoded one at a time, since each may take all of [`MOST_BYTES`].
const LARGE: u64 = 16_000_000;
static ALONE: Mutex<()> = Mutex::new(());

/// Reads an image file and turns it upright by its EXIF orientation.
///
/// # Errors
/// If the file is missing or is not an image; the file is named.
pub fn open(path: &Path) -> Result<DynamicImage> {
    decode(&read(path)?, path)
}

/// Reads the bytes of an image file.
///
/// # Errors
/// If the file is missing or larger than an image may be; the file is named.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    let io = |source| Error::io(path, source);
    let size = std::fs::metadata(path).map_err(io)?.len();
    if size > MOST_BYTES {
        return Err(broken(path, &format!("{size} bytes are more than an image may have, {MOST_BYTES}")));
    }
    std::fs::read(path).map_err(io)
}

/// Decodes a PNG, JPEG or WebP image, recognised by its content, and turns it upright by its EXIF orientation. `path`
/// is named in errors.
///
/// # Errors
/// If the bytes are no such image, are cut off, or have more than 100 million pixels.
pub fn decode(bytes: &[u8], path: &Path) -> Result<DynamicImage> {
    within(path, || {
        let bytes = ended(bytes);
        let mut decoder = decoder(&bytes, path)?;
        let (width, height) = decoder.dimensions();
        let large = u64::from(width) * u64::from(height) > LARGE;
        let _alone = large.then(|| ALONE.lock().unwrap_or_else(PoisonError::into_inner));
        let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms); // broken metadata, not a broken image
        let mut picture = DynamicImage::from_decoder(decoder).map_err(|e| broken(path, &e))?;
        picture.apply_orientation(orientation);
        Ok(picture)
    })
}

/// Checks, without decoding pixels, that the bytes begin an image of an accepted format and size.
///
/// # Errors
/// As [`decode`].
pub fn check_header(bytes: &[u8], path: &Path) -> Result<()> {
    within(path, || decoder(bytes, path).map(drop))
}

/// Checks a file as [`check_header`] does, reading only its beginning.
///
/// # Errors
/// As [`open`].
pub fn look(path: &Path) -> Result<()> {
    within(path, || {
        let reader = ImageReader::open(path).and_then(ImageReader::with_guessed_format);
        let reader = reader.map_err(|source| Error::io(path, source))?;
        let (width, height) = reader.into_dimensions().map_err(|e| broken(path, &e))?;
        check_size(width, height, path)
    })
}

/// Runs a decoder; its panics become errors.
fn within<T>(path: &Path, decode: impl FnOnce() -> Result<T>) -> Result<T> {
    contained(decode).map_err(|fault| broken(path, &fault))?
}

fn decoder<'a>(bytes: &'a [u8], path: &Path) -> Result<impl ImageDecoder + 'a> {
    let bytes = riff(bytes);
    let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format();
    let mut reader = reader.map_err(|source| Error::io(path, source))?;
    match reader.format() {
        // The decoder would silently fill missing parts with grey.
        Some(ImageFormat::Jpeg) if !jpeg_ends(bytes) => return Err(broken(path, &"the JPEG is cut off")),
        // The decoder allocates as much as a chunk claims to contain.
        Some(ImageFormat::WebP) if !chunks_fit(bytes.get(12..).unwrap_or_default()) => {
            return Err(broken(path, &"the WebP is cut off"));
        }
        Some(ImageFormat::Png | ImageFormat::Jpeg | ImageFormat::WebP) => {}
        _ => return Err(broken(path, &stands_in(bytes).unwrap_or("neither PNG nor JPEG nor WebP"))),
    }
    let mut limits = Limits::default();
    limits.max_alloc = Some(MOST_BYTES);
    reader.limits(limits);
    let decoder = reader.into_decoder().map_err(|e| broken(path, &e))?;
    let (width, height) = decoder.dimensions();
    check_size(width, height, path)?;
    Ok(decoder)
}

fn check_size(width: u32, height: u32, path: &Path) -> Result<()> {
    if u64::from(width) * u64::from(height) > MOST_PIXELS {
        let most = MOST_PIXELS / 1_000_000;
        let message = format!("{width}×{height} pixels are more than the {most} million that are supported");
        return Err(broken(path, &message));
    }
    Ok(())
}

/// Whether a JPEG's end marker follows its first scan. Segments before the scan may contain a whole thumbnail.
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

/// A WebP without whatever follows it in the file; other images unchanged.
fn riff(bytes: &[u8]) -> &[u8] {
    match bytes.first_chunk() {
        Some(&[b'R', b'I', b'F', b'F', a, b, c, d]) => {
            let end = (u32::from_le_bytes([a, b, c, d]) as usize + 8).min(bytes.len());
            &bytes[..end]
        }
        _ => bytes,
    }
}

/// Whether all chunks of a WebP, those of its frames included, lie within the file.
fn chunks_fit(mut rest: &[u8]) -> bool {
    while let Some((&[k, i, n, d, a, b, c, e], body)) = rest.split_first_chunk() {
        let size = u32::from_le_bytes([a, b, c, e]) as usize;
        let Some(chunk) = body.get(..size) else { return false };
        if [k, i, n, d] == *b"ANMF" && !chunk.get(16..).is_some_and(chunks_fit) {
            return false;
        }
        rest = body.get(size + size % 2..).unwrap_or_default();
    }
    true
}

/// The chunk that ends a PNG.
const IEND: [u8; 12] = [0, 0, 0, 0, b'I', b'E', b'N', b'D', 0xae, 0x42, 0x60, 0x82];

/// An image with its end. If all pixels of a PNG are there, whatever follows them, cut off or not, is replaced by the
/// end.
fn ended(bytes: &[u8]) -> Cow<'_, [u8]> {
    const SIGNATURE: &[u8] = b"\x89PNG\r\n\x1a\n";
    if !bytes.starts_with(SIGNATURE) {
        return bytes.into();
    }
    let (mut at, mut pixels) = (SIGNATURE.len(), false);
    while let Some(&[a, b, c, d, ref kind @ ..]) = bytes.get(at..at + 8) {
        let end = at + 12 + u32::from_be_bytes([a, b, c, d]) as usize;
        match kind {
            b"IEND" if end <= bytes.len() => return bytes.into(),
            b"IDAT" if end > bytes.len() => return bytes.into(), // the pixels are cut off
            _ if end > bytes.len() => break,
            kind => pixels |= kind == b"IDAT",
        }
        at = end;
    }
    if pixels { [&bytes[..at], &IEND].concat().into() } else { bytes.into() }
}

/// The error of an unreadable image. Decoders' messages may have several lines, which are joined.
fn broken(path: &Path, message: &dyn std::fmt::Display) -> Error {
    let message = message.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
    Error::Image { path: path.to_path_buf(), message }
}
