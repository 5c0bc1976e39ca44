//! The sums of a step's gradients, in one order whatever the number of processes.
//!
//! The parts of a step are the leaves of a binary tree ([`hermesflow_group::Tree`]). In one process the tree holds whole
//! gradients. In a group part `i` is of process `i mod n`: as soon as each process has the gradients of its next part, they
//! are added up between processes, parameter by parameter, and each process keeps one share of the sum in the host's
//! memory; the gradients themselves are released.

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor, Var};
use hermesflow_group::{Group, Share, Tree};
use hermesflow_nn::optim;

use crate::place::StatePlace;
use crate::{Error, Result};

// A norm is summed in the same pieces whether a gradient is whole or in shares.
const _: () = assert!(Share::UNIT == optim::CHUNK);

/// The growing sums of the gradients of a step's parts, one per parameter, in the order of the parameters.
#[derive(Debug)]
pub struct Gradients {
    trees: Vec<Tree<Tensor>>,
    place: StatePlace,
    group: Group,
}

fn add(before: Tensor, gradient: Tensor) -> Result<Tensor> {
    Ok((before + gradient)?)
}

/// A tensor's elements in the host's memory, in f32.
pub(crate) fn host_row(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(tensor.detach().flatten_all()?.to_dtype(DType::F32)?.to_vec1()?)
}

impl Gradients {
    pub(crate) fn new(parameters: usize, place: StatePlace, group: Group) -> Self {
        Self { trees: vec![Tree::default(); parameters], place, group }
    }

    /// Adds the gradients of one part; in a group every process adds one of its own at the same time.
    ///
    /// # Errors
    /// If a tensor operation fails; in a group also if a parameter has no gradient, or another process is gone.
    pub fn add(&mut self, parameters: &[(String, Var)], found: &GradStore) -> Result<()> {
        for (turn, (tree, (name, var))) in self.trees.iter_mut().zip(parameters).enumerate() {
            // Without the gradient's own graph, which candle's backward pass keeps.
            let gradient = found.get(var).map(Tensor::detach);
            if self.group.is_alone() {
                if let Some(gradient) = gradient {
                    tree.push(gradient.to_device(self.place.of(var.device()))?, add)?;
                }
                continue;
            }
            let mut row = host_row(&gradient.ok_or_else(|| Error::NoGradient { name: name.clone() })?)?;
            let share = self.group.sum_to_shares(&mut row, turn)?;
            tree.push(share_of(&row[share])?, add)?;
        }
        Ok(())
    }

    /// The sums of all parts.
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub fn sum(self) -> Result<Sums> {
        let sums = self.trees.into_iter().map(|tree| tree.sum(add)).collect::<Result<_>>()?;
        Ok(Sums { sums, place: self.place, group: self.group })
    }
}

/// A share of a gradient. A tensor has at least one element; that of an empty share is 0.
fn share_of(numbers: &[f32]) -> Result<Tensor> {
    Ok(Tensor::new(if numbers.is_empty() { &[0.0] } else { numbers }, &Device::Cpu)?)
}

/// The sums of the gradients of all parts of a step; in a group this process's shares of them.
#[derive(Debug)]
pub struct Sums {
    sums: Vec<Option<Tensor>>,
    place: StatePlace,
    group: Group,
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
        if self.group.is_alone() {
            return Ok(held.clone());
        }
        let mut row = vec![0.0; var.elem_count()];
        let share = Share { row: row.len(), turn }.of(self.group.rank(), self.group.size());
        row[share.clone()].copy_from_slice(&host_row(held)?[..share.len()]);
        self.group.join_shares(&mut row, turn)?;
        Ok(Tensor::from_vec(row, var.shape(), &Device::Cpu)?.to_device(self.place.of(var.device()))?)
    }

    /// The Euclidean norm of all gradients together, the same in every process.
    ///
    /// # Errors
    /// If a tensor operation fails, or another process is gone.
    pub fn norm(&self, parameters: &[(String, Var)]) -> Result<f64> {
        if self.group.is_alone() {
            let present: Vec<&Tensor> = self.sums.iter().flatten().collect();
            return Ok(optim::global_norm(&present)?);
        }
        let mut mine = Vec::new();
        for (turn, (_, var)) in parameters.iter().enumerate() {
            let share = Share { row: var.elem_count(), turn };
            if !share.of(self.group.rank(), self.group.size()).is_empty() {
                mine.extend(optim::partial_squares(self.share(turn)?)?.into_iter().flat_map(f64::to_le_bytes));
            }
        }
        let all = self.group.gather(&mine)?;
        let mut left: Vec<&[u8]> = all.iter().map(Vec::as_slice).collect();
        let mut total = 0.0;
        for (turn, (_, var)) in parameters.iter().enumerate() {
            let share = Share { row: var.elem_count(), turn };
            let mut squares = Vec::new();
            for rank in share.order(self.group.size()) {
                let count = share.of(rank, self.group.size()).len().div_ceil(Share::UNIT);
                let (numbers, _) = left[rank].split_at_checked(8 * count).ok_or(hermesflow_group::Error::Gone)?;
                squares.extend(numbers.as_chunks::<8>().0.iter().map(|bytes| f64::from_le_bytes(*bytes)));
                left[rank] = &left[rank][8 * count..];
            }
            total += squares.iter().sum::<f64>();
        }
        Ok(total.sqrt())
    }
}
