//! `hermesflow report`: one page that shows a run, or several side by side.

use std::path::PathBuf;

use anyhow::Result;

use crate::report::page::serve::Serving;
use crate::report::page::{Page, ensure_ours};

/// Show runs as one page: what taught the model what, and whether it got better
///
/// Writes a single HTML file that needs no network: figures per iteration with 95 % intervals, pictures of fixed prompts
/// before and after, statistics of the pictures that no judge sees, every preference pair with the questions and answers
/// that decided it, what was not used and why, the curves of training, and all settings that differ from a preset. Records
/// can be searched and filtered. Several runs are shown side by side. A run may still be working, or have stopped anywhere.
///
/// Pictures are scaled into the file for up to a thousand records; those of the others are linked, relative to it.
///
/// Example: hermesflow report runs/scenes --out report.html
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folders of runs: the `output` of `hermesflow run`, or the folder of a demo
    #[arg(value_name = "RUN", required = true)]
    runs: Vec<PathBuf>,

    /// File of the page [default: report.html in the first folder]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,

    /// Serve the page on this machine (127.0.0.1, nothing else listens) and keep it current while a run works; ends with
    /// Ctrl-C
    #[arg(long, conflicts_with = "out")]
    serve: bool,
}

/// Runs the command.
pub fn run(args: Args) -> Result<()> {
    let page = Page::open(&args.runs)?;
    if args.serve {
        let (serving, address) = Serving::listen(args.runs)?;
        say!("{address}")?;
        serving.run();
        return Ok(());
    }
    let out = args.out.unwrap_or_else(|| page.usual_file());
    ensure_ours(&out)?;
    page.write(&out)?;
    say!("{}", out.display())
}
