//! `*.bin` files as `torch.save` writes a state dict: a zip that holds `data.pkl` and the raw values of every tensor.
//!
//! The pickle (protocol 2) is a dict of names to `torch._utils._rebuild_tensor_v2(storage, offset, shape, stride,
//! requires_grad, hooks)`; a storage is a persistent id `("storage", type, key, "cpu", elements)` and `data/{key}` its
//! values, little-endian.

use std::io::{Seek, Write};
use std::path::Path;

use candle_core::{DType, Layout, Tensor};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use super::file::{bytes, stored, write_through};
use crate::weights::error::Error;

/// Alignment of values in bytes, so that they can be memory-mapped.
const ALIGNMENT: u16 = 64;

/// Writes tensors as a `.bin` through a temporary name; floats as `dtype` if one is given.
pub(super) fn save(path: &Path, tensors: &[(&str, &Tensor)], dtype: Option<DType>) -> Result<(), Error> {
    let dict = state_dict(path, tensors, dtype)?;
    write_through(path, |file| {
        let mut zip = ZipWriter::new(file);
        let filled = fill(&mut zip, tensors, dtype, &dict);
        if filled.is_err() {
            // Dropping the writer would try to complete a file that is given up, and print that it failed.
            std::mem::forget(zip);
            return filled;
        }
        zip.finish()?;
        Ok(())
    })
}

fn fill<W: Write + Seek>(
    zip: &mut ZipWriter<W>,
    tensors: &[(&str, &Tensor)],
    dtype: Option<DType>,
    dict: &[u8],
) -> std::io::Result<()> {
    entry(zip, "data.pkl", dict)?;
    entry(zip, "byteorder", b"little")?;
    for (key, (_, tensor)) in tensors.iter().enumerate() {
        let values = bytes(tensor, dtype).map_err(std::io::Error::other)?;
        entry(zip, &format!("data/{key}"), &values)?;
    }
    entry(zip, "version", b"3\n")
}

fn entry<W: Write + Seek>(zip: &mut ZipWriter<W>, name: &str, bytes: &[u8]) -> std::io::Result<()> {
    let options = SimpleFileOptions::default()
        .compression_method(CompressionMethod::Stored)
        .with_alignment(ALIGNMENT)
        .large_file(bytes.len() as u64 > u64::from(u32::MAX));
    zip.start_file(format!("archive/{name}"), options)?;
    zip.write_all(bytes)
}

/// The pickled state dict.
fn state_dict(path: &Path, tensors: &[(&str, &Tensor)], dtype: Option<DType>) -> Result<Vec<u8>, Error> {
    let mut pickle = Pickle(vec![0x80, 2, b'}', b'(']); // protocol 2, empty dict, mark
    for (key, (name, tensor)) in tensors.iter().enumerate() {
        let Some(storage) = storage_type(stored(tensor, dtype)) else {
            let message = format!("{name} has a type that PyTorch's files cannot hold: {:?}", tensor.dtype());
            return Err(Error::Broken { path: path.into(), message });
        };
        pickle.text(name);
        pickle.global("torch._utils", "_rebuild_tensor_v2");
        pickle.0.push(b'(');
        pickle.0.push(b'(');
        pickle.text("storage");
        pickle.global("torch", storage);
        pickle.text(&key.to_string());
        pickle.text("cpu");
        pickle.int(tensor.elem_count());
        pickle.0.extend(b"tQ"); // tuple, persistent id
        pickle.int(0);
        let layout = Layout::contiguous(tensor.dims());
        for sizes in [layout.dims(), layout.stride()] {
            pickle.0.push(b'(');
            sizes.iter().for_each(|&size| pickle.int(size));
            pickle.0.push(b't');
        }
        pickle.0.push(0x89); // False: no gradient
        pickle.global("collections", "OrderedDict");
        pickle.0.extend(b")RtR"); // empty tuple, call; tuple, call
    }
    pickle.0.extend(b"u."); // set the items, stop
    Ok(pickle.0)
}

fn storage_type(dtype: DType) -> Option<&'static str> {
    Some(match dtype {
        DType::F32 => "FloatStorage",
        DType::F64 => "DoubleStorage",
        DType::F16 => "HalfStorage",
        DType::BF16 => "BFloat16Storage",
        DType::I64 => "LongStorage",
        DType::U8 => "ByteStorage",
        _ => return None,
    })
}

struct Pickle(Vec<u8>);

impl Pickle {
    fn text(&mut self, text: &str) {
        self.0.push(b'X');
        self.0.extend((text.len() as u32).to_le_bytes());
        self.0.extend(text.as_bytes());
    }

    fn global(&mut self, module: &str, name: &str) {
        self.0.extend(format!("c{module}\n{name}\n").bytes());
    }

    fn int(&mut self, value: usize) {
        match i32::try_from(value) {
            Ok(value) => {
                self.0.push(b'J');
                self.0.extend(value.to_le_bytes());
            }
            Err(_) => {
                self.0.extend([0x8a, 8]);
                self.0.extend((value as i64).to_le_bytes());
            }
        }
    }
}
