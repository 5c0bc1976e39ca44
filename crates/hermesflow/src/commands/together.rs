//! Joins the processes that a launcher started to do one command together.

use anyhow::{Result, bail};
use hermesflow_group::{Group, launched};

use crate::print;

/// Joins the other processes, if there are any: from here on the first one speaks for all, and each takes its part of its
/// host's cores.
///
/// # Errors
/// When there are several, and the command is one that they cannot do together or the build has no MPI.
pub fn begin(is_shared: bool, command: &str) -> Result<()> {
    if let Some(launch) = launched() {
        // Until all are connected, the launcher's numbers say who speaks.
        print::be_silent(launch.rank != 0);
        if !is_shared {
            let (launcher, processes, command) = (launch.launcher, launch.processes, command.replace('_', "-"));
            let refused = format!(
                "{launcher} started {processes} processes, and `hermesflow {command}` is done by one; start it without {launcher}"
            );
            bail!(refused);
        }
    }
    let group = Group::join()?;
    print::be_silent(!group.is_writer());
    if group.is_alone() {
        return Ok(());
    }
    let (number, processes) = group.on_host();
    hermesflow_models::device::take_gpu(number);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let all = sysinfo::System::physical_core_count().unwrap_or(cores).max(cores);
    let threads = (all / processes).clamp(1, cores);
    if std::env::var_os("RAYON_NUM_THREADS").is_none() {
        // Only one thread pool can be the first; another one would have been made by a command, and none has run.
        let _ = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
    }
    note!("{} processes, {processes} on this host with {threads} threads each", group.size());
    if cores < all / processes {
        note!(
            "WARNING: the launcher binds each process to {cores} of its {} cores; mpirun --bind-to none, or srun \
             --cpus-per-task={}, gives it all",
            all / processes,
            all / processes
        );
    }
    Ok(())
}
