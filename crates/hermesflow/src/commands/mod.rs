//! One file per command: what it takes (`Args`), what it does (`run`), and the function behind it, which the commands
//! `run` and `demo` call too. A new command is its own file and two lines here.

mod again;
mod answer;
mod args;
mod ask;
mod bench;
mod benchmark;
mod caption;
mod completions;
mod config;
mod controls;
mod convert;
mod demo;
mod doctor;
mod eval;
mod extrapolate;
mod fetch;
mod imagine;
mod import;
mod inpaint;
mod judge;
mod keys;
mod man;
mod mmu;
mod pair;
mod pretrain;
mod random_model;
mod reconstruct;
mod report;
mod run;
mod samplers;
mod scenes;
mod t2i;
mod together;
mod train;
mod verify;

use anyhow::Result;
use clap::{Parser, Subcommand};

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
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

impl Cli {
    /// Runs the command that was given.
    ///
    /// # Errors
    /// What the command says.
    pub fn run(self) -> Result<()> {
        together::begin(SHARED.contains(&self.command.file()), self.command.file())?;
        self.command.run()
    }
}

/// Commands that several processes can do together, by their files.
const SHARED: [&str; 7] = ["run", "caption", "imagine", "ask", "answer", "pair", "train"];

/// Lists the commands, in the order of the help: the name that clap makes the command's name of, and its file.
macro_rules! commands {
    ($($name:ident in $file:ident),* $(,)?) => {
        #[derive(Debug, Subcommand)]
        enum Command {
            $($name($file::Args),)*
        }

        impl Command {
            fn run(self) -> Result<()> {
                match self {
                    $(Self::$name(args) => $file::run(args),)*
                }
            }

            /// The command's file, by which it is called here.
            fn file(&self) -> &'static str {
                match self {
                    $(Self::$name(_) => stringify!($file),)*
                }
            }
        }
    };
}

commands! {
    Demo in demo,
    Run in run,
    Doctor in doctor,
    Import in import,
    Scenes in scenes,
    Caption in caption,
    Imagine in imagine,
    Ask in ask,
    Answer in answer,
    Pair in pair,
    Train in train,
    Eval in eval,
    Benchmark in benchmark,
    Report in report,
    Samplers in samplers,
    T2i in t2i,
    Mmu in mmu,
    Inpaint in inpaint,
    Extrapolate in extrapolate,
    Reconstruct in reconstruct,
    Controls in controls,
    Config in config,
    Keys in keys,
    Pretrain in pretrain,
    Judge in judge,
    Fetch in fetch,
    Convert in convert,
    Verify in verify,
    Bench in bench,
    RandomModel in random_model,
    Completions in completions,
    Man in man,
}
