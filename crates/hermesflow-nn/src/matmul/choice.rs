//! Which kernel multiplies in bf16 on the CPU: for a weight held in bf16, by its size and the rows that it is multiplied with, and
//! for the matrix products of training. The kernels sum in different orders, so this decides the last bits of a result.
//!
//! Without a word from the program it is [`Choices::fixed`], a table of this source. The program installs what it has measured
//! ([`super::calibration`]), or what a run began with. `HERMESFLOW_CPU` goes before both.

use std::fmt::{Display, Formatter};
use std::str::FromStr;
use std::sync::{OnceLock, PoisonError, RwLock};

use super::packed::{Engine, tiles};
use crate::simd;

/// A way to multiply in bf16, with sums and results in f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bf16Kernel {
    /// `amx`: the tile registers of Intel's Xeons from the fourth generation on; operands rounded to bf16 and packed.
    Amx,
    /// `tiles`: what `amx` computes, in software, on any CPU. Slow.
    Tiles,
    /// `packed`: AVX512-BF16, operands rounded to bf16 and packed.
    Packed,
    /// `unpacked`: AVX512-BF16, the weight multiplied where it lies; in training as `packed`.
    Unpacked,
    /// `widened`: the weight widened to f32, on any CPU; in training both operands are rounded to bf16 first.
    Widened,
}

impl Bf16Kernel {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Amx, Self::Tiles, Self::Packed, Self::Unpacked, Self::Widened];

    /// Whether this machine has it.
    pub fn is_available(self) -> bool {
        match self {
            Self::Amx => simd::allowed("amx") && tiles::in_hardware(),
            Self::Tiles | Self::Widened => true,
            Self::Packed | Self::Unpacked => simd::bf16(),
        }
    }

    /// What multiplies packed operands.
    pub(crate) fn engine(self) -> Engine {
        match self {
            Self::Amx => Engine::Amx,
            Self::Tiles => Engine::Tiles,
            Self::Packed | Self::Unpacked => Engine::Vectors,
            Self::Widened => Engine::Rounded,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Amx => "amx",
            Self::Tiles => "tiles",
            Self::Packed => "packed",
            Self::Unpacked => "unpacked",
            Self::Widened => "widened",
        }
    }
}

impl Display for Bf16Kernel {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Bf16Kernel {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|kernel| kernel.name() == name);
        found.ok_or_else(|| format!("{name:?} is no kernel; there are {}", Self::ALL.map(Self::name).join(", ")))
    }
}

/// Elements of a weight from which it counts as large.
pub const LARGE: usize = 1 << 20;
/// Most rows of each class of row counts.
pub const ROWS: [usize; 6] = [16, 96, 192, 383, 640, usize::MAX];

/// The kernel of every product in bf16.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choices {
    /// For weights held in bf16, first those below [`LARGE`] elements and then the others, by the classes of [`ROWS`].
    pub weights: [[Bf16Kernel; ROWS.len()]; 2],
    /// For the products of training.
    pub training: Bf16Kernel,
}

impl Choices {
    /// The same kernel for everything.
    pub fn all(kernel: Bf16Kernel) -> Self {
        Self { weights: [[kernel; ROWS.len()]; 2], training: kernel }
    }

    /// The table of this source for this CPU, which does not depend on any measurement.
    pub fn fixed() -> Self {
        let best = [Bf16Kernel::Amx, Bf16Kernel::Packed, Bf16Kernel::Widened];
        let many = best.into_iter().find(|kernel| kernel.is_available()).unwrap_or(Bf16Kernel::Widened);
        let few = if Bf16Kernel::Unpacked.is_available() { Bf16Kernel::Unpacked } else { many };
        Self { weights: [[few, few, few, few, many, many]; 2], training: many }
    }

    /// The kernel for `rows` rows and a weight of `elements` elements.
    pub fn weight(&self, rows: usize, elements: usize) -> Bf16Kernel {
        let class = ROWS.iter().position(|most| rows <= *most).unwrap_or(ROWS.len() - 1);
        self.weights[usize::from(elements >= LARGE)][class]
    }

    /// The kernels that are chosen for something, each once, in the order of [`Bf16Kernel::ALL`].
    pub fn used(&self) -> Vec<Bf16Kernel> {
        let chosen =
            |kernel: &Bf16Kernel| self.training == *kernel || self.weights.iter().flatten().any(|k| k == kernel);
        Bf16Kernel::ALL.into_iter().filter(chosen).collect()
    }
}

/// As in `small unpacked unpacked … large unpacked … training packed`: what [`Choices::from_str`] reads.
impl Display for Choices {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        let names = |kernels: &[Bf16Kernel]| kernels.iter().map(|kernel| kernel.name()).collect::<Vec<_>>().join(" ");
        let [small, large] = &self.weights;
        write!(f, "small {} large {} training {}", names(small), names(large), self.training)
    }
}

impl FromStr for Choices {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut words = text.split_ascii_whitespace();
        let mut take = |title: &str, into: &mut [Bf16Kernel]| -> Result<(), String> {
            let found = words.next().unwrap_or("nothing");
            if found != title {
                return Err(format!("expected {title:?}, found {found:?}"));
            }
            into.iter_mut().try_for_each(|kernel| {
                *kernel = words.next().unwrap_or_default().parse()?;
                Ok(())
            })
        };
        let mut choices = Self::all(Bf16Kernel::Widened);
        let [small, large] = &mut choices.weights;
        take("small", small)?;
        take("large", large)?;
        take("training", std::slice::from_mut(&mut choices.training))?;
        words.next().map_or(Ok(choices), |more| Err(format!("unexpected {more:?}")))
    }
}

static INSTALLED: RwLock<Option<Choices>> = RwLock::new(None);

/// Makes the choices those of this process, until others are installed; `None` is [`Choices::fixed`].
///
/// # Errors
/// Names the kernels that this machine lacks; then nothing changes.
pub fn install(choices: Option<Choices>) -> Result<(), String> {
    let missing: Vec<String> = choices
        .iter()
        .flat_map(Choices::used)
        .filter(|kernel| !kernel.is_available())
        .map(|kernel| kernel.to_string())
        .collect();
    if !missing.is_empty() {
        return Err(missing.join(" and "));
    }
    *INSTALLED.write().unwrap_or_else(PoisonError::into_inner) = choices;
    Ok(())
}

/// The kernel that `HERMESFLOW_CPU` names for every product in bf16, if it names one that this machine has.
pub fn forced() -> Option<Bf16Kernel> {
    static FORCED: OnceLock<Option<Bf16Kernel>> = OnceLock::new();
    *FORCED.get_or_init(|| {
        let named = simd::words().iter().filter_map(|word| word.parse().ok());
        named.into_iter().find(|kernel: &Bf16Kernel| kernel.is_available())
    })
}

/// The choices of this process.
pub fn current() -> Choices {
    match forced() {
        Some(kernel) => Choices::all(kernel),
        None => INSTALLED.read().unwrap_or_else(PoisonError::into_inner).unwrap_or_else(Choices::fixed),
    }
}

/// Whether `HERMESFLOW_CPU` says anything; then nothing is measured for it.
pub fn is_spoken_for() -> bool {
    simd::words().iter().any(|word| !word.is_empty())
}

/// Checks the words of `HERMESFLOW_CPU`.
///
/// # Errors
/// Names a word that means nothing, or a kernel that this machine lacks.
pub fn check_environment() -> Result<(), String> {
    simd::words().iter().filter(|word| !word.is_empty()).try_for_each(|word| match word.parse::<Bf16Kernel>() {
        Ok(kernel) if kernel.is_available() => Ok(()),
        Ok(kernel) => Err(format!("HERMESFLOW_CPU: this CPU has no kernel {kernel}; leave the variable out")),
        Err(_) if word == "plain" || simd::SETS.iter().any(|set| word.strip_prefix("no-") == Some(set)) => Ok(()),
        Err(_) => Err(format!(
            "HERMESFLOW_CPU: {word:?} is not understood; the words are plain, {} and {}",
            simd::SETS.map(|set| format!("no-{set}")).join(", "),
            Bf16Kernel::ALL.map(Bf16Kernel::name).join(", ")
        )),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn choices_are_written_and_read() {
        let mut choices = Choices::all(Bf16Kernel::Unpacked);
        choices.weights[1][5] = Bf16Kernel::Amx;
        choices.training = Bf16Kernel::Tiles;
        assert_eq!(choices.to_string().parse(), Ok(choices));
        assert_eq!(choices.used(), [Bf16Kernel::Amx, Bf16Kernel::Tiles, Bf16Kernel::Unpacked]);
        let text = choices.to_string();
        for broken in
            ["", "small", &text[1..], &text[..text.len() - 1], &format!("{text} amx"), &text.replace("large", "")]
        {
            assert!(broken.parse::<Choices>().is_err(), "{broken}");
        }
        assert!("amx2".parse::<Bf16Kernel>().unwrap_err().contains("amx, tiles, packed"));
    }

    #[test]
    fn a_product_has_the_kernel_of_its_rows_and_its_weight() {
        let mut choices = Choices::all(Bf16Kernel::Unpacked);
        choices.weights[1][4] = Bf16Kernel::Packed;
        choices.weights[0][0] = Bf16Kernel::Widened;
        let kernel = |rows, elements| choices.weight(rows, elements);
        assert_eq!([kernel(383, LARGE), kernel(384, LARGE), kernel(640, LARGE)], {
            [Bf16Kernel::Unpacked, Bf16Kernel::Packed, Bf16Kernel::Packed]
        });
        assert_eq!([kernel(641, LARGE), kernel(500, LARGE - 1)], [Bf16Kernel::Unpacked; 2]);
        assert_eq!([kernel(0, 5), kernel(16, 5), kernel(17, 5)], {
            [Bf16Kernel::Widened, Bf16Kernel::Widened, Bf16Kernel::Unpacked]
        });
    }

    #[test]
    fn the_fixed_table_needs_nothing_that_this_machine_lacks() {
        assert!(Choices::fixed().used().into_iter().all(Bf16Kernel::is_available));
        assert!(!Choices::fixed().used().contains(&Bf16Kernel::Tiles));
        if !Bf16Kernel::Amx.is_available() {
            println!("skipped: AMX is refused where the CPU has it; this CPU has none");
            assert_eq!(install(Some(Choices::all(Bf16Kernel::Amx))), Err("amx".into()));
        }
    }
}
