//! The files of a small Janus-Pro: written back as they came, every tensor accounted for, and what does not fit refused by its
//! name.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;

use hermesflow_models::janus::config::JanusConfig;
use hermesflow_models::janus::files::{CONFIG, PREPROCESSOR, PROCESSOR, TOKENIZER, TOKENIZER_CONFIG};
use hermesflow_models::janus::pretrain::{files, published_config, published_shapes};
use hermesflow_models::janus::{Janus, JanusFiles, OfCodes, check_files};
use hermesflow_models::{DType, Device, FileFormat, Tensor, Weights};
use serde_json::{Value, json};

mod tiny;

use tiny::{CODES, TOKENS, codes, model, read};

/// A file of the folder with one value changed.
fn changed(files: &JanusFiles, name: &str, change: impl FnOnce(&mut Value)) -> JanusFiles {
    let mut value: Value = files.json(name).unwrap();
    change(&mut value);
    let all: Vec<(&str, Vec<u8>)> = files
        .all()
        .map(|(file, bytes)| (file, if file == name { value.to_string().into_bytes() } else { bytes.to_vec() }))
        .collect();
    JanusFiles::from_memory(all, "changed")
}

#[test]
fn contradictions_are_refused_by_name() {
    let good = tiny::small_files(4);
    JanusConfig::read(&good).unwrap();
    let refused = |file: &str, pointer: &str, value: Value, expected: &str| {
        let bad = changed(&good, file, |config| {
            let (parent, key) = pointer.rsplit_once('/').unwrap();
            config.pointer_mut(parent).unwrap().as_object_mut().unwrap().insert(key.into(), value.clone());
        });
        let said = JanusConfig::read(&bad).unwrap_err().to_string();
        assert!(said.contains(expected) && said.contains(file), "{pointer} {value}: {said}");
    };
    let vision = "/vision_config/params";
    let vq = "/gen_vision_config/params";
    for (file, pointer, value, expected) in [
        (CONFIG, "/model_type", json!("janus"), "transformers"),
        (CONFIG, "/model_type", json!("llava"), "llava"),
        (CONFIG, "/vision_gen_enc_config", json!({}), "JanusFlow"),
        (CONFIG, "/language_config/hidden_size", json!(30), "30"),
        (CONFIG, "/language_config/num_key_value_heads", json!(3), "num_key_value_heads 3"),
        (CONFIG, "/language_config/num_hidden_layers", json!(0), "num_hidden_layers 0"),
        (CONFIG, "/language_config/vocab_size", json!(1u64 << 40), "vocab_size"),
        (CONFIG, "/language_config/rms_norm_eps", json!(-1.0), "rms_norm_eps"),
        (CONFIG, "/language_config/hidden_act", json!("gelu"), "hidden_act"),
        (CONFIG, "/language_config/tie_word_embeddings", json!(true), "tie_word_embeddings"),
        (CONFIG, "/language_config/attention_bias", json!(true), "attention_bias"),
        (CONFIG, "/language_config/rope_scaling", json!({"type": "linear"}), "rope_scaling"),
        (CONFIG, "/aligner_config/params/projector_type", json!("linear"), "projector_type"),
        (CONFIG, "/aligner_config/params/n_embed", json!(40), "aligner_config.params.n_embed 40"),
        (CONFIG, "/aligner_config/params/input_dim", json!(40), "aligner_config.params.input_dim 40"),
        (CONFIG, "/gen_aligner_config/params/n_embed", json!(40), "gen_aligner_config.params.n_embed 40"),
        (CONFIG, "/gen_aligner_config/params/depth", json!(0), "gen_aligner_config.params.depth 0"),
        (CONFIG, "/gen_head_config/params/image_token_size", json!(41), "image_token_size 41"),
        (CONFIG, "/vision_config/params/select_feature", json!("patch"), "select_feature"),
        (CONFIG, "/vision_config/params/heads", json!(5), "5 heads"),
        (CONFIG, "/gen_vision_config/params/ch", json!(20), "32 groups"),
        (CONFIG, "/gen_vision_config/params/decoder_ch_mult", json!([1, 1]), "different grids"),
        (PROCESSOR, "/num_image_tokens", json!(25), "num_image_tokens 25"),
        (PROCESSOR, "/sft_format", json!("plain"), "Janus-1.3B"),
        (PREPROCESSOR, "/image_size", json!(20), "image_size 20"),
        (PREPROCESSOR, "/image_std", json!([0.5, 0.0, 0.5]), "image_std 0"),
    ] {
        refused(file, pointer, value, expected);
    }
    // A grid of codes of another size than that of patches.
    let bad = changed(&good, CONFIG, |config| {
        config.pointer_mut(vq).unwrap()["encoder_ch_mult"] = json!([1, 1]);
        config.pointer_mut(vq).unwrap()["decoder_ch_mult"] = json!([1, 1]);
    });
    assert!(JanusConfig::read(&bad).unwrap_err().to_string().contains("grid of 8×8"));
    // A name that is not known needs all its sizes.
    let bad = changed(&good, CONFIG, |config| {
        let params = config.pointer_mut(vision).unwrap().as_object_mut().unwrap();
        params["model_name"] = json!("siglip_huge");
        params.remove("width");
    });
    let said = JanusConfig::read(&bad).unwrap_err().to_string();
    assert!(said.contains("siglip_huge") && said.contains("width"), "{said}");
    let fine =
        changed(&good, CONFIG, |config| config.pointer_mut(vision).unwrap()["model_name"] = json!("siglip_huge"));
    JanusConfig::read(&fine).unwrap();
    // Of the special tokens one is missing.
    let text = String::from_utf8(good.bytes(TOKENIZER).unwrap().to_vec()).unwrap();
    for spelling in ["<begin_of_image>", "<｜▁pad▁｜>", "<|User|>"] {
        let all = good.all().map(|(name, bytes)| {
            let bytes = if name == TOKENIZER { text.replace(spelling, "<other>").into_bytes() } else { bytes.to_vec() };
            (name, bytes)
        });
        let bad = JanusFiles::from_memory(all, "changed");
        let said = Janus::new(bad, model(4).weights().clone()).unwrap_err().to_string();
        assert!(said.contains(spelling) && said.contains("tokenizer.json"), "{said}");
    }
}

#[test]
fn every_tensor_is_accounted_for() {
    let model = model(4);
    let with = |change: &dyn Fn(&mut BTreeMap<String, Tensor>)| {
        let mut tensors = model.weights().tensors().clone();
        change(&mut tensors);
        Janus::new(tiny::small_files(4), Weights::from_tensors(tensors, "weights")).map(|_| ()).unwrap_err().to_string()
    };
    let zeros = |shape: (usize, usize)| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    let missing = "language_model.model.layers.1.mlp.up_proj.weight";
    assert!(with(&|tensors| drop(tensors.remove(missing))).contains(&format!("missing {missing}")));
    let more =
        with(&|tensors| drop(tensors.insert("vision_model.vision_tower.blocks.2.norm1.weight".into(), zeros((1, 1)))));
    assert!(more.contains("unexpected vision_model.vision_tower.blocks.2.norm1.weight"), "{more}");
    let other = with(&|tensors| drop(tensors.insert("aligner.layers.0.weight".into(), zeros((3, 4)))));
    assert!(other.contains("aligner.layers.0.weight has shape [3, 4]"), "{other}");
    let rows = with(&|tensors| drop(tensors.insert("gen_embed.weight".into(), zeros((CODES - 1, 5)))));
    assert!(rows.contains("gen_embed has 39 rows") && rows.contains("image_token_size is 40"), "{rows}");
    // An old file may have these.
    let mut tensors = model.weights().tensors().clone();
    let old = "language_model.model.layers.0.self_attn.rotary_emb.inv_freq";
    tensors.insert(old.into(), Tensor::zeros(4, DType::F32, &Device::Cpu).unwrap());
    Janus::new(tiny::small_files(4), Weights::from_tensors(tensors, "weights")).unwrap();
}

#[test]
fn a_folder_is_written_back_with_every_file_and_tensor() {
    let model = model(2);
    let codes = codes(1);
    let of_codes = OfCodes { prompt: "a large red circle", unconditional: false, codes: &codes };
    let score = |model: &Janus| read(&model.code_log_probs(&[of_codes]).unwrap());
    let (root, mut last) = (tempfile::tempdir().unwrap(), None);
    for (at, format) in [
        FileFormat::Bin,
        FileFormat::Safetensors,
        FileFormat::ShardedBin(200_000),
        FileFormat::ShardedSafetensors(200_000),
    ]
    .into_iter()
    .enumerate()
    {
        let folder = root.path().join(at.to_string());
        model.save(&folder, format, Some(DType::BF16)).unwrap();
        check_files(&folder).unwrap();
        let there = Janus::load(&folder, DType::F32, &Device::Cpu).unwrap();
        assert_eq!(there.files().all().collect::<Vec<_>>(), model.files().all().collect::<Vec<_>>());
        let names = |model: &Janus| model.weights().tensors().keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&there), names(&model));
        assert!(names(&there).iter().any(|name| name.contains("attn_pool")), "what nothing reads is there too");
        // Whatever the layout, the same numbers: those of the narrow type, exactly.
        let rounded = model.weights().tensors()["gen_head.vision_head.weight"].to_dtype(DType::BF16).unwrap();
        let rounded = read(&rounded.to_dtype(DType::F32).unwrap());
        assert_eq!(read(&there.weights().tensors()["gen_head.vision_head.weight"]), rounded);
        let scores = score(&there);
        assert_eq!(*last.get_or_insert_with(|| scores.clone()), scores);
        // Written again as it is held, and in the narrow type.
        let (again, narrow) = (folder.join("again"), folder.join("narrow"));
        there.save(&again, format, None).unwrap();
        assert_eq!(score(&Janus::load(&again, DType::F32, &Device::Cpu).unwrap()), scores);
        let held = Janus::load(&folder, DType::BF16, &Device::Cpu).unwrap();
        held.save(&narrow, format, None).unwrap();
        assert_eq!(score(&Janus::load(&narrow, DType::F32, &Device::Cpu).unwrap()), scores);
    }
    assert!(Janus::load(&root.path().join("0"), DType::F16, &Device::Cpu).unwrap_err().to_string().contains("F16"));
    std::fs::remove_file(root.path().join("0").join(PROCESSOR)).unwrap();
    assert!(Janus::load(&root.path().join("0"), DType::F32, &Device::Cpu).unwrap_err().to_string().contains(PROCESSOR));
}

/// What the specification counts of the published checkpoints.
#[test]
fn published_sizes_are_those_of_the_published_files() {
    for (seven, tensors, giga) in [(false, 882, 2.089), (true, 936, 7.420)] {
        let files = files(&published_config(seven), 576, 384, "{}");
        let config = JanusConfig::read(&files).unwrap();
        assert_eq!((config.resolution(), config.image_tokens, config.grid_side()), (384, 576, 24));
        let shapes = published_shapes(&config).unwrap();
        assert_eq!(shapes.len(), tensors);
        let count: usize = shapes.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
        assert!((count as f64 / 1e9 - giga).abs() < 0.0006, "{count}");
    }
}

#[test]
fn texts_begin_once_and_pads_take_the_prompt_s_place() {
    let with = model(4);
    let special = with.conversation().tokenizer().special;
    let prompt = with.conversation().prompt(" a circle ").unwrap();
    assert_eq!(prompt.iter().filter(|id| **id == special.begin).count(), 1);
    assert_eq!((prompt[0], *prompt.last().unwrap()), (special.begin, special.begin_of_image));
    let pads = with.conversation().unconditional(&prompt);
    assert_eq!(pads.len(), prompt.len());
    assert!(pads[1..pads.len() - 1].iter().all(|id| *id == special.pad));
    assert_eq!((pads[0], pads[pads.len() - 1]), (special.begin, special.begin_of_image));
    let question = with.conversation().question("what?").unwrap();
    assert_eq!(question.iter().filter(|id| **id == special.image_placeholder).count(), TOKENS);
    let first = question.iter().position(|id| *id == special.image_placeholder).unwrap();
    assert_eq!((question[first - 1], question[first + TOKENS]), (special.begin_of_image, special.end_of_image));
    // Without the begin token where the checkpoint says so.
    let files = changed(&tiny::small_files(4), TOKENIZER_CONFIG, |config| config["add_bos_token"] = json!(false));
    let without = Janus::new(files, with.weights().clone()).unwrap();
    assert_eq!(without.conversation().prompt(" a circle ").unwrap(), prompt[1..]);
    assert_eq!(without.conversation().question("what?").unwrap(), question[1..]);
}
