//! Measurements for `hermesflow bench`: matrix products counted, time by part of a model, and what a device can do at most.

pub(crate) mod count;
pub(crate) mod profile;

mod ceilings;

pub use ceilings::{copies, large_product};
pub use count::{ProductCount, products};
pub use profile::{Part, Profile, profile};
