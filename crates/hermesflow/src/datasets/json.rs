//! Records of JSON text: an array, JSON Lines, a bare run of `{…},` objects, however they are broken into lines.
//!
//! A record ends where its braces close. A line break within a string, or a `{` where none can be, is where a broken
//! record ends and the next one may begin, so one bad line costs no more than itself and what it swallowed.

use std::io::BufRead;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};

use super::{At, Broken, Entry, Place, Reason, Take};

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// A longer record is none: the file is something else.
const LONGEST: usize = 64 << 20;

/// Gives every record to `take`.
///
/// # Errors
/// When the file cannot be read, holds no list of records, or `take` fails.
pub fn read(mut bytes: impl BufRead, file: &Arc<Path>, take: &mut Take<'_>) -> Result<()> {
    let mut scanner = Scanner::new(file);
    loop {
        let buffer = match bytes.fill_buf() {
            Ok(buffer) => buffer,
            Err(error) => {
                let place = scanner.place(scanner.number + 1, scanner.line);
                return take(Err(Broken::new(&place, Reason::CutOff, error.to_string()))).map(|_| ());
            }
        };
        if buffer.is_empty() {
            break;
        }
        let length = buffer.len();
        for &byte in buffer {
            if let Some(record) = scanner.take(byte)
                && take(record)?.is_break()
            {
                return Ok(());
            }
        }
        bytes.consume(length);
        if scanner.record.len() > LONGEST {
            bail!(
                "{}, line {}: begins something longer than {} MB; a list of records is read, one object each",
                file.display(),
                scanner.begun,
                LONGEST >> 20
            );
        }
    }
    if !scanner.record.is_empty() {
        let broken =
            Broken::new(&scanner.place(scanner.number, scanner.begun), Reason::CutOff, "the record is not closed");
        return take(Err(broken)).map(|_| ());
    }
    Ok(())
}

struct Scanner<'a> {
    file: &'a Arc<Path>,
    /// Records that have begun.
    number: usize,
    line: usize,
    /// The line on which the record begins.
    begun: usize,
    record: Vec<u8>,
    depth: usize,
    in_text: bool,
    escaped: bool,
    /// The last byte that is not blank, outside texts.
    before: u8,
    /// What is no record is skipped up to the end of its line.
    skipping: bool,
}

impl<'a> Scanner<'a> {
    fn new(file: &'a Arc<Path>) -> Self {
        Self {
            file,
            number: 0,
            line: 1,
            begun: 1,
            record: Vec::new(),
            depth: 0,
            in_text: false,
            escaped: false,
            before: b'[',
            skipping: false,
        }
    }

    fn place(&self, number: usize, line: usize) -> Place {
        Place { file: self.file.clone(), at: At::Record { number, line } }
    }

    /// One byte more; the record that it ends, or the broken one.
    fn take(&mut self, byte: u8) -> Option<Result<Entry, Broken>> {
        let ended = match byte {
            b'\n' if self.skipping => {
                self.skipping = false;
                None
            }
            _ if self.skipping => None,
            _ if self.depth == 0 => self.between(byte),
            _ if self.in_text => self.within_text(byte),
            b'{' if !matches!(self.before, b'[' | b',' | b':') => {
                let broken = self.broken("another record begins before it is closed");
                self.begin();
                Some(Err(broken))
            }
            _ => self.within(byte),
        };
        self.line += usize::from(byte == b'\n');
        ended
    }

    fn between(&mut self, byte: u8) -> Option<Result<Entry, Broken>> {
        match byte {
            b'{' => {
                self.begin();
                None
            }
            // White space, the array around the records, a byte order mark.
            b' ' | b'\t' | b'\r' | b'\n' | b',' | b'[' | b']' | 0xef | 0xbb | 0xbf => None,
            _ => {
                self.skipping = true;
                self.number += 1;
                Some(Err(Broken::new(&self.place(self.number, self.line), Reason::NotARecord, "not of the form {…}")))
            }
        }
    }

    fn within_text(&mut self, byte: u8) -> Option<Result<Entry, Broken>> {
        if byte == b'\n' {
            return Some(Err(self.broken("a text is not closed")));
        }
        self.record.push(byte);
        match byte {
            _ if self.escaped => self.escaped = false,
            b'\\' => self.escaped = true,
            b'"' => self.in_text = false,
            _ => {}
        }
        None
    }

    fn within(&mut self, byte: u8) -> Option<Result<Entry, Broken>> {
        self.record.push(byte);
        match byte {
            b'"' => self.in_text = true,
            b'{' => self.depth += 1,
            b'}' => self.depth -= 1,
            _ => {}
        }
        if !byte.is_ascii_whitespace() {
            self.before = byte;
        }
        (self.depth == 0).then(|| self.ended())
    }

    fn begin(&mut self) {
        self.number += 1;
        self.record.clear();
        self.record.push(b'{');
        (self.depth, self.in_text, self.escaped, self.before, self.begun) = (1, false, false, b'{', self.line);
    }

    fn ended(&mut self) -> Result<Entry, Broken> {
        let place = self.place(self.number, self.begun);
        let fields = serde_json::from_slice(&self.record).map_err(|error| {
            let said = error.to_string();
            Broken::new(&place, Reason::NotARecord, said.find(" at line ").map_or(&*said, |at| &said[..at]))
        });
        self.record.clear();
        Ok(Entry { place, fields: fields?, blobs: vec![] })
    }

    fn broken(&mut self, why: &str) -> Broken {
        self.record.clear();
        self.depth = 0;
        Broken::new(&self.place(self.number, self.begun), Reason::NotARecord, why)
    }
}

/// Whether a file begins as JSON records do.
pub fn looks_like(head: &[u8]) -> bool {
    let head = head.strip_prefix(BYTE_ORDER_MARK).unwrap_or(head);
    head.trim_ascii_start().first().is_none_or(|byte| matches!(byte, b'{' | b'['))
}

/// Reads a whole object, such as the `.json` of a shard.
///
/// # Errors
/// When it is not one.
pub fn object(bytes: &[u8]) -> Result<serde_json::Map<String, serde_json::Value>> {
    let bytes = bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(bytes);
    serde_json::from_slice(bytes).context("not a JSON object")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::ops::ControlFlow;

    /// The ids that were read, or why not, with their lines; whatever the buffer's size.
    fn seen(text: &str) -> Vec<String> {
        let read_with = |size| {
            let mut seen = Vec::new();
            let file: Arc<Path> = Path::new("a.json").into();
            read(std::io::BufReader::with_capacity(size, text.as_bytes()), &file, &mut |entry| {
                seen.push(match entry {
                    Ok(entry) => {
                        format!("{} {}", entry.place.to_string().replace("a.json, ", ""), entry.fields["id"])
                    }
                    Err(broken) => broken.to_string(),
                });
                Ok(ControlFlow::Continue(()))
            })
            .unwrap();
            seen
        };
        assert_eq!(read_with(1), read_with(4096));
        read_with(7)
    }

    #[test]
    fn every_form_is_read() {
        for (text, expected) in [
            (
                "[{\"id\": 1, \"t\": \"}{\\\"\\\\\"},\n{\"id\": 2, \"of\": [{\"id\": 3}, {\"x\": {}}]}]",
                ["line 1 1", "line 2 2"],
            ),
            ("\u{feff}{\"id\":1}\n\n{\"id\":2}\n", ["line 1 1", "record 2 (line 3) 2"]),
            ("{\"id\":1},\n{\"id\":2},\n", ["line 1 1", "line 2 2"]),
            ("[\n{\"id\":1}\n,{\"id\":2},]", ["record 1 (line 2) 1", "record 2 (line 3) 2"]),
            ("{\"id\":1} \n {\"id\"\r:2}", ["line 1 1", "line 2 2"]),
            ("[{\"id\":1}, {\"id\":2}]", ["line 1 1", "record 2 (line 1) 2"]),
        ] {
            assert_eq!(seen(text), expected, "{text}");
        }
        assert_eq!(
            seen("[\n  {\n    \"id\": 1\n  },\n  {\n    \"id\": 2\n  }\n]"),
            ["record 1 (line 2) 1", "record 2 (line 5) 2"]
        );
        assert!(seen(" []\n").is_empty() && seen("").is_empty());
    }

    #[test]
    fn a_broken_record_costs_itself_alone() {
        let good = "{\"id\": 9}\n";
        for (text, said) in [
            ("{\"id\": 1, \"img_path\"\n", "another record begins"),
            ("{\"id\": 1, \"img_path\": \"x\n", "a text is not closed"),
            ("{\"id\": 1,, \"x\": 2}\n", "not a record"),
            ("{\"id\": nope}\n", "not a record"),
            ("hello {\"id\": 1}\n", "not of the form"),
            ("17\n", "not of the form"),
            ("{\"id\": \"\u{1}\"}\n", "control character"),
        ] {
            let seen = seen(&format!("{good}{text}{good}{good}"));
            assert_eq!(seen.len(), 4, "{text}: {seen:?}");
            assert!(seen[1].starts_with("a.json, line 2: ") && seen[1].contains(said), "{seen:?}");
            assert_eq!((&*seen[0], &*seen[2], &*seen[3]), ("line 1 9", "line 3 9", "line 4 9"), "{text}");
        }
        assert!(seen("[{\"id\": 1}, {\"id\": ")[1].contains("not closed"));
        let not_utf_8 = b"{\"id\": \"\xff\"}\n{\"id\": 2}";
        let (mut good, mut bad) = (0, 0);
        read(&not_utf_8[..], &Path::new("a").into(), &mut |entry| {
            *if entry.is_ok() { &mut good } else { &mut bad } += 1;
            Ok(ControlFlow::Continue(()))
        })
        .unwrap();
        assert_eq!((good, bad), (1, 1));
    }
}
