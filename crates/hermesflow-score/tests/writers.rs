//! Models that write: T5 and LLaMA, their tokenizers and files, and the judges above them.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use hermesflow_score::neural::{Llama, LlamaWriter, T5, TextTokenizer, UnifiedQa};
use hermesflow_score::{CaptionAnswer, Lexical, Question, QuestionFilter, QuestionWriter};

mod recorded;

use recorded::{copied, golden};

fn first_largest(row: &[f32]) -> u32 {
    (0..row.len()).reduce(|best, at| if row[at] > row[best] { at } else { best }).unwrap() as u32
}

const PROMPTS: [&[u32]; 4] = [&[1, 38, 265, 69, 20, 21], &[1], &[1, 379, 344, 279, 7, 7, 7, 8, 9, 10], &[1, 51, 28]];

#[test]
fn t5_replies_to_many_as_to_one() {
    for case in ["t5-relu", "t5-gated-gelu"] {
        let model = T5::load(&golden(case), DType::F32, &Device::Cpu).unwrap();
        let texts: Vec<Vec<u32>> = (0..12u32)
            .map(|text| (0..text % 5 * 9 + 1).map(|at| (at * 13 + text * 29) % 148 + 3).chain([1]).collect())
            .collect();
        let (replies, logits) = (model.generate(&texts, 12).unwrap(), model.first_logits(&texts).unwrap());
        for (at, text) in texts.iter().enumerate() {
            let alone = std::slice::from_ref(text);
            assert_eq!(model.generate(alone, 12).unwrap()[0], replies[at], "{case}");
            let first = model.first_logits(alone).unwrap().remove(0);
            let off = first.iter().zip(&logits[at]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(off < 1e-3, "{case}: {off}");
            assert_eq!(first_largest(&first), replies[at][0]);
        }
        assert!(model.generate(&[], 12).unwrap().is_empty());
    }
}

#[test]
fn llama_with_a_cache_says_what_full_passes_say() {
    let model = Llama::load(&golden("llama"), DType::F32, &Device::Cpu).unwrap();
    for prompt in PROMPTS {
        let said = model.greedy(prompt, 20).unwrap();
        let whole = [prompt, &said].concat();
        let logits = model.all_logits(&whole).unwrap().to_vec2::<f32>().unwrap();
        for (at, id) in said.iter().enumerate() {
            assert_eq!(first_largest(&logits[prompt.len() + at - 1]), *id);
        }
        assert!(said.len() == 20 || said.last() == Some(&2));
        assert_eq!(model.beam(prompt, 1, 20).unwrap().ids, said, "one beam is greedy");
    }
}

#[test]
fn the_score_of_a_beam_is_the_mean_of_its_log_probabilities() {
    let model = Llama::load(&golden("llama"), DType::F32, &Device::Cpu).unwrap();
    for (prompt, width) in PROMPTS.into_iter().zip([2, 5, 8, 3]) {
        let found = model.beam(prompt, width, 24).unwrap();
        let logits = model.all_logits(&[prompt, &found.ids].concat()).unwrap().to_vec2::<f32>().unwrap();
        let log_probability = |(at, id): (usize, &u32)| {
            let row = &logits[prompt.len() + at - 1];
            let sum: f64 = row.iter().map(|x| f64::from(*x).exp()).sum();
            f64::from(row[*id as usize]) - sum.ln()
        };
        let mean = found.ids.iter().enumerate().map(log_probability).sum::<f64>() / found.ids.len() as f64;
        assert!((mean - found.score).abs() < 1e-5, "{mean} {}", found.score);
    }
}

#[test]
fn shared_key_heads_are_the_same_as_written_out_ones() {
    let folder = copied("llama");
    let file = folder.path().join("model.safetensors");
    let mut weights: HashMap<String, Tensor> = candle_core::safetensors::load(&file, &Device::Cpu).unwrap();
    for (name, weight) in &mut weights {
        if name.contains("k_proj") || name.contains("v_proj") {
            let hidden = weight.dim(1).unwrap();
            let heads = weight.reshape((2, 1, 12, hidden)).unwrap().repeat((1, 2, 1, 1)).unwrap();
            *weight = heads.reshape((48, hidden)).unwrap();
        }
    }
    candle_core::safetensors::save(&weights, &file).unwrap();
    let config = fs::read_to_string(folder.path().join("config.json")).unwrap();
    let config = config.replace("\"num_key_value_heads\": 2", "\"num_key_value_heads\": 4");
    fs::write(folder.path().join("config.json"), config).unwrap();
    let [shared, written] =
        [&golden("llama"), folder.path()].map(|path| Llama::load(path, DType::F32, &Device::Cpu).unwrap());
    for prompt in PROMPTS {
        assert_eq!(shared.greedy(prompt, 20).unwrap(), written.greedy(prompt, 20).unwrap());
        assert_eq!(shared.beam(prompt, 5, 20).unwrap().ids, written.beam(prompt, 5, 20).unwrap().ids);
    }
}

#[test]
fn half_precision_is_near() {
    let whole = Llama::load(&golden("llama"), DType::F32, &Device::Cpu).unwrap();
    let half = Llama::load(&golden("llama"), DType::F16, &Device::Cpu).unwrap();
    let logits = |model: &Llama| model.all_logits(PROMPTS[2]).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let (whole, near) = (logits(&whole), logits(&half));
    let off = whole.iter().zip(&near).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    let largest = whole.iter().fold(0f32, |most, x| most.max(x.abs()));
    assert!(off < 0.02 * largest, "{off} of {largest}");
    assert!(half.beam(PROMPTS[0], 3, 8).unwrap().score.is_finite());
}

/// Writes a model folder as GGUF, as llama.cpp converts it: other names, and the rows of q and k reordered so that
/// neighbouring dimensions turn together.
fn convert(folder: &Path, file: &Path, dtype: GgmlDType) {
    let weights = candle_core::safetensors::load(folder.join("model.safetensors"), &Device::Cpu).unwrap();
    let config: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(folder.join("config.json")).unwrap()).unwrap();
    let number = |key: &str| config[key].as_u64().unwrap() as u32;
    let head = config["head_dim"].as_u64().map_or(number("hidden_size") / number("num_attention_heads"), |d| d as u32);
    let mut tensors = Vec::new();
    for (name, tensor) in &weights {
        let name = name.replace("model.layers.", "blk.").replace("model.", "");
        let name = [
            ("embed_tokens", "token_embd"),
            ("self_attn.q_proj", "attn_q"),
            ("self_attn.k_proj", "attn_k"),
            ("self_attn.v_proj", "attn_v"),
            ("self_attn.o_proj", "attn_output"),
            ("post_attention_layernorm", "ffn_norm"),
            ("input_layernorm", "attn_norm"),
            ("mlp.gate_proj", "ffn_gate"),
            ("mlp.up_proj", "ffn_up"),
            ("mlp.down_proj", "ffn_down"),
            ("lm_head", "output"),
        ]
        .iter()
        .fold(name, |name, (ours, theirs)| name.replace(ours, theirs));
        let name = if name == "norm.weight" { "output_norm.weight".to_string() } else { name };
        let tensor = if name.contains("attn_q") || name.contains("attn_k") {
            let (rows, hidden) = tensor.dims2().unwrap();
            let d = head as usize;
            let halves = tensor.reshape((rows / d, 2, d / 2, hidden)).unwrap().transpose(1, 2).unwrap();
            halves.contiguous().unwrap().reshape((rows, hidden)).unwrap()
        } else {
            tensor.clone()
        };
        let dtype = if tensor.rank() == 1 { GgmlDType::F32 } else { dtype };
        tensors.push((name, QTensor::quantize(&tensor, dtype).unwrap()));
    }
    let metadata = [
        ("general.architecture", Value::String("llama".into())),
        ("llama.block_count", Value::U32(number("num_hidden_layers"))),
        ("llama.embedding_length", Value::U32(number("hidden_size"))),
        ("llama.attention.head_count", Value::U32(number("num_attention_heads"))),
        ("llama.attention.head_count_kv", Value::U32(number("num_key_value_heads"))),
        ("llama.attention.key_length", Value::U32(head)),
        ("llama.attention.layer_norm_rms_epsilon", Value::F32(config["rms_norm_eps"].as_f64().unwrap() as f32)),
        ("llama.rope.freq_base", Value::F32(config["rope_theta"].as_f64().unwrap() as f32)),
        ("tokenizer.ggml.bos_token_id", Value::U32(1)),
        ("tokenizer.ggml.eos_token_id", Value::U32(2)),
    ];
    let metadata: Vec<(&str, &Value)> = metadata.iter().map(|(key, value)| (*key, value)).collect();
    let tensors: Vec<(&str, &QTensor)> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    gguf_file::write(&mut fs::File::create(file).unwrap(), &metadata, &tensors).unwrap();
}

#[test]
fn a_gguf_file_is_the_same_model() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.gguf");
    convert(&golden("llama"), &file, GgmlDType::F32);
    fs::copy(golden("llama").join("tokenizer.json"), folder.path().join("tokenizer.json")).unwrap();
    let whole = Llama::load(&golden("llama"), DType::F32, &Device::Cpu).unwrap();
    for path in [&file, folder.path()] {
        let converted = Llama::load(path, DType::F32, &Device::Cpu).unwrap();
        for prompt in PROMPTS {
            assert_eq!(converted.greedy(prompt, 16).unwrap(), whole.greedy(prompt, 16).unwrap());
            let (ours, theirs) = (converted.beam(prompt, 5, 16).unwrap(), whole.beam(prompt, 5, 16).unwrap());
            assert_eq!(ours.ids, theirs.ids);
            assert!((ours.score - theirs.score).abs() < 1e-5);
        }
    }
    let caption = "a blue rabbit and a red plane";
    let [ours, theirs] = [file.as_path(), &golden("llama")]
        .map(|path| LlamaWriter::load(path, DType::F32, &Device::Cpu).unwrap().with_beams(1).reply(caption).unwrap());
    assert_eq!(ours, theirs);
    let bytes = fs::read(&file).unwrap();
    fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
    let refusal = Llama::load(&file, DType::F32, &Device::Cpu).unwrap_err().to_string();
    assert!(refusal.contains("model.gguf: not a readable GGUF file"), "{refusal}");
}

#[test]
fn quantised_weights_are_near() {
    let folder = copied("llama");
    let config = fs::read_to_string(folder.path().join("config.json")).unwrap();
    let config =
        config.replace("\"hidden_size\": 48", "\"hidden_size\": 64").replace("\"head_dim\": 12", "\"head_dim\": 16");
    fs::write(folder.path().join("config.json"), config).unwrap();
    let file = folder.path().join("model.safetensors");
    let weights: HashMap<String, Tensor> = candle_core::safetensors::load(&file, &Device::Cpu).unwrap();
    let wider = |(name, tensor): (&String, &Tensor)| {
        let dims: Vec<usize> = tensor
            .dims()
            .iter()
            .map(|size| [(48, 64), (24, 32)].iter().find(|d| d.0 == *size).map_or(*size, |d| d.1))
            .collect();
        let seed = name.bytes().fold(1u32, |seed, byte| seed.wrapping_mul(31).wrapping_add(byte.into()));
        let value = |at: usize| ((at as u32 ^ seed).wrapping_mul(2_654_435_761) >> 8) as f32 / 16_777_216.0 - 0.5;
        let values: Vec<f32> = (0..dims.iter().product()).map(value).collect();
        let tensor = Tensor::from_vec(values, dims.as_slice(), &Device::Cpu).unwrap();
        let tensor = if dims.len() == 1 { (tensor + 1.0).unwrap() } else { (tensor * 0.4).unwrap() };
        (name.clone(), tensor)
    };
    let weights: HashMap<String, Tensor> = weights.iter().map(wider).collect();
    candle_core::safetensors::save(&weights, &file).unwrap();
    let whole = Llama::load(folder.path(), DType::F32, &Device::Cpu).unwrap();
    let logits = |model: &Llama| model.all_logits(PROMPTS[2]).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let expected = logits(&whole);
    for (dtype, share) in [(GgmlDType::Q8_0, 0.03), (GgmlDType::Q4_0, 0.4)] {
        let file = folder.path().join("q.gguf");
        convert(folder.path(), &file, dtype);
        let quantised = Llama::load(&file, DType::F32, &Device::Cpu).unwrap();
        let near = logits(&quantised);
        let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|x| x * x).sum::<f32>().sqrt();
        let off = norm(&mut expected.iter().zip(&near).map(|(a, b)| a - b)) / norm(&mut expected.iter().copied());
        assert!(off < share, "{dtype:?}: {off}");
        assert!(quantised.beam(PROMPTS[0], 5, 8).unwrap().score.is_finite());
    }
}

#[test]
fn a_writer_goes_on_from_its_prompt() {
    let writer = LlamaWriter::load(&golden("llama"), DType::F32, &Device::Cpu).unwrap();
    let reply = writer.reply("a blue rabbit and a red plane").unwrap();
    assert!(!reply.contains("[INST]") && !reply.contains("Description:"), "{reply}");
    let captions = ["a blue rabbit", "three dogs"];
    assert_eq!(writer.write(&captions).unwrap().len(), 2);
    let far_too_long = "dogs ".repeat(600);
    assert_eq!(writer.reply(&far_too_long).unwrap(), "");
}

/// A reader whose `keep` is the provided one.
struct Provided(UnifiedQa);

impl QuestionFilter for Provided {
    fn answers(&self, caption: &str, questions: &[Question]) -> hermesflow_score::Result<Vec<CaptionAnswer>> {
        self.0.answers(caption, questions)
    }
}

#[test]
fn asking_only_what_decides_keeps_the_same_questions() {
    let reader = || UnifiedQa::load(&golden("t5-relu"), &Device::Cpu).unwrap();
    let caption = "three dogs are running in the park";
    let question = |question: &str, choices: &[&str], answer: &str| Question {
        element: "dog".into(),
        question: question.into(),
        choices: choices.iter().map(|choice| (*choice).to_string()).collect(),
        answer: answer.into(),
    };
    let mut questions = vec![
        question("how many dogs?", &["1", "2", "3", "4"], "3"),
        question("is there a dog?", &["yes", "no"], "yes"),
        question("is there a dog?", &["yes", "no"], "yes"),
        question("where are the dogs?", &["park", "house"], "park"),
    ];
    // What the model happens to answer, so that something is kept.
    let said = reader().answers(caption, &questions).unwrap();
    for (question, said) in questions.iter_mut().zip(&said).skip(3) {
        question.answer = said.multiple_choice.clone();
    }
    questions.push(question("how many dogs?", &["1"], "1"));
    for matched in [false, true] {
        let reader = || if matched { reader().with_matcher(Box::new(Lexical)) } else { reader() };
        let kept = reader().keep(caption, questions.clone()).unwrap();
        assert_eq!(kept, Provided(reader()).keep(caption, questions.clone()).unwrap());
    }
    assert!(reader().keep(caption, Vec::new()).unwrap().is_empty());
}

#[derive(serde::Deserialize)]
struct Piece {
    text: String,
    ids: Vec<u32>,
    decoded: String,
}

/// Pieces of a small SentencePiece model with a character table of its own, recorded from transformers' T5Tokenizer.
#[test]
fn sentence_pieces_are_those_of_the_original() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/spiece");
    let cases: Vec<Piece> = serde_json::from_str(&fs::read_to_string(folder.join("expected.json")).unwrap()).unwrap();
    assert!(cases.len() > 100);
    let tokenizer = TextTokenizer::load(&folder, 366).unwrap().reading_controls();
    // Two orders of the same pieces are equally likely; which one rounding prefers differs.
    let sorted = |ids: &[u32]| {
        let mut ids = ids.to_vec();
        ids.sort_unstable();
        ids
    };
    let mut reordered = 0;
    for case in &cases {
        let ids = tokenizer.ids([case.text.as_str()]).unwrap().remove(0);
        assert_eq!(sorted(&ids), sorted(&case.ids), "{:?}", case.text);
        assert_eq!(tokenizer.text(&ids).unwrap().trim(), case.decoded.trim(), "{:?}", case.text);
        reordered += usize::from(ids != case.ids);
    }
    assert!(reordered < 3, "{reordered}");
}

#[test]
fn broken_sentence_piece_models_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("spiece.model");
    let model = fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/spiece/spiece.model")).unwrap();
    for bytes in [&model[..model.len() / 2 + 3], b"\xff\xff\xff", b""] {
        fs::write(&file, bytes).unwrap();
        let refusal = TextTokenizer::load(folder.path(), 366).unwrap_err().to_string();
        assert!(refusal.contains("spiece.model"), "{refusal}");
    }
}
