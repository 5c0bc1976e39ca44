//! `pair.retries`: records that gave no pair are drawn again, in folders of their own, and compete with all that was drawn.

#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeSet;
use std::fs;

use serde_json::Value;

mod workshop;

use workshop::{Workshop, files, killed_and_undisturbed, text};

fn read(workshop: &Workshop, name: &str) -> Value {
    serde_json::from_slice(&fs::read(workshop.path(name)).unwrap()).unwrap()
}

fn ids(records: &Value) -> BTreeSet<String> {
    records.as_array().unwrap().iter().map(|one| one["id"].as_str().unwrap().to_owned()).collect()
}

/// Two captions and two images per record tie often.
const OFTEN_TIE: [&str; 4] = [
    "run",
    "run.yaml",
    "caption.candidates=[{top_k: 1, temperature: 1.0}, {top_k: 2, temperature: 0.7}]",
    "imagine.images=2",
];

fn run(workshop: &Workshop, more: &[&str]) -> String {
    let output = workshop.hermesflow(&[&OFTEN_TIE, more].concat());
    let said = text(&output.stderr);
    assert!(output.status.success(), "{said}");
    said
}

#[test]
fn records_without_a_pair_are_drawn_again_and_only_these() {
    let (plain, again) = (Workshop::new(), Workshop::new());
    run(&plain, &["iterations=1"]);
    let said = run(&again, &["iterations=1", "pair.retries=3"]);
    let all = ids(&read(&plain, "data/initial_data.json"));
    let (before, after) = (read(&plain, "data/pair_dpo_data.json"), read(&again, "data/pair_dpo_data.json"));
    let left: BTreeSet<String> = all.difference(&ids(&before)).cloned().collect();
    assert!(
        !left.is_empty() && left.len() < all.len(),
        "some records of this test give a pair and some give none: {left:?}"
    );
    assert_eq!(ids(&read(&again, "data/again-1/initial_data.json")), left, "{said}");
    assert!(ids(&after).is_superset(&ids(&before)) && ids(&after).len() > ids(&before).len(), "{said}");
    assert!(
        said.contains("records gave no pair and are tried again (1)") && said.contains("when tried again"),
        "{said}"
    );
    // What gave a pair at once has the same one; the others' are made of all tries.
    for pair in before.as_array().unwrap() {
        assert!(after.as_array().unwrap().contains(pair));
    }
    for pair in after.as_array().unwrap().iter().filter(|pair| left.contains(pair["id"].as_str().unwrap())) {
        let sides = ["image_win", "image_lose"].map(|side| pair[side].as_str().unwrap().to_owned());
        let captions = read(&again, "data/understanding_caption_results.json");
        let first = captions.as_array().unwrap().iter().find(|one| one["id"] == pair["id"]).unwrap();
        let of_first = |side: &str| first["caption_mmu"].as_array().unwrap().contains(&pair[side]);
        let drawn_again = sides.iter().any(|path| path.starts_with("again-"));
        assert!(drawn_again || !of_first("caption_win") || !of_first("caption_lose"), "{pair}");
        assert!(sides.iter().all(|path| again.path("data").join(path).is_file()), "{pair}");
        assert!(again.path("data").join(pair["img_path"].as_str().unwrap()).is_file(), "{pair}");
    }
    // Each try is of what the one before left.
    for number in 2..=3 {
        let (earlier, later) =
            (format!("data/again-{}/initial_data.json", number - 1), format!("data/again-{number}/initial_data.json"));
        if again.path(&later).is_file() {
            assert!(ids(&read(&again, &later)).is_subset(&ids(&read(&again, &earlier))));
        }
    }
    // Other draws, and questions that are the same.
    let questions = |name: &str| read(&again, name).as_array().unwrap().clone();
    let all_questions = questions("data/vqa_data.json");
    assert!(questions("data/again-1/vqa_data.json").iter().all(|one| all_questions.contains(one)));
    let id = left.first().unwrap();
    let picture = |root: &str| fs::read(again.path(root).join(format!("generated_images/{id}/0.png"))).unwrap();
    assert_ne!(picture("data"), picture("data/again-1"));

    // `pair` alone takes what is there, and without the key nothing of it.
    again.succeeds(&[&["pair"], &OFTEN_TIE[1..], &["iterations=1", "pair.retries=3"]].concat());
    assert_eq!(read(&again, "data/pair_dpo_data.json"), after);
    again.succeeds(&[&["pair"], &OFTEN_TIE[1..], &["iterations=1"]].concat());
    assert_eq!(read(&again, "data/pair_dpo_data.json"), before);
    assert!(!files(&plain.path("data")).keys().any(|path| path.starts_with("again-1")));
}

#[test]
fn a_killed_run_ends_with_the_same_tries() {
    killed_and_undisturbed(Workshop::new, &[&OFTEN_TIE[..], &["pair.retries=2"]].concat(), 4, 2);
}

#[test]
fn images_of_altered_captions_lose_where_they_are_told_apart() {
    let workshop = Workshop::new();
    let altered = ["pair.altered=2", "pair.altered_margin=0.0"];
    let output = workshop.hermesflow(&[&["run", "run.yaml", "iterations=1"], &altered[..]].concat());
    let said = text(&output.stderr);
    assert!(output.status.success() && said.contains("against images of altered captions"), "{said}");
    let (records, beside) =
        (read(&workshop, "data/initial_data.json"), read(&workshop, "data/altered/initial_data.json"));
    assert_eq!(ids(&records), ids(&beside), "whatever scenes say can be altered");
    let (own, others) = (
        read(&workshop, "data/generation_vqa_results.json"),
        read(&workshop, "data/altered/generation_vqa_results.json"),
    );
    let scores = |of: &Value, id: &Value| -> Vec<f64> {
        let one = of.as_array().unwrap().iter().find(|one| one["id"] == *id).unwrap();
        one["result"].as_array().unwrap().iter().map(|score| score.as_f64().unwrap()).collect()
    };
    let mut lost = 0;
    for pair in read(&workshop, "data/pair_dpo_data.json").as_array().unwrap() {
        let (own, others) = (scores(&own, &pair["id"]), scores(&others, &pair["id"]));
        assert_eq!((own.len(), others.len()), (4, 2));
        let (best, lowest) = (own.iter().copied().fold(0.0, f64::max), others.iter().copied().fold(1.0, f64::min));
        let lose = pair["image_lose"].as_str().unwrap();
        assert_eq!(pair["vqa_score_win"].as_f64(), Some(best));
        assert!(!pair["image_win"].as_str().unwrap().starts_with("altered"));
        assert_eq!(lose.starts_with("altered/"), lowest < best, "{pair}");
        if lose.starts_with("altered/") {
            assert_eq!(pair["vqa_score_lose"].as_f64(), Some(lowest));
            assert!(workshop.path("data").join(lose).is_file());
            lost += 1;
        }
    }
    assert!(lost > 0);
    // Out of reach of the margin, and without the key, they play no part.
    let without = |more: &[&str]| {
        workshop.succeeds(&[&["pair", "run.yaml", "iterations=1"], more].concat());
        read(&workshop, "data/pair_dpo_data.json")
    };
    let plain = without(&[]);
    assert!(plain.as_array().unwrap().iter().all(|pair| !pair["image_lose"].as_str().unwrap().starts_with("altered")));
    assert_eq!(without(&["pair.altered=2", "pair.altered_margin=1.0"]), plain);
}
