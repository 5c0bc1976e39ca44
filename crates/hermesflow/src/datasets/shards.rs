//! WebDataset shards: tar files in which the files of a record follow each other and share a name up to its first dot,
//! as `0001.jpg`, `0001.txt`, `0001.json`.

use std::collections::HashSet;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use hermesflow_models::foreign;
use serde_json::{Map, Value};

use super::At;
use super::Broken;
use super::Entry;
use super::Place;
use super::Reason;
use super::Take;
use super::fields::Names;
use super::json;

/// Extensions of pictures, those that are not read among them: they are named then, not overlooked.
const PICTURES: [&str; 12] =
    ["jpg", "jpeg", "png", "webp", "img", "image", "gif", "bmp", "tif", "tiff", "avif", "heic"];

/// Extensions of text.
const TEXTS: [&str; 6] = ["txt", "text", "caption", "cls", "id", "prompt"];

/// A longer file is not read.
const LONGEST: u64 = 256 << 20;

/// Gives every record of a shard to `take`; only files that can be part of one, or are named, are read.
///
/// # Errors
/// When `take` fails.
pub fn read(bytes: impl Read, file: &Arc<Path>, names: &Names, take: &mut Take<'_>) -> Result<()> {
    let mut archive = tar::Archive::new(bytes);
    let mut record: Option<Entry> = None;
    let (mut ended, mut apart) = (HashSet::new(), HashSet::new());
    let place = |key: &str| Place { file: file.clone(), at: At::Key(key.into()) };
    let cut_off = |key: &str, error: std::io::Error| Broken::new(&place(key), Reason::CutOff, error.to_string());
    let entries = match archive.entries() {
        Ok(entries) => entries,
        Err(error) => return take(Err(cut_off("its beginning", error))).map(drop),
    };
    for member in entries {
        let mut member = match member {
            Ok(member) => member,
            Err(error) => {
                // The record that was begun may lack what is cut off.
                let key = record.map_or_else(|| "its beginning".into(), |entry| entry.fields["__key__"].to_string());
                return take(Err(cut_off(key.trim_matches('"'), error))).map(drop);
            }
        };
        let name = String::from_utf8_lossy(&member.path_bytes()).into_owned();
        let Some((key, extension)) = split(&name).filter(|_| member.header().entry_type().is_file()) else {
            continue;
        };
        let other = record.take_if(|entry| !matches!(&entry.place.at, At::Key(same) if *same == key));
        if let Some(entry) = other {
            if let At::Key(key) = &entry.place.at {
                ended.insert(key.clone());
            }
            if take(Ok(entry))?.is_break() {
                return Ok(());
            }
        }
        if ended.contains(&key) {
            let why = "another record's stand between them; pack the shard again, with `tar --sort=name`";
            let broken = || Err(Broken::new(&place(&key), Reason::NotAdjacent, why));
            if apart.insert(key.clone()) && take(broken())?.is_break() {
                return Ok(());
            }
            continue;
        }
        let entry = record.get_or_insert_with(|| {
            let id = key.trim_start_matches("./").replace('/', "_");
            let fields = Map::from_iter([("__key__".to_string(), Value::from(id))]);
            Entry { place: place(&key), fields, blobs: vec![] }
        });
        let kind = extension.rsplit('.').next().unwrap_or_default();
        let known = kind == "json" || PICTURES.contains(&kind) || TEXTS.contains(&kind) || names.wants(&extension);
        if known && member.size() <= LONGEST {
            let mut content = Vec::new();
            let whole = member.read_to_end(&mut content);
            match whole.map(|read| read as u64 == member.size()) {
                Ok(true) => add(entry, extension, content),
                Ok(false) => return take(Err(cut_off(&key, std::io::ErrorKind::UnexpectedEof.into()))).map(drop),
                Err(error) => return take(Err(cut_off(&key, error))).map(drop),
            }
        }
    }
    match record {
        Some(entry) => take(Ok(entry)).map(drop),
        None => Ok(()),
    }
}

/// A member's content, as what its extension says.
fn add(entry: &mut Entry, extension: String, content: Vec<u8>) {
    let kind = extension.rsplit('.').next().unwrap_or_default();
    if kind == "json" {
        // A broken one gives no fields, and the record is named for what it lacks.
        if let Ok(object) = json::object(&content) {
            for (name, value) in &object {
                entry.fields.entry(name.clone()).or_insert_with(|| value.clone());
            }
            entry.fields.insert(extension, Value::Object(object));
        }
    } else if PICTURES.contains(&kind) {
        entry.blobs.push((extension, content));
    } else if let Ok(text) = foreign::text(content) {
        entry.fields.insert(extension, text.into());
    }
}

/// Key and extensions of a member: `train/0001.seg.png` is `train/0001` and `seg.png`. Hidden files are none.
fn split(path: &str) -> Option<(String, String)> {
    let start = path.rfind('/').map_or(0, |at| at + 1);
    let dot = path[start..].find('.').filter(|dot| *dot > 0)? + start;
    Some((path[..dot].to_string(), path[dot + 1..].to_lowercase()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_split_at_their_first_dot() {
        let split = |path| split(path).map(|(key, extension)| format!("{key}|{extension}"));
        assert_eq!(split("a/b.c/0001.seg.PNG").as_deref(), Some("a/b.c/0001|seg.png"));
        assert_eq!(split("0001.jpg").as_deref(), Some("0001|jpg"));
        assert_eq!((split("./._0001.jpg"), split("README"), split("a.b/c")), (None, None, None));
    }
}
