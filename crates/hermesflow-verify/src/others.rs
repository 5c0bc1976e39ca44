//! Cases without a model: images and the text tokenizer.

use std::collections::HashMap;
use std::path::Path;

use hermesflow_models::preprocess::load_square;
use hermesflow_models::showo::config::ADDED_TOKENS;
use hermesflow_models::showo::{ShowoConfig, ShowoTokenizer};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::check::{Report, largest};
use crate::{Error, Result};

pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::file(path, e))?;
    serde_json::from_str(&text).map_err(|e| Error::file(path, e))
}

#[derive(Deserialize)]
struct ImageCase {
    input: String,
    resolution: usize,
    expected: String,
}

/// Replays resizing and cropping; a pixel may differ by one level.
pub(crate) fn images(folder: &Path, report: &mut Report) -> Result<()> {
    let cases: Vec<ImageCase> = read(&folder.join("cases.json"))?;
    if cases.is_empty() {
        report.fail("pictures", "cases.json is empty");
    }
    for case in cases {
        let ours = load_square(&folder.join(&case.input), case.resolution)?;
        let path = folder.join(&case.expected);
        let recorded = image::open(&path).map_err(|e| Error::file(&path, e))?.to_rgb8();
        if ours.dimensions() != recorded.dimensions() {
            let (ours, recorded) = (ours.dimensions(), recorded.dimensions());
            report.fail(&case.input, format!("size {ours:?}, recorded {recorded:?}"));
            continue;
        }
        let levels = ours.iter().zip(recorded.iter()).map(|(a, b)| f64::from(*a) - f64::from(*b));
        report.within(format!("{} (levels)", case.input), largest(levels), 1.0);
    }
    Ok(())
}

#[derive(Deserialize)]
struct TokenizerCases {
    vocab: usize,
    special_ids: HashMap<String, u32>,
    cases: Vec<TextCase>,
}

#[derive(Deserialize)]
struct TextCase {
    text: String,
    ids: Vec<u32>,
    decoded: String,
}

/// Replays token ids and decoded texts, after the ten tokens are added.
pub(crate) fn tokenizer(folder: &Path, report: &mut Report) -> Result<()> {
    let expected: TokenizerCases = read(&folder.join("expected.json"))?;
    let text_tokens = expected.vocab - ADDED_TOKENS.len();
    let config = ShowoConfig {
        class_name: "Showo".into(),
        vocab_size: expected.vocab + 2,
        llm_vocab_size: text_tokens,
        codebook_size: 1,
        num_vq_tokens: 1,
        mask_token_id: None,
        w_clip_vit: false,
        llm_model_path: String::new(),
        max_text_len: 129,
    };
    let tokenizer = ShowoTokenizer::load(&folder.join("tokenizer.json"), &config)?;
    report.within("vocabulary size", tokenizer.vocab_size().abs_diff(expected.vocab) as f64, 0.0);
    let wrong = expected.special_ids.iter().filter(|(name, id)| tokenizer.id(name) != Some(**id)).count();
    report.within("special ids (differing)", wrong as f64, 0.0);
    if expected.cases.is_empty() {
        report.fail("texts", "expected.json has no cases");
    }
    let (mut encoded, mut decoded) = (0, 0);
    for case in &expected.cases {
        encoded += usize::from(tokenizer.encode_with_controls(&case.text)? != case.ids);
        decoded += usize::from(tokenizer.decode(&case.ids)? != case.decoded);
    }
    report.within(format!("ids of {} texts (differing)", expected.cases.len()), f64::from(encoded as u32), 0.0);
    report.within(format!("texts of {} id lists (differing)", expected.cases.len()), f64::from(decoded as u32), 0.0);
    Ok(())
}
