//! The program as a person meets it: exit codes, messages, and what a killed run leaves behind.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

mod workshop;

use workshop::{RUN, Workshop, asked, files, killed_and_undisturbed, text, three_records};

#[test]
fn usage_errors_end_with_1_and_help_with_0() {
    let workshop = Workshop::new();
    assert!(workshop.succeeds(&["--help"]).contains("demo"));
    assert!(workshop.succeeds(&["caption", "--help"]).contains("Example:"));
    assert!(workshop.fails(&["captoin", "run.yaml"]).contains("caption"), "a near miss is suggested");
    assert!(workshop.fails(&["caption", "no.yaml"]).contains("no.yaml"));
    assert!(workshop.fails(&["caption", "run.yaml", "captoin.x=1"]).contains("captoin"));
}

#[test]
fn unreadable_images_are_named_skipped_and_made_once_they_are_mended() {
    let undisturbed = Workshop::new();
    undisturbed.succeeds(&["caption", "run.yaml"]);
    let workshop = Workshop::new();
    workshop.succeeds(&["scenes", "run.yaml"]);
    let image = |number: usize| workshop.path(&format!("data/images/train-{number:06}.png"));
    // One alone in its chunk of two, and a chunk without any picture.
    let kept: Vec<Vec<u8>> = (0..12).map(|number| fs::read(image(number)).unwrap()).collect();
    fs::remove_file(image(3)).unwrap();
    fs::write(image(6), &kept[6][..50]).unwrap();
    fs::write(image(7), "no picture").unwrap();
    let caption = || {
        let output = workshop.hermesflow(&["caption", "run.yaml"]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        (text(&output.stderr), fs::read(workshop.path("data/understanding_caption_results.json")).unwrap())
    };
    let (log, results) = caption();
    for part in [
        "caption: skipped record train-000003: image data/images/train-000003.png does not exist",
        "caption: skipped record train-000006: data/images/train-000006.png: not a readable image",
        "caption: skipped 3 of 12 records",
    ] {
        assert!(log.contains(part), "{part}: {log}");
    }
    let ids = |results: &[u8]| -> Vec<String> {
        let records: Vec<serde_json::Value> = serde_json::from_slice(results).unwrap();
        records.iter().map(|record| record["id"].as_str().unwrap()["train-0000".len()..].to_owned()).collect()
    };
    assert_eq!(ids(&results), ["00", "01", "02", "04", "05", "08", "09", "10", "11"]);
    let (log, again) = caption();
    assert!(log.contains("skipped 3 of 12") && again == results);
    fs::write(image(3), &kept[3]).unwrap();
    let (log, more) = caption();
    assert!(log.contains("skipped 2 of 12") && ids(&more)[3] == "03", "{log}");
    (6..8).for_each(|number| fs::write(image(number), &kept[number]).unwrap());
    let (log, whole) = caption();
    assert!(!log.contains("skipped"), "{log}");
    let expected = fs::read(undisturbed.path("data/understanding_caption_results.json")).unwrap();
    assert!(whole == expected, "as if nothing had been broken");
}

#[test]
fn no_readable_image_at_all_is_an_error() {
    let workshop = Workshop::new();
    workshop.succeeds(&["scenes", "run.yaml"]);
    fs::rename(workshop.path("data/images"), workshop.path("data/pictures")).unwrap();
    let message = workshop.fails(&["caption", "run.yaml"]);
    for part in ["no picture could be read", "record train-000000", "data/images/train-000000.png", "data.root, data"] {
        assert!(message.contains(part), "{part}: {message}");
    }
    assert!(message.contains("train-000009") && !message.contains("train-000010"), "ten are named: {message}");
    assert!(!workshop.path("data/understanding_caption_results.json").exists());
    fs::rename(workshop.path("data/pictures"), workshop.path("data/images")).unwrap();
    workshop.succeeds(&["caption", "run.yaml"]);
}

#[test]
fn broken_records_name_the_file_and_the_place() {
    let workshop = Workshop::new();
    let data = "data/initial_data.json";
    let record =
        |id: &str| format!("{{\"id\": \"{id}\", \"img_path\": \"a.png\", \"prompt\": \"p\", \"caption\": \"c\"}}");
    workshop.write(data, &format!("{}\n{{\"id\": \"two\", \"img_path\"\n", record("one")));
    let message = workshop.fails(&["caption", "run.yaml"]);
    assert!(message.contains("initial_data.json") && message.contains('2'), "{message}");
    workshop.write(data, &format!("[{}, {}]", record("one"), record("one")));
    let message = workshop.fails(&["caption", "run.yaml"]);
    assert!(message.contains("initial_data.json") && message.contains("one"), "{message}");
    for empty in ["", "[]"] {
        workshop.write(data, empty);
        let message = workshop.fails(&["caption", "run.yaml"]);
        assert!(message.contains("initial_data.json"), "{message}");
    }
    let message = workshop.fails(&["pair", "run.yaml", "data.root=elsewhere", "data.scenes=null"]);
    assert!(message.contains("elsewhere/initial_data.json"), "{message}");
}

#[test]
fn a_checkpoint_that_is_not_its_configuration_is_refused() {
    let workshop = Workshop::new();
    let config = fs::read_to_string(workshop.path("model/showo/phi/config.json")).unwrap();
    workshop.write(
        "model/showo/phi/config.json",
        &config.replace("\"intermediate_size\": 64", "\"intermediate_size\": 96"),
    );
    let message = workshop.fails(&["caption", "run.yaml"]);
    assert!(message.contains("model/showo") && message.contains("config.json"), "{message}");
    assert!(message.contains("64") && message.contains("96"), "{message}");
    let message = workshop.fails(&["caption", "run.yaml", "model.vq=nowhere"]);
    assert!(message.contains("model.vq") && message.contains("nowhere"), "{message}");
    let message = workshop.fails(&["caption", "run.yaml", "--iteration", "2"]);
    assert!(message.contains("showo") || message.contains("train"), "{message}");
}

#[test]
fn the_clip_variant_captions_answers_and_trains_its_images() {
    let workshop = Workshop::new();
    fs::remove_dir_all(workshop.path("model")).unwrap();
    workshop.succeeds(&["random-model", "model", "--clip"]);
    let message = workshop.fails(&["caption", "run.yaml"]);
    assert!(message.contains("model.clip") && message.contains("clip-vit-large-patch14-336"), "{message}");
    let message = workshop.fails(&["caption", "run.yaml", "model.clip=nowhere"]);
    assert!(message.contains("model.clip") && message.contains("nowhere"), "{message}");
    workshop.write("run.yaml", &RUN.replace("model/tokenizer.json", "model/tokenizer.json, clip: model/clip"));
    let message = workshop.fails(&["run", "run.yaml", "output=refused"]);
    assert!(message.contains("train.sides=gen"), "{message}");
    assert!(!workshop.path("data/understanding_caption_results.jsonl").exists(), "refused before any work");

    workshop.succeeds(&["caption", "run.yaml"]);
    let captions: serde_json::Value =
        serde_json::from_slice(&fs::read(workshop.path("data/understanding_caption_results.json")).unwrap()).unwrap();
    let greedy: std::collections::BTreeSet<&str> =
        captions.as_array().unwrap().iter().map(|record| record["caption_mmu"][0].as_str().unwrap()).collect();
    assert!(greedy.len() > 1, "all pictures are captioned alike: {greedy:?}");

    workshop.succeeds(&["run", "run.yaml", "train.sides=gen"]);
    let answers: serde_json::Value =
        serde_json::from_slice(&fs::read(workshop.path("data/generation_vqa_results.json")).unwrap()).unwrap();
    assert_eq!(answers.as_array().unwrap().len(), 12);
    let config = fs::read_to_string(workshop.path("out/train_iter2/model/config.json")).unwrap();
    assert!(config.contains("\"w_clip_vit\": true"), "{config}");
    let weights = fs::read(workshop.path("out/train_iter2/model/pytorch_model.safetensors")).unwrap();
    assert!(text(&weights).contains("mm_projector.2.weight"));

    fs::remove_dir_all(workshop.path("model")).unwrap();
    workshop.succeeds(&["random-model", "model"]);
    let message = workshop.fails(&["caption", "run.yaml"]);
    assert!(message.contains("model.clip") && message.contains("remove the key"), "{message}");
}

#[test]
fn results_of_other_settings_are_not_mixed() {
    let workshop = Workshop::new();
    workshop.succeeds(&["caption", "run.yaml"]);
    let message = workshop.fails(&["caption", "run.yaml", "caption.max_new_tokens=7"]);
    assert!(message.contains("caption.max_new_tokens: there 6, here 7"), "{message}");
    let message = workshop.fails(&["caption", "run.yaml", "--seed", "6"]);
    assert!(message.contains("seed"), "{message}");
    let before = files(&workshop.path("data"));
    workshop.succeeds(&["caption", "run.yaml"]);
    assert!(before == files(&workshop.path("data")), "a finished stage changes nothing");
}

#[test]
fn later_iterations_renew_the_pairs_of_the_same_records() {
    let workshop = Workshop::new();
    let out = workshop.succeeds(&["run", "run.yaml", "data.fresh=false"]);
    assert_eq!(out.trim(), "out/train_iter2/model");
    let ids = |name: &str| {
        let pairs: serde_json::Value = serde_json::from_slice(&fs::read(workshop.path(name)).unwrap()).unwrap();
        pairs.as_array().unwrap().iter().map(|pair| pair["id"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let first = ids("data/pair_dpo_data.json");
    assert!(!first.is_empty());
    assert_eq!(ids("data/pair_dpo_data_iter2.json"), first);
    assert!(!workshop.path("data/initial_data_iter2.json").exists(), "one set of records");
    assert!(workshop.path("data/generated_images_iter2").is_dir());
    let message = workshop.fails(&["run", "run.yaml", "data.fresh=false", "train.steps=13"]);
    assert!(
        message.contains("out/config.yaml") && message.contains("train.schedule.steps: there 12, here 13"),
        "{message}"
    );
    workshop.succeeds(&["run", "run.yaml", "data.fresh=false", "iterations=3"]);
    assert!(workshop.path("out/train_iter3/model/pytorch_model.safetensors").is_file(), "a run can be continued");
}

#[test]
fn questions_of_ones_own_are_answered() {
    let workshop = Workshop::new();
    workshop.succeeds(&["scenes", "run.yaml"]);
    workshop.succeeds(&["imagine", "run.yaml"]);
    let own = ["ask.file=mine.json"];
    let message = workshop.fails(&[&["ask", "run.yaml"], &own[..]].concat());
    assert!(message.contains("mine.json"), "{message}");
    let mine = r#"{"id": "train-000002", "img_path": "x", "prompt": "p", "caption": "c", "element": "e",
                   "question": "is it?", "choices": ["yes", "no"], "answer": "yes"},"#;
    workshop.write("mine.json", mine);
    workshop.succeeds(&[&["ask", "run.yaml"], &own[..]].concat());
    workshop.succeeds(&[&["answer", "run.yaml"], &own[..]].concat());
    let answers: serde_json::Value =
        serde_json::from_slice(&fs::read(workshop.path("data/generation_vqa_results.json")).unwrap()).unwrap();
    let answers = answers.as_array().unwrap();
    assert_eq!(answers.len(), 1, "records without questions are left out");
    assert_eq!((&answers[0]["id"], &answers[0]["question_number"]), (&"train-000002".into(), &1.into()));
    assert_eq!(answers[0]["result"].as_array().unwrap().len(), 4);
}

/// Three records with real captions: one that the template writer reads with ease, one hard, one that is no English.
#[test]
fn templates_ask_about_any_english_caption() {
    let workshop = Workshop::new();
    three_records(&workshop);
    let ask = ["ask", "run.yaml", "data.scenes=null", "data.fresh=false"];
    let output = workshop.hermesflow(&[&ask[..], &["ask.writer=template", "ask.file=null"]].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("1 of 3 records have no question"), "{}", text(&output.stderr));
    let asked = asked(&workshop);
    for (id, question, answer) in [("a", "what color is the car?", "red"), ("b", "how many dogs are there?", "2")] {
        assert!(asked.contains(&(id.into(), question.into(), answer.into())), "{question}: {asked:?}");
    }
    let message = workshop.fails(&[&ask[..], &["ask.writer=scenes"]].concat());
    assert!(message.contains("ask.writer=template"), "{message}");
}

#[test]
fn questions_of_other_benchmarks_are_joined_to_the_records() {
    let workshop = Workshop::new();
    three_records(&workshop);
    let ask = ["ask", "run.yaml", "data.scenes=null", "data.fresh=false", "ask.file=given.json"];
    workshop.write(
        "given.json",
        r#"[{"id": "coco_9", "caption": "A red car parked in front of a small house.", "element": "car",
             "question": "is there a car?", "choices": ["yes", "no"], "answer": "yes", "element_type": "object"},
            {"id": "b", "caption": "", "element": "2", "question": "how many?", "choices": ["1", "2"], "answer": "3"},
            {"id": "b", "caption": "", "element": "2", "question": "how many?", "choices": ["1", "2"], "answer": "2"}]"#,
    );
    let output = workshop.hermesflow(&ask);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("1 question left out: the answer is none of the choices"));
    let triple = |id: &str, question: &str, answer: &str| (id.to_owned(), question.to_owned(), answer.to_owned());
    assert_eq!(asked(&workshop), [triple("a", "is there a car?", "yes"), triple("b", "how many?", "2")]);
    workshop.write(
        "given.json",
        r#"{"img_path": "./000/c.jpg", "Task3": {"Style Relevant Questions and Answers":
            [{"Question": "Which style?", "Options": {"A": "oil", "B": "ink"}, "Answer": "B"}]}}"#,
    );
    workshop.succeeds(&ask);
    assert_eq!(asked(&workshop), [triple("c", "Which style?", "ink")]);
    workshop.write("given.json", r#"{"img_path": "nowhere.jpg", "Task3": {}}"#);
    let message = workshop.fails(&ask);
    assert!(message.contains("given.json") && message.contains("equal caption"), "{message}");
    workshop.write("given.json", r#"{"id": "a", "text": "?"}"#);
    let message = workshop.fails(&ask);
    assert!(message.contains("given.json, line 1, record a") && message.contains("JourneyDB"), "{message}");
}

#[test]
fn codes_that_do_not_fit_are_refused() {
    let workshop = Workshop::new();
    workshop.succeeds(&["run", "run.yaml", "iterations=1"]);
    let pairs: serde_json::Value =
        serde_json::from_slice(&fs::read(workshop.path("data/pair_dpo_data.json")).unwrap()).unwrap();
    let (id, picture) = (pairs[0]["id"].as_str().unwrap(), pairs[0]["image_win"].as_str().unwrap());
    let codes = format!("data/{}", picture.replace(".png", ".codes.json"));
    let train = ["train", "run.yaml", "iterations=1", "output=again"];
    for (content, said) in [("[1, 2]", id), ("[99999]", "train.codes=encoded"), ("x", "codes.json")] {
        workshop.write(&codes, content);
        let message = workshop.fails(&train);
        assert!(message.contains(said), "{message}");
    }
    fs::remove_file(workshop.path(&codes)).unwrap();
    workshop.succeeds(&train);
}

#[test]
fn a_run_killed_at_ten_moments_ends_with_the_same_bytes() {
    killed_at_ten_moments(&["model.dtype=f32"]);
}

/// With the kernels of the table: each workshop would measure by itself, and two measurements may choose two kernels.
#[test]
fn so_it_does_in_sixteen_bits() {
    killed_at_ten_moments(&["model.dtype=bf16", "model.kernels=fixed"]);
}

fn killed_at_ten_moments(settings: &[&str]) {
    killed_and_undisturbed(Workshop::new, &[&["run", "run.yaml"], settings].concat(), 10, 1);
}

/// A pretraining of a few seconds.
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
  steps: 5
  learning_rate: 0.001
  warmup_steps: 1
  weight_decay: 0.0
  max_grad_norm: 1.0
base:
  model: { hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 2 }
  max_text_len: 64
  caption_question: Give a caption for this image.
  stages:
    - mix: { understanding: 2, generation: 2 }
      steps: 5
      learning_rate: 0.001
      warmup_steps: 1
      weight_decay: 0.0
      max_grad_norm: 1.0
    - mix: { understanding: 2, generation: 2, alt_text: 0.5, short_captions: 0.5 }
      steps: 5
      learning_rate: 0.001
      warmup_steps: 1
      weight_decay: 0.0
      max_grad_norm: 1.0
checkpoint_every: 2
";

#[test]
fn a_pretraining_that_was_cut_short_ends_with_the_same_bytes() {
    let workshop = Workshop::new();
    workshop.write("pretrain.yaml", PRETRAINING);
    let pretrain = ["pretrain", "pretrain.yaml", "--export", "exported"];
    workshop.succeeds(&pretrain);
    let whole = files(&workshop.path("exported"));
    fs::remove_dir_all(workshop.path("exported")).unwrap();
    fs::remove_dir_all(workshop.path("made")).unwrap();
    for _ in 0..3 {
        workshop.succeeds(&[&pretrain[..], &["--stop-after", "3"]].concat()); // one checkpoint and a step too many
        assert!(!workshop.path("exported").exists());
    }
    workshop.succeeds(&pretrain);
    assert_eq!(whole, files(&workshop.path("exported")));

    // Nothing of other settings is taken for what was asked.
    for (setting, said) in [
        (
            "vq.steps=6",
            "the files of the image tokenizer (made/vq/pytorch_model.safetensors) were made with different settings",
        ),
        ("vq.model.ch=16", "vq.model.ch: there 8, here 16"),
        ("tokenizer.lines=200", "tokenizer.lines: there 300, here 200"),
        ("base.max_text_len=32", "base.max_text_len: there 64, here 32"),
        ("seed=4", "seed: there 3, here 4"),
    ] {
        let message = workshop.fails(&["pretrain", "pretrain.yaml", setting]);
        assert!(message.contains(said), "{setting}: {message}");
    }
    let image_tokenizer = workshop.path("made/vq/config.json");
    let own = fs::read_to_string(&image_tokenizer).unwrap();
    fs::write(&image_tokenizer, own.clone() + "\n").unwrap();
    let message = workshop.fails(&["pretrain", "pretrain.yaml"]);
    assert!(message.contains("the image tokenizer: different content"), "{message}");
    fs::write(&image_tokenizer, own).unwrap();
    let message = workshop.fails(&pretrain);
    assert!(message.contains("exported: is not empty"), "{message}");
    workshop.succeeds(&["pretrain", "pretrain.yaml", "checkpoint_every=3"]);
}

#[test]
fn a_pretraining_goes_on_from_an_exported_model() {
    let workshop = Workshop::new();
    workshop.write("pretrain.yaml", PRETRAINING);
    workshop.succeeds(&["pretrain", "pretrain.yaml", "--export", "first"]);
    let further = ["pretrain", "pretrain.yaml", "output=further", "--export", "second"];
    workshop.succeeds(&[&further[..], &["--from", "first", "--stage", "2"]].concat());
    let (first, second) = (files(&workshop.path("first")), files(&workshop.path("second")));
    for (name, bytes) in first {
        let trained = name == Path::new("showo/pytorch_model.safetensors");
        assert_eq!(second[&name] != bytes, trained, "{}", name.display());
    }
    assert!(!workshop.path("further/showo/training").exists(), "the stage before is not trained again");
    let message = workshop.fails(&[&further[..], &["--from", "first", "--stage", "3"]].concat());
    assert!(message.contains("--stage 3") && message.contains("pretrain.yaml"), "{message}");
    let message = workshop.fails(&[&further[..3], &["output=third", "--from", "no-folder", "--stage", "2"]].concat());
    assert!(message.contains("no-folder"), "{message}");
}

#[test]
fn the_demo_leaves_figures_and_pictures() {
    let folder = tempfile::tempdir().unwrap();
    let demo = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hermesflow"));
        command.current_dir(folder.path()).args(["demo", "--quick", "--prompts", "8", "train.steps=4"]);
        let output = command.stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    let first = demo();
    let out = folder.path().join("hermesflow-demo");
    let figures = fs::read_to_string(out.join("figures.md")).unwrap();
    for row in ["base", "iteration 1", "understanding", "generation", "gap"] {
        assert!(figures.contains(row), "{row}: {figures}");
    }
    assert!(first.contains(figures.trim()));
    for name in ["pairs.png", "before-after.png"] {
        let picture = image::open(out.join(name)).unwrap();
        assert!(picture.width() > 300 && picture.height() > 200, "{name}");
    }
    let before = files(&out);
    demo();
    assert_eq!(before, files(&out), "nothing is done twice, nothing changes");
}
