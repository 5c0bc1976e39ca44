//! Training: the Pair-DPO loss, one training loop for anything that has a loss, and its optimizer, schedule, metrics
//! and checkpoints.
//!
//! The files in the order in which a step uses them:
//!
//! 1. [`pair_dpo`]: prepared pairs, and which of them a step sees; asks a model for log-probabilities;
//! 2. [`draws`] and [`states`]: all random numbers of a run as a function of (seed, purpose, index), and the states of an
//!    image that they choose;
//! 3. [`loss`]: the loss itself, from log-probabilities to losses and rewards per pair;
//! 4. [`trainer`]: the loop that Pair-DPO, its controls and pretraining share ([`Objective`]);
//! 5. [`gradients`], [`schedule`] and [`optimizer`]: the sums of a step's gradients, its learning rate, and AdamW with
//!    explicit parameter groups;
//! 6. [`metrics`] and [`watch`]: one JSON line per step, and an alarm on a falling likelihood;
//! 7. [`checkpoint`]: folders from which a killed run is resumed bit for bit.
//!
//! No backbone is named here: a model is anything that implements [`PairModel`](hermesflow_models::PairModel).

mod between;
pub mod checkpoint;
mod divergence;
pub mod draws;
pub mod error;
pub mod events;
pub mod gradients;
pub mod loss;
pub mod metrics;
mod objective;
pub mod optimizer;
pub mod own_image;
pub mod pair_dpo;
mod pair_settings;
mod place;
pub mod schedule;
pub mod states;
pub mod trainer;
mod training_pair;
pub mod watch;

pub use draws::{MaskStates, Masking, mask_positions};
pub use error::{Error, Result};
pub use gradients::{Gradients, Sums};
pub use loss::{LossKind, LossSettings, Pair, PairLogProbs, SideLoss, SideTerms};
pub use metrics::{Metrics, StepRecord};
pub use optimizer::{AdamW, AdamWSettings};
pub use own_image::{OwnImage, StoredFeatures};
pub use pair_dpo::{CaptionMemory, PairDpo, PairDpoSettings, PairWeights, Sides, TrainingPair};
pub use place::StatePlace;
pub use schedule::{Schedule, ScheduleKind};
pub use trainer::{
    Objective, ObjectiveError, Outcome, PartLoss, Position, Sharing, Step, StepReport, Trainer, TrainerSettings,
};
pub use watch::{LikelihoodFalls, WatchSettings};
