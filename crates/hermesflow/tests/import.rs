//! Data as users have it: imported from every form, and through the whole of curation.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use image::{DynamicImage, ImageFormat, RgbImage, RgbaImage};
use serde_json::{Value, json};
use tempfile::TempDir;

mod workshop;

use workshop::files;

/// A folder to work in.
struct Workshop(TempDir);

impl Workshop {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hermesflow"));
        command.current_dir(self.0.path()).args(arguments).stdin(Stdio::null());
        command
    }

    /// Standard output and the log of a command that succeeds.
    fn succeeds(&self, arguments: &[&str]) -> (String, String) {
        let Output { status, stdout, stderr } = self.command(arguments).output().unwrap();
        let log = String::from_utf8(stderr).unwrap();
        assert!(status.success(), "{arguments:?}: {log}");
        (String::from_utf8(stdout).unwrap(), log)
    }

    /// The message of a command that ends with exit code 1.
    fn fails(&self, arguments: &[&str]) -> String {
        let Output { status, stderr, .. } = self.command(arguments).output().unwrap();
        let message = String::from_utf8(stderr).unwrap();
        assert_eq!(status.code(), Some(1), "{arguments:?}: {message}");
        message
    }

    fn json(&self, name: &str) -> Vec<Value> {
        serde_json::from_slice(&fs::read(self.path(name)).unwrap()).unwrap()
    }

    fn ids(&self, name: &str) -> Vec<String> {
        self.json(name).iter().map(|record| record["id"].to_string().replace('"', "")).collect()
    }
}

fn fixture(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name).display().to_string()
}

fn encoded(picture: &DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    picture.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

/// Pictures of many sizes, modes and formats, by their file names.
fn pictures() -> Vec<(String, Vec<u8>)> {
    let mut pictures = Vec::new();
    for (number, (width, height)) in
        [(1, 1), (2, 3), (1, 700), (900, 5), (64, 64), (63, 65), (300, 200), (700, 900)].into_iter().enumerate()
    {
        let colour = RgbaImage::from_fn(width, height, |x, y| {
            image::Rgba([(x * 7) as u8, (y * 3) as u8, (number * 30) as u8, (x + y) as u8])
        });
        let colour = DynamicImage::ImageRgba8(colour);
        let rgb = DynamicImage::ImageRgb8(colour.to_rgb8());
        let modes = [
            ("rgba.png", colour.clone(), ImageFormat::Png),
            ("l.png", DynamicImage::ImageLumaA8(colour.to_luma_alpha8()), ImageFormat::Png),
            ("deep.png", DynamicImage::ImageRgb16(colour.to_rgb16()), ImageFormat::Png),
            ("colour.jpg", rgb.clone(), ImageFormat::Jpeg),
            ("grey.jpg", DynamicImage::ImageLuma8(colour.to_luma8()), ImageFormat::Jpeg),
            ("lossless.webp", colour, ImageFormat::WebP),
            ("a-jpeg.png", rgb, ImageFormat::Jpeg),
        ];
        let name = |end: &str| format!("{width}x{height}-{end}");
        pictures.extend(modes.iter().map(|(end, picture, format)| (name(end), encoded(picture, *format))));
    }
    pictures
}

const RUN: &str = "
seed: 5
data: { root: data, chunk: 4, allow_outside: true }
model: { showo: model/showo, vq: model/vq, tokenizer: model/tokenizer.json }
caption: { max_new_tokens: 4, candidates: [{ top_k: 1, temperature: 1.0 }, { top_k: 0, temperature: 2.0 }] }
imagine: { images: 2, steps: 2, guidance: 0.0 }
ask: { writer: template }
answer: { matcher: lexical, max_new_tokens: 4 }
pair: { similarity: lexical, min_accuracy: 0.0 }
";

/// Everything before training over the data root; the log of `caption` and what `pair` says.
fn curate(workshop: &Workshop) -> (String, String) {
    if !workshop.path("model").exists() {
        workshop.succeeds(&["random-model", "model"]);
        workshop.write("run.yaml", RUN);
    }
    let (_, log) = workshop.succeeds(&["caption", "run.yaml"]);
    ["imagine", "ask", "answer"].iter().for_each(|stage| drop(workshop.succeeds(&[stage, "run.yaml"])));
    (log, workshop.succeeds(&["pair", "run.yaml"]).0)
}

#[test]
fn files_of_every_kind_go_all_the_way() {
    let workshop = Workshop::new();
    let captions = ["A red car in front of a house.", "Two dogs and a cat.", "Three birds sit on a roof."];
    let mut lines = String::new();
    let pictures = pictures();
    for (number, (name, bytes)) in pictures.iter().enumerate() {
        workshop.write(&format!("source/pictures/{name}"), bytes);
        let caption = captions[number % captions.len()];
        lines += &(json!({"file_name": format!("pictures/{name}"), "captions": [caption, "other"]}).to_string() + "\n");
        if number == 10 {
            workshop.write("source/pictures/bad.jpg", &bytes[..20]);
            lines += "{\"file_name\": \"pictures/bad.jpg\", \"captions\": [\"a bad one\"]}\n{\"file_name\": \"pic\n";
            lines += "{\"file_name\": \"pictures/none.jpg\", \"captions\": [\"c\"]}\n{\"file_name\": \"pictures/1x1-rgba.png\"}\n";
            lines += "{\"file_name\": \"pictures/1x1-rgba.png\", \"captions\": [\"again\"]}\n";
        }
    }
    workshop.write("source/all.jsonl", &lines);
    let (out, log) = workshop.succeeds(&["import", "source/all.jsonl", "--to", "data"]);
    assert_eq!(out, "data/initial_data.json\n");
    assert!(log.contains("id: the image's path; image: file_name; caption: captions; prompt: captions"), "{log}");
    for said in [
        "all.jsonl, line 12: image unreadable (source/pictures/bad.jpg: ",
        "all.jsonl, line 13: not a record (a text is not closed)",
        "all.jsonl, line 14: image file missing (pictures/none.jpg)",
        "all.jsonl, line 15: no caption (its fields: file_name)",
        "all.jsonl, line 16: id there twice (pictures_1x1-rgba)",
        "56 records; skipped 5: 1 not a record; 1 no caption; 1 image file missing; 1 image unreadable; 1 id there twice",
    ] {
        assert!(log.contains(said), "{said}: {log}");
    }
    let records = workshop.json("data/initial_data.json");
    assert_eq!((records.len(), &records[0]["id"]), (pictures.len(), &json!("pictures_1x1-rgba")));
    assert_eq!(records[1]["caption"], captions[1]);
    assert_eq!(Path::new(records[0]["img_path"].as_str().unwrap()), workshop.path("source/pictures/1x1-rgba.png"));

    // One that breaks after the import, and one that goes.
    workshop.write("source/pictures/64x64-colour.jpg", "no picture");
    fs::remove_file(workshop.path("source/pictures/64x64-lossless.webp")).unwrap();
    let (log, pairs) = curate(&workshop);
    for said in [
        "caption: skipped record pictures_64x64-colour: ",
        "64x64-colour.jpg: not a readable image",
        "64x64-lossless.webp does not exist",
    ] {
        assert!(log.contains(said), "{said}: {log}");
    }
    assert!(log.contains("caption: skipped 2 of 56 records"), "{log}");
    assert!(pairs.contains("from 56 records") && pairs.contains("2 dropped: no captions"), "{pairs}");
    assert_eq!(workshop.json("data/understanding_caption_results.json").len(), 54);
    assert_eq!(workshop.json("data/generation_vqa_results.json").len(), 54, "what gives no pair is not answered");
}

#[test]
fn parquet_and_shards_give_the_same_records() {
    let expected = ["one", "two", "three", "four"];
    for (sources, broken, bad) in [
        (vec![fixture("struct-snappy.parquet")], "struct-snappy.parquet, row 3: image unreadable", "row 6: no caption"),
        (
            vec![fixture("shard-000.tar"), fixture("shard-001.tar.gz")],
            "shard-000.tar, broken: image unreadable",
            "five: no caption",
        ),
        (
            vec![fixture("shard-{000..000}.tar"), fixture("{shard-001}.tar.gz")],
            "broken: image unreadable",
            "five: no caption",
        ),
    ] {
        let workshop = Workshop::new();
        let sources: Vec<&str> = sources.iter().map(String::as_str).collect();
        let (_, log) = workshop.succeeds(&[&["import", "--to", "data"], &sources[..]].concat());
        assert!(log.contains(broken) && log.contains(bad), "{log}");
        assert!(log.contains("4 records; skipped 2: 1 no caption; 1 image unreadable"), "{log}");
        assert_eq!(workshop.ids("data/initial_data.json"), expected);
        let records = workshop.json("data/initial_data.json");
        assert_eq!(records[0]["caption"], "A red car parked in front of a small house.");
        let paths: Vec<&str> = records.iter().map(|record| record["img_path"].as_str().unwrap()).collect();
        assert_eq!(paths, ["images/one.png", "images/two.jpg", "images/three.png", "images/four.webp"]);
        assert!(paths.iter().all(|path| workshop.path("data").join(path).is_file()));
        assert_eq!(fs::read_dir(workshop.path("data/images")).unwrap().count(), 4, "no other file");
        let (log, pairs) = curate(&workshop);
        assert!(!log.contains("skipped") && pairs.contains("from 4 records"), "{log}{pairs}");
    }
}

#[test]
fn a_plain_binary_column_is_read() {
    let workshop = Workshop::new();
    let (_, log) = workshop.succeeds(&["import", &fixture("binary-zstd.parquet"), "--to", "data", "--limit", "3"]);
    assert!(log.contains("id: uid; image: jpg (embedded); caption: TEXT"), "{log}");
    assert_eq!(workshop.ids("data/initial_data.json"), ["0", "1", "3"]);
    assert!(workshop.json("data/initial_data.json")[0]["id"].is_number(), "as it was");
    assert_eq!(fs::read_dir(workshop.path("data/images")).unwrap().count(), 3, "none beyond the limit");
    let named = ["import", &fixture("binary-zstd.parquet"), "--to", "other", "--image", "other", "--caption", "uid"];
    workshop.succeeds(&named);
    assert_eq!(workshop.json("other/initial_data.json")[0]["caption"], "0");
}

#[test]
fn journeydbs_annotation_brings_its_questions() {
    let workshop = Workshop::new();
    let picture = encoded(&DynamicImage::ImageRgb8(RgbImage::new(9, 9)), ImageFormat::Jpeg);
    let entry = |name: &str, caption: &str| {
        let asked =
            |answer: &str| json!({"Question": "Which style?", "Options": {"A": "oil", "B": "ink"}, "Answer": answer});
        let tasks = json!({"Style Relevant Questions and Answers": [asked("B"), asked("E")], "Content Relevant Questions and Answers": []});
        json!({"img_path": format!("./000/{name}.jpg"), "prompt": "car --v 5", "Task1": {}, "Task2": {"Caption": caption}, "Task3": tasks}).to_string()
    };
    let lines = [entry("a-1", "A red car."), entry("b-2", "Two dogs."), entry("gone", "A cat."), entry("c-3", "")];
    workshop.write("anno/train.jsonl", lines.join("\n"));
    ["a-1", "b-2", "c-3"].iter().for_each(|name| workshop.write(&format!("anno/imgs/000/{name}.jpg"), &picture));
    let (out, log) = workshop.succeeds(&["import", "anno/train.jsonl", "--to", "data", "--copy"]);
    assert_eq!(out, "data/initial_data.json\ndata/journeydb_questions.json\n");
    assert!(log.contains("2 questions; left out 2 without an answer or choices"), "{log}");
    assert!(log.contains("ask.writer=file ask.file=data/journeydb_questions.json"), "{log}");
    assert!(log.contains("2 records; skipped 2: 1 no caption; 1 image file missing"), "{log}");
    let record = json!({"id": "a-1", "img_path": "images/a-1.jpg", "prompt": "car --v 5", "caption": "A red car."});
    assert_eq!(workshop.json("data/initial_data.json")[0], record);
    let question = &workshop.json("data/journeydb_questions.json")[1];
    assert_eq!(
        (&question["id"], &question["answer"], &question["element"]),
        (&json!("b-2"), &json!("ink"), &json!("style"))
    );
    workshop.write("run.yaml", RUN);
    workshop.succeeds(&["ask", "run.yaml", "ask.writer=file", "ask.file=data/journeydb_questions.json"]);
    assert_eq!(workshop.json("data/vqa_data.json"), workshop.json("data/journeydb_questions.json"));
    // Where the images lie is asked for, not guessed at.
    workshop.write("far/train.jsonl", lines.join("\n"));
    let message = workshop.fails(&["import", "far/train.jsonl", "--to", "fourth"]);
    assert!(message.contains("--images DIR") && message.contains("./000/a-1.jpg"), "{message}");
    assert!(!workshop.path("fourth/initial_data.json").exists());
    workshop.succeeds(&["import", "far/train.jsonl", "--to", "fourth", "--images", "anno/imgs"]);
}

#[test]
fn what_cannot_be_imported_says_why() {
    let workshop = Workshop::new();
    workshop.write("a.json", "[{\"id\": 1, \"picture\": \"x.png\", \"words\": \"w\"}]");
    let message = workshop.fails(&["import", "a.json", "--to", "data"]);
    assert!(message.contains("its fields: id, picture, words") && message.contains("--caption"), "{message}");
    workshop.write("b.json", "[{\"url\": 1, \"image\": \"https://x.org/1.png\", \"text\": \"w\"}]");
    assert!(workshop.fails(&["import", "b.json", "--to", "data"]).contains("img2dataset"));
    workshop.write("c.json", "[]");
    assert!(workshop.fails(&["import", "c.json", "--to", "data"]).contains("c.json: no record"));
    workshop.write("d.bin", "\u{1}\u{2}");
    assert!(workshop.fails(&["import", "d.bin", "--to", "data"]).contains("neither JSON records nor Parquet"));
    workshop.write("e.parquet", "PAR1 and then nothing");
    assert!(workshop.fails(&["import", "e.parquet", "--to", "data"]).contains("e.parquet: not readable as Parquet"));
    assert!(workshop.fails(&["import", "no.json", "--to", "data"]).contains("no.json: does not exist"));
    let whole = fs::read(fixture("shard-000.tar")).unwrap();
    workshop.write("cut.tar", &whole[..4000]);
    let (_, log) = workshop.succeeds(&["import", "cut.tar", &fixture("shard-001.tar.gz"), "--to", "data"]);
    assert!(log.contains("cut.tar, two: file cut off or broken"), "{log}");
    assert_eq!(workshop.ids("data/initial_data.json"), ["one", "three", "four"], "the other shards are read");
    // The same again changes nothing; something else does not overwrite it.
    let before = files(&workshop.path("data"));
    workshop.succeeds(&["import", "cut.tar", &fixture("shard-001.tar.gz"), "--to", "data"]);
    assert!(before == files(&workshop.path("data")));
    let message = workshop.fails(&["import", &fixture("shard-000.tar"), "--to", "data"]);
    assert!(message.contains("data/initial_data.json: already exists") && message.contains("cut.tar"), "{message}");
}

#[test]
fn a_killed_import_ends_with_the_same_bytes() {
    let workshop = Workshop::new();
    let picture = |number: u32| {
        let picture = RgbImage::from_fn(300, 200, |x, y| image::Rgb([(x * y + number) as u8, y as u8, number as u8]));
        encoded(&DynamicImage::ImageRgb8(picture), ImageFormat::Png)
    };
    let mut lines = String::new();
    for number in 0..120 {
        workshop.write(&format!("p/{number}.png"), picture(number));
        lines += &(json!({"id": number, "image": format!("p/{number}.png"), "text": format!("t {number}")})
            .to_string()
            + "\n");
    }
    workshop.write("all.jsonl", &lines);
    let import = |root| ["import", "all.jsonl", "--copy", "--to", root];
    let clock = std::time::Instant::now();
    workshop.succeeds(&import("whole"));
    let whole = clock.elapsed();
    let mut kills = 0;
    for share in [0.1, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95] {
        let mut child =
            workshop.command(&import("killed")).stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        std::thread::sleep(whole.mul_f64(share));
        kills += usize::from(child.kill().is_ok() && !child.wait().unwrap().success());
        let there = workshop.path("killed/initial_data.json");
        assert!(!there.exists() || workshop.json("killed/initial_data.json").len() == 120, "whole or not there");
    }
    assert!(kills > 0);
    workshop.succeeds(&import("killed"));
    let stamp = Path::new(".settings/import.json");
    let (mut expected, mut found) = (files(&workshop.path("whole")), files(&workshop.path("killed")));
    assert!(expected.remove(stamp).is_some() && found.remove(stamp).is_some());
    // A kill in the midst of an image leaves its temporary file, which the next run writes over.
    assert_eq!(expected.keys().collect::<Vec<_>>(), found.keys().collect::<Vec<_>>());
    assert!(expected == found);
}

/// A file of the corpus of mutated files.
fn odd(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(name).display().to_string()
}

/// A tar of small files.
fn tar_of(workshop: &Workshop, name: &str, members: &[(&str, &[u8])]) {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, bytes) in members {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        tar.append_data(&mut header, name, *bytes).unwrap();
    }
    workshop.write(name, tar.into_inner().unwrap());
}

#[test]
fn what_people_have_is_read() {
    let workshop = Workshop::new();
    fs::copy(odd("picture/good.png"), workshop.path("good.png")).unwrap();
    let imported = |workshop: &Workshop, arguments: &[&str]| {
        let _ = fs::remove_dir_all(workshop.path("data"));
        let all = [&["import", "--to", "data"], arguments].concat();
        let (_, log) = workshop.succeeds(&all);
        (workshop.json("data/initial_data.json"), log)
    };
    // Braces in a name that exists.
    fs::copy(odd("json/braces.json"), workshop.path("my{data}.json")).unwrap();
    assert_eq!(imported(&workshop, &["my{data}.json"]).0[0]["caption"], "a grey point");
    // A byte order mark, in a shard and in JSON.
    let (records, _) = imported(&workshop, &[&odd("tar.gz/byte-order-mark.tar.gz")]);
    let caption = records[0]["caption"].as_str().unwrap();
    assert!(caption.starts_with(|first: char| first.is_ascii_alphabetic()), "{caption:?}");
    workshop.write("bom.json", "\u{feff}[{\"id\": 1, \"image\": \"good.png\", \"caption\": \"\u{feff}a point\"}]");
    assert_eq!(imported(&workshop, &["bom.json"]).0[0]["caption"], "a point");
    // All compressions of Parquet.
    assert!(!imported(&workshop, &[&odd("parquet/lz4.parquet"), "--images", "."]).0.is_empty());
    // Pictures as base64: of a picture, and of something else.
    let png = base64::Engine::encode(&base64::prelude::BASE64_STANDARD, fs::read(odd("picture/no-iend.png")).unwrap());
    let lines = json!([{"image": png, "caption": "stripes"}, {"image": format!("data:image/png;base64,{png}"), "caption": "the same"}]);
    workshop.write("base64.json", lines.to_string());
    let (records, _) = imported(&workshop, &["base64.json"]);
    assert_eq!(records[1]["img_path"], "images/base64-00000002.png");
    let message = workshop.fails(&["import", &odd("json/base64-image.json"), "--to", "none"]);
    assert!(message.contains("is base64 of") && message.len() < 1000, "{message}");
}

#[test]
fn rows_before_a_broken_page_are_kept_and_its_place_is_named() {
    let workshop = Workshop::new();
    // The header of a page in the middle asks for millions of elements.
    let started = std::time::Instant::now();
    let (_, log) = workshop.succeeds(&["import", &odd("parquet/takes-long.parquet"), "--to", "data"]);
    assert!(started.elapsed() < std::time::Duration::from_secs(10));
    assert!(log.contains("takes-long.parquet, row 5: file cut off or broken"), "{log}");
    assert_eq!(workshop.ids("data/initial_data.json"), ["one", "two", "three"]);
}

#[test]
fn files_of_a_shard_that_stand_apart_are_said_to() {
    let workshop = Workshop::new();
    let png = fs::read(odd("picture/good.png")).unwrap();
    let members: [(&str, &[u8]); 7] = [
        ("a.png", &png),
        ("b.png", &png),
        ("a.txt", b"an a"),
        ("b.txt", b"a b"),
        ("b.json", b"{}"),
        ("c.png", &png),
        ("c.txt", "\u{feff}a c".as_bytes()),
    ];
    tar_of(&workshop, "apart.tar", &members);
    let (_, log) = workshop.succeeds(&["import", "apart.tar", "--to", "data"]);
    for part in ["apart.tar, a: files not adjacent in a shard", "`tar --sort=name`", "2 files not adjacent in a shard"]
    {
        assert!(log.contains(part), "{log}");
    }
    let records = workshop.json("data/initial_data.json");
    assert_eq!((records.len(), &records[0]["caption"]), (1, &json!("a c")));
    let (_, log) = workshop.succeeds(&["import", &odd("tar/not-adjacent.tar"), "--to", "other"]);
    assert!(log.contains("1 records; skipped 2: 2 files not adjacent in a shard"), "{log}");
}

#[test]
fn a_record_is_named_by_its_number_where_a_line_has_several() {
    let workshop = Workshop::new();
    fs::copy(odd("picture/good.png"), workshop.path("good.png")).unwrap();
    let record = |id: usize| json!({"id": id, "image": if id == 17 { "none.png" } else { "good.png" }, "caption": "c"});
    workshop.write("one-line.json", json!((1..=20).map(record).collect::<Vec<_>>()).to_string());
    let (_, log) = workshop.succeeds(&["import", "one-line.json", "--to", "data"]);
    assert!(log.contains("one-line.json, record 17 (line 1): image file missing (none.png)"), "{log}");
}

#[test]
fn records_may_not_lead_out_of_their_root() {
    let workshop = Workshop::new();
    workshop.succeeds(&["random-model", "model"]);
    workshop.write("run.yaml", RUN);
    fs::create_dir_all(workshop.path("elsewhere")).unwrap();
    fs::copy(odd("picture/good.png"), workshop.path("elsewhere/good.png")).unwrap();
    workshop.write("source.json", json!([{"id": 1, "image": "elsewhere/good.png", "caption": "c"}]).to_string());
    let (_, log) = workshop.succeeds(&["import", "source.json", "--to", "data"]);
    assert!(log.contains("1 images stay outside data") && log.contains("data.allow_outside=true"), "{log}");
    workshop.succeeds(&["caption", "run.yaml"]);
    for path in [workshop.path("elsewhere/good.png").display().to_string(), "../elsewhere/good.png".into()] {
        let record = json!([{"id": 1, "img_path": path, "prompt": "p", "caption": "c"}]);
        workshop.write("strict/initial_data.json", record.to_string());
        let strict = ["run.yaml", "data.root=strict", "data.allow_outside=false"];
        let message = workshop.fails(&[&["caption"][..], &strict].concat());
        assert!(
            message.contains("outside the data root strict") && message.contains("data.allow_outside"),
            "{message}"
        );
        assert!(workshop.fails(&[&["doctor"][..], &strict].concat()).contains("would fail"));
    }
    workshop.succeeds(&["import", "source.json", "--to", "copied", "--copy"]);
    workshop.succeeds(&["caption", "run.yaml", "data.root=copied", "data.allow_outside=false"]);
}
