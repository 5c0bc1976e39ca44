//! TensorBoard's event files, written beside the metrics.
//!
//! An event file is a sequence of records: the length in eight bytes, its checksum, the bytes of an `Event` message in
//! protocol buffers, and their checksum (CRC-32C, rotated by 15 bits, plus a constant). The messages used here have few
//! fields, so they are encoded by hand; numbers are those of TensorFlow's `event.proto` and `summary.proto`.
//!
//! The file of a training follows from `metrics.jsonl` alone. Its events carry the number of their step as their time, so
//! that a run that was killed and continued ends with the same bytes as one that never was; TensorBoard's axis "step" is
//! right, its axes "relative" and "wall" count steps, too.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use hermesflow_records::write_atomically;

use crate::{Error, Result};

/// The name of an event file: TensorBoard looks for `tfevents` in it.
pub const EVENTS_FILE: &str = "events.out.tfevents.hermesflow";

/// The number of a step, and its numbers by name.
pub type StepNumbers<'a> = (usize, Vec<(&'a str, f64)>);

/// A PNG picture of an event.
#[derive(Debug, Clone)]
pub struct EventPicture {
    /// The name under which TensorBoard shows it.
    pub tag: String,
    /// Width and height in pixels.
    pub size: (u32, u32),
    /// The bytes of the PNG file.
    pub png: Vec<u8>,
}

/// The event file of a training, opened where the run begins or continues.
#[derive(Debug)]
pub struct EventFile {
    path: PathBuf,
    file: File,
}

impl EventFile {
    /// Opens the file with exactly the events of `before`, whatever a killed run wrote after them.
    ///
    /// # Errors
    /// Names the file that cannot be read or written.
    pub fn open<'a>(path: &Path, before: impl IntoIterator<Item = StepNumbers<'a>>) -> Result<Self> {
        let mut whole = record(&version());
        before.into_iter().for_each(|numbers| whole.extend(record(&scalars(&numbers))));
        let there = fs::read(path).unwrap_or_default();
        // What is right stays in place: a TensorBoard that reads the file goes on where it is.
        if !there.starts_with(&whole) {
            write_atomically(path, &whole)?;
        }
        let file = OpenOptions::new().append(true).open(path).map_err(Error::file(path))?;
        if there.len() > whole.len() && there.starts_with(&whole) {
            file.set_len(whole.len() as u64).map_err(Error::file(path))?;
        }
        Ok(Self { path: path.into(), file })
    }

    /// Appends the numbers of a step.
    ///
    /// # Errors
    /// Names the file that cannot be written.
    pub fn append(&mut self, numbers: &StepNumbers<'_>) -> Result<()> {
        self.file.write_all(&record(&scalars(numbers))).map_err(Error::file(&self.path))
    }
}

/// The bytes of an event file of pictures, by step.
pub fn pictures<'a>(steps: impl IntoIterator<Item = (usize, &'a [EventPicture])>) -> Vec<u8> {
    let mut whole = record(&version());
    for (step, pictures) in steps {
        let mut summary = Vec::new();
        for EventPicture { tag, size: (width, height), png } in pictures {
            let mut picture = Vec::new();
            for (field, number) in [(1, *height), (2, *width), (3, 3)] {
                varint(&mut picture, field << 3);
                varint(&mut picture, number.into());
            }
            bytes(&mut picture, 4, png);
            let mut value = Vec::new();
            bytes(&mut value, 1, tag.as_bytes());
            bytes(&mut value, 4, &picture);
            bytes(&mut summary, 1, &value);
        }
        whole.extend(record(&event(step, &summary)));
    }
    whole
}

/// The first event of a file.
fn version() -> Vec<u8> {
    let mut event = vec![1 << 3 | 1];
    event.extend(0f64.to_le_bytes());
    bytes(&mut event, 3, b"brain.Event:2");
    event
}

/// An event with a summary.
fn event(step: usize, summary: &[u8]) -> Vec<u8> {
    let mut event = vec![1 << 3 | 1];
    event.extend((step as f64).to_le_bytes());
    varint(&mut event, 2 << 3);
    varint(&mut event, step as u64);
    bytes(&mut event, 5, summary);
    event
}

/// The event of all numbers of a step, under the names of `metrics.jsonl`.
fn scalars((step, numbers): &StepNumbers<'_>) -> Vec<u8> {
    let mut summary = Vec::new();
    for (name, number) in numbers {
        let mut value = Vec::new();
        bytes(&mut value, 1, name.as_bytes());
        value.push(2 << 3 | 5);
        value.extend((*number as f32).to_le_bytes());
        bytes(&mut summary, 1, &value);
    }
    event(*step, &summary)
}

/// A field of bytes, a text or a message.
fn bytes(message: &mut Vec<u8>, field: u64, content: &[u8]) {
    varint(message, field << 3 | 2);
    varint(message, content.len() as u64);
    message.extend_from_slice(content);
}

fn varint(message: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        message.push(number as u8 | 0x80);
        number >>= 7;
    }
    message.push(number as u8);
}

/// A record of the file.
fn record(event: &[u8]) -> Vec<u8> {
    let length = (event.len() as u64).to_le_bytes();
    let mut record = length.to_vec();
    record.extend(masked(&length).to_le_bytes());
    record.extend_from_slice(event);
    record.extend(masked(event).to_le_bytes());
    record
}

/// The checksum of bytes, masked as TFRecord files have it.
fn masked(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn step(number: usize) -> StepNumbers<'static> {
        (number, vec![("loss", 1.0 / number as f64), ("und/rewards/margins", number as f64 / 3.0)])
    }

    #[test]
    fn a_record_has_the_bytes_that_tensorflow_writes() {
        // By the checksums of the Python package tensorboard 2.21.
        let expected = [3, 0, 0, 0, 0, 0, 0, 0, 176, 153, 73, 14, b'a', b'b', b'c', 110, 87, 241, 33];
        assert_eq!(record(b"abc"), expected);
        let mut number = Vec::new();
        varint(&mut number, 300);
        assert_eq!(number, [0xac, 2]);
    }

    #[test]
    fn the_file_is_cut_to_the_checkpoint_and_grows_back_identically() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(EVENTS_FILE);
        let steps: Vec<StepNumbers<'_>> = (1..=4).map(step).collect();
        let write = |before: usize| {
            let mut file = EventFile::open(&path, steps[..before].to_vec()).unwrap();
            steps[before..].iter().for_each(|step| file.append(step).unwrap());
            fs::read(&path).unwrap()
        };
        let whole = write(0);
        assert_eq!(write(2), whole);
        fs::write(&path, &whole[..whole.len() - 7]).unwrap();
        assert_eq!(write(4), whole, "torn");
        fs::write(&path, b"something else").unwrap();
        assert_eq!(write(3), whole);
        fs::remove_file(&path).unwrap();
        assert_eq!(write(3), whole, "of a training that was begun without");
    }
}
