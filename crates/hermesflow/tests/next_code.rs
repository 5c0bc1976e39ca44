//! The program on a model that draws one code after the other and reads pictures by features: a tiny random Janus-Pro.

#![allow(clippy::unwrap_used)]

mod workshop;

use std::fs;
use std::path::Path;

use workshop::{Workshop, files, killed_and_undisturbed, questions, text};

const RUN: &str = "
seed: 5
iterations: 2
output: out
data: { root: data, scenes: { records: 8 }, fresh: true, chunk: 2 }
model: { checkpoint: model }
caption: { max_new_tokens: 6, candidates: [{ top_k: 1, temperature: 1.0 }, { top_k: 20, temperature: 2.0 }, { top_k: 0, temperature: 1.0 }] }
imagine: { images: 3, guidance: 1.0 }
ask: { writer: file, file: questions.json }
answer: { matcher: lexical, max_new_tokens: 8 }
pair: { similarity: lexical, min_accuracy: 0.0 }
train: { schedule: { steps: 8, warmup_steps: 2, learning_rate: 1.0e-4 }, batch_size: 2, checkpoint_every: 3 }
";

/// Bytes of a picture's kept features: its key, 16 patches of 24 numbers, and a digest.
const FEATURES: usize = 16 + 4 * 16 * 24 + 8;

fn workshop() -> Workshop {
    let workshop = Workshop { folder: tempfile::tempdir().unwrap() };
    workshop.succeeds(&["random-model", "model", "--backbone", "janus-pro"]);
    workshop.write("run.yaml", RUN);
    workshop.write("questions.json", &questions());
    workshop
}

#[test]
fn a_run_killed_at_six_moments_ends_with_the_same_bytes() {
    let undisturbed = killed_and_undisturbed(workshop, &["run", "run.yaml"], 6, 3);

    // What the run left: the backbone that was found, no key without a meaning, codes beside pictures, features of records'
    // own pictures alone.
    let saved = fs::read_to_string(undisturbed.path("out/config.yaml")).unwrap();
    assert!(saved.contains("backbone: janus-pro") && saved.contains("codes: drawn"), "{saved}");
    assert!(!saved.contains("masks_per_pair") && !saved.contains("vq:"), "{saved}");
    let names: Vec<String> = files(&undisturbed.path("data")).keys().map(|name| name.display().to_string()).collect();
    assert_eq!(names.iter().filter(|name| name.ends_with(".codes.json")).count(), 8 * 3 * 2, "{names:?}");
    let kept: Vec<&String> = names.iter().filter(|name| name.ends_with("-16x24.bin")).collect();
    assert_eq!(kept.len(), 1, "{names:?}");
    let bytes = fs::metadata(undisturbed.path("data").join(kept[0])).unwrap().len();
    assert_eq!(bytes, 16 * FEATURES as u64, "eight pictures of each iteration");
    let metrics = fs::read_to_string(undisturbed.path("out/train/metrics.jsonl")).unwrap();
    let first: serde_json::Value = serde_json::from_str(metrics.lines().next().unwrap()).unwrap();
    for side in ["und", "gen"] {
        assert_eq!(first[format!("{side}/delta/chosen")], 0.0, "a policy begins as its reference: {first}");
    }
    assert!((first["loss"].as_f64().unwrap() - 2.0 * std::f64::consts::LN_2).abs() < 1e-6, "{first}");

    // A finished model and a checkpoint on the way are models; the finished one has every tensor that the first came with.
    for model in ["out/train_iter2/model", "out/train/checkpoint-6"] {
        let checkpoint = format!("model.checkpoint={model}");
        let root = format!("data.root=of-{}", model.replace('/', "-"));
        undisturbed.succeeds(&["caption", "run.yaml", &checkpoint, &root, "data.scenes.records=2"]);
    }
    undisturbed.succeeds(&["convert", "out/train_iter2/model", "exported", "--format", "bin"]);
    undisturbed.succeeds(&["convert", "exported", "back", "--dtype", "bf16"]);
    assert_eq!(files(&undisturbed.path("back")).len(), files(&undisturbed.path("model")).len());
}

#[test]
fn keys_that_mean_nothing_to_it_are_refused_where_they_stand() {
    let workshop = workshop();
    for (setting, key) in [
        ("imagine.steps=4", "imagine.steps"),
        ("imagine.schedule=linear", "imagine.schedule"),
        ("train.masks_per_pair=2", "train.masks_per_pair"),
        ("train.masking.min_masking_rate=0.5", "train.masking"),
        ("model.vq=v", "model.vq"),
    ] {
        let said = workshop.fails(&["run", "run.yaml", setting]);
        assert!(said.contains(&format!("{key}: has no meaning for model.backbone=janus-pro")), "{said}");
        assert!(said.contains(&format!("from the argument {setting}")), "{said}");
    }
    workshop.write("steps.yaml", &RUN.replace("images: 3,", "images: 3,\n  steps: 3,"));
    let said = workshop.fails(&["run", "steps.yaml"]);
    assert!(said.contains("steps.yaml, line 9: imagine.steps"), "{said}");
    let said = workshop.fails(&["run", "run.yaml", "model.backbone=show-o"]);
    assert!(said.contains("config.json") || said.contains("model."), "{said}");
    let said = workshop.fails(&["train", "run.yaml", "train.parameters=[vision_model.]"]);
    assert!(said.contains("vision_model.") || said.contains("pair_dpo_data"), "{said}");
    let said = workshop.fails(&["samplers", "run.yaml", "--steps", "3", "--prompts", "2"]);
    assert!(said.contains("--steps"), "{said}");
}

#[test]
fn every_command_works_on_it_or_says_why_not() {
    let workshop = workshop();
    let stages = ["caption", "imagine", "ask", "answer", "pair", "train"];
    for stage in stages {
        workshop.succeeds(&[stage, "run.yaml"]);
    }
    let said = text(&workshop.hermesflow(&["train", "run.yaml"]).stderr);
    assert!(said.contains("already exists"), "{said}");
    workshop.succeeds(&["t2i", "run.yaml", "--prompt", "a red circle", "--iteration", "1"]);
    let picture = "data/images/train-000000.png";
    let answer = workshop.succeeds(&["mmu", "run.yaml", "--image", picture, "--json"]);
    assert!(answer.contains("answer"), "{answer}");
    workshop.succeeds(&["reconstruct", "run.yaml", "--image", picture]);
    workshop.succeeds(&["eval", "run.yaml", "--prompts", "4", "--out", "report.json"]);
    let table = workshop.succeeds(&["samplers", "run.yaml", "--prompts", "2", "--guidance", "0,1"]);
    assert!(table.contains("| temperature |") && table.contains("best: temperature 1, "), "{table}");
    let said = workshop.succeeds(&["doctor", "run.yaml"]);
    assert!(said.contains("16 tokens") && said.contains("train"), "{said}");
    let bench = ["bench", "run.yaml", "--images", "2", "--pairs", "2", "--repeat", "1", "--json"];
    let work = ["--caption-tokens", "3", "--answer-tokens", "3", "--questions", "2", "--captions", "2"];
    let only = ["--stages", "encode,decode,caption,imagine,answer,train"];
    let said = workshop.succeeds(&[&bench[..], &work, &only].concat());
    assert!(said.contains("imagine"), "{said}");
    let said =
        workshop.fails(&["extrapolate", "run.yaml", "--image", picture, "--prompt", "a circle", "--direction", "left"]);
    assert!(said.contains("known codes") || said.contains("--direction"), "{said}");
    // Pictures without the codes that they were drawn with are encoded, and the run says so.
    for record in 0..8 {
        for image in 0..3 {
            fs::remove_file(workshop.path(&format!("data/generated_images/train-{record:06}/{image}.codes.json")))
                .unwrap();
        }
    }
    let output = workshop.hermesflow(&["train", "run.yaml", "output=other"]);
    let log = text(&output.stderr);
    assert!(output.status.success() && log.contains("without the codes that they were drawn with"), "{log}");
    // Parts of it are trained alone.
    workshop.succeeds(&["train", "run.yaml", "output=head", "train.parameters=[gen_head.]", "train.guidance=auto"]);
    // What cannot be trained is refused before anything is done.
    for command in ["train", "run", "doctor"] {
        let output = workshop.hermesflow(&[command, "run.yaml", "output=no", "train.parameters=[vision_model.]"]);
        let said = text(&output.stderr) + &text(&output.stdout);
        assert_eq!(output.status.code(), Some(1), "{command}: {said}");
        assert!(said.contains("vision_model.") && said.contains("language_model."), "{command}: {said}");
    }
}

#[test]
fn damaged_features_are_found() {
    let workshop = workshop();
    for stage in ["caption", "imagine", "ask", "answer", "pair"] {
        workshop.succeeds(&[stage, "run.yaml"]);
    }
    let features = |workshop: &Workshop| {
        let names = files(&workshop.path("data"));
        let name = names.keys().find(|name| name.display().to_string().ends_with("-16x24.bin")).unwrap();
        workshop.path("data").join(name)
    };
    let path = features(&workshop);
    let sound = fs::read(&path).unwrap();
    // One number of each picture: which of them belong to pairs is up to random weights.
    assert_eq!(sound.len() % FEATURES, 0);
    let mut broken = sound.clone();
    (40..sound.len()).step_by(FEATURES).for_each(|at| broken[at] ^= 1);
    fs::write(&path, &broken).unwrap();
    workshop.succeeds(&["train", "run.yaml"]);
    assert!(fs::read(&path).unwrap().len() > sound.len(), "damaged entries are computed and kept anew");
}

#[test]
fn the_one_inside_the_program_goes_through_the_loop_and_is_not_taken_for_the_other() {
    let workshop = Workshop { folder: tempfile::tempdir().unwrap() };
    let run = RUN.replace("checkpoint: model", "backbone: janus-pro").replace("file, file: questions.json", "scenes");
    workshop.write("run.yaml", &run.replace("iterations: 2", "iterations: 1"));
    let said = workshop.fails(&["run", "run.yaml", "model.dtype=f16"]);
    assert!(said.contains("f32 or bf16, not in F16"), "{said}");
    for dtype in ["f32", "bf16"] {
        let folders = [format!("data.root={dtype}"), format!("output=out-{dtype}"), format!("model.dtype={dtype}")];
        let settings: Vec<&str> = folders.iter().map(String::as_str).collect();
        workshop.succeeds(&[&["run", "run.yaml"], &settings[..]].concat());
        workshop.succeeds(&[&["eval", "run.yaml", "--prompts", "4", "--iteration", "1"], &settings[..]].concat());
    }
    // Its pictures are of the world that it learned: most of them have the colours that they were asked for.
    let report = workshop.succeeds(&["eval", "run.yaml", "--prompts", "32", "--split", "dev"]);
    let colours = report.lines().find(|line| line.contains("oracle: colors")).unwrap();
    let mean: f64 = colours.split('|').nth(2).unwrap().split_whitespace().next().unwrap().parse().unwrap();
    assert!(mean > 0.75, "{colours}");
    let said = workshop.fails(&["caption", "run.yaml", "model.backbone=show-o", "data.root=f32", "output=out-f32"]);
    for part in ["were made with different settings", "model.checkpoint: is not used here"] {
        assert!(said.contains(part), "{part}: {said}");
    }
}

/// A pretraining of a few seconds, over the codes of the small world's own image tokenizer.
const PRETRAINING: &str = "
seed: 3
output: made
tokenizer: { vocab_size: 400, lines: 300 }
vq:
  model:
    { ch: 8, ch_mult: [1, 1, 1, 2], num_res_blocks: [1, 1, 1, 1], z_channels: 4, resolution: 64, norm_groups: 4 }
  commitment: 0.05
  entropy: 0.02
  salience: 4.0
  harden_steps: 2
  batch_size: 2
  steps: 4
  learning_rate: 0.001
  warmup_steps: 1
  weight_decay: 0.0
  max_grad_norm: 1.0
base:
  backbone: janus-pro
  model: { hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 2, rope_theta: 500.0 }
  eyes: { width: 24, layers: 1, heads: 3 }
  max_text_len: 64
  caption_question: Give a caption for this image.
  stages:
    - mix: { understanding: 2, questions: 2, generation: 2 }
      steps: 30
      learning_rate: 0.003
      warmup_steps: 2
      weight_decay: 0.0
      max_grad_norm: 1.0
checkpoint_every: 8
";

#[test]
fn a_small_one_is_pretrained_from_nothing_and_then_aligned() {
    let workshop = Workshop { folder: tempfile::tempdir().unwrap() };
    workshop.write("pretrain.yaml", PRETRAINING);
    let said = workshop.fails(&["pretrain", "pretrain.yaml", "base.model.partial_rotary_factor=0.25"]);
    assert!(said.contains("base.model.partial_rotary_factor: has no meaning for base.backbone=janus-pro"), "{said}");
    workshop.write("run.yaml", RUN);
    workshop.write("questions.json", &questions());
    workshop.succeeds(&["pretrain", "pretrain.yaml", "output=whole"]);
    // Cut short, and continued.
    workshop.succeeds(&["pretrain", "pretrain.yaml", "--stop-after", "3"]);
    workshop.succeeds(&["pretrain", "pretrain.yaml", "--stop-after", "13"]);
    workshop.succeeds(&["pretrain", "pretrain.yaml"]);
    let [whole, made] = ["whole/model", "made/model"].map(|folder| files(&workshop.path(folder)));
    assert_eq!(whole.keys().collect::<Vec<_>>(), made.keys().collect::<Vec<_>>());
    for (name, bytes) in &whole {
        assert!(made[name] == *bytes, "{} differs", name.display());
    }
    let config: serde_json::Value = serde_json::from_slice(&made[Path::new("config.json")]).unwrap();
    assert_eq!(config["language_config"]["rope_theta"], 500.0, "{config}");
    let metrics = fs::read_to_string(workshop.path("made/model/training/metrics.jsonl")).unwrap();
    let steps: Vec<serde_json::Value> = metrics.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for loss in ["und/loss", "gen/loss"] {
        let mean =
            |steps: &[serde_json::Value]| steps.iter().map(|step| step[loss].as_f64().unwrap()).sum::<f64>() / 5.0;
        let (first, last) = (mean(&steps[..5]), mean(&steps[steps.len() - 5..]));
        assert!(last < 0.9 * first, "{loss} fell from {first} to {last}");
    }
    // It reads by its own eyes: without them the pictures would be alike.
    let weights = |file: &str| fs::read(workshop.path(file)).unwrap();
    assert!(!weights("made/model/pytorch_model.safetensors").is_empty());
    // By probabilities, so that no pictures tie.
    let model = ["model.checkpoint=made/model", "iterations=1", "data.scenes.records=4", "answer.score=probability"];
    workshop.succeeds(&[&["run", "run.yaml"], &model[..]].concat());
    workshop.succeeds(&["eval", "run.yaml", "model.checkpoint=made/model", "--prompts", "4", "--iteration", "1"]);
    // Trained further from its own folder, as large as it is; what would come too late is said at once.
    let further = ["pretrain", "pretrain.yaml", "output=further", "--from", "made", "--stage", "1"];
    for (setting, said) in [
        (&["base.model.num_hidden_layers=1"][..], "base.model: the model to begin with, made/model, has "),
        (&["base.eyes.width=48"], "base.eyes: the model to begin with"),
        (&["--export", "exported"], "`--from further` begins with it"),
    ] {
        let message = workshop.fails(&[&further[..], setting].concat());
        assert!(message.contains(said), "{setting:?}: {message}");
    }
    workshop.succeeds(&further);
    let said = workshop.fails(&["pretrain", "pretrain.yaml", "base.eyes=null"]);
    assert!(said.contains("base.eyes: missing"), "{said}");
}
