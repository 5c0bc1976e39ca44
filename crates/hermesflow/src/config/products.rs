//! The precision of the matrix products of training.

use hermesflow_models::Products;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::model::DTypeName;

/// Precision of the matrix products of training.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ProductsName {
    /// `bf16` where `model.dtype` is and the device trains faster so, else `f32`; config.yaml says which was chosen.
    Auto,
    /// 32 bits.
    F32,
    /// Operands rounded to bf16, sums in f32.
    Bf16,
}

impl ProductsName {
    /// With nothing left open.
    pub(super) fn resolved(self, model: DTypeName, multiplies_bf16: impl Fn() -> bool) -> Self {
        match self {
            Self::Auto if model == DTypeName::BF16 && multiplies_bf16() => Self::Bf16,
            Self::Auto => Self::F32,
            chosen => chosen,
        }
    }
}

impl From<ProductsName> for Products {
    fn from(name: ProductsName) -> Self {
        match name {
            ProductsName::Auto | ProductsName::F32 => Self::F32,
            ProductsName::Bf16 => Self::Bf16,
        }
    }
}
