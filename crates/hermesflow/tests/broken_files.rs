//! Files that are broken, too large in what they claim, or not what their name says: exit code 1 with the file and what is
//! wrong, at once, in `doctor` too. The files are those that the mutated ones begin from (`fuzz/corpus`).

#![allow(clippy::unwrap_used, missing_docs)]

mod workshop;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use workshop::{Workshop, text};

fn corpus(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(name)
}

/// A workshop whose records need no scenes.
fn workshop() -> Workshop {
    let workshop = Workshop::new();
    workshop.succeeds(&["scenes", "run.yaml", "data.scenes.records=2", "data.fresh=false"]);
    workshop
}

/// What a command that must refuse a file says, on both streams; within a minute, also where other work has the cores.
fn refused(workshop: &Workshop, arguments: &[&str], parts: &[&str]) {
    let started = Instant::now();
    let output = workshop.hermesflow(arguments);
    let said = text(&output.stdout) + &text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
    assert!(started.elapsed() < Duration::from_secs(60), "{arguments:?} takes {:?}", started.elapsed());
    for part in parts {
        assert!(said.contains(part), "{arguments:?} does not say {part:?}: {said}");
    }
}

/// A command, and `doctor`, refuse a file that stands at a place.
fn refused_at(workshop: &Workshop, place: &str, file: &Path, commands: &[&[&str]], parts: &[&str]) {
    let there = fs::read(workshop.path(place)).ok();
    fs::copy(file, workshop.path(place)).unwrap();
    commands.iter().for_each(|command| refused(workshop, command, parts));
    match there {
        Some(bytes) => fs::write(workshop.path(place), bytes).unwrap(),
        None => fs::remove_file(workshop.path(place)).unwrap(),
    }
}

const DOCTOR: &[&str] = &["doctor", "run.yaml", "data.fresh=false"];
const T2I: &[&str] = &["t2i", "run.yaml", "--prompt", "a dog"];

#[test]
fn configurations_are_checked_before_anything_is_made_of_them() {
    let workshop = workshop();
    workshop.write("one.png", "no picture");
    let mmu: &[&str] = &["mmu", "run.yaml", "--image", "one.png"];
    for (file, place, parts) in [
        ("phi-config/phi-layers-10-18.json", "model/showo/phi/config.json", ["phi/config.json", "num_hidden_layers"]),
        (
            "phi-config/phi-rotary-2.json",
            "model/showo/phi/config.json",
            ["phi/config.json", "partial_rotary_factor is 2"],
        ),
        ("showo-config/showo-tokens-15.json", "model/showo/config.json", ["showo/config.json", "num_vq_tokens is 15"]),
    ] {
        refused_at(&workshop, place, &corpus(file), &[DOCTOR, T2I, mmu], &parts);
    }
    // Single numbers of sound files, one after the other.
    for (place, key, number) in [
        ("model/showo/config.json", "num_vq_tokens", "4611686018427387904"),
        ("model/showo/config.json", "vocab_size", "18446744073709551615"),
        ("model/showo/config.json", "llm_vocab_size", "18446744073709551600"),
        ("model/showo/config.json", "codebook_size", "0"),
        ("model/showo/config.json", "max_text_len", "0"),
        ("model/showo/phi/config.json", "hidden_size", "9223372036854775808"),
        ("model/showo/phi/config.json", "num_attention_heads", "0"),
        ("model/showo/phi/config.json", "rope_theta", "-1.0"),
        ("model/showo/phi/config.json", "layer_norm_eps", "0"),
        ("model/vq/config.json", "ch", "4611686018427387904"),
        ("model/vq/config.json", "z_channels", "64"),
        ("model/vq/config.json", "norm_groups", "0"),
        ("model/vq/config.json", "ch_mult", "[1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"),
        ("model/vq/config.json", "num_res_blocks", "[1, 1, 1, 1, 1000000000000]"),
    ] {
        let mut json: serde_json::Value = serde_json::from_slice(&fs::read(workshop.path(place)).unwrap()).unwrap();
        json[key] = serde_json::from_str(number).unwrap();
        workshop.write("changed.json", &json.to_string());
        let said = if key == "num_attention_heads" || key == "norm_groups" { "config.json" } else { key };
        refused_at(&workshop, place, &workshop.path("changed.json"), &[DOCTOR, T2I], &[place, said]);
    }
}

#[test]
fn pickles_neither_grow_nor_claim_what_is_not_there() {
    let workshop = workshop();
    fs::remove_file(workshop.path("model/showo/pytorch_model.safetensors")).unwrap();
    let convert: &[&str] = &["convert", "model/showo", "made"];
    for (file, part) in [
        ("pickle/pickle-memo-doubling-40.bin", "state dict"),
        ("pickle/pickle-tensor-of-2-31-1.bin", "lm_head.bias: its shape [2147483647]"),
    ] {
        let parts = ["model/showo", part];
        refused_at(
            &workshop,
            "model/showo/pytorch_model.bin",
            &corpus(file),
            &[convert, DOCTOR],
            &parts[..1 + usize::from(file.contains("2-31"))],
        );
    }
    assert!(!workshop.path("made").exists());
}

#[test]
fn a_file_that_only_stands_for_one_is_named() {
    let workshop = workshop();
    let pointer = corpus("safetensors/lfs-pointer.safetensors");
    let convert: &[&str] = &["convert", "model/showo", "made"];
    let said = ["Git LFS pointer", "fetch the file itself"];
    refused_at(&workshop, "model/showo/pytorch_model.safetensors", &pointer, &[convert, DOCTOR, T2I], &said);
    refused_at(&workshop, "model/tokenizer.json", &pointer, &[DOCTOR, T2I], &said);
    refused_at(&workshop, "model/vq/config.json", &pointer, &[DOCTOR, T2I], &said);
    fs::copy(&pointer, workshop.path("pointer.png")).unwrap();
    refused(&workshop, &["mmu", "run.yaml", "--image", "pointer.png"], &said);
}

#[test]
fn a_tokenizer_that_ends_early_is_refused() {
    let workshop = workshop();
    let cut = corpus("tokenizer/tokenizer-cut-in-decoder.json").display().to_string();
    for command in [DOCTOR, T2I] {
        let tokenizer = format!("model.tokenizer={cut}");
        let mut arguments = command.to_vec();
        arguments.insert(2, &tokenizer);
        refused(&workshop, &arguments, &["tokenizer-cut-in-decoder.json", "not a tokenizer"]);
    }
}

#[test]
fn gguf_is_compared_with_itself_before_it_is_read() {
    let workshop = Workshop::new();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../hermesflow-verify/tests/golden/scorers/llama");
    fs::create_dir(workshop.path("llama")).unwrap();
    fs::copy(golden.join("tokenizer.json"), workshop.path("llama/tokenizer.json")).unwrap();
    let judge = ["judge", "questions", "--writer", "llama", "--model", "llama/it.gguf", "two dogs"];
    fs::copy(corpus("gguf/gguf-good.gguf"), workshop.path("llama/it.gguf")).unwrap();
    workshop.succeeds(&judge);
    for (file, part) in [
        ("gguf-alignment-0.gguf", "not a readable GGUF file"),
        ("gguf-bos-outside.gguf", "99999 that begins or ends a text is beyond the 400"),
        ("gguf-zero-dimension.gguf", "shape"),
    ] {
        fs::copy(corpus("gguf").join(file), workshop.path("llama/it.gguf")).unwrap();
        refused(&workshop, &judge, &["llama/it.gguf", part]);
    }
    fs::copy(corpus("safetensors/lfs-pointer.safetensors"), workshop.path("llama/it.gguf")).unwrap();
    refused(&workshop, &judge, &["Git LFS pointer"]);
}

#[test]
fn counts_in_parquet_files_are_checked_before_memory_is_reserved_by_them() {
    let workshop = Workshop::new();
    let file = corpus("parquet/allocation-fails.parquet").display().to_string();
    let parts = ["allocation-fails.parquet, row 1: ", "\"image.path\"", "its number of values is -144282990010"];
    refused(&workshop, &["import", &file, "--to", "none"], &parts);
}

#[test]
fn references_that_double_are_refused() {
    let workshop = workshop();
    let file = corpus("original/original-doubling.yaml").display().to_string();
    refused(&workshop, &["doctor", &file], &["original-doubling.yaml", "references make more than"]);
}

#[test]
fn weights_that_are_no_numbers_are_named() {
    let workshop = workshop();
    let file = workshop.path("model/showo/pytorch_model.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&file, bytes).unwrap();
    for command in [T2I, &["caption", "run.yaml", "data.fresh=false"], &["convert", "model/showo", "made"]] {
        refused(&workshop, command, &["model/showo/pytorch_model.safetensors: showo.", "is NaN"]);
    }
    // A number that f32 holds and f16 does not.
    let mut bytes = fs::read(&file).unwrap();
    bytes[end - 4..].copy_from_slice(&1e5f32.to_le_bytes());
    fs::write(&file, bytes).unwrap();
    let f16 = ["convert", "model/showo", "made", "--dtype", "f16"];
    refused(&workshop, &f16, &["showo.", "is 1e5, more than F16 holds"]);
    workshop.succeeds(&["convert", "model/showo", "made", "--dtype", "bf16"]);
}

#[test]
fn settings_beyond_what_is_computed_with_are_named() {
    let workshop = Workshop::new();
    refused(&workshop, &["imagine", "run.yaml", "imagine.guidance=1e39"], &["imagine.guidance: "]);
    refused(
        &workshop,
        &["imagine", "run.yaml", "imagine.guidance=1e38"],
        &["logits are not all finite", "imagine.guidance"],
    );
    refused(&workshop, &["caption", "run.yaml", "caption.max_new_tokens=1000000000"], &["caption.max_new_tokens: "]);
    refused(
        &workshop,
        &["mmu", "run.yaml", "--image", "x.png", "--max-new-tokens", "1000000000"],
        &["--max-new-tokens"],
    );
    refused(&workshop, &["mmu", "run.yaml", "--image", "x.png", "--temperature", "1e-60"], &["--temperature"]);
}

#[test]
fn a_picture_is_one_records_problem_whatever_its_decoder_does() {
    let workshop = Workshop::new();
    let picture = |name: &str| corpus("picture").join(name).display().to_string();
    let records = |name: &str| {
        ["good.png", name, "no-iend.png"]
            .iter()
            .enumerate()
            .map(|(id, name)| {
                fs::copy(corpus("picture").join(name), workshop.path(&format!("data/{name}"))).unwrap();
                serde_json::json!({"id": id, "img_path": name, "prompt": "p", "caption": "c"}).to_string() + "\n"
            })
            .collect::<String>()
    };
    fs::create_dir(workshop.path("data")).unwrap();
    workshop.write("data/initial_data.json", &records("palette-32-bytes.png"));
    let output = workshop.hermesflow(&["caption", "run.yaml", "data.fresh=false"]);
    let log = text(&output.stderr);
    assert!(output.status.success(), "{log}");
    assert!(log.contains("record 1: ") && log.contains("palette-32-bytes.png: not a readable image"), "{log}");
    assert!(log.contains("skipped 1 of 3 records") && !log.contains("panicked"), "{log}");
    let output = workshop.hermesflow(&["import", "data/initial_data.json", "--to", "root", "--copy"]);
    assert!(text(&output.stderr).contains("2 records; skipped 1: 1 image unreadable"), "{}", text(&output.stderr));
    refused(
        &workshop,
        &["mmu", "run.yaml", "--image", &picture("palette-32-bytes.png")],
        &["palette-32-bytes.png: not a readable"],
    );
    for sound in ["good.png", "no-iend.png", "turned.jpg"] {
        workshop.succeeds(&["mmu", "run.yaml", "--image", &picture(sound)]);
    }
}

#[test]
fn a_reader_that_leaves_stops_nothing_and_a_full_disk_is_said() {
    let workshop = Workshop::new();
    let shell = |line: &str| {
        let program = env!("CARGO_BIN_EXE_hermesflow");
        let line = format!("set -o pipefail; hermesflow() {{ '{program}' \"$@\"; }}; {line}");
        let output = std::process::Command::new("bash")
            .args(["-c", &line])
            .current_dir(workshop.folder.path())
            .output()
            .unwrap();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    for (line, code) in [
        ("hermesflow --help | true", 0),
        ("hermesflow help run | head -1", 0),
        ("hermesflow scenes run.yaml | true", 0),
        ("hermesflow judge questions 'two dogs and a red car' --json | head -1", 0),
        ("hermesflow judge choice two one two | true", 0),
        ("hermesflow doctor run.yaml data.scenes=null data.root=nowhere | head -1", 1),
        ("hermesflow nonsense 2>&1 | true", 1),
    ] {
        let (status, _, log) = shell(line);
        assert_eq!(status, Some(code), "{line}: {log}");
        assert!(!log.contains("panicked") && !log.contains("bug"), "{line}: {log}");
    }
    if Path::new("/dev/full").exists() {
        for line in ["hermesflow judge choice two one two >/dev/full", "hermesflow --help >/dev/full"] {
            let (status, _, log) = shell(line);
            assert_eq!(status, Some(1), "{line}: {log}");
            assert!(!log.contains("panicked"), "{line}: {log}");
        }
        assert!(shell("hermesflow judge choice two one two >/dev/full").2.contains("stdout"));
        let (status, ..) = shell("hermesflow scenes run.yaml output=other 2>/dev/full");
        assert_eq!(status, Some(0), "a log that cannot be written stops nothing");
    }
}
