//! `train.masks`: a run on the states that its sampler visited, on images of an earlier version, and killed on its way.

#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

mod workshop;

use workshop::{Workshop, files, killed_and_undisturbed};

const VISITED: [&str; 2] = ["train.masks=visited", "output=visited"];

/// The files below the generated images whose names end so.
fn images(workshop: &Workshop, end: &str) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = files(&workshop.path("data/generated_images"));
    found.retain(|path, _| path.display().to_string().ends_with(end));
    found
}

#[test]
fn images_of_an_earlier_version_are_refused_and_drawn_again() {
    let workshop = Workshop::new();
    for stage in ["scenes", "caption", "imagine", "ask", "answer", "pair"] {
        workshop.succeeds(&[stage, "run.yaml"]);
    }
    let (steps, pictures) = (images(&workshop, ".steps.json"), images(&workshop, ".png"));
    assert_eq!((steps.len(), pictures.len()), (12 * 4, 12 * 4));
    for name in steps.keys() {
        fs::remove_file(workshop.path("data/generated_images").join(name)).unwrap();
    }
    let train = [&["train", "run.yaml"], &VISITED[..]].concat();
    let message = workshop.fails(&train);
    for part in ["record train-", "in which step", "hermesflow imagine", "train.masks=random"] {
        assert!(message.contains(part), "{part}: {message}");
    }
    // Without the key nothing is missing, and nothing is drawn again.
    workshop.succeeds(&["imagine", "run.yaml"]);
    assert!(images(&workshop, ".steps.json").is_empty());
    workshop.succeeds(&[&["imagine", "run.yaml"], &VISITED[..]].concat());
    assert_eq!(images(&workshop, ".steps.json"), steps);
    assert_eq!(images(&workshop, ".png"), pictures, "the same images");
    workshop.succeeds(&train);

    // Steps of other codes are none.
    let (name, content) = steps.iter().next().unwrap();
    let codes = fs::read_to_string(
        workshop.path("data/generated_images").join(name.display().to_string().replace("steps", "codes")),
    );
    assert_eq!(codes.unwrap().matches(',').count(), 15);
    let other = String::from_utf8(content.clone()).unwrap().replacen("\"codes\":\"", "\"codes\":\"0", 1);
    for name in steps.keys() {
        fs::write(workshop.path("data/generated_images").join(name), &other).unwrap();
    }
    let message = workshop.fails(&[&["train", "run.yaml"], &["train.masks=visited", "output=other"][..]].concat());
    assert!(message.contains("in which step"), "{message}");

    let encoded = workshop.fails(&[&train, &["train.codes=encoded"][..]].concat());
    assert!(encoded.contains("train.masks") && encoded.contains("train.codes=drawn"), "{encoded}");
    let masking = workshop.fails(&[&train, &["train.masking.min_masking_rate=0.5"][..]].concat());
    assert!(masking.contains("train.masking") && masking.contains("visited"), "{masking}");
}

#[test]
fn what_masks_are_trained_on_decides_the_model_and_nothing_else() {
    let workshop = Workshop::new();
    for stage in ["scenes", "caption", "imagine", "ask", "answer", "pair"] {
        workshop.succeeds(&[stage, "run.yaml"]);
    }
    let trained = |masks: &str| {
        let (output, masks) = (format!("output={masks}"), format!("train.masks={masks}"));
        workshop.succeeds(&["train", "run.yaml", &output, &masks, "train.masks_per_pair=2"]);
        fs::read(workshop.path(&output["output=".len()..]).join("train/model/pytorch_model.safetensors")).unwrap()
    };
    let models = ["random", "stratified", "visited"].map(trained);
    assert!(models[0] != models[1] && models[1] != models[2] && models[0] != models[2]);
    let message =
        workshop.fails(&["train", "run.yaml", "output=random", "train.masks=visited", "train.masks_per_pair=2"]);
    assert!(message.contains("train.masks: there \"random\", here \"visited\""), "{message}");
}

#[test]
fn a_killed_run_on_visited_states_ends_with_the_same_bytes() {
    killed_and_undisturbed(Workshop::new, &["run", "run.yaml", "train.masks=visited"], 3, 1);
}
