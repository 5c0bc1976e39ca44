//! What TensorBoard reads of a training, also of one that was killed and continued.

#![allow(clippy::unwrap_used, missing_docs)]

mod workshop;

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use workshop::{Workshop, files, text};

/// Prints, as the package reads them, every scalar by step and every picture by step and size.
const READ: &str = "
import json, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
read = EventAccumulator(sys.argv[1], size_guidance={'scalars': 0, 'images': 0})
read.Reload()
tags = read.Tags()
print(json.dumps({
    'scalars': {tag: [(event.step, event.value) for event in read.Scalars(tag)] for tag in tags['scalars']},
    'images': {tag: [(event.step, event.width, event.height) for event in read.Images(tag)] for tag in tags['images']},
}))
";

/// The Python that has the package, if any: `HERMESFLOW_TENSORBOARD` is a folder of packages.
fn read(folder: &std::path::Path) -> Option<serde_json::Value> {
    let mut command = Command::new("python3");
    if let Some(packages) = std::env::var_os("HERMESFLOW_TENSORBOARD") {
        command.env("PYTHONPATH", packages);
    }
    let output = command.args(["-c", READ]).arg(folder).output().ok()?;
    if text(&output.stderr).contains("No module named 'tensorboard'") {
        eprintln!("the Python package tensorboard cannot be had here: event files are not read by it");
        return None;
    }
    assert!(output.status.success(), "{}", text(&output.stderr));
    Some(serde_json::from_str(text(&output.stdout).lines().last().unwrap()).unwrap())
}

#[test]
fn a_training_that_was_killed_has_every_step_once_with_the_numbers_of_its_metrics() {
    let preview = "train.preview={prompts: [a red circle, two blue squares], images: 1}";
    let (whole, killed) = (Workshop::new(), Workshop::new());
    let arguments = ["run", "run.yaml", "iterations=1", preview];
    whole.succeeds(&arguments);
    for checkpoint in ["checkpoint-3", "checkpoint-9"] {
        let mut child = killed.command(&arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let began = Instant::now();
        while !killed.path("out/train").join(checkpoint).is_dir() && child.try_wait().unwrap().is_none() {
            assert!(began.elapsed() < Duration::from_secs(300), "no {checkpoint}");
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = child.kill();
        child.wait().unwrap();
    }
    killed.succeeds(&arguments);
    assert!(files(&whole.path("out")) == files(&killed.path("out")), "the same bytes, previews and report too");

    let folder = killed.path("out/train");
    for step in ["step-000000", "step-000003", "step-000012"] {
        let pictures = fs::read_dir(folder.join("preview").join(step)).unwrap().count();
        assert_eq!(pictures, 4, "two prompts under guidance 0 and 1: {step}");
    }
    let page = fs::read_to_string(killed.path("out/report.html")).unwrap();
    assert!(page.contains("Before and after, on fixed prompts") && page.contains("two blue squares"));

    let (Some(scalars), Some(images)) = (read(&folder), read(&folder.join("preview"))) else { return };
    let lines = fs::read_to_string(folder.join("metrics.jsonl")).unwrap();
    let lines: Vec<serde_json::Map<String, serde_json::Value>> =
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 12);
    let mut seen = 0;
    for (name, value) in lines.iter().flatten().filter(|(name, _)| *name != "step" && *name != "warnings") {
        seen += 1;
        let events = scalars["scalars"][name].as_array().unwrap_or_else(|| panic!("{name} is not there"));
        let steps: Vec<u64> = events.iter().map(|event| event[0].as_u64().unwrap()).collect();
        assert_eq!(steps, (1..=12).collect::<Vec<u64>>(), "{name}: every step once");
        let step = lines.iter().position(|line| line.get(name).is_some_and(|one| std::ptr::eq(one, value))).unwrap();
        assert_eq!(
            events[step][1].as_f64().unwrap() as f32,
            value.as_f64().unwrap() as f32,
            "{name}, step {}",
            step + 1
        );
    }
    assert!(seen > 12 * 10);
    let images = images["images"].as_object().unwrap();
    assert_eq!(images.len(), 4);
    for events in images.values() {
        let steps: Vec<u64> = events.as_array().unwrap().iter().map(|event| event[0].as_u64().unwrap()).collect();
        assert_eq!(steps, [0, 3, 6, 9, 12]);
    }
}
