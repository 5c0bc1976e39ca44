//! Sound files of many writers, and files of which one count or size is another.
#![allow(clippy::unwrap_used)]

mod footers;
mod headers;
mod sound;

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use ::parquet::basic::{BrotliLevel, Compression, Encoding, GzipLevel, ZstdLevel};
use ::parquet::data_type::{ByteArray, ByteArrayType, FixedLenByteArray, FixedLenByteArrayType, Int64Type};
use ::parquet::file::metadata::{
    ColumnChunkMetaDataBuilder, ParquetMetaData, ParquetMetaDataReader, ParquetMetaDataWriter, RowGroupMetaDataBuilder,
};
use ::parquet::file::properties::{WriterProperties, WriterPropertiesBuilder, WriterVersion};
use ::parquet::file::writer::SerializedFileWriter;
use ::parquet::schema::parser::parse_message_type;
use serde_json::json;

use super::*;
use crate::progress::Progress;

/// A column's values and levels.
struct Column {
    values: Values,
    defined: Vec<i16>,
    repeated: Vec<i16>,
}

enum Values {
    Texts(Vec<ByteArray>),
    Numbers(Vec<i64>),
    Fixed(Vec<FixedLenByteArray>),
}

fn texts<T: AsRef<[u8]>>(values: impl IntoIterator<Item = T>, defined: &[i16], repeated: &[i16]) -> Column {
    let values = values.into_iter().map(|text| ByteArray::from(text.as_ref().to_vec())).collect();
    Column { values: Values::Texts(values), defined: defined.to_vec(), repeated: repeated.to_vec() }
}

fn numbers(values: impl IntoIterator<Item = i64>) -> Column {
    Column { values: Values::Numbers(values.into_iter().collect()), defined: vec![], repeated: vec![] }
}

/// A Parquet file.
fn written(schema: &str, properties: WriterPropertiesBuilder, groups: &[Vec<Column>]) -> Vec<u8> {
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let mut writer = SerializedFileWriter::new(Vec::new(), schema, properties.build().into()).unwrap();
    for columns in groups {
        let mut group = writer.next_row_group().unwrap();
        for Column { values, defined, repeated } in columns {
            let mut column = group.next_column().unwrap().unwrap();
            let defined = (!defined.is_empty()).then_some(&defined[..]);
            let repeated = (!repeated.is_empty()).then_some(&repeated[..]);
            match values {
                Values::Texts(values) => {
                    column.typed::<ByteArrayType>().write_batch(values, defined, repeated).unwrap();
                }
                Values::Numbers(values) => {
                    column.typed::<Int64Type>().write_batch(values, defined, repeated).unwrap();
                }
                Values::Fixed(values) => {
                    column.typed::<FixedLenByteArrayType>().write_batch(values, defined, repeated).unwrap();
                }
            }
            column.close().unwrap();
        }
        group.close().unwrap();
    }
    writer.into_inner().unwrap()
}

/// What is read of a file: the rows, and what is wrong behind them.
fn read_of(bytes: &[u8], names: &Names) -> (Vec<Entry>, Option<String>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.parquet");
    std::fs::write(&path, bytes).unwrap();
    let task = Progress::stderr().task("import", "kB", 0, 0);
    let (mut rows, mut wrong) = (Vec::new(), None);
    let started = Instant::now();
    let read = read(&path.into(), names, &Meter::new(&task), &mut |entry| {
        match entry {
            Ok(entry) => rows.push(entry),
            Err(broken) => wrong = Some(broken.to_string()),
        }
        Ok(ControlFlow::Continue(()))
    });
    assert!(started.elapsed() < Duration::from_secs(10), "takes {:?}", started.elapsed());
    let wrong = wrong.or_else(|| read.err().map(|error| error.to_string()));
    (rows, wrong.map(|wrong| wrong.replace(&folder.path().display().to_string(), "")))
}

fn captions(rows: &[Entry]) -> Vec<&Value> {
    rows.iter().map(|row| &row.fields["caption"]).collect()
}

/// All rows of a file that is sound.
fn whole(bytes: &[u8]) -> Vec<Entry> {
    let (rows, wrong) = read_of(bytes, &Names::default());
    assert_eq!(wrong, None);
    rows
}

const ONE: &str = "message m { required byte_array caption (UTF8); }";

/// Six captions in pages of two, in a file with nothing else; each is its word six times.
fn six(properties: WriterPropertiesBuilder) -> Vec<u8> {
    let properties = properties.set_data_page_row_count_limit(2).set_write_batch_size(2);
    let captions = ["zero", "one", "two", "three", "four", "five"].map(|text| text.repeat(6));
    written(ONE, properties, &[vec![texts(captions, &[], &[])]])
}

fn plain() -> WriterPropertiesBuilder {
    WriterProperties::builder().set_dictionary_enabled(false)
}

/// Where the footer begins, and what it says.
fn footer_of(bytes: &[u8]) -> (usize, ParquetMetaData) {
    let tail = bytes.len() - 8;
    let begins = tail - u32::from_le_bytes(bytes[tail..tail + 4].try_into().unwrap()) as usize;
    (begins, ParquetMetaDataReader::decode_metadata(&bytes[begins..tail]).unwrap())
}

/// The file with another first row group and another first column; their rows are those of the file.
fn edited(
    bytes: &[u8],
    group: impl FnOnce(RowGroupMetaDataBuilder) -> RowGroupMetaDataBuilder,
    column: impl FnOnce(ColumnChunkMetaDataBuilder) -> ColumnChunkMetaDataBuilder,
) -> Vec<u8> {
    let (begins, metadata) = footer_of(bytes);
    let mut groups = metadata.row_groups().to_vec();
    let mut columns = groups[0].columns().to_vec();
    columns[0] = column(columns[0].clone().into_builder()).build().unwrap();
    groups[0] = group(groups[0].clone().into_builder()).set_column_metadata(columns).build().unwrap();
    let metadata = ParquetMetaData::new(metadata.file_metadata().clone(), groups);
    let mut bytes = bytes[..begins].to_vec();
    let mut footer = Vec::new();
    ParquetMetaDataWriter::new(&mut footer, &metadata).finish().unwrap();
    bytes.extend(footer);
    bytes
}

/// The file with a part of its footer replaced; `from` must be there.
fn footer_edited(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let begins = footer_of(bytes).0;
    let at = begins + bytes[begins..].windows(from.len()).position(|window| window == from).unwrap();
    let mut edited = bytes.to_vec();
    edited.splice(at..at + from.len(), to.iter().copied());
    let tail = edited.len() - 8;
    edited[tail..tail + 4].copy_from_slice(&((tail - begins) as u32).to_le_bytes());
    edited
}

fn edited_column(
    bytes: &[u8],
    column: impl FnOnce(ColumnChunkMetaDataBuilder) -> ColumnChunkMetaDataBuilder,
) -> Vec<u8> {
    edited(bytes, |group| group, column)
}

/// A number as Thrift's compact protocol writes it.
fn varint(number: i64) -> Vec<u8> {
    let mut left = (number << 1 ^ number >> 63) as u64;
    let mut bytes = Vec::new();
    while left > 127 {
        bytes.push(left as u8 | 128);
        left >>= 7;
    }
    bytes.push(left as u8);
    bytes
}

/// The file, of one column and one row group, with a part of its first page's header replaced; `from` must be there.
fn header_edited(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let at = 4 + bytes[4..].windows(from.len()).position(|window| window == from).unwrap();
    assert!(at < 40, "not in the first header");
    let mut edited = bytes.to_vec();
    edited.splice(at..at + from.len(), to.iter().copied());
    let longer = to.len() as i64 - from.len() as i64;
    edited_column(&edited, |column| {
        let old = footer_of(bytes).1.row_group(0).column(0).clone();
        let data = old.data_page_offset() + if old.dictionary_page_offset().is_some() { longer } else { 0 };
        column.set_total_compressed_size(old.compressed_size() + longer).set_data_page_offset(data)
    })
}
