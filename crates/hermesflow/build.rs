//! Says which embedded models are there (`pretrain` makes them; a checkout without them still builds).

use std::path::Path;

/// Each embedded model: its flag, its folder in `assets`, and everything of it that [`include_bytes!`] asks for.
const MODELS: [(&str, &str, &[&str]); 2] = [
    (
        "embedded_model",
        "scenes",
        &[
            "showo/config.json",
            "showo/phi/config.json",
            "showo/pytorch_model.safetensors",
            "vq/config.json",
            "vq/pytorch_model.safetensors",
            "tokenizer.json",
        ],
    ),
    (
        "embedded_next_code",
        "scenes-next-code",
        &[
            "config.json",
            "preprocessor_config.json",
            "processor_config.json",
            "pytorch_model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
        ],
    ),
];

fn main() {
    for (flag, folder, files) in MODELS {
        let folder = Path::new("../../assets").join(folder);
        println!("cargo:rustc-check-cfg=cfg({flag})");
        println!("cargo:rerun-if-changed={}", folder.display());
        if files.iter().all(|file| folder.join(file).is_file()) {
            println!("cargo:rustc-cfg={flag}");
        }
    }
}
