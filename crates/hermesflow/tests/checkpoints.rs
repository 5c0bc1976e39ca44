//! Checkpoints in every published layout and type: opened by folder or name, converted, trained, examined.

#![allow(clippy::unwrap_used, missing_docs)]

mod workshop;

use std::fs;
use std::path::Path;

use workshop::{Workshop, files, text};

/// The captions of two scenes under overrides, in a data root of their own.
fn captions(workshop: &Workshop, root: &str, overrides: &[&str]) -> String {
    let root = format!("data.root={root}");
    let mut arguments = vec!["caption", "run.yaml", "data.scenes.records=2", &root];
    arguments.extend(overrides);
    let file = workshop.succeeds(&arguments);
    fs::read_to_string(workshop.path(file.trim())).unwrap()
}

#[test]
fn every_layout_is_the_same_model_and_the_way_back_is_bit_identical() {
    let workshop = Workshop::new();
    let expected = captions(&workshop, "plain", &[]);
    let mut last = "model/showo".to_string();
    for format in ["bin", "bin-sharded", "sharded", "safetensors"] {
        workshop.succeeds(&["convert", &last, format, "--format", format]);
        assert_eq!(
            captions(&workshop, &format!("of-{format}"), &[&format!("model.showo={format}")]),
            expected,
            "{format}"
        );
        last = format.into();
    }
    for file in ["pytorch_model.safetensors", "config.json", "phi/config.json"] {
        let (before, after) = (workshop.path("model/showo").join(file), workshop.path("safetensors").join(file));
        assert_eq!(fs::read(before).unwrap(), fs::read(after).unwrap(), "{file}");
    }
    // The image tokenizer, too.
    workshop.succeeds(&["convert", "model/vq", "vq-bin", "--format", "bin"]);
    assert_eq!(captions(&workshop, "vq", &["model.vq=vq-bin"]), expected);
    let message = workshop.fails(&["convert", "model/showo", "model/vq"]);
    assert!(message.contains("not empty"), "{message}");
    let message = workshop.fails(&["convert", "model", "nothing"]);
    assert!(message.contains("no weights found"), "{message}");
}

#[test]
fn weights_that_are_not_the_configurations_are_listed() {
    let workshop = Workshop::new();
    let config = workshop.path("model/showo/phi/config.json");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3")).unwrap();
    for message in [
        workshop.fails(&["convert", "model/showo", "converted"]),
        workshop.fails(&["caption", "run.yaml"]),
        String::from_utf8(workshop.hermesflow(&["doctor", "run.yaml"]).stdout).unwrap(),
    ] {
        assert!(message.contains("missing showo.model.layers.2.input_layernorm"), "{message}");
        assert!(message.contains("more") && message.contains("model/showo"), "{message}");
    }
    assert!(!workshop.path("converted").exists());
}

#[test]
fn sixteen_bits_caption_imagine_and_train() {
    let workshop = Workshop::new();
    for dtype in ["bf16", "f16"] {
        let (dtype_key, root, output) =
            (format!("model.dtype={dtype}"), format!("data.root=data-{dtype}"), format!("output=out-{dtype}"));
        workshop.succeeds(&["run", "run.yaml", "iterations=2", "train.steps=3", &dtype_key, &root, &output]);
        let trained = workshop.path(&format!("out-{dtype}/train_iter2/model/pytorch_model.safetensors"));
        assert!(trained.is_file());
        // Killed before its second iteration, a run hands on the same player as one that goes on.
        let all = || (files(&workshop.path(&format!("data-{dtype}"))), files(&workshop.path(&format!("out-{dtype}"))));
        let whole = all();
        fs::remove_dir_all(workshop.path(&format!("out-{dtype}/train_iter2"))).unwrap();
        for name in whole.0.keys().filter(|name| name.to_string_lossy().contains("iter2")) {
            fs::remove_file(workshop.path(&format!("data-{dtype}")).join(name)).unwrap();
        }
        fs::remove_dir_all(workshop.path(&format!("data-{dtype}/generated_images_iter2"))).unwrap();
        workshop.succeeds(&["run", "run.yaml", "iterations=2", "train.steps=3", &dtype_key, &root, &output]);
        assert!(whole == all(), "{dtype}: what was continued differs");
        // A converted checkpoint in 16 bits is the model that was held in them.
        workshop.succeeds(&["convert", "model/showo", dtype, "--dtype", dtype]);
        let held = captions(&workshop, &format!("held-{dtype}"), &[&dtype_key]);
        assert_eq!(held, captions(&workshop, &format!("file-{dtype}"), &[&dtype_key, &format!("model.showo={dtype}")]));
    }
}

#[test]
fn a_training_checkpoint_opens_as_a_model() {
    let workshop = Workshop::new();
    workshop.succeeds(&["run", "run.yaml", "iterations=1", "train.steps=4", "train.checkpoint_every=4"]);
    let of = |root: &str, model: &str| captions(&workshop, root, &[&format!("model.showo={model}")]);
    assert_eq!(of("of-checkpoint", "out/train/checkpoint-4"), of("of-final", "out/train/model"));
}

#[test]
fn models_are_found_by_name_in_the_cache() {
    let workshop = Workshop::new();
    let cached = |name: &str, from: &str| {
        let folder = workshop.path("hub").join(format!("models--{}", name.replace('/', "--")));
        let snapshot = folder.join("snapshots/0123abc");
        fs::create_dir_all(&snapshot).unwrap();
        fs::create_dir_all(folder.join("refs")).unwrap();
        fs::write(folder.join("refs/main"), "0123abc").unwrap();
        copy(&workshop.path(from), &snapshot);
    };
    let ask = |arguments: &[&str]| {
        let mut command = workshop.command(arguments);
        command.env("HF_HUB_CACHE", workshop.path("hub")).env("HF_HUB_OFFLINE", "1").output().unwrap()
    };
    let named = ["caption", "run.yaml", "data.scenes.records=2", "data.root=named", "model.showo=showlab/show-o"];
    let published = ["model.vq=showlab/magvitv2", "model.tokenizer=microsoft/phi-1_5"];
    let arguments = [&named[..], &published].concat();
    let message = text(&ask(&arguments).stderr);
    for part in ["model.tokenizer", "microsoft/phi-1_5", "HF_HUB_OFFLINE", "tokenizer.json"] {
        assert!(message.contains(part), "{part}: {message}");
    }
    cached("showlab/show-o", "model/showo");
    cached("showlab/magvitv2", "model/vq");
    fs::create_dir(workshop.path("phi")).unwrap();
    fs::copy(workshop.path("model/tokenizer.json"), workshop.path("phi/tokenizer.json")).unwrap();
    cached("microsoft/phi-1_5", "phi");
    let output = ask(&arguments);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let found = fs::read_to_string(workshop.path("named/understanding_caption_results.json")).unwrap();
    assert_eq!(found, captions(&workshop, "plain", &[]));
}

#[test]
fn what_saves_memory_trains_the_same_model() {
    let workshop = Workshop::new();
    workshop.succeeds(&["run", "run.yaml", "iterations=1", "train.steps=3", "train.products=bf16"]);
    let model = |output: &str| fs::read(workshop.path(output).join("train/model/pytorch_model.safetensors")).unwrap();
    let kept = model("out");
    let saving = ["train.checkpointing=true", "train.optimizer_state=host"];
    let train = ["train", "run.yaml", "iterations=1", "train.steps=3", "train.products=bf16", "output=less"];
    workshop.succeeds(&[&train[..], &saving].concat());
    assert!(kept == model("less"));
    let config = fs::read_to_string(workshop.path("less/train/config.yaml")).unwrap();
    assert!(config.contains("recompute: true") && config.contains("optimizer_state: host"), "{config}");
    // A folder is not refused for them.
    workshop.succeeds(
        &[&["run", "run.yaml", "iterations=1", "train.steps=3", "train.products=bf16"], &saving[..]].concat(),
    );
}

#[test]
fn the_doctor_predicts_for_a_gpu_that_is_not_here() {
    let workshop = Workshop::new();
    let gpu = ["doctor", "run.yaml", "model.device=cuda:9", "model.dtype=bf16"];
    let said = workshop.succeeds(&[&gpu[..], &["--gpu-memory", "80"]].concat());
    for part in [
        "! device    cuda:9 is taken for a GPU of 80.0 GB",
        "✓ training",
        "true, host",
        "here: false, device",
        "✓ memory",
        "✓ host",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let output = workshop.hermesflow(&[&gpu[..], &["--gpu-memory", "0.001"]].concat());
    assert!(text(&output.stdout).contains("✗ memory"), "{}", text(&output.stdout));
    let output = workshop.hermesflow(&gpu);
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stdout);
    assert!(said.contains("✗ device") && said.contains("--gpu-memory") && said.contains("✓ training"), "{said}");
    let message = workshop.fails(&["doctor", "run.yaml", "--gpu-memory", "80"]);
    assert!(message.contains("model.device=cuda:0"), "{message}");
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else {
            fs::copy(&path, &target).unwrap();
        }
    }
}

#[test]
fn the_doctor_says_what_stands_in_the_way() {
    let workshop = Workshop::new();
    let good = workshop.succeeds(&["doctor", "run.yaml"]);
    for part in
        ["12 scenes will be drawn", "✓ model", "64×64 pictures of 16 tokens", "✓ memory", "✓ disk", "caption", "train"]
    {
        assert!(good.contains(part), "{part}: {good}");
    }
    let doctor = |arguments: &[&str]| {
        let output = workshop.hermesflow(&[&["doctor", "run.yaml"], arguments].concat());
        assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    let said = doctor(&["data.scenes=null", "data.root=nowhere"]);
    assert!(said.contains("✗ records") && said.contains("initial_data.json"), "{said}");
    let said = doctor(&["model.vq=model/showo"]);
    assert!(said.contains("✗ model"), "{said}");
    let said = doctor(&["train.batch_size=10000", "train.masks_per_pair=1000"]);
    assert!(said.contains("✗ memory") && said.contains("train ("), "{said}");
    assert!(!said.contains("caption ("), "{said}");

    workshop.succeeds(&["caption", "run.yaml", "data.scenes.records=3", "data.fresh=false"]);
    fs::write(workshop.path("data/images/train-000001.png"), b"no picture").unwrap();
    let said = workshop.succeeds(&["doctor", "run.yaml", "data.fresh=false"]);
    assert!(said.contains("! pictures") && said.contains("1 of 3") && said.contains("train-000001"), "{said}");
    fs::remove_dir_all(workshop.path("data/images")).unwrap();
    let said = doctor(&["data.fresh=false"]);
    assert!(said.contains("✗ pictures") && said.contains("data.root"), "{said}");
}

/// What a run would stop at, `doctor` stops at, and `run` before it opens a model.
#[test]
fn the_doctor_looks_at_what_the_stages_look_at() {
    let workshop = Workshop::new();
    workshop.write("a-file", "");
    let mut pair = "[".to_owned();
    for (id, name) in [("a", "good.png"), ("b", "cut.jpg")] {
        pair += &format!(r#"{{"id": "{id}", "img_path": "{name}", "prompt": "p", "caption": "c"}},"#);
    }
    workshop.write("own/initial_data.json", &format!("{}]", pair.trim_end_matches(',')));
    let picture = image::RgbImage::from_pixel(64, 64, image::Rgb([200, 30, 30]));
    picture.save(workshop.path("own/good.png")).unwrap();
    picture.save(workshop.path("own/cut.jpg")).unwrap();
    let bytes = fs::read(workshop.path("own/cut.jpg")).unwrap();
    fs::write(workshop.path("own/cut.jpg"), &bytes[..bytes.len() - 40]).unwrap();
    workshop.write(
        "about-a.json",
        r#"[{"id": "a", "caption": "", "element": "e", "question": "q?", "choices": ["1", "2"], "answer": "2"}]"#,
    );
    let own = ["data.scenes=null", "data.fresh=false", "data.root=own"];
    let doctor = |arguments: &[&str]| {
        let output = workshop.hermesflow(&[&["doctor", "run.yaml"], arguments].concat());
        (output.status.code(), text(&output.stdout))
    };
    let (code, said) = doctor(&[&own[..], &["ask.file=about-a.json"]].concat());
    assert_eq!(code, Some(0), "{said}");
    for part in ["! pictures", "1 of 2", "cut off", "✓ questions there are some about 1 records", "✓ folder"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    // A model that is not there shows that `run` never came to it.
    let nowhere = "model.showo=nowhere/there";
    for (arguments, what) in [
        (&["output=o1", "ask.file=missing.json"][..], "missing.json"),
        (&["output=o2", "ask.file=questions.json", own[0], own[1], own[2]], "questions.json"),
        (&["output=o3", "data.root=a-file/data"], "a-file"),
        (&["output=a-file/out"], "a-file"),
        (&["output=o4", "data.scenes=null", "data.root=empty"], "initial_data.json"),
    ] {
        let (code, said) = doctor(arguments);
        assert_eq!(code, Some(1), "{arguments:?}: {said}");
        assert!(said.lines().any(|line| line.starts_with('✗') && line.contains(what)), "{what}: {said}");
        let message = workshop.fails(&[&["run", "run.yaml", nowhere], arguments].concat());
        assert!(message.contains(what) && !message.contains("nowhere/there"), "{what}: {message}");
    }
    fs::remove_file(workshop.path("own/good.png")).unwrap();
    let (code, said) = doctor(&own);
    assert!(code == Some(1) && said.contains("none of 2"), "{said}");
    let message = workshop.fails(&[&["run", "run.yaml", nowhere, "ask.file=about-a.json"], &own[..]].concat());
    assert!(message.contains("no picture can be read"), "{message}");
}

#[test]
fn the_doctor_predicts_for_published_models_that_are_not_here() {
    let workshop = Workshop::new();
    let ask = |showo: &str| {
        let mut command =
            workshop.command(&["doctor", "run.yaml", showo, "model.vq=magvitv2", "model.tokenizer=phi-1_5"]);
        text(&command.env("HF_HUB_CACHE", workshop.path("empty")).output().unwrap().stdout)
    };
    for (name, pictures) in
        [("show-o", "256×256 pictures of 256"), ("showlab/show-o-512x512", "512×512 pictures of 1024")]
    {
        let said = ask(&format!("model.showo={name}"));
        for part in ["about 5.8 GB", "1.45 billion parameters", pictures, "memory", "disk", "PFLOP"] {
            assert!(said.contains(part), "{part}: {said}");
        }
    }
    assert!(ask("model.showo=somebody/something").lines().all(|line| !line.contains("billion")));
}
