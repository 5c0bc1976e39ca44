//! What of the findings is about memory: the GPU's and the computer's.

use anyhow::{Result, ensure};
use hermesflow_models::cost::Costs;
use hermesflow_models::device::{self, Memory};
use sysinfo::System;

use super::Findings;
use super::Stage;
use super::Verdict;
use super::gigabytes;
use crate::config::{OptimizerState, Recompute, RunConfig};
use crate::models::memory_plan::{self, FORMS};

impl Findings {
    /// The GPU's memory, where the run is to use one and it is known.
    pub(super) fn gpu(&mut self, config: &RunConfig, given: Option<f64>) -> Result<Option<Memory>> {
        let name = &config.model.device;
        if !config.model.names_a_gpu() {
            ensure!(given.is_none(), "--gpu-memory: the run is to use the {name}; give model.device=cuda:0, too");
            return Ok(None);
        }
        if let Some(given) = given {
            ensure!(given.is_finite() && given > 0.0, "--gpu-memory: {given} is not above 0");
            let total = (given * 1e9) as u64;
            self.add(Verdict::Note, "device", format!("{name} is taken for a GPU of {}", gigabytes(total)));
            return Ok(Some(Memory { total, free: total }));
        }
        match config.model.device() {
            Ok(device) => {
                let memory = device::memory(&device);
                let text = memory.map_or_else(String::new, |memory| {
                    format!(": {} of {} are free", gigabytes(memory.free), gigabytes(memory.total))
                });
                self.add(Verdict::Good, "device", format!("{name}{text}"));
                Ok(memory)
            }
            Err(error) => {
                let text = format!("{error:#}; to predict for another machine's GPU, give its --gpu-memory");
                self.add(Verdict::Blocks, "device", text);
                Ok(None)
            }
        }
    }

    /// Chooses the form of training where it is left open, and says what each takes of a GPU.
    pub(super) fn forms(&mut self, config: &mut RunConfig, sizes: &dyn Costs, gpu: Option<Memory>) {
        let needs = FORMS.map(|(recompute, state)| {
            let need = memory_plan::need(config, sizes, (recompute, state));
            let host = if need.host > 0 { format!(" and {} of the host", gigabytes(need.host)) } else { String::new() };
            format!(
                "{}, {} {}{host}",
                recompute == Recompute::On,
                if state == OptimizerState::Host { "host" } else { "device" },
                gigabytes(need.device)
            )
        });
        let mut text = format!("by train.recompute, train.optimizer_state: {}", needs.join("; "));
        if let Some(memory) = gpu {
            memory_plan::choose(config, sizes, memory.total);
            let host = config.train.optimizer_state == OptimizerState::Host;
            let place = if host { "host" } else { "device" };
            text.push_str(&format!("; here: {}, {place}", config.train.recomputes()));
        }
        self.add(Verdict::Good, "training", text);
    }

    /// Whether each stage fits the machine.
    pub(super) fn memory(&mut self, stages: &[Stage], sizes: &dyn Costs, gpu: Option<Memory>) {
        let system = System::new_with_specifics(
            sysinfo::RefreshKind::nothing().with_memory(sysinfo::MemoryRefreshKind::everything()),
        );
        let (all, free) = (system.total_memory(), system.available_memory());
        if !sizes.is_on_gpu() {
            let remedy = "model.dtype=bf16 or, for training, train.recompute=true needs less";
            self.compare_memory(stages, |stage| stage.bytes, ("memory", all, free), remedy);
            return;
        }
        let most = stages.iter().map(|stage| stage.bytes).max().unwrap_or(0);
        let remedy = "model.dtype=bf16 or, for training, train.recompute=true and train.optimizer_state=host need less";
        match gpu {
            Some(Memory { total, free }) => {
                self.compare_memory(stages, |stage| stage.bytes, ("memory", total, free), remedy)
            }
            None => self.add(Verdict::Note, "memory", format!("{} of a GPU's at most", gigabytes(most))),
        }
        self.compare_memory(stages, |stage| stage.host, ("host", all, free), "train.optimizer_state=device needs less");
    }

    /// Whether what each stage needs is there.
    fn compare_memory(
        &mut self,
        stages: &[Stage],
        need: impl Fn(&Stage) -> u64,
        (what, all, free): (&'static str, u64, u64),
        remedy: &str,
    ) {
        let least = stages.iter().map(&need).max().unwrap_or(0);
        let over = |limit: u64| {
            let over = stages.iter().filter(|stage| need(stage) > limit);
            over.map(|stage| format!("{} ({})", stage.name, gigabytes(need(stage)))).collect::<Vec<_>>().join(", ")
        };
        if least > all {
            let text = format!(
                "{} of memory are too little for {}; a smaller data.chunk, train.batch_size or imagine.images, or \
                 {remedy}; the other stages run on this machine",
                gigabytes(all),
                over(all)
            );
            self.add(Verdict::Blocks, what, text);
        } else if least > free {
            let text = format!("{} of {} are free, {} needs more", gigabytes(free), gigabytes(all), over(free));
            self.add(Verdict::Note, what, text);
        } else {
            let text = format!("{} at most, of {} that are free", gigabytes(least), gigabytes(free));
            self.add(Verdict::Good, what, text);
        }
    }
}
