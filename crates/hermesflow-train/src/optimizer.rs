//! AdamW (Loshchilov & Hutter, arXiv 1711.05101) with explicit parameter groups, f32 moments and a state that can be
//! saved.
//!
//! Weight decay applies to matrices only, never to biases, norms or embeddings. A parameter's group follows from its
//! name and rank (see [`decays`]). The list of exceptions in the released code matches no layer, so there everything
//! decays.
//!
//! The moments are stored beside the parameters, or in the host's memory ([`StatePlace`]) so that a GPU need hold only
//! weights and gradients, or each process of a group has a share of them, updates that share of the parameters, and the
//! parameters are brought together. All give the same numbers, and a state saved from one can be restored into the others,
//! in any number of processes.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::Path;

use candle_core::{DType, Device, Tensor, Var};
use hermesflow_group::Group;
use hermesflow_nn::optim::{AdamWConfig, adamw_step};
use hermesflow_nn::weights::{self, TensorInfo};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::between::Between;
use crate::gradients::{Gradients, Sums};
use crate::place::StatePlace;
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

/// Whether a parameter has weight decay: if its rank is at least 2 (matrices, convolutions) and it is not an embedding
/// by its name.
pub fn decays(name: &str, shape: &[usize]) -> bool {
    // A table of embeddings holds its weight itself: `gen_embed.weight`, but not `patch_embed.proj.weight`.
    let is_table = name.strip_suffix(".weight").is_some_and(|module| module.ends_with("_embed"));
    let is_embedding = |part: &str| part.starts_with("embed") || part.ends_with("embedding");
    shape.len() >= 2 && !is_table && !name.split('.').any(is_embedding)
}

/// The optimizer of a set of parameters.
#[derive(Debug)]
pub struct AdamW {
    settings: AdamWSettings,
    place: StatePlace,
    between: Between,
    parameters: Vec<(String, Var)>,
    moments: Vec<Moments>,
    step: usize,
}

/// The moments of one parameter, or of this process's share of it.
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
    pub fn with_state(parameters: Vec<(String, Var)>, settings: AdamWSettings, place: StatePlace) -> Result<Self> {
        Self::in_group(parameters, settings, place, Group::alone())
    }

    /// Like [`Self::with_state`], in one of the processes of a group, which all make the same steps.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn in_group(
        mut parameters: Vec<(String, Var)>,
        settings: AdamWSettings,
        place: StatePlace,
        group: Group,
    ) -> Result<Self> {
        settings.validate()?;
        parameters.sort_by(|a, b| a.0.cmp(&b.0));
        if let Some(twins) = parameters.windows(2).find(|two| two[0].0 == two[1].0) {
            return Err(Error::DuplicateParameter { name: twins[0].0.clone() });
        }
        let device = parameters.first().map_or(&Device::Cpu, |(_, var)| var.device());
        let between = Between::of(group, device)?;
        let mut optimizer = Self { settings, place, between, parameters, moments: Vec::new(), step: 0 };
        for (turn, (name, var)) in optimizer.parameters.iter().enumerate() {
            let zeros = || match optimizer.share(turn) {
                // A tensor has at least one element.
                Some(share) => Var::zeros(share.len().max(1), DType::F32, &Device::Cpu),
                None => Var::zeros(var.shape(), DType::F32, optimizer.place.of(var.device())),
            };
            let weight_decay = if decays(name, var.dims()) { settings.weight_decay } else { 0.0 };
            optimizer.moments.push(Moments { first: zeros()?, second: zeros()?, weight_decay });
        }
        Ok(optimizer)
    }

    /// The parameters, sorted by name.
    pub fn parameters(&self) -> &[(String, Var)] {
        &self.parameters
    }

    /// The number of steps made.
    pub fn steps(&self) -> usize {
        self.step
    }

    /// Empty sums of gradients, for the parts of one step.
    pub fn gradients(&self) -> Gradients {
        Gradients::new(self.parameters.len(), self.place, self.between.clone())
    }

    /// The elements of a parameter whose moments this process holds, where they are shared out.
    fn share(&self, turn: usize) -> Option<Range<usize>> {
        let is_shared = self.place == StatePlace::Shared && !self.between.group.is_alone();
        is_shared.then(|| self.between.share(self.parameters[turn].1.elem_count(), turn))
    }

    /// Whether gradients go from GPU to GPU.
    pub fn is_direct(&self) -> bool {
        self.between.is_direct()
    }

    /// Makes one step. Every gradient is first multiplied by `scale` (1 / micro batches, times the clipping factor).
    ///
    /// # Errors
    /// If a parameter has no gradient, in which case nothing is changed, a tensor operation fails, or another process is
    /// gone.
    pub fn step(&mut self, gradients: &Sums, learning_rate: f64, scale: f64) -> Result<()> {
        gradients.complete(&self.parameters)?;
        let AdamWSettings { beta1, beta2, eps, .. } = self.settings;
        let config = AdamWConfig { beta1, beta2, eps };
        self.step += 1;
        for (turn, ((_, var), moments)) in self.parameters.iter().zip(&self.moments).enumerate() {
            let Moments { first, second, weight_decay } = moments;
            let step = |parameter: &Var, gradient: &Tensor| {
                adamw_step(parameter, gradient, first, second, learning_rate, *weight_decay, &config, self.step, scale)
            };
            if let Some(share) = self.share(turn) {
                let row = var.as_detached_tensor().flatten_all()?.to_dtype(DType::F32)?;
                let mine = match share.len() {
                    0 => Tensor::zeros(1, DType::F32, &Device::Cpu)?,
                    len => row.narrow(0, share.start, len)?.to_device(&Device::Cpu)?,
                };
                let mine = Var::from_tensor(&mine)?;
                if !share.is_empty() {
                    step(&mine, gradients.share(turn)?)?;
                }
                var.set(&self.between.join(&mine.as_detached_tensor(), var.shape(), turn, var.device())?)?;
                continue;
            }
            let gradient = gradients.whole(turn, var)?;
            if first.device().same_device(var.device()) {
                step(var, &gradient)?;
            } else {
                let parameter = Var::from_tensor(&var.as_detached_tensor().to_device(first.device())?)?;
                step(&parameter, &gradient)?;
                var.set(&parameter.as_detached_tensor().to_device(var.device())?)?;
            }
        }
        Ok(())
    }

    /// The moments by name: `first.NAME` and `second.NAME`. Where they are shared out, all processes bring them together,
    /// and the writer alone gets them.
    ///
    /// # Errors
    /// If a tensor operation fails, or another process is gone.
    pub fn state(&self) -> Result<HashMap<String, Tensor>> {
        let mut state = HashMap::new();
        for (turn, ((name, var), moments)) in self.parameters.iter().zip(&self.moments).enumerate() {
            for (kind, moment) in [("first", &moments.first), ("second", &moments.second)] {
                let whole = match self.share(turn) {
                    None => moment.as_tensor().clone(),
                    Some(_) => self.between.join_on_host(&moment.as_detached_tensor(), var.shape(), turn)?,
                };
                if self.between.group.is_writer() {
                    state.insert(format!("{kind}.{name}"), whole);
                }
            }
        }
        Ok(state)
    }

    /// Restores the moments from a file that contains [`Self::state`] after `step` steps.
    ///
    /// # Errors
    /// If the file cannot be read, or a tensor is missing, unexpected or of another shape.
    pub fn restore(&mut self, path: &Path, step: usize) -> Result<()> {
        let mut targets = Vec::with_capacity(2 * self.parameters.len());
        for (turn, ((name, var), moments)) in self.parameters.iter().zip(&self.moments).enumerate() {
            for (kind, moment) in [("first", &moments.first), ("second", &moments.second)] {
                let (name, shape) = (format!("{kind}.{name}"), var.dims().to_vec());
                targets.push(Target { name, shape, var: moment, share: self.share(turn) });
            }
        }
        set_all(&targets, path)?;
        self.step = step;
        Ok(())
    }
}

/// A tensor of a file, and the variable that is set from it.
pub(crate) struct Target<'a> {
    /// The tensor's name.
    pub name: String,
    /// Its shape in the file.
    pub shape: Vec<usize>,
    /// What is set.
    pub var: &'a Var,
    /// The elements that are of interest; `None` for all.
    pub share: Option<Range<usize>>,
}

impl<'a> Target<'a> {
    /// A variable of the shape that the file has.
    pub fn whole(name: &str, var: &'a Var) -> Self {
        Self { name: name.to_owned(), shape: var.dims().to_vec(), var, share: None }
    }

    fn set(&self, tensor: &Tensor) -> candle_core::Result<()> {
        match &self.share {
            None => self.var.set(tensor),
            Some(share) if share.is_empty() => Ok(()),
            Some(share) => self.var.set(&tensor.flatten_all()?.narrow(0, share.start, share.len())?),
        }
    }
}

/// Sets each variable from the tensor of its name in a file. Either all of them fit, or nothing is changed.
pub(crate) fn set_all(targets: &[Target<'_>], path: &Path) -> Result<()> {
    let problem =
        |name: &str, problem: String| Error::CheckpointTensor { path: path.into(), name: name.into(), problem };
    let entries = weights::tensor_infos(path)?;
    let known: BTreeMap<&str, &Target<'_>> = targets.iter().map(|target| (target.name.as_str(), target)).collect();
    if let Some(stranger) = entries.iter().find(|entry| !known.contains_key(entry.name.as_str())) {
        return Err(problem(&stranger.name, "the model has no such parameter".into()));
    }
    let entries: BTreeMap<&str, &TensorInfo> = entries.iter().map(|entry| (entry.name.as_str(), entry)).collect();
    for Target { name, shape, var, .. } in targets {
        let entry = entries.get(name.as_str()).ok_or_else(|| problem(name, "is missing".into()))?;
        if entry.shape != *shape || entry.dtype != var.dtype() {
            let found = format!("{:?} {:?}", entry.dtype, entry.shape);
            return Err(problem(name, format!("is {found}, the model has {:?} {shape:?}", var.dtype())));
        }
    }
    let Some(first) = targets.first() else { return Ok(()) };
    Ok(weights::each_tensor(path, None, first.var.device(), |name, tensor| match known.get(name.as_str()) {
        Some(target) => Ok(target.set(&tensor)?),
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
        let gradients = gradients.sum().unwrap();
        assert!((gradients.norm(optimizer.parameters()).unwrap() - 8f64.sqrt()).abs() < 1e-6);
        optimizer.step(&gradients, 0.1, 0.5).unwrap();
        assert_eq!(optimizer.parameters()[0].0, "embed_tokens.weight", "sorted by name");
        assert!((first(&vars[0]) - 0.9).abs() < 1e-6, "{}", first(&vars[0]));
        assert!((first(&vars[1]) - 0.899).abs() < 1e-6, "{}", first(&vars[1]));
        let state = optimizer.state().unwrap();
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
        let error = optimizer.step(&gradients.sum().unwrap(), 0.1, 1.0).unwrap_err();
        assert!(matches!(&error, Error::NoGradient { name } if name == "b.weight"), "{error}");
        assert_eq!((first(&a), optimizer.steps()), (1.0, 0));
    }

    #[test]
    fn a_state_that_does_not_fit_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("optimizer.safetensors");
        let mut optimizer = AdamW::new(vec![parameter("a.weight", 1.0, 2)], AdamWSettings::default()).unwrap();
        let mut wrong =
            AdamW::new(vec![parameter("a.weight", 1.0, 3)], AdamWSettings::default()).unwrap().state().unwrap();
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
