//! Reading weight files one tensor at a time, so that memory holds the weights and at most one tensor more.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};

use candle_core::{DType, Device, Tensor, WithDType};
use half::{bf16, f16};
use memmap2::Mmap;
use rayon::prelude::*;
use safetensors::SafeTensors;

use self::held::Held;
use super::error::Error;
use super::mapped::{Mapped, Plain};
use crate::foreign::{decoded, stands_in};

mod finite;
mod held;
mod pickle;

pub(super) use finite::check as check_finite;

/// Fewest bytes of a tensor that is memory-mapped; smaller ones are copied.
const IN_FILE: usize = 1 << 16;
/// The names of weight files in a checkpoint folder, in order of preference.
const FILE_NAMES: [&str; 4] =
    ["pytorch_model.safetensors", "model.safetensors", "diffusion_pytorch_model.safetensors", "pytorch_model.bin"];

/// The weight files of a checkpoint folder: one, or the shards that an index names. A whole file that the index beside it
/// names is one of its shards.
///
/// # Errors
/// When the folder has none, or an index is broken.
pub fn files(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    for name in FILE_NAMES {
        let whole = folder.join(name);
        let index = folder.join(format!("{name}.index.json"));
        if whole.is_file() {
            let named = shards(&index).ok().filter(|shards| shards.contains(&whole));
            return Ok(named.unwrap_or_else(|| vec![whole]));
        }
        if index.is_file() {
            return shards(&index);
        }
    }
    Err(Error::NotFound(folder.to_path_buf()))
}

/// The shards that an index names, sorted.
fn shards(index: &Path) -> Result<Vec<PathBuf>, Error> {
    let io = |source| Error::Io { path: index.to_path_buf(), source };
    let broken = |message: &str| Error::Broken { path: index.to_path_buf(), message: message.to_string() };
    let text = std::fs::read_to_string(index).map_err(io)?;
    let json: serde_json::Value = serde_json::from_str(&text).map_err(|e| broken(&e.to_string()))?;
    let map = json.get("weight_map").and_then(|map| map.as_object()).ok_or_else(|| broken("no weight_map"))?;
    let names: BTreeSet<&str> = map.values().filter_map(|file| file.as_str()).collect();
    // Shards lie beside their index; a path to any other place is refused.
    if let Some(name) = names.iter().find(|name| !is_plain(name)) {
        return Err(broken(&format!("weight_map names {name:?}, which is no file name within this folder")));
    }
    let folder = index.parent().unwrap_or_else(|| Path::new("."));
    Ok(names.into_iter().map(|name| folder.join(name)).collect())
}

/// Whether a name is a plain file name, without a folder, on any system.
fn is_plain(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    let normal = matches!(parts.next(), Some(Component::Normal(part)) if part == name);
    normal && parts.next().is_none() && !name.contains(['/', '\\', ':'])
}

/// The names of the files and indices that [`files`] looks for.
pub(super) fn weight_names() -> impl Iterator<Item = String> {
    FILE_NAMES.iter().flat_map(|name| [(*name).to_owned(), format!("{name}.index.json")])
}

/// The header of one tensor in a weight file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// The tensor's name.
    pub name: String,
    /// The tensor's shape.
    pub shape: Vec<usize>,
    /// The tensor's type in the file.
    pub dtype: DType,
}

impl TensorInfo {
    /// Whether the tensor, held as `dtype` on the CPU, stays in its file, memory-mapped, so that only what is read of it takes
    /// memory; any other is copied.
    pub fn stays_in_file(&self, dtype: DType) -> bool {
        self.dtype == dtype && self.shape.iter().product::<usize>() * dtype.size_in_bytes() >= IN_FILE
    }
}

/// The headers of all tensors in a weight file or checkpoint folder, sorted by name. No values are read.
///
/// # Errors
/// When there are no weights, or a file is broken; the file is named.
pub fn tensor_infos(path: &Path) -> Result<Vec<TensorInfo>, Error> {
    let mut infos = Vec::new();
    for file in weight_files(path)? {
        let (_, tensors) = open(&file)?;
        let info = |held: Held| TensorInfo { name: held.name, shape: held.shape, dtype: held.dtype };
        infos.extend(tensors.into_iter().map(info));
    }
    infos.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(infos)
}

/// The files of a checkpoint folder, or the file itself.
fn weight_files(path: &Path) -> Result<Vec<PathBuf>, Error> {
    if path.is_dir() { files(path) } else { Ok(vec![path.to_path_buf()]) }
}

/// The type in which a tensor of this rank is held when `wanted` is asked for: no vectors in 16 bits, and only floats change.
pub(super) fn held(found: DType, wanted: DType, rank: usize) -> DType {
    match wanted {
        _ if !found.is_float() => found,
        DType::F16 | DType::BF16 if rank < 2 => DType::F32,
        wanted => wanted,
    }
}

/// Calls `take` with each tensor of a weight file or checkpoint folder and its name, one after the other. Matrices become `dtype`
/// if one is given (vectors then are f32 under a 16-bit type); otherwise every tensor has the type of the file.
///
/// # Errors
/// When there are no weights, a file is broken (the file is named), or `take` fails.
pub fn each_tensor(
    path: &Path,
    dtype: Option<DType>,
    device: &Device,
    mut take: impl FnMut(String, Tensor) -> Result<(), Error>,
) -> Result<(), Error> {
    for file in weight_files(path)? {
        let (map, tensors) = open(&file)?;
        let mapped = if device.is_cpu() { Mapped::open(&file) } else { None };
        for Held { name, shape, dtype: found, part, reversed } in tensors {
            let dtype = dtype.map_or(found, |dtype| held(found, dtype, shape.len()));
            let bytes = &map[part.clone()];
            check_finite(&file, &name, bytes, (found, dtype))?;
            let there = mapped.as_ref().filter(|_| dtype == found && part.len() >= IN_FILE);
            let tensor = match there.and_then(|mapped| in_file(mapped, part.clone(), dtype, &shape)) {
                Some(tensor) => tensor,
                None => from_bytes(bytes, found, dtype, &shape, device),
            };
            let tensor = tensor.and_then(|tensor| if reversed { transposed(&tensor) } else { Ok(tensor) });
            let tensor = tensor.map_err(broken(&file))?;
            release(&map, part);
            take(name, tensor)?;
        }
    }
    Ok(())
}

/// Maps a weight file and reads its headers, sorted by name; every tensor is checked to lie within the file.
fn open(path: &Path) -> Result<(Mmap, Vec<Held>), Error> {
    if !path.is_file() {
        return Err(Error::NotFound(path.to_path_buf()));
    }
    let io = |source| Error::Io { path: path.to_path_buf(), source };
    let file = std::fs::File::open(path).map_err(io)?;
    // SAFETY: the file is only read; a checkpoint that another program changes meanwhile is broken anyway.
    let map = unsafe { Mmap::map(&file) }.map_err(io)?;
    if let Some(what) = stands_in(&map) {
        return Err(Error::StandsIn { path: path.to_path_buf(), what });
    }
    let tensors = match path.extension().is_some_and(|ending| ending == "safetensors") {
        true => decoded(|| safetensors(&map)),
        false => decoded(|| pickle::tensors(&map)),
    };
    let mut tensors = tensors.map_err(broken(path))?;
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    Ok((map, tensors))
}

/// The tensors of a safetensors file.
fn safetensors(map: &Mmap) -> Result<Vec<Held>, String> {
    let tensors = SafeTensors::deserialize(map).map_err(|error| error.to_string())?;
    let held = |(name, view): (&str, safetensors::tensor::TensorView<'_>)| {
        let dtype = DType::try_from(view.dtype()).map_err(|error| format!("{name}: {error}"))?;
        let (name, shape) = (name.to_string(), view.shape().to_vec());
        Ok(Held { name, shape, dtype, part: part(map, view.data()), reversed: false })
    };
    tensors.iter().map(held).collect()
}

/// The tensor from values in which its first dimension varies fastest.
fn transposed(tensor: &Tensor) -> candle_core::Result<Tensor> {
    let (dims, rank) = (tensor.dims().iter().rev().copied().collect::<Vec<_>>(), tensor.rank());
    tensor.reshape(dims)?.permute((0..rank).rev().collect::<Vec<_>>())?.contiguous()
}

/// Turns a parser's error into [`Error::Broken`].
fn broken<E: std::fmt::Display>(path: &Path) -> impl Fn(E) -> Error {
    let path = path.to_path_buf();
    move |error| Error::Broken { path: path.clone(), message: error.to_string() }
}

/// The range of the file that `data`, a part of its mapping, is.
fn part(map: &Mmap, data: &[u8]) -> Range<usize> {
    let from = data.as_ptr() as usize - map.as_ptr() as usize;
    from..from + data.len()
}

/// Lets the system drop the pages of values that were copied, so that a file does not stay in memory beside its model.
#[cfg(unix)]
fn release(map: &Mmap, part: Range<usize>) {
    // SAFETY: the mapping is read-only, so dropped pages are read from the file again.
    let _ = unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, part.start, part.len()) };
}

#[cfg(not(unix))]
fn release(_map: &Mmap, _part: Range<usize>) {}

/// A memory-mapped tensor; `None` where the values must be copied.
fn in_file(mapped: &Mapped, part: Range<usize>, dtype: DType, shape: &[usize]) -> Option<candle_core::Result<Tensor>> {
    fn tensor<T: Plain + WithDType>(values: Option<Vec<T>>, shape: &[usize]) -> Option<candle_core::Result<Tensor>> {
        values.map(|values| Tensor::from_vec(values, shape, &Device::Cpu))
    }
    match dtype {
        DType::F32 => tensor(mapped.values::<f32>(part), shape),
        DType::BF16 => tensor(mapped.values::<bf16>(part), shape),
        DType::F16 => tensor(mapped.values::<f16>(part), shape),
        _ => None,
    }
}

/// A tensor from little-endian bytes of the type `found`, converted to `wanted`.
fn from_bytes(
    bytes: &[u8],
    found: DType,
    wanted: DType,
    shape: &[usize],
    device: &Device,
) -> candle_core::Result<Tensor> {
    let f32s = |at: &[u8]| f32::from_le_bytes([at[0], at[1], at[2], at[3]]);
    let f16s = |at: &[u8]| f16::from_le_bytes([at[0], at[1]]).to_f32();
    let bf16s = |at: &[u8]| bf16::from_le_bytes([at[0], at[1]]).to_f32();
    fn values<T: Send>(bytes: &[u8], size: usize, value: impl Fn(&[u8]) -> T + Send + Sync) -> Vec<T> {
        bytes.par_chunks_exact(size).with_min_len(1 << 16).map(value).collect()
    }
    match (found, wanted) {
        (DType::F32, DType::BF16) => Tensor::from_vec(values(bytes, 4, |at| bf16::from_f32(f32s(at))), shape, device),
        (DType::F32, DType::F16) => Tensor::from_vec(values(bytes, 4, |at| f16::from_f32(f32s(at))), shape, device),
        (DType::F16, DType::F32) => Tensor::from_vec(values(bytes, 2, f16s), shape, device),
        (DType::BF16, DType::F32) => Tensor::from_vec(values(bytes, 2, bf16s), shape, device),
        _ => Tensor::from_raw_buffer(bytes, found, shape, device)?.to_dtype(wanted),
    }
}
