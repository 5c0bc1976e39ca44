//! Models by name: looked up in the hub's ordinary cache, and downloaded there where they are missing.
//!
//! A name is `model`, `organisation/model`, either with `@revision`, or `organisation/model/file.gguf`. What exists as a
//! path is used as it is. The cache is the one that other programs use,
//! `models--organisation--model/{refs,snapshots,blobs}` under `HF_HUB_CACHE`, `HF_HOME/hub` or
//! `~/.cache/huggingface/hub`; a token comes from `HF_TOKEN` or the token file, the server from `HF_ENDPOINT`, and
//! `HF_HUB_OFFLINE=1` forbids the network. `HF_HUB_DOWNLOAD_TIMEOUT` is how many seconds a server may send nothing. Only the
//! files that are read are fetched.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::progress::Progress;

mod download;

/// What is read of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parts {
    /// Configuration, tokenizer and weights: a model of text.
    Text,
    /// Configuration and weights: Show-o, an image tokenizer, a vision tower.
    Checkpoint,
    /// `tokenizer.json` alone.
    Tokenizer,
}

/// A model that the program names.
struct Known {
    name: &'static str,
    parts: Parts,
    /// About how large what is fetched of it is.
    size: &'static str,
    /// What does without it.
    instead: Option<&'static str>,
}

const fn known(name: &'static str, parts: Parts, size: &'static str, instead: Option<&'static str>) -> Known {
    Known { name, parts, size, instead }
}

const KNOWN: [Known; 15] = [
    known("showlab/show-o", Parts::Checkpoint, "5.8 GB", None),
    known("showlab/show-o-512x512", Parts::Checkpoint, "5.8 GB", None),
    known("showlab/show-o-w-clip-vit", Parts::Checkpoint, "5.8 GB", None),
    known("showlab/show-o-w-clip-vit-512x512", Parts::Checkpoint, "5.8 GB", None),
    known("Gen-Verse/HermesFlow", Parts::Checkpoint, "5.8 GB", None),
    known("deepseek-ai/Janus-Pro-1B", Parts::Text, "4.2 GB", None),
    known("deepseek-ai/Janus-Pro-7B", Parts::Text, "15 GB", None),
    known("showlab/magvitv2", Parts::Checkpoint, "0.5 GB", None),
    known("microsoft/phi-1_5", Parts::Tokenizer, "2 MB", None),
    known("openai/clip-vit-large-patch14-336", Parts::Checkpoint, "1.7 GB", None),
    known("bert-large-uncased", Parts::Text, "1.3 GB", Some("pair.similarity: lexical")),
    known("sentence-transformers/all-mpnet-base-v2", Parts::Text, "0.4 GB", Some("answer.matcher: lexical")),
    known("sentence-transformers/all-MiniLM-L6-v2", Parts::Text, "0.09 GB", Some("answer.matcher: lexical")),
    known(
        "allenai/unifiedqa-v2-t5-large-1363200",
        Parts::Text,
        "3.0 GB",
        Some("ask.writer: template, which needs no filter"),
    ),
    known("tifa-benchmark/llama2_tifa_question_generation", Parts::Text, "13 GB", Some("ask.writer: template")),
];

/// Files beside the weights that are fetched where a model has them.
const PARTS: [&str; 18] = [
    "config.json",
    "generation_config.json",
    "processor_config.json",
    "preprocessor_config.json",
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

/// Files with a tokenizer; one of these is needed to read text.
const TOKENIZERS: [&str; 5] = ["tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "tokenizer.model"];

/// Weights in the order of preference: an index beside shards, or one file.
const WEIGHTS: [&str; 8] = [
    "pytorch_model.safetensors.index.json",
    "pytorch_model.safetensors",
    "model.safetensors.index.json",
    "model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
    "diffusion_pytorch_model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
];

/// What people call the folders of their models; the hub has no organisation of these names.
const FOLDERS: [&str; 12] = [
    "models",
    "model",
    "checkpoints",
    "checkpoint",
    "ckpts",
    "ckpt",
    "weights",
    "pretrained",
    "runs",
    "outputs",
    "data",
    "datasets",
];

/// How many seconds a server may send nothing.
const SILENCE: u64 = 30;

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
        let known = KNOWN.iter().map(|known| known.name).find(|name| name.rsplit('/').next() == Some(given.as_str()));
        Ok(Self { model: known.map_or(given.clone(), str::to_owned), revision: revision.to_owned(), file })
    }

    /// What the program knows of it.
    fn known(&self) -> Option<&'static Known> {
        KNOWN.iter().find(|known| known.name == self.model)
    }

    /// About how large it is, as messages say it.
    fn size(&self) -> String {
        self.known().map_or_else(String::new, |known| format!(" (about {})", known.size))
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
    /// How long a server may send nothing.
    silence: Duration,
}

impl Hub {
    /// The hub as the environment variables describe it.
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
        let silence = match variable("HF_HUB_DOWNLOAD_TIMEOUT") {
            None => SILENCE,
            Some(seconds) => seconds.parse().ok().filter(|seconds| *seconds > 0).with_context(|| {
                format!("HF_HUB_DOWNLOAD_TIMEOUT: {seconds:?} is no number of seconds; set it to 30, or not at all")
            })?,
        };
        Ok(Self {
            cache,
            silence: Duration::from_secs(silence),
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            token: variable("HF_TOKEN").or_else(written).filter(|token| !token.is_empty()),
            offline: variable("HF_HUB_OFFLINE")
                .is_some_and(|value| ["1", "true", "yes", "on"].contains(&value.to_lowercase().as_str())),
        })
    }

    /// The folder (or `.gguf` file) of a model: a path that exists, a model of the cache, or what is downloaded now.
    /// Without `parts`, all that the program could read of it is wanted.
    ///
    /// # Errors
    /// What to fetch, where it was looked for, and what would do instead.
    pub fn model(&self, model: &str, parts: Option<Parts>, progress: &Progress) -> Result<PathBuf> {
        if let Some(found) = self.present(model, parts)? {
            return Ok(found);
        }
        let name = Name::parse(model)?;
        let parts = parts.or(name.known().map(|known| known.parts));
        if self.offline {
            let why = "it is not in the cache, and HF_HUB_OFFLINE forbids to download it";
            bail!("{}", self.missing(&name, parts, why));
        }
        self.download(&name, parts, progress).with_context(|| {
            self.missing(&name, parts, "it is not a folder, not in the cache, and could not be downloaded")
        })?;
        self.cached(&name, parts).with_context(|| self.missing(&name, parts, "the download is not a complete model"))
    }

    /// Where a model is, as [`Hub::model`] finds it, without a download; none where it would have to be downloaded.
    ///
    /// # Errors
    /// When it is neither a path nor a model's name.
    pub fn present(&self, model: &str, parts: Option<Parts>) -> Result<Option<PathBuf>> {
        let path = Path::new(model);
        if path.exists() {
            return Ok(Some(path.to_owned()));
        }
        let name = Name::parse(model)?;
        let found = self.cached(&name, parts.or(name.known().map(|known| known.parts)));
        ensure!(
            found.is_some() || !is_folder(model, &name),
            "{model}: no such folder; give a folder that exists, or a model's name such as showlab/show-o ({model}@main if \
             the hub's is meant)"
        );
        Ok(found)
    }

    /// Whether an absent model can be downloaded when it is needed, and a sentence that says so.
    pub fn absent(&self, model: &str) -> (bool, String) {
        let size = Name::parse(model).map_or_else(|_| String::new(), |name| name.size());
        if self.offline {
            return (false, format!("{model}{size} is not in the cache, and HF_HUB_OFFLINE forbids to download it"));
        }
        (
            true,
            format!("{model}{size} is not in the cache and will be downloaded; `hermesflow fetch {model}` does it now"),
        )
    }

    /// The full name of a model that this program knows by name.
    pub fn known(model: &str) -> Option<&'static str> {
        Name::parse(model).ok()?.known().map(|known| known.name)
    }

    /// The snapshot of a model that has all it needs.
    fn cached(&self, name: &Name, parts: Option<Parts>) -> Option<PathBuf> {
        let folder = self.cache.join(name.folder());
        let reference = std::fs::read_to_string(folder.join("refs").join(&name.revision)).ok();
        let commit = reference.as_deref().map_or(name.revision.as_str(), str::trim);
        let snapshot = folder.join("snapshots").join(commit);
        match &name.file {
            Some(file) => Some(snapshot.join(file)).filter(|file| file.is_file()),
            None => whole(&snapshot, parts).then_some(snapshot),
        }
    }

    /// The message about a model that cannot be had.
    fn missing(&self, name: &Name, parts: Option<Parts>, why: &str) -> String {
        let size = name.size();
        let instead = name.known().and_then(|known| known.instead);
        let instead = instead.map_or_else(String::new, |instead| format!(", or do without it by `{instead}`"));
        let files = name.file.as_deref().unwrap_or(match parts {
            Some(Parts::Tokenizer) => "tokenizer.json",
            Some(Parts::Checkpoint) => "config.json and the weights (*.safetensors or pytorch_model.bin)",
            Some(Parts::Text) | None => "config.json, the tokenizer's files, model.safetensors or pytorch_model.bin",
        });
        let model = &name.model;
        format!(
            "{model}{size}: {why}; looked in {}; fetch {files} of {}/{model} into a folder and give its path{instead}",
            self.cache.join(name.folder()).display(),
            self.endpoint,
        )
    }
}

/// Whether a text that is no path here was meant as one.
fn is_folder(text: &str, name: &Name) -> bool {
    match text.split_once('/') {
        Some((first, _)) if name.known().is_none() && !text.contains('@') => {
            FOLDERS.contains(&first) || Path::new(first).is_dir()
        }
        _ => false,
    }
}

/// Whether a folder holds a model that can be loaded: configuration, tokenizer, weights with all shards.
fn whole(folder: &Path, parts: Option<Parts>) -> bool {
    let has = |name: &str| folder.join(name).is_file();
    if parts == Some(Parts::Tokenizer) {
        return has("tokenizer.json");
    }
    let text = parts != Some(Parts::Text) || TOKENIZERS.iter().any(|name| has(name));
    if let Some(weights) = WEIGHTS.iter().find(|weights| has(weights))
        && text
        && has("config.json")
    {
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
fn wanted(name: &Name, parts: Option<Parts>, files: &[&str]) -> Result<Vec<String>> {
    if let Some(file) = &name.file {
        return if files.contains(&file.as_str()) {
            Ok(vec![file.clone()])
        } else {
            bail!("{} has no file {file}", name.model)
        };
    }
    if parts == Some(Parts::Tokenizer) {
        ensure!(files.contains(&"tokenizer.json"), "{} has no file tokenizer.json", name.model);
        return Ok(vec!["tokenizer.json".into()]);
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
    fn a_folder_that_is_not_there_is_no_model_of_the_hub() {
        let folder = |text: &str| is_folder(text, &Name::parse(text).unwrap());
        // Tests run beside src.
        assert!(folder("models/show-o") && folder("checkpoints/step-100") && folder("src/show-o"));
        assert!(!folder("showlab/show-o") && !folder("models/show-o@main") && !folder("bert-large-uncased"));
    }

    #[test]
    fn only_what_is_read_is_fetched() {
        let plain = Name::parse("a/b").unwrap();
        let of = |files: &[&str]| wanted(&plain, None, files).unwrap();
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
        let phi = ["config.json", "tokenizer.json", "vocab.json", "model.safetensors"];
        assert_eq!(wanted(&plain, Some(Parts::Tokenizer), &phi).unwrap(), ["tokenizer.json"]);
        let showo = ["README.md", "config.json", "pytorch_model.bin", "pytorch_model.safetensors"];
        assert_eq!(of(&showo), ["config.json", "pytorch_model.safetensors"]);
        let said = wanted(&plain, None, &["x.gguf", "y.gguf"]).unwrap_err().to_string();
        assert!(said.contains("2 .gguf files") && said.contains("a/b/x.gguf"), "{said}");
        assert!(wanted(&plain, None, &["README.md"]).unwrap_err().to_string().contains("a/b has neither"));
    }
}
