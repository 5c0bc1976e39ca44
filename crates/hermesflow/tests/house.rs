//! What keeps the source readable: the size of its files, and documents that name files that exist.
#![allow(clippy::unwrap_used, missing_docs)]

use std::fs;
use std::path::{Path, PathBuf};

/// Lines that a source file may have.
const LONGEST: usize = 500;

/// All files below `folder` whose name ends with `.rs`, `.cu` or `.cuh`.
fn sources(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let source = path.extension().is_some_and(|ending| ["rs", "cu", "cuh"].iter().any(|of| *of == ending));
        match path.is_dir() {
            true => sources(&path, into),
            false if source => into.push(path),
            false => {}
        }
    }
}

#[test]
fn no_source_file_is_over_500_lines() {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut files = Vec::new();
    for package in fs::read_dir(crates).unwrap() {
        sources(&package.unwrap().path().join("src"), &mut files);
    }
    sources(&crates.parent().unwrap().join("fuzz/src"), &mut files);
    assert!(files.len() > 200, "only {} source files were found", files.len());
    let long: Vec<String> = files
        .iter()
        .map(|file| (file, fs::read_to_string(file).unwrap().lines().count()))
        .filter(|(_, lines)| *lines > LONGEST)
        .map(|(file, lines)| format!("{}: {lines}", file.strip_prefix(crates).unwrap_or(file).display()))
        .collect();
    assert!(long.is_empty(), "files of more than {LONGEST} lines, to be split:\n{}", long.join("\n"));
}

/// The documents of the repository.
fn documents(root: &Path) -> Vec<PathBuf> {
    let folders = ["", "docs", "docs/lab", "benches", "tools/record"];
    let files = folders.iter().flat_map(|folder| fs::read_dir(root.join(folder)).unwrap());
    files.map(|entry| entry.unwrap().path()).filter(|path| path.extension().is_some_and(|of| of == "md")).collect()
}

/// What stands between two marks, such as the target of a link.
fn between<'a>(text: &'a str, begin: &'a str, end: char) -> impl Iterator<Item = &'a str> {
    text.split(begin).skip(1).filter_map(move |rest| rest.split_once(end).map(|(inside, _)| inside))
}

/// The anchor that a heading has on a web page: lower case, hyphens for spaces, no punctuation.
fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

#[test]
fn documents_name_files_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().parent().unwrap();
    let mut wrong = Vec::new();
    let mut seen = 0;
    for document in documents(root) {
        let text = fs::read_to_string(&document).unwrap();
        let name = document.strip_prefix(root).unwrap().display();
        // Links, relative to the document.
        for link in between(&text, "](", ')').filter(|link| !link.contains("://")) {
            let (path, section) = link.split_once('#').unwrap_or((link, ""));
            let target = if path.is_empty() { document.clone() } else { document.parent().unwrap().join(path) };
            seen += 1;
            if !target.exists() {
                wrong.push(format!("{name}: the link {link}"));
            } else if !section.is_empty() {
                let headings = fs::read_to_string(&target).unwrap();
                let mut headings = headings.lines().filter(|line| line.starts_with('#'));
                if !headings.any(|line| anchor(line.trim_start_matches('#').trim()) == section) {
                    wrong.push(format!("{name}: the section of {link}"));
                }
            }
        }
        // Paths in code marks: from the root, or of a crate. The changelog and the notebook tell of the past.
        if name.to_string().contains("CHANGELOG") || name.to_string().contains("lab/") {
            continue;
        }
        let outside_blocks: String = text.split("```").step_by(2).collect();
        for path in
            outside_blocks.split('`').skip(1).step_by(2).filter(|code| !code.contains([' ', '{', '*', '…', '<']))
        {
            if path.contains("NAME") {
                continue;
            }
            let path = path.split(':').next().unwrap();
            let (first, _) = path.split_once('/').unwrap_or(("", ""));
            let ours = ["benches", "configs", "crates", "docs", "fuzz", "tools", ".ci"].contains(&first);
            let of_a_crate = first.starts_with("hermesflow") && !first.contains("demo");
            if ours || of_a_crate {
                seen += 1;
                let whole = if ours { root.join(path) } else { root.join("crates").join(path) };
                if !whole.exists() {
                    wrong.push(format!("{name}: {path}"));
                }
            }
        }
    }
    assert!(seen > 100, "only {seen} paths were found");
    assert!(wrong.is_empty(), "documents name what does not exist:\n{}", wrong.join("\n"));
}
