//! What the header of a page states, and what its bytes can decode to.

use ::parquet::basic::Compression;

use super::thrift::{BOOLEANS, Fault, I32, STRUCT, walk};

/// So many bytes a page may decode to, however few it has, where its compression sets no limit.
pub const PAGE: u64 = 512 << 20;

/// What a page's header states.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// What the page is.
    pub kind: Kind,
    /// Bytes in the file, behind the header.
    pub compressed: u64,
    /// Bytes once decoded.
    pub decoded: u64,
    /// Values, absent ones among them.
    pub values: u64,
    /// Bytes before the values that are never compressed.
    pub levels: u64,
    /// Whether nothing is compressed, whatever the column's compression is.
    pub is_plain: bool,
}

/// What a page is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The values that others refer to.
    Dictionary,
    /// Values, in the first form or the second.
    Data,
}

impl Header {
    /// The header that `bytes` begin with, and its length.
    ///
    /// # Errors
    /// When the bytes end first, or state what cannot be.
    pub fn read(bytes: &[u8]) -> Result<(Self, usize), Fault> {
        let (mut sizes, mut values, mut levels, mut is_plain) = ([None; 3], [None; 9], [None; 2], false);
        let length = walk(bytes, &mut |path, kind, value| {
            // The crate reads fields as what they should be, not as what they are.
            let right = match path {
                [1..=4] | [5, 1..=4] | [7, 1..=2] | [8, 1..=6] => kind == I32,
                [5..=8] => kind == STRUCT,
                [7, 3] | [8, 7] => BOOLEANS.contains(&kind),
                _ => true,
            };
            if !right {
                return Err(format!("field {path:?} is of type {kind}"));
            }
            match *path {
                [field @ 1..=3] => sizes[field as usize - 1] = Some(value),
                [page @ (5 | 7 | 8), 1] => values[page as usize] = Some(value),
                [8, field @ 5..=6] => levels[field as usize - 5] = Some(value),
                [8, 7] => is_plain = kind != BOOLEANS[0],
                _ => {}
            }
            Ok(())
        })?;
        let stated = |what: &str, value: Option<i64>| {
            let number = value.ok_or_else(|| Fault::Broken(format!("its {what} is missing")))?;
            let fits = i32::try_from(number).ok().and_then(|number| u64::try_from(number).ok());
            fits.ok_or_else(|| Fault::Broken(format!("its {what} is {number}")))
        };
        let (kind, field) = match stated("type", sizes[0])? {
            0 => (Kind::Data, 5),
            2 => (Kind::Dictionary, 7),
            3 => (Kind::Data, 8),
            other => return Err(Fault::Broken(format!("its type is {other}, which is not read"))),
        };
        let [_, decoded, compressed] = sizes;
        let levels = levels.into_iter().flatten().map(|size| stated("size of levels", Some(size)));
        let header = Self {
            kind,
            compressed: stated("size", compressed)?,
            decoded: stated("decoded size", decoded)?,
            values: stated("number of values", values[field])?,
            levels: levels.sum::<Result<_, _>>()?,
            is_plain,
        };
        if header.levels > header.compressed.min(header.decoded) {
            return Err(Fault::Broken(format!("it states {} bytes of levels; the page has fewer", header.levels)));
        }
        Ok((header, length))
    }

    /// Checks the sizes against the bytes that are left of the column.
    ///
    /// # Errors
    /// Names the size that does not fit.
    pub fn fits(&self, compression: Compression, left: u64) -> Result<(), String> {
        let Self { compressed, decoded, .. } = self;
        if *compressed > left {
            return Err(format!("states {compressed} bytes; {left} are left of its column"));
        }
        if most(compression, *compressed).is_some_and(|most| *decoded > most) {
            return Err(format!("states that its {compressed} bytes decode to {decoded}"));
        }
        Ok(())
    }
}

/// How many bytes so many can decode to at most; nothing where no memory is reserved by what a header states.
pub fn most(compression: Compression, bytes: u64) -> Option<u64> {
    let longest = match compression {
        Compression::UNCOMPRESSED => return None,
        // Three bytes repeat 64.
        Compression::SNAPPY => bytes * 22,
        // A byte adds 255 to a length.
        Compression::LZ4 | Compression::LZ4_RAW => bytes * 255,
        // Two bits repeat 258 bytes.
        Compression::GZIP(_) => bytes * 1032,
        _ => (bytes * 1032).max(PAGE),
    };
    Some(longest + 64)
}
