//! The program `hermesflow`: what belongs to its process. All else is the library's ([`hermesflow::program`]).

use std::io::Write;
use std::process::ExitCode;

use hermesflow_models::{FileBacked, foreign};
use mimalloc::MiMalloc;

#[global_allocator]
static ALLOCATOR: FileBacked<MiMalloc> = FileBacked(MiMalloc);

/// `mi_option_purge_delay`: how many milliseconds freed memory is kept before the system gets it back.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;
/// `mi_option_arena_reserve`: how many KiB of addresses are reserved at a time; larger tensors than fit go straight back.
const ARENA_RESERVE: libmimalloc_sys::mi_option_t = 23;

fn main() -> ExitCode {
    if let Some(code) = hermesflow::watch() {
        return ExitCode::from(code);
    }
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
        if foreign::is_contained() {
            return; // a decoder on a broken file, which will be named
        }
        report(panic);
        let _ = writeln!(std::io::stderr(), "hermesflow: {}", hermesflow::BUG); // nowhere left to complain
        hermesflow::abort(2);
        std::process::exit(2);
    }));
    ExitCode::from(hermesflow::program(std::env::args_os()))
}
