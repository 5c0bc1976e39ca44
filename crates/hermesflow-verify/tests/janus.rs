//! Recorded cases of Janus-Pro, where `HERMESFLOW_GOLDEN` names the folder that has them: they pass, and every recorded number
//! counts. A case of a backbone that this build does not know is skipped by its name.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use hermesflow_verify::{Check, Verdict, verify};
use serde_json::{Value, json};

fn replay(folder: &Path) -> Vec<Check> {
    verify(folder, &Device::Cpu, DType::F32, |_| {}).unwrap()
}

fn failures(checks: &[Check]) -> Vec<&Check> {
    checks.iter().filter(|check| check.verdict == Verdict::Failed).collect()
}

/// A copy of a recorded case, if there are any.
fn case(name: &str) -> Option<(tempfile::TempDir, PathBuf)> {
    let Some(golden) = std::env::var_os("HERMESFLOW_GOLDEN") else {
        println!("skipped: HERMESFLOW_GOLDEN names no folder of recorded cases");
        return None;
    };
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join(name);
    copy(&Path::new(&golden).join(name), &folder);
    Some((root, folder))
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        match entry.path().is_dir() {
            true => copy(&entry.path(), &to.join(entry.file_name())),
            // By its contents: a recorded case may be read-only.
            false => fs::write(to.join(entry.file_name()), fs::read(entry.path()).unwrap()).unwrap(),
        }
    }
}

#[test]
fn a_backbone_that_is_not_known_is_skipped_by_its_name() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("case.json"), json!({ "backbone": "orpheus" }).to_string()).unwrap();
    fs::write(folder.path().join("trace.safetensors"), "").unwrap();
    let checks = replay(folder.path());
    assert_eq!(checks.len(), 1);
    assert!(checks[0].verdict == Verdict::Skipped && checks[0].note.contains("orpheus"), "{checks:?}");
}

#[test]
fn both_cases_pass_whole_and_with_matrices_in_bf16() {
    for name in ["janus-a", "janus-b"] {
        let Some((_root, folder)) = case(name) else { return };
        let checks = replay(&folder);
        assert!(failures(&checks).is_empty(), "{:#?}", failures(&checks));
        assert!(checks.iter().filter(|check| check.verdict == Verdict::Passed).count() > 100, "{}", checks.len());
        assert!(checks.iter().all(|check| check.verdict != Verdict::Skipped));
        let narrow = verify(&folder, &Device::Cpu, DType::BF16, |_| {}).unwrap();
        assert!(failures(&narrow).is_empty(), "{:#?}", failures(&narrow));
    }
}

#[test]
fn every_recorded_tensor_counts() {
    let Some((_root, folder)) = case("janus-a") else { return };
    let file = folder.join("trace.safetensors");
    let trace: HashMap<String, Tensor> = candle_core::safetensors::load(&file, &Device::Cpu).unwrap();
    let fails = |changed: &HashMap<String, Tensor>, what: &str| {
        candle_core::safetensors::save(changed, &file).unwrap();
        assert!(!failures(&replay(&folder)).is_empty(), "{what}: a wrong number passed");
    };
    let mut names: Vec<&str> = vec!["pre.fitted", "pre.pixels", "vision.tower", "vision.aligned", "und.0.ids"];
    names.extend(["und.1.reply.0.ids", "und.1.reply.1.logits", "und.2.reply.0.logp", "und.1.greedy", "gen.0.ids"]);
    names.extend(["gen.1.uncond_ids", "gen.0.cond", "gen.1.uncond", "gen.1.probs", "gen.0.uniform", "gen.1.codes"]);
    names.extend(["gen.1.decoded", "png.0.u8", "png.edge_u8", "vq.encoder_out", "vq.code", "vq.decoded"]);
    names.extend(["score.cond.logits", "score.uncond.logp", "dpo.mmu.1.und", "dpo.mmu.0.lose", "dpo.t2i.1.prompt"]);
    names.extend(["dpo.t2i.0.codes_win", "dpo.mmu.logp.ref_win", "dpo.t2i.logp.policy_lose", "dpo.mmu.loss"]);
    names.extend(["dpo.grad.aligner.layers.2.bias", "dpo.grad.gen_embed.weight", "train.loss_t2i_mmu_gradnorm"]);
    names.extend(["train.lr", "train.final.language_model.model.norm.weight"]);
    for name in names {
        let mut changed = trace.clone();
        changed.insert(name.into(), altered(&trace[name]));
        fails(&changed, name);
    }
    let mut more = trace.clone();
    more.insert("gen.7.cond".into(), trace["gen.0.cond"].clone());
    fails(&more, "a tensor that nothing is compared with");
    more.remove("gen.7.cond");
    more.remove("dpo.grad.gen_head.vision_head.bias");
    fails(&more, "a gradient that was not recorded");
}

/// The tensor with its numbers changed: of floats all, by a little; of ids one; of levels one, by two.
fn altered(tensor: &Tensor) -> Tensor {
    let shape = tensor.shape().clone();
    let flat = tensor.flatten_all().unwrap();
    match tensor.dtype() {
        DType::F32 => {
            let values = flat.to_vec1::<f32>().unwrap();
            // A draw becomes another number in [0, 1).
            let change = |value: &f32| if (0.0..0.95).contains(value) { value + 0.05 } else { value - 0.05 };
            Tensor::from_vec(values.iter().map(change).collect::<Vec<_>>(), shape, &Device::Cpu).unwrap()
        }
        DType::U8 => {
            let mut values = flat.to_vec1::<u8>().unwrap();
            values.iter_mut().take(400).for_each(|value| *value ^= 2);
            Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
        }
        _ => {
            let mut values = flat.to_vec1::<i64>().unwrap();
            values[0] = (values[0] + 1) % 100;
            Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
        }
    }
}

#[test]
fn every_text_and_setting_counts() {
    let Some((_root, folder)) = case("janus-a") else { return };
    let file = folder.join("case.json");
    let recorded: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    for path in [
        "/special_ids/<begin_of_image>",
        "/num_image_tokens",
        "/tokenizer/2/ids/3",
        "/tokenizer/4/decoded",
        "/system_prompt",
        "/understanding/1/prompt",
        "/understanding/1/question",
        "/understanding/0/image",
        "/understanding/2/replies/1",
        "/understanding/1/greedy_text",
        "/generation/0/formatted",
        "/generation/1/guidance",
        "/generation/1/temperature",
        "/pairs/0/caption_lose",
        "/pairs/1/prompt",
        "/pairs/1/image",
        "/beta",
        "/schedule/warmup_steps",
        "/trained/1",
        "/reference",
    ] {
        let mut changed = recorded.clone();
        let value = changed.pointer_mut(path).unwrap();
        *value = match &*value {
            Value::String(text) if path == "/reference" => json!(text.replace("_ref", "")),
            Value::String(text) if path == "/trained/1" => json!(text.replace("gen_embed.", "aligner.")),
            Value::String(text) => json!(format!("{text}x")),
            number if number.is_u64() => json!(number.as_u64().unwrap() + 1),
            number => json!(number.as_f64().unwrap() * 1.5),
        };
        fs::write(&file, changed.to_string()).unwrap();
        assert!(!failures(&replay(&folder)).is_empty(), "{path}: a wrong value passed");
    }
    fs::write(&file, recorded.to_string()).unwrap();
    assert!(failures(&replay(&folder)).is_empty());
}
