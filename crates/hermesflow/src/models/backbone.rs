//! The backbone: the only file of this program that names Show-o's own modules. Everything else says [`Model`], so the
//! place where a second backbone is chosen is here.
//!
//! Training, curation and evaluation need no more than the traits `UnifiedModel` and `PairModel`; the names below are for
//! opening a checkpoint, for counting what it costs, and for the commands that make or convert checkpoints.

/// Costs of a model's passes, in operations and bytes.
pub use hermesflow_models::showo::cost::{self, Cost, Sizes, training};
/// What makes models and image tokenizers from nothing, and trains them.
pub use hermesflow_models::showo::pretrain::{
    VqLossWeights, random_clip, random_magvit, random_projector, random_showo, train_tokenizer, vq_loss,
};
/// Checkpoints: their configurations and files.
pub use hermesflow_models::showo::{
    CheckpointConfigs, ClipConfig, ClipVision, Embedded, MagvitConfig, PhiConfig, ShowoConfig, check_files,
    check_showo,
    config::{ADDED_TOKENS, read_json},
    load_magvit, read_configs, read_magvit_config, write_configs, write_json,
};
/// The model, its image tokenizer and its text tokenizer.
pub use hermesflow_models::showo::{Magvit, Showo as Model, ShowoTokenizer, reply_text};
