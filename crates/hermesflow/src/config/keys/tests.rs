#![allow(clippy::unwrap_used)]
use super::list::Key;
use super::schema;
use super::words::{Words, flow};
use super::*;
use crate::config::presets::{PRESETS, preset};
use crate::config::pretrain::PretrainConfig;
use crate::config::run::RunConfig;
use serde_json::{Value, json};

/// The generated files, each with what writes it.
fn generated() -> [(&'static str, &'static str, String, &'static str); 3] {
    [
        ("docs/KEYS.md", include_str!("../../../../../docs/KEYS.md"), page(), "--markdown"),
        (
            "configs/schema.json",
            include_str!("../../../../../configs/schema.json"),
            Keys::run().schema_file(),
            "--schema",
        ),
        (
            "configs/schema-pretrain.json",
            include_str!("../../../../../configs/schema-pretrain.json"),
            Keys::pretrain().schema_file(),
            "--schema pretrain",
        ),
    ]
}

#[test]
fn the_page_and_the_schemas_are_those_of_the_doc_comments() {
    for (file, there, now, option) in generated() {
        let stale = there.lines().zip(now.lines()).position(|(there, now)| there != now);
        assert!(there == now, "{file} is stale from line {stale:?} on: hermesflow keys {option} > {file}");
    }
}

fn keys() -> impl Iterator<Item = &'static Key> {
    Keys::run().sections.iter().chain(&Keys::pretrain().sections).flat_map(|section| &section.keys)
}

/// The default that a doc comment names is that of the program.
#[test]
fn doc_comments_say_what_is_so() {
    fn defaults(name: &str, schema: &Value) {
        for (part, property) in
            object(schema).and_then(|section| section["properties"].as_object()).into_iter().flatten()
        {
            let name = format!("{name}.{part}");
            let words = Words::of(property["description"].as_str().unwrap_or_default());
            match (property.get("default"), &words.default) {
                (Some(Value::Null | Value::Array(_)), _) => {}
                (Some(default), Some(said)) => {
                    assert_eq!(said, flow(default).trim_end_matches('.'), "{name}: the default of its doc comment");
                }
                (Some(_), None) => assert!(schema::is_section(property), "{name}: its doc comment has no `Default:`"),
                (None, said) => assert_eq!(*said, None, "{name}: required, but its doc comment names a default"),
            }
            defaults(&name, property);
            defaults(&format!("{name}[]"), &property["items"]);
        }
    }
    defaults("", Keys::run().schema());
    assert!(keys().count() > 110);
    for key in keys() {
        assert!(key.meaning.ends_with(['.', ')']), "{}: {}", key.name, key.meaning);
        assert!(!["Its ", "Of ", "They ", "It "].iter().any(|word| key.meaning.starts_with(word)), "{}", key.name);
        let counts = key.kind.starts_with("whole number") && !key.name.contains(".model.");
        assert!(
            !counts || key.unit.is_some() || ["seed", "judges.bertscore_layer"].contains(&key.name.as_str()),
            "{}: its doc comment has no `Unit:`",
            key.name
        );
    }
    for key in Keys::run().sections.iter().flat_map(|section| &section.keys) {
        assert!(
            key.source.is_some() || key.name.ends_with(".schedule.schedule") || key.name.contains("mask_schedule."),
            "{}: its doc comment has no `Source:`",
            key.name
        );
    }
}

/// The keywords that the schemas use; any other is a fault of this test.
fn valid(schema: &Value, value: &Value) -> Result<(), String> {
    let Some(schema) = schema.as_object() else { return Ok(()) };
    for (keyword, wanted) in schema {
        let all = || wanted.as_array().unwrap().iter();
        let number = || value.as_f64();
        let good = match keyword.as_str() {
            "$schema" | "title" | "description" | "default" | "deprecated" => true,
            "type" => {
                let is = |name: &Value| match name.as_str().unwrap() {
                    "integer" => value.is_u64() || value.is_i64(),
                    "number" => value.is_number(),
                    "string" => value.is_string(),
                    "boolean" => value.is_boolean(),
                    "null" => value.is_null(),
                    "array" => value.is_array(),
                    "object" => value.is_object(),
                    other => panic!("type {other}"),
                };
                wanted.as_array().map_or_else(|| is(wanted), |names| names.iter().any(is))
            }
            "const" => value == wanted,
            "enum" => all().any(|one| one == value),
            "oneOf" => all().filter(|one| valid(one, value).is_ok()).count() == 1,
            "anyOf" => all().any(|one| valid(one, value).is_ok()),
            "minimum" => number().is_none_or(|number| number >= wanted.as_f64().unwrap()),
            "maximum" => number().is_none_or(|number| number <= wanted.as_f64().unwrap()),
            "minItems" => value.as_array().is_none_or(|list| list.len() as u64 >= wanted.as_u64().unwrap()),
            "maxItems" => value.as_array().is_none_or(|list| list.len() as u64 <= wanted.as_u64().unwrap()),
            "pattern" => value.as_str().is_none_or(|name| name.parse::<hermesflow_models::MaskSchedule>().is_ok()),
            "items" => {
                value.as_array().into_iter().flatten().try_for_each(|one| valid(wanted, one))?;
                true
            }
            "required" => {
                value.as_object().is_none_or(|map| all().all(|name| map.contains_key(name.as_str().unwrap())))
            }
            "properties" => {
                for (name, inner) in value.as_object().into_iter().flatten() {
                    valid(&wanted[name], inner).map_err(|fault| format!("{name}.{fault}"))?;
                }
                true
            }
            "additionalProperties" => value.as_object().is_none_or(|map| {
                assert_eq!(*wanted, false);
                map.keys().all(|name| schema["properties"].get(name).is_some())
            }),
            other => panic!("the keyword {other} is not checked here"),
        };
        if !good {
            return Err(format!("{keyword}: {value} against {wanted}"));
        }
    }
    Ok(())
}

fn tree(yaml: &str) -> Value {
    serde_json::to_value(serde_yaml_ng::from_str::<serde_yaml_ng::Value>(yaml).unwrap()).unwrap()
}

#[test]
fn every_configuration_fits_the_schema_that_its_first_line_names() {
    let schema = |keys: &Keys| serde_json::from_str::<Value>(&keys.schema_file()).unwrap();
    let (run, pretrain) = (schema(Keys::run()), schema(Keys::pretrain()));
    for (name, text) in PRESETS {
        let (schema, file) =
            if name.starts_with("pretrain") { (&pretrain, "schema-pretrain.json") } else { (&run, "schema.json") };
        assert_eq!(text.lines().next().unwrap(), format!("# yaml-language-server: $schema={file}"), "{name}");
        valid(schema, &tree(text)).unwrap_or_else(|fault| panic!("{name}: {fault}"));
    }
    valid(&run, &serde_json::to_value(RunConfig::default()).unwrap()).unwrap();
    let flat = "train: { steps: 5, beta: 0.1, schedule: linear, checkpointing: auto, mask_schedule: pow2 }\nmodel: { expect: { clip: true } }";
    valid(&run, &tree(flat)).unwrap();
    for (wrong, key) in [
        ("train: { stepz: 5 }", "train.additionalProperties"),
        ("train: { steps: 0 }", "train.steps.minimum"),
        ("train: { schedule: { steps: many } }", "train.schedule.anyOf"),
        ("train: { loss: { beta: -1 } }", "train.loss.beta.minimum"),
        ("train: { loss: { bta: 1 } }", "train.loss.additionalProperties"),
        ("train: { recompute: some }", "train.recompute.oneOf"),
        ("imagine: { schedule: cosin }", "imagine.schedule.oneOf"),
        ("caption: { candidates: [] }", "caption.candidates.minItems"),
        ("data: { scenes: { split: train } }", "data.scenes.required"),
        ("sed: 1", "additionalProperties"),
        ("seed: x", "seed.type"),
    ] {
        let fault = valid(&run, &tree(wrong)).unwrap_err();
        assert!(fault.starts_with(key), "{wrong}: {fault}");
        assert!(RunConfig::parse(wrong, &[]).is_err(), "{wrong}");
    }
    let small = preset("pretrain-scenes").unwrap().replace("hidden_size", "hiden_size");
    assert!(PretrainConfig::parse(&small, &[]).unwrap_err().to_string().contains("hiden_size"));
    assert!(PretrainConfig::parse(preset("pretrain-scenes").unwrap(), &[]).is_ok());
}

#[test]
fn what_a_key_was_meant_to_be_is_found_in_every_section_and_under_earlier_names() {
    for (unknown, nearest) in [
        ("train.stepz", &["train.schedule.steps"][..]),
        ("train.schedule.stepz", &["train.schedule.steps"]),
        ("train.loss.bta", &["train.loss.beta"]),
        ("steps", &["imagine.steps", "train.schedule.steps"]),
        ("beta", &["train.loss.beta"]),
        ("wamup_steps", &["train.schedule.warmup_steps"]),
        ("trian", &["train"]),
        ("train.loos", &["train.loss"]),
        ("train.checkpointng", &["train.recompute"]),
        ("data.scenes.record", &["data.scenes.records"]),
        ("caption.candidates[3].topk", &["caption.candidates[].top_k"]),
        ("zzz", &[]),
    ] {
        assert_eq!(Keys::run().nearest(unknown), nearest, "{unknown}");
    }
}

#[test]
fn what_is_shown_of_a_key_is_whole() {
    let shown = Keys::run().entries("train.steps");
    for part in [
        "train.schedule.steps (default: 3000)",
        "whole number, 1 … 1000000000; unit: optimizer steps",
        "Earlier name: train.steps",
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let shown = Keys::run().entries("train.objective");
    assert!(shown.contains("one of") && shown.contains("sft_wins: A control: "), "{shown}");
    assert_eq!(Keys::run().entries("train.los").matches("default: ").count(), 8);
    assert_eq!(Keys::run().entries("nothing"), "");
    for text in [Keys::run().overview(), Keys::run().entries(""), Keys::pretrain().entries("")] {
        for line in text.lines() {
            assert!(line.chars().count() <= 100, "{line}");
        }
    }
    let page = page();
    let in_tables = page
        .lines()
        .skip_while(|line| !line.starts_with('|'))
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    let rows = in_tables.filter(|line| line.starts_with("| `")).collect::<Vec<_>>();
    assert_eq!(rows.len(), keys().count(), "a row for each key");
    assert!(rows.iter().all(|row| row.replace("\\|", "").matches('|').count() == 5), "four cells in each row");
    let overview = Keys::run().overview();
    assert!(
        Keys::run()
            .names()
            .filter(|name| !name.contains("[]"))
            .all(|name| overview.contains(name.rsplit('.').next().unwrap()))
    );
    assert_eq!(json!({"a": [1, "b"]}), tree("a: [1, b]"));
}
