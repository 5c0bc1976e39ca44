//! The records of a run by everything that an entry of a file of questions may name them by.

use crate::{IdKey, InitialRecord, Result, Table};

/// Records that are read at a time.
const TOGETHER: usize = 64;

/// Finds the records of a run by id, caption, image path or file stem.
pub(super) struct Joint {
    pub(super) ids: Numbers,
    pub(super) captions: Numbers,
    pub(super) paths: Numbers,
    pub(super) stems: Numbers,
}

impl Joint {
    pub(super) fn new(records: &Table<InitialRecord>) -> Result<Self> {
        let [mut ids, mut captions, mut paths, mut stems] = [const { Vec::new() }; 4];
        for numbers in records.chunks(TOGETHER) {
            for (record, number) in records.read(numbers.clone())?.iter().zip(numbers.start as u32..) {
                ids.push((record.id.key(), number));
                captions.push((IdKey::of(record.caption.trim()), number));
                paths.push((IdKey::of(without_dot(&record.img_path)), number));
                stems.push((IdKey::of(stem(&record.img_path)), number));
            }
        }
        let [ids, captions, paths, stems] = [ids, captions, paths, stems].map(Numbers::new);
        Ok(Self { ids, captions, paths, stems })
    }
}

/// The indices of records, by a text of theirs.
pub(super) struct Numbers(Vec<(IdKey, u32)>);

impl Numbers {
    pub(super) fn new(mut pairs: Vec<(IdKey, u32)>) -> Self {
        pairs.sort_unstable();
        Self(pairs)
    }

    pub(super) fn all(&self, text: &str) -> impl Iterator<Item = u32> {
        let key = IdKey::of(text);
        let start = self.0.partition_point(|(other, _)| *other < key);
        self.0[start..].iter().take_while(move |(other, _)| *other == key).map(|(_, number)| *number)
    }

    pub(super) fn last(&self, text: &str) -> Option<u32> {
        self.all(text).last()
    }

    /// The record with a text; `None` if there is none or several.
    pub(super) fn only(&self, text: &str) -> Option<u32> {
        let mut all = self.all(text);
        all.next().filter(|_| all.next().is_none())
    }
}

pub(super) fn without_dot(path: &str) -> &str {
    path.trim_start_matches("./")
}

pub(super) fn stem(path: &str) -> &str {
    let name = path.rsplit('/').next().unwrap_or_default();
    name.rsplit_once('.').map_or(name, |(stem, _)| stem)
}
