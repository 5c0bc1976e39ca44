//! Writing weight files a tensor at a time, in the formats in which checkpoints are published.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use candle_core::{DType, Tensor};
use safetensors::View;
use serde_json::json;

use super::{Error, read::remove_weights};

mod pickle;

/// How a checkpoint's weights are laid out in its folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileFormat {
    /// `pytorch_model.safetensors`.
    Safetensors,
    /// `pytorch_model-0000i-of-0000n.safetensors` with an index, none larger than this many bytes if it can be helped.
    ShardedSafetensors(u64),
    /// `pytorch_model.bin`, a zip of a pickle and raw values, as `torch.save` writes it.
    Bin,
    /// `pytorch_model-0000i-of-0000n.bin` with an index.
    ShardedBin(u64),
}

impl FileFormat {
    fn extension(self) -> &'static str {
        match self {
            Self::Safetensors | Self::ShardedSafetensors(_) => "safetensors",
            Self::Bin | Self::ShardedBin(_) => "bin",
        }
    }
}

/// Writes tensors as safetensors, sorted by name, through a temporary name.
///
/// # Errors
/// When the file cannot be written; the file is named.
pub fn save_tensors(path: &Path, tensors: &HashMap<String, Tensor>) -> Result<(), Error> {
    let sorted: BTreeMap<&String, &Tensor> = tensors.iter().collect();
    save_safetensors(path, sorted.into_iter().map(|(name, tensor)| (name.as_str(), tensor)), None)
}

/// Writes a model's tensors into a folder, replacing the weights that are there; floats as `dtype` if one is given.
pub(super) fn save_as(
    folder: &Path,
    tensors: &[(&str, &Tensor)],
    format: FileFormat,
    dtype: Option<DType>,
) -> Result<Vec<PathBuf>, Error> {
    std::fs::create_dir_all(folder).map_err(|source| Error::Io { path: folder.into(), source })?;
    remove_weights(folder)?;
    let save = |path: &Path, tensors: &[(&str, &Tensor)]| match format.extension() {
        "bin" => pickle::save(path, tensors, dtype),
        _ => save_safetensors(path, tensors.iter().copied(), dtype),
    };
    let ending = format.extension();
    let whole = folder.join(format!("pytorch_model.{ending}"));
    let (FileFormat::ShardedSafetensors(limit) | FileFormat::ShardedBin(limit)) = format else {
        save(&whole, tensors)?;
        return Ok(vec![whole]);
    };
    let mut shards: Vec<(u64, Vec<(&str, &Tensor)>)> = Vec::new();
    for &(name, tensor) in tensors {
        let bytes = (tensor.elem_count() * stored(tensor, dtype).size_in_bytes()) as u64;
        match shards.last_mut() {
            Some((size, shard)) if *size + bytes <= limit => {
                *size += bytes;
                shard.push((name, tensor));
            }
            _ => shards.push((bytes, vec![(name, tensor)])),
        }
    }
    let (mut files, mut map) = (Vec::new(), BTreeMap::new());
    for (number, (_, shard)) in shards.iter().enumerate() {
        let name = format!("pytorch_model-{:05}-of-{:05}.{ending}", number + 1, shards.len());
        save(&folder.join(&name), shard)?;
        map.extend(shard.iter().map(|(tensor, _)| (*tensor, name.clone())));
        files.push(folder.join(name));
    }
    let total: u64 = shards.iter().map(|(bytes, _)| bytes).sum();
    let index = folder.join(format!("pytorch_model.{ending}.index.json"));
    let text = format!("{:#}\n", json!({ "metadata": { "total_size": total }, "weight_map": map }));
    // The index last: a folder without it is no checkpoint.
    write_through(&index, |file| file.write_all(text.as_bytes()))?;
    files.push(index);
    Ok(files)
}

/// The type in which a tensor is written.
fn stored(tensor: &Tensor, dtype: Option<DType>) -> DType {
    dtype.filter(|_| tensor.dtype().is_float()).unwrap_or(tensor.dtype())
}

/// The bytes of a tensor as they are written.
pub(super) fn bytes(tensor: &Tensor, dtype: Option<DType>) -> candle_core::Result<Vec<u8>> {
    Ok(tensor.detach().to_dtype(stored(tensor, dtype))?.contiguous()?.data().into_owned())
}

/// Writes tensors as safetensors through a temporary name; floats as `dtype` if one is given.
pub(super) fn save_safetensors<'a>(
    path: &Path,
    tensors: impl Iterator<Item = (&'a str, &'a Tensor)>,
    dtype: Option<DType>,
) -> Result<(), Error> {
    let broken = |e: safetensors::SafeTensorError| match e {
        safetensors::SafeTensorError::IoError(source) => Error::Io { path: path.to_path_buf(), source },
        other => Error::Broken { path: path.to_path_buf(), message: other.to_string() },
    };
    let metadata = Some(HashMap::from([("format".to_string(), "pt".to_string())]));
    let views: BTreeMap<&str, Stored> = tensors.map(|(name, tensor)| (name, Stored { tensor, dtype })).collect();
    let temporary = temporary(path);
    let io = |source| Error::Io { path: path.to_path_buf(), source };
    // The library makes files that nobody else may read; a model gets the permissions of any other file.
    let permissions = File::create(&temporary).and_then(|file| file.metadata()).map_err(io)?.permissions();
    safetensors::serialize_to_file(views, metadata, &temporary).map_err(broken)?;
    std::fs::set_permissions(&temporary, permissions).map_err(io)?;
    File::open(&temporary).and_then(|file| file.sync_all()).map_err(io)?;
    std::fs::rename(&temporary, path).map_err(io)
}

/// A tensor whose bytes are made when they are written.
struct Stored<'a> {
    tensor: &'a Tensor,
    dtype: Option<DType>,
}

impl View for Stored<'_> {
    fn dtype(&self) -> safetensors::Dtype {
        stored(self.tensor, self.dtype).into()
    }

    fn shape(&self) -> &[usize] {
        self.tensor.dims()
    }

    fn data(&self) -> Cow<'_, [u8]> {
        // Copies and casts of what is in memory already.
        #[allow(clippy::expect_used)]
        Cow::Owned(bytes(self.tensor, self.dtype).expect("a tensor that exists has bytes"))
    }

    fn data_len(&self) -> usize {
        self.tensor.elem_count() * stored(self.tensor, self.dtype).size_in_bytes()
    }
}

fn temporary(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".tmp");
    path.with_file_name(name)
}

/// Writes a file under a temporary name, through to the disk, and renames it.
fn write_through(path: &Path, write: impl FnOnce(&mut BufWriter<File>) -> std::io::Result<()>) -> Result<(), Error> {
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
