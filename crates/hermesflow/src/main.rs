//! `hermesflow`: parse, match, map errors to exit codes.
//!
//! stdout carries results, stderr the log and the progress. Exit code 0: done; 1: something that the
//! user can mend, said in one message; 2: our fault.

mod commands;
mod config;
mod datasets;
mod digest;
mod evaluate;
mod files;
mod fit;
mod hub;
mod judges;
mod layout;
mod lock;
mod made;
mod models;
mod objectives;
mod overrides;
mod pictures;
mod progress;
mod reader;
mod reference;
mod report;
mod stage;
mod statistics;
mod world;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use hermesflow_models::FileBacked;
use mimalloc::MiMalloc;

use commands::{
    answer, ask, bench, caption, config as presets, controls, convert, demo, doctor, eval, extrapolate, fetch, imagine,
    import, inpaint, judge, mmu, pair, pretrain, random_model, reconstruct, run, scenes, t2i, train, verify,
};

/// Said where something is our fault.
const BUG: &str = "this is a bug; please report it with the lines above";

#[global_allocator]
static ALLOCATOR: FileBacked<MiMalloc> = FileBacked(MiMalloc);

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
    Run(run::Args),
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

/// `mi_option_purge_delay`: how many milliseconds freed memory is kept before the system gets it back.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;
/// `mi_option_arena_reserve`: how many KiB of addresses are reserved at a time; larger tensors than fit go straight back.
const ARENA_RESERVE: libmimalloc_sys::mi_option_t = 23;

fn main() -> ExitCode {
    if std::env::var_os("MIMALLOC_PURGE_DELAY").is_none() {
        // A training step asks for the same memory as the one before it, and may take many seconds: with the 10 ms and
        // the 1 GiB that are usual, a fifth of its time goes into pages that are given back and cleared again.
        // SAFETY: sets two numbers of the allocator that this program uses.
        unsafe {
            libmimalloc_sys::mi_option_set(PURGE_DELAY, 60_000);
            libmimalloc_sys::mi_option_set(ARENA_RESERVE, 8 << 20);
        }
    }
    // candle's own threads spin between two products and take the cores from our operators, which bring their own.
    if std::env::var_os("CANDLE_NUM_THREADS").is_none() {
        // SAFETY: no other thread has been started yet.
        unsafe { std::env::set_var("CANDLE_NUM_THREADS", "1") };
    }
    // A panic is our fault, whatever its thread: it must not look like something that the user can mend.
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        eprintln!("hermesflow: {BUG}");
        std::process::exit(2);
    }));
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print(); // nowhere left to complain
            return if error.use_stderr() { ExitCode::from(1) } else { ExitCode::SUCCESS };
        }
    };
    let result = match cli.command {
        Command::Demo(args) => demo::run(args),
        Command::Run(args) => run::run(args),
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
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hermesflow: {}", message(&error));
            if is_our_fault(&error) {
                eprintln!("hermesflow: {BUG}");
                return ExitCode::from(2);
            }
            ExitCode::from(1)
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
