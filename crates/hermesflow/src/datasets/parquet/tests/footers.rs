//! Footers that state other counts, places and sizes.

use super::*;

#[test]
fn counts_and_places_in_the_footer_are_held_against_the_file() {
    let bytes = six(plain());
    let (begins, metadata) = footer_of(&bytes);
    let column = metadata.row_group(0).column(0);
    let length = column.compressed_size();
    let far = i64::MAX - 3;
    let refused = |bytes: Vec<u8>, part: &str| {
        let (rows, wrong) = read_of(&bytes, &Names::default());
        let wrong = wrong.unwrap_or_default();
        assert!(wrong.starts_with("/x.parquet") && wrong.contains(part), "{wrong:?} does not say {part:?}");
        assert!(rows.is_empty(), "{part}");
    };
    // Six rows in all, before the list of the only row group.
    let all = |bytes: &[u8], rows: i64, stated: i64| {
        let number = |rows| [&[0x16][..], &varint(rows), &[0x19, 0x1c]].concat();
        footer_edited(bytes, &number(rows), &number(stated))
    };
    for rows in [-1, 0, 5, 7, far] {
        let part =
            if rows < 0 { "states -1 rows".into() } else { format!("states {rows} rows, its row groups have 6") };
        refused(all(&bytes, 6, rows), &part);
        let group = |group: RowGroupMetaDataBuilder| group.set_num_rows(rows);
        let edited_rows = edited(&bytes, group, |column| column);
        // The footer agrees with itself.
        let part = if rows < 0 { "states -1 rows" } else { "states 6 values in a group of" };
        refused(edited_rows.clone(), part);
        if rows >= 0 {
            refused(all(&edited_rows, rows, 6), &format!("its footer states 6 rows, its row groups have {rows}"));
            let values = |column: ColumnChunkMetaDataBuilder| column.set_num_values(rows);
            let part = format!("the footer states {rows} values, the headers of its pages 6");
            refused(edited(&bytes, group, values), &part);
        }
    }
    for values in [-1, 0, 5, 7, far] {
        let part = format!("the footer states {values} values in a group of 6 rows");
        refused(edited_column(&bytes, |column| column.set_num_values(values)), &part);
    }
    for size in [-1, begins as i64 - 3, far] {
        let part = if size < 0 { "a size of -1".into() } else { format!("states {size} bytes from byte 4") };
        refused(edited_column(&bytes, |column| column.set_total_compressed_size(size)), &part);
    }
    refused(edited_column(&bytes, |column| column.set_total_compressed_size(0)), "states 6 values, the headers");
    for size in [1, length - 1, length + 1] {
        refused(edited_column(&bytes, |column| column.set_total_compressed_size(size)), " its column");
    }
    refused(edited_column(&bytes, |column| column.set_data_page_offset(5)), "the page at byte 5 has a broken header");
    for start in [-1, 0, 3, begins as i64, far] {
        let part = format!("bytes from byte {start}");
        refused(edited_column(&bytes, |column| column.set_data_page_offset(start)), &part);
        refused(edited_column(&bytes, |column| column.set_dictionary_page_offset(Some(start))), &part);
    }
    refused(edited_column(&bytes, |column| column.set_total_uncompressed_size(-1)), "a size of -1");
    // Nothing is reserved by the size once decoded, or by that of the group.
    for size in [0, far] {
        let edited =
            edited(&bytes, |group| group.set_total_byte_size(size), |column| column.set_total_uncompressed_size(size));
        assert_eq!(whole(&edited).len(), 6);
    }
    for length in [0, 1, begins as u32, bytes.len() as u32, u32::MAX] {
        let mut edited = bytes.clone();
        let tail = edited.len() - 8;
        edited[tail..tail + 4].copy_from_slice(&length.to_le_bytes());
        refused(edited, "x.parquet: not readable as Parquet");
    }
    for length in 0..12 {
        refused(b"PAR1PAR1PAR1"[..length].to_vec(), "x.parquet: not readable as Parquet");
    }
}

#[test]
fn the_schema_is_a_tree_that_the_footer_holds() {
    let nested =
        "message m { required group image { required byte_array bytes; } required byte_array caption (UTF8); }";
    let bytes = written(nested, plain(), &[vec![texts(["x"], &[], &[]), texts(["a dog"], &[], &[])]]);
    // The image's name and, behind it, how many columns it has.
    let image = |count: i64| [&[0x18, 5][..], b"image", &[0x15], &varint(count)].concat();
    let with = |count| read_of(&footer_edited(&bytes, &image(1), &image(count)), &Names::default());
    assert_eq!(with(1).1, None);
    for count in [-1, 3, 1000, i64::from(i32::MAX), i64::from(u32::MAX), i64::MAX] {
        let (rows, wrong) = with(count);
        let wrong = wrong.unwrap();
        assert!(wrong.contains(&format!("a group of columns states {count} of them; 2 are left")), "{wrong}");
        assert!(rows.is_empty());
    }
    for count in [0, 2] {
        assert!(with(count).1.is_some(), "{count}");
    }
    let deep = |depth: usize| {
        let schema = format!(
            "message m {{ {} required byte_array bytes; {} }}",
            "required group image { ".repeat(depth),
            "}".repeat(depth)
        );
        read_of(&written(&schema, plain(), &[vec![texts(["x"], &[], &[])]]), &Names::default())
    };
    assert_eq!(deep(50).1, None);
    assert!(deep(70).1.unwrap().contains("more than 60 deep"));
}

#[test]
fn rows_are_those_of_a_column_even_if_none_is_wanted() {
    let bytes = written("message m { required int64 score; }", plain(), &[vec![numbers(0..3)]]);
    assert_eq!(whole(&bytes).len(), 3);
    let all = i64::MAX / 2;
    let edited = edited(&bytes, |group| group.set_num_rows(all), |column| column);
    assert!(read_of(&edited, &Names::default()).1.unwrap().contains("3 values in a group of"));
}
