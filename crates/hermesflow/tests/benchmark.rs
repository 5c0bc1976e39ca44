//! Benchmarks on a tiny model, from files in their published forms.

#![allow(clippy::unwrap_used, missing_docs)]

mod workshop;

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value;
use workshop::{Workshop, files, text};

const GENEVAL: &str = concat!(
    "{\"tag\": \"single_object\", \"include\": [{\"class\": \"bench\", \"count\": 1}], \"prompt\": \"a photo of a bench\"}\n",
    "{\"tag\": \"counting\", \"include\": [{\"class\": \"cup\", \"count\": 3}], \"exclude\": [{\"class\": \"cup\", \"count\": 4}], \"prompt\": \"a photo of three cups\"}\n",
    "{\"tag\": \"position\", \"include\": [{\"class\": \"dog\", \"count\": 1}, {\"class\": \"tie\", \"count\": 1, \"position\": [\"right of\", 0]}], \"prompt\": \"a photo of a tie right of a dog\"}\n",
);
const DPG: &str = "item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple,question_natural_language\n\
    one,a red dog,1,1,0,entity,whole,t,Is there a dog?\n\
    one,a red dog,1,2,1,attribute,color,t,Is the dog red?\n\
    two,a cat,1,1,0,entity,whole,t,Is there a cat?\n";

/// A small picture of one colour as a PNG file.
fn png(colour: [u8; 3]) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    image::RgbImage::from_pixel(64, 64, image::Rgb(colour)).write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}

fn prepared() -> Workshop {
    let workshop = Workshop::new();
    workshop.write("geneval.jsonl", GENEVAL);
    workshop.write("dpg.csv", DPG);
    let asked = |id: &str, kind: &str| {
        serde_json::json!({ "id": id, "caption": "a red circle", "question": "what color is the circle?",
            "choices": ["red", "blue"], "answer": "red", "element_type": kind, "element": "red" })
    };
    workshop.write(
        "tifa.json",
        &Value::from(vec![asked("coco_1", "color"), asked("coco_1", "object"), asked("drawbench_2", "color")])
            .to_string(),
    );
    fs::create_dir(workshop.path("val2014")).unwrap();
    let mut lines = String::new();
    let (mut mme, mut vqa) = (
        "index\timage\tquestion\tanswer\tcategory\timage_path\n".to_owned(),
        "index\tquestion\tA\tB\tC\tanswer\tcategory\timage\n".to_owned(),
    );
    for number in 0..40u8 {
        let bytes = png([number * 6, 255 - number * 6, 90]);
        fs::write(workshop.path(&format!("val2014/{number}.png")), &bytes).unwrap();
        let label = if number % 2 == 0 { "yes" } else { "no" };
        lines.push_str(&format!("{{\"question_id\": {number}, \"image\": \"{number}.png\", \"text\": \"Is there a dog in the image?\", \"label\": \"{label}\"}}\n"));
        let picture = BASE64_STANDARD.encode(&bytes);
        let category = if number % 4 == 0 { "code_reasoning" } else { "color" };
        mme.push_str(&format!(
            "{}\t{picture}\tIs it red? Please answer yes or no.\tYes\t{category}\t{number}.png\n",
            2 * number
        ));
        mme.push_str(&format!(
            "{}\t{}\tIs it blue? Please answer yes or no.\tNo\t{category}\t{number}.png\n",
            2 * number + 1,
            2 * number
        ));
        vqa.push_str(&format!("{number}\tWhich?\ta red one\ta blue one\t\tB\t{category}\t{picture}\n"));
    }
    workshop.write("coco_pope_random.json", &lines);
    workshop.write("MME.tsv", &mme);
    workshop.write("bench.tsv", &vqa);
    workshop
}

/// The arguments of each benchmark behind its name and the configuration.
const ALL: [(&str, &[&str]); 6] = [
    ("geneval", &["--data", "geneval.jsonl", "--samples", "2"]),
    ("tifa", &["--data", "tifa.json", "--samples", "2"]),
    ("dpg", &["--data", "dpg.csv", "--samples", "1"]),
    ("pope", &["--data", "coco_pope_random.json", "--images", "val2014"]),
    ("mme", &["--data", "MME.tsv"]),
    ("vqa", &["--data", "bench.tsv"]),
];

fn command<'a>(name: &'a str, more: &'a [&str]) -> Vec<&'a str> {
    [&["benchmark", name, "run.yaml"], more].concat()
}

#[test]
fn every_benchmark_goes_through_and_one_that_was_killed_ends_with_the_same_bytes() {
    let (whole, killed) = (prepared(), prepared());
    for (name, more) in ALL {
        let said = whole.succeeds(&command(name, more));
        assert!(said.contains("± ") && said.contains("seed 5; digest of model.showo"), "{name}: {said}");
        let partial = killed.path(&format!("out/benchmarks/{name}-0/.report.json.hermesflow-partial"));
        let mut child =
            killed.command(&command(name, more)).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let began = Instant::now();
        // Killed once there is a row or two, if it is not done before.
        while fs::read(&partial).map_or(0, |bytes| bytes.iter().filter(|byte| **byte == b'\n').count()) < 2 {
            if child.try_wait().unwrap().is_some() || began.elapsed() > Duration::from_secs(120) {
                break;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        let _ = child.kill();
        child.wait().unwrap();
        killed.succeeds(&command(name, more));
        let folder = format!("out/benchmarks/{name}-0");
        assert!(files(&whole.path(&folder)) == files(&killed.path(&folder)), "{name}");
    }
    // Both sides together, and the layout of GenEval's own scorer.
    let said = whole.succeeds(&command("pope", ALL[3].1));
    for part in ["geneval: guidance 0: overall, product", "mme: perception", "vqa: all", "all, F1"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    for guidance in ["0", "1"] {
        let folder = whole.path(&format!("out/benchmarks/geneval-0/guidance-{guidance}/00001"));
        assert!(folder.join("samples/00000.png").is_file() && folder.join("samples/00001.png").is_file());
        let metadata: Value = serde_json::from_slice(&fs::read(folder.join("metadata.jsonl")).unwrap()).unwrap();
        assert_eq!(metadata, serde_json::from_str::<Value>(GENEVAL.lines().nth(1).unwrap()).unwrap());
    }
    // Other settings are refused by name, another model is compared.
    let message = whole.fails(&[&command("vqa", ALL[5].1)[..], &["seed=6"]].concat());
    assert!(message.contains("seed: there 5, here 6") && message.contains("--out"), "{message}");
    whole.succeeds(&["random-model", "other", "--seed", "7"]);
    let compared = [
        &command("vqa", ALL[5].1)[..],
        &["model.showo=other/showo", "--out", "other-vqa", "--compare", "out/benchmarks/vqa-0/report.json"],
    ];
    let said = whole.succeeds(&compared.concat());
    assert!(said.contains("difference ± 95 %"), "{said}");
    let wrong = [&command("mme", ALL[4].1)[..], &["--compare", "out/benchmarks/vqa-0/report.json"]].concat();
    assert!(whole.fails(&wrong).contains("other items"));
}

#[test]
fn files_that_are_none_of_a_benchmarks_end_in_one_message_with_line_and_remedy() {
    let workshop = prepared();
    let refused = |name: &str, more: &[&str], parts: &[&str]| {
        let message = workshop.fails(&command(name, more));
        for part in parts {
            assert!(message.contains(part), "{name} {more:?}: {message}");
        }
        assert_eq!(message.trim().lines().count(), 1, "{message}");
        assert!(!Path::new(&workshop.path("out/benchmarks")).exists(), "{name}: refused before any work");
    };
    workshop.write("bad.jsonl", &format!("{GENEVAL}{{\"tag\": 1}}\n"));
    refused("geneval", &["--data", "bad.jsonl"], &["bad.jsonl, line 4", "evaluation_metadata.jsonl"]);
    refused("geneval", &["--data", "none.jsonl"], &["none.jsonl"]);
    refused("geneval", &[], &["--data: missing"]);
    workshop.write("bad.csv", &DPG.replace("one,a red dog,1,2,1", "one,a red dog,1,two,1"));
    refused("dpg", &["--data", "bad.csv"], &["bad.csv, line 3", "proposition_id", "dpg_bench.csv"]);
    refused("dpg", &["--data", "MME.tsv"], &["has no column item_id"]);
    refused("tifa", &["--data", "geneval.jsonl"], &["geneval.jsonl", "line 1", "TIFA's question file"]);
    refused("pope", &["--data", "coco_pope_random.json"], &["--images: missing"]);
    refused(
        "pope",
        &["--data", "coco_pope_random.json", "--images", "model"],
        &["line 1", "0.png is not there", "val2014"],
    );
    refused("mme", &["--data", "bench.tsv"], &["line 2", "neither Yes nor No", "MME.tsv"]);
    refused("vqa", &["--data", "MME.tsv"], &["no columns A and B"]);
}

#[test]
fn the_results_of_genevals_own_scorer_become_a_table() {
    let workshop = Workshop::new();
    let line = |tag: &str, prompt: &str, correct: bool| {
        format!(
            "{{\"filename\": \"x.png\", \"tag\": \"{tag}\", \"prompt\": \"{prompt}\", \"correct\": {correct}, \"reason\": \"\"}}\n"
        )
    };
    let lines = [
        line("colors", "a", true),
        line("colors", "a", false),
        line("colors", "b", true),
        line("position", "c", false),
    ];
    workshop.write("results.jsonl", &lines.concat());
    let said = workshop.succeeds(&["benchmark", "geneval", "run.yaml", "--results", "results.jsonl"]);
    // Colours: prompts with a half and all right; position: none.
    assert!(said.contains("0.375") && said.contains("0.750"), "{said}");
    workshop.write("results.jsonl", "{\"tag\": \"x\"}\n");
    let message =
        text(&workshop.hermesflow(&["benchmark", "geneval", "run.yaml", "--results", "results.jsonl"]).stderr);
    assert!(message.contains("line 1") && message.contains("evaluate_images.py"), "{message}");
}
