//! What is read of sound files.

use super::*;

#[test]
fn sound_files_are_read_whatever_wrote_them() {
    let schema = "message m {
        required int64 id;
        optional group image { optional byte_array bytes; optional byte_array path (UTF8); }
        optional group caption (LIST) { repeated group list { optional byte_array element (UTF8); } }
        optional fixed_len_byte_array(3) prompt;
    }";
    let codecs = [
        Compression::UNCOMPRESSED,
        Compression::SNAPPY,
        Compression::GZIP(GzipLevel::default()),
        Compression::ZSTD(ZstdLevel::default()),
        Compression::BROTLI(BrotliLevel::default()),
        Compression::LZ4,
        Compression::LZ4_RAW,
    ];
    let encodings =
        [None, Some(Encoding::PLAIN), Some(Encoding::DELTA_LENGTH_BYTE_ARRAY), Some(Encoding::DELTA_BYTE_ARRAY)];
    // In each group of four: a list of two, none, an absent element, an empty list; every other path is absent.
    let group = |first: i64| {
        vec![
            numbers(first..first + 4),
            texts((first..first + 4).map(|id| vec![id as u8; 300]), &[2; 4], &[]),
            texts([format!("{first}.png"), "x".into()], &[2, 1, 1, 2], &[]),
            texts(["a dog", "a dog that runs"], &[3, 3, 0, 2, 1], &[0, 1, 0, 0, 0]),
            Column {
                values: Values::Fixed(vec![FixedLenByteArray::from(b"abc".to_vec()); 2]),
                defined: vec![1, 0, 0, 1],
                repeated: vec![],
            },
        ]
    };
    for codec in codecs {
        for encoding in encodings {
            for version in [WriterVersion::PARQUET_1_0, WriterVersion::PARQUET_2_0] {
                let mut properties = WriterProperties::builder().set_compression(codec).set_writer_version(version);
                properties = properties.set_data_page_row_count_limit(2).set_write_batch_size(1);
                if let Some(encoding) = encoding {
                    properties = properties.set_dictionary_enabled(false);
                    for column in ["image.bytes", "image.path", "caption.list.element"] {
                        let parts: Vec<String> = column.split('.').map(str::to_owned).collect();
                        properties = properties.set_column_encoding(parts.into(), encoding);
                    }
                    if encoding == Encoding::DELTA_BYTE_ARRAY {
                        properties = properties.set_column_encoding("prompt".into(), Encoding::BYTE_STREAM_SPLIT);
                    }
                }
                let groups: Vec<_> = (0..30).map(|number| group(4 * number)).collect();
                let rows = whole(&written(schema, properties, &groups));
                let all = format!("{codec:?}, {encoding:?}, {version:?}");
                assert_eq!(rows.len(), 120, "{all}");
                for (number, row) in rows.iter().enumerate() {
                    let place = number % 4;
                    let list = [json!(["a dog", "a dog that runs"]), Value::Null, json!([null]), json!([])];
                    assert_eq!(row.fields["id"], json!(number), "{all}");
                    assert_eq!(row.fields["caption"], list[place], "{all}, row {number}");
                    let path = [json!(format!("{number}.png")), Value::Null, Value::Null, json!("x")];
                    assert_eq!(row.fields["image"]["path"], path[place], "{all}, row {number}");
                    let fixed = if matches!(place, 0 | 3) { json!("abc") } else { Value::Null };
                    assert_eq!(row.fields["prompt"], fixed, "{all}, row {number}");
                    let image = row.fields["image"]["bytes"].as_str().map(|text| text.as_bytes().to_vec());
                    let image = image.or_else(|| row.blobs.first().map(|(_, bytes)| bytes.clone()));
                    assert_eq!(image, Some(vec![number as u8; 300]), "{all}, row {number}");
                }
            }
        }
    }
}

#[test]
fn a_million_equal_captions_are_few_bytes() {
    let caption = "a photograph of a dog that runs over a meadow, seen from the side";
    for properties in [
        WriterProperties::builder().set_compression(Compression::ZSTD(ZstdLevel::default())),
        plain().set_compression(Compression::BROTLI(BrotliLevel::default())).set_data_page_size_limit(1 << 30),
    ] {
        let properties = properties.set_data_page_row_count_limit(2_000_000);
        let bytes = written(ONE, properties, &[vec![texts(std::iter::repeat_n(caption, 1_000_000), &[], &[])]]);
        assert!(bytes.len() < 1_000_000, "{}", bytes.len());
        let rows = whole(&bytes);
        assert_eq!(rows.len(), 1_000_000);
        assert!(captions(&rows).iter().all(|text| **text == caption));
    }
}
