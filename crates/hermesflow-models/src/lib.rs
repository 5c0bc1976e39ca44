//! Unified multimodal models: one transformer that both understands and makes images.
//!
//! [`UnifiedModel`] is what curation needs (captions, answers, images), [`PairModel`] what training
//! needs (per-example log-probabilities). [`showo`] is the first backbone.

pub mod error;
pub mod grid;
pub mod mask_schedule;
pub mod model;
pub mod preprocess;
pub mod showo;

pub use candle_core::{DType, Device, Tensor, Var};
pub use error::{Error, Result};
pub use grid::{Direction, Grid};
pub use hermesflow_nn::ops::Products;
pub use hermesflow_nn::weights::{FileBacked, FileFormat, Weights, files as weight_files};
pub use hermesflow_nn::{device, foreign, measure};
pub use mask_schedule::{MaskSchedule, SigmoidParams};
pub use model::{
    CaptionExample, ImageExample, ImageView, ImagineJob, ImagineOptions, PairModel, Reply, ReplyRequest, Sampling,
    UnifiedModel,
};
