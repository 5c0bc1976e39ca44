//! How pictures are drawn, scored and judged: guidance in training and in reports, samplers, and the judges of answers.

#![allow(clippy::unwrap_used, missing_docs)]

use std::fs;

use serde_json::Value;

mod workshop;

use workshop::{Workshop, text};

fn read(workshop: &Workshop, name: &str) -> Value {
    serde_json::from_slice(&fs::read(workshop.path(name)).unwrap()).unwrap()
}

#[test]
fn images_are_judged_by_the_probabilities_of_choices_and_captions() {
    let workshop = Workshop::new();
    for stage in ["scenes", "caption", "imagine", "ask"] {
        workshop.succeeds(&[stage, "run.yaml"]);
    }
    workshop.succeeds(&["answer", "run.yaml", "answer.score=probability"]);
    let answers = read(&workshop, "data/generation_vqa_results.json");
    let scores: Vec<f64> = answers
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|one| one["result"].as_array().unwrap())
        .map(|score| score.as_f64().unwrap())
        .collect();
    assert_eq!(scores.len(), 12 * 4);
    assert!(scores.iter().all(|score| *score > 0.0 && *score < 1.0), "{scores:?}");
    let different: std::collections::BTreeSet<u64> = scores.iter().map(|score| score.to_bits()).collect();
    assert!(different.len() > 40, "hardly two images are the same: {scores:?}");
    assert!(answers[0].get("caption_log_prob").is_none());

    // The second judge is asked, and needed.
    let both = ["answer.score=probability", "answer.caption_likelihood=true"];
    let message = workshop.fails(&[&["pair", "run.yaml"], &both[..]].concat());
    assert!(message.contains("answer.caption_likelihood") && message.contains("hermesflow answer"), "{message}");
    let message = workshop.fails(&[&["answer", "run.yaml"], &both[..]].concat());
    assert!(message.contains("answer.caption_likelihood: there false, here true"), "{message}");
    fs::remove_file(workshop.path("data/generation_vqa_results.json")).unwrap();
    workshop.succeeds(&[&["answer", "run.yaml"], &both[..]].concat());
    let judged = read(&workshop, "data/generation_vqa_results.json");
    for (judged, before) in judged.as_array().unwrap().iter().zip(answers.as_array().unwrap()) {
        assert_eq!(judged["result"], before["result"]);
        let said: Vec<f64> =
            judged["caption_log_prob"].as_array().unwrap().iter().map(|one| one.as_f64().unwrap()).collect();
        assert!(said.len() == 4 && said.iter().all(|one| (-20.0..0.0).contains(one)), "{said:?}");
    }
    workshop.succeeds(&[&["pair", "run.yaml"], &both[..]].concat());
    let by_both = read(&workshop, "data/pair_dpo_data.json");
    let pairs = by_both.as_array().unwrap();
    assert!(!pairs.is_empty());
    for pair in pairs {
        assert!(pair["vqa_score_win"].as_f64() > pair["vqa_score_lose"].as_f64(), "{pair}");
    }
}

#[test]
fn a_run_trains_what_it_draws_or_says_that_it_does_not() {
    let workshop = Workshop::new();
    let unguided = ["run", "run.yaml", "iterations=1"];
    let output = workshop.hermesflow(&unguided);
    let said = text(&output.stderr);
    assert!(output.status.success() && said.contains("WARNING: train: images are drawn under guidance 1"), "{said}");
    let guided = ["run", "run.yaml", "iterations=1", "train.guidance=auto", "output=guided"];
    let output = workshop.hermesflow(&guided);
    let said = text(&output.stderr);
    assert!(output.status.success() && !said.contains("WARNING: train"), "{said}");
    let weights = |of: &str| fs::read(workshop.path(of).join("train/model/pytorch_model.safetensors")).unwrap();
    assert!(weights("out") != weights("guided"), "guidance decides what is trained");
    let config = fs::read_to_string(workshop.path("guided/train/config.yaml")).unwrap();
    assert_eq!(config.matches("  guidance: 1.0\n").count(), 2, "that of drawing and that of training: {config}");
    // What was trained under one guidance is not taken for what another would give.
    let message = workshop.fails(&["train", "run.yaml", "iterations=1", "train.guidance=0.5", "output=guided"]);
    assert!(message.contains("train.guidance: there 1.0, here 0.5"), "{message}");
}

#[test]
fn samplers_are_compared_on_the_prompts_of_an_evaluation() {
    let workshop = Workshop::new();
    let search =
        ["samplers", "run.yaml", "--prompts", "6", "--steps", "2,3", "--guidance", "0,1", "--out", "found.jsonl"];
    let table = workshop.succeeds(&search);
    for part in ["steps / noise", "guidance 0", "guidance 1", "2 / 1", "3 / 1", "best: ", "6 dev prompts, seed 0"] {
        assert!(table.contains(part), "{part}: {table}");
    }
    let kept = fs::read_to_string(workshop.path("found.jsonl")).unwrap();
    assert_eq!(kept.lines().count(), 1 + 4);
    // Cut off in the third sampler: the rest is drawn again, to the same bytes.
    let cut: String = kept.lines().take(3).map(|line| format!("{line}\n")).collect();
    workshop.write("found.jsonl", &(cut + "{\"sampler\":{\"ste"));
    assert_eq!(workshop.succeeds(&search), table);
    assert_eq!(fs::read_to_string(workshop.path("found.jsonl")).unwrap(), kept);
    let other = ["samplers", "run.yaml", "--prompts", "7", "--out", "found.jsonl"];
    assert!(workshop.fails(&other).contains("samplers.prompts: there 6, here 7"));
    assert!(workshop.fails(&["samplers", "run.yaml", "--guidance=-1"]).contains("--guidance: -1 is not 0 or more"));

    // An evaluation draws the same, and without guidance beside it.
    let eval = ["eval", "run.yaml", "--prompts", "6", "--split", "dev", "--out", "report.json"];
    let shown = workshop.succeeds(&eval);
    assert!(shown.contains("generation at guidance 0"), "{shown}");
    let report = read(&workshop, "report.json");
    let drawn: Vec<Value> = kept.lines().skip(1).map(|line| serde_json::from_str(line).unwrap()).collect();
    let verdicts = |steps: u64, guidance: f64| {
        let is = |one: &&Value| one["sampler"]["steps"] == steps && one["sampler"]["guidance"] == guidance;
        drawn.iter().find(is).unwrap()["verdicts"].clone()
    };
    for (number, row) in report["rows"].as_array().unwrap().iter().enumerate() {
        assert_eq!(row["under"][0][1], verdicts(3, 0.0)[number]);
        assert_eq!(row["all"], verdicts(3, 1.0)[number]["all"]);
    }
    let several = workshop.succeeds(&["eval", "run.yaml", "--prompts", "3", "--guidance", "0,2,1"]);
    assert!(several.contains("generation at guidance 2") && !several.contains("generation at guidance 1"), "{several}");
}
