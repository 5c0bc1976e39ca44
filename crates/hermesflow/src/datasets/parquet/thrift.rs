//! A walk over a struct in Thrift's compact protocol, in which Parquet's footer and page headers are written.
//!
//! The parquet crate reserves memory by some of the counts in there, and loops over others, before it has seen that the
//! file can hold so much. A walk comes first: every field is announced, nothing is kept, and a count that the bytes left
//! cannot bear out ends it.

/// The type of 32-bit numbers.
pub const I32: u8 = 5;
/// The type of lists.
pub const LIST: u8 = 9;
/// The type of structs.
pub const STRUCT: u8 = 12;
/// The types of `true` and `false`.
pub const BOOLEANS: [u8; 2] = [1, 2];

/// Structs and lists may lie within one another so deep; the parquet crate goes no deeper either.
const DEEPEST: usize = 64;

/// Why a walk ends early.
#[derive(Debug, PartialEq, Eq)]
pub enum Fault {
    /// The bytes end first, or a count in them asks for more than is left.
    Ends,
    /// What is there cannot be.
    Broken(String),
}

/// Is told of every field: the numbers of the fields that lead to it, its type, and its value: a number as it is, a list
/// or a text by its length. Of a list, every element follows under the numbers of the list; that of a struct is its
/// position.
pub type Seen<'a> = dyn FnMut(&[i16], u8, i64) -> Result<(), String> + 'a;

/// Walks over the struct that `bytes` begin with, and returns its length in bytes.
///
/// # Errors
/// When the bytes end within the struct, hold a count that they cannot bear out, or `seen` fails.
pub fn walk(bytes: &[u8], seen: &mut Seen<'_>) -> Result<usize, Fault> {
    let mut walk = Walk { bytes, at: 0, path: Vec::new(), seen };
    walk.fields(0)?;
    Ok(walk.at)
}

/// The number (of ten bytes at most, seven bits in each) that `bytes` begin with, and its length in bytes. Parquet writes
/// numbers in this way within pages, too.
///
/// # Errors
/// When the bytes end within the number, or it has more than ten.
pub fn number(bytes: &[u8]) -> Result<(u64, usize), Fault> {
    let mut number = 0;
    for (at, byte) in bytes.iter().take(10).enumerate() {
        number |= u64::from(byte & 127) << (7 * at);
        if *byte < 128 {
            return Ok((number, at + 1));
        }
    }
    Err(if bytes.len() < 10 { Fault::Ends } else { Fault::Broken("a number has more than 64 bits".into()) })
}

struct Walk<'a, 'b> {
    bytes: &'a [u8],
    at: usize,
    path: Vec<i16>,
    seen: &'a mut Seen<'b>,
}

impl Walk<'_, '_> {
    fn fields(&mut self, depth: usize) -> Result<(), Fault> {
        let (mut last, mut before) = (0i16, 0u64);
        loop {
            let head = self.byte()?;
            let (step, kind) = (i16::from(head >> 4), head & 15);
            if kind == 0 {
                return Ok(());
            }
            let id = if step == 0 { self.signed()? as i16 } else { last.saturating_add(step) };
            if let Some(bit) = u32::try_from(id).ok().and_then(|id| 1u64.checked_shl(id)) {
                // Which of two counts?
                if before & bit != 0 {
                    return Err(Fault::Broken(format!("field {id} is there twice")));
                }
                before |= bit;
            }
            last = id;
            self.path.push(id);
            if BOOLEANS.contains(&kind) {
                self.announce(kind, 0)?
            } else {
                self.value(kind, 0, depth)?
            }
            self.path.pop();
        }
    }

    /// A field's value, or an element of a list, by its position.
    fn value(&mut self, kind: u8, position: usize, depth: usize) -> Result<(), Fault> {
        if depth > DEEPEST {
            return Err(Fault::Broken(format!("structs and lists lie more than {DEEPEST} deep")));
        }
        match kind {
            3 => {
                let value = self.byte()?;
                self.announce(kind, i64::from(value as i8))
            }
            4..=6 => {
                let value = self.signed()?;
                self.announce(kind, value)
            }
            7 => self.pass(8).and_then(|()| self.announce(kind, 0)),
            8 => {
                let length = self.unsigned()?;
                self.announce(kind, length as i64)?;
                self.pass(length)
            }
            LIST | 10 => {
                let head = self.byte()?;
                let short = u64::from(head >> 4);
                let count = if short == 15 { self.unsigned()? } else { short };
                self.announce(kind, count as i64)?;
                self.elements(head & 15, count, depth + 1)
            }
            STRUCT => {
                self.announce(kind, position as i64)?;
                self.fields(depth + 1)
            }
            13 => self.pass(16).and_then(|()| self.announce(kind, 0)),
            _ => Err(Fault::Broken(format!("a field is of type {kind}, which Parquet has none of"))),
        }
    }

    fn elements(&mut self, kind: u8, count: u64, depth: usize) -> Result<(), Fault> {
        let left = self.bytes.len() - self.at;
        // No element takes less than a byte, and lists of truth values are not known to Parquet.
        if count > 0 && BOOLEANS.contains(&kind) {
            return Err(Fault::Broken("a list of truth values, which Parquet has none of".into()));
        }
        if count > left as u64 {
            return Err(Fault::Ends);
        }
        (0..count as usize).try_for_each(|position| self.value(kind, position, depth))
    }

    fn announce(&mut self, kind: u8, value: i64) -> Result<(), Fault> {
        (self.seen)(&self.path, kind, value).map_err(Fault::Broken)
    }

    fn byte(&mut self) -> Result<u8, Fault> {
        let byte = *self.bytes.get(self.at).ok_or(Fault::Ends)?;
        self.at += 1;
        Ok(byte)
    }

    fn pass(&mut self, count: u64) -> Result<(), Fault> {
        if count > (self.bytes.len() - self.at) as u64 {
            return Err(Fault::Ends);
        }
        self.at += count as usize;
        Ok(())
    }

    fn unsigned(&mut self) -> Result<u64, Fault> {
        let (number, length) = number(&self.bytes[self.at..])?;
        self.at += length;
        Ok(number)
    }

    fn signed(&mut self) -> Result<i64, Fault> {
        let number = self.unsigned()?;
        Ok((number >> 1) as i64 ^ -((number & 1) as i64))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// What is announced of a field.
    type Announced = (Vec<i16>, u8, i64);

    /// The length of a struct, and all that is announced, in order.
    fn seen(bytes: &[u8]) -> Result<(usize, Vec<Announced>), Fault> {
        let mut all = Vec::new();
        let length = walk(bytes, &mut |path, kind, value| {
            all.push((path.to_vec(), kind, value));
            Ok(())
        })?;
        Ok((length, all))
    }

    #[test]
    fn every_field_is_announced_with_the_way_to_it() {
        // 1: -3, 2: [{1: "ab"}, {}], 20: true, then a byte that is not part of it.
        let bytes = [0x15, 5, 0x19, 0x2c, 0x18, 2, b'a', b'b', 0, 0, 0x01, 40, 0, 99];
        let expected = [
            (vec![1], I32, -3),
            (vec![2], LIST, 2),
            (vec![2], STRUCT, 0),
            (vec![2, 1], 8, 2),
            (vec![2], STRUCT, 1),
            (vec![20], 1, 0),
        ];
        assert_eq!(seen(&bytes).unwrap(), (13, expected.to_vec()));
        for cut in 0..13 {
            assert_eq!(seen(&bytes[..cut]).unwrap_err(), Fault::Ends, "{cut}");
        }
    }

    #[test]
    fn counts_are_held_against_the_bytes_that_are_left() {
        let endless = [0xff, 0xff, 0xff, 0xff, 0x07];
        for kind in [3, 5, 7, 8, 9, 12] {
            let list = [&[0x19, 0xf0 | kind][..], &endless, &[0; 50]].concat();
            assert_eq!(seen(&list).unwrap_err(), Fault::Ends, "elements of type {kind}");
        }
        assert_eq!(seen(&[&[0x18][..], &endless, &[0; 50]].concat()).unwrap_err(), Fault::Ends, "a text");
        let broken = |bytes: &[u8]| match seen(bytes) {
            Err(Fault::Broken(why)) => why,
            other => panic!("{other:?}"),
        };
        assert!(broken(&[&[0x19, 0xf1][..], &endless, &[0; 50]].concat()).contains("truth values"));
        assert!(broken(&[0x15, 2, 0x05, 2, 4, 0]).contains("field 1 is there twice"));
        assert!(broken(&[&[0x16][..], &[0xff; 12], &[0]].concat()).contains("64 bits"));
        assert!(broken(&[0x1b, 0, 0]).contains("type 11"));
        assert!(broken(&[0x1c; 100]).contains("64 deep"));
        // Lists of one list each, and so on.
        assert!(broken(&[0x19; 100]).contains("64 deep"));
    }
}
