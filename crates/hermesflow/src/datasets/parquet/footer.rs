//! The footer of a Parquet file, checked before the parquet crate reads it, and what it says of a row group.

use std::fs::File;

use ::parquet::errors::{ParquetError, Result};
use ::parquet::file::FOOTER_SIZE;
use ::parquet::file::metadata::{ColumnChunkMetaData, FooterTail, ParquetMetaData, ParquetMetaDataReader};
use ::parquet::file::reader::ChunkReader;

use super::thrift::{Fault, I32, LIST, STRUCT, walk};

/// Bytes of the mark that a file begins with.
const MARK: u64 = 4;

/// Groups of columns may lie within one another so deep.
const DEEPEST: usize = 60;

/// A footer.
#[derive(Debug)]
pub struct Footer {
    /// What it says.
    pub metadata: ParquetMetaData,
    /// Where it begins; all columns end before.
    pub begins: u64,
}

/// An error of ours among those of the parquet crate.
pub fn wrong(why: impl Into<String>) -> ParquetError {
    ParquetError::General(why.into())
}

impl Footer {
    /// Reads the footer of a file of `size` bytes.
    ///
    /// # Errors
    /// When it is not there, is encrypted, or states a count that the file cannot hold.
    pub fn read(file: &File, size: u64) -> Result<Self> {
        let tail = FOOTER_SIZE as u64;
        let ends = size.checked_sub(tail).filter(|ends| *ends >= MARK).ok_or_else(|| wrong("is cut off"))?;
        let tail = FooterTail::try_from(file.get_bytes(ends, FOOTER_SIZE)?.as_ref())?;
        if tail.is_encrypted_footer() {
            return Err(wrong("is encrypted; decrypt it first"));
        }
        let length = tail.metadata_length();
        let begins = ends.checked_sub(length as u64).filter(|begins| *begins >= MARK);
        let begins = begins.ok_or_else(|| wrong(format!("its footer states {length} bytes, the file has {size}")))?;
        let bytes = file.get_bytes(begins, length)?;
        schema(&bytes).map_err(|why| wrong(format!("its footer is broken: {why}")))?;
        let metadata = ParquetMetaDataReader::decode_metadata(&bytes)?;
        rows(&metadata)?;
        Ok(Self { metadata, begins })
    }

    /// Where a column of a row group lies, once all that is said of it fits the group and the file: first byte and length.
    ///
    /// # Errors
    /// Names the count or size that does not fit.
    pub fn place(&self, column: &ColumnChunkMetaData, rows: i64) -> Result<(u64, u64)> {
        let (values, sizes) = (column.num_values(), [column.compressed_size(), column.uncompressed_size()]);
        let repeats = column.column_descr().max_rep_level() > 0;
        if values < 0 || (if repeats { values < rows } else { values != rows }) {
            return Err(wrong(format!("the footer states {values} values in a group of {rows} rows")));
        }
        if let Some(size) = sizes.into_iter().find(|size| *size < 0) {
            return Err(wrong(format!("the footer states a size of {size} bytes")));
        }
        let start = column.dictionary_page_offset().unwrap_or(column.data_page_offset());
        let (length, begins) = (sizes[0] as u64, self.begins);
        let fits = |start: &u64| *start >= MARK && start.checked_add(length).is_some_and(|end| end <= begins);
        let place = u64::try_from(start).ok().filter(fits);
        let place = place.ok_or_else(|| {
            wrong(format!("the footer states {length} bytes from byte {start}; columns end before byte {begins}"))
        })?;
        Ok((place, length))
    }
}

/// Checks the counts of the rows.
fn rows(metadata: &ParquetMetaData) -> Result<()> {
    let all = metadata.file_metadata().num_rows();
    let groups = metadata.row_groups().iter().map(|group| group.num_rows());
    if let Some(rows) = groups.clone().chain([all]).find(|rows| *rows < 0) {
        return Err(wrong(format!("its footer states {rows} rows")));
    }
    let sum: i128 = groups.map(i128::from).sum();
    if sum != i128::from(all) {
        return Err(wrong(format!("its footer states {all} rows, its row groups have {sum}")));
    }
    Ok(())
}

/// Checks that the columns of the schema are a tree, and not too deep: the crate reserves by the number of children.
fn schema(footer: &[u8]) -> Result<(), String> {
    // How many children every column has; 0 if it is none of groups.
    let mut children: Vec<i64> = Vec::new();
    let walked = walk(footer, &mut |path, kind, value| {
        match (path, kind) {
            ([2], LIST) | ([2, 10], STRUCT) | ([2, 4], 8) => {}
            ([2], STRUCT) => children.push(0),
            ([2, 5], I32) => *children.last_mut().ok_or("a column without its schema")? = value,
            ([2, 1..=3 | 6..=9], I32) => {}
            ([2] | [2, 1..=10], _) => return Err(format!("field {path:?} is of type {kind}")),
            _ => {}
        }
        Ok(())
    });
    walked.map_err(|fault| match fault {
        Fault::Ends => "it is cut off, or states more than its bytes hold".into(),
        Fault::Broken(why) => why,
    })?;
    let mut open: Vec<i64> = Vec::new();
    for (at, &count) in children.iter().enumerate() {
        let left = children.len() - at - 1;
        // The crate reads the numbers as 32 bits.
        if !(0..=left as i64).contains(&count) {
            return Err(format!("a group of columns states {count} of them; {left} are left"));
        }
        while open.pop_if(|left| *left == 0).is_some() {}
        if let Some(left) = open.last_mut() {
            *left -= 1;
        }
        if count > 0 {
            open.push(count);
        }
        if open.len() > DEEPEST {
            return Err(format!("groups of columns lie more than {DEEPEST} deep"));
        }
    }
    Ok(())
}
