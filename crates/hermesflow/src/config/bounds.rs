//! What no setting may be, whatever it means: a number that the model's f32 cannot hold, or a size that only a mistake
//! asks for.

use std::ops::RangeInclusive;

use anyhow::{Result, ensure};
use serde_yaml_ng::Value;

use super::RunConfig;

/// Checks every number of a configuration.
///
/// # Errors
/// Names the key and what is expected.
pub fn check(config: &RunConfig) -> Result<()> {
    let RunConfig { data, caption, imagine, answer, judges, train, .. } = config;
    let sizes: [(&str, usize, RangeInclusive<usize>); 15] = [
        ("iterations", config.iterations, 1..=10_000),
        ("data.chunk", data.chunk, 1..=10_000),
        ("data.scenes.records", data.scenes.map_or(1, |scenes| scenes.records), 1..=100_000_000),
        ("caption.candidates, how many:", caption.candidates.len(), 2..=1000),
        ("caption.max_new_tokens", caption.max_new_tokens, 1..=100_000),
        ("imagine.images", imagine.images, 2..=10_000),
        ("imagine.steps", imagine.steps, 1..=10_000),
        ("answer.max_new_tokens", answer.max_new_tokens, 1..=100_000),
        ("judges.beams", judges.beams, 1..=64),
        ("train.steps", train.steps, 0..=1_000_000_000),
        ("train.warmup_steps", train.warmup_steps, 0..=1_000_000_000),
        ("train.batch_size", train.batch_size, 0..=10_000),
        ("train.accumulation", train.accumulation, 0..=1_000_000),
        ("train.masks_per_pair", train.masks_per_pair, 0..=1000),
        ("train.keep", train.keep, 0..=1_000_000),
    ];
    for (key, size, range) in sizes {
        ensure!(range.contains(&size), "{key}: {size} is not within {} … {}", range.start(), range.end());
    }
    numbers("", &serde_yaml_ng::to_value(config)?)
}

/// Checks that every number of a tree is one in f32 too: neither NaN nor infinite, nor 0 unless it is 0.
fn numbers(key: &str, value: &Value) -> Result<()> {
    match value {
        Value::Mapping(map) => map.iter().try_for_each(|(name, inner)| {
            let name = name.as_str().unwrap_or_default();
            numbers(&if key.is_empty() { name.to_owned() } else { format!("{key}.{name}") }, inner)
        }),
        Value::Sequence(list) => {
            list.iter().enumerate().try_for_each(|(at, inner)| numbers(&format!("{key}[{at}]"), inner))
        }
        Value::Number(number) if number.is_f64() => {
            let number = number.as_f64().unwrap_or(f64::NAN);
            let computed = number as f32;
            let good = computed.is_finite() && (computed != 0.0 || number == 0.0);
            ensure!(good, "{key}: {number} is no number that can be computed with (in 32 bits it is {computed})");
            Ok(())
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn problem(argument: &str) -> String {
        format!("{:#}", RunConfig::parse("", &[argument.to_owned()]).unwrap_err())
    }

    #[test]
    fn no_number_leaves_what_can_be_computed_with() {
        check(&RunConfig::default()).unwrap();
        for (argument, key) in [
            ("imagine.guidance=1e39", "imagine.guidance: "),
            ("imagine.guidance=.inf", "imagine.guidance: "),
            ("imagine.temperature=.nan", "imagine.temperature: "),
            ("imagine.temperature=1e-60", "imagine.temperature: "),
            (
                "caption.candidates=[{top_k: 1, temperature: 1.0}, {top_k: 2, temperature: 1e-50}]",
                "caption.candidates[1].temperature: ",
            ),
            ("train.weight_decay=1e300", "train.weight_decay: "),
            ("train.eps=1e-60", "train.eps: "),
            ("judges.bertscore_baseline=-.inf", "judges.bertscore_baseline: "),
        ] {
            let said = problem(argument);
            assert!(said.starts_with(key), "{argument}: {said}");
        }
    }

    #[test]
    fn sizes_that_only_a_mistake_asks_for_are_refused() {
        for argument in [
            "caption.max_new_tokens=1000000000",
            "answer.max_new_tokens=18446744073709551615",
            "imagine.images=4000000000",
            "imagine.steps=1000000000000",
            "data.chunk=18446744073709551615",
            "judges.beams=1000000000",
            "train.batch_size=1000000000",
            "data.scenes={records: 18446744073709551615}",
        ] {
            let said = problem(argument);
            let key = argument.split(['=']).next().unwrap();
            assert!(said.starts_with(key) && said.contains("is not within"), "{argument}: {said}");
        }
    }
}
