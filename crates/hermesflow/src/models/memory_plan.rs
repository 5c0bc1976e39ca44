//! What training takes of a device's memory, and how `train.recompute` and `train.optimizer_state` are chosen so that
//! it fits a GPU.

use hermesflow_models::Model;
use hermesflow_models::cost::{Costs, Task, TrainingWork};
use hermesflow_models::device::memory;

use crate::config::{OptimizerState, Recompute, Reference, RunConfig};

/// Tokens of a typical caption or question.
pub const WORDS: usize = 30;
/// What the program needs besides weights and activations: itself, text tokenizer, allocator.
pub const PROGRAM: u64 = 150_000_000;
/// What the driver and its libraries need of a GPU.
pub const DRIVER: u64 = 700_000_000;

/// The forms of training, the fastest first: computing blocks again takes a seventh more time, the host's memory several
/// seconds a step for a large model.
pub const FORMS: [(Recompute, OptimizerState); 4] = [
    (Recompute::Off, OptimizerState::Device),
    (Recompute::On, OptimizerState::Device),
    (Recompute::Off, OptimizerState::Host),
    (Recompute::On, OptimizerState::Host),
];

/// The memory and work that a form of training needs.
#[derive(Debug, Clone, Copy)]
pub struct Need {
    /// Bytes of the device, everything included.
    pub device: u64,
    /// Bytes of the host beside a GPU.
    pub host: u64,
    /// Operations of a micro batch.
    pub operations: f64,
}

/// Chooses the form of training where the configuration leaves it open (`auto`): the fastest that fits a GPU of `total`
/// bytes, else the smallest.
pub fn choose(config: &mut RunConfig, sizes: &dyn Costs, total: u64) {
    let train = &config.train;
    let forms = FORMS.map(|(recompute, state)| (train.recompute.or(recompute), train.optimizer_state.or(state)));
    let fits = |form: &(Recompute, OptimizerState)| need(config, sizes, *form).device <= total;
    let [.., smallest] = forms;
    (config.train.recompute, config.train.optimizer_state) = forms.into_iter().find(fits).unwrap_or(smallest);
}

/// A configuration in which [`choose`] has named the form of training that fits the device of a loaded model.
///
/// # Errors
/// Never for a model that was loaded.
pub fn chosen(config: &RunConfig, model: &Model) -> anyhow::Result<RunConfig> {
    let mut config = config.clone();
    if let Some(memory) = memory(model.device()) {
        choose(&mut config, &*model.costs()?, memory.total);
    }
    Ok(config)
}

/// What a form of a configuration's training takes of the device.
pub fn need(config: &RunConfig, sizes: &dyn Costs, (recompute, state): (Recompute, OptimizerState)) -> Need {
    let train = &config.train;
    let guided = train.guidance.number() != 0.0;
    // Both images of a pair go through the model twice more, as many times as one more mask under guidance.
    let apart = if train.loss.kl == 0.0 { 0 } else { 2 - usize::from(guided) };
    let cost = sizes.train(&TrainingWork {
        parts: train.parts(),
        pairs: train.batch_size,
        words: WORDS,
        masks: train.masks_per_pair + apart,
        guided,
        accumulation: train.accumulation,
        products: train.products.into(),
        recompute: recompute == Recompute::On,
        host_state: state == OptimizerState::Host,
    });
    // The model that plays is the reference, unless that is the run's first one.
    let models = if train.reference == Reference::Run && config.iterations > 1 { 2 } else { 1 };
    let dtype = config.model.dtype.into();
    let models = sizes.in_memory(Task::Training, dtype)
        + (models - 1) * sizes.decoder_bytes(dtype)
        + sizes.widened(train.products.into(), dtype);
    let program = if sizes.is_on_gpu() { DRIVER } else { PROGRAM };
    Need {
        device: models + program + cost.held + with_slack(cost.passing) + cost.saving,
        host: cost.host,
        operations: cost.operations,
    }
}

/// The allocator keeps freed memory for a while (docs/lab/performance.md, entry 2): about a fifth on top of what comes
/// and goes.
pub fn with_slack(passing: u64) -> u64 {
    passing / 5 * 6
}
