//! What records call their id, image, caption and prompt.

use std::borrow::Cow;
use std::path::Path;

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use hermesflow_records::RecordId;
use serde_json::{Map, Value};

use super::{At, Broken, Entry, Reason};

const IDS: [&str; 5] = ["id", "key", "__key__", "image_id", "uid"];
const IMAGES: [&str; 12] =
    ["image", "img", "img_path", "image_path", "jpg", "jpeg", "png", "webp", "file_name", "path", "images", "filename"];
const CAPTIONS: [&str; 10] =
    ["caption", "text", "txt", "sentence", "TEXT", "captions", "texts", "sentences", "raw", "description"];

/// JourneyDB's annotation keeps the caption inside of this.
const JOURNEYDB_CAPTION: &str = "Task2.Caption";

/// Names that were given, where the usual ones are not to be tried.
#[derive(Debug, Clone, Default)]
pub struct Names {
    /// The name of the id.
    pub id: Option<String>,
    /// The name of the image.
    pub image: Option<String>,
    /// The name of the caption.
    pub caption: Option<String>,
    /// The name of the prompt.
    pub prompt: Option<String>,
}

/// The image of a record.
#[derive(Debug)]
pub enum Picture {
    /// Inside the source.
    Bytes(Vec<u8>),
    /// A file.
    Path(String),
}

/// The parts of a record.
#[derive(Debug)]
pub struct Parts {
    /// The id.
    pub id: RecordId,
    /// The image.
    pub picture: Picture,
    /// The caption.
    pub caption: String,
    /// The prompt; the caption where there is none.
    pub prompt: String,
    /// Where each came from, for the log.
    pub from: [String; 4],
}

impl Names {
    /// Whether a column or extension can be part of a record.
    pub fn wants(&self, name: &str) -> bool {
        let one = |given: &Option<String>, usual: &[&str]| match given {
            Some(given) => given == name || given.split('.').next() == Some(name),
            None => usual.contains(&name),
        };
        one(&self.id, &IDS)
            || one(&self.image, &IMAGES)
            || one(&self.caption, &CAPTIONS)
            || one(&self.prompt, &["prompt"])
    }

    /// The parts of a record.
    ///
    /// # Errors
    /// What it lacks.
    pub fn parts(&self, entry: &mut Entry) -> Result<Parts, Broken> {
        let broken = |reason, detail: String| Broken::new(&entry.place, reason, detail);
        let there = || format!("its fields: {}", names_of(entry));
        let found = match &self.caption {
            Some(name) => text_at(&entry.fields, name).map(|text| (text, name.as_str())),
            None => caption(&entry.fields),
        };
        let (caption, caption_from) = found.ok_or_else(|| broken(Reason::NoCaption, there()))?;
        let prompt_name = self.prompt.as_deref().unwrap_or("prompt");
        let prompt = text_at(&entry.fields, prompt_name);
        let prompt_from = if prompt.is_some() { prompt_name } else { caption_from }.to_string();
        let (picture, image_from) = self.picture(entry)?;
        let (id, id_from) = match self.id(entry, &picture) {
            Ok(found) => found,
            Err((reason, detail)) => return Err(broken(reason, detail)),
        };
        let picture = match picture {
            Found::Blob(at) => Picture::Bytes(std::mem::take(&mut entry.blobs[at].1)),
            Found::Path(path) => Picture::Path(path),
            Found::Text(bytes) => Picture::Bytes(bytes),
        };
        let prompt = prompt.unwrap_or_else(|| caption.clone());
        Ok(Parts { id, picture, prompt, from: [id_from, image_from, caption_from.to_string(), prompt_from], caption })
    }

    fn picture(&self, entry: &Entry) -> Result<(Found, String), Broken> {
        let blob = |name: &str| {
            let place = entry.blobs.iter().position(|(blob, _)| blob == name)?;
            Some((Found::Blob(place), format!("{name} (embedded)")))
        };
        let path = |name: &str| Some((Found::of(path_in(at(&entry.fields, name)?)?), name.to_string()));
        let found = match &self.image {
            Some(name) => blob(name).or_else(|| blob(name.split('.').next()?)).or_else(|| path(name)),
            None => {
                let first = || entry.blobs.first().and_then(|(name, _)| blob(name));
                let blob = IMAGES.iter().find_map(|name| blob(name)).or_else(first);
                blob.or_else(|| IMAGES.iter().find_map(|name| path(name)))
            }
        };
        match found {
            Some((Found::Path(url), _)) if url.contains("://") => {
                Err(Broken::new(&entry.place, Reason::Url, short(&url)))
            }
            Some((Found::Text(bytes), name)) if image::guess_format(&bytes).is_err() => {
                let why = format!("{name} is base64 of {} bytes that are neither PNG nor JPEG nor WebP", bytes.len());
                Err(Broken::new(&entry.place, Reason::BrokenImage, why))
            }
            Some(found) => Ok(found),
            None => Err(Broken::new(&entry.place, Reason::NoImage, format!("its fields: {}", names_of(entry)))),
        }
    }

    /// The id under its names; else from the image's path, or the row.
    fn id(&self, entry: &Entry, picture: &Found) -> Result<(RecordId, String), (Reason, String)> {
        let found = match &self.id {
            Some(name) => Some((at(&entry.fields, name).filter(|id| !id.is_null()), name.as_str())),
            None => IDS.iter().find_map(|name| {
                let id = entry.fields.get(*name).filter(|id| !id.is_null())?;
                Some((Some(id), *name))
            }),
        };
        match found {
            Some((Some(id), name)) => Ok((id_of(id)?, name.to_string())),
            Some((None, name)) => Err((Reason::NoId, format!("no {name:?}; its fields: {}", names_of(entry)))),
            None => {
                let (id, from) = match (picture, &entry.place.at) {
                    (Found::Path(path), _) if is_journeydb(&entry.fields) => (stem(path), "the image's name"),
                    (Found::Path(path), _) => (whole(path), "the image's path"),
                    (_, At::Row(number)) => (numbered(&entry.place.file, *number), "the row"),
                    (_, At::Record { number, .. }) => {
                        (numbered(&entry.place.file, *number as u64), "the record's number")
                    }
                    (_, At::Key(key)) => (key.replace('/', "_"), "the key"),
                };
                let usable = RecordId::new(&*id).map_err(|error| unusable(&id, &error))?;
                Ok((usable, from.to_string()))
            }
        }
    }
}

/// The caption under its usual names. A prompt is one where nothing else can be, not where a caption was left empty.
fn caption(fields: &Map<String, Value>) -> Option<(String, &'static str)> {
    let found = |name: &'static str| Some((text_at(fields, name)?, name));
    if is_journeydb(fields) {
        return found(JOURNEYDB_CAPTION);
    }
    let prompt = || found("prompt").filter(|_| CAPTIONS.iter().all(|name| !fields.contains_key(*name)));
    CAPTIONS.into_iter().find_map(found).or_else(prompt)
}

/// Whether a record is one of JourneyDB's annotation.
pub fn is_journeydb(fields: &Map<String, Value>) -> bool {
    fields.contains_key("img_path") && (fields.contains_key("Task2") || fields.contains_key("Task3"))
}

enum Found {
    Blob(usize),
    Path(String),
    /// Bytes that were written as text.
    Text(Vec<u8>),
}

/// Base64 as it is found: with or without padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);
/// How base64 of a PNG, a JPEG and a WebP begins.
const BEGINNINGS: [&str; 3] = ["iVBORw0KGgo", "/9j/", "UklGR"];
/// The shortest text that is taken for base64, if it begins so or not.
const SHORTEST: [usize; 2] = [64, 256];

impl Found {
    /// A path, or the picture itself as base64.
    fn of(text: String) -> Self {
        let (data, sure) = match text.strip_prefix("data:").and_then(|rest| rest.split_once(";base64,")) {
            Some((_, data)) => (data, true),
            None => (text.as_str(), BEGINNINGS.iter().any(|beginning| text.starts_with(beginning))),
        };
        let shortest = if sure { SHORTEST[0] } else { SHORTEST[1] };
        if data.len() < shortest {
            return Self::Path(text);
        }
        // Its form for addresses and names has two other letters; long ones are broken into lines.
        let plain = |byte: u8| match byte {
            b'-' => b'+',
            b'_' => b'/',
            byte => byte,
        };
        let data: Vec<u8> = data.bytes().filter(|byte| !byte.is_ascii_whitespace()).map(plain).collect();
        BASE64.decode(data).map_or_else(|_| Self::Path(text), Self::Text)
    }
}

fn unusable(id: &str, error: &dyn std::fmt::Display) -> (Reason, String) {
    (Reason::BadId, format!("{:?}: {error}", short(id)))
}

/// A text as messages show it.
pub fn short(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(120) {
        Some((end, _)) => format!("{}… ({} characters)", &text[..end], text.chars().count()).into(),
        None => text.into(),
    }
}

fn id_of(value: &Value) -> Result<RecordId, (Reason, String)> {
    let whole = |number: &f64| number.fract() == 0.0 && number.abs() < 1e15;
    match value {
        Value::String(text) => RecordId::new(blankless(text)).map_err(|error| unusable(text, &error)),
        Value::Number(number) => match (number.as_u64(), number.as_i64(), number.as_f64().filter(whole)) {
            (Some(number), ..) => Ok(number.into()),
            (_, Some(number), _) => Ok(number.into()),
            (_, _, Some(number)) => Ok((number as i64).into()),
            _ => Err((Reason::BadId, number.to_string())),
        },
        other => Err((Reason::BadId, other.to_string().chars().take(80).collect())),
    }
}

/// A field by its name, or by a path such as `Task2.Caption` or `captions.0`.
fn at<'a>(fields: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    if let Some(value) = fields.get(name) {
        return Some(value);
    }
    let (first, rest) = name.split_once('.')?;
    rest.split('.').try_fold(fields.get(first)?, |value, part| match value {
        Value::Object(map) => map.get(part),
        Value::Array(list) => list.get(part.parse::<usize>().ok()?),
        _ => None,
    })
}

fn text_at(fields: &Map<String, Value>, name: &str) -> Option<String> {
    text_in(at(fields, name)?)
}

/// A text without what is blank around it, a byte order mark included.
fn blankless(text: &str) -> &str {
    text.trim_matches(|character: char| character.is_whitespace() || character == '\u{feff}')
}

/// A text, the first one of a list, or the one that an object calls its text.
fn text_in(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(blankless(text)).filter(|text| !text.is_empty()).map(str::to_string),
        Value::Number(number) => Some(number.to_string()),
        Value::Array(list) => list.iter().find_map(text_in),
        Value::Object(map) => ["caption", "raw", "text", "value"].iter().find_map(|name| text_in(map.get(*name)?)),
        _ => None,
    }
}

/// A path, the first one of a list, or the one that an object calls its path.
fn path_in(value: &Value) -> Option<String> {
    match value {
        Value::String(path) => Some(blankless(path)).filter(|path| !path.is_empty()).map(str::to_string),
        Value::Array(list) => list.iter().find_map(path_in),
        Value::Object(map) => ["path", "file_name", "filename", "bytes", "base64", "data"]
            .iter()
            .find_map(|name| path_in(map.get(*name)?)),
        _ => None,
    }
}

fn names_of(entry: &Entry) -> String {
    let blobs = entry.blobs.iter().map(|(name, _)| name).filter(|name| !entry.fields.contains_key(*name));
    let names: Vec<&str> = entry.fields.keys().chain(blobs).map(String::as_str).collect();
    if names.is_empty() { "none".into() } else { names.join(", ") }
}

/// The file's name without its extension.
fn stem(path: &str) -> String {
    Path::new(path).file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned())
}

/// The whole path without its extension, as one name: files of the same name in two folders are two records.
fn whole(path: &str) -> String {
    let path = path.trim_start_matches("./").trim_start_matches(['/', '\\']);
    let start = path.rfind(['/', '\\']).map_or(0, |at| at + 1);
    let end = path[start..].rfind('.').filter(|dot| *dot > 0).map_or(path.len(), |dot| start + dot);
    path[..end].replace(['/', '\\'], "_")
}

fn numbered(file: &Path, number: u64) -> String {
    let name = file.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    format!("{}-{number:08}", name.split('.').next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::datasets::Place;

    fn parts(names: &Names, fields: Value, blobs: &[&str]) -> Result<String, String> {
        let place = Place { file: Path::new("part-7.parquet").into(), at: At::Row(3) };
        let blobs = blobs.iter().map(|name| ((*name).to_string(), vec![1])).collect();
        let mut entry = Entry { place, fields: fields.as_object().unwrap().clone(), blobs };
        let parts = names.parts(&mut entry).map_err(|broken| broken.to_string())?;
        let picture = match parts.picture {
            Picture::Bytes(_) => parts.from[1].clone(),
            Picture::Path(path) => path,
        };
        Ok(format!("{}|{picture}|{}|{}", serde_json::to_string(&parts.id).unwrap(), parts.caption, parts.prompt))
    }

    #[test]
    fn usual_names_are_found() {
        let usual = Names::default();
        use serde_json::json;
        for (fields, blobs, expected) in [
            (json!({"id": 7, "img_path": "a.png", "prompt": "p", "caption": "c"}), vec![], "7|a.png|c|p"),
            (json!({"image": "x/a.b.jpg", "text": " t "}), vec![], "\"x_a.b\"|x/a.b.jpg|t|t"),
            (json!({"image": "y/a.b.jpg", "text": "t"}), vec![], "\"y_a.b\"|y/a.b.jpg|t|t"),
            (json!({"uid": 2.0, "file_name": "a", "captions": [null, "", "d", "e"]}), vec![], "2|a|d|d"),
            (
                json!({"image": {"path": "in/a.jpg"}, "TEXT": "t"}),
                vec!["image"],
                "\"part-7-00000003\"|image (embedded)|t|t",
            ),
            (json!({"image": {"path": "in/a.jpg", "bytes": null}, "TEXT": "t"}), vec![], "\"in_a\"|in/a.jpg|t|t"),
            (
                json!({"__key__": "k", "path": "old.jpg", "txt": "t"}),
                vec!["input.jpg"],
                "\"k\"|input.jpg (embedded)|t|t",
            ),
            (
                json!({"img_path": "./000/a-b.jpg", "prompt": "p", "Task2": {"Caption": "c"}}),
                vec![],
                "\"a-b\"|./000/a-b.jpg|c|p",
            ),
            (json!({"id": "a", "image": "i", "prompt": "p"}), vec![], "\"a\"|i|p|p"),
            (json!({"id": "a", "image": "i", "sentences": [{"raw": "r", "sentid": 1}]}), vec![], "\"a\"|i|r|r"),
        ] {
            assert_eq!(parts(&usual, fields.clone(), &blobs).unwrap(), expected, "{fields}");
        }
        for (fields, expected) in [
            (
                json!({"id": 7, "image": "a", "caption": " "}),
                "part-7.parquet, row 3: no caption (its fields: id, image, caption)",
            ),
            (json!({"id": 7, "image": "a", "caption": null, "prompt": "p"}), "no caption"),
            (json!({"id": 7, "img_path": "a", "prompt": "p", "Task2": {"Caption": ""}}), "no caption"),
            (json!({"id": 7, "caption": "c"}), "no image (its fields: id, caption)"),
            (json!({"id": "a/b", "image": "a", "caption": "c"}), "unusable id (\"a/b\""),
            (json!({"id": 0.5, "image": "a", "caption": "c"}), "unusable id (0.5)"),
            (json!({"id": 1, "image": "https://x/a.jpg", "caption": "c"}), "image is a web address (https://x/a.jpg)"),
        ] {
            let said = parts(&usual, fields, &[]).unwrap_err();
            assert!(said.contains(expected), "{said}");
        }
    }

    #[test]
    fn pictures_may_be_text() {
        let png = [&b"\x89PNG\r\n\x1a\n"[..], &[7; 300]].concat();
        let text = BASE64.encode(&png);
        let lines =
            text.as_bytes().chunks(76).map(|line| std::str::from_utf8(line).unwrap()).collect::<Vec<_>>().join("\n");
        let address = text.trim_end_matches('=').replace('+', "-").replace('/', "_");
        for image in [text.clone(), lines, address, format!("data:image/png;base64,{text}")] {
            for value in [serde_json::json!(image), serde_json::json!({ "bytes": image })] {
                let said = parts(&Names::default(), serde_json::json!({"image": value, "caption": "c"}), &[]).unwrap();
                assert_eq!(said, "\"part-7-00000003\"|image|c|c", "{value}");
            }
        }
        for path in ["/9j/pictures/a", "UklGR.png", &format!("{}.png", "iVBORw0KGgo".repeat(9))] {
            let fields = serde_json::json!({"id": 1, "image": path, "caption": "c"});
            assert_eq!(parts(&Names::default(), fields, &[]).unwrap(), format!("1|{path}|c|c"));
        }
        let other = serde_json::json!({"image": BASE64.encode([3; 3000]), "caption": "c"});
        let said = parts(&Names::default(), other, &[]).unwrap_err();
        assert!(said.contains("image is base64 of 3000 bytes") && said.len() < 200, "{said}");
        let long = serde_json::json!({"id": "/x".repeat(3000), "image": "a", "caption": "c"});
        let said = parts(&Names::default(), long, &[]).unwrap_err();
        assert!(said.contains("unusable id") && said.contains("6000 characters") && said.len() < 400, "{said}");
    }

    #[test]
    fn given_names_are_followed_alone() {
        let some = |name: &str| Some(name.to_string());
        let names = Names { id: some("n"), image: some("pic.bytes"), caption: some("alt.1"), prompt: some("q") };
        let fields = serde_json::json!({"id": 1, "n": "x", "caption": "no", "alt": ["a", "b"], "q": "r"});
        assert_eq!(parts(&names, fields.clone(), &["image", "pic"]).unwrap(), "\"x\"|pic (embedded)|b|r");
        assert!(["n", "pic", "alt", "q"].iter().all(|name| names.wants(name)) && !names.wants("caption"));
        let names = Names { id: some("m"), ..Names::default() };
        assert!(parts(&names, fields, &["image"]).unwrap_err().contains("no id (no \"m\""));
    }
}
