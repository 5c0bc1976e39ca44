//! Which crate may know which, which room of the program may know which, and that no files know each other in a circle:
//! ARCHITECTURE.md's doors open one way.
#![allow(clippy::unwrap_used, missing_docs)]

mod imports;

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use imports::Imports;

/// Crate by crate, what it may depend on outside its tests.
const DOORS: [(&str, &[&str]); 10] = [
    ("group", &[]),
    ("records", &[]),
    ("score", &["nn"]),
    ("scenes", &[]),
    ("nn", &[]),
    ("models", &["nn"]),
    ("train", &["group", "records", "models", "nn"]),
    ("verify", &["records", "nn", "models", "score", "train"]),
    ("fuzz", &["", "models"]),
    ("", &["verify", "group", "records", "models", "score", "scenes", "train"]),
];

/// The rooms of the program, the lowest first: a folder or a file of its `src`. Each may import those before it, and no
/// other.
const ROOMS: [&str; 16] = [
    "print",
    "progress",
    "files",
    "digest",
    "kernels",
    "config",
    "made",
    "datasets",
    "run",
    "models",
    "cache",
    "judges",
    "world",
    "benchmarks",
    "report",
    "commands",
];

/// Imports between rooms of the program that lead upward still: the list only ever shrinks.
const KNOWN_UPWARD: [&str; 0] = [];

fn packages() -> Vec<Value> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap().clone();
    assert_eq!(packages.len(), DOORS.len());
    packages
}

fn short(name: &Value) -> String {
    name.as_str().unwrap().trim_start_matches("hermesflow").trim_start_matches('-').to_owned()
}

#[test]
fn doors_open_one_way() {
    for package in packages() {
        let name = short(&package["name"]);
        let (_, open) = DOORS.iter().find(|(room, _)| *room == name).unwrap_or_else(|| panic!("{name:?} has no row"));
        for dependency in package["dependencies"].as_array().unwrap() {
            let ours = dependency["name"].as_str().unwrap().starts_with("hermesflow");
            let allowed = dependency["kind"] == "dev" || open.contains(&short(&dependency["name"]).as_str());
            assert!(!ours || allowed, "{name:?} may not know {}", dependency["name"]);
        }
    }
}

/// The crate roots of every package: libraries and programs.
fn roots() -> Vec<PathBuf> {
    let packages = packages();
    let targets = packages.iter().flat_map(|package| package["targets"].as_array().unwrap());
    let is_source = |target: &&Value| ["lib", "bin"].iter().any(|kind| target["kind"][0] == *kind);
    targets.filter(is_source).map(|target| target["src_path"].as_str().unwrap().into()).collect()
}

#[test]
fn no_files_of_a_crate_import_each_other_in_a_circle() {
    let roots = roots();
    assert!(roots.len() > DOORS.len(), "{roots:?}");
    let circles: Vec<String> =
        roots.iter().flat_map(|root| Imports::of(root).circles()).map(|circle| circle.arrows).collect();
    assert!(circles.is_empty(), "files that import each other:\n{}", circles.join("\n"));
}

#[test]
fn no_room_of_the_program_imports_one_above_it() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let below = |file: &Path| file.strip_prefix(&source).unwrap().display().to_string();
    let room = |file: &str| file.split('/').next().unwrap().trim_end_matches(".rs").to_owned();
    let floor = |room: &str| ROOMS.iter().position(|known| *known == room);
    let mut upward = Vec::new();
    for (from, to, names) in Imports::of(&source.join("lib.rs")).arrows() {
        let (from, to) = (below(from), below(to));
        let (from_room, to_room) = (room(&from), room(&to));
        let good = floor(&from_room).zip(floor(&to_room)).is_some_and(|(from, to)| to < from);
        if from_room != "lib" && from_room != to_room && !good {
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            upward.push(format!("{from} imports {} of {to}", names.join(", ")));
        }
    }
    assert_eq!(upward, KNOWN_UPWARD, "upward, or of a room without a row");
}

/// The backbones by their names, in small letters.
const BACKBONES: [&str; 3] = ["show-o", "showo", "janus"];

/// Whether a text names a backbone. `show-on` and the like do not.
fn names_a_backbone(text: &str) -> bool {
    let text = text.to_lowercase();
    let ends = |at: usize| !text[at..].chars().next().is_some_and(char::is_alphabetic);
    let named = |name: &str| text.match_indices(name).any(|(at, _)| name != "show-o" || ends(at + name.len()));
    BACKBONES.iter().any(|name| named(name))
}

/// Which backbones there are, only the rooms know that open checkpoints and read their settings: code, help and comments of
/// everything else name none.
#[test]
fn only_the_models_room_and_the_settings_name_a_backbone() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut open, mut named) = (vec![source.clone()], Vec::new());
    while let Some(folder) = open.pop() {
        for path in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                open.push(path);
            } else if names_a_backbone(&std::fs::read_to_string(&path).unwrap()) {
                named.push(path.strip_prefix(&source).unwrap().display().to_string());
            }
        }
    }
    for place in ["models/backbone.rs", "models/showo.rs", "models/janus.rs", "config/model.rs"] {
        assert!(named.contains(&place.to_owned()), "{place}: {named:?}");
    }
    named.retain(|file| !file.starts_with("models/") && !file.starts_with("config/"));
    assert!(named.is_empty(), "{named:?}");
}

#[test]
fn names_of_backbones_are_seen() {
    for text in ["Show-o's replies", "crate::showo::Phi", "ShowoConfig", "Janus-Pro", "(show-o)"] {
        assert!(names_a_backbone(text), "{text}");
    }
    for text in ["it is shown only", "show-only", "shows", "show once"] {
        assert!(!names_a_backbone(text), "{text}");
    }
}

/// What the test itself sees: modules in files and in line, re-exports, globs, paths in code and in macros, and nothing
/// that only tests import.
#[test]
fn imports_are_seen_where_they_lead() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path
    };
    let root = write(
        "lib.rs",
        "pub mod a; mod b; mod c; mod d; pub use c::inner::Deep; pub fn top() {}
         #[cfg(test)] mod tests { use crate::c::Deep; }",
    );
    write("a.rs", "use crate::b::B; pub struct A; fn f() { println!(\"{}\", crate::c::count()); }");
    write("b/mod.rs", "mod e; pub use e::*; use crate::Deep; pub struct B(Deep);");
    write("b/e.rs", "use super::B; pub use crate::d::D; pub struct E(B); #[cfg(test)] mod tests { use crate::a::A; }");
    write("c.rs", "pub mod inner { use super::*; pub struct Deep; } use crate::b; pub fn count() -> b::D { todo!() }");
    write("d.rs", "use crate::b; pub struct D; made! { fn made(b: &b::B) {} }");
    let imports = Imports::of(&root);
    let shown = |path: &Path| path.strip_prefix(folder.path()).unwrap().display().to_string();
    let arrows: Vec<(String, String)> = imports.arrows().map(|(from, to, _)| (shown(from), shown(to))).collect();
    // What a file takes from the module that holds it draws no arrow, and a re-export leads on to what it names.
    let expected =
        [("a.rs", "b/mod.rs"), ("a.rs", "c.rs"), ("b/mod.rs", "c.rs"), ("c.rs", "d.rs"), ("d.rs", "b/mod.rs")];
    assert_eq!(arrows, expected.map(|(from, to)| (from.to_owned(), to.to_owned())));
    let circles = imports.circles();
    assert_eq!(circles.len(), 1, "{circles:?}");
    let files: Vec<String> = circles[0].files.iter().map(|file| shown(file)).collect();
    assert_eq!(files, ["b/mod.rs", "c.rs", "d.rs"]);
    assert!(circles[0].arrows.contains("imports Deep of"), "{}", circles[0].arrows);
}
