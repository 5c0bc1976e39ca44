//! LLaMA from a GGUF file. Weights stay quantised; everything between them is f32.
//!
//! The header says where each tensor is. Before memory is allocated, its sizes, shapes and ids are checked against each
//! other, the length of the file and the architecture.

use std::collections::HashMap;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use candle_core::quantized::QMatMul;
use candle_core::quantized::gguf_file::{Content, Value};
use candle_core::{DType, Device};
use hermesflow_nn::foreign::{decoded, stands_in};
use hermesflow_nn::{sizes, weights};

use super::check_finite;
use super::layers::RmsNorm;
use super::llama::{Block, Llama, Projection, Sizes, Table};
use super::memory;
use crate::{Error, Result};

/// The matrices of a block, in the order in which they are read.
const MATRICES: [&str; 7] = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"];

impl Llama {
    /// Loads a GGUF file.
    pub(super) fn load_gguf(path: &Path, device: &Device) -> Result<Self> {
        let broken =
            |error: String| Error::file(path, format!("not a readable GGUF file ({error}); download it again"));
        let file = File::open(path).map_err(|error| Error::file(path, error))?;
        let mut reader = BufReader::new(file);
        let content = decoded(|| Content::read(&mut reader)).map_err(|error| match pointer(path) {
            Some(what) => Error::file(path, what),
            None => broken(error),
        })?;
        let metadata = Metadata(&content.metadata);
        if metadata.text("general.architecture") != Some("llama") {
            let message = format!("architecture {:?}; expected llama", metadata.text("general.architecture"));
            return Err(Error::file(path, message));
        }
        let fault = |message: String| Error::file(path, format!("{message}; convert the model again"));
        let (sizes, blocks, eps) = metadata.sizes(&content).map_err(fault)?;
        let bytes = weight_bytes(&content, &shapes(&content, &sizes, blocks)).map_err(fault)?;
        memory::require(path, bytes.saturating_add(sizes.cache_bytes(blocks, DType::F32)))?;

        let mut tensor = |name: &str| {
            let read = decoded(|| content.tensor(&mut reader, &format!("{name}.weight"), device));
            read.map_err(|error| broken(format!("{name}: {error}")))
        };
        let mut matrix = |name: &str| -> Result<QMatMul> { Ok(QMatMul::from_qtensor(tensor(name)?)?) };
        let table = matrix("token_embd")?;
        let head = match content.tensor_infos.contains_key("output.weight") {
            true => matrix("output")?,
            false => table.clone(),
        };
        let mut read = Vec::with_capacity(blocks);
        for number in 0..blocks {
            let mut part = |name: &str| matrix(&format!("blk.{number}.{name}")).map(Projection::Quantised);
            let [q, k, v, o, gate, up, down] = MATRICES.map(&mut part);
            read.push((q?, k?, v?, o?, gate?, up?, down?));
        }
        let mut norm = |name: &str| -> Result<RmsNorm> {
            let weight = tensor(name)?.dequantize(device)?;
            check_finite("llama", &weight)?;
            Ok(RmsNorm::new(weight, eps))
        };
        let mut built = Vec::with_capacity(blocks);
        for (number, (q, k, v, o, gate, up, down)) in read.into_iter().enumerate() {
            let input_norm = norm(&format!("blk.{number}.attn_norm"))?;
            let attention_norm = norm(&format!("blk.{number}.ffn_norm"))?;
            built.push(Block { input_norm, q, k, v, o, attention_norm, gate, up, down });
        }
        Ok(Self {
            blocks: built,
            norm: norm("output_norm")?,
            table: Table::Quantised(table),
            head: Projection::Quantised(head),
            sizes,
            dtype: DType::F32,
            device: device.clone(),
        })
    }
}

/// A GGUF file: the path itself, or the only one in a folder without other weights.
pub(super) fn gguf(path: &Path) -> Option<PathBuf> {
    let is_gguf = |path: &Path| path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("gguf"));
    if is_gguf(path) {
        return Some(path.to_path_buf());
    }
    if !path.is_dir() || weights::files(path).is_ok() {
        return None;
    }
    let mut files = std::fs::read_dir(path).ok()?.flatten().map(|entry| entry.path()).filter(|path| is_gguf(path));
    files.next().filter(|_| files.next().is_none())
}

/// What a file is that only stands in for a model (such as a Git LFS pointer); such files are small.
fn pointer(path: &Path) -> Option<&'static str> {
    let small = path.metadata().is_ok_and(|file| file.len() < 1 << 12);
    stands_in(&std::fs::read(path).ok().filter(|_| small)?)
}

/// The shapes of all tensors that are read.
fn shapes(content: &Content, sizes: &Sizes, blocks: usize) -> Vec<(String, Vec<usize>)> {
    let (hidden, queries, keys) = (sizes.hidden, sizes.heads * sizes.head, sizes.key_heads * sizes.head);
    // Not all files state the width of the feed-forward layers, which is the same in all blocks.
    let first = content.tensor_infos.get("blk.0.ffn_gate.weight").and_then(|gate| gate.shape.dims().first());
    let mlp = first.copied().unwrap_or(1);
    let of_block = [
        [queries, hidden],
        [keys, hidden],
        [keys, hidden],
        [hidden, queries],
        [mlp, hidden],
        [mlp, hidden],
        [hidden, mlp],
    ];
    let mut shapes = vec![("token_embd".to_string(), vec![sizes.vocab, hidden]), ("output_norm".into(), vec![hidden])];
    if content.tensor_infos.contains_key("output.weight") {
        shapes.push(("output".into(), vec![sizes.vocab, hidden]));
    }
    for number in 0..blocks {
        let matrices = MATRICES.iter().zip(of_block);
        shapes.extend(matrices.map(|(name, shape)| (format!("blk.{number}.{name}"), shape.to_vec())));
        shapes.extend(["attn_norm", "ffn_norm"].map(|name| (format!("blk.{number}.{name}"), vec![hidden])));
    }
    shapes
}

/// The bytes of the tensors, which must exist with these shapes. That they lie within the file is checked when they are
/// read.
fn weight_bytes(content: &Content, shapes: &[(String, Vec<usize>)]) -> Result<u64, String> {
    let mut bytes = 0u64;
    for (name, shape) in shapes {
        let info =
            content.tensor_infos.get(&format!("{name}.weight")).ok_or_else(|| format!("has no {name}.weight"))?;
        if info.shape.dims() != shape.as_slice() {
            return Err(format!("{name}.weight has shape {:?}, the sizes ask for {shape:?}", info.shape.dims()));
        }
        let (block, size) = (info.ggml_dtype.block_size(), info.ggml_dtype.type_size());
        let row = shape.last().copied().unwrap_or(0);
        if block == 0 || !row.is_multiple_of(block) {
            return Err(format!("{name}.weight has rows of {row}, its blocks are of {block}"));
        }
        sizes::check_ranges(&[(name, row, sizes::WIDE), (name, shape[0], sizes::IDS)])?;
        bytes = bytes.saturating_add((shape.iter().product::<usize>() / block * size) as u64);
    }
    Ok(bytes)
}

struct Metadata<'a>(&'a HashMap<String, Value>);

impl Metadata<'_> {
    fn text(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_string().ok().map(String::as_str)
    }

    fn number(&self, key: &str) -> Option<usize> {
        let value = self.0.get(key)?;
        let signed = || value.to_i32().ok().and_then(|number| u64::try_from(number).ok());
        let number = value.to_u64().ok().or_else(|| value.to_u32().ok().map(u64::from)).or_else(signed)?;
        usize::try_from(number).ok()
    }

    fn float(&self, key: &str) -> Option<f64> {
        let value = self.0.get(key)?;
        value.to_f32().ok().map(f64::from).or_else(|| value.to_f64().ok())
    }

    /// The sizes, the number of blocks, and the epsilon of every norm.
    fn sizes(&self, content: &Content) -> Result<(Sizes, usize, f64), String> {
        let missing = |key: &str| format!("has no {key}");
        let needed = |key: &str| self.number(key).filter(|number| *number > 0).ok_or_else(|| missing(key));
        let (hidden, heads) = (needed("llama.embedding_length")?, needed("llama.attention.head_count")?);
        let blocks = needed("llama.block_count")?;
        let table = content.tensor_infos.get("token_embd.weight").ok_or_else(|| missing("token_embd.weight"))?;
        let vocab = table.shape.dims().first().copied().unwrap_or(0);
        let id = |key: &str| self.number(key).map(|id| u32::try_from(id).unwrap_or(u32::MAX));
        let key_heads = self.number("llama.attention.head_count_kv").unwrap_or(heads);
        if key_heads == 0 || !heads.is_multiple_of(key_heads) {
            return Err(missing("llama.attention.head_count_kv that divides the heads"));
        }
        sizes::check_ranges(&[
            ("the vocabulary of token_embd.weight", vocab, sizes::IDS),
            ("llama.embedding_length", hidden, sizes::WIDTH),
            ("llama.block_count", blocks, sizes::LAYERS),
        ])?;
        let eps = self.float("llama.attention.layer_norm_rms_epsilon").unwrap_or(1e-5);
        sizes::check_positive(&[("llama.attention.layer_norm_rms_epsilon", eps)])?;
        let sizes = Sizes {
            vocab,
            hidden,
            heads,
            key_heads,
            head: self.number("llama.attention.key_length").unwrap_or(hidden / heads),
            rope_theta: self.float("llama.rope.freq_base").unwrap_or(10_000.0),
            interleaved: true,
            bos: id("tokenizer.ggml.bos_token_id").unwrap_or(1),
            eos: vec![id("tokenizer.ggml.eos_token_id").unwrap_or(2)],
        };
        sizes.check()?;
        Ok((sizes, blocks, eps))
    }
}
