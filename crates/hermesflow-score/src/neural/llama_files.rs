//! LLaMA weights: a folder of safetensors as published, or one GGUF file.

use std::collections::HashMap;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use candle_core::quantized::QMatMul;
use candle_core::quantized::gguf_file::{Content, Value};
use candle_core::{DType, Device};
use hermesflow_nn::weights;
use serde::Deserialize;
use serde_json::Value as Json;

use super::folder::{Parameters, optional_json, read_json};
use super::layers::{Linear, RmsNorm};
use super::llama::{Block, Llama, Projection, Sizes, Table};
use super::memory;
use crate::{Error, Result};

/// Rows of the cache that are reckoned with: a prompt and five replies of 512 tokens.
const ROWS: usize = 6 * 512;

#[derive(Debug, Deserialize)]
struct Config {
    model_type: String,
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    #[serde(default)]
    num_key_value_heads: Option<usize>,
    #[serde(default)]
    head_dim: Option<usize>,
    rms_norm_eps: f64,
    #[serde(default)]
    rope_theta: Option<f64>,
    #[serde(default)]
    rope_scaling: Option<Json>,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    #[serde(default)]
    hidden_act: Option<String>,
    #[serde(default)]
    bos_token_id: Option<u32>,
    #[serde(default)]
    eos_token_id: Option<Ids>,
}

#[derive(Debug, Default, Deserialize)]
struct Generation {
    #[serde(default)]
    eos_token_id: Option<Ids>,
}

/// One id or several.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum Ids {
    One(u32),
    Several(Vec<u32>),
}

impl Config {
    fn sizes(&self, generation: Generation) -> Result<Sizes, String> {
        if self.model_type != "llama" {
            return Err(format!("model_type {:?}; expected a llama model", self.model_type));
        }
        let scaled = |scaling: &Json| {
            let kind = scaling.get("rope_type").or_else(|| scaling.get("type")).and_then(Json::as_str);
            !scaling.is_null() && kind != Some("default")
        };
        if let Some(scaling) = self.rope_scaling.as_ref().filter(|scaling| scaled(scaling)) {
            return Err(format!("rope_scaling {scaling} is not supported"));
        }
        if let Some(name) = self.hidden_act.as_deref().filter(|name| *name != "silu") {
            return Err(format!("hidden_act {name:?} is not supported; expected \"silu\""));
        }
        let heads = self.num_attention_heads;
        let key_heads = self.num_key_value_heads.unwrap_or(heads);
        if heads == 0 || key_heads == 0 || !heads.is_multiple_of(key_heads) {
            return Err(format!("{heads} attention heads cannot share {key_heads} key heads"));
        }
        let eos = match generation.eos_token_id.or_else(|| self.eos_token_id.clone()) {
            Some(Ids::One(id)) => vec![id],
            Some(Ids::Several(ids)) => ids,
            None => vec![2],
        };
        Ok(Sizes {
            vocab: self.vocab_size,
            hidden: self.hidden_size,
            heads,
            key_heads,
            head: self.head_dim.unwrap_or(self.hidden_size / heads),
            rope_theta: self.rope_theta.unwrap_or(10_000.0),
            interleaved: false,
            bos: self.bos_token_id.unwrap_or(1),
            eos,
        })
    }
}

/// Bytes of the cache.
fn cache_bytes(sizes: &Sizes, blocks: usize, dtype: DType) -> u64 {
    (2 * blocks * ROWS * sizes.key_heads * sizes.head * dtype.size_in_bytes()) as u64
}

impl Llama {
    /// Loads a model folder with weights as `dtype`, or a GGUF file (given itself, or alone in its folder).
    ///
    /// # Errors
    /// When a file is missing or broken, the model is of another kind, or it does not fit into memory; the file is
    /// named.
    pub fn load(path: &Path, dtype: DType, device: &Device) -> Result<Self> {
        match gguf(path) {
            Some(file) => Self::load_gguf(&file, device),
            None => Self::load_folder(path, dtype, device),
        }
    }

    fn load_folder(folder: &Path, dtype: DType, device: &Device) -> Result<Self> {
        let config: Config = read_json(folder, "config.json")?;
        let generation: Generation = optional_json(folder, "generation_config.json")?.unwrap_or_default();
        let fault = |message: String| Error::file(&folder.join("config.json"), message);
        let sizes = config.sizes(generation).map_err(fault)?;
        let needed = weight_bytes(folder, dtype)? + cache_bytes(&sizes, config.num_hidden_layers, DType::F32);
        if device.is_cpu() {
            memory::require(folder, needed)?;
        }
        let parameters = Parameters::load(folder, dtype, device, &["model.", ""], "embed_tokens.weight")?;
        let (hidden, mlp) = (sizes.hidden, config.intermediate_size);
        let (queries, keys) = (sizes.heads * sizes.head, sizes.key_heads * sizes.head);
        let norm = |name: &str| {
            Ok::<_, Error>(RmsNorm::new(parameters.get(&format!("{name}.weight"), &[hidden])?, config.rms_norm_eps))
        };
        let block = |number: usize| -> Result<Block> {
            let at = |name: &str| format!("layers.{number}.{name}");
            let attention = |name: &str, shape| {
                let name = at(&format!("self_attn.{name}"));
                Linear::load(&parameters, &name, shape, config.attention_bias).map(Projection::Whole)
            };
            let feed_forward = |name: &str, shape| {
                let name = at(&format!("mlp.{name}"));
                Linear::load(&parameters, &name, shape, config.mlp_bias).map(Projection::Whole)
            };
            Ok(Block {
                input_norm: norm(&at("input_layernorm"))?,
                q: attention("q_proj", [queries, hidden])?,
                k: attention("k_proj", [keys, hidden])?,
                v: attention("v_proj", [keys, hidden])?,
                o: attention("o_proj", [hidden, queries])?,
                attention_norm: norm(&at("post_attention_layernorm"))?,
                gate: feed_forward("gate_proj", [mlp, hidden])?,
                up: feed_forward("up_proj", [mlp, hidden])?,
                down: feed_forward("down_proj", [hidden, mlp])?,
            })
        };
        let table = parameters.get("embed_tokens.weight", &[sizes.vocab, hidden])?;
        let head = match config.tie_word_embeddings {
            true => Linear::new(table.clone()),
            false => Linear::new(parameters.outside("lm_head.weight", &[sizes.vocab, hidden])?),
        };
        Ok(Self {
            blocks: (0..config.num_hidden_layers).map(block).collect::<Result<_>>()?,
            norm: norm("norm")?,
            table: Table::Whole(table),
            head: Projection::Whole(head),
            sizes,
            // What lies between matrices is in f32 on the CPU, whatever these are held in.
            dtype: if device.is_cpu() { DType::F32 } else { dtype },
            device: device.clone(),
        })
    }

    /// Weights stay quantised; what runs between them is f32.
    fn load_gguf(path: &Path, device: &Device) -> Result<Self> {
        let broken = |error: candle_core::Error| {
            Error::file(path, format!("not a readable GGUF file ({error}); download it again"))
        };
        let file = File::open(path).map_err(|error| Error::file(path, error))?;
        let mut reader = BufReader::new(file);
        let content = Content::read(&mut reader).map_err(broken)?;
        let metadata = Metadata(&content.metadata);
        if metadata.text("general.architecture") != Some("llama") {
            let message = format!("architecture {:?}; expected llama", metadata.text("general.architecture"));
            return Err(Error::file(path, message));
        }
        let sizes = metadata
            .sizes(&content)
            .map_err(|key| Error::file(path, format!("has no {key}; convert the model again")))?;
        let blocks = metadata.number("llama.block_count").unwrap_or(0);
        let eps = metadata.float("llama.attention.layer_norm_rms_epsilon").unwrap_or(1e-5);
        let bytes = content.tensor_infos.values().map(|info| {
            let elements = info.shape.elem_count();
            (elements / info.ggml_dtype.block_size().max(1) * info.ggml_dtype.type_size()) as u64
        });
        memory::require(path, bytes.sum::<u64>() + cache_bytes(&sizes, blocks, DType::F32))?;
        let mut tensor = |name: &str| content.tensor(&mut reader, name, device).map_err(broken);
        let mut matrix =
            |name: &str| -> Result<QMatMul> { Ok(QMatMul::from_qtensor(tensor(&format!("{name}.weight"))?)?) };
        let table = matrix("token_embd")?;
        let head = match content.tensor_infos.contains_key("output.weight") {
            true => matrix("output")?,
            false => table.clone(),
        };
        let mut read = Vec::with_capacity(blocks);
        for number in 0..blocks {
            let mut part = |name: &str| matrix(&format!("blk.{number}.{name}")).map(Projection::Quantised);
            let (q, k, v, o) = (part("attn_q")?, part("attn_k")?, part("attn_v")?, part("attn_output")?);
            let (gate, up, down) = (part("ffn_gate")?, part("ffn_up")?, part("ffn_down")?);
            read.push((q, k, v, o, gate, up, down));
        }
        let mut norm = |name: &str| -> Result<RmsNorm> {
            let weight = content.tensor(&mut reader, &format!("{name}.weight"), device).map_err(broken)?;
            Ok(RmsNorm::new(weight.dequantize(device)?, eps))
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

    fn sizes(&self, content: &Content) -> Result<Sizes, &'static str> {
        let needed = |key: &'static str| self.number(key).filter(|number| *number > 0).ok_or(key);
        let (hidden, heads) = (needed("llama.embedding_length")?, needed("llama.attention.head_count")?);
        let table = content.tensor_infos.get("token_embd.weight").ok_or("token_embd.weight")?;
        let id = |key: &str| self.number(key).and_then(|id| u32::try_from(id).ok());
        let key_heads = self.number("llama.attention.head_count_kv").unwrap_or(heads);
        if key_heads == 0 || !heads.is_multiple_of(key_heads) {
            return Err("llama.attention.head_count_kv that divides the heads");
        }
        needed("llama.block_count")?;
        Ok(Sizes {
            vocab: table.shape.dims().first().copied().unwrap_or(0),
            hidden,
            heads,
            key_heads,
            head: self.number("llama.attention.key_length").unwrap_or(hidden / heads),
            rope_theta: self.float("llama.rope.freq_base").unwrap_or(10_000.0),
            interleaved: true,
            bos: id("tokenizer.ggml.bos_token_id").unwrap_or(1),
            eos: vec![id("tokenizer.ggml.eos_token_id").unwrap_or(2)],
        })
    }
}

/// What loading takes: all weights as `dtype`, and beside them the largest as the file has it.
fn weight_bytes(folder: &Path, dtype: DType) -> Result<u64> {
    let elements = |entry: &weights::Entry| entry.shape.iter().product::<usize>() as u64;
    let entries = weights::entries(folder)?;
    let largest = entries.iter().map(|entry| elements(entry) * entry.dtype.size_in_bytes() as u64).max();
    Ok(entries.iter().map(elements).sum::<u64>() * dtype.size_in_bytes() as u64 + largest.unwrap_or(0))
}
