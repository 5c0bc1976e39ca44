//! The weights of LLaMA: a folder of safetensors in the published layout, or one GGUF file ([`super::gguf`]).

use std::path::Path;

use candle_core::{DType, Device};
use hermesflow_nn::{sizes, weights};
use serde::Deserialize;
use serde_json::Value as Json;

use super::folder::{Parameters, optional_json, read_json};
use super::gguf::gguf;
use super::layers::{Linear, RmsNorm};
use super::llama::{Block, Llama, Projection, Sizes, Table};
use super::memory;
use crate::{Error, Result};

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
        let head = self.head_dim.unwrap_or(self.hidden_size / heads);
        sizes::check_ranges(&[
            ("vocab_size", self.vocab_size, sizes::IDS),
            ("hidden_size", self.hidden_size, sizes::WIDTH),
            ("intermediate_size", self.intermediate_size, sizes::WIDE),
            ("num_hidden_layers", self.num_hidden_layers, sizes::LAYERS),
        ])?;
        sizes::check_positive(&[("rms_norm_eps", self.rms_norm_eps)])?;
        let sizes = Sizes {
            vocab: self.vocab_size,
            hidden: self.hidden_size,
            heads,
            key_heads,
            head,
            rope_theta: self.rope_theta.unwrap_or(10_000.0),
            interleaved: false,
            bos: self.bos_token_id.unwrap_or(1),
            eos,
        };
        sizes.check()?;
        Ok(sizes)
    }
}

impl Llama {
    /// Loads a model folder with weights held as `dtype`, or a GGUF file (the path itself, or the only one in a
    /// folder).
    ///
    /// # Errors
    /// If a file is missing or malformed, the model is of another kind, or it does not fit into memory; the file is
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
        let needed = weight_bytes(folder, dtype)? + sizes.cache_bytes(config.num_hidden_layers, DType::F32);
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
            // On the CPU activations are in f32, whatever the weights' type.
            dtype: if device.is_cpu() { DType::F32 } else { dtype },
            device: device.clone(),
        })
    }
}

/// The memory that loading needs: all weights as `dtype`, and beside them the largest one as it is in the file.
fn weight_bytes(folder: &Path, dtype: DType) -> Result<u64> {
    let elements = |entry: &weights::TensorInfo| entry.shape.iter().product::<usize>() as u64;
    let entries = weights::tensor_infos(folder)?;
    let largest = entries.iter().map(|entry| elements(entry) * entry.dtype.size_in_bytes() as u64).max();
    Ok(entries.iter().map(elements).sum::<u64>() * dtype.size_in_bytes() as u64 + largest.unwrap_or(0))
}
