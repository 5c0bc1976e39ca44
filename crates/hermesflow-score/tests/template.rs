//! The template writer's questions about captions of many kinds, judged by hand.
//!
//! `sheet.tsv` holds every question with a verdict: `ok`, `not grammatical` or `not answerable` (from the caption
//! alone). After a change of the grammar `UPDATE_SHEET=1 cargo test --test template` writes the sheet anew; questions
//! that have not changed keep their verdicts, new ones get `?`, which the test refuses until somebody has read them.

#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;

use hermesflow_score::QuestionWriter;
use hermesflow_score::template::{TemplateWriter, questions};

const HEADER: &str = "caption\tkind\tquestion\tchoices\tanswer\tverdict";

/// The verdicts that a person may give.
const VERDICTS: [&str; 3] = ["ok", "not grammatical", "not answerable"];

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/template").join(name)
}

/// The captions, and how many of them the grammar was improved on.
fn captions() -> (Vec<String>, usize) {
    let (mut captions, mut tuned) = (Vec::new(), 0);
    for line in fs::read_to_string(path("captions.txt")).unwrap().lines().filter(|line| !line.starts_with('#')) {
        match line {
            "[tuned]" => {}
            "[frozen]" => tuned = captions.len(),
            _ => captions.push(line.to_string()),
        }
    }
    (captions, tuned)
}

/// Every question without its verdict, with the number of its caption.
fn lines(captions: &[String]) -> Vec<(usize, String)> {
    let mut lines = Vec::new();
    for (number, caption) in captions.iter().enumerate() {
        for one in questions(caption) {
            let question = one.question;
            let choices = question.choices.join(" | ");
            lines.push((
                number + 1,
                format!("{}\t{}\t{}\t{choices}\t{}", number + 1, one.kind, question.question, question.answer),
            ));
        }
    }
    lines
}

#[test]
fn the_sheet_is_what_the_writer_writes_and_a_person_approves() {
    let (captions, tuned) = captions();
    let sheet = fs::read_to_string(path("sheet.tsv")).unwrap_or_default();
    let mut verdicts: HashMap<&str, &str> = sheet.lines().skip(1).filter_map(|line| line.rsplit_once('\t')).collect();
    let lines = lines(&captions);
    let mut rows = Vec::new();
    let mut good = [(0, 0), (0, 0)];
    for (caption, line) in &lines {
        let verdict = verdicts.remove(line.as_str()).unwrap_or("?");
        let (ok, all) = &mut good[usize::from(*caption > tuned)];
        (*ok, *all) = (*ok + usize::from(verdict == "ok"), *all + 1);
        rows.push(format!("{line}\t{verdict}"));
    }
    let written = format!("{HEADER}\n{}\n", rows.join("\n"));
    for (name, (ok, all)) in ["tuned", "frozen"].iter().zip(good) {
        println!("{name}: {ok} of {all} questions are ok ({:.1} %)", 100.0 * ok as f64 / f64::max(all as f64, 1.0));
    }
    if std::env::var_os("UPDATE_SHEET").is_some() {
        fs::write(path("sheet.tsv"), written).unwrap();
        return;
    }
    assert!(sheet == written, "the questions have changed: run with UPDATE_SHEET=1 and judge those with the verdict ?");
    for row in &rows {
        assert!(VERDICTS.iter().any(|verdict| row.ends_with(&format!("\t{verdict}"))), "{row}");
    }
    for (ok, all) in good {
        assert!(ok * 10 > all * 9, "more than nine of ten questions must be good: {ok} of {all}");
    }
}

#[test]
fn questions_are_well_formed() {
    let (captions, _) = captions();
    assert!(captions.len() >= 200);
    for caption in &captions {
        well_formed(caption);
    }
}

fn well_formed(caption: &str) {
    let written = questions(caption);
    assert!(written.len() <= 12, "{caption}");
    let mut asked: Vec<&str> = written.iter().map(|one| one.question.question.as_str()).collect();
    asked.sort_unstable();
    asked.dedup();
    assert_eq!(asked.len(), written.len(), "{caption}: no question twice");
    for one in &written {
        let question = &one.question;
        assert!((2..=4).contains(&question.choices.len()), "{caption}: {question:?}");
        assert_eq!(question.choices.iter().filter(|choice| **choice == question.answer).count(), 1, "{question:?}");
        let mut choices = question.choices.clone();
        choices.sort();
        choices.dedup();
        assert_eq!(choices.len(), question.choices.len(), "{caption}: {question:?}");
        assert!(question.question.ends_with('?') && !question.element.is_empty(), "{caption}: {question:?}");
    }
    assert_eq!(written, questions(caption), "always the same");
}

/// Any bytes are read without a panic; every question is well formed.
#[test]
fn garbage_is_survived() {
    let pieces = [
        "a",
        "the",
        "dog",
        "'",
        "\"",
        "''s",
        "of",
        "in front of",
        "--ar",
        "16:9",
        "é",
        "猫",
        "\u{0}",
        "\n",
        ",",
        ".",
        "two",
        "red",
        "and",
        "riding",
        "is",
        "-",
        "--",
        "'s",
        "pair of",
        "A",
        "ß",
        "\u{1F600}",
        "99999999999",
        "no",
        "with",
        "on",
        "Paris",
        "slice of",
        "man",
        "women",
        "without",
        "it",
        "\u{202e}",
        "(",
        "::2",
        "says",
        "'STOP'",
        "\u{fb01}sh",
        "İ",
        "glass of",
    ];
    let mut random = 1u64;
    let mut next = move || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) as usize
    };
    for _ in 0..20_000 {
        let words: Vec<&str> = (0..next() % 20).map(|_| pieces[next() % pieces.len()]).collect();
        well_formed(&words.join(if next() % 9 == 0 { "" } else { " " }));
    }
    for _ in 0..2_000 {
        let bytes: Vec<u8> = (0..next() % 60).map(|_| next() as u8).collect();
        well_formed(&String::from_utf8_lossy(&bytes));
    }
}

#[test]
fn what_is_no_caption_gives_no_question() {
    for text in
        ["", " ", "???", "Un perro grande en la calle.", "一只猫坐在椅子上", "4k, 8k, hdr, masterpiece --ar 16:9"]
    {
        assert_eq!(questions(text), [], "{text}");
    }
    let long = "a dog and ".repeat(5_000);
    well_formed(&long);
    let written = TemplateWriter.write(&["a red car", ""]).unwrap();
    assert!(!written[0].is_empty() && written[1].is_empty());
}
