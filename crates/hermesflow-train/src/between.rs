//! How rows of numbers meet between the processes of a group: through the hosts' memory, or from GPU to GPU.
//!
//! Either way a row is halved again and again until each process has the sum of one share, and shares are doubled until all have
//! the whole ([`Share::halvings`], [`Share::doublings`]): the same additions of the same two numbers.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{DType, Device, Shape, Tensor};
use hermesflow_group::{Group, Share};

use crate::{Error, Result};

/// The processes of a group, and what carries numbers between their GPUs, if anything does.
#[derive(Debug, Clone)]
pub(crate) struct Between {
    /// The processes.
    pub group: Group,
    wire: Option<Arc<dyn Wire>>,
}

/// Carries numbers from the device of one process to that of another.
pub(crate) trait Wire: std::fmt::Debug + Send + Sync {
    /// Sends a vector of f32 to process `with`, and receives one of `received` numbers from it; `None` where there is none.
    fn exchange(&self, with: usize, given: Option<&Tensor>, received: usize) -> Result<Option<Tensor>>;
}

/// A tensor's elements in the host's memory, in f32.
pub(crate) fn host_row(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(tensor.detach().flatten_all()?.to_dtype(DType::F32)?.to_vec1()?)
}

/// A share in the host's memory. A tensor has at least one element; that of an empty share is 0.
fn share_of(numbers: &[f32]) -> Result<Tensor> {
    Ok(Tensor::new(if numbers.is_empty() { &[0.0] } else { numbers }, &Device::Cpu)?)
}

impl Between {
    /// The processes of a group that train on this device: all of them call this. From GPU to GPU where each has one of its own
    /// and the build has NCCL.
    pub fn of(group: Group, device: &Device) -> Result<Self> {
        Ok(Self { wire: wire(&group, device)?, group })
    }

    /// Whether numbers go from GPU to GPU.
    pub fn is_direct(&self) -> bool {
        self.wire.is_some()
    }

    /// The elements of a row that are this process's share.
    pub fn share(&self, row: usize, turn: usize) -> Range<usize> {
        Share { row, turn }.of(self.group.rank(), self.group.size())
    }

    /// This process's share, in the host's memory, of the sum of all processes' rows.
    pub fn sum_to_share(&self, row: &Tensor, turn: usize) -> Result<Tensor> {
        let Some(wire) = &self.wire else {
            let mut row = host_row(row)?;
            let share = self.group.sum_to_shares(&mut row, turn)?;
            return share_of(&row[share]);
        };
        let row = row.detach().flatten_all()?.to_dtype(DType::F32)?.contiguous()?;
        let share = Share { row: row.elem_count(), turn };
        let (mut held, mut start) = (Some(row), 0);
        for step in share.halvings(self.group.rank(), self.group.size()) {
            let theirs =
                wire.exchange(step.with, part(held.as_ref(), start, &step.given)?.as_ref(), step.received.len())?;
            let mine = part(held.as_ref(), start, &step.received)?;
            held = mine.zip(theirs).map(|(mine, theirs)| mine + theirs).transpose()?;
            start = step.received.start;
        }
        share_of(&held.as_ref().map_or_else(|| Ok(Vec::new()), host_row)?)
    }

    /// A row on a device, of which every process has its share in the host's memory.
    pub fn join(&self, mine: &Tensor, shape: &Shape, turn: usize, device: &Device) -> Result<Tensor> {
        match &self.wire {
            Some(wire) if !device.is_cpu() => self.join_directly(&**wire, mine, shape, turn, device),
            _ => Ok(self.join_on_host(mine, shape, turn)?.to_device(device)?),
        }
    }

    fn join_directly(
        &self,
        wire: &dyn Wire,
        mine: &Tensor,
        shape: &Shape,
        turn: usize,
        device: &Device,
    ) -> Result<Tensor> {
        let share = Share { row: shape.elem_count(), turn };
        let len = share.of(self.group.rank(), self.group.size()).len();
        let mut held = (len > 0).then(|| mine.narrow(0, 0, len)?.to_device(device)).transpose()?;
        for step in share.doublings(self.group.rank(), self.group.size()) {
            let theirs = wire.exchange(step.with, held.as_ref(), step.received.len())?;
            let in_order = if step.received.end <= step.given.start { [theirs, held] } else { [held, theirs] };
            let parts: Vec<Tensor> = in_order.into_iter().flatten().collect();
            held = (!parts.is_empty()).then(|| Tensor::cat(&parts, 0)).transpose()?;
        }
        let whole = held.ok_or(Error::Group(hermesflow_group::Error::Gone))?;
        Ok(whole.reshape(shape)?)
    }

    /// [`Self::join`] in the host's memory, which costs no GPU anything.
    pub fn join_on_host(&self, mine: &Tensor, shape: &Shape, turn: usize) -> Result<Tensor> {
        let mut row = vec![0.0; shape.elem_count()];
        let share = self.share(row.len(), turn);
        row[share.clone()].copy_from_slice(&host_row(mine)?[..share.len()]);
        self.group.join_shares(&mut row, turn)?;
        Ok(Tensor::from_vec(row, shape, &Device::Cpu)?)
    }
}

/// The numbers `of` a row of which those from `start` on are held; `None` for no number.
fn part(held: Option<&Tensor>, start: usize, of: &Range<usize>) -> Result<Option<Tensor>> {
    let Some(held) = held.filter(|_| !of.is_empty()) else { return Ok(None) };
    Ok(Some(held.narrow(0, of.start - start, of.len())?))
}

#[cfg(not(feature = "nccl"))]
fn wire(_: &Group, _: &Device) -> Result<Option<Arc<dyn Wire>>> {
    Ok(None)
}

#[cfg(feature = "nccl")]
fn wire(group: &Group, device: &Device) -> Result<Option<Arc<dyn Wire>>> {
    nccl::wire(group, device)
}

#[cfg(feature = "nccl")]
mod nccl {
    use std::collections::BTreeSet;
    use std::sync::{Arc, Mutex, PoisonError};

    use candle_core::{Device, Tensor};
    use hermesflow_group::Group;
    use hermesflow_nn::device::peers::Peers;

    use super::Wire;
    use crate::Result;

    impl Wire for Peers {
        fn exchange(&self, with: usize, given: Option<&Tensor>, received: usize) -> Result<Option<Tensor>> {
            Ok(Peers::exchange(self, with, given, received)?)
        }
    }

    /// NCCL, where every process has a GPU that no other has. The processes of a program join once; a later training finds them
    /// joined.
    pub(super) fn wire(group: &Group, device: &Device) -> Result<Option<Arc<dyn Wire>>> {
        static JOINED: Mutex<Option<Arc<Peers>>> = Mutex::new(None);
        if group.is_alone() {
            return Ok(None);
        }
        let mine = Peers::identity(device);
        let all = group.gather(mine.as_ref().map_or(&[], <[u8; 16]>::as_slice))?;
        let different: BTreeSet<&Vec<u8>> = all.iter().filter(|one| !one.is_empty()).collect();
        if different.len() < group.size() {
            return Ok(None);
        }
        let mut joined = JOINED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(peers) = &*joined {
            return Ok(Some(peers.clone()));
        }
        let name = group.tell(group.is_writer().then(Peers::name).transpose()?)?;
        let peers = Arc::new(Peers::join(device, group.rank(), group.size(), &name)?);
        *joined = Some(peers.clone());
        Ok(Some(peers))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Carries tensors as a wire between GPUs does, by gathering what everyone gives: for as many processes as exchange at the
    /// same time.
    #[derive(Debug)]
    struct ByGathering(Group);

    impl Wire for ByGathering {
        fn exchange(&self, with: usize, given: Option<&Tensor>, received: usize) -> Result<Option<Tensor>> {
            let row = given.map_or_else(|| Ok(Vec::new()), host_row)?;
            let bytes: Vec<u8> = row.iter().flat_map(|number| number.to_le_bytes()).collect();
            let theirs = &self.0.gather(&bytes)?[with];
            let theirs: Vec<f32> = theirs.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
            assert_eq!(theirs.len(), received, "both sides mean the same numbers");
            Ok((received > 0).then(|| Tensor::new(theirs, &Device::Cpu)).transpose()?)
        }
    }

    #[test]
    fn from_device_to_device_rows_are_summed_as_through_the_hosts_memory() {
        let number = |rank: usize, at: usize| ((at * 7919 + rank * 104_729) % 1009) as f32 / 7.0 - 60.0 * rank as f32;
        for size in [2, 4, 8] {
            for (row, turn) in [(1, 0), (9, 3), (Share::UNIT, 1), (2 * Share::UNIT + 5, 2), (9 * Share::UNIT, 5)] {
                let summed = |is_direct: bool| {
                    let work = |group: Group| {
                        let wire = is_direct.then(|| Arc::new(ByGathering(group.clone())) as Arc<dyn Wire>);
                        let between = Between { wire, group };
                        let rank = between.group.rank();
                        let mine: Vec<f32> = (0..row).map(|at| number(rank, at)).collect();
                        let share = between.sum_to_share(&Tensor::new(mine, &Device::Cpu).unwrap(), turn).unwrap();
                        let shape = Shape::from(row);
                        let whole = match &between.wire {
                            // As `join` on a GPU.
                            Some(wire) => between.join_directly(&**wire, &share, &shape, turn, &Device::Cpu).unwrap(),
                            None => between.join(&share, &shape, turn, &Device::Cpu).unwrap(),
                        };
                        host_row(&whole).unwrap().into_iter().map(f32::to_bits).collect::<Vec<_>>()
                    };
                    std::thread::scope(|scope| {
                        let started: Vec<_> = Group::of_threads(size)
                            .into_iter()
                            .map(|member| scope.spawn(move || work(member)))
                            .collect();
                        started.into_iter().map(|one| one.join().unwrap()).collect::<Vec<_>>()
                    })
                };
                let (direct, by_hosts) = (summed(true), summed(false));
                assert!(direct == by_hosts, "{size} processes, {row} numbers");
                assert!(direct.iter().all(|one| *one == direct[0]));
            }
        }
    }
}
