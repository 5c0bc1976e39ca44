//! Encoders and the judges above them: strong properties, layouts, and what is said when a folder is broken.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use hermesflow_score::neural::{Bert, BertScore, Encoder, SentenceBert, TextTokenizer};
use hermesflow_score::{CaptionSimilarity, ChoiceMatcher, Choosing};

mod recorded;

use recorded::{copied, golden};

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

const TEXTS: [&str; 9] = [
    "a red circle",
    "three dogs",
    "",
    "A raccoon wearing a hat made of an orange roses wallpaper pattern.",
    "two dogs",
    "a blue square above a red circle and below a vase with flowers on a table",
    "a",
    "dogs dogs dogs dogs dogs",
    "?",
];

#[test]
fn a_batch_is_its_sentences_one_by_one() {
    for judge in ["bert", "mpnet"] {
        let encoder = Encoder::load(&golden(judge), DType::F32, &Device::Cpu).unwrap();
        let tokenizer = TextTokenizer::load(&golden(judge), encoder.vocab_size()).unwrap();
        let ids = tokenizer.ids(TEXTS).unwrap();
        let together = encoder.states(&ids, encoder.layers()).unwrap();
        let backwards: Vec<Vec<u32>> = ids.iter().rev().cloned().collect();
        let backwards = encoder.states(&backwards, encoder.layers()).unwrap();
        for (at, ids) in ids.iter().enumerate() {
            let alone = encoder.states(std::slice::from_ref(ids), encoder.layers()).unwrap();
            assert_eq!(alone[0].dims(), [ids.len(), encoder.hidden_size()]);
            for other in [&together[at], &backwards[TEXTS.len() - 1 - at]] {
                assert!(largest_difference(&values(&alone[0]), &values(other)) < 2e-6, "{judge}: {}", TEXTS[at]);
            }
        }
    }
}

#[test]
fn what_stands_beside_a_sentence_cannot_leak_into_it() {
    for judge in ["bert", "mpnet"] {
        let encoder = Encoder::load(&golden(judge), DType::F32, &Device::Cpu).unwrap();
        let states = |other: u32| {
            let sentences = [vec![2, 30, 40, 3], vec![2, other, other + 1, 3], vec![2, other, other, other, 3]];
            let states = encoder.states(&sentences, encoder.layers()).unwrap();
            (values(&states[0]), values(&states[1]))
        };
        let ((first, changed), (same, differs)) = (states(50), states(60));
        assert_eq!(first, same, "{judge}");
        assert_ne!(changed, differs);
    }
}

#[test]
fn early_names_behind_a_prefix_are_the_same_model() {
    for (judge, prefix) in [("bert", "bert"), ("mpnet", "mpnet")] {
        let folder = copied(judge);
        let file = folder.path().join("model.safetensors");
        let weights: HashMap<String, Tensor> = candle_core::safetensors::load(&file, &Device::Cpu).unwrap();
        let early = |name: &String| {
            let name = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta");
            format!("{prefix}.{name}")
        };
        let mut renamed: HashMap<String, Tensor> = weights.iter().map(|(name, t)| (early(name), t.clone())).collect();
        renamed.insert("cls.predictions.bias".into(), Tensor::zeros(3, DType::F32, &Device::Cpu).unwrap());
        candle_core::safetensors::save(&renamed, &file).unwrap();
        let states = |folder: &Path| {
            let encoder = Encoder::load(folder, DType::F32, &Device::Cpu).unwrap();
            values(&encoder.states(&[vec![2, 9, 8, 7, 3]], 2).unwrap()[0])
        };
        assert_eq!(states(folder.path()), states(&golden(judge)));
    }
}

#[test]
fn a_word_list_is_the_same_tokenizer() {
    for judge in ["bert", "mpnet"] {
        let folder = copied(judge);
        let json: serde_json::Value =
            serde_json::from_str(&fs::read_to_string(folder.path().join("tokenizer.json")).unwrap()).unwrap();
        let vocabulary = json["model"]["vocab"].as_object().unwrap();
        let mut words: Vec<(&String, u64)> = vocabulary.iter().map(|(word, id)| (word, id.as_u64().unwrap())).collect();
        words.sort_by_key(|(_, id)| *id);
        let words: Vec<&str> = words.into_iter().map(|(word, _)| word.as_str()).collect();
        let whole = TextTokenizer::load(folder.path(), words.len()).unwrap();
        fs::write(folder.path().join("vocab.txt"), words.join("\n")).unwrap();
        fs::remove_file(folder.path().join("tokenizer.json")).unwrap();
        let listed = TextTokenizer::load(folder.path(), words.len()).unwrap();
        let texts = TEXTS.into_iter().chain(["ÀÉÎ dogs", "狗 dog", "a[SEP]b </s> c", "unknown ☃"]);
        assert_eq!(listed.ids(texts.clone()).unwrap(), whole.ids(texts).unwrap(), "{judge}");
    }
}

#[test]
fn long_texts_are_cut_to_what_the_model_takes() {
    let long = "dogs ".repeat(500);
    let bert = Bert::load(&golden("bert"), &Device::Cpu).unwrap();
    let ids = bert.ids([long.as_str()]).unwrap().remove(0);
    assert_eq!((ids.len(), ids[63]), (64, 3), "the closing token stays");
    bert.first_states([long.as_str()]).unwrap();
    let folder = copied("mpnet");
    let length = |folder: &Path| {
        let judge = SentenceBert::load(folder, &Device::Cpu).unwrap();
        judge.embed(&[long.as_str()]).unwrap();
        judge.ids([long.as_str()]).unwrap()[0].len()
    };
    assert_eq!(length(folder.path()), 64, "66 positions start behind the padding's id 1");
    fs::write(folder.path().join("sentence_bert_config.json"), r#"{"max_seq_length": 20}"#).unwrap();
    assert_eq!(length(folder.path()), 20);
}

#[test]
fn the_folder_says_how_tokens_become_one_vector() {
    let folder = copied("bert");
    let pooled = |pooling: &str| {
        fs::create_dir_all(folder.path().join("1_Pooling")).unwrap();
        fs::write(folder.path().join("1_Pooling/config.json"), pooling).unwrap();
        SentenceBert::load(folder.path(), &Device::Cpu).map(|judge| judge.embed(&["three dogs"]).unwrap()[0].to_vec())
    };
    let modules = |names: &[&str]| {
        let module = |(at, name): (usize, &&str)| {
            let path = if *name == "Pooling" { "1_Pooling" } else { "" };
            format!(
                r#"{{"idx": {at}, "name": "{at}", "path": "{path}", "type": "sentence_transformers.models.{name}"}}"#
            )
        };
        let list: Vec<String> = names.iter().enumerate().map(module).collect();
        fs::write(folder.path().join("modules.json"), format!("[{}]", list.join(","))).unwrap();
    };
    modules(&["Transformer", "Pooling"]);
    let judge = Bert::load(folder.path(), &Device::Cpu).unwrap();
    let first = judge.first_states(["three dogs"]).unwrap().remove(0);
    let cls = pooled(r#"{"pooling_mode_cls_token": true}"#).unwrap();
    assert_eq!(cls, first);
    let mean = pooled(r#"{"pooling_mode_mean_tokens": true}"#).unwrap();
    let root = pooled(r#"{"pooling_mode_mean_sqrt_len_tokens": true}"#).unwrap();
    let length = (judge.ids(["three dogs"]).unwrap()[0].len() as f32).sqrt();
    assert!(largest_difference(&root, &mean.iter().map(|x| x * length).collect::<Vec<_>>()) < 1e-6);
    let most = pooled(r#"{"pooling_mode": "max"}"#).unwrap();
    assert!(most.iter().zip(&mean).all(|(most, mean)| most >= mean));
    let both = pooled(r#"{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": true}"#).unwrap();
    assert_eq!(both, [cls, mean.clone()].concat());
    modules(&["Transformer", "Pooling", "Normalize"]);
    let unit = pooled(r#"{"pooling_mode_mean_tokens": true}"#).unwrap();
    let norm = mean.iter().map(|x| x * x).sum::<f32>().sqrt();
    assert!(largest_difference(&unit, &mean.iter().map(|x| x / norm).collect::<Vec<_>>()) < 1e-6);
    let refusal = pooled(r#"{"pooling_mode_lasttoken": true}"#).unwrap_err().to_string();
    assert!(refusal.contains("1_Pooling"), "{refusal}");
    modules(&["Transformer", "Pooling", "Dense"]);
    let refusal = pooled(r#"{"pooling_mode_mean_tokens": true}"#).unwrap_err().to_string();
    assert!(refusal.contains("modules.json") && refusal.contains("Dense"), "{refusal}");
    // A part lies within the folder.
    for path in ["../bert", "/"] {
        let module = r#"{"idx": 0, "name": "0", "path": "PATH", "type": "sentence_transformers.models.Transformer"}"#;
        fs::write(folder.path().join("modules.json"), format!("[{}]", module.replace("PATH", path))).unwrap();
        let refusal = pooled(r#"{"pooling_mode_mean_tokens": true}"#).unwrap_err().to_string();
        assert!(refusal.contains("modules.json") && refusal.contains("leads out of the folder"), "{refusal}");
    }
}

#[test]
fn choices_are_matched_in_batches_as_one_by_one() {
    let judge = SentenceBert::load(&golden("mpnet"), &Device::Cpu).unwrap();
    let owned = |choices: &[&str]| choices.iter().map(|choice| (*choice).to_string()).collect::<Vec<_>>();
    let (colours, twice, none) = (owned(&["black", "green", "brown"]), owned(&["no", "yes", "yes"]), owned(&[]));
    let replies = [
        Choosing { reply: "pale green", choices: &colours },
        Choosing { reply: "yes", choices: &twice },
        Choosing { reply: "green", choices: &none },
        Choosing { reply: "", choices: &colours },
    ];
    let together = judge.choose(&replies).unwrap();
    assert_eq!(together[1..3], [Some(1), None], "the first of equals; nothing of nothing");
    assert!(together[3].is_some());
    for (reply, expected) in replies.iter().zip(&together) {
        let fresh = SentenceBert::load(&golden("mpnet"), &Device::Cpu).unwrap();
        assert_eq!(fresh.choose(&[*reply]).unwrap()[0], *expected);
        assert_eq!(judge.choose(&[*reply]).unwrap()[0], *expected, "remembered");
    }
}

#[test]
fn judges_of_captions_rank_the_caption_itself_first() {
    let candidates = ["two dogs", "three dogs", "a blue square above a vase"].map(String::from);
    let (bert, mpnet) = (golden("bert"), golden("mpnet"));
    let judges: [Box<dyn CaptionSimilarity>; 4] = [
        Box::new(Bert::load(&bert, &Device::Cpu).unwrap()),
        Box::new(SentenceBert::load(&mpnet, &Device::Cpu).unwrap()),
        Box::new(BertScore::load(&bert, Some(1), &Device::Cpu).unwrap()),
        Box::new(BertScore::load(&mpnet, Some(2), &Device::Cpu).unwrap().rescaled(0.8)),
    ];
    for judge in judges {
        let scores = judge.similarities("three dogs", &candidates).unwrap();
        assert!((scores[1] - 1.0).abs() < 1e-6 && scores[0] < 1.0 && scores[2] < 1.0, "{scores:?}");
        assert!(judge.similarities("three dogs", &[]).unwrap().is_empty());
    }
}

/// F₁ by the bert-score package (0.3.13, no idf) on the recorded checkpoints.
#[test]
fn bert_score_agrees_with_the_original() {
    let reference = "A raccoon wearing a hat made of an orange roses wallpaper pattern.";
    let candidates = [
        " A raccoon wearing a hat and standing in front of a floral wallpaper.",
        "The image features a raccoon with an orange hat on, sitting on a table in front of a vase with flowers.",
        "a red circle above a blue square",
        "",
        "three dogs",
        reference,
    ]
    .map(String::from);
    for (judge, layer, recorded) in [
        ("bert", 1, [0.797_419_965, 0.720_654_726, 0.691_794_574, 0.0, 0.644_456_983, 1.0]),
        ("bert", 2, [0.812_599_659, 0.743_696_153, 0.720_424_592, 0.0, 0.664_462_09, 1.0]),
        ("mpnet", 2, [0.696_414_888, 0.612_791_061, 0.554_515_719, 0.0, 0.473_307_729, 1.0]),
    ] {
        let judge = BertScore::load(&golden(judge), Some(layer), &Device::Cpu).unwrap();
        let scores = judge.similarities(reference, &candidates).unwrap();
        for (ours, recorded) in scores.iter().zip(recorded) {
            assert!((ours - recorded).abs() < 1e-6, "layer {layer}: {scores:?}");
        }
    }
}

#[test]
fn bert_score_knows_customary_layers_and_asks_for_others() {
    let refusal = BertScore::load(&golden("bert"), None, &Device::Cpu).unwrap_err().to_string();
    assert!(refusal.contains("config.json") && refusal.contains("give the layer"), "{refusal}");
    assert!(BertScore::load(&golden("bert"), Some(3), &Device::Cpu).is_err(), "there are two layers");
    let folder = copied("mpnet");
    let config = fs::read_to_string(folder.path().join("config.json")).unwrap();
    let config = config.replacen('{', r#"{"_name_or_path": "microsoft/mpnet-base","#, 1);
    fs::write(folder.path().join("config.json"), config).unwrap();
    let refusal = BertScore::load(folder.path(), None, &Device::Cpu).unwrap_err().to_string();
    assert!(refusal.contains("layer 8 does not exist; the model has 2 layers"), "{refusal}");
}

#[test]
fn broken_folders_are_named() {
    let fault = |folder: &Path| Bert::load(folder, &Device::Cpu).unwrap_err().to_string();
    let missing = Path::new("no/such/folder");
    assert!(fault(missing).contains("no/such/folder: no such folder"));
    let folder = copied("bert");
    let at = |name: &str| folder.path().join(name);
    let weights = fs::read(at("model.safetensors")).unwrap();
    fs::write(at("model.safetensors"), &weights[..weights.len() - 100]).unwrap();
    assert!(fault(folder.path()).contains("model.safetensors: not a readable weight file"));
    fs::remove_file(at("model.safetensors")).unwrap();
    assert!(fault(folder.path()).contains("no weights found"));
    fs::write(at("model.safetensors"), &weights).unwrap();
    fs::write(at("tokenizer.json"), "{").unwrap();
    assert!(fault(folder.path()).contains("tokenizer.json: not a tokenizer"));
    fs::remove_file(at("tokenizer.json")).unwrap();
    assert!(fault(folder.path()).contains("no tokenizer; expected tokenizer.json"));
    fs::copy(golden("llama").join("tokenizer.json"), at("tokenizer.json")).unwrap();
    let foreign = fault(folder.path());
    assert!(foreign.contains("tokenizer.json") && foreign.contains("vocab_size 323"), "{foreign}");
    let config = fs::read_to_string(at("config.json")).unwrap();
    fs::write(at("config.json"), config.replace("\"hidden_size\": 48", "\"hidden_size\": 96")).unwrap();
    assert!(fault(folder.path()).contains("the weights do not fit their configuration"));
    fs::write(at("config.json"), config.replace("\"bert\"", "\"roberta\"")).unwrap();
    assert!(fault(folder.path()).contains("expected a bert or mpnet model"));
    fs::write(at("config.json"), "{}").unwrap();
    assert!(fault(folder.path()).contains("config.json: missing field"));
}

/// Sentences of all lengths and scripts, recorded by `tools/record/minilm.py`.
#[test]
fn real_weights_agree_with_pytorch() {
    let Some(folder) = std::env::var_os("HERMESFLOW_MINILM") else {
        println!("skipped: HERMESFLOW_MINILM names no folder of all-MiniLM-L6-v2");
        return;
    };
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/minilm");
    let sentences: Vec<String> =
        serde_json::from_str(&fs::read_to_string(fixtures.join("sentences.json")).unwrap()).unwrap();
    assert!(sentences.len() >= 200);
    let recorded = candle_core::safetensors::load(fixtures.join("embeddings.safetensors"), &Device::Cpu).unwrap();
    let recorded = recorded["embeddings"].to_vec2::<f32>().unwrap();
    let judge = SentenceBert::load(Path::new(&folder), &Device::Cpu).unwrap();
    let texts: Vec<&str> = sentences.iter().map(String::as_str).collect();
    let ours = judge.embed(&texts).unwrap();
    assert_eq!(ours.len(), recorded.len());
    let (mut largest, mut spelled) = (0f32, 0);
    for ((ours, recorded), text) in ours.iter().zip(&recorded).zip(&texts) {
        let difference = largest_difference(ours, recorded);
        // What spells a control token is that token to PyTorch's tokenizer, and a text to ours.
        if text.contains("[CLS]") {
            spelled += 1;
            assert!(difference > 1e-3, "{text:?} was read as control tokens");
            continue;
        }
        assert!(difference < 1e-5, "{difference}: {text:?}");
        largest = largest.max(difference);
    }
    assert_eq!(spelled, 4, "sentences that spell control tokens");
    println!("{} sentences, largest difference {largest:e}", texts.len());
}
