//! Pickles by hand: sound ones, and those that claim or grow.
#![allow(clippy::unwrap_used)]
use std::io::Write;

use zip::ZipWriter;
use zip::write::SimpleFileOptions;

use super::*;

/// A zip of files that are not compressed.
fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    for (name, bytes) in files {
        zip.start_file(format!("archive/{name}"), options).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

fn text(text: &str) -> Vec<u8> {
    [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat()
}

fn sizes(sizes: &[i32]) -> Vec<u8> {
    let each = sizes.iter().flat_map(|size| [b"J", &size.to_le_bytes()[..]].concat());
    [b"(".to_vec(), each.collect(), b"t".to_vec()].concat()
}

/// `torch._utils._rebuild_tensor_v2` of a storage of floats.
fn tensor(offset: i32, shape: &[i32], strides: &[i32]) -> Vec<u8> {
    let storage = [text("storage"), b"ctorch\nFloatStorage\n".to_vec(), text("0"), text("cpu"), b"K\x06".to_vec()];
    [
        b"ctorch._utils\n_rebuild_tensor_v2\n((".to_vec(),
        storage.concat(),
        b"tQJ".to_vec(),
        offset.to_le_bytes().to_vec(),
        sizes(shape),
        sizes(strides),
        b"\x89ccollections\nOrderedDict\n)RtR".to_vec(),
    ]
    .concat()
}

/// What is read of a state dict with one entry over six floats.
fn read(value: Vec<u8>) -> Result<Vec<Held>, String> {
    let pickle = [b"\x80\x02}(".to_vec(), text("a"), value, b"u.".to_vec()].concat();
    tensors(&archive(&[("data.pkl", &pickle), ("data/0", &[1; 24])]))
}

#[test]
fn tensors_are_where_their_shapes_say() {
    let plain = read(tensor(0, &[2, 3], &[3, 1])).unwrap().remove(0);
    assert_eq!(
        (plain.name.as_str(), &plain.shape[..], plain.part.len(), plain.reversed),
        ("a", &[2, 3][..], 24, false)
    );
    assert!(read(tensor(0, &[2, 3], &[1, 2])).unwrap()[0].reversed);
    let part = read(tensor(2, &[2, 2], &[2, 1])).unwrap().remove(0).part;
    assert_eq!((part.start - plain.part.start, part.len()), (8, 16));
    let wrapped = [b"ctorch._utils\n_rebuild_parameter\n(".to_vec(), tensor(0, &[6], &[1]), b"\x88}tR".to_vec()];
    assert_eq!(read(wrapped.concat()).unwrap()[0].shape, [6]);
    assert!(read(b"K\x07".to_vec()).unwrap().is_empty(), "what is no tensor is left out");
    assert_eq!(read(tensor(0, &[], &[])).unwrap()[0].part.len(), 4);
}

#[test]
fn what_does_not_lie_in_the_file_is_refused() {
    for (offset, shape, strides) in [
        (0, &[2, 4][..], &[4, 1][..]),
        (1, &[6], &[1]),
        (0, &[i32::MAX], &[1]),
        (0, &[i32::MAX, i32::MAX, i32::MAX], &[1, 1, 1]),
        (-1, &[1], &[1]),
        (0, &[-1], &[1]),
        (0, &[2, 2], &[3, 1]),
        (0, &[2], &[1, 1]),
        (0, &[1; 9], &[1; 9]),
    ] {
        assert!(read(tensor(offset, shape, strides)).is_err(), "{offset} {shape:?} {strides:?}");
    }
    let elsewhere = [b"\x80\x02}(".to_vec(), text("a"), tensor(0, &[1], &[1]), b"u.".to_vec()].concat();
    assert!(tensors(&archive(&[("data.pkl", &elsewhere)])).err().unwrap().contains("data/0"));
    let big = archive(&[("data.pkl", b"\x80\x02}."), ("byteorder", b"big")]);
    assert!(tensors(&big).err().unwrap().contains("big-endian"));
}

#[test]
fn a_pickle_grows_with_its_file_alone() {
    let doubled = [b"\x80\x02)".to_vec(), b"q\x00h\x00\x86".repeat(200_000), b".".to_vec()].concat();
    let nested = [b"\x80\x02)".to_vec(), b"\x85".repeat(1_000_000), b".".to_vec()].concat();
    let lists = [b"\x80\x02".to_vec(), b"]".repeat(1_000_000), b"a".repeat(999_999), b".".to_vec()].concat();
    let round = b"\x80\x02}q\x00h\x00h\x00s.".to_vec();
    for pickle in [doubled, nested, lists, round] {
        let read = tensors(&archive(&[("data.pkl", &pickle)]));
        assert!(read.is_err() || read.is_ok_and(|tensors| tensors.is_empty()));
    }
    for broken in
        [&b""[..], b".", b"\x80\x02(", b"\x80\x02}\x85", b"\x80\x02(}t.", b"h\x01.", b"\x80\x02X\xff\xff\xff\xff"]
    {
        assert!(tensors(&archive(&[("data.pkl", broken)])).is_err(), "{broken:?}");
    }
}
