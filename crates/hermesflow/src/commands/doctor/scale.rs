//! What a run takes in several processes, on paper: a model of latency and bandwidth (α and β) per level, within a host and
//! between hosts, from what this machine reaches now and the links that are given.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use comfy_table::{CellAlignment, presets::UTF8_HORIZONTAL_ONLY};
use hermesflow_group::Group;
use hermesflow_models::cost::Costs;

use super::{Stage, TRAIN, gigabytes};
use crate::config::{OptimizerState, RunConfig};
use crate::progress::brief;

/// Seconds that a message takes within a host, however short it is.
const WITHIN: f64 = 2e-6;
/// A number of processes helps if it is at least this much faster than half of it.
const WORTH: f64 = 1.5;

/// How many processes there are to be, and what joins them.
#[derive(Debug, Clone, clap::Args)]
pub struct ScaleArgs {
    /// Predict the run in this many processes, also on machines that are not here
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    processes: Option<u32>,

    /// Processes per host: GPUs, or parts of the cores
    #[arg(long, value_name = "N", default_value_t = 1, requires = "processes", value_parser = clap::value_parser!(u32).range(1..=1024))]
    per_node: u32,

    /// Rate of the link between hosts, in Gbit/s
    #[arg(long, value_name = "GBIT", default_value_t = 100.0, requires = "processes")]
    link: f64,

    /// Latency of the link between hosts, in µs
    #[arg(long, value_name = "US", default_value_t = 20.0, requires = "processes")]
    latency: f64,
}

/// The numbers that go into the prediction.
#[derive(Debug, Clone, Copy)]
pub struct Numbers {
    /// Processes per host.
    per_node: usize,
    /// Bytes per second that all processes of a host together exchange and add up.
    within: f64,
    /// Bytes per second of a host's link.
    link: f64,
    /// Seconds that a message between hosts takes, however short it is.
    latency: f64,
    /// Bytes of all gradients.
    gradients: f64,
    /// Parameters that are exchanged one by one.
    tensors: f64,
    /// Parts of a step.
    parts: usize,
    /// Seconds that one process computes for a step, with all of a host.
    step: f64,
    /// Whether a process has a device of its own, or shares the host's cores.
    own_device: bool,
}

impl Numbers {
    /// How many processes share what computed `step`.
    fn sharing(&self, processes: usize) -> f64 {
        if self.own_device { 1.0 } else { self.per_node.min(processes) as f64 }
    }

    /// Seconds of a step: computing, and exchanging.
    pub fn step_of(&self, processes: usize) -> (f64, f64) {
        let n = processes as f64;
        let on_host = self.per_node.min(processes) as f64;
        let computing = self.step / n * self.sharing(processes);
        if processes == 1 {
            return (computing, 0.0);
        }
        // Neighbours add up first: what leaves a host is what all its processes have in common, once.
        let within = on_host * self.gradients * (1.0 - 1.0 / on_host) / self.within;
        let between = self.gradients * (1.0 - on_host / n) / self.link;
        let starts = self.tensors * (on_host.log2() * WITHIN + (n / on_host).log2() * self.latency);
        // Every part is added up; once per step all is brought together.
        let times = self.parts as f64 / n + 1.0;
        (computing, times * (within + between + starts))
    }

    fn total(&self, processes: usize) -> f64 {
        let (computing, exchanging) = self.step_of(processes);
        computing + exchanging
    }

    /// The most processes that are worth it.
    fn limit(&self) -> usize {
        // Processes that share the cores of one host only take parts of what one would have.
        let given = |n: usize| n == 1 || (!self.own_device && n <= self.per_node);
        let worth = |n: &usize| given(*n) || self.total(n / 2) / self.total(*n) >= WORTH;
        Group::that_divide(self.parts).into_iter().take_while(worth).last().unwrap_or(1)
    }
}

/// Bytes per second at which two processes of this machine add up and bring together a large row, measured now between two
/// threads: all bytes that both exchange.
fn measured_within() -> f64 {
    const ROW: usize = 1 << 23;
    let work = |group: Group| -> hermesflow_group::Result<f64> {
        let mut row = vec![1.0; ROW];
        let mut best = f64::INFINITY;
        for _ in 0..3 {
            group.meet()?;
            let began = Instant::now();
            group.sum_to_shares(&mut row, 0)?;
            group.join_shares(&mut row, 0)?;
            best = best.min(began.elapsed().as_secs_f64());
        }
        Ok(best)
    };
    let seconds: Vec<f64> = std::thread::scope(|scope| {
        let members: Vec<_> = Group::of_threads(2).into_iter().map(|member| scope.spawn(|| work(member))).collect();
        members.into_iter().filter_map(|member| member.join().ok()?.ok()).collect()
    });
    // Half of the row to the other and back, for both.
    let bytes = 2.0 * 4.0 * ROW as f64;
    bytes / seconds.into_iter().fold(f64::MIN_POSITIVE, f64::max)
}

/// The prediction, where one is asked for.
///
/// # Errors
/// When a number is not above 0, or the processes cannot share out a step.
pub fn predict(
    args: &ScaleArgs,
    config: &RunConfig,
    sizes: &dyn Costs,
    stages: &[Stage],
    records: usize,
    speed: impl Fn(&Stage) -> Option<f64>,
) -> Result<Option<String>> {
    let Some(processes) = args.processes.map(|processes| processes as usize) else { return Ok(None) };
    ensure!(args.link.is_finite() && args.link > 0.0, "--link: {} is not above 0", args.link);
    ensure!(args.latency.is_finite() && args.latency >= 0.0, "--latency: {} is not 0 or more", args.latency);
    let parts =
        config.train.pair_dpo(0).parts(sizes.trained(config.train.parts()) as usize) * config.train.accumulation;
    let good = Group::that_divide(parts);
    let Some((train, rate)) = stages.iter().find(|stage| stage.name == TRAIN).and_then(|one| Some((one, speed(one)?)))
    else {
        return Ok(Some(
            "\nThis machine's speed is unknown, and nothing can be predicted of several processes.".into(),
        ));
    };
    let numbers = Numbers {
        per_node: args.per_node as usize,
        within: measured_within(),
        link: args.link * 1e9 / 8.0,
        latency: args.latency * 1e-6,
        gradients: 4.0 * sizes.trained(config.train.parts()) as f64,
        tensors: sizes.trained_tensors(config.train.parts()) as f64,
        parts,
        step: train.operations / config.train.schedule.steps.max(1) as f64 / rate,
        own_device: config.model.names_a_gpu(),
    };
    let mut counts: Vec<usize> = good.iter().copied().take_while(|n| *n < processes).collect();
    counts.push(processes);
    let mut table = comfy_table::Table::new();
    table.load_preset(UTF8_HORIZONTAL_ONLY);
    let curation: Vec<&Stage> = stages.iter().filter(|stage| stage.name != TRAIN).collect();
    let named = curation.iter().map(|stage| stage.name);
    table.set_header(["processes"].into_iter().chain(named).chain([
        "a step",
        "of it exchanging",
        "train",
        "memory of each",
    ]));
    for count in counts {
        let chunks = records.div_ceil(config.data.chunk.max(1)).max(1);
        // Whole chunks go to whoever is free: the last ones may leave some idle.
        let share = chunks.div_ceil(count) as f64 / chunks as f64 * numbers.sharing(count);
        let time = |seconds: f64| brief(Duration::from_secs_f64(seconds.clamp(0.0, 1e15)));
        let mut row = vec![count.to_string()];
        row.extend(curation.iter().map(|stage| match speed(stage) {
            Some(speed) => time(stage.operations / speed * share),
            None => "unknown".into(),
        }));
        if good.contains(&count) {
            let (computing, exchanging) = numbers.step_of(count);
            let step = computing + exchanging;
            row.push(if step < 1.0 { format!("{:.1} ms", 1e3 * step) } else { time(step) });
            row.push(format!("{:.0} %", 100.0 * exchanging / step));
            row.push(time(step * config.train.schedule.steps as f64));
            row.push(gigabytes(memory(config, sizes, train.bytes, parts, count)));
        } else {
            row.extend(["refused", "", "", ""].map(String::from));
        }
        table.add_row(row);
    }
    for column in 0..table.column_count() {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let Numbers { within, gradients, tensors, step, .. } = numbers;
    let limit = numbers.limit();
    let why = match good.last() {
        Some(last) if *last == limit => format!("a step has {parts} parts (train.batch_size, train.accumulation)"),
        _ => format!("the next number would be less than {WORTH} times as fast as half of it"),
    };
    Ok(Some(format!(
        "\nIn several processes, {} per host, predicted:\n{table}\nWhat went in: {:.1} GB/s exchanged and added up within a \
         host (measured now, two threads) with {:.0} µs per message; {} Gbit/s and {} µs between hosts (given); {} of \
         gradients in {tensors:.0} tensors; {} of computing per step in one process (from the table above). Training gains \
         from no more than {limit}: {why}.",
        numbers.per_node,
        within / 1e9,
        1e6 * WITHIN,
        args.link,
        args.latency,
        gigabytes(gradients as u64),
        if step < 1.0 { format!("{:.1} ms", 1e3 * step) } else { brief(Duration::from_secs_f64(step.min(1e15))) },
    )))
}

/// Bytes of one process in training: `alone` as in one process, less what it shares.
fn memory(config: &RunConfig, sizes: &dyn Costs, alone: u64, parts: usize, processes: usize) -> u64 {
    if processes == 1 {
        return alone;
    }
    let (gradients, n) = (4 * sizes.trained(config.train.parts()), processes as u64);
    // Sums of earlier parts are held in shares in any case, as many as are added up in pairs.
    let sums = |parts: usize| u64::from(parts.max(1).ilog2());
    let (before, now) = (gradients * sums(config.train.accumulation), gradients / n * sums(parts / processes));
    let is_shared = config.train.optimizer_state == OptimizerState::Shared;
    let moments = if is_shared { 2 * (gradients - gradients / n) } else { 0 };
    (alone + now).saturating_sub(before + moments)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NUMBERS: Numbers = Numbers {
        per_node: 4,
        within: 1e10,
        link: 1e9,
        latency: 0.0,
        gradients: 1e9,
        tensors: 0.0,
        parts: 16,
        step: 100.0,
        own_device: true,
    };

    #[test]
    fn steps_by_hand() {
        assert_eq!(NUMBERS.step_of(1), (100.0, 0.0));
        // Two processes of one host: half a gradient each, 8 parts each, and once more at the end.
        let (computing, exchanging) = NUMBERS.step_of(2);
        assert!((computing - 50.0).abs() < 1e-9 && (exchanging - 9.0 * 0.1).abs() < 1e-9, "{exchanging}");
        // Four hosts of four: 4 · 3/4 of a gradient within, 3/4 of one over each link.
        let (computing, exchanging) = NUMBERS.step_of(16);
        assert!((computing - 6.25).abs() < 1e-9 && (exchanging - 2.0 * (0.3 + 0.75)).abs() < 1e-9, "{exchanging}");
        // Cores that are shared give nothing to more processes of the same host.
        let shared = Numbers { own_device: false, ..NUMBERS };
        assert_eq!((shared.step_of(4).0, shared.step_of(16).0), (100.0, 25.0));
    }

    #[test]
    fn what_is_worth_it_ends_with_the_parts_or_the_link() {
        assert_eq!(NUMBERS.limit(), 16);
        assert_eq!(Numbers { link: 1e7, ..NUMBERS }.limit(), 4);
        assert_eq!(Numbers { parts: 6, ..NUMBERS }.limit(), 2);
        // Of cores that are shared, whole hosts count.
        assert_eq!(Numbers { own_device: false, ..NUMBERS }.limit(), 16);
    }
}
