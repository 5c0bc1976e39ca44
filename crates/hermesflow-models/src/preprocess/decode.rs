//! From files to pixels: PNG, JPEG and WebP by their content, upright, within limits.
//!
//! Whatever a decoder does with a picture, panics included, is an error that names it.

use std::borrow::Cow;
use std::io::Cursor;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use hermesflow_nn::foreign::{contained, stands_in};
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits};

use crate::{Error, Result};

/// More pixels are refused: a small file can claim any size and would take all memory.
const MOST_PIXELS: u64 = 100_000_000;

/// What a decoder may allocate: 16 bits of red, green, blue and alpha of [`MOST_PIXELS`], and its own tables.
const MOST_BYTES: u64 = 1 << 30;

/// Larger pictures are decoded one after the other: each may take all that [`MOST_BYTES`] allows.
const LARGE: u64 = 16_000_000;
static ALONE: Mutex<()> = Mutex::new(());

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
    within(path, || {
        let bytes = ended(bytes);
        let mut decoder = decoder(&bytes, path)?;
        let (width, height) = decoder.dimensions();
        let large = u64::from(width) * u64::from(height) > LARGE;
        let _alone = large.then(|| ALONE.lock().unwrap_or_else(PoisonError::into_inner));
        let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms); // a broken note, not a broken picture
        let mut picture = DynamicImage::from_decoder(decoder).map_err(|e| broken(path, &e))?;
        picture.apply_orientation(orientation);
        Ok(picture)
    })
}

/// Looks at a picture without decoding its pixels: whether it is one, and of a size that is read.
///
/// # Errors
/// As [`decode`].
pub fn check_header(bytes: &[u8], path: &Path) -> Result<()> {
    within(path, || decoder(bytes, path).map(drop))
}

/// As [`check_header`], of a file of which the beginning is read.
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

/// What a decoder makes of a picture; its panics are errors.
fn within<T>(path: &Path, decode: impl FnOnce() -> Result<T>) -> Result<T> {
    contained(decode).map_err(|fault| broken(path, &fault))?
}

fn decoder<'a>(bytes: &'a [u8], path: &Path) -> Result<impl ImageDecoder + 'a> {
    let bytes = riff(bytes);
    let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format();
    let mut reader = reader.map_err(|source| Error::io(path, source))?;
    match reader.format() {
        // Its decoder paints what is missing grey and says nothing.
        Some(ImageFormat::Jpeg) if !jpeg_ends(bytes) => return Err(broken(path, &"the JPEG is cut off")),
        // Its decoder reserves what a chunk claims to hold.
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
        let message = format!("{width}×{height} pixels are more than the {most} million that are read");
        return Err(broken(path, &message));
    }
    Ok(())
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

/// A WebP without what stands behind it; other pictures as they are.
fn riff(bytes: &[u8]) -> &[u8] {
    match bytes.first_chunk() {
        Some(&[b'R', b'I', b'F', b'F', a, b, c, d]) => {
            let end = (u32::from_le_bytes([a, b, c, d]) as usize + 8).min(bytes.len());
            &bytes[..end]
        }
        _ => bytes,
    }
}

/// Whether all chunks of a WebP lie within it, those of its frames too.
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

/// A picture with its end: of a PNG whose pixels are whole what stands behind them, cut off or not, does not matter.
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

/// An unreadable picture; the decoders' messages can be several lines.
fn broken(path: &Path, message: &dyn std::fmt::Display) -> Error {
    let message = message.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
    Error::Image { path: path.to_path_buf(), message }
}
