//! AdamW (Loshchilov & Hutter, arXiv 1711.05101) with explicit parameter groups, f32 moments and a state that can be
//! saved.
//!
//! Weight decay applies to matrices only, never to biases, norms or embeddings. A parameter's group follows from its
//! name and rank (see [`decays`]). The list of exceptions in the released code matches no layer, so there everything
//! decays.
//!
//! The moments are stored beside the parameters, or in the host's memory ([`StatePlace`]) so that a GPU need hold only
//! weights and gradients. Both give the same numbers, and a state saved from one can be restored into the other.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor, Var};
use hermesflow_nn::optim::{AdamWConfig, adamw_step, global_norm};
use hermesflow_nn::weights::{self, TensorInfo};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Settings of the optimizer AdamW, except the learning rate, which the schedule gives.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AdamWSettings {
    /// AdamW's β₁: decay rate of the running mean of gradients (first moment).
    ///
    /// Default: 0.9.
    /// Source: released code, `optimizer.params.beta1`.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub beta1: f64,
    /// AdamW's β₂: decay rate of the running mean of squared gradients (second moment).
    ///
    /// Default: 0.999.
    /// Source: released code, `optimizer.params.beta2`.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub beta2: f64,
    /// AdamW's ε: added to the square root of the second moment, so that nothing is divided by 0.
    ///
    /// Default: 1e-8.
    /// Source: released code, `optimizer.params.epsilon`.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub eps: f64,
    /// Decoupled weight decay. Applied to matrices only: never to biases, norms or embeddings.
    ///
    /// Default: 0.01.
    /// Source: released code, `optimizer.params.weight_decay`; its list of exceptions matched no layer.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub weight_decay: f64,
}

impl Default for AdamWSettings {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 }
    }
}

impl AdamWSettings {
    /// Checks the ranges.
    ///
    /// # Errors
    /// Names the setting, its value and what is expected.
    pub fn validate(&self) -> Result<()> {
        let inside = |key, value: f64, range: std::ops::Range<f64>| {
            if range.contains(&value) {
                return Ok(());
            }
            Err(Error::Setting { key, problem: format!("{value} is not in [{}, {})", range.start, range.end) })
        };
        inside("optimizer.beta1", self.beta1, 0.0..1.0)?;
        inside("optimizer.beta2", self.beta2, 0.0..1.0)?;
        inside("optimizer.eps", self.eps, f64::MIN_POSITIVE..1.0)?;
        inside("optimizer.weight_decay", self.weight_decay, 0.0..1.0)
    }
}

/// Where the optimizer's state lies, and where its steps are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StatePlace {
    /// Beside the parameters.
    #[default]
    Device,
    /// In the computer's memory: gradients are summed there, and parameters go there and back, one at a time.
    Host,
}

impl StatePlace {
    /// The device of the state of a parameter on `device`.
    fn of(self, device: &Device) -> &Device {
        match self {
            Self::Device => device,
            Self::Host => &Device::Cpu,
        }
    }
}

/// Whether a parameter has weight decay: if its rank is at least 2 (matrices, convolutions) and it is not an embedding
/// by its name.
pub fn decays(name: &str, shape: &[usize]) -> bool {
    // A table of embeddings holds its weight itself: `gen_embed.weight`, but not `patch_embed.proj.weight`.
    let is_table = name.strip_suffix(".weight").is_some_and(|module| module.ends_with("_embed"));
    let is_embedding = |part: &str| part.starts_with("embed") || part.ends_with("embedding");
    shape.len() >= 2 && !is_table && !name.split('.').any(is_embedding)
}

/// The sums of the gradients of a step's micro batches, one per parameter, in the order of the parameters.
#[derive(Debug)]
pub struct Gradients {
    sums: Vec<Option<Tensor>>,
    place: StatePlace,
}

impl Gradients {
    /// Adds the gradients of one micro batch.
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub fn add(&mut self, parameters: &[(String, Var)], found: &GradStore) -> Result<()> {
        for (sum, (_, var)) in self.sums.iter_mut().zip(parameters) {
            if let Some(gradient) = found.get(var) {
                // Without the gradient's own graph, which candle's backward pass keeps.
                let gradient = gradient.detach().to_device(self.place.of(var.device()))?;
                *sum = Some(match sum.take() {
                    None => gradient,
                    Some(before) => (before + gradient)?,
                });
            }
        }
        Ok(())
    }

    /// The gradients; an error if a parameter has none.
    fn complete(&self, parameters: &[(String, Var)]) -> Result<Vec<Tensor>> {
        self.sums
            .iter()
            .zip(parameters)
            .map(|(gradient, (name, _))| gradient.clone().ok_or_else(|| Error::NoGradient { name: name.clone() }))
            .collect()
    }

    /// The Euclidean norm of all gradients together.
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub fn norm(&self) -> Result<f64> {
        let present: Vec<&Tensor> = self.sums.iter().flatten().collect();
        Ok(global_norm(&present)?)
    }
}

/// The optimizer of a set of parameters.
#[derive(Debug)]
pub struct AdamW {
    settings: AdamWSettings,
    place: StatePlace,
    parameters: Vec<(String, Var)>,
    moments: Vec<Moments>,
    step: usize,
}

#[derive(Debug)]
struct Moments {
    first: Var,
    second: Var,
    weight_decay: f64,
}

impl AdamW {
    /// An optimizer whose moments are zero and stored beside the parameters.
    ///
    /// # Errors
    /// If a setting is out of range, two parameters have the same name, or memory runs out.
    pub fn new(parameters: Vec<(String, Var)>, settings: AdamWSettings) -> Result<Self> {
        Self::with_state(parameters, settings, StatePlace::Device)
    }

    /// Like [`Self::new`], with the moments in this place.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_state(mut parameters: Vec<(String, Var)>, settings: AdamWSettings, place: StatePlace) -> Result<Self> {
        settings.validate()?;
        parameters.sort_by(|a, b| a.0.cmp(&b.0));
        if let Some(twins) = parameters.windows(2).find(|two| two[0].0 == two[1].0) {
            return Err(Error::DuplicateParameter { name: twins[0].0.clone() });
        }
        let moments = parameters
            .iter()
            .map(|(name, var)| {
                let zeros = || Var::zeros(var.shape(), DType::F32, place.of(var.device()));
                let weight_decay = if decays(name, var.dims()) { settings.weight_decay } else { 0.0 };
                Ok(Moments { first: zeros()?, second: zeros()?, weight_decay })
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Self { settings, place, parameters, moments, step: 0 })
    }

    /// The parameters, sorted by name.
    pub fn parameters(&self) -> &[(String, Var)] {
        &self.parameters
    }

    /// The number of steps made.
    pub fn steps(&self) -> usize {
        self.step
    }

    /// Empty sums of gradients, for the micro batches of one step.
    pub fn gradients(&self) -> Gradients {
        Gradients { sums: vec![None; self.parameters.len()], place: self.place }
    }

    /// Makes one step. Every gradient is first multiplied by `scale` (1 / micro batches, times the clipping factor).
    ///
    /// # Errors
    /// If a parameter has no gradient, in which case nothing is changed, or a tensor operation fails.
    pub fn step(&mut self, gradients: &Gradients, learning_rate: f64, scale: f64) -> Result<()> {
        let gradients = gradients.complete(&self.parameters)?;
        let AdamWSettings { beta1, beta2, eps, .. } = self.settings;
        let config = AdamWConfig { beta1, beta2, eps };
        self.step += 1;
        for (((_, var), moments), gradient) in self.parameters.iter().zip(&self.moments).zip(&gradients) {
            let Moments { first, second, weight_decay } = moments;
            let step = |parameter: &Var| {
                adamw_step(parameter, gradient, first, second, learning_rate, *weight_decay, &config, self.step, scale)
            };
            if first.device().same_device(var.device()) {
                step(var)?;
            } else {
                let parameter = Var::from_tensor(&var.as_detached_tensor().to_device(first.device())?)?;
                step(&parameter)?;
                var.set(&parameter.as_detached_tensor().to_device(var.device())?)?;
            }
        }
        Ok(())
    }

    /// The moments by name: `first.NAME` and `second.NAME`.
    pub fn state(&self) -> HashMap<String, Tensor> {
        self.parameters
            .iter()
            .zip(&self.moments)
            .flat_map(|((name, _), moments)| {
                [
                    (format!("first.{name}"), moments.first.as_tensor().clone()),
                    (format!("second.{name}"), moments.second.as_tensor().clone()),
                ]
            })
            .collect()
    }

    /// Restores the moments from a file that contains [`Self::state`] after `step` steps.
    ///
    /// # Errors
    /// If the file cannot be read, or a tensor is missing, unexpected or of another shape.
    pub fn restore(&mut self, path: &Path, step: usize) -> Result<()> {
        let targets: Vec<(String, &Var)> = self
            .parameters
            .iter()
            .zip(&self.moments)
            .flat_map(|((name, _), moments)| {
                [(format!("first.{name}"), &moments.first), (format!("second.{name}"), &moments.second)]
            })
            .collect();
        set_all(&targets, path)?;
        self.step = step;
        Ok(())
    }
}

/// Sets each variable from the tensor of its name in a file. Either all of them fit, or nothing is changed.
pub(crate) fn set_all(targets: &[(String, &Var)], path: &Path) -> Result<()> {
    let problem =
        |name: &str, problem: String| Error::CheckpointTensor { path: path.into(), name: name.into(), problem };
    let entries = weights::tensor_infos(path)?;
    let known: BTreeMap<&str, &Var> = targets.iter().map(|(name, var)| (name.as_str(), *var)).collect();
    if let Some(stranger) = entries.iter().find(|entry| !known.contains_key(entry.name.as_str())) {
        return Err(problem(&stranger.name, "the model has no such parameter".into()));
    }
    let entries: BTreeMap<&str, &TensorInfo> = entries.iter().map(|entry| (entry.name.as_str(), entry)).collect();
    for (name, var) in targets {
        let entry = entries.get(name.as_str()).ok_or_else(|| problem(name, "is missing".into()))?;
        if entry.shape != var.dims() || entry.dtype != var.dtype() {
            let found = format!("{:?} {:?}", entry.dtype, entry.shape);
            return Err(problem(name, format!("is {found}, the model has {:?} {:?}", var.dtype(), var.dims())));
        }
    }
    let Some((_, first)) = targets.first() else { return Ok(()) };
    Ok(weights::each_tensor(path, None, first.device(), |name, tensor| match known.get(name.as_str()) {
        Some(var) => Ok(var.set(&tensor)?),
        None => Ok(()),
    })?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn parameter(name: &str, value: f32, rows: usize) -> (String, Var) {
        (name.into(), Var::from_tensor(&Tensor::full(value, (rows, 2), &Device::Cpu).unwrap()).unwrap())
    }

    fn first(tensor: &Tensor) -> f32 {
        tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap()[0]
    }

    #[test]
    fn only_matrices_decay() {
        for name in
            ["showo.lm_head.weight", "showo.model.layers.0.self_attn.q_proj.weight", "model.layers.3.mlp.fc1.weight"]
        {
            assert!(decays(name, &[4, 4]), "{name}");
        }
        assert!(decays("decoder.conv_in.weight", &[8, 4, 3, 3]));
        assert!(!decays("showo.model.embed_tokens.weight", &[9, 4]));
        assert!(!decays("quantize.embedding.weight", &[9, 4]));
        assert!(!decays("gen_embed.weight", &[9, 4]) && decays("gen_aligner.layers.0.weight", &[9, 4]));
        for name in ["showo.lm_head.bias", "showo.model.layers.0.self_attn.q_layernorm.weight"] {
            assert!(!decays(name, &[4]), "{name}");
        }
    }

    /// Gradient 0.5 at lr 0.1: m = .05, v = .00025, corrected .5 and .25, so the step is .1·.5/.5 = .1;
    /// the matrix first loses .1·.01 of itself, the embedding nothing.
    #[test]
    fn one_step_by_hand() {
        let mut optimizer = AdamW::new(
            vec![parameter("head.weight", 1.0, 2), parameter("embed_tokens.weight", 1.0, 2)],
            AdamWSettings::default(),
        )
        .unwrap();
        let vars: Vec<Var> = optimizer.parameters().iter().map(|(_, var)| var.clone()).collect();
        // d(sum)/dp = 1 each; the scale makes it 0.5.
        let loss = (vars[0].sum_all().unwrap() + vars[1].sum_all().unwrap()).unwrap();
        let mut gradients = optimizer.gradients();
        gradients.add(optimizer.parameters(), &loss.backward().unwrap()).unwrap();
        assert!((gradients.norm().unwrap() - 8f64.sqrt()).abs() < 1e-6);
        optimizer.step(&gradients, 0.1, 0.5).unwrap();
        assert_eq!(optimizer.parameters()[0].0, "embed_tokens.weight", "sorted by name");
        assert!((first(&vars[0]) - 0.9).abs() < 1e-6, "{}", first(&vars[0]));
        assert!((first(&vars[1]) - 0.899).abs() < 1e-6, "{}", first(&vars[1]));
        let state = optimizer.state();
        assert!((first(&state["first.head.weight"]) - 0.05).abs() < 1e-7);
        assert!((first(&state["second.head.weight"]) - 0.00025).abs() < 1e-9);
    }

    #[test]
    fn a_cut_graph_is_an_error_and_changes_nothing() {
        let mut optimizer =
            AdamW::new(vec![parameter("a.weight", 1.0, 2), parameter("b.weight", 1.0, 2)], AdamWSettings::default())
                .unwrap();
        let (a, b) = (optimizer.parameters()[0].1.clone(), optimizer.parameters()[1].1.clone());
        let loss = (a.sum_all().unwrap() + b.detach().sum_all().unwrap()).unwrap();
        let mut gradients = optimizer.gradients();
        gradients.add(optimizer.parameters(), &loss.backward().unwrap()).unwrap();
        let error = optimizer.step(&gradients, 0.1, 1.0).unwrap_err();
        assert!(matches!(&error, Error::NoGradient { name } if name == "b.weight"), "{error}");
        assert_eq!((first(&a), optimizer.steps()), (1.0, 0));
    }

    #[test]
    fn a_state_that_does_not_fit_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("optimizer.safetensors");
        let mut optimizer = AdamW::new(vec![parameter("a.weight", 1.0, 2)], AdamWSettings::default()).unwrap();
        let mut wrong = AdamW::new(vec![parameter("a.weight", 1.0, 3)], AdamWSettings::default()).unwrap().state();
        weights::save_tensors(&path, &wrong).unwrap();
        let error = optimizer.restore(&path, 3).unwrap_err().to_string();
        assert!(error.contains("optimizer.safetensors") && error.contains("first.a.weight"), "{error}");
        assert!(error.contains("[3, 2]") && error.contains("[2, 2]"), "{error}");
        wrong.clear();
        weights::save_tensors(&path, &wrong).unwrap();
        let error = optimizer.restore(&path, 3).unwrap_err().to_string();
        assert!(error.contains("first.a.weight: is missing"), "{error}");
    }

    #[test]
    fn two_parameters_of_one_name_are_refused() {
        let twins = vec![parameter("a", 1.0, 2), parameter("a", 2.0, 2)];
        assert!(matches!(AdamW::new(twins, AdamWSettings::default()), Err(Error::DuplicateParameter { .. })));
    }
}
