//! The sums of a step's gradients, in one order whatever the number of processes.
//!
//! The parts of a step are the leaves of a binary tree ([`hermesflow_group::Tree`]). In one process the tree holds whole
//! gradients. In a group part `i` is of process `i mod n`: as soon as each process has the gradients of its next part, they
//! are added up between processes, parameter by parameter (through the hosts' memory, or from GPU to GPU), and each process
//! keeps one share of the sum in the host's memory; the gradients themselves are released.

use candle_core::backprop::GradStore;
use candle_core::{Tensor, Var};
use hermesflow_group::{Share, Tree};
use hermesflow_nn::optim;

use crate::between::Between;
use crate::place::StatePlace;
use crate::{Error, Result};

// A norm is summed in the same pieces whether a gradient is whole or in shares.
const _: () = assert!(Share::UNIT == optim::CHUNK);

/// The growing sums of the gradients of a step's parts, one per parameter, in the order of the parameters.
#[derive(Debug)]
pub struct Gradients {
    trees: Vec<Tree<Tensor>>,
    place: StatePlace,
    between: Between,
}

fn add(before: Tensor, gradient: Tensor) -> Result<Tensor> {
    Ok((before + gradient)?)
}

impl Gradients {
    pub(crate) fn new(parameters: usize, place: StatePlace, between: Between) -> Self {
        Self { trees: vec![Tree::default(); parameters], place, between }
    }

    /// Adds the gradients of one part; in a group every process adds one of its own at the same time.
    ///
    /// # Errors
    /// If a tensor operation fails; in a group also if a parameter has no gradient, or another process is gone.
    pub fn add(&mut self, parameters: &[(String, Var)], found: &GradStore) -> Result<()> {
        for (turn, (tree, (name, var))) in self.trees.iter_mut().zip(parameters).enumerate() {
            // Without the gradient's own graph, which candle's backward pass keeps.
            let gradient = found.get(var).map(Tensor::detach);
            if self.between.group.is_alone() {
                if let Some(gradient) = gradient {
                    tree.push(gradient.to_device(self.place.of(var.device()))?, add)?;
                }
                continue;
            }
            let gradient = gradient.ok_or_else(|| Error::NoGradient { name: name.clone() })?;
            tree.push(self.between.sum_to_share(&gradient, turn)?, add)?;
        }
        Ok(())
    }

    /// The sums of all parts.
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub fn sum(self) -> Result<Sums> {
        let sums = self.trees.into_iter().map(|tree| tree.sum(add)).collect::<Result<_>>()?;
        Ok(Sums { sums, place: self.place, between: self.between })
    }
}

/// The sums of the gradients of all parts of a step; in a group this process's shares of them.
#[derive(Debug)]
pub struct Sums {
    sums: Vec<Option<Tensor>>,
    place: StatePlace,
    between: Between,
}

impl Sums {
    /// An error if a parameter has no gradient.
    pub(crate) fn complete(&self, parameters: &[(String, Var)]) -> Result<()> {
        match self.sums.iter().zip(parameters).find(|(sum, _)| sum.is_none()) {
            Some((_, (name, _))) => Err(Error::NoGradient { name: name.clone() }),
            None => Ok(()),
        }
    }

    /// What this process holds of a parameter's gradient, one row.
    pub(crate) fn share(&self, turn: usize) -> Result<&Tensor> {
        self.sums.get(turn).and_then(Option::as_ref).ok_or_else(|| Error::NoGradient { name: turn.to_string() })
    }

    /// The whole gradient of a parameter, where the optimizer's state is; in a group all processes bring it together.
    pub(crate) fn whole(&self, turn: usize, var: &Var) -> Result<Tensor> {
        let held = self.share(turn)?;
        if self.between.group.is_alone() {
            return Ok(held.clone());
        }
        self.between.join(held, var.shape(), turn, self.place.of(var.device()))
    }

    /// The Euclidean norm of all gradients together, the same in every process.
    ///
    /// # Errors
    /// If a tensor operation fails, or another process is gone.
    pub fn norm(&self, parameters: &[(String, Var)]) -> Result<f64> {
        let group = &self.between.group;
        if group.is_alone() {
            let present: Vec<&Tensor> = self.sums.iter().flatten().collect();
            return Ok(optim::global_norm(&present)?);
        }
        let mut mine = Vec::new();
        for (turn, (_, var)) in parameters.iter().enumerate() {
            if !self.between.share(var.elem_count(), turn).is_empty() {
                mine.extend(optim::partial_squares(self.share(turn)?)?.into_iter().flat_map(f64::to_le_bytes));
            }
        }
        let all = group.gather(&mine)?;
        let mut left: Vec<&[u8]> = all.iter().map(Vec::as_slice).collect();
        let mut total = 0.0;
        for (turn, (_, var)) in parameters.iter().enumerate() {
            let share = Share { row: var.elem_count(), turn };
            let mut squares = Vec::new();
            for rank in share.order(group.size()) {
                let count = share.of(rank, group.size()).len().div_ceil(Share::UNIT);
                let (numbers, _) = left[rank].split_at_checked(8 * count).ok_or(hermesflow_group::Error::Gone)?;
                squares.extend(numbers.as_chunks::<8>().0.iter().map(|bytes| f64::from_le_bytes(*bytes)));
                left[rank] = &left[rank][8 * count..];
            }
            total += squares.iter().sum::<f64>();
        }
        Ok(total.sqrt())
    }
}
