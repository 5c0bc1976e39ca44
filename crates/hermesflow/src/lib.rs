//! The program behind `hermesflow`: parse, match, map errors to exit codes.
//!
//! stdout carries results, stderr the log and the progress. Exit code 0: done; 1: something that the
//! user can mend, said in one message; 2: our fault.

#![deny(missing_docs)]
#![warn(clippy::print_stdout, clippy::print_stderr)] // `say!` and `note!` do not end the program where nobody reads

#[macro_use]
mod print;

mod benchmarks;
mod cache;
mod commands;
mod config;
mod datasets;
mod digest;
mod files;
mod judges;
mod kernels;
mod made;
mod models;
mod progress;
mod report;
mod run;
mod world;

use std::ffi::OsString;
use std::time::Duration;

use clap::Parser;
use hermesflow_group::Group;
use sysinfo::System;

use commands::Cli;

/// The line that follows an error which is this program's fault.
pub const BUG: &str = "this is a bug; please report it with the lines above";

/// Where a launcher started this process as one of several: lets a process of its own do the work, and returns the exit code
/// when that has ended; says by what, where it was killed. `None` where the work is to be done here.
pub fn watch() -> Option<u8> {
    #[cfg(all(feature = "mpi", target_os = "linux"))]
    match hermesflow_group::watch()? {
        hermesflow_group::Ended::Exited(code) => Some(code),
        hermesflow_group::Ended::Killed(killed) => {
            note!("hermesflow: {killed}");
            if killed.code() == 2 {
                note!("hermesflow: {BUG}");
            }
            Some(killed.code())
        }
    }
    #[cfg(not(all(feature = "mpi", target_os = "linux")))]
    None
}

/// Runs one command line, the program's name first, and returns the exit code.
pub fn program(arguments: impl IntoIterator<Item = OsString>) -> u8 {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            let printed = error.print();
            return u8::from(error.use_stderr() || printed.is_err_and(|fault| !print::nobody_reads(&fault)));
        }
    };
    if let Err(what) = hermesflow_models::kernels::check_environment() {
        note!("hermesflow: {what}");
        return 1;
    }
    digest::forget_loaded();
    let done = cli.run();
    let group = Group::world();
    let code = match done {
        Ok(()) => {
            group.finish();
            return 0;
        }
        Err(error) => fail(&error, &group),
    };
    group.abort(code);
    code
}

/// Says an error, and whose fault it is; the exit code. Where several processes fail alike the first one says so, and ends
/// the others before they would.
fn fail(error: &anyhow::Error, group: &Group) -> u8 {
    let of = match (group.is_alone(), group.rank()) {
        (true, _) => String::new(),
        (false, rank) => format!("process {rank} of {} on {}: ", group.size(), System::host_name().unwrap_or_default()),
    };
    if !group.is_writer() {
        let turn = Duration::from_millis(100) * group.rank().min(20) as u32;
        std::thread::sleep(WAIT_FOR_THE_FIRST + turn);
        print::be_silent(false);
    }
    note!("hermesflow: {of}{}", message(error));
    if is_our_fault(error) {
        note!("hermesflow: {BUG}");
        return 2;
    }
    1
}

/// For so long a process that failed waits for the first one to fail for the same reason.
const WAIT_FOR_THE_FIRST: Duration = Duration::from_secs(1);

/// Ends the processes that do a run together with this one, which cannot go on.
pub fn abort(code: u8) {
    Group::world().abort(code);
}

/// The error and its causes, without those that the one before has said.
fn message(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |said, cause| match said.as_str() {
        "" => cause,
        said if said.ends_with(&cause) => said.to_string(),
        said => format!("{said}: {cause}"),
    })
}

/// Files, settings and records are checked before they are used, so a tensor operation that fails is a bug.
fn is_our_fault(error: &anyhow::Error) -> bool {
    use hermesflow_models::Error as Model;
    use hermesflow_train::Error as Train;
    matches!(error.downcast_ref(), Some(Model::Tensor(_)))
        || matches!(error.downcast_ref(), Some(hermesflow_score::Error::Tensor(_)))
        || matches!(error.downcast_ref(), Some(Train::Tensor(_) | Train::Model(Model::Tensor(_))))
}
