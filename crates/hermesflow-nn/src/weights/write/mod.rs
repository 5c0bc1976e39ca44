//! Writing weight files one tensor at a time, in the formats in which checkpoints are published.

use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::path::{Path, PathBuf};

use candle_core::{DType, Tensor};
use safetensors::tensor::{Metadata, TensorInfo};
use serde_json::json;

use self::file::{stored, write_through};
use super::error::Error;
use super::read;

mod file;
mod pickle;

pub(super) use file::bytes;

/// How a checkpoint's weights are laid out in its folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileFormat {
    /// One file, `pytorch_model.safetensors`.
    Safetensors,
    /// Files `pytorch_model-0000i-of-0000n.safetensors` with an index, of at most this many bytes each unless one tensor is larger.
    ShardedSafetensors(u64),
    /// One file, `pytorch_model.bin`: a zip of a pickle and raw values, as `torch.save` writes it.
    Bin,
    /// Files `pytorch_model-0000i-of-0000n.bin` with an index, of at most this many bytes each unless one tensor is larger.
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

/// Writes tensors to a safetensors file, in their own types. The file appears at once or not at all (temporary name, then rename).
///
/// # Errors
/// When the file cannot be written; the file is named.
pub fn save_tensors(path: &Path, tensors: &HashMap<String, Tensor>) -> Result<(), Error> {
    let sorted: BTreeMap<&String, &Tensor> = tensors.iter().collect();
    save_safetensors(path, sorted.into_iter().map(|(name, tensor)| (name.as_str(), tensor)), None)
}

/// Writes a model's tensors into a folder that has no weights yet, floats as `dtype` if one is given; returns the files.
pub(super) fn save_as(
    folder: &Path,
    tensors: &[(&str, &Tensor)],
    format: FileFormat,
    dtype: Option<DType>,
) -> Result<Vec<PathBuf>, Error> {
    std::fs::create_dir_all(folder).map_err(|source| Error::Io { path: folder.into(), source })?;
    refuse_weights(folder)?;
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
    // The index is written last: without it the folder is no checkpoint.
    write_through(&index, |file| file.write_all(text.as_bytes()))?;
    files.push(index);
    Ok(files)
}

/// Refuses a folder that already has weights: two sets would leave open which one counts, and the first may be the user's.
fn refuse_weights(folder: &Path) -> Result<(), Error> {
    match read::weight_names().map(|name| folder.join(name)).find(|path| path.exists()) {
        Some(path) => Err(Error::Occupied(path)),
        None => Ok(()),
    }
}

/// Writes tensors to a safetensors file through a temporary name, floats as `dtype` if one is given.
///
/// The safetensors crate's own writer uses a random temporary name, which a killed program would leave behind for good.
pub(super) fn save_safetensors<'a>(
    path: &Path,
    tensors: impl Iterator<Item = (&'a str, &'a Tensor)>,
    dtype: Option<DType>,
) -> Result<(), Error> {
    let named = |(name, tensor)| (safetensors::Dtype::from(stored(tensor, dtype)), name, tensor);
    let mut tensors: Vec<(safetensors::Dtype, &str, &Tensor)> = tensors.map(named).collect();
    // Larger types first, as the format's alignment requires.
    tensors.sort_by(|(left, a, _), (right, b, _)| right.cmp(left).then(a.cmp(b)));
    let mut offset = 0;
    let info = |(kind, name, tensor): &(safetensors::Dtype, &str, &Tensor)| {
        let start = offset;
        offset += tensor.elem_count() * stored(tensor, dtype).size_in_bytes();
        let info = TensorInfo { dtype: *kind, shape: tensor.dims().to_vec(), data_offsets: (start, offset) };
        ((*name).to_owned(), info)
    };
    let infos = tensors.iter().map(info).collect();
    let metadata = Some(HashMap::from([("format".to_string(), "pt".to_string())]));
    let broken = |message: String| Error::Broken { path: path.to_path_buf(), message };
    let header = Metadata::new(metadata, infos).map_err(|error| broken(error.to_string()))?;
    let mut header = serde_json::to_vec(&header).map_err(|error| broken(error.to_string()))?;
    header.resize(header.len().next_multiple_of(8), b' ');
    write_through(path, |file| {
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        tensors
            .iter()
            .try_for_each(|(_, _, tensor)| file.write_all(&bytes(tensor, dtype).map_err(std::io::Error::other)?))
    })
}
