//! The program behind `hermesflow`: parse, match, map errors to exit codes.
//!
//! stdout carries results, stderr the log and the progress. Exit code 0: done; 1: something that the
//! user can mend, said in one message; 2: our fault.

#![warn(clippy::print_stdout, clippy::print_stderr)] // `say!` and `note!` do not end the program where nobody reads

#[macro_use]
mod output;

mod cache;
mod commands;
mod config;
mod datasets;
mod digest;
mod files;
mod judges;
mod made;
mod models;
mod progress;
mod report;
mod run;
mod world;

use std::ffi::OsString;

use clap::{Parser, Subcommand};

use commands::{
    answer, ask, bench, caption, config as presets, controls, convert, demo, doctor, eval, extrapolate, fetch, imagine,
    import, inpaint, judge, mmu, pair, pretrain, random_model, reconstruct, scenes, t2i, train, verify,
};

/// Said where something is our fault.
pub const BUG: &str = "this is a bug; please report it with the lines above";

/// Align a unified multimodal model with itself.
///
/// A model that both understands and makes images usually understands better than it imagines. HermesFlow lets it
/// close that gap by itself: it captions each image ten times and imagines each caption sixteen times, judges the
/// captions against the true one and the images by its own answers to questions, and trains on the best against the
/// worst of both (Pair-DPO).
///
/// Start with `hermesflow demo`: the whole loop on an embedded model, nothing to download.
#[derive(Debug, Parser)]
#[command(name = "hermesflow", version, max_term_width = 100, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Demo(demo::Args),
    Run(commands::run::Args),
    Doctor(doctor::Args),
    Import(import::Args),
    Scenes(scenes::Args),
    Caption(caption::Args),
    Imagine(imagine::Args),
    Ask(ask::Args),
    Answer(answer::Args),
    Pair(pair::Args),
    Train(train::Args),
    Eval(eval::Args),
    T2i(t2i::Args),
    Mmu(mmu::Args),
    Inpaint(inpaint::Args),
    Extrapolate(extrapolate::Args),
    Reconstruct(reconstruct::Args),
    Controls(controls::Args),
    Config(presets::Args),
    Pretrain(pretrain::Args),
    Judge(judge::Args),
    Fetch(fetch::Args),
    Convert(convert::Args),
    Verify(verify::Args),
    Bench(bench::Args),
    RandomModel(random_model::Args),
}

/// Runs one command line, the program's name first, and returns the exit code.
pub fn program(arguments: impl IntoIterator<Item = OsString>) -> u8 {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            let printed = error.print();
            return u8::from(error.use_stderr() || printed.is_err_and(|fault| !output::nobody_reads(&fault)));
        }
    };
    digest::forget_loaded();
    let result = match cli.command {
        Command::Demo(args) => demo::run(args),
        Command::Run(args) => commands::run::run(args),
        Command::Doctor(args) => doctor::run(args),
        Command::Import(args) => import::run(args),
        Command::Scenes(args) => scenes::run(args),
        Command::Caption(args) => caption::run(args),
        Command::Imagine(args) => imagine::run(args),
        Command::Ask(args) => ask::run(args),
        Command::Answer(args) => answer::run(args),
        Command::Pair(args) => pair::run(args),
        Command::Train(args) => train::run(args),
        Command::Eval(args) => eval::run(args),
        Command::T2i(args) => t2i::run(args),
        Command::Mmu(args) => mmu::run(args),
        Command::Inpaint(args) => inpaint::run(args),
        Command::Extrapolate(args) => extrapolate::run(args),
        Command::Reconstruct(args) => reconstruct::run(args),
        Command::Controls(args) => controls::run(args),
        Command::Config(args) => presets::run(args),
        Command::Pretrain(args) => pretrain::run(args),
        Command::Judge(args) => judge::run(args),
        Command::Fetch(args) => fetch::run(args),
        Command::Convert(args) => convert::run(args),
        Command::Verify(args) => verify::run(args),
        Command::Bench(args) => bench::run(args),
        Command::RandomModel(args) => random_model::run(args),
    };
    match result {
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
