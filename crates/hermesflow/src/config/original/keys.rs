//! The original's keys that have no meaning here.

/// Exact keys, and whole sections as `section.*`.
const MEANINGLESS: &[&str] = &[
    // Logging, and the files of accelerate.
    "wandb.*",
    "mlflow.*",
    "accelerate.*",
    "deepspeed.*",
    "config",
    "device",
    "experiment.project",
    "experiment.name",
    "experiment.logging_dir",
    "experiment.log_every",
    "experiment.log_grad_norm_every",
    "experiment.eval_every",
    "experiment.generate_every",
    "experiment.max_train_examples_t2i",
    "experiment.max_train_examples_mmu",
    "experiment.profile",
    // How PyTorch computes.
    "model.gradient_checkpointing",
    "model.enable_xformers_memory_efficient_attention",
    "training.enable_tf32",
    "optimizer.params.scale_lr", // the original's training does not read it either
    // How the loaders work.
    "dataset.gen_type",
    "dataset.und_type",
    "dataset.combined_loader_mode",
    "dataset.add_system_prompt",
    "dataset.params.add_caption_prompt",
    "dataset.params.shuffle_buffer_size",
    "dataset.params.num_workers",
    "dataset.params.pin_memory",
    "dataset.params.persistent_workers",
    "dataset.params.validation_prompts_file",
    "dataset.preprocessing.center_crop",
    // The data of Show-o's own trainings.
    "dataset.params.train_t2i_shards_path_or_url",
    "dataset.params.train_mmu_shards_path_or_url",
    "dataset.params.train_lm_shards_path_or_url",
    "dataset.params.external_caption_path",
    "dataset.params.external_journeydb_caption_path",
    "dataset.params.external_laion12m_caption_path",
    "dataset.params.external_cc12m_caption_path",
    "training.batch_size_lm",
    "training.lm_coeff",
    "training.eval_mask_ratios",
    // How many images the inference scripts make at a time.
    "batch_size",
];

/// The entry that a key belongs to, if it has no meaning here.
pub fn meaningless(key: &str) -> Option<&'static str> {
    MEANINGLESS.iter().copied().find(|entry| match entry.strip_suffix(".*") {
        Some(section) => key == section || key.strip_prefix(section).is_some_and(|rest| rest.starts_with('.')),
        None => key == *entry,
    })
}

/// What the inference scripts take for pictures and prompts of one's own.
pub const SINGLE: [&str; 7] = [
    "validation_prompts_file",
    "mmu_image_root",
    "prompt",
    "image_path",
    "inpainting_mask_path",
    "extra_direction",
    "offset",
];
