//! A Janus-Pro with random weights that is small enough for tests.
#![allow(dead_code)]

use hermesflow_models::janus::config::JanusConfig;
use hermesflow_models::janus::pretrain::{files, random_janus, tokenizer};
use hermesflow_models::janus::{Janus, JanusFiles};
use hermesflow_models::{Device, Tensor, Weights};
use serde_json::{Value, json};

/// Tokens of its pictures, and their side in pixels.
pub const TOKENS: usize = 16;
pub const SIDE: usize = 16;
/// Codes of its image tokenizer.
pub const CODES: usize = 40;

/// `config.json`, with so many key heads to four query heads.
pub fn config(key_heads: usize, vocab_size: usize) -> Value {
    json!({
        "model_type": "multi_modality",
        "language_config": {
            "vocab_size": vocab_size, "hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": key_heads, "max_position_embeddings": 512,
        },
        "vision_config": { "cls": "CLIPVisionTower", "params": {
            "image_size": SIDE, "model_name": "siglip_large_patch16_384", "select_feature": "same", "select_layer": -1,
            "patch_size": 4, "width": 24, "layers": 2, "heads": 3, "mlp_ratio": 2.5,
        } },
        "aligner_config": { "cls": "MlpProjector", "params": {
            "depth": 2, "input_dim": 24, "n_embed": 32, "projector_type": "mlp_gelu"
        } },
        "gen_vision_config": { "cls": "VQ-16", "params": {
            "image_token_size": CODES, "n_embed": 5, "ch": 32, "encoder_ch_mult": [1, 1, 2], "decoder_ch_mult": [1, 1, 1],
            "num_res_blocks": 1, "z_channels": 12,
        } },
        "gen_aligner_config": { "cls": "MlpProjector", "params": {
            "depth": 3, "input_dim": 5, "n_embed": 32, "projector_type": "mlp_gelu"
        } },
        "gen_head_config": { "cls": "vision_head", "params": {
            "image_token_embed": 28, "image_token_size": CODES, "n_embed": 32
        } },
    })
}

pub fn small_files(key_heads: usize) -> JanusFiles {
    let lines: Vec<String> = (0..200).map(|i| format!("a large red circle above {i} small blue squares")).collect();
    let (tokenizer, size) = tokenizer(&lines, 320).unwrap();
    files(&config(key_heads, size + 9), TOKENS, SIDE, &tokenizer)
}

/// With so many key heads to four query heads, and larger weights than a fresh model has, so that differences show.
pub fn model(key_heads: usize) -> Janus {
    let files = small_files(key_heads);
    let config = JanusConfig::read(&files).unwrap();
    let weights = random_janus(&config, 7, &Device::Cpu).unwrap();
    let louder = |(name, tensor): (&String, &Tensor)| {
        let by = if name.starts_with("language_model") && tensor.rank() == 2 { 8.0 } else { 1.0 };
        (name.clone(), (tensor * by).unwrap())
    };
    let tensors: Vec<_> = weights.tensors().iter().map(louder).collect();
    Janus::new(files, Weights::from_tensors(tensors, "louder")).unwrap()
}

/// Codes of a picture.
pub fn codes(seed: u32) -> Vec<u32> {
    (0..TOKENS as u32).map(|at| (at * 7 + seed * 11) % CODES as u32).collect()
}

/// All numbers of a tensor.
pub fn read(tensor: &Tensor) -> Vec<f32> {
    tensor.detach().flatten_all().unwrap().to_vec1().unwrap()
}
