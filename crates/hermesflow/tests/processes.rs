//! Several processes do one run over MPI: the files of one process, byte for byte; what one number of processes began
//! another continues; who dies ends the job, and who cannot be shared out is refused.
//!
//! Runs where the build has the feature `mpi` and `mpirun` is there.
#![cfg(feature = "mpi")]
#![allow(clippy::unwrap_used, missing_docs)]

mod workshop;

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

const RUN: &str = include_str!("data/processes.yaml");

/// The same of a model that reads pictures by features and draws one code after the other.
const BY_FEATURES: &str = include_str!("data/processes-by-features.yaml");

/// The program with so many processes; one is started without a launcher.
fn hermesflow(folder: &Path, processes: usize, arguments: &[&str]) -> Command {
    let program = env!("CARGO_BIN_EXE_hermesflow");
    let mut command = match processes {
        1 => Command::new(program),
        _ => {
            let mut mpirun = Command::new("mpirun");
            mpirun.args(["--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-n", &processes.to_string()]);
            mpirun.arg(program);
            mpirun
        }
    };
    command.args(arguments).current_dir(folder).env("RAYON_NUM_THREADS", "1").stdin(Stdio::null());
    command
}

fn done(folder: &Path, processes: usize, arguments: &[&str]) -> Output {
    let output = hermesflow(folder, processes, arguments).output().unwrap();
    assert!(output.status.success(), "{processes} processes: {}", String::from_utf8_lossy(&output.stderr));
    output
}

fn fresh() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("run.yaml"), RUN).unwrap();
    folder
}

/// Every file below a folder with its bytes, and every empty folder.
fn tree(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if path.is_dir() {
            let inside = tree(&path);
            if inside.is_empty() {
                found.insert(name.clone() + "/", Vec::new());
            }
            found.extend(inside.into_iter().map(|(inner, bytes)| (format!("{name}/{inner}"), bytes)));
        } else {
            found.insert(name, std::fs::read(&path).unwrap());
        }
    }
    found
}

fn assert_same(one: &BTreeMap<String, Vec<u8>>, other: &BTreeMap<String, Vec<u8>>, what: &str) {
    let differing: Vec<&String> =
        one.keys().chain(other.keys()).filter(|name| one.get(*name) != other.get(*name)).collect();
    assert!(differing.is_empty(), "{what}: {differing:?}");
}

#[test]
fn a_run_of_two_and_four_processes_is_the_run_of_one() {
    let whole = |processes: usize, settings: &[&str]| {
        let folder = fresh();
        let output = done(folder.path(), processes, &[&["run", "run.yaml"], settings].concat());
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "out/train_iter2/model", "said once");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(said.matches("iteration 1 of 2").count(), 1, "{said}");
        tree(folder.path())
    };
    let one = whole(1, &[]);
    assert!(one.contains_key("out/train_iter2/model/pytorch_model.safetensors"), "{:?}", one.keys());
    assert_same(&one, &whole(2, &[]), "two processes");
    assert_same(&one, &whole(4, &[]), "four processes");
    let shared = ["train.optimizer_state=shared"];
    assert_same(&whole(1, &shared), &whole(4, &shared), "the optimizer's state in shares");
}

#[test]
fn every_stage_is_done_by_three_processes_and_continued_by_others() {
    let (alone, together) = (fresh(), fresh());
    for (stage, processes) in [("caption", 3), ("imagine", 2), ("ask", 3), ("answer", 4), ("pair", 3), ("train", 2)] {
        let one = done(alone.path(), 1, &[stage, "run.yaml"]);
        let many = done(together.path(), processes, &[stage, "run.yaml"]);
        assert_eq!(one.stdout, many.stdout);
        assert_same(&tree(alone.path()), &tree(together.path()), stage);
    }
    done(alone.path(), 1, &["run", "run.yaml"]);
    done(together.path(), 4, &["run", "run.yaml"]);
    assert_same(&tree(alone.path()), &tree(together.path()), "the rest of the run");
}

/// So are what is kept of features, and the kernels of a run in bf16.
#[test]
fn a_model_that_reads_by_features_is_trained_by_any_number_of_processes() {
    let made = || {
        let folder = tempfile::tempdir().unwrap();
        done(folder.path(), 1, &["random-model", "model", "--backbone", "janus-pro"]);
        std::fs::write(folder.path().join("run.yaml"), BY_FEATURES).unwrap();
        std::fs::write(folder.path().join("questions.json"), workshop::questions()).unwrap();
        folder
    };
    let (alone, together) = (made(), made());
    done(alone.path(), 1, &["caption", "run.yaml"]);
    done(together.path(), 3, &["caption", "run.yaml"]);
    assert_same(&tree(alone.path()), &tree(together.path()), "caption");
    done(alone.path(), 1, &["run", "run.yaml"]);
    done(together.path(), 2, &["run", "run.yaml"]);
    let one = tree(alone.path());
    for file in ["out/kernels.json", "out/report.html", "out/train/events.out.tfevents.hermesflow"] {
        assert!(one.contains_key(file), "{file}: {:?}", one.keys());
    }
    assert_same(&one, &tree(together.path()), "the rest of the run");
}

/// Judges with weights are shared out, too, and what they say is stored in the order of one process.
#[test]
fn judges_with_weights_are_asked_by_all_and_remembered_in_order() {
    let scorers = Path::new(env!("CARGO_MANIFEST_DIR")).join("../hermesflow-verify/tests/golden/scorers");
    let model = |key: &str, name: &str| format!("judges.{key}={}", scorers.join(name).display());
    let (bert, sbert) = (model("bert", "bert"), model("sbert", "mpnet"));
    let settings = ["pair.similarity=bert", &bert, "answer.matcher=sbert", &sbert];
    let (alone, together) = (fresh(), fresh());
    for (stage, processes) in [("caption", 3), ("imagine", 4), ("ask", 1), ("answer", 3), ("pair", 2)] {
        let arguments = [&[stage, "run.yaml"], &settings[..]].concat();
        done(alone.path(), 1, &arguments);
        done(together.path(), processes, &arguments);
        assert_same(&tree(alone.path()), &tree(together.path()), stage);
    }
    let stored = std::fs::read_dir(together.path().join("data/.scores")).unwrap().count();
    assert_eq!(stored, 2, "a file for each judge, and none for a process");
}

/// Further draws of records, what is judged of previews, and a training on visited states that is held to its reference.
#[test]
fn tries_altered_captions_and_visited_states_are_those_of_one_process() {
    let bert = Path::new(env!("CARGO_MANIFEST_DIR")).join("../hermesflow-verify/tests/golden/scorers/bert");
    let bert = format!("judges.bert={}", bert.display());
    let settings = [
        "run",
        "run.yaml",
        "iterations=1",
        // Two captions of a record are often the same.
        "caption.candidates=[{top_k: 1, temperature: 1.0}, {top_k: 2, temperature: 0.7}]",
        "pair.similarity=bert",
        &bert,
        "pair.retries=2",
        "pair.altered=1",
        "pair.altered_margin=0.0",
        "train.codes=drawn",
        "train.masks=visited",
        "train.loss.kl=0.1",
        "train.preview.judge=true",
    ];
    let (alone, together) = (fresh(), fresh());
    done(alone.path(), 1, &settings);
    let said = String::from_utf8(done(together.path(), 2, &settings).stderr).unwrap();
    for part in ["tried again (1)", "when tried again", "against images of altered captions"] {
        assert_eq!(said.matches(part).count(), 1, "{part}: {said}");
    }
    let one = tree(alone.path());
    for end in ["0.steps.json", "verdicts.json", "again-1/pair_dpo_data.json"] {
        let is_there = one.keys().any(|name| name.ends_with(end));
        assert_eq!(is_there, !end.contains("pair_dpo"), "{end}: {:?}", one.keys());
    }
    let metrics = String::from_utf8_lossy(&one["out/train/metrics.jsonl"]);
    assert_eq!(metrics.matches("gen/kl/unconditional").count(), 4, "{metrics}");
    assert_same(&one, &tree(together.path()), "two processes");
}

#[test]
fn what_cannot_be_shared_out_is_refused_once() {
    let folder = fresh();
    let refused = |processes: usize, arguments: &[&str], parts: &[&str]| {
        let output = hermesflow(folder.path(), processes, arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert_eq!(said.matches("hermesflow: ").count(), 1, "{said}");
        parts.iter().for_each(|part| assert!(said.contains(part), "{part}: {said}"));
    };
    let processes = ["3 processes", "4 parts", "1, 2 or 4 can", "process 0 of 3"];
    refused(3, &["run", "run.yaml"], &processes);
    assert!(!folder.path().join("data/understanding_caption_results.json").exists(), "before anything is made");
    refused(2, &["eval", "run.yaml"], &["`hermesflow eval` is done by one"]);
    refused(2, &["run", "run.yaml", "train.schedule.steps=x"], &["train.schedule.steps"]);
}

/// The processes that a process started.
fn children(process: &str) -> Vec<String> {
    let found = Command::new("pgrep").args(["-P", process]).output().unwrap();
    String::from_utf8(found.stdout).unwrap().lines().map(str::to_owned).collect()
}

/// The number of a process of a job, from the variables that it was started with.
fn rank(process: &str) -> String {
    let variables = std::fs::read_to_string(format!("/proc/{process}/environ")).unwrap();
    variables.split('\0').find_map(|one| one.strip_prefix("OMPI_COMM_WORLD_RANK=")).unwrap().to_owned()
}

/// Whether a process still runs or waits.
fn is_there(process: &str) -> bool {
    std::fs::read_to_string(format!("/proc/{process}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

#[test]
fn who_dies_ends_the_job_and_the_same_command_continues() {
    // Enough records that every process is still at work when it is looked for, however fast the machine.
    let many = ["run.yaml", "iterations=1", "imagine.images=2", "data.scenes.records=240"];
    let (caption, run) = ([&["caption"], &many[..]].concat(), [&["run"], &many[..]].concat());
    let (alone, killed) = (fresh(), fresh());
    done(alone.path(), 1, &run);
    for dies in ["a worker", "who watches it", "mpirun"] {
        std::fs::remove_dir_all(killed.path().join("data")).ok();
        let mut job = hermesflow(killed.path(), 3, &caption).stderr(Stdio::piped()).spawn().unwrap();
        let working = killed.path().join("data/understanding_caption_results.rank-1.jsonl");
        while !working.exists() {
            assert!(job.try_wait().unwrap().is_none(), "the job was done before anyone could be killed");
            std::thread::sleep(Duration::from_millis(1));
        }
        let mpirun = job.id().to_string();
        let watchers = children(&mpirun);
        let workers: Vec<String> = watchers.iter().flat_map(|watcher| children(watcher)).collect();
        assert_eq!((watchers.len(), workers.len()), (3, 3));
        let number = rank(&workers[1]);
        let whom = match dies {
            "a worker" => &workers[1],
            "mpirun" => &mpirun,
            _ => &watchers[1],
        };
        let died = Instant::now();
        assert!(Command::new("kill").args(["-9", whom]).status().unwrap().success());
        let mut said = String::new();
        job.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        let ended = job.wait().unwrap();
        let all: Vec<&String> = watchers.iter().chain(&workers).collect();
        while all.iter().any(|process| is_there(process)) && died.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(died.elapsed() < Duration::from_secs(10), "{dies}: {ended} after {:?}: {said}", died.elapsed());
        assert!(!ended.success(), "{dies}: {said}");
        if dies == "a worker" {
            assert_eq!(ended.code(), Some(1), "{said}");
            let lines: Vec<&str> = said.lines().filter(|line| line.starts_with("hermesflow: ")).collect();
            let [line] = lines[..] else { panic!("not one line: {said}") };
            assert!(line.starts_with(&format!("hermesflow: process {number} of 3 on ")), "{line}");
            assert!(line.contains(" was killed by SIGKILL: "), "{line}");
        }
        done(killed.path(), 2, &caption);
    }
    done(killed.path(), 2, &run);
    assert_same(&tree(alone.path()), &tree(killed.path()), "killed and continued");
}

/// A process whose disk is full, as far as it can be had without one: its files may not grow above a block.
#[test]
fn a_full_disk_of_one_process_is_said_with_its_number_and_loses_nothing() {
    // So many that the captions of one picture are longer than a block: the file of the results is full before any other.
    let candidates: Vec<String> = (1..=30).map(|number| format!("{{top_k: 3, temperature: {number}.0}}")).collect();
    let candidates = format!("caption.candidates=[{}]", candidates.join(", "));
    let caption = ["caption", "run.yaml", &candidates];
    let (alone, full) = (fresh(), fresh());
    done(alone.path(), 1, &caption);
    let program = env!("CARGO_BIN_EXE_hermesflow");
    // The second is killed by the system where its file grows above a block.
    for (trap, parts) in [
        ("trap '' XFSZ; ", ["understanding_caption_results.rank-1.jsonl", "too large"]),
        ("", ["was killed by SIGXFSZ", "`ulimit -f`"]),
    ] {
        let limited = format!("{trap}ulimit -f 1; exec {program} caption run.yaml '{candidates}'");
        let began = Instant::now();
        let mut mpirun = Command::new("mpirun");
        mpirun.args(["--allow-run-as-root", "--oversubscribe", "--bind-to", "none"]);
        mpirun.args(["-n", "1", program]).args(caption).args([":", "-n", "1", "bash", "-c", &limited]);
        let output = mpirun.current_dir(full.path()).env("RAYON_NUM_THREADS", "1").output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert_eq!(said.matches("hermesflow: process 1 of 2 on ").count(), 1, "{said}");
        parts.iter().for_each(|part| assert!(said.contains(part), "{part}: {said}"));
        assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
    }
    done(full.path(), 2, &caption);
    assert_same(&tree(alone.path()), &tree(full.path()), "continued with room");
}
