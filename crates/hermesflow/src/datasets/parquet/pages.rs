//! The pages of a column, whose headers are checked before the parquet crate reads them.
//!
//! The crate decodes a page into as much memory as its header states, and assigns values to rows by counting what the
//! pages hold. So all headers of a column are looked at first: if they are sound and their values are not those that the
//! footer states, nothing of the row group is read, since its rows would be put together wrongly. If one of them is broken,
//! the rows before it are read.

use std::collections::VecDeque;
use std::fs::File;
use std::sync::Arc;

use ::parquet::basic::Compression;
use ::parquet::bloom_filter::Sbbf;
use ::parquet::column::page::{Page, PageMetadata, PageReader};
use ::parquet::errors::{ParquetError, Result};
use ::parquet::file::metadata::{ColumnChunkMetaData, RowGroupMetaData};
use ::parquet::file::reader::{ChunkReader, RowGroupReader, SerializedPageReader};
use ::parquet::record::reader::RowIter;
use ::parquet::schema::types::{ColumnDescPtr, Type};

use super::content::{self, Content};
use super::footer::{Footer, wrong};
use super::header::{Header, Kind};
use super::thrift::Fault;

/// Bytes that are read first of a header; few have more.
const HEADER: u64 = 256;

/// A row group whose columns are checked.
pub struct Group<'a> {
    file: Arc<File>,
    footer: &'a Footer,
    metadata: &'a RowGroupMetaData,
}

impl<'a> Group<'a> {
    /// The row group of a number, from 0.
    pub fn new(file: &Arc<File>, footer: &'a Footer, number: usize) -> Self {
        Self { file: file.clone(), footer, metadata: footer.metadata.row_group(number) }
    }
}

impl RowGroupReader for Group<'_> {
    fn metadata(&self) -> &RowGroupMetaData {
        self.metadata
    }

    fn num_columns(&self) -> usize {
        self.metadata.num_columns()
    }

    fn get_column_page_reader(&self, number: usize) -> Result<Box<dyn PageReader>> {
        let column = self.metadata.column(number);
        let open = || {
            let rows = self.metadata.num_rows();
            let place = self.footer.place(column, rows)?;
            Checked::new(self.file.clone(), column, rows, place)
        };
        Ok(Box::new(open().map_err(|error| named(&column.column_descr_ptr(), error))?))
    }

    fn get_column_bloom_filter(&self, _: usize) -> Option<&Sbbf> {
        None
    }

    fn get_row_iter(&self, projection: Option<Type>) -> Result<RowIter<'_>> {
        RowIter::from_row_group(projection, self)
    }
}

/// An error with the name of its column.
fn named(column: &ColumnDescPtr, error: ParquetError) -> ParquetError {
    let why = match error {
        ParquetError::General(why) => why,
        other => other.to_string(),
    };
    wrong(format!("column {}: {why}", column.path()))
}

/// A page, and where its bytes are.
#[derive(Debug)]
struct Found {
    header: Header,
    at: u64,
}

/// The pages of a column, each given once it is checked.
struct Checked {
    file: Arc<File>,
    inner: SerializedPageReader<File>,
    pages: VecDeque<Found>,
    /// What is wrong with the page behind them.
    fault: Option<String>,
    compression: Compression,
    content: Content,
}

impl Checked {
    /// Looks at the headers of a column of a group of so many rows.
    fn new(file: Arc<File>, column: &ColumnChunkMetaData, rows: i64, place: (u64, u64)) -> Result<Self> {
        let (pages, fault) = headers(&file, column.compression(), place)?;
        let stated = column.num_values() as u64;
        let held: u64 = pages.iter().filter(|page| page.header.kind == Kind::Data).map(|page| page.header.values).sum();
        if held > stated || (held < stated && fault.is_none()) {
            return Err(wrong(format!("the footer states {stated} values, the headers of its pages {held}")));
        }
        let compression = column.compression();
        let content = Content::new(column.column_descr_ptr(), rows as u64);
        let mut column = column.clone().into_builder();
        if content::is_ours(compression) {
            column = column.set_compression(Compression::UNCOMPRESSED);
        }
        let inner = SerializedPageReader::new(file.clone(), &column.build()?, rows as usize, None)?;
        Ok(Self { file, inner, pages, fault, compression, content })
    }

    /// Fails where the crate would read a header that is broken.
    fn ahead(&self) -> Result<()> {
        match &self.fault {
            Some(fault) if self.pages.is_empty() => Err(wrong(fault.clone())),
            _ => Ok(()),
        }
    }

    fn next_page(&mut self) -> Result<Option<Page>> {
        loop {
            self.ahead()?;
            let Some(Found { header, at }) = self.pages.pop_front() else { return Ok(None) };
            let at_page = |why: String| wrong(page(at, &why));
            if content::is_tried(self.compression, &header) {
                let body = self.file.get_bytes(at, header.compressed as usize)?;
                content::tried(&header, &body).map_err(at_page)?;
            }
            let Some(mut page) = self.inner.get_next_page()? else { return Ok(None) };
            if content::is_ours(self.compression) && !header.is_plain {
                let decoded = content::decoded(self.compression, &header, page.buffer()).map_err(at_page)?;
                let (Page::DataPage { buf, .. } | Page::DataPageV2 { buf, .. } | Page::DictionaryPage { buf, .. }) =
                    &mut page;
                *buf = decoded.into();
            }
            self.content.check(&header, &page).map_err(at_page)?;
            // The crate takes a page without values for the column's end.
            if header.values > 0 || header.kind == Kind::Dictionary {
                return Ok(Some(page));
            }
        }
    }
}

/// Where a page is, and what is wrong with it.
fn page(at: u64, why: &str) -> String {
    format!("the page at byte {at} {why}")
}

/// The pages between two places, up to the first whose header is broken, and what is wrong with that.
fn headers(
    file: &File,
    compression: Compression,
    (start, length): (u64, u64),
) -> Result<(VecDeque<Found>, Option<String>)> {
    let (mut pages, mut at, end) = (VecDeque::new(), start, start + length);
    while at < end {
        let (header, length) = match header(file, at, end)? {
            Ok(read) => read,
            Err(why) => return Ok((pages, Some(page(at, &why)))),
        };
        let body = at + length;
        if let Err(why) = header.fits(compression, end - body) {
            return Ok((pages, Some(page(at, &why))));
        }
        at = body + header.compressed;
        pages.push_back(Found { header, at: body });
    }
    Ok((pages, None))
}

/// The header between two places and its length, or what is wrong with it.
fn header(file: &File, at: u64, end: u64) -> Result<std::result::Result<(Header, u64), String>> {
    let mut window = HEADER;
    loop {
        let is_all = window >= end - at;
        return Ok(match Header::read(&file.get_bytes(at, window.min(end - at) as usize)?) {
            Ok((header, length)) => Ok((header, length as u64)),
            Err(Fault::Broken(why)) => Err(format!("has a broken header: {why}")),
            Err(Fault::Ends) if is_all => Err("has a header that goes beyond its column".into()),
            Err(Fault::Ends) => {
                window *= 4;
                continue;
            }
        });
    }
}

impl Iterator for Checked {
    type Item = Result<Page>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}

impl PageReader for Checked {
    fn get_next_page(&mut self) -> Result<Option<Page>> {
        let page = self.next_page();
        page.map_err(|error| named(&self.content.column, error))
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>> {
        let page = self.ahead().and_then(|()| self.inner.peek_next_page());
        page.map_err(|error| named(&self.content.column, error))
    }

    fn skip_next_page(&mut self) -> Result<()> {
        self.get_next_page().map(drop)
    }
}
