//! What [`super::gpu`](super) is in a build without CUDA: there is no GPU.

use candle_core::Device;

use super::name::{DeviceName, Error};

pub(super) fn any() -> bool {
    false
}

pub(super) fn further(number: usize, _: usize) -> usize {
    number
}

pub(super) fn open(number: usize) -> Result<Device, Error> {
    Err(Error::NotBuilt(DeviceName::Cuda(number)))
}

pub(super) fn capability_of(_: usize) -> Option<(i32, i32)> {
    None
}

pub(super) fn capability(_: &Device) -> Option<(i32, i32)> {
    None
}

pub(super) fn name(_: &Device) -> Option<String> {
    None
}

pub(super) fn memory(_: &Device) -> Option<(u64, u64)> {
    None
}

pub(super) fn reset_peak(_: &Device) {}

pub(super) fn peak(_: &Device) -> Option<u64> {
    None
}
