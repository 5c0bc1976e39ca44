//! The published YAML files of the original, from captions to a trained model, on a tiny random checkpoint.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

const DEMO: &str = include_str!("original/hermesflow_demo_512x512.yaml");
const PAIR_DPO: &str = include_str!("original/hermesflow_pairdpo.yaml");

/// A folder with the published files as a user has them, and a checkpoint.
struct Workshop {
    folder: TempDir,
}

impl Workshop {
    fn new() -> Self {
        let workshop = Self { folder: tempfile::tempdir().unwrap() };
        fs::create_dir(workshop.path("configs")).unwrap();
        fs::write(workshop.path("configs/demo.yaml"), DEMO).unwrap();
        fs::write(workshop.path("configs/pairdpo.yaml"), PAIR_DPO).unwrap();
        workshop.succeeds(&["random-model", "model"], &[]);
        workshop
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn json(&self, name: &str) -> Value {
        serde_json::from_slice(&fs::read(self.path(name)).unwrap()).unwrap()
    }

    fn hermesflow(&self, arguments: &[&str], more: &[String]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hermesflow"));
        command.current_dir(self.folder.path()).args(arguments).args(more).stdin(Stdio::null());
        command.output().unwrap()
    }

    /// What a command that succeeds says on stderr, as one line.
    fn succeeds(&self, arguments: &[&str], more: &[String]) -> String {
        let output = self.hermesflow(arguments, more);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{arguments:?}: {said}");
        said.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    /// The overrides that put the checkpoint of this folder in the place of the published one.
    fn checkpoint(&self) -> Vec<String> {
        let model = [
            "model.showo.pretrained_model_path=model/showo",
            "model.vq_model.vq_model_name=model/vq",
            "model.showo.llm_model_path=model/tokenizer.json",
        ];
        let config = self.json("model/showo/config.json");
        let facts = ["vocab_size", "llm_vocab_size", "codebook_size", "num_vq_tokens"];
        let facts = facts.iter().map(|name| format!("model.showo.{name}={}", config[name]));
        let model = model.iter().map(|one| (*one).to_owned());
        model.chain(facts).chain(["dataset.params.resolution=64".to_owned()]).collect()
    }
}

/// Questions whose choices are scraps of what a random model writes, so that its images differ in score.
fn questions(records: usize) -> String {
    let words = ["choice", "question", "image", "caption", "give", "the", "circle", "red"];
    let choices = ["choice", "choiced", "cedd", "icedddd", "re", "ge s", "t"];
    let mut all = Vec::new();
    for record in 0..records {
        for (number, answer) in choices.iter().enumerate().take(6) {
            all.push(serde_json::json!({
                "id": format!("train-{record:06}"), "img_path": "i", "prompt": "p", "caption": "c", "element": "e",
                "question": format!("{} {}?", words[number], words[(number + record) % words.len()]),
                "choices": choices, "answer": answer,
            }));
        }
    }
    Value::from(all).to_string()
}

#[test]
fn from_captions_to_a_trained_model() {
    let workshop = Workshop::new();
    let checkpoint = workshop.checkpoint();
    let demo = |command: &str, more: &[&str]| {
        let more: Vec<String> = checkpoint.iter().cloned().chain(more.iter().map(|one| (*one).to_owned())).collect();
        workshop.succeeds(&[command, "config=configs/demo.yaml"], &more)
    };
    demo("scenes", &["data.scenes.records=12"]);
    let said = demo("caption", &["max_new_tokens=6"]);
    assert!(said.contains("WARNING: configs/demo.yaml: a file of the original") && said.contains("wandb.*"), "{said}");
    let images = "imagine.images=4";
    demo("imagine", &["batch_size=1", "guidance_scale=1", "generation_timesteps=3", "mode='t2i'", images]);
    fs::write(workshop.path("questions.json"), questions(12)).unwrap();
    let ask = ["ask.writer=file", "ask.file=questions.json"];
    demo("ask", &ask);
    demo("answer", &[&ask[..], &["max_new_tokens=8", "answer.matcher=lexical", images]].concat());
    demo("pair", &["pair.similarity=lexical", "pair.min_accuracy=0.0", images]);
    assert!(!workshop.json("datasets/journeydb/pair_dpo_data.json").as_array().unwrap().is_empty());

    let train: Vec<String> = checkpoint.iter().cloned().chain(["training.max_train_steps=4".into()]).collect();
    let said = workshop.succeeds(&["train", "configs/pairdpo.yaml"], &train);
    assert!(said.contains("warm-up of 5000 steps"), "{said}");
    let folder = "hermesflow-training-pairdpo_vqa_iteration1/train";
    assert!(workshop.path(&format!("{folder}/model/pytorch_model.safetensors")).is_file());
    let saved = format!("{folder}/config.yaml");
    let text = fs::read_to_string(workshop.path(&saved)).unwrap();
    assert!(text.contains("warmup_steps: 0") && !text.contains("experiment"), "{text}");
    let said = workshop.succeeds(&["train", &saved], &[]);
    assert!(
        said.contains("already exists") && !said.contains("of the original"),
        "the saved file is a run in itself: {said}"
    );
    assert!(said.contains("WARNING: train: images are drawn under guidance 5"), "{said}");
    assert_eq!(said.matches("WARNING").count(), 1, "{said}");
}

#[test]
fn a_checkpoint_that_the_file_was_not_written_for_is_refused() {
    let workshop = Workshop::new();
    let checkpoint = workshop.checkpoint();
    workshop.succeeds(&["scenes", "configs/demo.yaml", "data.scenes.records=2"], &checkpoint);
    let output = workshop.hermesflow(&["caption", "configs/demo.yaml"], &checkpoint[..3]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    for part in ["model/showo is not the checkpoint", "image_tokens is 1024 in", "model.showo.num_vq_tokens=16"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let unexpected = [&checkpoint[..3], &["model.expect={}".to_owned(), "max_new_tokens=2".into()]].concat();
    workshop.succeeds(&["caption", "configs/demo.yaml"], &unexpected);
}
