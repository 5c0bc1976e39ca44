//! Matrix products, and the one table that says which kernel computes `x Wᵀ`.
//!
//! | device | weight `W [out, in]` | rows of `x` | kernel |
//! |---|---|---|---|
//! | CPU | f32, `in` ≥ 256, ≥ 2¹⁸ elements, AVX-512 | ≤ 96 | [`unpacked`]: the weight is multiplied where it lies |
//! | CPU | f32 | 2 … 192 | [`f32_weight`]: `yᵀ = W xᵀ`, then a transposition |
//! | CPU | f32, ≥ 2²⁰ elements | 193 … 640 | the same for 128 rows at a time |
//! | CPU | f32 | any other | [`product`] into a result that already holds the bias |
//! | CPU | bf16 | as [`choice`] says; without a measurement < 384 on AVX512-BF16 | [`unpacked`] of `x` rounded to bf16 |
//! | CPU | bf16 | the same; without a measurement ≥ 384 on AVX512-BF16 or AMX | [`packed`] in bf16 |
//! | CPU | f16, and bf16 where [`choice`] says `widened` | ≤ 192 | [`half_weight`]: 2¹⁷ elements widened to f32 at a time, `yᵀ = W xᵀ` |
//! | CPU | the same | > 192 | [`half_weight`]: 2²⁰ elements widened to f32 at a time |
//! | CPU, training in bf16 | f32 or bf16 | any | [`packed`] in bf16 ([`training`]), by what [`choice`] says |
//! | any other, or `HERMESFLOW_CPU=plain` | any | any | candle's operators ([`crate::ops::linear()`]), [`f32_results`] |
//!
//! [`kernel`] is that table in code: whoever multiplies asks it. A product of two f32 matrices that lie in any way
//! ([`product`]) runs in [`packed`] where [`packs_f32`] says so, else in the `gemm` crate ([`operand`]).
//!
//! In this module `n` is the number of rows of `x`, and a matrix product `[m, k] [k, n]` has its sizes in the order
//! `(m, n, k)`.

use candle_core::{DType, Tensor};

use self::choice::Bf16Kernel;
use self::packed::Engine;
use crate::device::uses_kernels;
use crate::simd;

pub mod calibration;
pub mod choice;
pub(crate) mod f32_results;
pub(crate) mod f32_weight;
pub(crate) mod half_weight;
pub(crate) mod operand;
pub(crate) mod packed;
pub(crate) mod product;
pub(crate) mod training;
pub(crate) mod unpacked;

/// Most rows of an f32 weight that are multiplied without packing.
const UNPACKED_F32_ROWS: usize = 96;
/// Fewest elements of such a weight: below, reading the weight is not what takes the time.
const UNPACKED_F32_WEIGHT: usize = 1 << 18;
/// Fewest inputs of such a weight.
const UNPACKED_F32_DEPTH: usize = 256;
/// Most rows that go through the transposed product: packing the weight for the other one would cost 3 to 10 times as
/// much as the product itself (measured for 20 rows).
const TRANSPOSED_ROWS: usize = 192;
/// Most rows that do so in strips, for a weight of at least [`STRIPS_WEIGHT`] elements.
const STRIPS_ROWS: usize = 640;
/// Fewest elements of such a weight.
const STRIPS_WEIGHT: usize = 1 << 20;
/// Rows of a strip.
const STRIP: usize = 128;
/// Elements of a 16-bit weight that are widened at a time for few rows: what a core's cache holds.
const WIDENED: usize = 1 << 17;
/// Elements that are widened at a time for many rows, where `x` must not be packed too often.
const WIDENED_MANY: usize = 1 << 20;
/// Least size of every dimension from which the packed f32 kernel is faster than `gemm`.
const PACKED_F32: usize = 768;

/// A way to compute `x Wᵀ + b`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kernel {
    /// [`unpacked`].
    Unpacked,
    /// [`packed`] in bf16.
    Packed {
        /// What multiplies the packed operands.
        engine: Engine,
    },
    /// `yᵀ = W xᵀ` for so many rows of `x` at a time.
    Transposed {
        /// Rows of `x`.
        strip: usize,
    },
    /// [`product`] into the result.
    Direct,
    /// Blocks of a 16-bit weight in f32, one after the other.
    Widened {
        /// Weight elements of a block, about.
        block: usize,
        /// Whether a block's product is `yᵀ = W xᵀ`.
        transposed: bool,
    },
    /// candle's operators.
    AnyDevice,
}

/// The kernel for `rows` rows of f32 and a weight `[out, in]` on its device.
pub(crate) fn kernel(rows: usize, weight: &Tensor) -> Kernel {
    match weight.dims() {
        &[out, input] if uses_kernels(weight.device()) => cpu_kernel(rows, weight.dtype(), out * input, input),
        _ => Kernel::AnyDevice,
    }
}

/// The rows of the table for the CPU: the kernel for `rows` rows of f32 and a weight of `elements` elements with `input`
/// columns in `dtype`.
pub(crate) fn cpu_kernel(rows: usize, dtype: DType, elements: usize, input: usize) -> Kernel {
    match dtype {
        DType::F32 => match rows {
            0..=UNPACKED_F32_ROWS
                if input >= UNPACKED_F32_DEPTH && elements >= UNPACKED_F32_WEIGHT && simd::avx512f() =>
            {
                Kernel::Unpacked
            }
            2..=TRANSPOSED_ROWS => Kernel::Transposed { strip: rows },
            2..=STRIPS_ROWS if elements >= STRIPS_WEIGHT => Kernel::Transposed { strip: STRIP },
            _ => Kernel::Direct,
        },
        DType::BF16 => bf16_kernel(choice::current().weight(rows, elements), rows),
        DType::F16 => widened(rows),
        _ => Kernel::AnyDevice,
    }
}

/// The kernel that a choice is for `rows` rows and a weight held in bf16.
pub(crate) fn bf16_kernel(chosen: Bf16Kernel, rows: usize) -> Kernel {
    match chosen {
        Bf16Kernel::Widened => widened(rows),
        Bf16Kernel::Unpacked => Kernel::Unpacked,
        packed => Kernel::Packed { engine: packed.engine() },
    }
}

/// The kernel for a weight in 16 bits that is widened to f32.
fn widened(rows: usize) -> Kernel {
    match rows {
        0..=TRANSPOSED_ROWS => Kernel::Widened { block: WIDENED, transposed: true },
        _ => Kernel::Widened { block: WIDENED_MANY, transposed: false },
    }
}

/// Whether the packed kernel multiplies contiguous f32 matrices of these sizes faster than `gemm`, on all threads.
pub(crate) fn packs_f32((m, n, k): (usize, usize, usize)) -> bool {
    m.min(n).min(k) >= PACKED_F32 && simd::bf16()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_what_its_head_says() {
        let f32s = |rows: usize, out: usize, input: usize| cpu_kernel(rows, DType::F32, out * input, input);
        let unpacked = if simd::avx512f() { Kernel::Unpacked } else { Kernel::Transposed { strip: 96 } };
        assert_eq!(f32s(96, 1024, 256), unpacked);
        assert_eq!(f32s(96, 1024, 255), Kernel::Transposed { strip: 96 });
        assert_eq!(f32s(96, 1023, 256), Kernel::Transposed { strip: 96 });
        assert_eq!(f32s(97, 1024, 1024), Kernel::Transposed { strip: 97 });
        assert_eq!(f32s(193, 1024, 1024), Kernel::Transposed { strip: 128 });
        assert_eq!(f32s(193, 1023, 1024), Kernel::Direct);
        assert_eq!(f32s(641, 1024, 1024), Kernel::Direct);
        assert_eq!(f32s(1, 10, 10), Kernel::Direct);
        assert_eq!(f32s(0, 10, 10), Kernel::Direct);
        let half = |rows, dtype| cpu_kernel(rows, dtype, 100, 10);
        let (few, many) = (
            Kernel::Widened { block: 1 << 17, transposed: true },
            Kernel::Widened { block: 1 << 20, transposed: false },
        );
        assert_eq!([half(192, DType::F16), half(193, DType::F16)], [few, many]);
        if choice::forced().is_none() {
            let engine = choice::Choices::fixed().training.engine();
            let brief = if simd::bf16() { [Kernel::Unpacked, Kernel::Packed { engine }] } else { [many, many] };
            assert_eq!([half(383, DType::BF16), half(384, DType::BF16)], brief);
        }
        assert_eq!(half(1, DType::F64), Kernel::AnyDevice);
        assert!(!packs_f32((768, 768, 767)) && packs_f32((768, 768, 768)) == simd::bf16());
    }
}
