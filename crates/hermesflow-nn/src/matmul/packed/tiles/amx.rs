//! The tile registers of Intel's AMX (Xeon of the fourth generation and later): `TDPBF16PS`.
//!
//! All that is special to the hardware is here. Rust has no stable intrinsics for it, so it is written as assembly.

use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
use std::sync::OnceLock;

use super::tile::{DEPTH, LINES};
use super::unit::TileUnit;

/// The tile registers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Amx;

/// Bytes between two lines of a tile in memory.
const STRIDE: usize = 64;
/// Bytes between two lines of a block of sums, which is two tiles wide.
const SUMS_STRIDE: usize = 2 * 64;

/// The operand of `LDTILECFG`: how large each tile register is.
#[repr(C, align(64))]
struct TileConfiguration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    /// Bytes of a line.
    line_bytes: [u16; 16],
    lines: [u8; 16],
}

/// All eight registers at their full size.
static CONFIGURATION: TileConfiguration = TileConfiguration {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    line_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    lines: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

/// Whether the CPU has the tile registers with products of bf16, and the system lets this process use them. The first call asks
/// the system.
pub(super) fn available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| in_the_cpu() && enabled_by_the_system() && permitted())
}

/// Whether the CPU has AMX-TILE and AMX-BF16, with registers of the expected size.
fn in_the_cpu() -> bool {
    const EXTENDED: u32 = 7;
    const TILES: u32 = 0x1d;
    const BF16: u32 = 1 << 22;
    const TILE: u32 = 1 << 24;
    if __cpuid(0).eax < TILES {
        return false;
    }
    let (features, palette) = (__cpuid_count(EXTENDED, 0).edx, __cpuid_count(TILES, 1));
    let line_bytes = palette.ebx & 0xffff;
    let (registers, lines) = (palette.ebx >> 16, palette.ecx & 0xffff);
    features & BF16 != 0
        && features & TILE != 0
        && (line_bytes, registers, lines) == (2 * DEPTH as u32, 8, LINES as u32)
}

/// Whether the system saves the registers when it changes threads.
fn enabled_by_the_system() -> bool {
    #[target_feature(enable = "xsave")]
    fn enabled() -> u64 {
        // SAFETY: the CPU has XSAVE, and the system uses it.
        unsafe { _xgetbv(0) }
    }
    const STATE: u64 = 0b11 << 17;
    // SAFETY: asked for just before; the standard library says so only where the system uses XSAVE.
    std::arch::is_x86_feature_detected!("xsave") && unsafe { enabled() } & STATE == STATE
}

/// Asks the system for permission, which holds for all threads of the process.
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    unsafe extern "C" {
        fn syscall(number: std::ffi::c_long, ...) -> std::ffi::c_long;
    }
    const ARCH_PRCTL: std::ffi::c_long = 158;
    const REQUEST_PERMISSION: std::ffi::c_long = 0x1023;
    const TILE_DATA: std::ffi::c_long = 18;
    // SAFETY: arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) touches no memory of this process.
    unsafe { syscall(ARCH_PRCTL, REQUEST_PERMISSION, TILE_DATA) == 0 }
}

/// Other systems ask in ways that this program does not know.
#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}

impl TileUnit for Amx {
    #[inline(never)]
    unsafe fn enter(self) {
        // SAFETY: the CPU has the instruction by the contract; it reads 64 bytes.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const CONFIGURATION, options(nostack, readonly)) };
    }

    #[inline(never)]
    unsafe fn leave(self) {
        // SAFETY: the CPU has the instruction by the contract. Without it the system would save the registers at every change
        // of threads.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }

    #[inline(never)]
    unsafe fn block(
        self,
        [left, other_left]: [*const u32; 2],
        [right, other_right]: [*const u32; 2],
        steps: usize,
        sums: *mut f32,
        more: bool,
        tall: bool,
    ) {
        debug_assert!(steps > 0);
        // SAFETY: the thread has entered, and reads and writes stay within the operands, by the contract of the trait.
        unsafe {
            if tall {
                asm!(
                    "test {more:e}, {more:e}",
                    "jnz 2f",
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "tilezero tmm2",
                    "tilezero tmm3",
                    "jmp 3f",
                    "2:",
                    "tileloadd tmm0, [{sums} + {sums_stride}*1]",
                    "tileloadd tmm1, [{sums} + {sums_stride}*1 + 64]",
                    "tileloadd tmm2, [{sums} + {sums_stride}*1 + 2048]",
                    "tileloadd tmm3, [{sums} + {sums_stride}*1 + 2112]",
                    "3:",
                    "tileloadd tmm4, [{left} + {stride}*1]",
                    "tileloadd tmm6, [{right} + {stride}*1]",
                    "tileloadd tmm7, [{other_right} + {stride}*1]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "tileloadd tmm5, [{other_left} + {stride}*1]",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    "tdpbf16ps tmm3, tmm5, tmm7",
                    "add {left}, 1024",
                    "add {other_left}, 1024",
                    "add {right}, 1024",
                    "add {other_right}, 1024",
                    "dec {steps}",
                    "jnz 3b",
                    "tilestored [{sums} + {sums_stride}*1], tmm0",
                    "tilestored [{sums} + {sums_stride}*1 + 64], tmm1",
                    "tilestored [{sums} + {sums_stride}*1 + 2048], tmm2",
                    "tilestored [{sums} + {sums_stride}*1 + 2112], tmm3",
                    left = inout(reg) left => _,
                    other_left = inout(reg) other_left => _,
                    right = inout(reg) right => _,
                    other_right = inout(reg) other_right => _,
                    steps = inout(reg) steps => _,
                    sums = in(reg) sums,
                    stride = in(reg) STRIDE,
                    sums_stride = in(reg) SUMS_STRIDE,
                    more = in(reg) u32::from(more),
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                );
            } else {
                asm!(
                    "test {more:e}, {more:e}",
                    "jnz 2f",
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "jmp 3f",
                    "2:",
                    "tileloadd tmm0, [{sums} + {sums_stride}*1]",
                    "tileloadd tmm1, [{sums} + {sums_stride}*1 + 64]",
                    "3:",
                    "tileloadd tmm4, [{left} + {stride}*1]",
                    "tileloadd tmm6, [{right} + {stride}*1]",
                    "tileloadd tmm7, [{other_right} + {stride}*1]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "add {left}, 1024",
                    "add {right}, 1024",
                    "add {other_right}, 1024",
                    "dec {steps}",
                    "jnz 3b",
                    "tilestored [{sums} + {sums_stride}*1], tmm0",
                    "tilestored [{sums} + {sums_stride}*1 + 64], tmm1",
                    left = inout(reg) left => _,
                    right = inout(reg) right => _,
                    other_right = inout(reg) other_right => _,
                    steps = inout(reg) steps => _,
                    sums = in(reg) sums,
                    stride = in(reg) STRIDE,
                    sums_stride = in(reg) SUMS_STRIDE,
                    more = in(reg) u32::from(more),
                    out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                );
            }
        }
    }
}
