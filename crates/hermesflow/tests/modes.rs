//! The commands beside the loop, on the embedded model: own prompts, own questions, inpainting, extrapolation,
//! reconstruction.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use hermesflow_scenes::{SIDE, Split};
use image::{Rgb, RgbImage};
use tempfile::TempDir;

const CONFIG: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../configs/scenes.yaml");
const SIZE: u32 = SIDE as u32;

/// A folder of pictures to work on.
struct Studio {
    folder: TempDir,
}

impl Studio {
    fn new() -> Self {
        let studio = Self { folder: tempfile::tempdir().unwrap() };
        fs::create_dir(studio.path("pictures")).unwrap();
        scene(1).save(studio.path("pictures/one.png")).unwrap();
        // Twice as wide and as high, in another format, with margins that the square leaves out.
        let large = image::imageops::resize(&scene(2), 2 * SIZE, 2 * SIZE, image::imageops::FilterType::Nearest);
        let mut wide = RgbImage::from_pixel(3 * SIZE, 2 * SIZE, Rgb([255, 0, 255]));
        image::imageops::replace(&mut wide, &large, i64::from(SIZE / 2), 0);
        wide.save(studio.path("pictures/two.jpg")).unwrap();
        fs::write(studio.path("pictures/notes.txt"), "no picture").unwrap();
        studio
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn hermesflow(&self, command: &str, arguments: &[&str]) -> Output {
        let mut hermesflow = Command::new(env!("CARGO_BIN_EXE_hermesflow"));
        hermesflow.current_dir(self.folder.path()).args([command, CONFIG]).args(arguments).stdin(Stdio::null());
        hermesflow.output().unwrap()
    }

    fn succeeds(&self, command: &str, arguments: &[&str]) -> String {
        let output = self.hermesflow(command, arguments);
        assert!(output.status.success(), "{command} {arguments:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// The pictures that a command says it made.
    fn makes(&self, command: &str, arguments: &[&str]) -> Vec<(String, RgbImage)> {
        let said = self.succeeds(command, arguments);
        said.lines().map(|line| (line.to_owned(), image::open(self.path(line)).unwrap().to_rgb8())).collect()
    }

    /// The message of a command that must end with exit code 1.
    fn fails(&self, command: &str, arguments: &[&str]) -> String {
        let output = self.hermesflow(command, arguments);
        assert_eq!(output.status.code(), Some(1), "{command} {arguments:?}: {}", text(&output.stderr));
        text(&output.stderr)
    }
}

fn scene(number: u64) -> RgbImage {
    hermesflow_scenes::scene(Split::HeldOut, 0, number).render()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Mean difference of the levels in some columns.
fn difference(a: &RgbImage, b: &RgbImage, columns: std::ops::Range<u32>) -> f64 {
    let places: Vec<_> = (0..SIZE).flat_map(|y| columns.clone().map(move |x| (x, y))).collect();
    let level = |image: &RgbImage, (x, y): (u32, u32), c: usize| f64::from(image.get_pixel(x, y)[c]);
    let differences = places.iter().flat_map(|&at| (0..3).map(move |c| (level(a, at, c) - level(b, at, c)).abs()));
    differences.sum::<f64>() / (3 * places.len()) as f64
}

#[test]
fn own_prompts_become_pictures() {
    let studio = Studio::new();
    fs::write(studio.path("prompts.txt"), "two small blue squares\n\n  a green triangle  \n").unwrap();
    let arguments = ["--prompt", "a large red circle", "--prompts", "prompts.txt", "--images", "2", "imagine.steps=4"];
    let made = studio.makes("t2i", &arguments);
    let names: Vec<&str> = made.iter().map(|(name, _)| name.as_str()).collect();
    let folder = "runs/scenes/t2i";
    let expected = ["000-a-large-red-circle-0", "000-a-large-red-circle-1", "001-two-small-blue-squares-0"];
    for (name, expected) in names.iter().zip(expected) {
        assert_eq!(*name, format!("{folder}/{expected}.png"));
    }
    assert_eq!((names.len(), *names.last().unwrap()), (7, "runs/scenes/t2i/sheet.png"));
    assert!(made[..6].iter().all(|(_, picture)| picture.dimensions() == (SIZE, SIZE)));
    assert!(made[0].1 != made[1].1, "each number its own draws");
    assert!(studio.makes("t2i", &arguments) == made, "the same seed, the same pictures");
    // A picture is the seed's, the prompt's and the number's, wherever the prompt stands.
    let alone = studio.makes("t2i", &["--prompt", "two small blue squares", "--out", "alone", "imagine.steps=4"]);
    assert_eq!(alone.len(), 1, "no sheet of one picture");
    assert_eq!(alone[0].0, "alone/000-two-small-blue-squares.png");
    assert!(alone[0].1 == made[2].1);
    let linear =
        ["--prompt", "two small blue squares", "--out", "linear", "imagine.steps=4", "imagine.schedule=linear"];
    assert!(studio.makes("t2i", &linear)[0].1 != alone[0].1);

    assert!(studio.fails("t2i", &[]).contains("--prompts FILE"));
    assert!(studio.fails("t2i", &["--prompts", "no.txt"]).contains("no.txt"));
    assert!(studio.fails("t2i", &["--prompt", "x", "imagine.schedule=cosin"]).contains("linear"));
    assert!(studio.fails("t2i", &["--prompt", "x", "--iteration", "2"]).contains("iteration 2 is not trained"));
}

#[test]
fn own_questions_are_answered() {
    let studio = Studio::new();
    let ask = ["--image", "pictures", "--question", "how many things are there?", "--question", "what color is it?"];
    let said = studio.succeeds("mmu", &ask);
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!((lines.len(), lines[0], lines[5]), (10, "pictures/one.png", "pictures/two.jpg"), "{said}");
    assert_eq!((lines[1], lines[3]), ("  how many things are there?", "  what color is it?"));
    let json = studio.succeeds("mmu", &[&ask[..], &["--json"]].concat());
    let answers: Vec<serde_json::Value> = json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(answers.len(), 4);
    for (answer, line) in answers.iter().zip([2, 4, 7, 9]) {
        assert_eq!(answer["answer"].as_str().unwrap(), lines[line].trim(), "greedy answers are the same");
    }
    assert_eq!(answers[3]["file"], "pictures/two.jpg");
    // Without a question: the caption; and it is about the picture.
    let caption = studio.succeeds("mmu", &["--image", "pictures/one.png", "--json"]);
    let caption: serde_json::Value = serde_json::from_str(&caption).unwrap();
    assert_eq!(caption["question"], "Give a caption for this image.");
    let facts = hermesflow_scenes::parse_caption(caption["answer"].as_str().unwrap()).expect("a caption of the world");
    let judged = hermesflow_scenes::oracle::judge(&scene(1), &facts);
    assert!(judged.facts.iter().any(|fact| fact.holds), "{caption}");

    let drawn = |seed: &str| {
        let draw = ["--image", "pictures", "--top-k", "0", "--temperature", "3", "--max-new-tokens", "12", "--seed"];
        studio.succeeds("mmu", &[&draw[..], &[seed]].concat())
    };
    assert_eq!(drawn("1"), drawn("1"));
    assert_ne!(drawn("1"), drawn("2"));
    assert!(studio.fails("mmu", &[]).contains("--image"));
    assert!(studio.fails("mmu", &["--image", "no.png"]).contains("no.png does not exist"));
    assert!(studio.fails("mmu", &["--image", "pictures/notes.txt"]).contains("notes.txt"));
    assert!(studio.fails("mmu", &["--image", "pictures", "--temperature", "0"]).contains("--temperature"));
}

#[test]
fn a_part_is_painted_anew_and_the_rest_stays() {
    let studio = Studio::new();
    // Of another size than the picture: it is fitted like it.
    let right = RgbImage::from_fn(200, 200, |x, _| if x < 100 { Rgb([0; 3]) } else { Rgb([255; 3]) });
    right.save(studio.path("right.png")).unwrap();
    let paint = ["--image", "pictures/one.png", "--prompt", "a large red circle", "--images", "8"];
    let made = studio.makes("inpaint", &[&paint[..], &["--mask", "right.png"]].concat());
    let names: Vec<&str> = made.iter().map(|(name, _)| name.as_str()).collect();
    let name = "runs/scenes/inpaint/one-a-large-red-circle";
    let ends = ["0", "1", "2", "3", "4", "5", "6", "7", "sheet"];
    assert_eq!(names, ends.map(|end| format!("{name}-{end}.png")));
    let known = "runs/scenes/reconstruct/000-one.png";
    studio.succeeds("reconstruct", &["--image", "pictures/one.png"]);
    let known = image::open(studio.path(known)).unwrap().to_rgb8();
    let differences = |columns: std::ops::Range<u32>| -> f64 {
        made[..8].iter().map(|(_, picture)| difference(picture, &known, columns.clone())).sum()
    };
    let (kept, painted) = (differences(0..SIZE / 4), differences(SIZE / 2..SIZE));
    assert!(kept < painted / 4.0, "kept {kept}, painted {painted}");
    assert!(made[1..8].iter().any(|(_, picture)| *picture != made[0].1), "each number its own draws");

    RgbImage::from_pixel(64, 64, Rgb([100; 3])).save(studio.path("dark.png")).unwrap();
    let message = studio.fails("inpaint", &[&paint[..], &["--mask", "dark.png"]].concat());
    assert!(message.contains("dark.png") && message.contains("white is painted"), "{message}");
    assert!(studio.fails("inpaint", &[&paint[..], &["--mask", "no.png"]].concat()).contains("no.png"));
    assert!(studio.fails("inpaint", &paint).contains("--mask"));
}

#[test]
fn pictures_go_on_beyond_their_edges() {
    let studio = Studio::new();
    fn go<'a>(more: &[&'a str]) -> Vec<&'a str> {
        let base = ["--image", "pictures/one.png", "--prompt", "three small green circles", "imagine.steps=4"];
        [&base[..], more].concat()
    }
    let known = {
        studio.succeeds("reconstruct", &["--image", "pictures/one.png"]);
        image::open(studio.path("runs/scenes/reconstruct/000-one.png")).unwrap().to_rgb8()
    };
    // A window is 8×8 tokens of 8 pixels; a step adds half a window and the offset.
    for (arguments, (width, height), (x, y)) in [
        (&["--direction", "right", "--steps", "2"][..], (128, 64), (0, 0)),
        (&["--direction", "left", "--offset", "1"], (104, 64), (40, 0)),
        (&["--direction", "up", "--offset", "-2"], (64, 80), (0, 16)),
        (&["--direction", "down"], (64, 96), (0, 0)),
        (&["--direction", "right", "--direction", "up"], (96, 96), (0, 32)),
    ] {
        let made = studio.makes("extrapolate", &go(arguments));
        assert_eq!(made.len(), 2);
        assert_eq!(made[0].0, "runs/scenes/extrapolate/one-three-small-green-circles-0.png");
        assert_eq!(made[0].1.dimensions(), (width, height), "{arguments:?}");
        // The picture is still there: nearer to itself at its place than beside it.
        let at = |x, y| image::imageops::crop_imm(&made[0].1, x, y, SIZE, SIZE).to_image();
        let here = difference(&at(x, y), &known, 0..SIZE);
        let elsewhere = difference(&at(width - SIZE - x, height - SIZE - y), &known, 0..SIZE);
        assert!(here < 0.5 * elsewhere, "{arguments:?}: {here} at its place, {elsewhere} beside it");
    }
    let made = studio.makes("extrapolate", &go(&["--direction", "right", "--images", "2", "--out", "two"]));
    assert_eq!(made.len(), 3);
    assert!(made[0].1 != made[1].1, "each number its own draws");

    assert!(studio.fails("extrapolate", &go(&["--direction", "east"])).contains("left, right, up or down"));
    let message = studio.fails("extrapolate", &go(&["--direction", "up", "--offset", "4"]));
    assert!(message.contains("between -3 and 3"), "{message}");
    let three = go(&["--direction", "up", "--steps", "3", "--prompt", "x"]);
    assert!(studio.fails("extrapolate", &three).contains("2 prompts for 1 directions and 3 steps"));
    assert!(studio.fails("extrapolate", &go(&["--direction", "up", "--images", "0"])).contains("--images"));
}

#[test]
fn pictures_go_through_the_tokenizer_and_back() {
    let studio = Studio::new();
    let said =
        studio.succeeds("reconstruct", &["--image", "pictures", "--image", "pictures/one.png", "--out", "again"]);
    let rows: Vec<Vec<&str>> = said
        .lines()
        .filter(|line| line.contains("pictures/"))
        .map(|line| line.split('|').map(str::trim).collect())
        .collect();
    assert_eq!(rows.len(), 3, "{said}");
    for row in &rows {
        assert!(row[2].parse::<f64>().unwrap() > 18.0, "{said}");
        assert_eq!(image::open(studio.path(row[3])).unwrap().to_rgb8().dimensions(), (SIZE, SIZE));
    }
    assert_eq!((rows[0][2], rows[0][3], rows[2][3]), (rows[2][2], "again/000-one.png", "again/002-one.png"));
    assert_eq!(said.lines().last(), Some("again/sheet.png"));
    assert!(image::open(studio.path("again/sheet.png")).unwrap().height() > 500);
    fs::create_dir(studio.path("empty")).unwrap();
    assert!(studio.fails("reconstruct", &["--image", "empty"]).contains("without pictures"));
}

#[test]
fn every_mode_teaches() {
    for command in ["t2i", "mmu", "inpaint", "extrapolate", "reconstruct"] {
        let output = Command::new(env!("CARGO_BIN_EXE_hermesflow")).args([command, "--help"]).output().unwrap();
        let help = text(&output.stdout);
        assert!(output.status.success() && help.contains(&format!("Example: hermesflow {command} scenes ")), "{help}");
    }
    assert!(Path::new(CONFIG).is_file());
}
