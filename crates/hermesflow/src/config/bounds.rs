//! Ranges of single keys, as their structures declare them, and what no number may be: one that f32 cannot hold.

use anyhow::{Result, ensure};
use serde::Serialize;
use serde_json::Value as Schema;
use serde_yaml_ng::Value;

use super::keys::{Keys, object};

/// Checks every value of a configuration that was read.
///
/// # Errors
/// Names the key, its value and what is expected.
pub fn check(config: &impl Serialize, keys: &Keys) -> Result<()> {
    within("", &serde_yaml_ng::to_value(config)?, keys.schema())
}

fn within(key: &str, value: &Value, schema: &Schema) -> Result<()> {
    match value {
        Value::Mapping(map) => map.iter().try_for_each(|(name, inner)| {
            let name = name.as_str().unwrap_or_default();
            let inside = object(schema).map_or(&Schema::Null, |section| &section["properties"][name]);
            within(&if key.is_empty() { name.to_owned() } else { format!("{key}.{name}") }, inner, inside)
        }),
        Value::Sequence(list) => {
            let (least, most) = (schema["minItems"].as_u64().unwrap_or(0), schema["maxItems"].as_u64());
            let good = (least..=most.unwrap_or(u64::MAX)).contains(&(list.len() as u64));
            ensure!(good, "{key}: {} entries are not within {least} … {}", list.len(), most.unwrap_or(u64::MAX));
            let inside = &schema["items"];
            list.iter().enumerate().try_for_each(|(at, inner)| within(&format!("{key}[{at}]"), inner, inside))
        }
        Value::Number(number) => {
            let value = number.as_f64().unwrap_or(f64::NAN);
            let computed = value as f32;
            let good = computed.is_finite() && (computed != 0.0 || value == 0.0);
            ensure!(good, "{key}: {number} is no number that can be computed with (in 32 bits it is {computed})");
            range(key, number, schema)
        }
        _ => Ok(()),
    }
}

fn range(key: &str, number: &serde_yaml_ng::Number, schema: &Schema) -> Result<()> {
    let value = number.as_f64().unwrap_or(f64::NAN);
    match (schema["minimum"].as_f64(), schema["maximum"].as_f64()) {
        (None, None) => {}
        (Some(least), Some(most)) => {
            ensure!((least..=most).contains(&value), "{key}: {number} is not within {least} … {most}");
        }
        (Some(least), None) => ensure!(value >= least, "{key}: {number} is not {least} or more"),
        (None, Some(most)) => ensure!(value <= most, "{key}: {number} is more than {most}"),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::RunConfig;
    use super::*;

    fn problem(argument: &str) -> String {
        format!("{:#}", RunConfig::parse("", &[argument.to_owned()]).unwrap_err())
    }

    #[test]
    fn no_number_leaves_what_can_be_computed_with() {
        check(&RunConfig::default(), Keys::run()).unwrap();
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
            ("train.optimizer.weight_decay=1e300", "train.optimizer.weight_decay: "),
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
