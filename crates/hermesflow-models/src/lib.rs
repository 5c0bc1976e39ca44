//! Unified multimodal models: one transformer that understands images and generates them.
//!
//! A backbone implements two traits. [`UnifiedModel`] is what data curation needs: captions, answers to questions about
//! images, and images from text. [`PairModel`] is what training needs: log-probabilities that can be differentiated.
//! [`showo`] and [`janus`] are the backbones; a program holds any of them as a [`Model`].

pub mod backbone;
pub mod cost;
pub mod decoder;
pub mod error;
pub mod grid;
mod imagined;
pub mod janus;
pub mod mask_schedule;
pub mod model;
pub mod preprocess;
pub mod showo;
mod vqgan;

pub use backbone::{Backbone, Model};
pub use candle_core::{DType, Device, Tensor, Var};
pub use error::{Error, Result};
pub use grid::{Direction, Grid};
pub use hermesflow_nn::ops::Products;
pub use hermesflow_nn::weights::{FileBacked, FileFormat, Weights, files as weight_files};
pub use hermesflow_nn::{device, foreign, kernels, measure};
pub use imagined::Imagined;
pub use mask_schedule::{MaskSchedule, SigmoidParams};
pub use model::{
    CaptionExample, GivenReply, ImageDecoding, ImageExample, ImageView, ImagineJob, ImagineOptions, Likelihood,
    MaskedOptions, NextCodeOptions, PairModel, Prepared, Reply, ReplyRequest, Sampling, Scored, UnifiedModel,
};
