//! Where a convolution writes: the output, with bias and residual added.

use super::lanes::{LANES, Lanes};
use crate::storage::SharedPointer;

/// The output of a convolution with what is added to each result.
#[derive(Clone, Copy)]
pub(super) struct Target<'a> {
    /// `[b, oh, ow, o]`
    pub(super) y: SharedPointer,
    /// `[o]`
    pub(super) bias: &'a [f32],
    /// `[b, oh, ow, o]`
    pub(super) residual: Option<&'a [f32]>,
    pub(super) o: usize,
}

impl Target<'_> {
    /// Writes the channels from `first` on of a pixel (counted over the whole batch): `values` plus bias and residual. Values
    /// beyond the last channel are left out.
    ///
    /// # Safety
    /// The pixel lies in the output, and no other thread touches these channels of it.
    #[inline(always)]
    pub(super) unsafe fn write(&self, pixel: usize, first: usize, values: &[f32]) {
        let count = values.len().min(self.o - first);
        let at = pixel * self.o + first;
        // SAFETY: by the contract of this function.
        let y = unsafe { std::slice::from_raw_parts_mut(self.y.at(at), count) };
        let biased = values.iter().zip(&self.bias[first..]).map(|(value, bias)| value + bias);
        match self.residual {
            Some(residual) => {
                y.iter_mut().zip(biased.zip(&residual[at..])).for_each(|(y, (value, add))| *y = value + add);
            }
            None => y.iter_mut().zip(biased).for_each(|(y, value)| *y = value),
        }
    }

    /// [`Target::write`] for a vector of values.
    ///
    /// # Safety
    /// As [`Target::write`], on a CPU that has the vector's instructions.
    #[inline(always)]
    pub(super) unsafe fn write_lanes<L: Lanes>(&self, pixel: usize, first: usize, value: L) {
        // SAFETY: by the contract of this function; whole vectors are read and written only where there are as many channels.
        unsafe {
            if first + LANES > self.o {
                let mut values = [0f32; LANES];
                value.store(values.as_mut_ptr());
                return self.write(pixel, first, &values);
            }
            let at = pixel * self.o + first;
            let value = value.add(L::load(self.bias[first..].as_ptr()));
            let value = match self.residual {
                Some(residual) => value.add(L::load(residual[at..].as_ptr())),
                None => value,
            };
            value.store(self.y.at(at));
        }
    }
}
