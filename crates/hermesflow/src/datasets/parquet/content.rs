//! What a page decodes to, held against what its header states.

use std::io::{self, Read};

use ::parquet::basic::{Compression, Encoding, Type};
use ::parquet::column::page::Page;
use ::parquet::schema::types::ColumnDescPtr;
use flate2::read::MultiGzDecoder;
use lz4_flex::frame::FrameDecoder;

use super::header::{Header, Kind, PAGE, most};
use super::thrift;

/// A dictionary has at most so many values.
const DICTIONARY: u64 = 1 << 24;

/// Where rows have lists of values, or a page states their lengths apart from them, a column may hold so many values beyond
/// eight for each of its bytes, and one for each row up to a limit: few bytes can state any number of equal ones.
const VALUES: (u64, u64) = (1 << 20, 1 << 24);

/// Whether pages are decoded here: the parquet crate decodes these to their end, whatever size they state.
pub fn is_ours(compression: Compression) -> bool {
    matches!(compression, Compression::GZIP(_) | Compression::BROTLI(_))
}

/// Decodes a page to the size it states.
///
/// # Errors
/// When it has another size, or is broken.
pub fn decoded(compression: Compression, header: &Header, body: &[u8]) -> Result<Vec<u8>, String> {
    let (levels, values) = body.split_at_checked(header.levels as usize).ok_or("is cut off")?;
    let mut bytes = Vec::with_capacity(header.decoded as usize);
    bytes.extend_from_slice(levels);
    let stated = header.decoded - header.levels;
    // A page without values need not have anything to decode.
    if stated > 0 {
        let decoder: Box<dyn Read + '_> = match compression {
            Compression::GZIP(_) => Box::new(MultiGzDecoder::new(values)),
            _ => Box::new(brotli::Decompressor::new(values, 4096)),
        };
        let read = decoder.take(stated + 1).read_to_end(&mut bytes);
        read.map_err(|error| format!("cannot be decoded: {error}"))?;
    }
    match bytes.len() as u64 == header.decoded {
        true => Ok(bytes),
        false => Err(format!("does not decode to the {} bytes it states", header.decoded)),
    }
}

/// Whether a page is tried first: the parquet crate decodes LZ4 to its end where it is written in frames.
pub fn is_tried(compression: Compression, header: &Header) -> bool {
    let most = most(compression, header.compressed);
    compression == Compression::LZ4 && !header.is_plain && most.is_some_and(|most| most > PAGE)
}

/// Tries whether a page in frames of LZ4 decodes to no more than it states.
///
/// # Errors
/// When it does.
pub fn tried(header: &Header, body: &[u8]) -> Result<(), String> {
    let values = body.get(header.levels as usize..).ok_or("is cut off")?;
    let stated = header.decoded - header.levels;
    // Other forms, and what is broken, are for the parquet crate.
    match io::copy(&mut FrameDecoder::new(values).take(stated + 1), &mut io::sink()) {
        Ok(decoded) if decoded > stated => Err(format!("does not decode to the {} bytes it states", header.decoded)),
        _ => Ok(()),
    }
}

/// What the pages of a column have held so far.
pub struct Content {
    /// The column.
    pub column: ColumnDescPtr,
    rows: u64,
    values: u64,
    bytes: u64,
}

impl Content {
    /// A column of so many rows, before its first page.
    pub fn new(column: ColumnDescPtr, rows: u64) -> Self {
        Self { column, rows, values: 0, bytes: 0 }
    }

    /// Checks a page once it is decoded.
    ///
    /// # Errors
    /// Names the count that its bytes cannot bear out.
    pub fn check(&mut self, header: &Header, page: &Page) -> Result<(), String> {
        let (bytes, values) = (page.buffer(), u64::from(page.num_values()));
        if values != header.values || page.is_dictionary_page() != (header.kind == Kind::Dictionary) {
            return Err("is read as another page than its header states".into());
        }
        if header.kind == Kind::Dictionary {
            return self.dictionary(bytes.len() as u64, values);
        }
        (self.values, self.bytes) = (self.values + values, self.bytes + bytes.len() as u64);
        let encoding = page.encoding();
        let lengths = match encoding {
            Encoding::DELTA_LENGTH_BYTE_ARRAY => 1,
            Encoding::DELTA_BYTE_ARRAY => 2,
            _ => 0,
        };
        let most = VALUES.0 + self.rows.min(VALUES.1) + 8 * self.bytes;
        if (self.column.max_rep_level() > 0 || lengths > 0) && self.values > most {
            return Err(format!("states {values} values; its column's {} bytes hold at most {most}", self.bytes));
        }
        let mut rest = if lengths > 0 { self.values(page).ok_or("has broken levels")? } else { &[] };
        for _ in 0..lengths {
            rest = past_lengths(rest, values)?;
        }
        Ok(())
    }

    fn dictionary(&self, bytes: u64, values: u64) -> Result<(), String> {
        let bits = match self.column.physical_type() {
            Type::BOOLEAN => 1,
            Type::INT32 | Type::FLOAT | Type::BYTE_ARRAY => 32,
            Type::INT64 | Type::DOUBLE => 64,
            Type::INT96 => 96,
            Type::FIXED_LEN_BYTE_ARRAY => 8 * u64::try_from(self.column.type_length()).unwrap_or(0).max(1),
        };
        let most = (bytes * 8 / bits).min(DICTIONARY);
        match values > most {
            true => Err(format!("is a dictionary of {values} values; its {bytes} bytes hold at most {most}")),
            false => Ok(()),
        }
    }

    /// The values of a page, behind its levels.
    fn values<'a>(&self, page: &'a Page) -> Option<&'a [u8]> {
        let bytes = page.buffer().as_ref();
        let past = |bytes: &'a [u8], level: i16, encoding: Encoding, values: u32| match encoding {
            _ if level == 0 => Some(bytes),
            Encoding::RLE => {
                let (length, rest) = bytes.split_first_chunk()?;
                rest.get(u32::from_le_bytes(*length) as usize..)
            }
            _ => {
                let bits = u64::from(i16::BITS - level.leading_zeros());
                bytes.get((u64::from(values) * bits).div_ceil(8) as usize..)
            }
        };
        match *page {
            Page::DataPage { num_values, def_level_encoding, rep_level_encoding, .. } => {
                let rest = past(bytes, self.column.max_rep_level(), rep_level_encoding, num_values)?;
                past(rest, self.column.max_def_level(), def_level_encoding, num_values)
            }
            Page::DataPageV2 { def_levels_byte_len, rep_levels_byte_len, .. } => {
                bytes.get(def_levels_byte_len as usize + rep_levels_byte_len as usize..)
            }
            Page::DictionaryPage { .. } => None,
        }
    }
}

/// What follows a list of lengths (DELTA_BINARY_PACKED), of which there are at most as many as values.
fn past_lengths(bytes: &[u8], values: u64) -> Result<&[u8], String> {
    const BROKEN: &str = "has broken lengths";
    let mut rest = bytes;
    let mut header = [0; 4];
    for part in &mut header {
        *part = number(&mut rest).ok_or(BROKEN)?;
    }
    let [block, parts, count, _] = header;
    if count > values {
        return Err(format!("states {count} lengths of {values} values"));
    }
    let part = block.checked_div(parts).ok_or(BROKEN)?;
    // The first is in the header.
    let mut left = count.saturating_sub(1);
    while left > 0 {
        number(&mut rest).ok_or(BROKEN)?;
        let (widths, behind) = rest.split_at_checked(parts as usize).ok_or(BROKEN)?;
        let mut size = 0u64;
        for width in widths {
            size = size.saturating_add(if left > 0 { u64::from(*width).saturating_mul(part) / 8 } else { 0 });
            left = left.saturating_sub(part);
        }
        rest = behind.get(size as usize..).ok_or(BROKEN)?;
    }
    Ok(rest)
}

/// Takes a number from the front.
fn number(bytes: &mut &[u8]) -> Option<u64> {
    let (number, length) = thrift::number(bytes).ok()?;
    *bytes = &bytes[length..];
    Some(number)
}
