//! The check that weights are finite: NaN, infinity, and values that the wanted type cannot hold are refused when a file is
//! read.

use std::path::Path;

use candle_core::DType;
use half::{bf16, f16};
use rayon::prelude::*;

use crate::weights::error::Error;

/// Values per run, which are checked without a branch.
const TOGETHER: usize = 1 << 14;

/// Checks values (little-endian bytes of the type `found`) to be finite, also after a conversion to `wanted`.
///
/// # Errors
/// Names the file, the tensor and its first value that is not.
pub(crate) fn check(path: &Path, tensor: &str, bytes: &[u8], (found, wanted): (DType, DType)) -> Result<(), Error> {
    let beyond = limit(wanted);
    let first = match found {
        DType::F32 => first(bytes, 4, beyond, |at| f64::from(f32::from_le_bytes([at[0], at[1], at[2], at[3]]))),
        DType::BF16 => first(bytes, 2, beyond, |at| bf16::from_le_bytes([at[0], at[1]]).to_f64()),
        DType::F16 => first(bytes, 2, beyond, |at| f16::from_le_bytes([at[0], at[1]]).to_f64()),
        DType::F64 => first(bytes, 8, beyond, |at| at.try_into().map_or(f64::NAN, f64::from_le_bytes)),
        _ => None,
    };
    let Some((number, value)) = first else { return Ok(()) };
    let message = match value.is_finite() {
        true => format!("value {number} is {value:e}, more than {wanted:?} holds; use bf16 or f32"),
        false => {
            format!("value {number} is {value}, not a number that a model computes with; download or export it again")
        }
    };
    Err(Error::Values { path: path.into(), tensor: tensor.into(), message })
}

/// The smallest magnitude that becomes infinity in a type.
fn limit(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => 65_520.0,
        DType::BF16 => 3.396_177_5e38,
        DType::F32 => 3.402_823_567_797_336_6e38,
        _ => f64::INFINITY,
    }
}

/// The first value whose magnitude is not below the limit, with its index from 0.
fn first(bytes: &[u8], size: usize, beyond: f64, value: impl Fn(&[u8]) -> f64 + Sync) -> Option<(usize, f64)> {
    let is_good = |at: &[u8]| value(at).abs() < beyond; // false for NaN
    let broken = bytes.par_chunks(size * TOGETHER).position_first(|run| {
        // Without a branch per value.
        !run.chunks_exact(size).fold(true, |good, at| good & is_good(at))
    })?;
    let run = bytes.chunks(size * TOGETHER).nth(broken)?;
    let at = run.chunks_exact(size).position(|at| !is_good(at))?;
    Some((broken * TOGETHER + at, value(&run[at * size..][..size])))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn problem(values: &[f32], types: (DType, DType)) -> Option<String> {
        let bytes: Vec<u8> = match types.0 {
            DType::F32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            DType::BF16 => values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect(),
            DType::F16 => values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect(),
            _ => values.iter().flat_map(|value| f64::from(*value).to_le_bytes()).collect(),
        };
        check(Path::new("x.bin"), "a.weight", &bytes, types).err().map(|error| error.to_string())
    }

    #[test]
    fn what_is_no_number_is_named_with_its_place() {
        let types = [DType::F32, DType::BF16, DType::F16, DType::F64];
        for found in types {
            for wanted in types {
                let mut values = vec![0.5f32; TOGETHER + 9];
                assert_eq!(problem(&values, (found, wanted)), None, "{found:?} as {wanted:?}");
                for (at, value) in [(TOGETHER + 3, f32::NAN), (7, f32::NEG_INFINITY), (7, f32::INFINITY)] {
                    values[at] = value;
                    let said = problem(&values, (found, wanted)).unwrap();
                    let expected = format!("x.bin: a.weight: value {at} is {value}");
                    assert!(said.starts_with(&expected), "{found:?} as {wanted:?}: {said}");
                }
            }
        }
    }

    #[test]
    fn a_type_refuses_what_it_would_round_to_infinity() {
        for (value, dtype, fits) in [
            (65_519.0, DType::F16, true),
            (65_520.0, DType::F16, false),
            (f32::MAX, DType::BF16, false),
            (3.39e38, DType::BF16, true),
            (f32::MAX, DType::F32, true),
        ] {
            let as_dtype =
                if dtype == DType::F16 { f16::from_f32(value).to_f32() } else { bf16::from_f32(value).to_f32() };
            assert!(dtype == DType::F32 || as_dtype.is_finite() == fits, "{value} as {dtype:?}");
            assert_eq!(problem(&[1.0, value], (DType::F32, dtype)).is_none(), fits, "{value} as {dtype:?}");
        }
    }
}
