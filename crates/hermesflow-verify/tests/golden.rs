//! The recorded cases pass, and a case with a wrong number fails.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use hermesflow_verify::{Check, Verdict, verify};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn failures(checks: &[Check]) -> Vec<&Check> {
    checks.iter().filter(|check| check.verdict == Verdict::Failed).collect()
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        match entry.path().is_dir() {
            true => copy(&entry.path(), &to.join(entry.file_name())),
            false => drop(fs::copy(entry.path(), to.join(entry.file_name())).unwrap()),
        }
    }
}

#[test]
fn the_recorded_cases_pass() {
    let checks = verify(&golden(), &Device::Cpu, DType::F32, |_| {}).unwrap();
    assert!(failures(&checks).is_empty(), "{:#?}", failures(&checks));
    assert!(checks.iter().filter(|check| check.verdict == Verdict::Passed).count() > 60);
    assert!(checks.iter().all(|check| check.verdict != Verdict::Skipped));
}

#[test]
fn all_cases_of_a_given_folder_pass() {
    let Some(folder) = std::env::var_os("HERMESFLOW_GOLDEN") else {
        println!("skipped: HERMESFLOW_GOLDEN names no folder of recorded cases");
        return;
    };
    let checks = verify(Path::new(&folder), &Device::Cpu, DType::F32, |_| {}).unwrap();
    assert!(failures(&checks).is_empty(), "{:#?}", failures(&checks));
}

/// Every recorded tensor of a model case counts: change one number and the case fails.
#[test]
fn a_wrong_number_in_a_model_case_fails() {
    let folder = tempfile::tempdir().unwrap();
    copy(&golden().join("showo-a"), folder.path());
    let file = folder.path().join("trace.safetensors");
    let trace: HashMap<String, Tensor> = candle_core::safetensors::load(&file, &Device::Cpu).unwrap();
    for name in [
        "vq.encoder_out",
        "vq.code",
        "vq.decoded",
        "t2i.ids",
        "t2i.logits",
        "t2i.visible",
        "mmu.logits",
        "mmu.visible",
        "mmu.greedy",
        "gen.0.probs",
        "gen.3.probs",
        "gen.final",
        "dpo.t2i.logp.policy_win",
        "dpo.mmu.logp.ref_lose",
        "dpo.t2i.loss",
        "dpo.mmu.win_labels",
        "dpo.grad.showo.model.layers.1.mlp.fc2.weight",
        "dpo.grad.showo.lm_head.bias",
        "train.loss_t2i_mmu_gradnorm",
        "train.lr",
        "train.final.showo.model.embed_tokens.weight",
    ] {
        let mut changed = trace.clone();
        changed.insert(name.to_string(), altered(&trace[name], name));
        candle_core::safetensors::save(&changed, &file).unwrap();
        let checks = verify(folder.path(), &Device::Cpu, DType::F32, |_| {}).unwrap();
        assert!(!failures(&checks).is_empty(), "{name}: a wrong number passed");
    }
    let mut without = trace.clone();
    without.remove("gen.2.uniform");
    candle_core::safetensors::save(&without, &file).unwrap();
    let checks = verify(folder.path(), &Device::Cpu, DType::F32, |_| {}).unwrap();
    assert!(failures(&checks).iter().any(|check| check.note.contains("gen.2.uniform")));
}

/// The numbers of a tensor of integers, row by row.
type Rows = Vec<Vec<i64>>;

/// What training computes is held to the record by itself: texts, labels, masks and the reference each count.
#[test]
fn what_training_computes_of_another_case_fails() {
    let folder = tempfile::tempdir().unwrap();
    copy(&golden().join("showo-a"), folder.path());
    let file = folder.path().join("trace.safetensors");
    let trace: HashMap<String, Tensor> = candle_core::safetensors::load(&file, &Device::Cpu).unwrap();
    let failing = |what: &str| {
        let checks = verify(folder.path(), &Device::Cpu, DType::F32, |_| {}).unwrap();
        let failed: Vec<String> = failures(&checks).iter().map(|check| check.what.clone()).collect();
        assert!(failed.iter().any(|check| check.starts_with(what)), "{what}: only {failed:?} failed");
        assert!(failed.iter().any(|check| check.ends_with("as training computes it") || check.starts_with("pairs")));
    };
    // Wins and losses alike, with their labels: what is changed is consistent, and another case.
    let change = |side: &str, both: bool, change: &dyn Fn(&mut Rows, &mut Rows)| {
        let mut changed = trace.clone();
        for which in if both { &["win", "lose"][..] } else { &["win"] } {
            let names = [format!("dpo.{side}.{which}"), format!("dpo.{side}.{which}_labels")];
            let [mut ids, mut labels] = names.each_ref().map(|name| trace[name].to_vec2::<i64>().unwrap());
            change(&mut ids, &mut labels);
            for (name, rows) in names.into_iter().zip([ids, labels]) {
                changed.insert(name, Tensor::new(rows, &Device::Cpu).unwrap());
            }
        }
        candle_core::safetensors::save(&changed, &file).unwrap();
    };
    let first = |labels: &[i64]| labels.iter().position(|label| *label >= 0).unwrap();
    let other = |id: i64| if id == 7 { 8 } else { 7 };

    change("mmu", false, &|_, labels| labels[0].rotate_left(1));
    failing("pairs, as training computes them");
    change("mmu", false, &|ids, labels| {
        let at = first(&labels[0]);
        (ids[0][at], labels[0][at]) = (other(ids[0][at]), other(ids[0][at]));
    });
    failing("log-prob mmu policy win, as training");
    change("mmu", true, &|ids, labels| {
        let question = first(&labels[0]) - 1;
        ids[0][question] = other(ids[0][question]);
    });
    failing("log-prob mmu ref lose, as training");
    change("mmu", true, &|ids, _| ids[0][2] = if ids[0][2] == 210 { 211 } else { 210 });
    failing("log-prob mmu policy lose, as training");
    change("t2i", true, &|ids, labels| {
        // One mask less.
        let at = first(&labels[0]);
        (ids[0][at], labels[0][at]) = (labels[0][at], -100);
    });
    failing("log-prob t2i policy win, as training");
    change("t2i", true, &|ids, _| {
        let text = ids[0].iter().position(|id| *id == 205).unwrap() + 2;
        ids[0][text] = other(ids[0][text]);
    });
    failing("log-prob t2i ref win, as training");
    candle_core::safetensors::save(&trace, &file).unwrap();
    fs::remove_file(folder.path().join("showo_ref/pytorch_model.bin")).unwrap();
    copy(&folder.path().join("showo"), &folder.path().join("showo_ref"));
    failing("log-prob mmu ref win, as training");
    failing("loss t2i, as training");
}

/// The tensor with one number of its first row changed.
fn altered(tensor: &Tensor, name: &str) -> Tensor {
    let shape = tensor.shape().clone();
    let flat = tensor.flatten_all().unwrap();
    match tensor.dtype().is_float() {
        true => {
            let mut values = flat.to_vec1::<f32>().unwrap();
            // A masked position's probability of step 3 may not be read; change them all there.
            let count = if name.starts_with("gen.") { values.len() } else { 1 };
            values[..count].iter_mut().for_each(|value| *value += 0.05);
            Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
        }
        false => {
            let mut values = flat.to_vec1::<i64>().unwrap();
            // The last id of the first row is <|eoi|>, a label or a code; visibility is 0 or 1.
            let at = match name {
                "t2i.visible" => values.len() - 1,
                "dpo.mmu.win_labels" => values.iter().position(|label| *label >= 0).unwrap(),
                "t2i.ids" => values.iter().position(|id| *id == 205).unwrap() + 2,
                _ => 0,
            };
            values[at] = if name.ends_with("visible") { 1 - values[at] } else { (values[at] + 1) % 199 };
            Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
        }
    }
}

#[test]
fn a_number_that_is_none_fails() {
    let folder = tempfile::tempdir().unwrap();
    copy(&golden().join("showo-a"), folder.path());
    let file = folder.path().join("trace.safetensors");
    let mut trace: HashMap<String, Tensor> = candle_core::safetensors::load(&file, &Device::Cpu).unwrap();
    let logits = &trace["mmu.logits"];
    let nan = Tensor::full(f32::NAN, logits.shape(), &Device::Cpu).unwrap();
    trace.insert("mmu.logits".into(), nan);
    candle_core::safetensors::save(&trace, &file).unwrap();
    let checks = verify(folder.path(), &Device::Cpu, DType::F32, |_| {}).unwrap();
    assert!(failures(&checks).iter().any(|check| check.what == "mmu logits"));
}

#[test]
fn wrong_pictures_pairs_and_questions_fail() {
    let folder = tempfile::tempdir().unwrap();
    copy(&golden().join("image"), &folder.path().join("image"));
    copy(&golden().join("rules"), &folder.path().join("rules"));
    let picture = folder.path().join("image/out_1.png");
    let mut pixels = image::open(&picture).unwrap().to_rgb8();
    pixels.get_pixel_mut(5, 5).0[1] ^= 8;
    pixels.save(&picture).unwrap();
    let rules = folder.path().join("rules/pairs.json");
    let text = fs::read_to_string(&rules).unwrap().replacen("\"image_win\": 12", "\"image_win\": 11", 1);
    fs::write(&rules, text).unwrap();
    let questions = folder.path().join("rules/questions.json");
    let text = fs::read_to_string(&questions).unwrap();
    let mut cases: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
    cases[0]["kept"][0]["answer"] = "perhaps".into();
    cases[1]["parsed"][0]["choices"][0] = "perhaps".into();
    fs::write(&questions, serde_json::to_string(&cases).unwrap()).unwrap();
    let checks = verify(folder.path(), &Device::Cpu, DType::F32, |_| {}).unwrap();
    let failed = failures(&checks);
    for (case, what) in
        [("image", "in_1"), ("rules", "first round"), ("rules", "reply 0: kept"), ("rules", "reply 1: q")]
    {
        assert!(failed.iter().any(|check| check.case == case && check.what.starts_with(what)), "{what}: {failed:#?}");
    }
}

/// Every recorded number of a judge counts, and a list that is cut short fails too.
#[test]
fn a_wrong_number_of_a_judge_fails() {
    for (judge, paths) in [
        ("bert", &["/ids/3/4", "/cls/2/17", "/cosine/4/1", "/cls", "/cosine", "/ids"][..]),
        (
            "mpnet",
            &[
                "/ids/0/1",
                "/embeddings/1/40",
                "/embeddings",
                "/multiple_choice/1/scores/2",
                "/multiple_choice/0/scores",
                "/multiple_choice/3/chosen",
            ],
        ),
        ("t5-relu", &["/0/ids/2", "/1/generated/3", "/2/first_logits/150", "/2/first_logits"]),
        ("t5-gated-gelu", &["/2/ids/0", "/0/generated/3", "/0/first_logits/0"]),
        ("llama", &["/0/ids/3", "/1/greedy/15", "/2/beam5/20", "/0/beam5_score", "/1/beam5", "/2/greedy"]),
    ] {
        let folder = tempfile::tempdir().unwrap();
        copy(&golden().join("scorers").join(judge), folder.path());
        let file = folder.path().join("expected.json");
        let recorded: serde_json::Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
        for path in paths {
            let mut changed = recorded.clone();
            let value = changed.pointer_mut(path).unwrap();
            match value {
                serde_json::Value::Array(list) => drop(list.pop().unwrap()),
                serde_json::Value::String(text) => text.push('x'),
                number if number.is_u64() => *number = (number.as_u64().unwrap() + 1).into(),
                number => *number = (number.as_f64().unwrap() + 0.002).into(),
            }
            fs::write(&file, changed.to_string()).unwrap();
            let checks = verify(folder.path(), &Device::Cpu, DType::F32, |_| {}).unwrap();
            assert!(!failures(&checks).is_empty(), "{judge} {path}: a wrong number passed");
        }
    }
}

#[test]
fn a_judge_of_an_unknown_kind_is_skipped_and_a_broken_one_fails() {
    let folder = tempfile::tempdir().unwrap();
    copy(&golden().join("scorers/bert"), folder.path());
    let weights = folder.path().join("model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    fs::write(&weights, &bytes[..bytes.len() / 2]).unwrap();
    let checks = verify(folder.path(), &Device::Cpu, DType::F32, |_| {}).unwrap();
    assert!(failures(&checks)[0].note.contains("model.safetensors"), "{checks:?}");
    fs::write(folder.path().join("config.json"), r#"{"model_type": "roberta"}"#).unwrap();
    let checks = verify(folder.path(), &Device::Cpu, DType::F32, |_| {}).unwrap();
    assert_eq!(checks[0].verdict, Verdict::Skipped);
}

#[test]
fn a_broken_case_is_a_failure_that_names_the_file() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("case.json"), "{").unwrap();
    fs::write(folder.path().join("trace.safetensors"), "").unwrap();
    let checks = verify(folder.path(), &Device::Cpu, DType::F32, |_| {}).unwrap();
    assert!(failures(&checks)[0].note.contains("case.json"));
}
