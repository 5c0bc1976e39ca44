//! The id of a record, which joins the files of a run and names a record's folder of images.

use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The longest id in bytes. File systems allow names of 255 bytes, and suffixes must fit too.
const LONGEST: usize = 200;

/// The id of a record: a JSON string or a whole number, written back as it was read.
///
/// The number 7 and the string "7" are the same id, because both would name the same folder.
#[derive(Debug, Clone)]
pub struct RecordId {
    text: String,
    number: bool,
}

/// Why a text cannot be an id, which must be able to name a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidId {
    /// The text is empty, `.` or `..`.
    #[error("the id names no folder")]
    NoName,
    /// The text contains a path separator or a control character.
    #[error("the id holds a path separator or a control character")]
    Separator,
    /// The text is longer than 200 bytes.
    #[error("the id is longer than {LONGEST} bytes")]
    TooLong,
}

impl RecordId {
    /// An id that is written as a string.
    ///
    /// # Errors
    /// If the text cannot name a folder.
    pub fn new(text: impl Into<String>) -> Result<Self, InvalidId> {
        let text = text.into();
        match text.as_str() {
            "" | "." | ".." => Err(InvalidId::NoName),
            id if id.contains(['/', '\\']) || id.contains(char::is_control) => Err(InvalidId::Separator),
            id if id.len() > LONGEST => Err(InvalidId::TooLong),
            _ => Ok(Self { text, number: false }),
        }
    }

    /// The id as text, which is a safe file name.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The id as a hash of eight bytes.
    pub fn key(&self) -> IdKey {
        IdKey::of(&self.text)
    }
}

/// A hash of eight bytes of an id, by which it is recognised among millions. A collision within one file is less likely
/// than a disk error; it would be reported as a duplicate id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IdKey(u64);

impl IdKey {
    pub(crate) fn of(text: &str) -> Self {
        let mut hasher = DefaultHasher::new();
        text.hash(&mut hasher);
        Self(hasher.finish())
    }
}

impl From<u64> for RecordId {
    fn from(number: u64) -> Self {
        Self { text: number.to_string(), number: true }
    }
}

impl From<i64> for RecordId {
    fn from(number: i64) -> Self {
        Self { text: number.to_string(), number: true }
    }
}

impl PartialEq for RecordId {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for RecordId {}

impl Hash for RecordId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}

impl PartialOrd for RecordId {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for RecordId {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.text.cmp(&other.text)
    }
}

impl fmt::Display for RecordId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Serialize for RecordId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match (self.number, self.text.parse::<u64>(), self.text.parse::<i64>()) {
            (true, Ok(number), _) => serializer.serialize_u64(number),
            (true, _, Ok(number)) => serializer.serialize_i64(number),
            _ => serializer.serialize_str(&self.text),
        }
    }
}

impl<'de> Deserialize<'de> for RecordId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = RecordId;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an id that is a text or a whole number of at most 64 bits (put quotes around others)")
            }

            fn visit_u64<E>(self, number: u64) -> Result<RecordId, E> {
                Ok(number.into())
            }

            fn visit_i64<E>(self, number: i64) -> Result<RecordId, E> {
                Ok(number.into())
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<RecordId, E> {
                RecordId::new(text).map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn read(json: &str) -> Result<RecordId, String> {
        serde_json::from_str(json).map_err(|error| error.to_string())
    }

    #[test]
    fn ids_are_written_back_as_they_were() {
        for json in ["7", "-7", "18446744073709551615", "\"7\"", "\"007\"", "\"a b.é\""] {
            assert_eq!(serde_json::to_string(&read(json).unwrap()).unwrap(), json);
        }
        assert_eq!(read("7"), read("\"7\""), "one folder, one id");
    }

    #[test]
    fn what_can_name_no_folder_is_refused() {
        for json in ["\"\"", "\".\"", "\"..\"", "\"../x\"", "\"a/b\"", "\"a\\\\b\"", "\"a\\u0000\"", "\"a\\n\""] {
            assert!(read(json).unwrap_err().contains("the id"), "{json}");
        }
        assert!(RecordId::new("x".repeat(LONGEST)).is_ok());
        assert_eq!(RecordId::new("x".repeat(LONGEST + 1)), Err(InvalidId::TooLong));
    }

    #[test]
    fn numbers_that_would_change_are_refused() {
        for json in ["18446744073709551616", "1.5", "null", "[1]"] {
            let message = read(json).unwrap_err();
            assert!(message.contains("quotes"), "{json}: {message}");
        }
    }
}
