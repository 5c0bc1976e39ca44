//! Matrix products.

pub(crate) mod f32_results;
pub(crate) mod half_weight;
pub(crate) mod packed;
pub mod training;
pub(crate) mod unpacked;

pub use half_weight::multiplies_bf16;
pub use training::Products;
