//! Vectors of sixteen f32 numbers: a register of AVX-512, or an array that the compiler spreads over smaller registers.

/// Numbers in a vector.
pub(super) const LANES: usize = 16;

/// A vector of sixteen numbers.
pub(super) trait Lanes: Copy {
    /// Sixteen numbers from memory.
    ///
    /// # Safety
    /// Sixteen numbers can be read, and the CPU has the instructions.
    unsafe fn load(at: *const f32) -> Self;
    /// Writes the numbers to memory.
    ///
    /// # Safety
    /// Sixteen numbers can be written, and the CPU has the instructions.
    unsafe fn store(self, at: *mut f32);
    /// `self + other`.
    ///
    /// # Safety
    /// The CPU has the instructions.
    unsafe fn add(self, other: Self) -> Self;
    /// `self - other`.
    ///
    /// # Safety
    /// The CPU has the instructions.
    unsafe fn sub(self, other: Self) -> Self;
    /// `self · factor`.
    ///
    /// # Safety
    /// The CPU has the instructions.
    unsafe fn times(self, factor: f32) -> Self;
    /// `self · factor + other`, rounded once (AVX-512) or twice.
    ///
    /// # Safety
    /// The CPU has the instructions.
    unsafe fn times_add(self, factor: f32, other: Self) -> Self;
}

impl Lanes for [f32; 16] {
    #[inline(always)]
    unsafe fn load(at: *const f32) -> Self {
        // SAFETY: by the contract of this function.
        unsafe { at.cast::<Self>().read() }
    }

    #[inline(always)]
    unsafe fn store(self, at: *mut f32) {
        // SAFETY: by the contract of this function.
        unsafe { at.cast::<Self>().write(self) }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        std::array::from_fn(|i| self[i] + other[i])
    }

    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        std::array::from_fn(|i| self[i] - other[i])
    }

    #[inline(always)]
    unsafe fn times(self, factor: f32) -> Self {
        self.map(|value| value * factor)
    }

    #[inline(always)]
    unsafe fn times_add(self, factor: f32, other: Self) -> Self {
        std::array::from_fn(|i| self[i] * factor + other[i])
    }
}

#[cfg(target_arch = "x86_64")]
const _: () = {
    use std::arch::x86_64::*;

    impl Lanes for __m512 {
        #[inline(always)]
        unsafe fn load(at: *const f32) -> Self {
            // SAFETY: by the contract of this function.
            unsafe { _mm512_loadu_ps(at) }
        }

        #[inline(always)]
        unsafe fn store(self, at: *mut f32) {
            // SAFETY: by the contract of this function.
            unsafe { _mm512_storeu_ps(at, self) }
        }

        #[inline(always)]
        unsafe fn add(self, other: Self) -> Self {
            // SAFETY: by the contract of this function.
            unsafe { _mm512_add_ps(self, other) }
        }

        #[inline(always)]
        unsafe fn sub(self, other: Self) -> Self {
            // SAFETY: by the contract of this function.
            unsafe { _mm512_sub_ps(self, other) }
        }

        #[inline(always)]
        unsafe fn times(self, factor: f32) -> Self {
            // SAFETY: by the contract of this function.
            unsafe { _mm512_mul_ps(self, _mm512_set1_ps(factor)) }
        }

        #[inline(always)]
        unsafe fn times_add(self, factor: f32, other: Self) -> Self {
            // SAFETY: by the contract of this function.
            unsafe { _mm512_fmadd_ps(self, _mm512_set1_ps(factor), other) }
        }
    }
};

/// Declares a function that runs `$body`, generic over [`Lanes`], with the widest vectors of this CPU. `$body` must be an
/// `unsafe fn` with the same arguments, marked `#[inline(always)]`.
macro_rules! each_cpu {
    ($(#[$meta:meta])* $vis:vis unsafe fn $name:ident($($arg:ident: $type:ty),* $(,)?) = $body:ident) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        $vis unsafe fn $name($($arg: $type),*) {
            #[cfg(target_arch = "x86_64")]
            {
                /// # Safety
                /// As the function's, on a CPU with AVX-512.
                #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")]
                #[allow(clippy::too_many_arguments)]
                unsafe fn avx512($($arg: $type),*) {
                    // SAFETY: by the contract of the function.
                    unsafe { $body::<std::arch::x86_64::__m512>($($arg),*) }
                }
                /// # Safety
                /// As the function's, on a CPU with AVX2 and FMA.
                #[target_feature(enable = "avx2,fma")]
                #[allow(clippy::too_many_arguments)]
                unsafe fn avx2($($arg: $type),*) {
                    // SAFETY: by the contract of the function.
                    unsafe { $body::<[f32; 16]>($($arg),*) }
                }
                if $crate::simd::avx512() {
                    // SAFETY: the instruction sets were just detected; the rest by the contract of the function.
                    return unsafe { avx512($($arg),*) };
                }
                if $crate::simd::avx2() {
                    // SAFETY: as above.
                    return unsafe { avx2($($arg),*) };
                }
            }
            // SAFETY: by the contract of the function.
            unsafe { $body::<[f32; 16]>($($arg),*) }
        }
    };
}
pub(super) use each_cpu;
