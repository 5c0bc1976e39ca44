//! Which crate may know which: ARCHITECTURE.md's doors open one way.
#![allow(clippy::unwrap_used, missing_docs)]

use std::process::Command;

use serde_json::Value;

/// Crate by crate, what it may depend on outside its tests.
const DOORS: [(&str, &[&str]); 9] = [
    ("records", &[]),
    ("score", &["nn"]),
    ("scenes", &[]),
    ("nn", &[]),
    ("models", &["nn"]),
    ("train", &["records", "models", "nn"]),
    ("verify", &["records", "nn", "models", "score", "train"]),
    ("fuzz", &["", "models"]),
    ("", &["verify", "records", "models", "score", "scenes", "train"]),
];

#[test]
fn doors_open_one_way() {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    assert_eq!(packages.len(), DOORS.len());
    let short =
        |name: &Value| name.as_str().unwrap().trim_start_matches("hermesflow").trim_start_matches('-').to_owned();
    for package in packages {
        let name = short(&package["name"]);
        let (_, open) = DOORS.iter().find(|(room, _)| *room == name).unwrap_or_else(|| panic!("{name:?} has no row"));
        for dependency in package["dependencies"].as_array().unwrap() {
            let ours = dependency["name"].as_str().unwrap().starts_with("hermesflow");
            let allowed = dependency["kind"] == "dev" || open.contains(&short(&dependency["name"]).as_str());
            assert!(!ours || allowed, "{name:?} may not know {}", dependency["name"]);
        }
    }
}
