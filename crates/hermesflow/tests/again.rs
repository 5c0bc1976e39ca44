//! What already exists is used again only for what it was made from: anything else is made anew or refused by name.

#![allow(clippy::unwrap_used, missing_docs)]

mod workshop;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use workshop::{Workshop, files, text};

/// The stages of curation.
const STAGES: [&str; 5] = ["caption", "imagine", "ask", "answer", "pair"];

fn curate(workshop: &Workshop, more: &[&str]) {
    for stage in STAGES {
        workshop.succeeds(&[&[stage, "run.yaml"], more].concat());
    }
}

fn edit(workshop: &Workshop, name: &str, change: impl FnOnce(&mut Vec<Value>)) {
    let mut records: Vec<Value> = serde_json::from_slice(&fs::read(workshop.path(name)).unwrap()).unwrap();
    change(&mut records);
    workshop.write(name, &Value::from(records).to_string());
}

/// A record's results of a file, by id.
fn results(workshop: &Workshop, name: &str) -> BTreeMap<String, Value> {
    let records: Vec<Value> = serde_json::from_slice(&fs::read(workshop.path(name)).unwrap()).unwrap();
    records.into_iter().map(|record| (record["id"].as_str().unwrap().to_owned(), record)).collect()
}

fn changed(before: &BTreeMap<String, Value>, after: &BTreeMap<String, Value>) -> Vec<String> {
    let same = |id: &String| before.get(id) == after.get(id);
    after.keys().filter(|id| !same(id)).map(|id| id["train-0000".len()..].to_owned()).collect()
}

/// Puts another checkpoint of the same shapes in the place of the one that is there.
fn swap_model(workshop: &Workshop) {
    fs::rename(workshop.path("model"), workshop.path("first")).unwrap();
    workshop.succeeds(&["random-model", "other", "--seed", "7"]);
    // Weights alone, with their times.
    copy(&workshop.path("first"), &workshop.path("model"));
    let weights = "showo/pytorch_model.safetensors";
    let time = fs::metadata(workshop.path("first").join(weights)).unwrap().modified().unwrap();
    fs::copy(workshop.path("other").join(weights), workshop.path("model").join(weights)).unwrap();
    fs::File::options().write(true).open(workshop.path("model").join(weights)).unwrap().set_modified(time).unwrap();
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() { copy(&path, &target) } else { assert!(fs::copy(&path, &target).is_ok()) }
    }
}

/// A caption, a picture and a question of three records are edited.
fn edit_three(workshop: &Workshop) {
    edit(workshop, "data/initial_data.json", |records| records[2]["caption"] = "a dog on a blue mat".into());
    fs::copy(workshop.path("data/images/train-000011.png"), workshop.path("data/images/train-000005.png")).unwrap();
    edit(workshop, "questions.json", |questions| {
        let of_eighth = questions.iter().position(|one| one["id"] == "train-000008").unwrap();
        questions.remove(of_eighth);
    });
}

#[test]
fn what_was_edited_is_made_anew_and_nothing_else_is() {
    let workshop = Workshop::new();
    curate(&workshop, &[]);
    let names = ["data/understanding_caption_results.json", "data/generation_vqa_results.json"];
    let before = names.map(|name| results(&workshop, name));
    let pictures = |workshop: &Workshop| files(&workshop.path("data/generated_images"));
    let imagined = pictures(&workshop);
    edit_three(&workshop);
    curate(&workshop, &[]);
    let after = names.map(|name| results(&workshop, name));
    assert_eq!(changed(&before[0], &after[0]), ["02", "05"], "captions");
    let differing: Vec<PathBuf> = pictures(&workshop)
        .into_iter()
        .filter(|(name, bytes)| imagined[name] != *bytes)
        .map(|(name, _)| name)
        .collect();
    assert!(!differing.is_empty() && differing.iter().all(|name| name.starts_with("train-000002")), "{differing:?}");
    assert_eq!(changed(&before[1], &after[1]), ["02", "08"], "answers");

    // As if it had been so from the beginning.
    let fresh = Workshop::new();
    fresh.succeeds(&["scenes", "run.yaml"]);
    edit_three(&fresh);
    curate(&fresh, &[]);
    let (mut found, mut expected) = (files(&workshop.path("data")), files(&fresh.path("data")));
    for all in [&mut found, &mut expected] {
        all.retain(|name, _| !name.starts_with(".codes")); // of all pictures that ever were
    }
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (name, bytes) in expected {
        assert!(found[&name] == bytes, "{}", name.display());
    }
    let settled = files(&workshop.path("data"));
    curate(&workshop, &[]);
    assert!(settled == files(&workshop.path("data")), "a second time nothing is made");

    // An imagined picture is what the answers are about.
    let picture = workshop.path("data/generated_images/train-000010/1.png");
    fs::copy(workshop.path("data/generated_images/train-000004/3.png"), &picture).unwrap();
    let before = results(&workshop, names[1]);
    workshop.succeeds(&["answer", "run.yaml"]);
    assert!(changed(&before, &results(&workshop, names[1])).iter().all(|id| id == "10"));
    let ledger = |workshop: &Workshop| fs::read_to_string(workshop.path("data/.settings/answer.jsonl")).unwrap();
    assert_ne!(ledger(&workshop), ledger(&fresh), "it was asked again");
}

#[test]
fn a_result_that_was_struck_is_not_taken_for_one_of_before() {
    let workshop = Workshop::new();
    workshop.succeeds(&["scenes", "run.yaml"]);
    let captions = "data/understanding_caption_results.json";
    workshop.succeeds(&["caption", "run.yaml"]);
    let first = fs::read(workshop.path(captions)).unwrap();
    let picture = workshop.path("data/images/train-000000.png");
    let own = fs::read(&picture).unwrap();
    // Made anew from another picture and killed before that was noted; then the picture is put back.
    let ledger = workshop.path("data/.settings/caption.jsonl");
    fs::copy(workshop.path("data/images/train-000007.png"), &picture).unwrap();
    workshop.succeeds(&["caption", "run.yaml"]);
    let noted = fs::read_to_string(&ledger).unwrap();
    let struck = noted.lines().map(|line| match line.contains("train-000000") {
        true => "{\"id\":\"train-000000\",\"made_from\":\"\"}".to_owned(),
        false => line.to_owned(),
    });
    fs::write(&ledger, struck.collect::<Vec<_>>().join("\n") + "\n").unwrap();
    fs::write(&picture, own).unwrap();
    workshop.succeeds(&["caption", "run.yaml"]);
    assert!(fs::read(workshop.path(captions)).unwrap() == first);
}

#[test]
fn another_checkpoint_behind_the_same_path_is_refused_and_one_that_moved_is_not() {
    let workshop = Workshop::new();
    workshop.succeeds(&["run", "run.yaml"]);
    let report = ["eval", "run.yaml", "--prompts", "4", "--out", "report.json"];
    workshop.succeeds(&report);
    let before = (files(&workshop.path("data")), files(&workshop.path("out")));
    swap_model(&workshop);
    for command in ["caption", "imagine", "answer", "train"] {
        let message = workshop.fails(&[command, "run.yaml"]);
        assert!(message.contains("model.showo: different content"), "{command}: {message}");
    }
    let message = workshop.fails(&report);
    assert!(message.contains("report.json: holds another report") && message.contains("model.showo"), "{message}");
    // What the iteration before trained is the player of the next one.
    let trained = workshop.path("out/train/model/pytorch_model.safetensors");
    let own = fs::read(&trained).unwrap();
    fs::copy(workshop.path("other/showo/pytorch_model.safetensors"), &trained).unwrap();
    for command in ["caption", "imagine", "answer", "train"] {
        let message = workshop.fails(&[command, "run.yaml", "--iteration", "2"]);
        assert!(message.contains("the model that iteration 1 trained: different content"), "{command}: {message}");
    }
    fs::write(&trained, own).unwrap();
    assert!(before == (files(&workshop.path("data")), files(&workshop.path("out"))), "nothing was touched");
    let first = ["model.showo=first/showo", "model.vq=first/vq", "model.tokenizer=first/tokenizer.json"];
    workshop.succeeds(&[&["run", "run.yaml"], &first[..]].concat());
    workshop.succeeds(&[&report[..], &first].concat());
}

#[test]
fn a_report_is_of_the_settings_that_it_was_made_under() {
    let workshop = Workshop::new();
    workshop.write("report.jsonl", "mine");
    let eval = |out: &str, more: &[&str]| {
        let all = [&["eval", "run.yaml", "--prompts", "40", "--out", out], more].concat();
        workshop.hermesflow(&all)
    };
    assert!(eval("report.json", &[]).status.success());
    let whole = fs::read(workshop.path("report.json")).unwrap();
    let other = ["imagine.temperature=0.5"];
    let refused = eval("report.json", &other);
    let message = text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{message}");
    assert!(message.contains("imagine.temperature: there 1.0, here 0.5"), "{message}");
    assert!(fs::read(workshop.path("report.json")).unwrap() == whole);
    // Killed after the first 32 prompts: the rest is made, under the very settings alone.
    let partial = workshop.path(".report.json.hermesflow-partial");
    let report: Value = serde_json::from_slice(&whole).unwrap();
    let header = |made_from: &Value| {
        let settings = serde_json::json!([report["model"], report["settings"], made_from]);
        let rows = report["rows"].as_array().unwrap().iter().take(32);
        let mut rows: Vec<Value> = rows.cloned().collect();
        rows[0]["caption_text"] = "from the killed one".into();
        [settings].into_iter().chain(rows).map(|line| line.to_string() + "\n").collect::<String>()
    };
    let again = |content: String| {
        fs::remove_file(workshop.path("report.json")).unwrap();
        fs::write(&partial, content).unwrap();
        assert!(eval("report.json", &[]).status.success());
        assert!(!partial.exists());
        fs::read_to_string(workshop.path("report.json")).unwrap()
    };
    assert!(again(header(&report["made_from"])).contains("from the killed one"), "it goes on");
    let mut otherwise = report["made_from"].clone();
    otherwise["settings"]["imagine"]["temperature"] = 0.5.into();
    assert!(again(header(&otherwise)).into_bytes() == whole, "another's rows are not taken");
    // Its own name may be that of lines.
    assert!(eval("report.lines.jsonl", &[]).status.success() && eval("report.lines.jsonl", &[]).status.success());
    assert_eq!(fs::read_to_string(workshop.path("report.jsonl")).unwrap(), "mine");
}

#[test]
fn a_training_is_of_its_pairs_pictures_and_settings_and_stands_in_its_own_folder() {
    let workshop = Workshop::new();
    workshop.succeeds(&["run", "run.yaml", "iterations=1"]);
    // A second one from the same curation, and a longer one.
    workshop.succeeds(&["run", "run.yaml", "iterations=1", "output=second", "train.beta=0.5"]);
    workshop.succeeds(&["run", "run.yaml", "iterations=1", "output=longer", "train.steps=15"]);
    let lines =
        |output: &str| fs::read_to_string(workshop.path(output).join("train/metrics.jsonl")).unwrap().lines().count();
    assert_eq!((lines("out"), lines("second"), lines("longer")), (12, 12, 15));
    let message = workshop.fails(&["train", "run.yaml", "train.steps=15"]);
    assert!(message.contains("train.schedule.steps: there 12, here 15") && message.contains("out/train"), "{message}");
    // What moved is what it was.
    fs::rename(workshop.path("out"), workshop.path("moved")).unwrap();
    fs::rename(workshop.path("data"), workshop.path("records")).unwrap();
    let moved = ["run", "moved/config.yaml", "output=moved", "data.root=records"];
    let output = workshop.hermesflow(&moved);
    assert!(output.status.success() && text(&output.stderr).contains("already exists"), "{}", text(&output.stderr));
    // A picture that the pairs name is another one now.
    let pairs: Vec<Value> =
        serde_json::from_slice(&fs::read(workshop.path("records/pair_dpo_data.json")).unwrap()).unwrap();
    let [win, lose] =
        ["image_win", "image_lose"].map(|key| workshop.path("records").join(pairs[0][key].as_str().unwrap()));
    fs::copy(lose, win).unwrap();
    let message = workshop.fails(&["train", "run.yaml", "output=moved", "data.root=records"]);
    assert!(message.contains("the pairs' pictures: different content"), "{message}");
    // A folder of somebody's is no training's.
    workshop.write("mine/train/notes.txt", "mine");
    let message = workshop.fails(&["train", "run.yaml", "output=mine", "data.root=records"]);
    assert!(message.contains("mine/train: already exists"), "{message}");
}

#[test]
fn what_was_never_made_binds_nothing() {
    let workshop = Workshop::new();
    // No pair: what the message says is followed in the same folders.
    let message = workshop.fails(&["run", "run.yaml", "iterations=1", "pair.min_accuracy=1"]);
    assert!(message.contains("no pair to train on; a lower pair.min_accuracy or more records"), "{message}");
    let message =
        workshop.fails(&["run", "run.yaml", "iterations=1", "pair.min_accuracy=1", "data.fresh=true", "train.steps=4"]);
    assert!(message.contains("no pair"), "{message}");
    workshop.succeeds(&["run", "run.yaml", "iterations=1", "train.steps=13"]);
    // More records are drawn behind those that are there.
    let records = ["caption", "run.yaml", "data.root=more", "data.fresh=false"];
    workshop.succeeds(&records);
    let first = results(&workshop, "more/understanding_caption_results.json");
    workshop.succeeds(&[&records[..], &["data.scenes.records=14"]].concat());
    let second = results(&workshop, "more/understanding_caption_results.json");
    assert_eq!(changed(&first, &second), ["12", "13"]);
    let message = workshop.fails(&[&records[..], &["data.scenes.records=5"]].concat());
    assert!(message.contains("data.scenes.records: there 14, here 5"), "{message}");
    // A stage that fails before its first result.
    let images = workshop.path("data/images");
    fs::remove_dir_all(workshop.path("data/.settings")).unwrap();
    fs::remove_file(workshop.path("data/understanding_caption_results.json")).unwrap();
    fs::rename(&images, workshop.path("away")).unwrap();
    workshop.fails(&["caption", "run.yaml", "caption.max_new_tokens=3"]);
    fs::rename(workshop.path("away"), &images).unwrap();
    workshop.succeeds(&["caption", "run.yaml", "caption.max_new_tokens=4"]);
    let message = workshop.fails(&["caption", "run.yaml", "caption.max_new_tokens=3"]);
    assert!(message.contains("caption.max_new_tokens: there 4, here 3"), "{message}");
}

#[test]
fn a_falling_likelihood_ends_the_run_and_the_remedy_is_taken() {
    let workshop = Workshop::new();
    let falling = ["train.watch.window=1", "train.watch.threshold=0.5", "train.learning_rate=0.05"];
    let run = [&["run", "run.yaml", "train.watch.stop=true"], &falling[..]].concat();
    for _ in 0..2 {
        let message = workshop.fails(&run);
        for part in ["iteration 1", "kept falling (train.watch.stop)", "train.watch.stop=false goes on"] {
            assert!(message.contains(part), "{part}: {message}");
        }
        assert!(!workshop.path("data/initial_data_iter2.json").exists(), "there is no next iteration");
        assert!(!workshop.path("out/train/model").exists());
    }
    let on = [&["run", "run.yaml", "iterations=1"], &falling[..]].concat();
    workshop.succeeds(&on);
    workshop.succeeds(&[&on[..], &["output=undisturbed"]].concat());
    let model = |output: &str| fs::read(workshop.path(output).join("train/model/pytorch_model.safetensors")).unwrap();
    assert!(model("out") == model("undisturbed"));
}

#[test]
fn a_broken_checkpoint_is_passed_over() {
    let workshop = Workshop::new();
    workshop.succeeds(&["run", "run.yaml", "iterations=1"]);
    let whole = files(&workshop.path("out"));
    for file in ["pytorch_model.safetensors", "optimizer.safetensors", "state.json"] {
        fs::remove_dir_all(workshop.path("out/train/model")).unwrap();
        let path = workshop.path("out/train/checkpoint-12").join(file);
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        let output = workshop.hermesflow(&["run", "run.yaml", "iterations=1"]);
        let log = text(&output.stderr);
        assert!(output.status.success(), "{log}");
        assert!(log.contains("checkpoint-12 cannot be read and is skipped"), "{log}");
        assert!(log.contains("continues from out/train/checkpoint-9"), "{log}");
        assert!(whole == files(&workshop.path("out")), "{file}: the same bytes");
    }
    fs::remove_dir_all(workshop.path("out/train/model")).unwrap();
    for step in [9, 12] {
        fs::write(workshop.path(&format!("out/train/checkpoint-{step}/state.json")), "{").unwrap();
    }
    let message = workshop.fails(&["train", "run.yaml"]);
    assert!(
        message.contains("checkpoint-12") && message.contains("remove them to train from the beginning"),
        "{message}"
    );
}
