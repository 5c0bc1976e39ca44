//! One YAML file = one run: every number in it, resolved and validated once.
//!
//! - [`RunConfig`] is a run; its sections are in `data`, `model`, `curation`, `judges` and `train`. A key is a field of
//!   these structs: its doc comment, type, range and default are all that `hermesflow keys`, `docs/KEYS.md` and the JSON
//!   Schema are made of ([`keys`]), and all that its checks follow (`bounds`).
//! - [`PretrainConfig`] is a pretraining of the embedded model.
//! - Keys that a file leaves out have the defaults of the paper and its released code; `key=value` arguments override
//!   single keys (`overrides`), earlier names are understood (`aliases`), and errors say where a value came from
//!   (`sources`). Files of the original are read too (`original`). Keys that mean nothing to the model at hand are refused
//!   (`meaning`).
//! - The resolved configuration is saved as `config.yaml` beside the outputs; that file is a complete run in itself.

mod aliases;
mod auto;
mod bounds;
mod curation;
mod data;
mod expect;
mod judges;
mod kernels;
pub mod keys;
mod load;
mod meaning;
mod model;
mod original;
mod overrides;
mod presets;
mod pretrain;
mod preview;
mod products;
mod run;
mod sources;
mod train;
mod yaml;

pub use aliases::as_of_today;
pub use curation::{AnswerScore, ImageJudge, ImagineSettings, SamplingSettings};
pub use data::ScenesSettings;
pub use expect::Facts;
pub use judges::{Filter, JudgeSettings, Matcher, Similarity, Writer};
pub use model::{BackboneName, CLIP, DTypeName, MAGVIT, ModelSettings, PHI};
pub use presets::{DEMO, PRESETS, preset};
pub use pretrain::{BaseSettings, PretrainConfig, PretrainingMix};
pub use preview::PreviewSettings;
pub use run::RunConfig;
pub use train::{ImageCodes, ObjectiveName, OptimizerState, Recompute, Reference, TrainSettings};

#[cfg(test)]
mod tests;
