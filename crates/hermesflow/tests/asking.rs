//! Texts and questions as a person gives them: cut, left out and counted, or refused by id.

#![allow(clippy::unwrap_used, missing_docs)]

use std::fs;

mod workshop;

use workshop::{Workshop, asked, text, three_records};

/// Forgets under which settings the results of a data root were made.
fn forget(workshop: &Workshop) {
    for entry in fs::read_dir(workshop.path("data")).unwrap().flatten() {
        if entry.path().is_dir() && entry.file_name().to_string_lossy().starts_with('.') {
            fs::remove_dir_all(entry.path()).unwrap();
        }
    }
}

#[test]
fn texts_that_are_too_long_are_named_by_their_record() {
    let workshop = Workshop::new();
    workshop.succeeds(&["run", "run.yaml", "iterations=1"]);
    let long = "a large red circle ".repeat(5000);
    let change = |file: &str, key: &str| {
        let path = format!("data/{file}");
        let mut records: serde_json::Value = serde_json::from_slice(&fs::read(workshop.path(&path)).unwrap()).unwrap();
        records[1][key] = long.clone().into();
        let before = fs::read(workshop.path(&path)).unwrap();
        workshop.write(&path, &records.to_string());
        (records[1]["id"].as_str().unwrap().to_owned(), path, before)
    };
    let train = ["train", "run.yaml", "iterations=1", "output=again"];
    for key in ["caption_win", "caption_lose"] {
        let (id, path, before) = change("pair_dpo_data.json", key);
        forget(&workshop);
        let message = workshop.fails(&train);
        assert!(message.contains(&id) && message.contains(key) && message.contains("2048 positions"), "{message}");
        fs::write(workshop.path(&path), before).unwrap();
    }
    let (id, path, before) = change("vqa_data.json", "question");
    fs::remove_file(workshop.path("data/generation_vqa_results.json")).unwrap();
    forget(&workshop);
    let message = workshop.fails(&["answer", "run.yaml", "iterations=1"]);
    assert!(message.contains(&id) && message.contains("2048 positions"), "{message}");
    fs::write(workshop.path(&path), before).unwrap();
    // What is imagined from is cut, and said so.
    let (id, ..) = change("initial_data.json", "caption");
    let imagine = ["imagine", "run.yaml", "iterations=1", "data.scenes=null", "data.root=data", "imagine.steps=1"];
    fs::remove_dir_all(workshop.path("data/generated_images")).unwrap();
    forget(&workshop);
    let output = workshop.hermesflow(&imagine);
    let said = text(&output.stderr);
    assert!(output.status.success() && said.contains("of 12 captions are too long for the model"), "{said}");
    assert!(said.contains(&format!("record {id}")), "{said}");
}

#[test]
fn questions_that_no_judge_could_decide_are_left_out_and_counted() {
    let workshop = Workshop::new();
    three_records(&workshop);
    let ask = ["ask", "run.yaml", "data.scenes=null", "data.fresh=false", "ask.file=given.json"];
    let given = |entries: &[(&str, &str, &str)]| {
        let of = |(question, choices, answer): &(&str, &str, &str)| {
            format!(
                r#"{{"id": "b", "caption": "", "element": "2", "question": "{question}", "choices": {choices},
                     "answer": "{answer}"}}"#
            )
        };
        workshop.write("given.json", &format!("[{}]", entries.iter().map(of).collect::<Vec<_>>().join(",")));
    };
    given(&[
        ("which cat?", r#"["a cat", "the cat", "dog"]"#, "the cat"),
        ("which language?", r#"["C", "C++"]"#, "C++"),
        ("how many?", r#"["1", "2"]"#, "2"),
    ]);
    let output = workshop.hermesflow(&ask);
    let said = text(&output.stderr);
    assert!(output.status.success(), "{said}");
    for part in ["2 questions left out: two choices are the same", "record b", "\"a cat\" and \"the cat\""] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert_eq!(asked(&workshop), [("b".to_owned(), "how many?".to_owned(), "2".to_owned())]);
    given(&[("how many?", r#"["2"]"#, "2")]);
    let message = workshop.fails(&ask);
    assert!(message.contains("1 question left out: fewer than two choices"), "{message}");
    // A file that lies where the questions belong cannot be thinned out: that would write over it.
    let mut own: serde_json::Value = serde_json::from_str(
        r#"[{"id": "b", "img_path": "i", "prompt": "p", "caption": "c", "element": "e", "question": "how many?",
             "choices": ["1", "2"], "answer": "2"}]"#,
    )
    .unwrap();
    let questions = ["ask", "run.yaml", "data.scenes=null", "data.fresh=false", "ask.file=data/vqa_data.json"];
    workshop.write("data/vqa_data.json", &own.to_string());
    workshop.succeeds(&questions);
    own[0]["choices"] = serde_json::json!(["2", "two"]);
    workshop.write("data/vqa_data.json", &own.to_string());
    let message = workshop.fails(&questions);
    assert!(message.contains("1 question left out") && message.contains("move it elsewhere"), "{message}");
    assert_eq!(fs::read_to_string(workshop.path("data/vqa_data.json")).unwrap(), own.to_string());
}
