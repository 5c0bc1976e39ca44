//! A Show-o with random weights that is small enough for tests, here and in other crates.
#![allow(dead_code)]

use hermesflow_models::showo::pretrain::{random_magvit, random_showo, train_tokenizer};
use hermesflow_models::showo::{Magvit, MagvitConfig, PhiConfig, Showo, ShowoConfig, ShowoTokenizer};
use hermesflow_models::{DType, Device};
use hermesflow_nn::weights::Weights;

/// Tokens of its images.
pub const TOKENS: usize = 16;

/// With so many decoder blocks.
pub fn model(blocks: usize) -> Showo {
    sized(blocks, 48, 5)
}

/// With so many decoder blocks of this width (a multiple of 6), and so many bits of an image's code.
pub fn sized(blocks: usize, width: usize, bits: usize) -> Showo {
    let lines: Vec<String> = (0..200).map(|i| format!("a large red circle above {i} small blue squares")).collect();
    let (text, vocabulary) = train_tokenizer(&lines, 300).unwrap();
    let vq = MagvitConfig {
        class_name: "MAGVITv2".into(),
        ch: 8,
        ch_mult: Some(vec![1, 1, 2]),
        num_res_blocks: Some(vec![1; 3]),
        z_channels: bits,
        resolution: 16,
        norm_groups: 4,
    };
    let phi = PhiConfig {
        hidden_size: width,
        intermediate_size: 2 * width,
        num_hidden_layers: blocks,
        num_attention_heads: 3,
        ..PhiConfig::default()
    };
    let showo = ShowoConfig {
        class_name: "Showo".into(),
        vocab_size: vocabulary + 10 + (1 << bits) + 1,
        llm_vocab_size: vocabulary,
        codebook_size: 1 << bits,
        num_vq_tokens: TOKENS,
        mask_token_id: None,
        w_clip_vit: false,
        llm_model_path: "phi".into(),
        max_text_len: 64,
    };
    let tokenizer = ShowoTokenizer::from_bytes(text.as_bytes(), &showo, "tokenizer".as_ref()).unwrap();
    let magvit = Magvit::new(&random_magvit(&vq, 1, &Device::Cpu).unwrap(), &vq).unwrap();
    let weights = random_showo(&showo, &phi, 2, &Device::Cpu).unwrap();
    Showo::new(showo, phi, weights, tokenizer, magvit).unwrap()
}

/// The same model with its matrices held in this type.
pub fn held(model: &Showo, dtype: DType) -> Showo {
    let held = model.weights().tensors().iter().map(|(name, tensor)| {
        let dtype = if tensor.rank() == 2 { dtype } else { DType::F32 };
        (name.clone(), tensor.to_dtype(dtype).unwrap())
    });
    model.with_weights(Weights::from_tensors(held.collect::<Vec<_>>(), "held")).unwrap()
}
