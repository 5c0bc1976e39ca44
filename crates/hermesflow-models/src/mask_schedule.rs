//! Mask schedules: the share of an image's tokens that is masked at time t, in decoding and in training.
//!
//! Show-o has four (`models/sampling.py`), each of which falls from 1 at t = 0 to about 0 at t = 1:
//!
//! | name | share |
//! |---|---|
//! | `cosine` | `cos(πt/2)` |
//! | `linear` | `1 − t` |
//! | `pow2`, `pow0.5`, … | `1 − t^exponent` |
//! | `sigmoid` | `(σ(end/τ) − σ((start + t·(end − start))/τ)) / (σ(end/τ) − σ(start/τ))` |
//!
//! As in Show-o, the last three are clipped to [1e-6, 1] (sigmoid: to [clip_min, 1]).

use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// The share of tokens that is masked at time t.
///
/// In a configuration it is written as its name, or with parameters as in Show-o's `mask_schedule` section: `{schedule:
/// sigmoid, params: {start: -3, end: 3, tau: 1}}`. Default: `cosine`.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub enum MaskSchedule {
    /// `cos(πt/2)`: the schedule of the released models.
    #[default]
    Cosine,
    /// `1 − t`
    Linear,
    /// `1 − t^exponent`, with this exponent, which is above 0.
    Pow(f64),
    /// A section of the logistic curve.
    Sigmoid(SigmoidParams),
}

/// Which piece of the logistic curve.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SigmoidParams {
    /// Point of the logistic curve at which the schedule starts.
    ///
    /// Default: -3.0.
    /// Source: Show-o, `models/sampling.py`.
    pub start: f64,
    /// Point of the logistic curve at which the schedule ends.
    ///
    /// Default: 3.0.
    /// Source: Show-o, `models/sampling.py`.
    pub end: f64,
    /// Temperature τ by which points of the curve are divided.
    ///
    /// Default: 1.0.
    /// Source: Show-o, `models/sampling.py`.
    #[schemars(range(min = 0.0))]
    pub tau: f64,
    /// Smallest share that the schedule gives.
    ///
    /// Default: 1e-6.
    /// Source: Show-o, `models/sampling.py`.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub clip_min: f64,
}

impl Default for SigmoidParams {
    fn default() -> Self {
        Self { start: -3.0, end: 3.0, tau: 1.0, clip_min: 1e-6 }
    }
}

/// The formulas, once for both precisions.
macro_rules! ratio {
    ($(#[$doc:meta])* $name:ident, $float:ident) => {
        $(#[$doc])*
        pub fn $name(self, t: $float) -> $float {
            match self {
                Self::Cosine => (t * std::$float::consts::PI * 0.5).cos(),
                Self::Linear => (1.0 - t).clamp(1e-6, 1.0),
                Self::Pow(exponent) => (1.0 - t.powf(exponent as $float)).clamp(1e-6, 1.0),
                Self::Sigmoid(SigmoidParams { start, end, tau, clip_min }) => {
                    let sigmoid = |x: $float| 1.0 / (1.0 + (-x).exp());
                    let (first, last) = (sigmoid((start / tau) as $float), sigmoid((end / tau) as $float));
                    let here = sigmoid((t * (end - start) as $float + start as $float) / tau as $float);
                    ((last - here) / (last - first)).clamp(clip_min as $float, 1.0)
                }
            }
        }
    };
}

impl MaskSchedule {
    ratio!(
        /// The share that is masked at time `t` in [0, 1], computed in f32 in the order of Show-o's code. Decoding
        /// counts with it, because rounding decides some counts (16·cos(π/3) is 7.9999995 in f32).
        /// The share that is masked at time `t` in [0, 1], in f32 and in the original's order of operations: what
        /// decoding counts with (16·cos(π/3) is 7.9999995 there).
        ratio_f32,
        f32
    );

    ratio!(
        /// The share that is masked at time `t` in [0, 1], computed in f64; training counts with it.
        /// The share that is masked at time `t` in [0, 1]: what training counts with.
        ratio,
        f64
    );

    /// Checks the parameters.
    ///
    /// # Errors
    /// Says which parameter makes no schedule, and what it must be.
    pub fn validate(self) -> Result<(), String> {
        match self {
            Self::Cosine | Self::Linear => Ok(()),
            Self::Pow(exponent) if exponent.is_finite() && exponent > 0.0 => Ok(()),
            Self::Pow(exponent) => Err(format!("pow{exponent}: the exponent must be above 0, as in pow2")),
            Self::Sigmoid(SigmoidParams { start, end, tau, clip_min }) => {
                if !(tau.is_finite() && tau > 0.0) {
                    return Err(format!("sigmoid: tau is {tau}; it must be above 0"));
                }
                if !(0.0..=1.0).contains(&clip_min) {
                    return Err(format!("sigmoid: clip_min is {clip_min}; it must be between 0 and 1"));
                }
                let sigmoid = |x: f64| 1.0 / (1.0 + (-x as f32).exp());
                if start < end && sigmoid(start / tau) < sigmoid(end / tau) {
                    return Ok(());
                }
                Err(format!(
                    "sigmoid: the curve does not rise from start {start} to end {end} with tau {tau}; use a larger end"
                ))
            }
        }
    }
}

impl fmt::Display for MaskSchedule {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Cosine => f.write_str("cosine"),
            Self::Linear => f.write_str("linear"),
            Self::Pow(exponent) => write!(f, "pow{exponent}"),
            Self::Sigmoid(_) => f.write_str("sigmoid"),
        }
    }
}

impl FromStr for MaskSchedule {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let schedule = match (name, name.strip_prefix("pow").map(str::parse)) {
            ("cosine", _) => Self::Cosine,
            ("linear", _) => Self::Linear,
            ("sigmoid", _) => Self::Sigmoid(SigmoidParams::default()),
            (_, Some(Ok(exponent))) => Self::Pow(exponent),
            _ => {
                return Err(format!(
                    "{name:?} is no mask schedule; use cosine, linear, pow2 (any exponent) or sigmoid"
                ));
            }
        };
        schedule.validate().map(|()| schedule)
    }
}

/// The forms of a schedule in a configuration.
#[derive(Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "a mask schedule is cosine, linear, pow2 (any exponent), sigmoid, or {schedule: sigmoid, params: \
                 {start, end, tau, clip_min}}"
)]
enum Written {
    Name(String),
    Section {
        schedule: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        params: Option<SigmoidParams>,
    },
}

impl JsonSchema for MaskSchedule {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "MaskSchedule".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let name = json_schema!({
            "type": "string",
            "pattern": "^(cosine|linear|sigmoid|pow[0-9.]+)$",
            "description": "cosine, linear, sigmoid, or pow2 (any exponent)",
        });
        let section = json_schema!({
            "type": "object",
            "description": "sigmoid with its parameters",
            "properties": { "schedule": name.clone(), "params": generator.subschema_for::<Option<SigmoidParams>>() },
            "required": ["schedule"],
        });
        json_schema!({ "oneOf": [name, section] })
    }
}

impl From<MaskSchedule> for Written {
    fn from(schedule: MaskSchedule) -> Self {
        match schedule {
            MaskSchedule::Sigmoid(params) if params != SigmoidParams::default() => {
                Self::Section { schedule: schedule.to_string(), params: Some(params) }
            }
            _ => Self::Name(schedule.to_string()),
        }
    }
}

impl TryFrom<Written> for MaskSchedule {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        let (name, params) = match written {
            Written::Name(schedule) => (schedule, None),
            Written::Section { schedule, params } => (schedule, params),
        };
        match (name.parse()?, params) {
            (schedule, None) => Ok(schedule),
            (Self::Sigmoid(_), Some(params)) => {
                let schedule = Self::Sigmoid(params);
                schedule.validate().map(|()| schedule)
            }
            (schedule, Some(_)) => Err(format!("{schedule} has no params, only sigmoid has; remove them")),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const TIMES: [f32; 8] = [0.0, 0.0625, 0.25, 1.0 / 3.0, 0.5, 0.75, 0.9, 1.0];

    /// The original's formulas in torch 2.7.1, f32.
    const TORCH: [(&str, [f32; 8]); 6] = [
        (
            "cosine",
            [1.0, 0.995_184_7, 0.923_879_5, 0.866_025_4, 0.707_106_77, 0.382_683_43, 0.156_434_49, -4.371_139e-8],
        ),
        ("linear", [1.0, 0.9375, 0.75, 0.666_666_6, 0.5, 0.25, 0.100_000_024, 1e-6]),
        ("pow2", [1.0, 0.996_093_75, 0.9375, 0.888_888_9, 0.75, 0.4375, 0.190_000_06, 1e-6]),
        ("pow0.5", [1.0, 0.75, 0.5, 0.422_649_74, 0.292_893_23, 0.133_974_61, 0.051_316_68, 1e-6]),
        ("pow3", [1.0, 0.999_755_86, 0.984_375, 0.962_963, 0.875, 0.578_125, 0.271_000_1, 1e-6]),
        ("sigmoid", [1.0, 0.977_770_6, 0.850_853_56, 0.755_271_55, 0.5, 0.149_146_5, 0.039_492_838, 1e-6]),
    ];

    #[test]
    fn shares_match_torch() {
        let close = |name: &str, schedule: MaskSchedule, expected: [f32; 8]| {
            for (t, expected) in TIMES.into_iter().zip(expected) {
                let ours = schedule.ratio_f32(t);
                assert!((ours - expected).abs() <= 1.2e-7, "{name}({t}) is {ours}, not {expected}");
                let double = schedule.ratio(f64::from(t));
                assert!((double - f64::from(expected)).abs() <= 2e-7, "{name}({t}) is {double}, not {expected}");
            }
        };
        TORCH.iter().for_each(|(name, expected)| close(name, name.parse().unwrap(), *expected));
        let params = SigmoidParams { start: 0.0, end: 4.0, tau: 0.7, clip_min: 1e-3 };
        let expected = [1.0, 0.822_133_2, 0.382_582_96, 0.254_237_32, 0.102_726_72, 0.020_714_71, 0.005_072_209, 0.001];
        close("sigmoid 0..4", MaskSchedule::Sigmoid(params), expected);
    }

    #[test]
    fn decoding_counts_match_torch() {
        // ⌊256·share((step+1)/18)⌋ and ⌊10·share((step+1)/10)⌋, where a rounding decides.
        let counts = |name: &str, tokens: f32, steps: usize| -> Vec<i32> {
            let schedule: MaskSchedule = name.parse().unwrap();
            let time = |step: usize| ((step + 1) as f64 / steps as f64) as f32;
            (0..steps).map(|step| (tokens * schedule.ratio_f32(time(step))).floor() as i32).collect()
        };
        let cosine = [255, 252, 247, 240, 232, 221, 209, 196, 181, 164, 146, 127, 108, 87, 66, 44, 22, -1];
        let linear = [241, 227, 213, 199, 184, 170, 156, 142, 128, 113, 99, 85, 71, 56, 42, 28, 14, 0];
        let pow2 = [255, 252, 248, 243, 236, 227, 217, 205, 192, 176, 160, 142, 122, 101, 78, 53, 27, 0];
        let sigmoid = [251, 244, 235, 224, 210, 193, 173, 151, 128, 104, 82, 62, 45, 31, 20, 11, 4, 0];
        for (name, expected) in [("cosine", cosine), ("linear", linear), ("pow2", pow2), ("sigmoid", sigmoid)] {
            assert_eq!(counts(name, 256.0, 18), expected, "{name}");
        }
        assert_eq!(counts("linear", 10.0, 10), [9, 8, 7, 6, 5, 3, 3, 1, 1, 0]);
        assert_eq!(counts("pow2", 10.0, 10), [9, 9, 9, 8, 7, 6, 5, 3, 1, 0]);
    }

    #[test]
    fn schedules_are_read_and_written_as_the_original_names_them() {
        for name in ["cosine", "linear", "pow2", "pow0.5", "sigmoid"] {
            let schedule: MaskSchedule = serde_json::from_value(name.into()).unwrap();
            assert_eq!(schedule.to_string(), name);
            assert_eq!(serde_json::to_value(schedule).unwrap(), name);
        }
        let section = r#"{"schedule": "sigmoid", "params": {"tau": 0.5}}"#;
        let schedule: MaskSchedule = serde_json::from_str(section).unwrap();
        assert_eq!(schedule, MaskSchedule::Sigmoid(SigmoidParams { tau: 0.5, ..SigmoidParams::default() }));
        let again = serde_json::to_string(&schedule).unwrap();
        assert_eq!(serde_json::from_str::<MaskSchedule>(&again).unwrap(), schedule);
        assert_eq!(serde_json::from_str::<MaskSchedule>(r#"{"schedule": "pow3"}"#).unwrap(), MaskSchedule::Pow(3.0));
    }

    #[test]
    fn what_makes_no_schedule_is_refused() {
        for (written, said) in [
            (r#""cosin""#, "cosine, linear, pow2"),
            (r#""pow""#, "pow2"),
            (r#""pow-1""#, "above 0"),
            (r#"{"schedule": "linear", "params": {}}"#, "only sigmoid"),
            (r#"{"schedule": "sigmoid", "params": {"start": 3}}"#, "does not rise"),
            (r#"{"schedule": "sigmoid", "params": {"tau": 0}}"#, "tau"),
            ("3", "a mask schedule is"),
        ] {
            let error = serde_json::from_str::<MaskSchedule>(written).unwrap_err().to_string();
            assert!(error.contains(said), "{written}: {error}");
        }
    }
}
