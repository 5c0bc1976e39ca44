//! Settings as a person gives them: values behind the file, errors that say where a value came from, configurations by name.

#![allow(clippy::unwrap_used, missing_docs)]

mod workshop;

use std::fs;

use workshop::{RUN, Workshop, text};

#[test]
fn a_path_is_taken_as_it_stands() {
    let workshop = Workshop::new();
    for name in [
        "1.10", "1e3", "0x10", "a #1", " lead", "#x", "&y", "*z", "[b]", "a: b", "null", "~", "true", "'q'", "%a",
        "a=b",
    ] {
        let root = format!("data.root={name}");
        workshop.succeeds(&["scenes", "scenes", "data.scenes.records=1", &root]);
        assert!(workshop.path(name).join("initial_data.json").is_file(), "{name}");
    }
    for argument in ["data.root=", "train.steps=", "ask.file="] {
        let message = workshop.fails(&["scenes", "scenes", argument]);
        let key = argument.trim_end_matches('=');
        assert!(message.contains(&format!("{key}: the value is empty")), "{message}");
    }
    let own = "output=1.50";
    workshop.write("pretrain.yaml", include_str!("../../../configs/pretrain-scenes.yaml"));
    workshop.fails(&["pretrain", "pretrain.yaml", own, "vq.model.z_channels=0"]);
    assert!(!workshop.path("1.5").exists());
}

#[test]
fn an_error_says_where_the_value_came_from_and_what_was_meant() {
    let workshop = Workshop::new();
    for (argument, said) in [
        ("train.steps=0", "train.steps: must be at least 1 (from the argument train.steps=0)"),
        (
            "train.warmup_steps=50",
            "50 steps of warm-up do not fit into a run of 12 steps (from the argument train.warmup",
        ),
        ("imagine.images=many", "imagine.images: invalid type: string \"many\", expected a whole number"),
        ("train.stepz=3", "train.stepz: there is no such key; did you mean train.schedule.steps?"),
        ("train.schedule.stepz=3", "train.schedule.stepz: there is no such key; did you mean train.schedule.steps?"),
        (
            "train.schedule.steps=0",
            "train.schedule.steps: must be at least 1 (from the argument train.schedule.steps=0)",
        ),
        ("train.schedule=cosin", "train.schedule: unknown variant `cosin`"),
        (
            "train={steps: 3, schedule: {steps: 4}}",
            "train.steps: is the earlier name of train.schedule.steps, which is given too",
        ),
        ("warmup_steps=3", "warmup_steps: there is no such key; did you mean train.schedule.warmup_steps?"),
        ("steps=3", "did you mean imagine.steps or train.schedule.steps?"),
        ("trian.steps=3", "trian: there is no such key; did you mean train? (from the argument trian.steps=3)"),
        ("data.scenes.record=3", "did you mean data.scenes.records?"),
        ("train.anchor_und=-1", "train.anchor_und: -1 is not 0 or more"),
        ("train", "\"train\" is not key=value"),
    ] {
        let message = workshop.fails(&["scenes", "run.yaml", argument]);
        assert!(message.contains(said), "{argument}: {message}");
    }
    for (from, to, said) in [
        ("steps: 12", "steps: 0", "bad.yaml, line 12: train.steps: must be at least 1"),
        ("warmup_steps", "warmup_stepz", "bad.yaml, line 12: train.warmup_stepz: there is no such key; did you mean"),
        ("top_k: 20", "top_k: many", "bad.yaml, line 7: caption.candidates[1].top_k: invalid type"),
        ("seed: 5", "seed: -5", "bad.yaml, line 2: seed: "),
        ("steps: 12,", "steps: 12, schedule: { steps: 12 },", "bad.yaml, line 12: train.steps: is the earlier name of"),
        ("seed: 5", "sed: 5", "bad.yaml, line 2: sed: there is no such key; did you mean seed?"),
        (
            "warmup_steps: 2, ",
            "",
            "bad.yaml: train.schedule.warmup_steps: 300 steps of warm-up do not fit into a run of 12 steps (train.schedule.warmup_steps has its default)",
        ),
    ] {
        workshop.write("bad.yaml", &RUN.replacen(from, to, 1));
        let message = workshop.fails(&["scenes", "bad.yaml"]);
        assert!(message.contains(said), "{said}: {message}");
    }
    let message = workshop.fails(&["pretrain", "pretrain-scenes", "vq.stepz=3"]);
    assert!(message.contains("vq.stepz: there is no such key; did you mean vq.steps?"), "{message}");
}

#[test]
fn configurations_are_inside_the_program() {
    let workshop = Workshop::new();
    let names = workshop.succeeds(&["config"]);
    for name in names.lines() {
        let printed = workshop.succeeds(&["config", name]);
        let file = format!("../../configs/{name}.yaml");
        let text = fs::read_to_string(file).unwrap();
        let (schema, rest) = text.split_once('\n').unwrap();
        assert!(schema.starts_with("# yaml-language-server: $schema="), "{schema}");
        assert_eq!(printed, rest, "a copy has no schema beside it");
    }
    assert!(names.contains("scenes") && names.contains("paper"));
    let message = workshop.fails(&["config", "scene"]);
    assert!(message.contains("none of scenes, released, paper"), "{message}");
    workshop.succeeds(&["scenes", "scenes", "data.scenes.records=2", "data.root=of-name"]);
    // A file of that name comes first.
    workshop.write("scenes", RUN);
    workshop.succeeds(&["scenes", "scenes", "data.root=of-file", "data.scenes.records=1"]);
    let ids = fs::read_to_string(workshop.path("of-file/initial_data.json")).unwrap();
    assert!(!fs::read_to_string(workshop.path("of-name/initial_data.json")).unwrap().contains(&ids));
    let message = workshop.fails(&["run", "no-such"]);
    assert!(message.contains("no-such") && message.contains("released"), "{message}");
}

#[test]
fn help_fits_a_hundred_columns() {
    let workshop = Workshop::new();
    let listed = workshop.succeeds(&["--help"]);
    let commands = listed.lines().skip_while(|line| !line.starts_with("Commands:")).skip(1);
    let names: Vec<&str> = commands
        .take_while(|line| !line.is_empty())
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    assert!(names.len() > 20, "{names:?}");
    for name in std::iter::once("").chain(names) {
        let arguments: Vec<&str> = [name, "--help"].into_iter().filter(|argument| !argument.is_empty()).collect();
        for columns in ["100", "300"] {
            let output = workshop.command(&arguments).env("COLUMNS", columns).output().unwrap();
            for line in text(&output.stdout).lines() {
                assert!(line.chars().count() <= 100, "{name}: {line}");
            }
        }
    }
}

/// The names of the commands, as `--help` lists them.
fn commands(workshop: &Workshop) -> Vec<String> {
    let listed = workshop.succeeds(&["--help"]);
    let lines = listed.lines().skip_while(|line| !line.starts_with("Commands:")).skip(1);
    let named = lines.take_while(|line| !line.is_empty()).filter(|line| !line.starts_with("   "));
    named.filter_map(|line| line.split_whitespace().next().map(str::to_owned)).filter(|name| name != "help").collect()
}

#[test]
fn every_command_is_completed_by_shells_and_has_a_manual_page() {
    let workshop = Workshop::new();
    let commands = commands(&workshop);
    assert!(commands.len() > 25 && commands.contains(&"keys".to_owned()), "{commands:?}");
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = workshop.succeeds(&["completions", shell]);
        assert!(commands.iter().all(|name| script.contains(name)), "{shell}");
    }
    let written = workshop.succeeds(&["man", "--out", "man1"]);
    assert_eq!(written.lines().count(), commands.len() + 1);
    for name in &commands {
        let page = fs::read_to_string(workshop.path(&format!("man1/hermesflow-{name}.1"))).unwrap();
        let page = page.replace("\\-", "-");
        assert!(page.contains(&format!("hermesflow-{name} - ")) && page.contains(".SH OPTIONS"), "{name}: {page}");
    }
    let program = fs::read_to_string(workshop.path("man1/hermesflow.1")).unwrap();
    assert_eq!(workshop.succeeds(&["man"]).trim_end(), program.trim_end());
}

#[test]
fn keys_are_explained_and_a_prefix_that_none_has_is_answered_with_the_nearest() {
    let workshop = Workshop::new();
    assert!(workshop.succeeds(&["keys"]).contains("train.loss: "));
    let shown = workshop.succeeds(&["keys", "train.loss"]);
    assert!(shown.contains("train.loss.beta (default: 0.2)") && shown.contains("Earlier name: train.beta"), "{shown}");
    assert!(
        workshop.succeeds(&["keys", "train.learning_rate"]).contains("train.schedule.learning_rate (default: 2e-5)")
    );
    assert!(workshop.succeeds(&["keys", "--pretrain", "vq.steps"]).contains("vq.steps (required)"));
    let message = workshop.fails(&["keys", "train.lose"]);
    assert!(message.contains("train.lose: no key begins with this; did you mean train.loss?"), "{message}");
    for (files, key) in [("run", "imagine"), ("pretrain", "tokenizer")] {
        let schema: serde_json::Value = serde_json::from_str(&workshop.succeeds(&["keys", "--schema", files])).unwrap();
        assert!(schema["properties"][key].is_object(), "{files}");
    }
}

#[test]
#[cfg(unix)]
fn a_picture_may_have_any_name() {
    use std::os::unix::ffi::OsStringExt;
    let workshop = Workshop::new();
    workshop.succeeds(&["scenes", "run.yaml"]);
    let name = std::ffi::OsString::from_vec(b"p\xff \"q\"\n.png".to_vec());
    fs::copy(workshop.path("data/images/train-000000.png"), workshop.folder.path().join(&name)).unwrap();
    for json in [&["--json"][..], &[]] {
        let mut command = workshop.command(&["mmu", "run.yaml", "--image"]);
        let output = command.arg(&name).args(json).output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        if !json.is_empty() {
            let line: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
            assert!(line["file"].as_str().unwrap().starts_with('p'));
        }
    }
}
