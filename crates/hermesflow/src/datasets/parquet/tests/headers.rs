//! Page headers and pages that state other counts and sizes.

use std::io::Write;

use super::*;
use crate::datasets::parquet::header::{Header, Kind};

#[test]
fn sizes_and_counts_in_page_headers_are_held_against_the_file() {
    for (codec, version) in [
        (Compression::SNAPPY, WriterVersion::PARQUET_1_0),
        (Compression::ZSTD(ZstdLevel::default()), WriterVersion::PARQUET_1_0),
        (Compression::GZIP(GzipLevel::default()), WriterVersion::PARQUET_2_0),
        (Compression::BROTLI(BrotliLevel::default()), WriterVersion::PARQUET_2_0),
    ] {
        let bytes = six(plain().set_compression(codec).set_writer_version(version));
        let header = &bytes[4..];
        // Type, size once decoded, size: small numbers, one byte each, with their signs.
        let [0x15, kind, 0x15, decoded, 0x15, compressed] = header[..6] else { panic!("{:?}", &header[..6]) };
        let with = |sizes: [i64; 2]| {
            let to = [&[0x15, kind, 0x15][..], &varint(sizes[0]), &[0x15], &varint(sizes[1])].concat();
            let (rows, wrong) = read_of(&header_edited(&bytes, &header[..6], &to), &Names::default());
            assert!(rows.is_empty(), "{codec:?} {sizes:?}: {wrong:?}");
            wrong.unwrap()
        };
        let (decoded, compressed) = (i64::from(decoded / 2), i64::from(compressed / 2));
        for size in [-1, i64::from(i32::MIN), i64::MAX] {
            assert!(with([size, compressed]).contains(&format!("its decoded size is {size}")), "{codec:?}");
            assert!(with([decoded, size]).contains(&format!("its size is {size}")), "{codec:?}");
        }
        let most = i64::from(i32::MAX);
        assert!(with([most, compressed]).contains("decode to 2147483647"), "{codec:?}");
        assert!(with([decoded, most]).contains("states 2147483647 bytes"), "{codec:?}");
        for sizes in [[0, compressed], [decoded - 1, compressed], [decoded, 0], [decoded, compressed - 1]] {
            assert!(with(sizes).contains("x.parquet, row 1: file cut off or broken"), "{codec:?}");
        }
    }
    // What follows begins with the number of values, 2.
    let bytes = six(plain());
    let at = 4 + bytes[4..40].windows(3).position(|window| window == [0x2c, 0x15, 4]).unwrap();
    let with = |to: &[u8]| {
        let (rows, wrong) = read_of(&header_edited(&bytes, &bytes[at..at + 3], to), &Names::default());
        assert!(rows.is_empty(), "rows would be put together wrongly");
        wrong.unwrap()
    };
    for values in [-1, i64::from(i32::MIN), i64::MAX, 0, 1, 3, i64::from(i32::MAX)] {
        let wrong = with(&[&[0x2c, 0x15][..], &varint(values)].concat());
        let part = match i32::try_from(values) {
            Ok(0..) => format!("the footer states 6 values, the headers of its pages {}", values + 4),
            _ => format!("its number of values is {values}"),
        };
        assert!(wrong.contains(&part), "{wrong}");
    }
    // Another type than the number should have; twice the same; lists of 2^31 elements, which the parquet crate skips one
    // by one, also where they have no bytes; a text of 2^63 bytes.
    assert!(with(&[0x2c, 0x16, 4]).contains("is of type 6"));
    assert!(with(&[0x2c, 0x15, 4, 0x05, 2, 4]).contains("field 1 is there twice"));
    let endless = [0xff, 0xff, 0xff, 0xff, 0x07];
    assert!(with(&[&[0x09, 40, 0xf7][..], &endless].concat()).contains("has a header that goes beyond its column"));
    assert!(
        with(&[&[0x08, 40][..], &[0xff; 8], &[0x7f]].concat()).contains("has a header that goes beyond its column")
    );
    assert!(with(&[&[0x09, 40, 0xf1][..], &endless].concat()).contains("a list of truth values"));
    assert!(with(&[0x0b, 40, 0xff, 0xff, 0xff, 0xff, 0x07, 0x77]).contains("is of type 11"));
}

#[test]
fn dictionaries_are_held_against_their_bytes() {
    let names = ["zero", "one", "two"];
    let of = |values: i64| {
        let bytes = written(ONE, WriterProperties::builder(), &[vec![texts(names, &[], &[])]]);
        // Field 7, whose first number is that of the values: 3.
        let from = [0x4c, 0x15, 6];
        read_of(&header_edited(&bytes, &from, &[&[0x4c, 0x15][..], &varint(values)].concat()), &Names::default())
    };
    assert_eq!(of(3).0.len(), 3);
    for values in [7, 1000, i64::from(i32::MAX)] {
        let (rows, wrong) = of(values);
        let part = format!("is a dictionary of {values} values; its 22 bytes hold at most 5");
        assert!(rows.is_empty() && wrong.as_ref().is_some_and(|wrong| wrong.contains(&part)), "{wrong:?}");
    }
    for values in [-1, i64::MAX] {
        assert!(of(values).1.unwrap().contains(&format!("its number of values is {values}")));
    }
    for values in [0, 1, 2] {
        assert!(of(values).1.is_some(), "{values}");
    }
}

#[test]
fn lists_and_lengths_are_held_against_their_bytes() {
    // Far more values in a row than its few bytes could tell apart.
    let schema = "message m { repeated byte_array caption (UTF8); }";
    let many = 3_000_000;
    let mut repeated = vec![1; many];
    repeated[0] = 0;
    let column = texts(std::iter::repeat_n("a", many), &vec![1; many], &repeated);
    let properties = WriterProperties::builder().set_data_page_row_count_limit(many).set_data_page_size_limit(1 << 30);
    let (rows, wrong) = read_of(&written(schema, properties, &[vec![column]]), &Names::default());
    assert!(rows.is_empty());
    assert!(wrong.as_ref().is_some_and(|wrong| wrong.contains("states 3000000 values")), "{wrong:?}");
    // A page that states more lengths than it has values, in both encodings.
    for encoding in [Encoding::DELTA_LENGTH_BYTE_ARRAY, Encoding::DELTA_BYTE_ARRAY] {
        let properties = plain().set_encoding(encoding);
        let bytes = written(ONE, properties, &[vec![texts(["zero", "one", "two", "three", "four"], &[], &[])]]);
        // Blocks of 128 values in four parts, five values.
        let header = [0x80, 1, 4, 5];
        let places: Vec<usize> = (4..bytes.len() - 4).filter(|&at| bytes[at..at + 4] == header).collect();
        assert_eq!(places.len(), if encoding == Encoding::DELTA_BYTE_ARRAY { 2 } else { 1 });
        assert_eq!(captions(&whole(&bytes))[3], "three");
        for at in places {
            for count in [6, 127] {
                let mut edited = bytes.clone();
                edited[at + 3] = count;
                let (rows, wrong) = read_of(&edited, &Names::default());
                let part = format!("states {count} lengths of 5 values");
                assert!(rows.is_empty() && wrong.as_ref().is_some_and(|wrong| wrong.contains(&part)), "{wrong:?}");
            }
        }
    }
}

#[test]
fn pages_that_decode_to_more_than_they_state_are_refused() {
    let bytes = six(plain().set_compression(Compression::BROTLI(BrotliLevel::default())));
    let zeros = vec![0; 1 << 20];
    let mut bomb = Vec::new();
    std::io::copy(&mut brotli::CompressorReader::new(&zeros[..], 4096, 9, 22), &mut bomb).unwrap();
    let (begins, metadata) = footer_of(&bytes);
    let length = metadata.row_group(0).column(0).compressed_size() as usize;
    let header = [
        &[0x15, 0, 0x15, 36, 0x15][..],
        &varint(bomb.len() as i64),
        &[0x2c, 0x15, 12, 0x15, 0, 0x15, 6, 0x15, 6, 0, 0],
    ];
    let column = [&header.concat()[..], &bomb].concat();
    let mut edited = bytes[..begins].to_vec();
    edited.splice(4..4 + length, column.iter().copied());
    edited.extend_from_slice(&bytes[begins..]);
    let edited = edited_column(&edited, |chunk| chunk.set_total_compressed_size(column.len() as i64));
    let (rows, wrong) = read_of(&edited, &Names::default());
    assert!(rows.is_empty());
    assert!(
        wrong.as_ref().is_some_and(|wrong| wrong.contains("does not decode to the 18 bytes it states")),
        "{wrong:?}"
    );
}

#[test]
fn what_the_crate_decodes_without_a_limit_is_held_against_the_size_it_states() {
    let header = |decoded: usize, compressed: usize, levels: usize| Header {
        kind: Kind::Data,
        compressed: compressed as u64,
        decoded: decoded as u64,
        values: 1,
        levels: levels as u64,
        is_plain: false,
    };
    let zeros = vec![0; 1 << 20];
    let mut gzip = flate2::write::GzEncoder::new(vec![9, 9], flate2::Compression::best());
    gzip.write_all(&zeros).unwrap();
    let mut brotli = vec![9, 9];
    std::io::copy(&mut brotli::CompressorReader::new(&zeros[..], 4096, 9, 22), &mut brotli).unwrap();
    let gzip = (Compression::GZIP(GzipLevel::default()), gzip.finish().unwrap());
    let whole = zeros.len() + 2;
    for (codec, body) in [gzip, (Compression::BROTLI(BrotliLevel::default()), brotli)] {
        assert!(content::is_ours(codec));
        let decoded = content::decoded(codec, &header(whole, body.len(), 2), &body).unwrap();
        assert_eq!((decoded.len(), &decoded[..3]), (whole, &[9, 9, 0][..]));
        assert_eq!(content::decoded(codec, &header(2, 2, 2), &body[..2]), Ok(vec![9, 9]), "no values");
        for size in [3, 100, whole - 1, whole + 1] {
            let why = content::decoded(codec, &header(size, body.len(), 2), &body).unwrap_err();
            assert!(why.contains(&format!("to the {size} bytes")), "{why}");
        }
        assert!(content::decoded(codec, &header(100, 14, 2), b"99no such thing").unwrap_err().contains("cannot"));
    }
    let mut lz4 = lz4_flex::frame::FrameEncoder::new(vec![9, 9]);
    lz4.write_all(&zeros).unwrap();
    let body = lz4.finish().unwrap();
    assert_eq!(content::tried(&header(whole, body.len(), 2), &body), Ok(()));
    assert!(content::tried(&header(whole - 1, body.len(), 2), &body).unwrap_err().contains("to the 1048577 bytes"));
    assert_eq!(content::tried(&header(100, 14, 2), b"99no such thing"), Ok(()), "for the crate");
    assert!(content::is_tried(Compression::LZ4, &header(100, 10 << 20, 0)));
    assert!(!content::is_tried(Compression::LZ4, &header(100, 1 << 20, 0)), "too small to do harm");
    assert!(!content::is_tried(Compression::SNAPPY, &header(100, 1 << 30, 0)), "the crate stops at the size");
    assert!(!content::is_ours(Compression::LZ4) && !content::is_ours(Compression::SNAPPY));
}

#[test]
fn rows_before_a_broken_page_are_kept() {
    let bytes = six(plain());
    // The third page, of the captions four and five.
    let pages: Vec<usize> = (4..footer_of(&bytes).0).filter(|&at| bytes[at..at + 3] == [0x2c, 0x15, 4]).collect();
    assert_eq!(pages.len(), 3);
    let mut edited = bytes.clone();
    edited[pages[2] + 1] = 0x1b;
    let (rows, wrong) = read_of(&edited, &Names::default());
    let wrong = wrong.unwrap();
    assert!(wrong.starts_with("/x.parquet, row ") && wrong.contains("column \"caption\": the page at byte"), "{wrong}");
    assert!(
        captions(&rows).len() < 6
            && captions(&rows).iter().zip(["zero", "one", "two", "three"]).all(|(a, b)| **a == b.repeat(6))
    );
    // A group whose footer or pages disagree ends the file; the groups before it are kept.
    let group = |first: &str| vec![texts([first, "second"], &[], &[])];
    let bytes = written(ONE, plain(), &[group("a"), group("b"), group("c")]);
    let (begins, metadata) = footer_of(&bytes);
    let mut groups = metadata.row_groups().to_vec();
    groups.swap(0, 1);
    let swapped = ParquetMetaData::new(metadata.file_metadata().clone(), groups);
    let mut footer = Vec::new();
    ParquetMetaDataWriter::new(&mut footer, &swapped).finish().unwrap();
    let bytes = [&bytes[..begins], &footer].concat();
    assert_eq!(captions(&whole(&bytes)), ["b", "second", "a", "second", "c", "second"]);
    let second = footer_of(&bytes).1.row_group(1).column(0).data_page_offset() as usize;
    let at = second + bytes[second..].windows(3).position(|window| window == [0x2c, 0x15, 4]).unwrap();
    let mut edited = bytes.clone();
    edited[at + 2] = 2;
    let (rows, wrong) = read_of(&edited, &Names::default());
    assert_eq!(captions(&rows), ["b", "second"]);
    assert!(wrong.unwrap().contains("x.parquet, row 3: file cut off or broken"));
}
