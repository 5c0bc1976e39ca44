//! Pictures inside the page: small files as they are, others scaled, within a budget; what is beyond it is linked.

use std::io::Cursor;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use hermesflow_models::preprocess;
use image::ImageFormat;
use image::codecs::jpeg::JpegEncoder;

use super::folder::relative;

/// Files up to this many bytes are taken as they are.
const SMALL: u64 = 6 << 10;
/// Bytes of all pictures in a page, before their text form, which is a third longer.
const BYTES: usize = 30 << 20;
/// Pictures that are decoded and scaled for a page: what keeps its making within seconds.
const DECODED: usize = 3000;
/// Records that have pictures in the page; those of later ones are linked.
const RECORDS: usize = 1000;
/// The quality of scaled pictures.
const QUALITY: u8 = 80;

/// How a page names a picture that is not inside it.
#[derive(Debug, Clone)]
pub enum Links {
    /// By a path from the page's folder.
    From(PathBuf),
    /// By a path that the server of `--serve` knows: the number of the run, and the path in its data root.
    Served,
}

/// What one record may still put into the page.
#[derive(Debug, Clone, Copy)]
pub struct Share {
    bytes: usize,
    decoded: usize,
}

impl Share {
    /// The share of record `number` of all the page's records.
    pub fn of(number: usize, records: usize) -> Self {
        let sharing = records.clamp(1, RECORDS);
        match number < RECORDS {
            true => Self { bytes: BYTES / sharing, decoded: (DECODED / sharing).max(3) },
            false => Self { bytes: 0, decoded: 0 },
        }
    }

    /// A share for a few pictures that are always inside.
    pub fn whole() -> Self {
        Self { bytes: BYTES, decoded: DECODED }
    }
}

/// Where a run's pictures are, and how they are linked.
#[derive(Debug, Clone)]
pub struct Thumbnails {
    /// The number of the run in the page.
    pub run: usize,
    /// The run's data root.
    pub root: PathBuf,
    /// How pictures outside the page are named.
    pub links: Links,
}

impl Thumbnails {
    /// The source of a picture for an `img`: its bytes, at most `side` pixels long, while the share allows it, else a link;
    /// empty where there is no such file.
    pub fn source(&self, picture: &str, side: u32, share: &mut Share) -> String {
        let inside = self.root.join(picture);
        let Some(file) = [inside, PathBuf::from(picture)].into_iter().find(|file| file.is_file()) else {
            return String::new();
        };
        embedded(&file, side, share).unwrap_or_else(|| self.link(&file))
    }

    fn link(&self, file: &Path) -> String {
        match &self.links {
            Links::Served => match file.strip_prefix(&self.root) {
                Ok(path) => format!("/picture/{}/{}", self.run, escaped(path)),
                Err(_) => String::new(),
            },
            Links::From(folder) => {
                let whole = |path: &Path| std::path::absolute(path).ok();
                match whole(file).zip(whole(folder)).and_then(|(file, folder)| relative(&file, &folder)) {
                    Some(path) => escaped(&path),
                    None => String::new(),
                }
            }
        }
    }
}

/// The bytes of a picture as text, if the share allows it.
pub fn embedded(file: &Path, side: u32, share: &mut Share) -> Option<String> {
    if share.bytes == 0 {
        return None;
    }
    let small = std::fs::metadata(file).ok()?.len() <= SMALL;
    let (format, bytes) = if small {
        let bytes = std::fs::read(file).ok()?;
        (image::guess_format(&bytes).ok()?, bytes)
    } else {
        share.decoded = share.decoded.checked_sub(1)?;
        let picture = preprocess::open(file).ok()?.to_rgb8();
        let scaled = match picture.width().max(picture.height()) > side {
            true => image::DynamicImage::from(picture).thumbnail(side, side).to_rgb8(),
            false => picture,
        };
        let mut bytes = Cursor::new(Vec::new());
        scaled.write_with_encoder(JpegEncoder::new_with_quality(&mut bytes, QUALITY)).ok()?;
        (ImageFormat::Jpeg, bytes.into_inner())
    };
    share.bytes = share.bytes.checked_sub(bytes.len())?;
    Some(format!("data:{};base64,{}", format.to_mime_type(), BASE64_STANDARD.encode(bytes)))
}

/// A path as part of a link.
fn escaped(path: &Path) -> String {
    let mut link = String::new();
    for part in path.components() {
        if !link.is_empty() {
            link.push('/');
        }
        for byte in part.as_os_str().to_string_lossy().bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => link.push(byte.into()),
                _ => link.push_str(&format!("%{byte:02X}")),
            }
        }
    }
    link
}

/// A path that was part of a link; none where it is no text or steps back.
pub fn unescaped(link: &str) -> Option<PathBuf> {
    let mut bytes = Vec::new();
    let mut rest = link.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digits = [rest.next()?, rest.next()?];
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
            }
            byte => byte,
        });
    }
    let path = PathBuf::from(String::from_utf8(bytes).ok()?);
    let plain = |part| matches!(part, std::path::Component::Normal(_));
    path.components().all(plain).then_some(path)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use image::{Rgb, RgbImage};

    #[test]
    fn pictures_are_inside_while_the_share_lasts_and_linked_beyond() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        std::fs::create_dir(&data).unwrap();
        let mut seed = 1u32;
        let noise = RgbImage::from_fn(400, 300, |_, _| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            Rgb(seed.to_le_bytes()[1..].try_into().unwrap())
        });
        noise.save(data.join("a b#.png")).unwrap();
        RgbImage::new(64, 64).save(data.join("small.png")).unwrap();
        let thumbnails = Thumbnails { run: 0, root: data.clone(), links: Links::From(folder.path().join("page")) };
        let mut share = Share { bytes: 40_000, decoded: 1 };
        let source = |share: &mut Share, name: &str| thumbnails.source(name, 100, share);
        let bytes = |source: &str| BASE64_STANDARD.decode(source.split_once("base64,").unwrap().1).unwrap();
        let scaled = source(&mut share, "a b#.png");
        let shown = image::load_from_memory(&bytes(&scaled)).unwrap();
        assert_eq!((shown.width(), shown.height()), (100, 75));
        assert_eq!(source(&mut share, "a b#.png"), "../data/a%20b%23.png", "no more may be decoded");
        let small = source(&mut share, "small.png");
        assert_eq!(bytes(&small), std::fs::read(data.join("small.png")).unwrap(), "as it is");
        assert_eq!(source(&mut share, "none.png"), "");
        let served = Thumbnails { links: Links::Served, ..thumbnails };
        let link = served.source("a b#.png", 100, &mut Share { bytes: 0, decoded: 0 });
        assert_eq!(link, "/picture/0/a%20b%23.png");
        assert_eq!(unescaped("a%20b%23.png").unwrap(), Path::new("a b#.png"));
        assert_eq!(
            (unescaped("../x"), unescaped("a/%2e%2e/x"), unescaped("/x"), unescaped("%2")),
            (None, None, None, None)
        );
    }

    #[test]
    fn a_thousand_records_share_the_budget_and_later_ones_have_none() {
        let all: usize = (0..5000).map(|number| Share::of(number, 5000).bytes).sum();
        assert!(all <= BYTES && all * 4 / 3 < 45_000_000, "{all}");
        assert!(Share::of(999, 5000).decoded >= 3 && Share::of(1000, 5000).decoded == 0);
        assert_eq!(Share::of(0, 1).bytes, BYTES);
    }
}
