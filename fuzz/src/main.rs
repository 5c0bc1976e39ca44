//! Mutated files of every format that the program reads, through its own command line.
//!
//! A case is a target ([`targets`]), a sound or broken file of its corpus, and what is changed in it ([`mutate`]); all
//! follow from the case's number, so that any can be made again. The program must accept the file or refuse it: exit code
//! 0 or 1, no panic, within ten seconds and four gigabytes. Workers run cases in processes of their own, which the
//! campaign ([`campaign`]) watches.

mod campaign;
mod memory;
mod mutate;
mod targets;
mod worker;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[global_allocator]
static ALLOCATOR: memory::Limited = memory::Limited;

/// Tries mutated files on the program
#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Try cases for a time, and count how they went; exit code 1 where one went wrong
    Run(campaign::Args),
    /// Try one file on one target, as it is
    Try {
        /// The target
        target: String,
        /// The file
        file: PathBuf,
    },
    /// Run cases, one after the other
    #[command(hide = true)]
    Work(worker::Args),
}

fn main() -> Result<ExitCode> {
    Ok(match Cli::parse().what {
        What::Run(args) => campaign::run(&args)?,
        What::Try { target, file } => worker::try_one(&target, &file)?,
        What::Work(args) => worker::run(&args)?,
    })
}
