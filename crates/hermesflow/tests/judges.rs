//! Judges with weights in a run: small random models in the published layouts.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

/// A tiny run of the embedded model whose captions and images are made.
struct Run {
    folder: TempDir,
}

fn model(name: &str) -> String {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../hermesflow-verify/tests/golden/scorers");
    models.join(name).display().to_string()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

impl Run {
    fn new() -> Self {
        let run = Self { folder: tempfile::tempdir().unwrap() };
        let config = "
seed: 3
output: out
data: { root: data, scenes: { records: 3 } }
caption: { max_new_tokens: 16 }
imagine: { images: 2, steps: 2, guidance: 0.0 }
answer: { max_new_tokens: 4 }
pair: { min_accuracy: 0.0 }
";
        fs::write(run.path("run.yaml"), config).unwrap();
        for stage in ["caption", "imagine", "ask"] {
            run.succeeds(&[stage, "run.yaml"]);
        }
        run
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn hermesflow(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hermesflow"));
        let hub = self.path("hub");
        command.current_dir(self.folder.path()).args(arguments).stdin(Stdio::null());
        command.env("HF_HUB_OFFLINE", "1").env("HF_HUB_CACHE", hub).output().unwrap()
    }

    fn succeeds(&self, arguments: &[&str]) -> Output {
        let output = self.hermesflow(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        output
    }

    fn fails(&self, arguments: &[&str]) -> String {
        let output = self.hermesflow(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {}", text(&output.stderr));
        text(&output.stderr)
    }

    fn json(&self, name: &str) -> Value {
        serde_json::from_slice(&fs::read(self.path(name)).unwrap()).unwrap()
    }
}

#[test]
fn what_judges_said_is_kept_and_a_second_pair_loads_nothing() {
    let run = Run::new();
    let (bert, mpnet) = (format!("judges.bert={}", model("bert")), format!("judges.sbert={}", model("mpnet")));
    // A reply that equals a choice is no matter for a judge.
    let mut questions = run.json("data/vqa_data.json");
    fn wordy(text: &Value) -> Value {
        format!("it is {}", text.as_str().unwrap()).into()
    }
    for question in questions.as_array_mut().unwrap() {
        question["answer"] = wordy(&question["answer"]);
        question["choices"] = question["choices"].as_array().unwrap().iter().map(wordy).collect();
    }
    fs::write(run.path("data/vqa_data.json"), questions.to_string()).unwrap();
    let answer = ["answer", "run.yaml", "answer.matcher=sbert", &mpnet];
    assert!(text(&run.succeeds(&answer).stderr).contains("sbert-choice: loading"));
    let scores: Vec<usize> = run
        .json("data/generation_vqa_results.json")
        .as_array()
        .unwrap()
        .iter()
        .map(|r| r["result"].as_array().unwrap().len())
        .collect();
    assert_eq!(scores, [2, 2, 2]);

    let pair = ["pair", "run.yaml", "pair.similarity=bert", &bert];
    let first = run.succeeds(&pair);
    assert!(text(&first.stderr).contains("bert: loading"), "{}", text(&first.stderr));
    let pairs = fs::read(run.path("data/pair_dpo_data.json")).unwrap();
    let second = run.succeeds(&pair);
    assert!(!text(&second.stderr).contains("loading"), "{}", text(&second.stderr));
    assert_eq!(second.stdout, first.stdout);
    assert_eq!(fs::read(run.path("data/pair_dpo_data.json")).unwrap(), pairs);
    // A kill in the middle of a line costs that line, and nothing else.
    let kept = fs::read_dir(run.path("data/.scores")).unwrap().map(|file| file.unwrap().path());
    let kept = kept.into_iter().find(|path| path.display().to_string().contains("/bert-")).unwrap();
    let bytes = fs::read(&kept).unwrap();
    fs::write(&kept, &bytes[..bytes.len() - 9]).unwrap();
    assert!(text(&run.succeeds(&pair).stderr).contains("bert: loading"));
    assert_eq!(fs::read(run.path("data/pair_dpo_data.json")).unwrap(), pairs);
}

#[test]
fn a_missing_or_broken_judge_is_named_with_a_way_out() {
    let run = Run::new();
    run.succeeds(&["answer", "run.yaml"]);
    let message = run.fails(&["run", "run.yaml", "pair.similarity=bert", "output=whole", "data.root=whole/data"]);
    assert!(message.contains("bert-large-uncased"), "{message}");
    assert!(!run.path("whole/data").exists(), "a run asks for its judges before it makes anything");
    let message = run.fails(&["pair", "run.yaml", "pair.similarity=bert"]);
    for part in ["bert-large-uncased", "1.3 GB", "HF_HUB_OFFLINE", "pair.similarity: lexical"] {
        assert!(message.contains(part), "{part}: {message}");
    }
    // Everything of one model, but its weights are cut off.
    let broken = run.path("broken");
    fs::create_dir(&broken).unwrap();
    for file in fs::read_dir(model("mpnet")).unwrap().map(|file| file.unwrap().path()) {
        fs::copy(&file, broken.join(file.file_name().unwrap())).unwrap();
    }
    let weights = fs::read(broken.join("model.safetensors")).unwrap();
    fs::write(broken.join("model.safetensors"), &weights[..weights.len() / 2]).unwrap();
    let judge = ["judge", "choice", "--judge", "sbert", "--model", "broken", "two", "1", "2"];
    let message = run.fails(&judge);
    assert!(message.contains("model.safetensors"), "{message}");
    // Another model's tokenizer.
    fs::write(broken.join("model.safetensors"), weights).unwrap();
    fs::copy(Path::new(&model("llama")).join("tokenizer.json"), broken.join("tokenizer.json")).unwrap();
    let message = run.fails(&judge);
    assert!(message.contains("tokenizer.json") && message.contains("vocab"), "{message}");
}

#[test]
fn a_judge_can_be_tried_by_hand() {
    let run = Run::new();
    let said =
        run.succeeds(&["judge", "similarity", "two red circles", "a pair of red circles", "a blue square", "--json"]);
    let said: Value = serde_json::from_slice(&said.stdout).unwrap();
    let score = |at: usize| said["candidates"][at]["similarity"].as_f64().unwrap();
    assert!(score(0) > score(1), "{said}");
    let chosen = run.succeeds(&["judge", "choice", "There are Twenty-One.", "20", "21"]);
    assert_eq!(text(&chosen.stdout), "21\n");
    let arguments = ["--filter", "unifiedqa", "--filter-model", &model("t5-relu"), "--json", "three dogs"];
    let asked = run.succeeds(&[&["judge", "questions"], &arguments[..]].concat());
    let asked: Value = serde_json::from_slice(&asked.stdout).unwrap();
    let questions = asked[0]["questions"].as_array().unwrap();
    assert!(questions.iter().any(|one| one["question"]["question"] == "how many dogs are there?"), "{asked}");
    assert!(questions.iter().all(|one| one["kept"] == false), "a random reader agrees with nothing: {asked}");
    let llama =
        run.succeeds(&["judge", "questions", "--writer", "llama", "--model", &model("llama"), "a dog", "--json"]);
    let llama: Value = serde_json::from_slice(&llama.stdout).unwrap();
    assert_eq!(llama[0]["caption"], "a dog");
    assert!(run.fails(&["judge", "questions", "--writer", "file", "a dog"]).contains("--writer"));
    assert!(run.fails(&["judge", "similarity", "a dog"]).contains("CANDIDATES"));
}

#[test]
fn questions_that_the_reader_does_not_answer_are_left_out() {
    let run = Run::new();
    let reader = format!("judges.unifiedqa={}", model("t5-gated-gelu"));
    let message = run.fails(&["ask", "run.yaml", "ask.filter=unifiedqa", &reader]);
    assert!(message.contains("no caption gave a question"), "{message}");
    let writer = format!("judges.llama={}", model("llama"));
    let message = run.fails(&["ask", "run.yaml", "ask.writer=llama", "judges.beams=2", &reader, &writer]);
    assert!(message.contains("hermesflow judge questions"), "{message}");
}
