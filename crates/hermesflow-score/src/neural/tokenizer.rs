//! Converts text to ids and back, by a `tokenizer.json`, a BERT `vocab.txt` or a SentencePiece `spiece.model`.

use std::path::{Path, PathBuf};

use hermesflow_nn::foreign::{self, contained, decoded, stands_in};
use serde::Deserialize;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, Model, Tokenizer, TruncationParams};

use super::folder::optional_json;
use super::spiece;
use crate::{Error, Result};

/// The tokenizer of a model, special tokens included.
#[derive(Debug, Clone)]
pub struct TextTokenizer {
    inner: Tokenizer,
    path: PathBuf,
    /// The size of the model's vocabulary.
    vocab_size: usize,
}

impl TextTokenizer {
    /// Reads the tokenizer of a model folder and checks it against the size of the model's vocabulary.
    ///
    /// # Errors
    /// If there is none, it is malformed, or it has ids outside the vocabulary.
    pub fn load(folder: &Path, vocab_size: usize) -> Result<Self> {
        let found = |name: &str| Some(folder.join(name)).filter(|path| path.is_file());
        let (path, inner) = if let Some(path) = found("tokenizer.json") {
            let bytes = std::fs::read(&path).map_err(|error| Error::file(&path, error))?;
            if let Some(what) = stands_in(&bytes) {
                return Err(Error::file(&path, what));
            }
            let broken = |error| Error::file(&path, format!("not a tokenizer ({error}); download it again"));
            let text = foreign::text(bytes).map_err(|what| Error::file(&path, what))?;
            let inner: Tokenizer = decoded(|| text.parse()).map_err(broken)?;
            (path, inner)
        } else if let Some(path) = found("spiece.model") {
            let inner = contained(|| spiece::load(&path, vocab_size)).map_err(|error| Error::file(&path, error))??;
            (path, inner)
        } else if let Some(path) = found("vocab.txt") {
            let inner = decoded(|| word_pieces(folder, &path)).map_err(|error| Error::file(&path, error))?;
            (path, inner)
        } else {
            let message = "no tokenizer; expected tokenizer.json, or vocab.txt (BERT), or spiece.model (T5)";
            return Err(Error::file(folder, message));
        };
        Self::new(inner, path, vocab_size)
    }

    fn new(mut inner: Tokenizer, path: PathBuf, vocab_size: usize) -> Result<Self> {
        let count = inner.get_vocab_size(true);
        let last = inner.get_vocab(true).into_values().max().unwrap_or(0) as usize;
        if last >= vocab_size || count * 2 < vocab_size {
            let message = format!(
                "{count} tokens up to id {last} do not fit the model's vocab_size {vocab_size}; \
                 use the tokenizer that belongs to this model"
            );
            return Err(Error::file(&path, message));
        }
        // A published tokenizer.json may set padding and truncation; here the model's limit decides.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|error| Error::file(&path, error))?;
        // A caption or reply is text, even if it contains `[SEP]`.
        inner.set_encode_special_tokens(true);
        Ok(Self { inner, path, vocab_size })
    }

    /// Reads the spelling of special tokens in a text as these tokens; for texts that the program writes itself.
    pub fn reading_controls(mut self) -> Self {
        self.inner.set_encode_special_tokens(false);
        self
    }

    /// Cuts texts to `tokens` tokens, framing tokens included.
    ///
    /// # Errors
    /// If not even the framing tokens fit.
    pub fn limited(mut self, tokens: usize) -> Result<Self> {
        let limit = TruncationParams { max_length: tokens, ..TruncationParams::default() };
        self.inner.with_truncation(Some(limit)).map_err(|error| Error::file(&self.path, error))?;
        Ok(self)
    }

    /// The ids of texts, with framing tokens.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn ids<'a>(&self, texts: impl IntoIterator<Item = &'a str>) -> Result<Vec<Vec<u32>>> {
        let of = |text: &str| {
            let ids = decoded(|| self.inner.encode_fast(text, true))?.get_ids().to_vec();
            // Framing tokens have ids of their own, which were not checked with the vocabulary.
            match ids.iter().find(|id| **id as usize >= self.vocab_size) {
                Some(id) => Err(format!("gives id {id} to a token, beyond the model's vocab_size {}", self.vocab_size)),
                None => Ok(ids),
            }
        };
        texts.into_iter().map(|text| of(text).map_err(|error| Error::file(&self.path, error))).collect()
    }

    /// The text of ids, without special tokens.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn text(&self, ids: &[u32]) -> Result<String> {
        decoded(|| self.inner.decode(ids, true)).map_err(|error| Error::file(&self.path, error))
    }

    /// The id of a token; `None` if there is no such token.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }
}

/// A text without the spaces that a detokenizer leaves before punctuation and contractions, as transformers cleans by
/// default.
pub(super) fn cleaned(text: &str) -> String {
    const SPACED: [(&str, &str); 10] = [
        (" .", "."),
        (" ?", "?"),
        (" !", "!"),
        (" ,", ","),
        (" ' ", "'"),
        (" n't", "n't"),
        (" 'm", "'m"),
        (" 's", "'s"),
        (" 've", "'ve"),
        (" 're", "'re"),
    ];
    SPACED.iter().fold(text.to_string(), |text, (spaced, tight)| text.replace(spaced, tight))
}

#[derive(Deserialize)]
struct WordPieceSettings {
    #[serde(default = "yes")]
    do_lower_case: bool,
    #[serde(default = "yes")]
    tokenize_chinese_chars: bool,
    #[serde(default)]
    strip_accents: Option<bool>,
}

fn yes() -> bool {
    true
}

/// BERT's tokenizer of words and word pieces; MPNet frames texts with other tokens.
fn word_pieces(folder: &Path, path: &Path) -> tokenizers::Result<Tokenizer> {
    let settings: Option<WordPieceSettings> = optional_json(folder, "tokenizer_config.json")?;
    let settings = settings.unwrap_or(WordPieceSettings {
        do_lower_case: true,
        tokenize_chinese_chars: true,
        strip_accents: None,
    });
    let model = WordPiece::from_file(&path.to_string_lossy()).unk_token("[UNK]".into()).build()?;
    let names = if model.token_to_id("[CLS]").is_some() { ["[CLS]", "[SEP]"] } else { ["<s>", "</s>"] };
    let mut framing = Vec::new();
    for name in names {
        framing.push((name.to_string(), model.token_to_id(name).ok_or_else(|| format!("has no token {name}"))?));
    }
    let special: Vec<AddedToken> = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<s>", "<pad>", "</s>", "<mask>"]
        .into_iter()
        .filter(|name| model.token_to_id(name).is_some())
        .map(|name| AddedToken::from(name, true))
        .collect();
    let template = format!("{} $A {}", names[0], names[1]);
    let template = TemplateProcessing::builder().try_single(template)?.special_tokens(framing).build()?;
    let mut tokenizer = Tokenizer::new(model);
    let normalizer =
        BertNormalizer::new(true, settings.tokenize_chinese_chars, settings.strip_accents, settings.do_lower_case);
    tokenizer.with_normalizer(Some(normalizer))?;
    tokenizer.with_pre_tokenizer(Some(BertPreTokenizer));
    tokenizer.with_post_processor(Some(template));
    tokenizer.add_special_tokens(special)?;
    Ok(tokenizer)
}
