//! Files that are not the program's own stay as they are, and two programs do not write to one place at once.

#![allow(clippy::unwrap_used, missing_docs)]

mod workshop;

use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

use workshop::{Workshop, files, text};

#[test]
fn no_command_writes_over_what_it_did_not_make() {
    let workshop = Workshop::new();
    let mine = "this is mine";
    for name in [
        "records/initial_data.json",
        "pictures/images/train-000001.png",
        "asked/vqa_data.json",
        "asked/initial_data.json",
        "paired/pair_dpo_data.json",
        "captioned/understanding_caption_results.json",
        "captioned2/understanding_caption_results.jsonl",
        "imagined/generated_images/train-000000/0.png",
        "answered/generation_vqa_results.json",
        "run/config.yaml",
        "shown/sheet.png",
        "demo/figures.md",
        "controls/controls.md",
        "pretrained/config.yaml",
        "pretrained2/tokenizer.json",
        "imported/images/7.png",
        "report.json",
    ] {
        workshop.write(name, mine);
    }
    let record = "[{\"id\": \"a\", \"img_path\": \"a.png\", \"prompt\": \"p\", \"caption\": \"a red car\"}]";
    workshop.write("asked/initial_data.json", record);
    let scenes = |root: &str| {
        workshop.succeeds(&["scenes", "run.yaml", "data.root=own"]);
        for name in ["initial_data.json", "images", ".settings"] {
            let status = std::process::Command::new("cp")
                .args(["-r", name])
                .arg(workshop.path(root))
                .current_dir(workshop.path("own"))
                .status();
            assert!(status.unwrap().success());
        }
    };
    ["paired", "captioned", "captioned2", "imagined", "answered"].iter().for_each(|root| scenes(root));
    for (stage, root) in [
        ("imagine", "answered"),
        ("ask", "answered"),
        ("caption", "paired"),
        ("imagine", "paired"),
        ("ask", "paired"),
        ("answer", "paired"),
    ] {
        workshop.succeeds(&[stage, "run.yaml", &format!("data.root={root}")]);
    }
    let entry = serde_json::json!({ "id": 7, "image": workshop.path("own/images/train-000000.png"), "caption": "c" });
    workshop.write("source.jsonl", &entry.to_string());
    workshop.write("pretrain.yaml", include_str!("../../../configs/pretrain-scenes.yaml"));
    let before = files(workshop.folder.path());
    let pretrain = |output: &'static str| vec!["pretrain", "pretrain.yaml", output];
    let refused: Vec<Vec<&str>> = vec![
        vec!["scenes", "run.yaml", "data.root=records"],
        vec!["scenes", "run.yaml", "data.root=pictures"],
        vec!["ask", "run.yaml", "data.root=asked", "data.scenes=null", "ask.writer=template"],
        vec!["pair", "run.yaml", "data.root=paired"],
        vec!["caption", "run.yaml", "data.root=captioned"],
        vec!["caption", "run.yaml", "data.root=captioned2"],
        vec!["imagine", "run.yaml", "data.root=imagined"],
        vec!["answer", "run.yaml", "data.root=answered"],
        vec!["run", "run.yaml", "data.root=unused", "output=run"],
        vec!["t2i", "run.yaml", "--prompt", "a", "--prompt", "b", "--out", "shown"],
        vec!["demo", "--quick", "--out", "demo"],
        vec!["controls", "run.yaml", "--out", "controls"],
        pretrain("output=pretrained"),
        pretrain("output=pretrained2"),
        vec!["import", "source.jsonl", "--copy", "--to", "imported"],
        vec!["eval", "run.yaml", "--prompts", "2", "--out", "report.json"],
        vec!["random-model", "shown"],
        vec!["convert", "model/showo", "shown"],
    ];
    for command in &refused {
        let message = workshop.fails(command);
        assert!(
            ["already exists", "did not write it", "is not empty", "not the configuration", "not a report"]
                .iter()
                .any(|part| message.contains(part)),
            "{command:?}: {message}"
        );
    }
    let after = files(workshop.folder.path());
    for (name, bytes) in &before {
        assert!(after[name] == *bytes, "{} was written over", name.display());
    }
}

#[test]
fn a_place_that_is_new_is_all_that_a_command_touches() {
    let workshop = Workshop::new();
    // Names that a program may have taken for temporary ones, a decoder's configuration outside, an index that leads away.
    workshop.write("converted.tmp/mine", "mine");
    workshop.write("made.tmp/mine", "mine");
    workshop.write("phi/config.json", "mine");
    workshop.write("victim.txt", "mine");
    let config = workshop.path("model/showo/config.json");
    let inside = fs::read_to_string(&config).unwrap();
    fs::rename(workshop.path("model/showo/phi"), workshop.path("model/phi")).unwrap();
    fs::write(&config, inside.replace("\"phi\"", "\"../phi\"")).unwrap();
    workshop.succeeds(&["convert", "model/showo", "converted"]);
    workshop.succeeds(&["convert", "converted", "again"]);
    assert_eq!(fs::read_to_string(workshop.path("converted/config.json")).unwrap(), inside, "its own folder's");
    assert!(files(&workshop.path("converted")) == files(&workshop.path("again")));
    workshop.succeeds(&["random-model", "made"]);
    let victim = workshop.path("victim.txt").display().to_string();
    for name in ["../../victim.txt", &victim] {
        let index = serde_json::json!({ "weight_map": { "a": name } }).to_string();
        workshop.write("filled/showo/pytorch_model.safetensors.index.json", &index);
        let message = workshop.fails(&["random-model", "filled"]);
        assert!(message.contains("filled: is not empty"), "{message}");
        fs::copy(&config, workshop.path("filled/showo/config.json")).unwrap();
        let message = workshop.fails(&["convert", "filled/showo", "never"]);
        assert!(message.contains("no file name within this folder"), "{message}");
    }
    for name in ["converted.tmp/mine", "made.tmp/mine", "phi/config.json", "victim.txt"] {
        assert_eq!(fs::read_to_string(workshop.path(name)).unwrap(), "mine", "{name}");
    }
    let leftover = files(workshop.folder.path()).into_keys().find(|name| {
        let name = name.display().to_string();
        name.contains("hermesflow-") || name.contains(".tmp/.") || name.contains("/.tmp")
    });
    assert_eq!(leftover, None);
}

#[test]
fn pictures_of_ones_own_prompts_may_be_made_again() {
    let workshop = Workshop::new();
    let make = ["t2i", "run.yaml", "--prompt", "a", "--prompt", "b", "--out", "shown"];
    workshop.succeeds(&make);
    let before = fs::read(workshop.path("shown/sheet.png")).unwrap();
    workshop.succeeds(&[&make[..], &["--seed", "9"]].concat());
    assert!(before != fs::read(workshop.path("shown/sheet.png")).unwrap());
}

#[test]
fn one_program_at_a_time_and_the_other_says_who() {
    let workshop = Workshop::new();
    let mut command = workshop.command(&["run", "run.yaml", "train.steps=2000"]);
    let mut first = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let (clock, lock) = (Instant::now(), workshop.path("out/.hermesflow-lock"));
    while !lock.exists() || fs::read(&lock).unwrap().is_empty() {
        assert!(clock.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(5));
    }
    let holder = format!("`hermesflow run`, process {}", first.id());
    for command in [
        &["run", "run.yaml"][..],
        &["caption", "run.yaml"],
        &["train", "run.yaml"],
        &["answer", "run.yaml", "output=other"],
    ] {
        let message = workshop.fails(command);
        assert!(message.contains(&holder) && message.contains("is in use by"), "{command:?}: {message}");
    }
    assert!(!workshop.path("other").exists(), "nothing is left of one that was refused");
    assert!(first.try_wait().unwrap().is_none(), "the first goes on");
    first.kill().unwrap();
    first.wait().unwrap();
    assert!(lock.exists(), "as a kill leaves it");
    let output = workshop.hermesflow(&["run", "run.yaml", "data.root=fresh", "output=fresh"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    workshop.succeeds(&["caption", "run.yaml"]);
    workshop.succeeds(&["train", "run.yaml", "data.root=fresh", "train.steps=3"]);
    let locks = files(workshop.folder.path()).into_keys().filter(|name| name.display().to_string().ends_with("lock"));
    // The killed run's other stages still have theirs.
    assert!(locks.into_iter().all(|name| name.starts_with("data/.settings")));
}
