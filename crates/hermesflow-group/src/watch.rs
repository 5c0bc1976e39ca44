//! Who says by what a process died that can no longer say it itself.
//!
//! A process that is killed, because memory ran out or by hand, says nothing, and launchers exit with codes and messages of
//! their own. So each process that a launcher started as one of several does nothing but to start the same program once
//! more, the worker, and to wait for it ([`watch`]). Where the worker is killed, its watcher returns by what
//! ([`Ended::Killed`]); otherwise it passes the worker's exit code on.
//!
//! The two share what the launcher gave: variables, open files, host, cores, process group. MPI knows a process by its
//! variables, not by its process number, so the worker joins in the watcher's place, as it does behind a shell. Whatever ends
//! the watcher ends its worker: Linux kills it then (`PR_SET_PDEATHSIG`).

use std::fmt::{Display, Formatter};
use std::os::unix::process::{CommandExt, ExitStatusExt, parent_id};
use std::process::Command;
use std::time::Duration;

use rustix::process::{Signal, set_parent_process_death_signal};

use crate::{Launch, launched};

/// The variable that tells a worker who watches it: a process number.
const WATCHER: &str = "HERMESFLOW_WATCHER";

/// For so long a watcher waits before it says that its worker was killed: where the whole job is ended, it goes, too, in silence.
const WHOLE_JOB: Duration = Duration::from_millis(200);

/// How a worker ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// By itself, with this exit code.
    Exited(u8),
    /// By a signal.
    Killed(Killed),
}

/// A worker that a signal has ended; its text says which process of how many it was, and the likely cause.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Killed {
    launch: Launch,
    host: String,
    signal: i32,
    out_of_memory: Option<bool>,
}

/// Where a launcher started this process as one of several: starts the worker, waits until it ended, and returns how. `None`
/// in the worker, in a process that runs on its own, and where no worker can be started: the work is then done here.
///
/// To be called first of all, from the main thread.
pub fn watch() -> Option<Ended> {
    let launch = launched()?;
    let of = std::env::var(WATCHER).ok().and_then(|number| number.parse().ok());
    if of == Some(parent_id()) {
        let bound = set_parent_process_death_signal(Some(Signal::KILL));
        if bound.is_ok() && of != Some(parent_id()) {
            std::process::exit(1); // the watcher went before it could take its worker with it
        }
        return None;
    }
    let mut arguments = std::env::args_os();
    let mut command = Command::new(std::env::current_exe().ok()?);
    if let Some(name) = arguments.next() {
        command.arg0(name);
    }
    command.args(arguments).env(WATCHER, std::process::id().to_string());
    let before = out_of_memory();
    let status = command.spawn().ok()?.wait().ok()?;
    let Some(signal) = status.signal() else {
        return Some(Ended::Exited(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)));
    };
    std::thread::sleep(WHOLE_JOB);
    let out_of_memory = before.zip(out_of_memory()).map(|(before, after)| after > before);
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    Some(Ended::Killed(Killed { launch, host, signal, out_of_memory }))
}

/// How many processes this host's system has killed because memory ran out, in the whole or in a part of it; `None` where it
/// does not say.
fn out_of_memory() -> Option<u64> {
    let counts = std::fs::read_to_string("/proc/vmstat").ok()?;
    counts.lines().find_map(|line| line.strip_prefix("oom_kill "))?.trim().parse().ok()
}

impl Killed {
    /// The exit code: 1 for what the user can mend, 2 for a fault of this program.
    pub fn code(&self) -> u8 {
        let faults = [Signal::SEGV, Signal::ILL, Signal::FPE, Signal::SYS, Signal::TRAP];
        if faults.iter().any(|fault| fault.as_raw() == self.signal) { 2 } else { 1 }
    }

    fn name(&self) -> Option<&'static str> {
        NAMES.iter().find(|(signal, _)| signal.as_raw() == self.signal).map(|(_, name)| *name)
    }

    fn cause(&self) -> &'static str {
        let is = |signal: Signal| signal.as_raw() == self.signal;
        if is(Signal::KILL) {
            return match self.out_of_memory {
                Some(true) => {
                    "the system ran out of memory; start fewer processes per host (`hermesflow doctor --processes N --per-node M` \
                     says what each needs)"
                }
                Some(false) => {
                    "by hand, or by a limit of the batch system (the system itself did not run out of memory)"
                }
                None => "out of memory, a limit of the batch system, or by hand",
            };
        }
        if is(Signal::ABORT) {
            return "memory that the system refused, or a bug: the lines above say which";
        }
        if is(Signal::BUS) {
            return "a file that was being read was cut off or its disk failed, or /dev/shm is full";
        }
        if is(Signal::XFSZ) {
            return "a file grew above the limit on the size of files (`ulimit -f`)";
        }
        if is(Signal::XCPU) {
            return "the limit on processor time (`ulimit -t`)";
        }
        if self.code() == 2 { "a fault of the program" } else { "from outside" }
    }
}

const NAMES: [(Signal, &str); 15] = [
    (Signal::HUP, "SIGHUP"),
    (Signal::INT, "SIGINT"),
    (Signal::QUIT, "SIGQUIT"),
    (Signal::ILL, "SIGILL"),
    (Signal::TRAP, "SIGTRAP"),
    (Signal::ABORT, "SIGABRT"),
    (Signal::BUS, "SIGBUS"),
    (Signal::FPE, "SIGFPE"),
    (Signal::KILL, "SIGKILL"),
    (Signal::SEGV, "SIGSEGV"),
    (Signal::TERM, "SIGTERM"),
    (Signal::XCPU, "SIGXCPU"),
    (Signal::XFSZ, "SIGXFSZ"),
    (Signal::USR1, "SIGUSR1"),
    (Signal::SYS, "SIGSYS"),
];

impl Display for Killed {
    fn fmt(&self, to: &mut Formatter<'_>) -> std::fmt::Result {
        let Launch { rank, processes, .. } = self.launch;
        write!(to, "process {rank} of {processes} on {} was killed by ", self.host)?;
        match self.name() {
            Some(name) => write!(to, "{name}: {}", self.cause()),
            None => write!(to, "signal {}: {}", self.signal, self.cause()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_killed_and_the_likely_cause_are_said() {
        let launch = Launch { launcher: "mpirun", processes: 8, rank: 3 };
        let killed = |signal: i32, out_of_memory| Killed { launch, host: "node7".into(), signal, out_of_memory };
        let said = |signal: Signal, out_of_memory| killed(signal.as_raw(), out_of_memory).to_string();
        let began =
            "process 3 of 8 on node7 was killed by SIGKILL: the system ran out of memory; start fewer processes";
        assert!(said(Signal::KILL, Some(true)).starts_with(began));
        assert!(said(Signal::KILL, Some(false)).contains("SIGKILL: by hand, or by a limit of the batch system ("));
        assert!(said(Signal::KILL, None).ends_with("SIGKILL: out of memory, a limit of the batch system, or by hand"));
        assert!(said(Signal::XFSZ, None).contains("`ulimit -f`"));
        assert!(said(Signal::TERM, None).ends_with("SIGTERM: from outside"));
        assert_eq!(killed(40, None).to_string(), "process 3 of 8 on node7 was killed by signal 40: from outside");
        let code = |signal: Signal| killed(signal.as_raw(), None).code();
        assert_eq!([Signal::KILL, Signal::TERM, Signal::BUS, Signal::ABORT].map(code), [1; 4]);
        assert_eq!([Signal::SEGV, Signal::ILL].map(code), [2; 2]);
    }
}
