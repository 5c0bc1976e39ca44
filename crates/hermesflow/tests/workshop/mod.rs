//! A run over a tiny random checkpoint in a folder of its own, for the tests of the program.

#![allow(clippy::unwrap_used, dead_code, missing_docs)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Instant;

use tempfile::TempDir;

/// A run over a tiny random checkpoint in a folder of its own.
pub struct Workshop {
    pub folder: TempDir,
}

impl Workshop {
    pub fn new() -> Self {
        let workshop = Self { folder: tempfile::tempdir().unwrap() };
        let made = workshop.hermesflow(&["random-model", "model"]);
        assert!(made.status.success(), "{}", text(&made.stderr));
        workshop.write("run.yaml", RUN);
        workshop.write("questions.json", &questions());
        workshop
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn write(&self, name: &str, content: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hermesflow"));
        command.current_dir(self.folder.path()).args(arguments).stdin(Stdio::null());
        command.env("XDG_CACHE_HOME", self.path(".cache"));
        command
    }

    pub fn hermesflow(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    pub fn succeeds(&self, arguments: &[&str]) -> String {
        let output = self.hermesflow(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// The one message of a command that must end with exit code 1.
    pub fn fails(&self, arguments: &[&str]) -> String {
        let output = self.hermesflow(arguments);
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {message}");
        assert!(!message.contains("panicked"), "{message}");
        message
    }
}

pub const RUN: &str = "
seed: 5
iterations: 2
output: out
data: { root: data, scenes: { records: 12 }, fresh: true, chunk: 2 }
model: { showo: model/showo, vq: model/vq, tokenizer: model/tokenizer.json }
caption: { max_new_tokens: 6, candidates: [{ top_k: 1, temperature: 1.0 }, { top_k: 20, temperature: 2.0 }, { top_k: 0, temperature: 1.0 }] }
imagine: { images: 4, steps: 3, guidance: 1.0 }
ask: { writer: file, file: questions.json }
answer: { matcher: lexical, max_new_tokens: 8 }
pair: { similarity: lexical, min_accuracy: 0.0 }
train: { codes: drawn, steps: 12, warmup_steps: 2, batch_size: 2, checkpoint_every: 3, learning_rate: 1.0e-5 }
";

/// Questions whose choices are scraps of what a random model writes, so that its images differ in score.
pub fn questions() -> String {
    let words = ["choice", "question", "image", "caption", "give", "the", "circle", "red"];
    let choices = ["choice", "choiced", "cedd", "icedddd", "re", "ge s", "t"];
    let mut all = Vec::new();
    for record in 0..36 {
        for (number, answer) in choices.iter().enumerate().take(6) {
            all.push(serde_json::json!({
                "id": format!("train-{record:06}"), "img_path": "i", "prompt": "p", "caption": "c", "element": "e",
                "question": format!("{} {}?", words[number], words[(number + record) % words.len()]),
                "choices": choices, "answer": answer,
            }));
        }
    }
    serde_json::Value::from(all).to_string()
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Every file below a folder with its bytes.
pub fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut open = vec![folder.to_path_buf()];
    while let Some(next) = open.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                found.insert(path.strip_prefix(folder).unwrap().to_path_buf(), fs::read(&path).unwrap());
            }
        }
    }
    found
}

/// Three records of captions that are no scenes.
pub fn three_records(workshop: &Workshop) {
    let record = |id: &str, caption: &str| serde_json::json!({"id": id, "img_path": format!("images/{id}.png"), "prompt": "p", "caption": caption});
    let records = [
        record("a", "A red car parked in front of a small house."),
        record("b", "Two dogs and a cat, highly detailed, 8k --ar 16:9"),
        record("c", "Un chat noir dort sur une chaise."),
    ];
    workshop.write("data/initial_data.json", &serde_json::Value::from(records.to_vec()).to_string());
}

/// Record, question and answer of what is asked.
pub fn asked(workshop: &Workshop) -> Vec<(String, String, String)> {
    let questions: serde_json::Value =
        serde_json::from_slice(&fs::read(workshop.path("data/vqa_data.json")).unwrap()).unwrap();
    let text = |one: &serde_json::Value, key: &str| one[key].as_str().unwrap().to_owned();
    let shown = |one: &serde_json::Value| (text(one, "id"), text(one, "question"), text(one, "answer"));
    questions.as_array().unwrap().iter().map(shown).collect()
}

/// Kills a command at random moments, `kills` times in all, and runs it again until it ends: each time it must leave the bytes
/// of the run that nobody disturbed, which is returned. `seed` decides the moments.
pub fn killed_and_undisturbed(workshop: impl Fn() -> Workshop, run: &[&str], kills: usize, seed: u64) -> Workshop {
    let undisturbed = workshop();
    let clock = Instant::now();
    undisturbed.succeeds(run);
    let whole = clock.elapsed();
    let same = |workshop: &Workshop| {
        for folder in ["data", "out"] {
            let [expected, found] = [&undisturbed, workshop].map(|workshop| files(&workshop.path(folder)));
            assert_eq!(expected.keys().collect::<Vec<_>>(), found.keys().collect::<Vec<_>>());
            for (name, bytes) in expected {
                assert!(found[&name] == bytes, "{folder}/{} differs", name.display());
            }
        }
    };
    let mut disturbed = workshop();
    let (mut killed, mut random) = (0, seed);
    while killed < kills {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let share = (random >> 40) as f64 / f64::from(1 << 24);
        let mut command = disturbed.command(run);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(whole.mul_f64(0.5 * share));
        if child.try_wait().unwrap().is_none() {
            child.kill().unwrap(); // SIGKILL: no handler runs
            killed += 1;
        }
        if child.wait().unwrap().success() {
            same(&disturbed);
            disturbed = workshop();
        }
    }
    disturbed.succeeds(run);
    same(&disturbed);
    undisturbed
}
