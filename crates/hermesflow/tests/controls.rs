//! `hermesflow controls`: arms that learn from pairs, from the records themselves and from neither, best with best.

#![allow(clippy::unwrap_used, missing_docs)]

use std::fs;

use serde_json::Value;

mod workshop;

use workshop::Workshop;

const CONTROLS: [&str; 16] = [
    "controls",
    "run.yaml",
    "--out",
    "controls",
    "--arms",
    "pair-dpo,supervised,continue",
    "--seeds",
    "1",
    "--prompts",
    "4",
    "--search",
    "2",
    "--guidance",
    "0,3",
    "iterations=1",
    "train.schedule.steps=3",
];

fn read(workshop: &Workshop, name: &str) -> Value {
    serde_json::from_slice(&fs::read(workshop.path(name)).unwrap()).unwrap()
}

#[test]
fn arms_are_compared_each_under_its_best_guidance() {
    let workshop = Workshop::new();
    let tables = workshop.succeeds(&CONTROLS);
    let outcomes = read(&workshop, "controls/controls.json");
    let of = |arm: &str| outcomes.as_array().unwrap().iter().find(|one| one["arm"] == arm).unwrap().clone();
    assert_eq!(of("supervised")["records"], 12, "all records, whether they gave a pair or not");
    assert!(of("pair-dpo")["records"].as_u64().unwrap() <= 12 && of("continue")["records"].is_null());

    // The guidance of each is the first of those under which most facts were found on dev prompts.
    let search = fs::read_to_string(workshop.path("controls/seed-1/supervised/search-1.jsonl")).unwrap();
    let mut best = (f64::NAN, f64::NEG_INFINITY);
    for line in search.lines().skip(1) {
        let drawn: Value = serde_json::from_str(line).unwrap();
        let facts: Vec<f64> =
            drawn["verdicts"].as_array().unwrap().iter().map(|one| one["facts"].as_f64().unwrap()).collect();
        assert_eq!(facts.len(), 2);
        let mean = facts.iter().sum::<f64>() / 2.0;
        if mean > best.1 {
            best = (drawn["sampler"]["guidance"].as_f64().unwrap(), mean);
        }
    }
    assert_eq!(of("supervised")["best_guidance"][1], best.0);
    let under: Vec<f64> =
        of("supervised")["under"].as_array().unwrap().iter().map(|one| one["guidance"].as_f64().unwrap()).collect();
    assert_eq!(under, [0.0, 1.0, 3.0], "the run's own guidance and those that were asked for");
    for column in ["at 0", "at 1", "at 3", "pairs", "floor: blank pictures"] {
        assert!(tables.contains(column), "{tables}");
    }

    // The records themselves, and nothing that the model made.
    let trained = read(&workshop, "controls/seed-1/supervised/data/supervised_data.json");
    let records = read(&workshop, "controls/seed-1/supervised/data/initial_data.json");
    assert_eq!(records, read(&workshop, "controls/seed-1/shared/data/initial_data.json"), "the same as self-play saw");
    for (trained, record) in trained.as_array().unwrap().iter().zip(records.as_array().unwrap()) {
        assert_eq!((&trained["caption_win"], &trained["image_win"]), (&record["caption"], &record["img_path"]));
    }
    assert!(!workshop.path("controls/seed-1/supervised/data/pair_dpo_data.json").exists());

    assert_eq!(workshop.succeeds(&CONTROLS), tables, "what is done is not done again");
}

/// The model inside the program that draws one code after the other.
const MODEL: &str = "{ checkpoint: embedded, backbone: janus-pro }";

#[test]
fn every_arm_is_done_by_a_model_that_draws_one_code_after_the_other() {
    let workshop = Workshop::new();
    let run = workshop::RUN.replace("{ showo: model/showo, vq: model/vq, tokenizer: model/tokenizer.json }", MODEL);
    workshop.write("run.yaml", &run.replace("steps: 3, ", "").replace("file, file: questions.json", "scenes"));
    let few = ["controls", "run.yaml", "--seeds", "1", "--prompts", "2", "--search", "0", "--guidance", "0"];
    let small = ["iterations=1", "data.scenes.records=4", "train.schedule.steps=1", "train.schedule.warmup_steps=0"];
    let tables = workshop.succeeds(&[&few[..], &small].concat());
    for arm in ["supervised on the same records", "pairs chosen by the oracle", "continued pretraining"] {
        assert!(tables.contains(arm), "{tables}");
    }
    // What an arm cannot do is said before any has worked.
    let said = workshop.fails(&[&few[..], &small, &["--out", "other", "imagine.steps=3"]].concat());
    assert!(said.contains("imagine.steps") && !workshop.path("other").exists(), "{said}");
}
