//! How long a forward and backward pass of a small Show-o takes: `cargo run --release --example step_time`.

use std::time::Instant;

use hermesflow_models::showo::pretrain::{random_magvit, random_showo, train_tokenizer};
use hermesflow_models::showo::{Magvit, MagvitConfig, PhiConfig, Showo, ShowoConfig, ShowoTokenizer};
use hermesflow_models::{CaptionExample, Device, ImageExample, ImageView, PairModel, Scored};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let argument = |at: usize, default: usize| std::env::args().nth(at).map_or(Ok(default), |text| text.parse());
    let (hidden, layers) = (argument(1, 128)?, argument(2, 6)?);
    let lines: Vec<String> = (0..500).map(|i| format!("a large red circle above {i} small blue squares")).collect();
    let (text, vocabulary) = train_tokenizer(&lines, 512)?;
    let vq = MagvitConfig {
        class_name: "MAGVITv2".into(),
        ch: 16,
        ch_mult: Some(vec![1, 2, 4, 4]),
        num_res_blocks: Some(vec![1; 4]),
        z_channels: 8,
        resolution: 64,
        norm_groups: 8,
    };
    let phi = PhiConfig {
        hidden_size: hidden,
        intermediate_size: 4 * hidden,
        num_hidden_layers: layers,
        num_attention_heads: hidden / 32,
        ..PhiConfig::default()
    };
    let showo = ShowoConfig {
        class_name: "Showo".into(),
        vocab_size: vocabulary + 10 + 256 + 1,
        llm_vocab_size: vocabulary,
        codebook_size: 256,
        num_vq_tokens: 64,
        mask_token_id: None,
        w_clip_vit: false,
        llm_model_path: "phi".into(),
        max_text_len: 64,
    };
    let device = Device::Cpu;
    let tokenizer = ShowoTokenizer::from_bytes(text.as_bytes(), &showo, "tokenizer".as_ref())?;
    let magvit = Magvit::new(&random_magvit(&vq, 1, &device)?, &vq)?;
    let weights = random_showo(&showo, &phi, 2, &device)?.trainable()?;
    let model = Showo::new(showo, phi, weights, tokenizer, magvit)?;
    let images: Vec<ImageExample> = (0..24)
        .map(|i| ImageExample {
            prompt: format!("a large red circle above {i} small blue squares on a grey background"),
            unconditional: false,
            codes: (0..64).map(|p| (p * 7 + i) % 256).collect(),
            scored: Scored::Masked((0..40).collect()),
        })
        .collect();
    let captions: Vec<CaptionExample> = (0..36)
        .map(|i| CaptionExample {
            image: ImageView::Codes((0..64).map(|p| (p * 7 + i / 3) % 256).collect()),
            question: format!("what color is the circle {}", i % 3),
            caption: "a large red circle above small blue squares".into(),
        })
        .collect();
    for _ in 0..4 {
        let start = Instant::now();
        let loss = model.image_log_probs(&images, 0.0)?.sum_all()?;
        let forward = start.elapsed();
        let grads = loss.backward()?;
        let generation = start.elapsed();
        let loss = model.caption_log_probs(&captions)?.sum_all()?;
        let both = loss.backward()?;
        println!(
            "image forward {forward:?}, forward+backward {generation:?}; captions {:?}; {} and {} gradients",
            start.elapsed() - generation,
            model.parameters().iter().filter(|(_, v)| grads.get(v).is_some()).count(),
            model.parameters().iter().filter(|(_, v)| both.get(v).is_some()).count(),
        );
    }
    Ok(())
}
