//! The formats: where a file of each is put, and the command that reads it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// A format, or a use of one.
#[derive(Debug)]
pub struct Target {
    /// The name, which the folder of the corpus has too.
    pub name: &'static str,
    /// Where the file is put, from the workshop.
    pub place: &'static str,
    /// Files of the workshop that are its corpus too; of the repository, if they begin with a slash.
    seeds: &'static [&'static str],
    /// The command.
    arguments: &'static [&'static str],
    /// What the command makes; it is removed before.
    makes: &'static [&'static str],
}

const RUN: &[&str] = &["data.root=data", "output=out", "data.allow_outside=false"];
const ORIGINAL: &[&str] = &[
    "/crates/hermesflow/tests/original/hermesflow_pairdpo.yaml",
    "/crates/hermesflow/tests/original/showo_demo.yaml",
    "/crates/hermesflow/tests/original/showo_tuning.yaml",
];
const DRAW: &[&str] = &["data.root=drawn", "output=out", "data.scenes={records: 1}", "data.fresh=false"];
const IMPORTED: &[&str] = &["out"];
const DRAWN: &[&str] = &["drawn", "out"];
const ASK: &[&str] = &["data.root=asked", "output=out"];
const ASKED: &[&str] = &["asked/.settings", "asked/vqa_data.json", "asked/vqa_data.jsonl", "out"];
const MADE: &[&str] = &["data/pair_dpo_data.json", "data/pair_dpo_data.jsonl", "made"];

/// All of them.
pub const TARGETS: [Target; 28] = [
    Target {
        name: "picture",
        place: "import/picture",
        seeds: &[],
        arguments: &["import", "import/pictures.json", "--to", "out", "--copy"],
        makes: IMPORTED,
    },
    Target {
        name: "json",
        place: "import/x.json",
        seeds: &["import/pictures.json"],
        arguments: &["import", "import/x.json", "--to", "out"],
        makes: IMPORTED,
    },
    Target {
        name: "parquet",
        place: "import/x.parquet",
        seeds: &[],
        arguments: &["import", "import/x.parquet", "--to", "out"],
        makes: IMPORTED,
    },
    Target {
        name: "tar",
        place: "import/x.tar",
        seeds: &[],
        arguments: &["import", "import/x.tar", "--to", "out"],
        makes: IMPORTED,
    },
    Target {
        name: "tar.gz",
        place: "import/x.tar.gz",
        seeds: &[],
        arguments: &["import", "import/x.tar.gz", "--to", "out"],
        makes: IMPORTED,
    },
    Target {
        name: "records",
        place: "asked/initial_data.json",
        seeds: &["sound/initial_data.json"],
        arguments: &["ask", "run.yaml", "ask.writer=template"],
        makes: ASKED,
    },
    Target {
        name: "questions",
        place: "given.json",
        seeds: &["sound/questions.json"],
        arguments: &["ask", "run.yaml", "ask.writer=file", "ask.file=given.json"],
        makes: ASKED,
    },
    Target {
        name: "yaml",
        place: "x.yaml",
        seeds: &["run.yaml", "/configs/scenes.yaml", "/configs/paper.yaml"],
        arguments: &["scenes", "x.yaml"],
        makes: DRAWN,
    },
    Target { name: "original", place: "x.yaml", seeds: ORIGINAL, arguments: &["scenes", "x.yaml"], makes: DRAWN },
    Target {
        name: "override",
        place: "argument",
        seeds: &[],
        arguments: &["scenes", "run.yaml", "@argument"],
        makes: DRAWN,
    },
    Target {
        name: "safetensors",
        place: "st/model.safetensors",
        seeds: &["small/model.safetensors"],
        arguments: &["judge", "similarity", "--judge", "bert", "--model", "st", "a red dog", "a dog"],
        makes: MADE,
    },
    Target {
        name: "pickle",
        place: "bin/pytorch_model.bin",
        seeds: &["small/pytorch_model.bin"],
        arguments: &["convert", "bin", "made"],
        makes: MADE,
    },
    Target {
        name: "index",
        place: "index/pytorch_model.bin.index.json",
        seeds: &["sharded/pytorch_model.bin.index.json"],
        arguments: &["convert", "index", "made"],
        makes: MADE,
    },
    Target {
        name: "gguf",
        place: "gguf/x.gguf",
        seeds: &[],
        arguments: &["judge", "questions", "--writer", "llama", "--beams", "1", "--model", "gguf/x.gguf", "two dogs"],
        makes: MADE,
    },
    Target {
        name: "showo-config",
        place: "model/showo/config.json",
        seeds: &["sound/model/showo/config.json"],
        arguments: &["t2i", "run.yaml", "--prompt", "a dog", "--out", "made"],
        makes: MADE,
    },
    Target {
        name: "phi-config",
        place: "model/showo/phi/config.json",
        seeds: &["sound/model/showo/phi/config.json"],
        arguments: &["t2i", "run.yaml", "--prompt", "a dog", "--out", "made"],
        makes: MADE,
    },
    Target {
        name: "vq-config",
        place: "model/vq/config.json",
        seeds: &["sound/model/vq/config.json"],
        arguments: &["t2i", "run.yaml", "--prompt", "a dog", "--out", "made"],
        makes: MADE,
    },
    Target {
        name: "tokenizer",
        place: "x-tokenizer.json",
        seeds: &["sound/model/tokenizer.json"],
        arguments: &["t2i", "run.yaml", "model.tokenizer=x-tokenizer.json", "--prompt", "a dog", "--out", "made"],
        makes: MADE,
    },
    Target {
        name: "bert-config",
        place: "bert/config.json",
        seeds: &["sound/bert/config.json"],
        arguments: &["judge", "similarity", "--judge", "bert", "--model", "bert", "a red dog", "a dog"],
        makes: MADE,
    },
    Target {
        name: "mpnet-config",
        place: "mpnet/config.json",
        seeds: &["sound/mpnet/config.json"],
        arguments: &["judge", "similarity", "--judge", "sbert", "--model", "mpnet", "a red dog", "a dog"],
        makes: MADE,
    },
    Target {
        name: "bert-tokenizer",
        place: "bert-t/tokenizer.json",
        seeds: &["sound/bert/tokenizer.json"],
        arguments: &["judge", "similarity", "--judge", "bert", "--model", "bert-t", "a red dog", "a dog"],
        makes: MADE,
    },
    Target {
        name: "t5-config",
        place: "t5/config.json",
        seeds: &["sound/t5/config.json"],
        arguments: &[
            "judge",
            "questions",
            "--writer",
            "template",
            "--filter",
            "unifiedqa",
            "--filter-model",
            "t5",
            "two dogs",
        ],
        makes: MADE,
    },
    Target {
        name: "llama-config",
        place: "llama/config.json",
        seeds: &["sound/llama/config.json"],
        arguments: &["judge", "questions", "--writer", "llama", "--beams", "1", "--model", "llama", "two dogs"],
        makes: MADE,
    },
    Target {
        name: "captions",
        place: "data/understanding_caption_results.json",
        seeds: &["data/understanding_caption_results.json"],
        arguments: &["pair", "run.yaml"],
        makes: MADE,
    },
    Target {
        name: "answers",
        place: "data/generation_vqa_results.json",
        seeds: &["data/generation_vqa_results.json"],
        arguments: &["pair", "run.yaml"],
        makes: MADE,
    },
    Target {
        name: "clip-config",
        place: "clip/clip/config.json",
        seeds: &["clip/clip/config.json"],
        arguments: &[
            "mmu",
            "run.yaml",
            "model.showo=clip/showo",
            "model.vq=clip/vq",
            "model.tokenizer=clip/tokenizer.json",
            "model.clip=clip/clip",
            "--image",
            "import/picture",
        ],
        makes: MADE,
    },
    Target {
        name: "spiece",
        place: "t5-s/spiece.model",
        seeds: &[],
        arguments: &[
            "judge",
            "questions",
            "--writer",
            "template",
            "--filter",
            "unifiedqa",
            "--filter-model",
            "t5-s",
            "two dogs",
        ],
        makes: MADE,
    },
    Target {
        name: "vocab.txt",
        place: "bert-v/vocab.txt",
        seeds: &[],
        arguments: &["judge", "similarity", "--judge", "bert", "--model", "bert-v", "a red dog", "a dog"],
        makes: MADE,
    },
];

/// A run over a tiny model.
const YAML: &str = "seed: 5
iterations: 1
output: out
data: { root: data, chunk: 2 }
model: { showo: model/showo, vq: model/vq, tokenizer: model/tokenizer.json }
caption: { max_new_tokens: 4, candidates: [{ top_k: 1, temperature: 1.0 }, { top_k: 0, temperature: 2.0 }] }
imagine: { images: 2, steps: 2, guidance: 1.0 }
ask: { writer: template, filter: none }
answer: { matcher: lexical, max_new_tokens: 4 }
pair: { similarity: lexical, min_accuracy: 0.0 }
";

impl Target {
    /// The target of a name.
    pub fn named(name: &str) -> Result<&'static Self> {
        let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
        let found = TARGETS.iter().find(|target| target.name == name);
        found.with_context(|| format!("{name}: no such target; one of {}", names.join(", ")))
    }

    /// The files that cases begin from.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn corpus(&self, workshop: &Path) -> Result<Vec<Vec<u8>>> {
        let mut files: Vec<PathBuf> = self
            .seeds
            .iter()
            .map(|seed| seed.strip_prefix('/').map_or_else(|| workshop.join(seed), in_repository))
            .collect();
        let folder = in_repository("fuzz/corpus").join(self.name);
        if folder.is_dir() {
            let mut found: Vec<PathBuf> =
                fs::read_dir(&folder)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
            found.sort();
            files.extend(found);
        }
        ensure!(!files.is_empty(), "{}: no corpus", self.name);
        files.iter().map(|file| fs::read(file).with_context(|| file.display().to_string())).collect()
    }

    /// Puts a file in its place, and gives the command line that reads it.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn put(&self, workshop: &Path, file: &[u8]) -> Result<Vec<String>> {
        for made in self.makes {
            let made = workshop.join(made);
            let _ = if made.is_dir() { fs::remove_dir_all(made) } else { fs::remove_file(made) };
        }
        fs::write(workshop.join(self.place), file)?;
        let mut arguments = vec!["hermesflow".to_owned()];
        for argument in self.arguments {
            match *argument {
                "@argument" => arguments.push(String::from_utf8_lossy(file).replace('\0', "")),
                argument => arguments.push(argument.to_owned()),
            }
        }
        let last = match self.arguments[0] {
            "ask" => ASK,
            "pair" | "t2i" | "mmu" => RUN,
            "scenes" => DRAW,
            _ => &[],
        };
        // Behind all others, so that no file decides where the program writes.
        let at = arguments.iter().position(|argument| argument.starts_with("--")).unwrap_or(arguments.len());
        arguments.splice(at..at, last.iter().map(|argument| (*argument).to_owned()));
        Ok(arguments)
    }
}

/// A file or folder of the repository.
pub fn in_repository(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name)
}

/// Makes a workshop: what the commands need beside the file that is tried. The process must stand in it.
///
/// # Errors
/// When the program cannot make it.
pub fn prepare(workshop: &Path) -> Result<()> {
    let made = |arguments: &[&str]| -> Result<()> {
        let arguments = ["hermesflow"].iter().chain(arguments).map(Into::into);
        ensure!(hermesflow::program(arguments) == 0, "the workshop cannot be made");
        Ok(())
    };
    let put = |name: &str, bytes: &[u8]| -> Result<()> {
        let path = workshop.join(name);
        fs::create_dir_all(path.parent().unwrap_or(workshop))?;
        fs::write(&path, bytes).with_context(|| path.display().to_string())
    };
    let golden = in_repository("crates/hermesflow-verify/tests/golden/scorers");
    let copy = |from: &str, to: &str, without: &str| -> Result<()> {
        for entry in fs::read_dir(golden.join(from)).with_context(|| from.to_owned())? {
            let entry = entry?;
            if entry.file_name() != without {
                put(&format!("{to}/{}", entry.file_name().display()), &fs::read(entry.path())?)?;
            }
        }
        Ok(())
    };
    put("run.yaml", YAML.as_bytes())?;
    for folder in ["import", "data", "gguf", "st", "bin", "index"] {
        fs::create_dir_all(workshop.join(folder))?;
    }
    made(&["random-model", "model"])?;
    made(&["random-model", "sound/model"])?;
    made(&["random-model", "clip", "--clip"])?;
    for (from, to) in [("bert", "bert"), ("bert", "bert-t"), ("mpnet", "mpnet"), ("t5-relu", "t5"), ("llama", "llama")]
    {
        copy(from, to, "")?;
        copy(from, &format!("sound/{}", to.trim_end_matches("-t")), "")?;
    }
    copy("bert", "st", "model.safetensors")?;
    copy("bert", "bert-v", "tokenizer.json")?;
    copy("t5-relu", "t5-s", "tokenizer.json")?;
    copy("bert", "small", "")?;
    copy("llama", "gguf", "model.safetensors")?;
    // The image tokenizer is the smaller half of a model.
    made(&["convert", "model/vq", "converted", "--format", "bin"])?;
    put("small/pytorch_model.bin", &fs::read(workshop.join("converted/pytorch_model.bin"))?)?;
    put("bin/config.json", &fs::read(workshop.join("model/vq/config.json"))?)?;
    put("index/config.json", &fs::read(workshop.join("model/vq/config.json"))?)?;
    made(&["convert", "model/vq", "sharded", "--format", "bin-sharded"])?;
    for entry in fs::read_dir(workshop.join("sharded"))? {
        let name = entry?.file_name().display().to_string();
        put(&format!("index/{name}"), &fs::read(workshop.join("sharded").join(&name))?)?;
    }
    let record = |id: u32| {
        format!(r#"{{"id": {id}, "img_path": "{id}.png", "prompt": "a dog", "caption": "Two dogs in a park."}}"#)
    };
    let records = format!("[\n{},\n{}\n]\n", record(1), record(2));
    put("sound/initial_data.json", records.as_bytes())?;
    put("data/initial_data.json", records.as_bytes())?;
    put("asked/initial_data.json", records.as_bytes())?;
    let question = r#"[{"id": 1, "img_path": "1.png", "prompt": "a dog", "caption": "Two dogs in a park.", "element": "dogs",
        "question": "how many dogs?", "choices": ["one", "two"], "answer": "two"}]"#;
    put("sound/questions.json", question.as_bytes())?;
    put("import/pictures.json", br#"[{"id": "a", "image": "picture", "caption": "a picture"}]"#)?;
    for name in ["import/picture", "import/good.png", "data/1.png", "data/2.png"] {
        put(name, &fs::read(in_repository("fuzz/corpus/picture/good.png"))?)?;
    }
    // What the stages make of two records.
    for stage in ["caption", "imagine", "ask", "answer"] {
        made(&[stage, "run.yaml"])?;
    }
    Ok(())
}
