//! What the program prints: results on stdout, the log on stderr.
//!
//! Who reads the results may leave before they end, as `head` does: what is printed from then on is dropped, in
//! silence, and the work goes on to its own end and exit code. A stdout that cannot take them, as on a full disk, is an
//! error. A log that cannot be written stops nothing.
//!
//! Of several processes that do one run the first speaks for all; the others are silent, but for the error that ends them.

use std::fmt::Arguments;
use std::io::{ErrorKind, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};

static LEFT: AtomicBool = AtomicBool::new(false);
static SILENT: AtomicBool = AtomicBool::new(false);

/// Prints one line of the results; `say!(…)?` as `println!(…)`.
macro_rules! say {
    ($($text:tt)*) => { $crate::print::result(format_args!($($text)*)) };
}

/// Prints one line of the log, as `eprintln!`.
macro_rules! note {
    ($($text:tt)*) => { $crate::print::log(format_args!($($text)*)) };
}

/// Prints one line on stdout.
///
/// # Errors
/// When stdout cannot take it, unless its reader has left.
pub fn result(line: Arguments<'_>) -> Result<()> {
    if is_left() || is_silent() {
        return Ok(());
    }
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{line}").and_then(|()| out.flush()) {
        Err(error) if nobody_reads(&error) => {
            LEFT.store(true, Ordering::Relaxed);
            Ok(())
        }
        printed => printed.context("stdout: the results cannot be printed"),
    }
}

/// Prints one line on stderr.
pub fn log(line: Arguments<'_>) {
    if is_silent() {
        return;
    }
    let _ = writeln!(std::io::stderr(), "{line}"); // nowhere left to complain
}

/// Lets another process speak for this one, or no longer.
pub fn be_silent(silent: bool) {
    SILENT.store(silent, Ordering::Relaxed);
}

/// Whether another process speaks for this one.
pub fn is_silent() -> bool {
    SILENT.load(Ordering::Relaxed)
}

/// Whether the reader of the results has left: work whose results are printed, and nothing else, may end.
pub fn is_left() -> bool {
    LEFT.load(Ordering::Relaxed)
}

/// Whether an error of stdout says that its reader has left.
pub fn nobody_reads(error: &std::io::Error) -> bool {
    error.kind() == ErrorKind::BrokenPipe
}
