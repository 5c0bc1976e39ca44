//! Which kernels multiply in bf16 on this CPU: measured once, kept in the cache folder, and made those of this process.
//!
//! The file is `kernels-….json` in `hermesflow` under `XDG_CACHE_HOME` or `~/.cache`. What is measured is valid for this CPU, by
//! its name and kernels, and for this version of the program; anything else is measured again, and a file that cannot be written
//! only costs the time.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use hermesflow_models::kernels::{self, Bf16Kernel, Choices, Timing};
use serde::{Deserialize, Serialize};

use crate::digest::digest;
use crate::files::write_atomically;

/// What was measured on this machine.
#[derive(Debug, Clone)]
pub struct Measured {
    /// The times of the kernels.
    pub timings: Vec<Timing>,
    /// What follows from them.
    pub choices: Choices,
    /// Where the times are kept, if they are.
    pub kept: Option<PathBuf>,
}

/// The content of the file.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Kept {
    cpu: String,
    program: String,
    timings: Vec<KeptTiming>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct KeptTiming {
    /// `f32`, or the name of a kernel.
    kernel: String,
    rows: usize,
    out: usize,
    input: usize,
    seconds: f64,
}

const F32: &str = "f32";

impl KeptTiming {
    fn of(timing: &Timing) -> Self {
        let Timing { kernel, rows, out, input, seconds } = *timing;
        let kernel = kernel.map_or_else(|| F32.into(), |kernel| kernel.to_string());
        Self { kernel, rows, out, input, seconds }
    }

    /// The timing, if it is one.
    fn read(self) -> Option<Timing> {
        let Self { kernel, rows, out, input, seconds } = self;
        let kernel = if kernel == F32 { None } else { Some(kernel.parse().ok()?) };
        (seconds > 0.0).then_some(Timing { kernel, rows, out, input, seconds })
    }
}

/// The folder where this program keeps what it has measured; none without a home folder.
fn folder() -> Option<PathBuf> {
    let named = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    Some(named.or_else(|| Some(std::env::home_dir()?.join(".cache")))?.join("hermesflow"))
}

/// The kept timings, if the file holds those of this CPU and program.
fn read(path: &Path, cpu: &str, program: &str) -> Option<Vec<Timing>> {
    let kept: Kept = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
    if (kept.cpu.as_str(), kept.program.as_str()) != (cpu, program) {
        return None;
    }
    let timings: Option<Vec<Timing>> = kept.timings.into_iter().map(KeptTiming::read).collect();
    // A file that was cut short and is JSON still does not say everything.
    timings.filter(|timings| kernels::is_whole(timings))
}

/// What is kept in `folder` for this CPU and program, or else is measured now and kept there.
fn kept_or(
    folder: Option<&Path>,
    (cpu, program): (&str, &str),
    measure: impl FnOnce() -> Vec<Timing>,
) -> (Vec<Timing>, Option<PathBuf>) {
    let path = folder.map(|folder| folder.join(format!("kernels-{}.json", &digest([cpu, program])[..12])));
    if let Some(timings) = path.as_deref().and_then(|path| read(path, cpu, program)) {
        return (timings, path);
    }
    let timings = measure();
    let kept = Kept { cpu: cpu.into(), program: program.into(), timings: timings.iter().map(KeptTiming::of).collect() };
    let written =
        path.filter(|path| serde_json::to_vec_pretty(&kept).is_ok_and(|bytes| write_atomically(path, &bytes).is_ok()));
    (timings, written)
}

/// What was measured on this machine: read from the cache folder, or measured now, in a fraction of a second, and kept there. A
/// process does so once.
pub fn measured() -> &'static Measured {
    static MEASURED: OnceLock<Measured> = OnceLock::new();
    MEASURED.get_or_init(|| {
        // Without times the table of the source stands.
        let measure = || kernels::measure().unwrap_or_default();
        let here = (kernels::cpu(), env!("CARGO_PKG_VERSION"));
        let (timings, kept) = kept_or(folder().as_deref(), (&here.0, here.1), measure);
        Measured { choices: kernels::chosen(&timings), timings, kept }
    })
}

/// The kernels of a process whose user has left them open: what was measured, or what `HERMESFLOW_CPU` asks for.
pub fn open_choice() -> Choices {
    if kernels::is_spoken_for() { kernels::current() } else { measured().choices }
}

/// Whether products with a weight of `elements` elements are faster here with the weight held in bf16, over few and many rows.
/// `pinned` is the kernel that all of them have.
pub fn bf16_is_faster(elements: usize, pinned: Option<Choices>) -> bool {
    gain(pinned, |timings, choices| kernels::bf16_gain(timings, choices, elements))
}

/// Whether training's products with such a weight are faster here in bf16.
pub fn bf16_trains_faster(elements: usize, pinned: Option<Choices>) -> bool {
    gain(pinned, |timings, choices| kernels::training_gain(timings, choices, elements))
}

fn gain(pinned: Option<Choices>, gain: impl Fn(&[Timing], &Choices) -> Option<f64>) -> bool {
    let by_instructions = || hermesflow_models::device::DeviceName::Cpu.multiplies_bf16();
    if kernels::is_spoken_for() {
        return by_instructions();
    }
    let measured = measured();
    gain(&measured.timings, &pinned.unwrap_or(measured.choices)).map_or_else(by_instructions, |gain| gain > 1.0)
}

/// Kernels by their classes of rows, in words: `unpacked up to 383 rows, packed beyond`.
fn by_rows(kernels: &[Bf16Kernel]) -> String {
    let mut runs: Vec<(Bf16Kernel, usize)> = Vec::new();
    for (kernel, most) in kernels.iter().zip(kernels::ROWS) {
        match runs.last_mut() {
            Some((last, until)) if last == kernel => *until = most,
            _ => runs.push((*kernel, most)),
        }
    }
    let words = runs.iter().map(|(kernel, most)| match *most {
        usize::MAX if runs.len() == 1 => kernel.to_string(),
        usize::MAX => format!("{kernel} beyond"),
        most => format!("{kernel} up to {most} rows"),
    });
    words.collect::<Vec<_>>().join(", ")
}

/// Choices in words.
fn in_words(choices: &Choices) -> String {
    let [small, large] = choices.weights.map(|kernels| by_rows(&kernels));
    let held = match small == large {
        true => format!("bf16 weights by {large}"),
        false => format!("bf16 weights by {large}; those below a million elements by {small}"),
    };
    format!("{held}; training in bf16 by {}", choices.training)
}

/// What was measured, as a sentence: the rates of large products of many rows, and which kernels are chosen.
pub fn described() -> String {
    let Measured { timings, choices, kept } = measured();
    let many = timings.iter().map(|timing| timing.rows * timing.out * timing.input).max();
    let rates: Vec<String> = timings
        .iter()
        .filter(|timing| Some(timing.rows * timing.out * timing.input) == many)
        .map(|timing| {
            let name = timing.kernel.map_or_else(|| F32.to_owned(), |kernel| format!("bf16 {kernel}"));
            format!("{name} {:.0}", timing.rate() / 1e9)
        })
        .collect();
    let kept = kept.as_ref().map_or_else(|| "kept nowhere".to_owned(), |path| format!("kept in {}", path.display()));
    let amx = if Bf16Kernel::Amx.is_available() { "" } else { "; no AMX here" };
    let forced = match kernels::is_spoken_for() {
        true => format!("; HERMESFLOW_CPU makes them: {}", in_words(&kernels::current())),
        false => String::new(),
    };
    let (here, rates, chosen) = (kernels::cpu(), rates.join(", "), in_words(choices));
    format!("{here}: many rows at {rates} GFLOP/s{amx}; {chosen}{forced} ({kept})")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const HERE: (&str, &str) = ("a CPU", "1.0");

    fn some_timings() -> Vec<Timing> {
        kernels::measure().unwrap()
    }

    #[test]
    fn what_is_kept_is_not_measured_again() {
        let folder = tempfile::tempdir().unwrap();
        let place = Some(folder.path());
        let (first, kept) = kept_or(place, HERE, some_timings);
        let kept = kept.unwrap();
        let (again, _) = kept_or(place, HERE, || panic!("measured again"));
        assert_eq!(again, first);
        let text = std::fs::read_to_string(&kept).unwrap();
        // Another CPU or program, a cut, a wrong word, a missing time.
        let short = text.replacen("\"rows\": 8,", "\"rows\": 9,", 1);
        let broken = ["", &text[..text.len() / 2], &text.replace("\"f32\"", "\"f33\""), &short];
        let broken = broken.map(str::to_owned).into_iter().chain([text.replace("a CPU", "another")]);
        for broken in broken {
            assert_ne!(broken, text);
            std::fs::write(&kept, broken).unwrap();
            let (anew, _) = kept_or(place, HERE, || first.clone());
            assert_eq!(anew, first);
            assert_eq!(std::fs::read_to_string(&kept).unwrap(), text, "made anew");
        }
        let mut times = 0;
        kept_or(place, ("a CPU", "1.1"), || {
            times += 1;
            first.clone()
        });
        kept_or(None, HERE, || {
            times += 1;
            first.clone()
        });
        assert_eq!(times, 2, "another program, and no folder");
        let file = folder.path().join("a file");
        std::fs::write(&file, "").unwrap();
        assert_eq!(kept_or(Some(&file), HERE, || first.clone()), (first, None), "a folder that cannot be written");
    }

    #[test]
    fn the_sentence_names_the_cpu_and_the_kernels() {
        let text = described();
        assert!(text.contains("GFLOP/s") && text.contains("f32 ") && text.contains("training in bf16 by "), "{text}");
        let (few, many) = (Bf16Kernel::Unpacked, Bf16Kernel::Amx);
        assert_eq!(by_rows(&[few, few, few, few, many, many]), "unpacked up to 383 rows, amx beyond");
        let mut choices = Choices::all(many);
        assert_eq!(in_words(&choices), "bf16 weights by amx; training in bf16 by amx");
        choices.weights[0][0] = few;
        assert!(in_words(&choices).contains("those below a million elements by unpacked up to 16 rows, amx beyond"));
    }
}
