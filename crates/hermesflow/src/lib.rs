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

use clap::Parser;

use commands::Cli;

/// The line that follows an error which is this program's fault.
pub const BUG: &str = "this is a bug; please report it with the lines above";

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
    match cli.run() {
        Ok(()) => 0,
        Err(error) => {
            note!("hermesflow: {}", message(&error));
            if is_our_fault(&error) {
                note!("hermesflow: {BUG}");
                return 2;
            }
            1
        }
    }
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
