//! Models by name: looked up in the hub's ordinary cache, and downloaded there where they are missing.
//!
//! A name is `model`, `organisation/model`, either with `@revision`, or `organisation/model/file.gguf`. What exists as a
//! path is used as it is. The cache is the one that other programs use,
//! `models--organisation--model/{refs,snapshots,blobs}` under `HF_HUB_CACHE`, `HF_HOME/hub` or
//! `~/.cache/huggingface/hub`; a token comes from `HF_TOKEN` or the token file, the server from `HF_ENDPOINT`, and
//! `HF_HUB_OFFLINE=1` forbids the network. Only the files that are read are fetched.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::progress::Progress;

mod download;

/// Models that the program names, about how large what is fetched of them is, and what does without.
const KNOWN: [(&str, &str, &str); 5] = [
    ("bert-large-uncased", "1.3 GB", "pair.similarity: lexical"),
    ("sentence-transformers/all-mpnet-base-v2", "0.4 GB", "answer.matcher: lexical"),
    ("sentence-transformers/all-MiniLM-L6-v2", "0.09 GB", "answer.matcher: lexical"),
    ("allenai/unifiedqa-v2-t5-large-1363200", "3.0 GB", "ask.writer: template, which needs no filter"),
    ("tifa-benchmark/llama2_tifa_question_generation", "13 GB", "ask.writer: template"),
];

/// Files beside the weights that are fetched where a model has them.
const PARTS: [&str; 16] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "1_Pooling/config.json",
];

/// One of these is needed to read text.
const TOKENIZERS: [&str; 5] = ["tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "tokenizer.model"];

/// Weights in the order of preference: an index beside shards, or one file.
const WEIGHTS: [&str; 4] =
    ["model.safetensors.index.json", "model.safetensors", "pytorch_model.bin.index.json", "pytorch_model.bin"];

/// A model's name on the hub.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Name {
    /// `organisation/model`, or `model`.
    model: String,
    /// A branch, a tag or a commit.
    revision: String,
    /// The only file that is wanted.
    file: Option<String>,
}

impl Name {
    fn parse(text: &str) -> Result<Self> {
        let (name, revision) = text.split_once('@').unwrap_or((text, "main"));
        let mut parts: Vec<&str> = name.split('/').collect();
        let file = if name.ends_with(".gguf") && parts.len() == 3 { parts.pop().map(str::to_owned) } else { None };
        let good = |part: &str| {
            !part.is_empty()
                && part != "."
                && part != ".."
                && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
        };
        // Names become folders of the cache.
        let safe = revision.split('/').all(good) && parts.iter().all(|part| good(part)) && parts.len() <= 2;
        if !safe {
            bail!(
                "{text}: neither a path that exists nor a model's name such as bert-large-uncased or organisation/model@revision"
            );
        }
        let given = parts.join("/");
        // The models that this program names need no organisation.
        let known =
            KNOWN.iter().map(|(known, _, _)| *known).find(|known| known.rsplit('/').next() == Some(given.as_str()));
        Ok(Self { model: known.map_or(given.clone(), str::to_owned), revision: revision.to_owned(), file })
    }

    /// The model's folder in a cache.
    fn folder(&self) -> String {
        format!("models--{}", self.model.replace('/', "--"))
    }
}

/// Where models come from.
#[derive(Debug, Clone)]
pub struct Hub {
    cache: PathBuf,
    endpoint: String,
    token: Option<String>,
    offline: bool,
}

impl Hub {
    /// As the environment says.
    ///
    /// # Errors
    /// When there is no place for a cache.
    pub fn from_environment() -> Result<Self> {
        let variable = |name: &str| {
            std::env::var(name).ok().map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
        };
        let home = match (variable("HF_HOME"), variable("XDG_CACHE_HOME"), std::env::home_dir()) {
            (Some(home), _, _) => PathBuf::from(home),
            (None, Some(cache), _) => PathBuf::from(cache).join("huggingface"),
            (None, None, Some(user)) => user.join(".cache/huggingface"),
            (None, None, None) => bail!("HF_HOME: set it to the folder where models are kept; there is no home folder"),
        };
        let cache = variable("HF_HUB_CACHE").map_or_else(|| home.join("hub"), PathBuf::from);
        let token_file = variable("HF_TOKEN_PATH").map_or_else(|| home.join("token"), PathBuf::from);
        let written = || std::fs::read_to_string(token_file).ok().map(|text| text.trim().to_owned());
        let endpoint = variable("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
        Ok(Self {
            cache,
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            token: variable("HF_TOKEN").or_else(written).filter(|token| !token.is_empty()),
            offline: variable("HF_HUB_OFFLINE")
                .is_some_and(|value| ["1", "true", "yes", "on"].contains(&value.to_lowercase().as_str())),
        })
    }

    /// The folder (or `.gguf` file) of a model: a path that exists, a model of the cache, or what is downloaded now.
    ///
    /// # Errors
    /// What to fetch, where it was looked for, and what would do instead.
    pub fn model(&self, model: &str, progress: &Progress) -> Result<PathBuf> {
        let path = Path::new(model);
        if path.exists() {
            return Ok(path.to_owned());
        }
        let name = Name::parse(model)?;
        if let Some(found) = self.cached(&name) {
            return Ok(found);
        }
        if self.offline {
            bail!("{}", self.missing(&name, "it is not in the cache, and HF_HUB_OFFLINE forbids to download it"));
        }
        self.download(&name, progress)
            .with_context(|| self.missing(&name, "it is not in the cache and could not be downloaded"))?;
        self.cached(&name).with_context(|| self.missing(&name, "what was downloaded is no whole model"))
    }

    /// The snapshot of a model that has all it needs.
    fn cached(&self, name: &Name) -> Option<PathBuf> {
        let folder = self.cache.join(name.folder());
        let reference = std::fs::read_to_string(folder.join("refs").join(&name.revision)).ok();
        let commit = reference.as_deref().map_or(name.revision.as_str(), str::trim);
        let snapshot = folder.join("snapshots").join(commit);
        match &name.file {
            Some(file) => Some(snapshot.join(file)).filter(|file| file.is_file()),
            None => whole(&snapshot).then_some(snapshot),
        }
    }

    /// Said of a model that cannot be had.
    fn missing(&self, name: &Name, why: &str) -> String {
        let known = KNOWN.iter().find(|(known, _, _)| *known == name.model);
        let size = known.map_or_else(String::new, |(_, size, _)| format!(" (about {size})"));
        let instead = known.map_or_else(String::new, |(_, _, instead)| format!(", or do without it by `{instead}`"));
        let files = name
            .file
            .as_deref()
            .unwrap_or("config.json, the tokenizer's files, model.safetensors or pytorch_model.bin");
        let model = &name.model;
        format!(
            "{model}{size}: {why}; looked in {}; fetch {files} of {}/{model} into a folder and give its path{instead}",
            self.cache.join(name.folder()).display(),
            self.endpoint,
        )
    }
}

/// Whether a folder holds a model that can be loaded: configuration, tokenizer, weights with all shards.
fn whole(folder: &Path) -> bool {
    let has = |name: &str| folder.join(name).is_file();
    if TOKENIZERS.iter().any(|name| has(name)) && has("config.json") && WEIGHTS.iter().any(|weights| has(weights)) {
        let Some(weights) = WEIGHTS.iter().find(|weights| has(weights)) else { return false };
        let shards = std::fs::read_to_string(folder.join(weights)).ok().filter(|_| weights.ends_with(".json"));
        return shards
            .is_none_or(|index| shards_of(&index).is_some_and(|shards| shards.iter().all(|shard| has(shard))));
    }
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten();
    files
        .map(|file| file.path())
        .any(|path| path.extension().is_some_and(|extension| extension == "gguf") && path.is_file())
}

/// The files that an index names; nothing where it is no index.
fn shards_of(index: &str) -> Option<HashSet<String>> {
    let index: serde_json::Value = serde_json::from_str(index).ok()?;
    Some(index.get("weight_map")?.as_object()?.values().filter_map(|name| name.as_str().map(str::to_owned)).collect())
}

/// Which of a model's files are fetched.
fn wanted(name: &Name, files: &[&str]) -> Result<Vec<String>> {
    if let Some(file) = &name.file {
        return if files.contains(&file.as_str()) {
            Ok(vec![file.clone()])
        } else {
            bail!("{} has no file {file}", name.model)
        };
    }
    let mut wanted: Vec<String> =
        PARTS.iter().filter(|part| files.contains(part)).map(|part| (*part).to_owned()).collect();
    let Some(weights) = WEIGHTS.iter().find(|weights| files.contains(weights)) else {
        let gguf: Vec<&&str> = files.iter().filter(|file| file.ends_with(".gguf") && !file.contains('/')).collect();
        return match gguf[..] {
            [only] => {
                wanted.push((*only).to_string());
                Ok(wanted)
            }
            [] => bail!("{} has neither model.safetensors nor pytorch_model.bin nor a .gguf file", name.model),
            [first, ..] => {
                bail!("{} has {} .gguf files; name one, such as {}/{first}", name.model, gguf.len(), name.model)
            }
        };
    };
    wanted.push((*weights).to_string());
    if let Some(stem) = weights.strip_suffix(".index.json") {
        let (stem, extension) = stem.split_once('.').unwrap_or((stem, "safetensors"));
        // Names become paths of the cache.
        let shard = |file: &&&str| {
            !file.contains('/') && file.starts_with(&format!("{stem}-")) && file.ends_with(&format!(".{extension}"))
        };
        wanted.extend(files.iter().filter(shard).map(|file| (*file).to_string()));
    }
    Ok(wanted)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_are_read() {
        let parse = |text: &str| Name::parse(text).map(|name| (name.folder(), name.revision, name.file));
        let name = |folder: &str, revision: &str, file: Option<&str>| {
            (folder.to_owned(), revision.to_owned(), file.map(str::to_owned))
        };
        assert_eq!(parse("bert-large-uncased").unwrap(), name("models--bert-large-uncased", "main", None));
        let short = parse("all-MiniLM-L6-v2").unwrap();
        assert_eq!(short, name("models--sentence-transformers--all-MiniLM-L6-v2", "main", None));
        assert_eq!(parse("a/b@refs/pr/1").unwrap(), name("models--a--b", "refs/pr/1", None));
        assert_eq!(parse("a/b/c.gguf").unwrap(), name("models--a--b", "main", Some("c.gguf")));
        for text in ["", "a/b/c", "../x", "a/..", "a b", "a@../../x", "/etc/model", "https://x/y"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn only_what_is_read_is_fetched() {
        let plain = Name::parse("a/b").unwrap();
        let of = |files: &[&str]| wanted(&plain, files).unwrap();
        let both = ["README.md", "config.json", "model.safetensors", "pytorch_model.bin", "tf_model.h5", "vocab.txt"];
        assert_eq!(of(&both), ["config.json", "vocab.txt", "model.safetensors"]);
        let sharded = [
            "config.json",
            "pytorch_model-00001-of-00002.bin",
            "pytorch_model-00002-of-00002.bin",
            "pytorch_model.bin.index.json",
        ];
        assert_eq!(of(&sharded).len(), 4);
        assert_eq!(of(&["x.gguf", "README.md"]), ["x.gguf"]);
        let said = wanted(&plain, &["x.gguf", "y.gguf"]).unwrap_err().to_string();
        assert!(said.contains("2 .gguf files") && said.contains("a/b/x.gguf"), "{said}");
        assert!(wanted(&plain, &["README.md"]).unwrap_err().to_string().contains("a/b has neither"));
    }
}
