//! Sentence embeddings (Reimers & Gurevych, "Sentence-BERT", arXiv 1908.10084) in the layout of sentence-transformers.
//!
//! `modules.json` lists a folder's steps, `1_Pooling/config.json` says how tokens become one vector, and
//! `sentence_bert_config.json` how long a text may be. A folder with only the encoder is pooled by the mean and
//! normalised, as TIFA uses `all-mpnet-base-v2`.

use std::collections::HashMap;
use std::path::{Component, Path};
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Device, Tensor};
use serde::Deserialize;

use super::Encoder;
use super::TextTokenizer;
use super::cosine;
use super::first_largest;
use super::folder::optional_json;
use crate::{CaptionSimilarity, ChoiceMatcher, Choosing, Error, Result};

/// The largest number of embeddings that are kept in memory.
const REMEMBERED: usize = 16 * 1024;

/// How the states of a text's tokens become one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pooling {
    First,
    Max,
    Mean,
    /// The sum divided by the root of the number of tokens.
    MeanRoot,
}

#[derive(Debug, Default, Deserialize)]
struct PoolingConfig {
    #[serde(default)]
    pooling_mode: Option<String>,
    #[serde(default)]
    pooling_mode_cls_token: bool,
    #[serde(default)]
    pooling_mode_max_tokens: bool,
    #[serde(default)]
    pooling_mode_mean_tokens: bool,
    #[serde(default)]
    pooling_mode_mean_sqrt_len_tokens: bool,
    #[serde(default)]
    pooling_mode_weightedmean_tokens: bool,
    #[serde(default)]
    pooling_mode_lasttoken: bool,
}

impl PoolingConfig {
    /// The poolings whose vectors are concatenated.
    fn poolings(&self) -> Option<Vec<Pooling>> {
        let named = self.pooling_mode.as_deref();
        let poolings: Vec<Pooling> = [
            (self.pooling_mode_cls_token || named == Some("cls"), Pooling::First),
            (self.pooling_mode_max_tokens || named == Some("max"), Pooling::Max),
            (self.pooling_mode_mean_tokens || named == Some("mean"), Pooling::Mean),
            (self.pooling_mode_mean_sqrt_len_tokens || named == Some("mean_sqrt_len_tokens"), Pooling::MeanRoot),
        ]
        .into_iter()
        .filter_map(|(wanted, pooling)| wanted.then_some(pooling))
        .collect();
        let unknown = self.pooling_mode_weightedmean_tokens || self.pooling_mode_lasttoken || poolings.is_empty();
        (!unknown).then_some(poolings)
    }
}

#[derive(Debug, Deserialize)]
struct Module {
    #[serde(rename = "type")]
    kind: String,
    path: String,
}

#[derive(Debug, Default, Deserialize)]
struct TextConfig {
    #[serde(default)]
    max_seq_length: Option<usize>,
    #[serde(default)]
    do_lower_case: bool,
}

/// A sentence encoder with its pooling: scores captions, and matches replies to choices.
#[derive(Debug)]
pub struct SentenceBert {
    encoder: Encoder,
    tokenizer: TextTokenizer,
    lower_case: bool,
    poolings: Vec<Pooling>,
    normalize: bool,
    remembered: Mutex<HashMap<String, Arc<[f32]>>>,
}

impl SentenceBert {
    /// Loads a folder of sentence-transformers with a BERT or MPNet encoder, in f32.
    ///
    /// # Errors
    /// If a file is missing or malformed, or a step of the folder is not supported; the file is named.
    pub fn load(folder: &Path, device: &Device) -> Result<Self> {
        Self::load_as(folder, DType::F32, device)
    }

    /// Like [`SentenceBert::load`], with weights held as `dtype`.
    ///
    /// # Errors
    /// As [`SentenceBert::load`].
    pub fn load_as(folder: &Path, dtype: DType, device: &Device) -> Result<Self> {
        let modules: Option<Vec<Module>> = optional_json(folder, "modules.json")?;
        let (mut inner, mut pooling, mut normalize) = (folder.to_path_buf(), folder.join("1_Pooling"), true);
        if let Some(modules) = &modules {
            normalize = false;
            for Module { kind, path } in modules {
                // A path must not lead out of the model's folder.
                if !Path::new(path).components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir)) {
                    let message = format!("the path {path:?} leads out of the folder");
                    return Err(Error::file(&folder.join("modules.json"), message));
                }
                match kind.rsplit('.').next().unwrap_or_default() {
                    "Transformer" => inner = folder.join(path),
                    "Pooling" => pooling = folder.join(path),
                    "Normalize" => normalize = true,
                    other => {
                        let message =
                            format!("the step {other} is not supported; expected Transformer, Pooling, Normalize");
                        return Err(Error::file(&folder.join("modules.json"), message));
                    }
                }
            }
        }
        let poolings = match optional_json::<PoolingConfig>(&pooling, "config.json")? {
            None => vec![Pooling::Mean],
            Some(config) => config.poolings().ok_or_else(|| {
                let message = "no pooling that is supported; expected cls, max, mean or mean_sqrt_len";
                Error::file(&pooling.join("config.json"), message)
            })?,
        };
        let text: TextConfig = optional_json(&inner, "sentence_bert_config.json")?.unwrap_or_default();
        let encoder = Encoder::load(&inner, dtype, device)?;
        let longest = text.max_seq_length.unwrap_or(usize::MAX).min(encoder.max_tokens());
        let tokenizer = TextTokenizer::load(&inner, encoder.vocab_size())?.limited(longest)?;
        let (lower_case, remembered) = (text.do_lower_case, Mutex::default());
        Ok(Self { encoder, tokenizer, lower_case, poolings, normalize, remembered })
    }

    /// The token ids of texts, with framing tokens; surrounding spaces are ignored.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn ids<'a>(&self, texts: impl IntoIterator<Item = &'a str>) -> Result<Vec<Vec<u32>>> {
        if !self.lower_case {
            return self.tokenizer.ids(texts.into_iter().map(str::trim));
        }
        let lower: Vec<String> = texts.into_iter().map(|text| text.trim().to_lowercase()).collect();
        self.tokenizer.ids(lower.iter().map(String::as_str))
    }

    /// The embeddings of texts. Those that are not in memory are computed together, each text once.
    ///
    /// # Errors
    /// If the model fails.
    pub fn embed(&self, texts: &[&str]) -> Result<Vec<Arc<[f32]>>> {
        let mut found: HashMap<&str, Arc<[f32]>> = HashMap::new();
        let mut missing: Vec<&str> = Vec::new();
        {
            let remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
            for text in texts {
                match remembered.get(*text) {
                    _ if found.contains_key(text) => {}
                    Some(embedding) => drop(found.insert(text, embedding.clone())),
                    None => {
                        found.insert(text, Arc::from([]));
                        missing.push(text);
                    }
                }
            }
        }
        let fresh = self.embed_anew(&missing)?;
        let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        if remembered.len() + fresh.len() > REMEMBERED {
            remembered.clear();
        }
        for (text, embedding) in missing.into_iter().zip(fresh) {
            if remembered.len() < REMEMBERED {
                remembered.insert(text.to_string(), embedding.clone());
            }
            found.insert(text, embedding);
        }
        Ok(texts.iter().map(|text| found[text].clone()).collect())
    }

    fn embed_anew(&self, texts: &[&str]) -> Result<Vec<Arc<[f32]>>> {
        let states = self.encoder.states(&self.ids(texts.iter().copied())?, self.encoder.layers())?;
        states.iter().map(|state| Ok(self.pooled(&state.to_dtype(DType::F32)?)?.into())).collect()
    }

    /// The vector of one text's states, `[n, h]`.
    fn pooled(&self, states: &Tensor) -> Result<Vec<f32>> {
        let length = states.dim(0)? as f64;
        let mut pooled: Vec<f32> = Vec::with_capacity(self.poolings.len() * self.encoder.hidden_size());
        for pooling in &self.poolings {
            let vector = match pooling {
                Pooling::First => states.get(0)?,
                Pooling::Max => states.max(0)?,
                Pooling::Mean => (states.sum(0)? / length)?,
                Pooling::MeanRoot => (states.sum(0)? / length.sqrt())?,
            };
            pooled.extend(vector.to_vec1::<f32>()?);
        }
        if self.normalize {
            let norm = pooled.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt().max(1e-12);
            pooled.iter_mut().for_each(|x| *x = (f64::from(*x) / norm) as f32);
        }
        Ok(pooled)
    }

    /// For each reply, its cosine with each of its choices.
    ///
    /// # Errors
    /// If the model fails.
    pub fn scores(&self, replies: &[Choosing<'_>]) -> Result<Vec<Vec<f64>>> {
        let of = |one: &Choosing<'_>| one.choices.len() + 1;
        let texts: Vec<&str> = replies
            .iter()
            .flat_map(|one| std::iter::once(one.reply).chain(one.choices.iter().map(String::as_str)))
            .collect();
        let embeddings = self.embed(&texts)?;
        let mut rest = embeddings.as_slice();
        let mut scores = Vec::with_capacity(replies.len());
        for one in replies {
            let (these, behind) = rest.split_at(of(one));
            scores.push(these[1..].iter().map(|choice| cosine(&these[0], choice)).collect());
            rest = behind;
        }
        Ok(scores)
    }
}

impl CaptionSimilarity for SentenceBert {
    fn similarities(&self, reference: &str, candidates: &[String]) -> Result<Vec<f64>> {
        let mut scores = self.scores(&[Choosing { reply: reference, choices: candidates }])?;
        Ok(scores.remove(0))
    }
}

/// The nearest choice; of equally near ones the first.
impl ChoiceMatcher for SentenceBert {
    fn choose(&self, replies: &[Choosing<'_>]) -> Result<Vec<Option<usize>>> {
        Ok(self.scores(replies)?.iter().map(|scores| first_largest(scores)).collect())
    }
}
