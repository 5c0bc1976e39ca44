//! Run folders of earlier versions, in which the settings of training were flat and some were not known.

#![allow(clippy::unwrap_used, missing_docs)]

mod workshop;

use std::fs;
use std::path::Path;

use serde_json::{Map, Value};
use workshop::Workshop;

/// Keys of `train` that came later.
const LATER: [&str; 6] = ["guidance", "masks", "pair_weights", "likelihood_und", "likelihood_gen", "kl"];

/// The sections of `train` that were flat, and the names that keys had there.
fn flatten(train: &mut Map<String, Value>) {
    for section in ["loss", "optimizer", "schedule", "masking"] {
        let Some(Value::Object(keys)) = train.remove(section) else { panic!("no section {section}") };
        for (key, value) in keys {
            train.insert(if key == "kind" { "schedule".into() } else { key }, value);
        }
    }
    if let Some(value) = train.remove("recompute") {
        train.insert("checkpointing".into(), value);
    }
    for key in LATER {
        assert!(train.remove(key).is_some(), "{key}");
    }
}

fn json(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut value: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    change(&mut value);
    fs::write(path, format!("{value:#}\n")).unwrap();
}

/// The 64-bit FNV-1a hash of a text.
fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

#[test]
fn a_run_of_an_earlier_version_continues_to_the_same_model() {
    let workshop = Workshop::new();
    let run = ["run", "run.yaml", "iterations=1", "train.steps=4", "train.checkpoint_every=2", "train.keep=9"];
    workshop.succeeds(&run);
    let model = workshop.path("out/train/model/pytorch_model.safetensors");
    let made = fs::read(&model).unwrap();

    let config = workshop.path("out/config.yaml");
    let text = fs::read_to_string(&config).unwrap();
    let (first_line, yaml) = text.split_once('\n').unwrap();
    let mut tree: Value = serde_yaml_ng::from_str(yaml).unwrap();
    flatten(tree["train"].as_object_mut().unwrap());
    fs::write(&config, format!("{first_line}\n{}", serde_yaml_ng::to_string(&tree).unwrap())).unwrap();
    json(&workshop.path("out/train/origin.json"), |origin| {
        flatten(origin["settings"]["train"].as_object_mut().unwrap())
    });
    json(&workshop.path("out/train/checkpoint-2/state.json"), |state| {
        let settings = &mut state["settings"];
        let steps = settings["schedule"].as_object_mut().unwrap().remove("steps").unwrap();
        settings["schedule"]["total_steps"] = steps;
        let pair_dpo = settings["objective"]["pair_dpo"].as_object_mut().unwrap();
        let Some(Value::Object(loss)) = pair_dpo.remove("loss") else { panic!("no loss") };
        pair_dpo.extend(loss.into_iter().map(|(key, value)| (key.replace("anchor", "lambda"), value)));
        for key in ["guidance", "masks", "weights", "likelihood_und", "likelihood_gen", "kl"] {
            assert!(pair_dpo.remove(key).is_some(), "{key}");
        }
        state["settings_hash"] = format!("{:016x}", fnv1a(&state["settings"].to_string())).into();
    });
    json(&workshop.path("data/.settings/answer.json"), |origin| {
        assert!(origin["settings"]["answer"].as_object_mut().unwrap().remove("caption_likelihood").is_some());
    });
    fs::remove_dir_all(workshop.path("out/train/model")).unwrap();
    fs::remove_dir_all(workshop.path("out/train/checkpoint-4")).unwrap();

    let message = workshop.fails(&[&run[..], &["train.beta=0.5"]].concat());
    assert!(message.contains("train.loss.beta: there 0.2, here 0.5"), "{message}");
    assert!(!message.contains("steps") && !message.contains("recompute"), "{message}");
    let output = workshop.hermesflow(&run);
    let log = workshop::text(&output.stderr);
    assert!(output.status.success() && log.contains("continues from out/train/checkpoint-2"), "{log}");
    assert!(fs::read(&model).unwrap() == made, "the same weights");
}
