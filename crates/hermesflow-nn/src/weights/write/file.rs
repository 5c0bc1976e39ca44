//! What all formats of weight files share: the bytes of a tensor, and files that appear whole or not at all.

use std::ffi::OsString;
use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use candle_core::{DType, Tensor};
use safetensors::View;

use crate::weights::error::Error;

/// The type in which a tensor is written: `dtype` for floats if one is given.
pub(super) fn stored(tensor: &Tensor, dtype: Option<DType>) -> DType {
    dtype.filter(|_| tensor.dtype().is_float()).unwrap_or(tensor.dtype())
}

/// The bytes of a tensor as they are written, in the type [`stored`].
pub(crate) fn bytes(tensor: &Tensor, dtype: Option<DType>) -> candle_core::Result<Vec<u8>> {
    Ok(tensor.detach().to_dtype(stored(tensor, dtype))?.contiguous()?.data().into_owned())
}

/// The temporary name of a file: one that no other file has, and the same when the file is written again.
fn temporary(path: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".hermesflow-tmp");
    path.with_file_name(name)
}

/// Writes a file under a temporary name, flushes it to the disk, and renames it.
pub(super) fn write_through(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> std::io::Result<()>,
) -> Result<(), Error> {
    let temporary = temporary(path);
    let work = || {
        let mut file = BufWriter::new(File::create(&temporary)?);
        write(&mut file)?;
        file.into_inner().map_err(|e| e.into_error())?.sync_all()?;
        std::fs::rename(&temporary, path)
    };
    work().map_err(|source| {
        let _ = std::fs::remove_file(&temporary);
        Error::Io { path: path.to_path_buf(), source }
    })
}
