//! Says whether the embedded model is there (`pretrain` makes it; a checkout without it still builds).

use std::path::Path;

/// Everything that [`include_bytes!`] asks for.
const FILES: [&str; 6] = [
    "showo/config.json",
    "showo/phi/config.json",
    "showo/pytorch_model.safetensors",
    "vq/config.json",
    "vq/pytorch_model.safetensors",
    "tokenizer.json",
];

fn main() {
    println!("cargo:rustc-check-cfg=cfg(embedded_model)");
    println!("cargo:rerun-if-changed=../../assets/scenes");
    let assets = Path::new("../../assets/scenes");
    if FILES.iter().all(|file| assets.join(file).is_file()) {
        println!("cargo:rustc-cfg=embedded_model");
    }
}
