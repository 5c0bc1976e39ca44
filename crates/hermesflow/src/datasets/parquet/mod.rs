//! Rows of Parquet files: text and number columns, `image: {bytes, path}` as the datasets library writes it, or a plain
//! binary column.
//!
//! The parquet crate reserves memory and loops by counts that a file states; these are checked first: those of the footer
//! in [`footer`], those of page headers in [`header`] (both are written in Thrift, [`thrift`]) and [`pages`], and those
//! within pages in [`content`].

mod content;
mod footer;
mod header;
mod pages;
#[cfg(test)]
mod tests;
mod thrift;

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use ::parquet::file::metadata::RowGroupMetaData;
use ::parquet::file::reader::RowGroupReader;
use ::parquet::record::reader::TreeBuilder;
use ::parquet::record::{Field, Row};
use ::parquet::schema::types::{SchemaDescriptor, Type};
use anyhow::{Context, Result, anyhow};
use hermesflow_models::foreign::decoded;
use serde_json::{Map, Value};

use self::footer::Footer;
use self::pages::Group;
use super::fields::Names;
use super::meter::Meter;
use super::{At, Broken, Entry, Place, Reason, Take};

/// So many bytes of a column are decoded together.
const DECODED: i64 = 4 << 20;

/// A column without a name for its contents is text if it is UTF-8 and no longer than this.
const LONGEST_TEXT: usize = 1 << 16;

/// Gives every row to `take`; only columns that can be part of a record, or are named, are read.
///
/// # Errors
/// When the file is not Parquet, or `take` fails.
pub fn read(file: &Arc<Path>, names: &Names, meter: &Meter<'_>, take: &mut Take<'_>) -> Result<()> {
    let unreadable = |error: String| anyhow!("{}: not readable as Parquet: {error}", file.display());
    let open = File::open(file).map_err(|error| anyhow!("{}: {error}", file.display()))?;
    let size = open.metadata().map_or(0, |metadata| metadata.len());
    let footer = decoded(|| Footer::read(&open, size)).map_err(unreadable)?;
    let open = Arc::new(open);
    let root = footer.metadata.file_metadata().schema();
    let columns: Vec<String> = root.get_fields().iter().map(|column| column.name().to_string()).collect();
    let projected = |wanted: &dyn Fn(&str) -> bool| {
        let fields = root.get_fields().iter().filter(|column| wanted(column.name())).cloned().collect();
        let schema = Type::group_type_builder(root.name()).with_fields(fields).build();
        decoded(|| schema.map(|schema| Arc::new(SchemaDescriptor::new(Arc::new(schema))))).map_err(unreadable)
    };
    let mut schema = projected(&|name| names.wants(name))?;
    if schema.num_columns() == 0 {
        // There are as many rows as a column has, whatever the footer says.
        let first = footer.metadata.file_metadata().schema_descr().columns().first();
        let first = first.with_context(|| format!("{}: has no column", file.display()))?;
        schema = projected(&|name| first.path().parts().first().is_some_and(|part| part == name))?;
    }
    let all = u128::from(footer.metadata.file_metadata().num_rows().max(1) as u64);
    let read_by = |row: u64| (u128::from(size) * u128::from(row) / all) as u64;
    let mut row = 0;
    let place = |row| Place { file: file.clone(), at: At::Row(row) };
    let cut_off = |row, error: String| Broken::new(&place(row), Reason::CutOff, error);
    for number in 0..footer.metadata.num_row_groups() {
        let group = Group::new(&open, &footer, number);
        let rows = decoded(|| {
            let together = together(group.metadata(), &schema);
            TreeBuilder::new().with_batch_size(together).as_iter(schema.clone(), &group)
        });
        let mut rows = match rows {
            Ok(rows) => rows,
            Err(error) => return take(Err(cut_off(row + 1, error))).map(drop),
        };
        while let Some(next) = decoded(|| rows.next().transpose()).transpose() {
            row += 1;
            meter.advance(read_by(row) - read_by(row - 1));
            let next = match next {
                Ok(next) => next,
                Err(error) => return take(Err(cut_off(row, error))).map(drop),
            };
            if take(Ok(entry(next, &columns, place(row))))?.is_break() {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// How many rows of a group are decoded together.
fn together(group: &RowGroupMetaData, schema: &SchemaDescriptor) -> usize {
    let row = group.total_byte_size() / group.num_rows().max(1);
    let widest = schema.columns().iter().map(|column| i64::from(column.type_length())).max();
    (DECODED / row.max(widest.unwrap_or(0)).max(1)).clamp(1, 1024) as usize
}

fn entry(row: Row, columns: &[String], place: Place) -> Entry {
    let mut fields: Map<String, Value> = columns.iter().map(|name| (name.clone(), Value::Null)).collect();
    let mut blobs = Vec::new();
    for (name, field) in row.into_columns() {
        let value = value(&name, field, &mut blobs);
        fields.insert(name, value);
    }
    Entry { place, fields, blobs }
}

/// A field as JSON; its bytes go to the blobs under the name of the column, the first of several.
fn value(column: &str, field: Field, blobs: &mut Vec<(String, Vec<u8>)>) -> Value {
    match field {
        Field::Bool(value) => value.into(),
        Field::Byte(value) => value.into(),
        Field::Short(value) => value.into(),
        Field::Int(value) => value.into(),
        Field::Long(value) => value.into(),
        Field::UByte(value) => value.into(),
        Field::UShort(value) => value.into(),
        Field::UInt(value) => value.into(),
        Field::ULong(value) => value.into(),
        Field::Float(value) => f64::from(value).into(),
        Field::Double(value) => value.into(),
        Field::Str(value) => value.into(),
        Field::Bytes(bytes) => {
            let bytes = bytes.data();
            let text = || std::str::from_utf8(bytes).ok().filter(|text| text.len() <= LONGEST_TEXT);
            match image::guess_format(bytes).ok() {
                None if text().is_some() => text().into(),
                _ => {
                    if blobs.iter().all(|(name, _)| name != column) {
                        blobs.push((column.to_string(), bytes.to_vec()));
                    }
                    Value::Null
                }
            }
        }
        Field::Group(row) => {
            let inner = |(name, field): (String, Field)| (name, value(column, field, blobs));
            Value::Object(row.into_columns().into_iter().map(inner).collect())
        }
        Field::ListInternal(list) => {
            list.elements().iter().map(|element| value(column, element.clone(), blobs)).collect()
        }
        _ => Value::Null,
    }
}
