//! How fast the kernels are on this machine, measured in a fraction of a second, and what follows from it.
//!
//! Timings of a busy machine vary. So a kernel replaces that of [`Choices::fixed`] only where it is clearly faster, and a machine
//! on which the table is right keeps it.

use std::hint::black_box;
use std::time::Instant;

use candle_core::Result;
use half::bf16;

use super::choice::{Bf16Kernel, Choices, LARGE, ROWS};
use super::{bf16_kernel, f32_weight, half_weight, unpacked};

/// Rows that are measured, one count of each class of [`ROWS`].
const MEASURED: [usize; ROWS.len()] = [8, 64, 144, 288, 512, 768];
/// Outputs and inputs of the weights that are measured, one below [`LARGE`] elements and one above.
const WEIGHTS: [(usize, usize); 2] = [(512, 512), (1024, 2048)];
/// Fewest and most timed runs, of which the fastest counts. There are more than the fewest while a kernel's two fastest runs
/// differ by more than [`AGREED`]: on a busy machine.
const TRIES: (usize, usize) = (3, 15);
/// The largest quotient of a kernel's two fastest runs that agree.
const AGREED: f64 = 1.05;
/// The share of the table's time that another kernel must stay below to replace it.
const CLEARLY: f64 = 0.9;

/// The time of one product `x Wᵀ` on all threads.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Timing {
    /// The kernel; `None` is f32 with a weight in f32.
    pub kernel: Option<Bf16Kernel>,
    /// Rows of `x`.
    pub rows: usize,
    /// Rows of the weight.
    pub out: usize,
    /// Columns of the weight.
    pub input: usize,
    /// Seconds of the fastest run.
    pub seconds: f64,
}

impl Timing {
    /// Multiplications and additions per second.
    pub fn rate(&self) -> f64 {
        2.0 * (self.rows * self.out * self.input) as f64 / self.seconds.max(f64::MIN_POSITIVE)
    }
}

/// The kernels that can be chosen on this machine; the tiles in software never are.
fn candidates() -> Vec<Bf16Kernel> {
    let fast = Bf16Kernel::ALL.into_iter().filter(|kernel| *kernel != Bf16Kernel::Tiles);
    fast.filter(|kernel| kernel.is_available()).collect()
}

/// Measures every kernel of this machine, and f32, in turns.
///
/// # Errors
/// Never on a machine whose kernels are what they say.
pub fn measure() -> Result<Vec<Timing>> {
    let mut timings = Vec::new();
    for (out, input) in WEIGHTS {
        let number = |at: usize| (at * 7919 % 1009) as f32 / 504.5 - 1.0;
        let weight: Vec<f32> = (0..out * input).map(number).collect();
        let half: Vec<bf16> = unpacked::rounded(&weight);
        for rows in MEASURED {
            let x: Vec<f32> = (0..rows * input).map(|at| number(at + 1)).collect();
            let kernels: Vec<_> = std::iter::once(None).chain(candidates().into_iter().map(Some)).collect();
            // The two fastest runs of each.
            let mut best = vec![[f64::INFINITY; 2]; kernels.len()];
            for tried in 0..TRIES.1 {
                if tried >= TRIES.0 && best.iter().all(|[first, second]| *second < AGREED * first) {
                    break;
                }
                for (kernel, [first, second]) in kernels.iter().zip(&mut best) {
                    let started = Instant::now();
                    black_box(match kernel {
                        None => f32_weight::forward(&x, &weight, None, input),
                        Some(kernel) => half_weight::bf16_linear_by(bf16_kernel(*kernel, rows), &x, &half, input)?,
                    });
                    let seconds = started.elapsed().as_secs_f64();
                    *second = second.min(seconds.max(*first));
                    *first = first.min(seconds);
                }
            }
            let timed = kernels.into_iter().zip(best);
            timings.extend(timed.map(|(kernel, [seconds, _])| Timing { kernel, rows, out, input, seconds }));
        }
    }
    Ok(timings)
}

/// Whether timings are all that [`measure`] makes on this machine.
pub fn is_whole(timings: &[Timing]) -> bool {
    let kernels: Vec<_> = std::iter::once(None).chain(candidates().into_iter().map(Some)).collect();
    let classes = || (0..WEIGHTS.len()).flat_map(|large| (0..ROWS.len()).map(move |class| (class, large)));
    let all =
        kernels.iter().all(|kernel| classes().all(|(class, large)| seconds(timings, *kernel, class, large).is_some()));
    all && timings.len() == kernels.len() * WEIGHTS.len() * ROWS.len()
}

/// The seconds of a kernel for a class of rows and weights.
fn seconds(timings: &[Timing], kernel: Option<Bf16Kernel>, class: usize, large: usize) -> Option<f64> {
    let (rows, (out, input)) = (MEASURED[class], WEIGHTS[large]);
    let found = timings.iter().find(|t| (t.kernel, t.rows, t.out, t.input) == (kernel, rows, out, input));
    found.map(|timing| timing.seconds).filter(|seconds| seconds.is_finite() && *seconds > 0.0)
}

/// The faster of some kernels where it is clearly faster than the given one, else that.
fn faster(timings: &[Timing], given: Bf16Kernel, among: &[Bf16Kernel], class: usize, large: usize) -> Bf16Kernel {
    let Some(limit) = seconds(timings, Some(given), class, large) else { return given };
    let timed = among.iter().filter_map(|kernel| Some((*kernel, seconds(timings, Some(*kernel), class, large)?)));
    let best = timed.min_by(|a, b| a.1.total_cmp(&b.1));
    best.filter(|(_, seconds)| *seconds < CLEARLY * limit).map_or(given, |(kernel, _)| kernel)
}

/// The choices that follow from timings of this machine.
pub fn chosen(timings: &[Timing]) -> Choices {
    let mut choices = Choices::fixed();
    let here = candidates();
    for (large, kernels) in choices.weights.iter_mut().enumerate() {
        for (class, kernel) in kernels.iter_mut().enumerate() {
            *kernel = faster(timings, *kernel, &here, class, large);
        }
    }
    // Training multiplies many rows and packs both operands.
    let packing: Vec<_> = here.into_iter().filter(|kernel| !matches!(kernel, Bf16Kernel::Unpacked)).collect();
    let packing: Vec<_> = packing.into_iter().filter(|kernel| *kernel != Bf16Kernel::Widened).collect();
    choices.training = faster(timings, choices.training, &packing, ROWS.len() - 1, 1);
    choices
}

/// How many times as fast products are with a weight of `elements` elements held in bf16 as with one in f32: the geometric mean
/// over few and many rows, each with its kernel of `choices`. `None` where that was not measured.
pub fn bf16_gain(timings: &[Timing], choices: &Choices, elements: usize) -> Option<f64> {
    let large = usize::from(elements >= LARGE);
    let ratio = |class: usize| {
        let chosen = choices.weights[large][class];
        Some(seconds(timings, None, class, large)? / seconds(timings, Some(chosen), class, large)?)
    };
    let ratios: Option<Vec<f64>> = (0..ROWS.len()).map(ratio).collect();
    Some((ratios?.iter().map(|ratio| ratio.ln()).sum::<f64>() / ROWS.len() as f64).exp())
}

/// How many times as fast training's products of many rows are in bf16 as in f32, for weights of `elements` elements; `None`
/// where that was not measured.
pub fn training_gain(timings: &[Timing], choices: &Choices, elements: usize) -> Option<f64> {
    let (large, class) = (usize::from(elements >= LARGE), ROWS.len() - 1);
    Some(seconds(timings, None, class, large)? / seconds(timings, Some(choices.training), class, large)?)
}

/// The CPU's name, and what of it decides which kernels there are: measurements are valid where it is equal.
pub fn cpu() -> String {
    let kernels: Vec<String> = candidates().iter().map(ToString::to_string).collect();
    format!("{}, {} threads, {}", name(), rayon::current_num_threads(), kernels.join(" "))
}

/// The name that the CPU gives itself.
#[cfg(target_arch = "x86_64")]
fn name() -> String {
    use std::arch::x86_64::__cpuid;
    const NAMES: std::ops::RangeInclusive<u32> = 0x8000_0002..=0x8000_0004;
    if __cpuid(0x8000_0000).eax < *NAMES.end() {
        return std::env::consts::ARCH.into();
    }
    let words = NAMES.map(__cpuid).flat_map(|part| [part.eax, part.ebx, part.ecx, part.edx]);
    let bytes: Vec<u8> = words.flat_map(u32::to_le_bytes).take_while(|byte| *byte != 0).collect();
    String::from_utf8_lossy(&bytes).split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The architecture, where the CPU gives no name.
#[cfg(not(target_arch = "x86_64"))]
fn name() -> String {
    std::env::consts::ARCH.into()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Timings of a machine on which everything takes a second, except what `seconds` says.
    fn timings(seconds: impl Fn(Option<Bf16Kernel>, usize) -> Option<f64>) -> Vec<Timing> {
        let mut timings = Vec::new();
        for kernel in std::iter::once(None).chain(Bf16Kernel::ALL.map(Some)) {
            for ((out, input), rows) in WEIGHTS.into_iter().flat_map(|weight| MEASURED.map(|rows| (weight, rows))) {
                timings.push(Timing { kernel, rows, out, input, seconds: seconds(kernel, rows).unwrap_or(1.0) });
            }
        }
        timings
    }

    #[test]
    fn the_table_stays_unless_another_kernel_is_clearly_faster() {
        let widened = Some(Bf16Kernel::Widened);
        let slightly = timings(|kernel, _| (kernel == widened).then_some(0.95));
        assert_eq!(chosen(&slightly), Choices::fixed());
        let clearly = chosen(&timings(|kernel, rows| (kernel == widened && rows == 64).then_some(0.5)));
        for kernels in clearly.weights {
            assert_eq!(kernels[1], Bf16Kernel::Widened);
            assert_eq!(kernels[2], Choices::fixed().weights[0][2]);
        }
        let software = chosen(&timings(|kernel, _| (kernel == Some(Bf16Kernel::Tiles)).then_some(0.1)));
        assert_eq!(software, Choices::fixed(), "tiles in software are never chosen");
        assert_eq!(chosen(&[]), Choices::fixed(), "nothing is known");
    }

    #[test]
    fn gains_are_those_of_the_chosen_kernels() {
        let choices = Choices::all(Bf16Kernel::Widened);
        let halved = timings(|kernel, _| kernel.map(|_| 0.5));
        assert!((bf16_gain(&halved, &choices, LARGE).unwrap() - 2.0).abs() < 1e-9);
        let mixed = timings(|kernel, rows| kernel.map(|_| if rows < 200 { 0.5 } else { 2.0 }));
        assert!((bf16_gain(&mixed, &choices, 1).unwrap() - 1.0).abs() < 1e-9);
        assert!((training_gain(&mixed, &choices, 1).unwrap() - 0.5).abs() < 1e-9);
        assert_eq!(bf16_gain(&[], &choices, 1), None);
    }

    #[test]
    fn measuring_tells_the_time_of_everything_that_can_be_chosen() {
        let timings = measure().unwrap();
        assert_eq!(timings.len(), WEIGHTS.len() * MEASURED.len() * (1 + candidates().len()));
        assert!(timings.iter().all(|timing| timing.seconds > 0.0 && timing.rate() > 1e6));
        assert!(chosen(&timings).used().into_iter().all(Bf16Kernel::is_available));
        assert!(bf16_gain(&timings, &chosen(&timings), LARGE).unwrap() > 0.0);
        assert!(!cpu().is_empty() && cpu().lines().count() == 1);
    }
}
