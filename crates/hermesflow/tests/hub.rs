//! `hermesflow fetch` against a small hub on this machine: the cache, downloads that are cut off, refusals.

#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use sha1::Sha1;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What a hub that serves one model does and has seen.
#[derive(Default)]
struct State {
    files: Vec<(&'static str, Vec<u8>)>,
    /// Every request with its range and its token.
    seen: Vec<(String, Option<usize>, Option<String>)>,
    /// How many answers of the weights still end after this many bytes.
    cuts: Vec<usize>,
    /// Every request is answered so.
    refuse: Option<u16>,
    /// The next requests are answered so, and how long to wait.
    busy: Vec<(u16, Option<&'static str>)>,
    /// How many answers of the weights still stop in their middle, and do not end.
    stalls: usize,
    /// The digest that is promised for files that end so is another file's.
    damaged: Option<&'static str>,
    /// Ranges are ignored, as some servers do.
    no_ranges: bool,
}

struct Hub {
    address: String,
    state: Arc<Mutex<State>>,
    cache: TempDir,
}

impl Hub {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let weights: Vec<u8> = (0..300_000_u32).map(|byte| (byte % 251) as u8).collect();
        let files = vec![
            ("README.md", b"nothing that is read".to_vec()),
            ("config.json", b"{}".to_vec()),
            ("tokenizer.json", b"{\"version\": \"1.0\"}".to_vec()),
            ("1_Pooling/config.json", b"{\"pooling\": 1}".to_vec()),
            ("model.safetensors", weights),
            ("pytorch_model.bin", b"the same again".to_vec()),
        ];
        let state = Arc::new(Mutex::new(State { files, ..State::default() }));
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || answer(stream.unwrap(), &shared));
            }
        });
        Self { address, state, cache: tempfile::tempdir().unwrap() }
    }

    fn fetch(&self, model: &str, environment: &[(&str, &str)]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hermesflow"));
        for name in ["HF_HOME", "HF_TOKEN", "HF_TOKEN_PATH", "HF_HUB_OFFLINE", "XDG_CACHE_HOME"] {
            command.env_remove(name);
        }
        for name in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"] {
            command.env_remove(name);
        }
        command.env("HF_HUB_DOWNLOAD_TIMEOUT", "2");
        command.env("HF_ENDPOINT", &self.address).env("HF_HUB_CACHE", self.cache.path()).env("HOME", self.cache.path());
        command.envs(environment.iter().copied()).args(["fetch", model]).current_dir(self.cache.path());
        command.stdin(Stdio::null()).output().unwrap()
    }

    fn fetched(&self, model: &str) -> PathBuf {
        let output = self.fetch(model, &[]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
    }

    fn refused(&self, model: &str, environment: &[(&str, &str)]) -> String {
        let output = self.fetch(model, environment);
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{message}");
        message
    }

    fn weights(&self) -> Vec<u8> {
        self.state.lock().unwrap().files.iter().find(|(name, _)| *name == "model.safetensors").unwrap().1.clone()
    }

    /// The ranges under which the weights were asked for.
    fn ranges(&self) -> Vec<Option<usize>> {
        let state = self.state.lock().unwrap();
        state
            .seen
            .iter()
            .filter(|(path, _, _)| path.ends_with("model.safetensors"))
            .map(|(_, range, _)| *range)
            .collect()
    }
}

/// The name that git gives a file by its content.
fn git_id(bytes: &[u8]) -> String {
    let header = format!("blob {}\0", bytes.len());
    Sha1::new().chain_update(header).chain_update(bytes).finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Minimal HTTP: one request, one answer, with ranges.
fn answer(mut stream: TcpStream, state: &Mutex<State>) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let request = lines.next().unwrap().unwrap();
    let path = request.split(' ').nth(1).unwrap().to_owned();
    let headers: HashMap<String, String> = lines
        .map(Result::unwrap)
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_owned())))
        .collect();
    let range =
        headers.get("range").map(|range| range.trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap());
    let mut state = state.lock().unwrap();
    state.seen.push((path.clone(), range, headers.get("authorization").cloned()));
    let say = |stream: &mut TcpStream, status: &str, length: usize, body: &[u8]| {
        let _ = write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
        let _ = stream.write_all(body);
    };
    if let Some(refuse) = state.refuse {
        return say(&mut stream, &format!("{refuse} No"), 0, b"");
    }
    if let Some((status, after)) = state.busy.pop() {
        let after = after.map_or_else(String::new, |after| format!("\r\nRetry-After: {after}"));
        return say(&mut stream, &format!("{status} Busy{after}"), 0, b"");
    }
    if path.starts_with("/api/models/org/tiny/revision/main") {
        let siblings: Vec<_> = state
            .files
            .iter()
            .map(|(name, bytes)| {
                let damaged = state.damaged.is_some_and(|end| name.ends_with(end));
                let sha256 = if damaged { "5a".repeat(32) } else { digest(bytes) };
                let lfs = name.ends_with("safetensors").then(|| serde_json::json!({"sha256": sha256}));
                let id = if damaged { "5a".repeat(20) } else { git_id(bytes) };
                serde_json::json!({"rfilename": name, "size": bytes.len(), "blobId": id, "lfs": lfs})
            })
            .collect();
        let body = serde_json::json!({"sha": COMMIT, "siblings": siblings}).to_string();
        return say(&mut stream, "200 OK", body.len(), body.as_bytes());
    }
    let file = path.strip_prefix(&format!("/org/tiny/resolve/{COMMIT}/"));
    let Some((name, bytes)) = file.and_then(|file| state.files.iter().find(|(name, _)| *name == file).cloned()) else {
        return say(&mut stream, "404 Not Found", 0, b"");
    };
    let from = range.filter(|_| !state.no_ranges).unwrap_or(0);
    let rest = &bytes[from..];
    let end = if name == "model.safetensors" { state.cuts.pop().unwrap_or(rest.len()) } else { rest.len() };
    let status = if from > 0 { "206 Partial Content" } else { "200 OK" };
    if name == "model.safetensors" && state.stalls > 0 {
        state.stalls -= 1;
        drop(state);
        let _ = write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n", rest.len());
        let _ = stream.write_all(&rest[..70_000.min(rest.len())]);
        std::thread::sleep(std::time::Duration::from_secs(60));
        return;
    }
    say(&mut stream, status, rest.len(), &rest[..end.min(rest.len())]);
}

#[test]
fn a_model_is_fetched_into_the_ordinary_cache_once() {
    let hub = Hub::new();
    let folder = hub.fetched("org/tiny");
    let model = hub.cache.path().join("models--org--tiny");
    assert_eq!(folder, model.join("snapshots").join(COMMIT));
    assert_eq!(fs::read_to_string(model.join("refs/main")).unwrap(), COMMIT);
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), hub.weights());
    assert_eq!(fs::read(model.join("blobs").join(digest(&hub.weights()))).unwrap(), hub.weights());
    assert_eq!(fs::read(folder.join("1_Pooling/config.json")).unwrap(), b"{\"pooling\": 1}");
    assert!(!folder.join("README.md").exists() && !folder.join("pytorch_model.bin").exists(), "only what is read");
    #[cfg(unix)]
    {
        let link = fs::read_link(folder.join("1_Pooling/config.json")).unwrap();
        let blob = format!("../../../blobs/{}", git_id(b"{\"pooling\": 1}"));
        assert_eq!(link, PathBuf::from(blob), "links that survive a move of the cache");
    }
    let asked = hub.state.lock().unwrap().seen.len();
    assert_eq!(hub.fetched("org/tiny"), folder);
    assert_eq!(hub.fetched(folder.to_str().unwrap()), folder, "a path is used as it is");
    let offline = hub.fetch("org/tiny", &[("HF_HUB_OFFLINE", "1"), ("HF_ENDPOINT", "http://127.0.0.1:9")]);
    assert!(offline.status.success(), "{}", String::from_utf8_lossy(&offline.stderr));
    assert_eq!(hub.state.lock().unwrap().seen.len(), asked, "no network where the cache has it");
}

#[test]
fn a_download_goes_on_where_it_was_cut_off() {
    let hub = Hub::new();
    // Five cuts in a row: within one run, and over to the next one.
    hub.state.lock().unwrap().cuts = vec![0, 0, 0, 0, 100_000];
    let message = hub.refused("org/tiny", &[]);
    assert!(message.contains("run again to go on"), "{message}");
    let partial =
        hub.cache.path().join("models--org--tiny/blobs").join(format!("{}.incomplete", digest(&hub.weights())));
    assert_eq!(fs::metadata(&partial).unwrap().len(), 100_000);
    assert!(!hub.cache.path().join("models--org--tiny/refs").exists(), "no model yet");
    let folder = hub.fetched("org/tiny");
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), hub.weights());
    assert_eq!(hub.ranges().first(), Some(&None));
    assert!(hub.ranges()[1..].iter().all(|range| *range == Some(100_000)), "{:?}", hub.ranges());
    assert!(!partial.exists());
}

#[test]
fn a_server_without_ranges_begins_again() {
    let hub = Hub::new();
    {
        let mut state = hub.state.lock().unwrap();
        (state.cuts, state.no_ranges) = (vec![1_000], true);
    }
    assert_eq!(fs::read(hub.fetched("org/tiny").join("model.safetensors")).unwrap(), hub.weights());
}

#[test]
fn a_server_that_stalls_is_asked_again() {
    let hub = Hub::new();
    hub.state.lock().unwrap().stalls = 2;
    let started = Instant::now();
    assert_eq!(fs::read(hub.fetched("org/tiny").join("model.safetensors")).unwrap(), hub.weights());
    assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
    let hub = Hub::new();
    {
        // Every answer brings nothing more than the one before: it must end.
        let mut state = hub.state.lock().unwrap();
        (state.stalls, state.no_ranges) = (usize::MAX, true);
    }
    let message = hub.refused("org/tiny", &[("HF_HUB_DOWNLOAD_TIMEOUT", "1")]);
    assert!(message.contains("nothing came for 1 seconds") && message.contains("run again to go on"), "{message}");
    assert!(hub.refused("org/tiny", &[("HF_HUB_DOWNLOAD_TIMEOUT", "soon")]).contains("no number of seconds"));
}

#[test]
fn a_busy_server_is_asked_again_when_it_says() {
    let hub = Hub::new();
    hub.state.lock().unwrap().busy = vec![(503, None), (429, Some("1")), (500, None), (429, Some("0"))];
    let started = Instant::now();
    let output = hub.fetch("org/tiny", &[]);
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{log}");
    assert!(log.contains("answers 429; next try in 1.0 s"), "{log}");
    assert!(started.elapsed() >= Duration::from_secs(1));
    let hub = Hub::new();
    hub.state.lock().unwrap().busy = vec![(429, Some("86400"))];
    let message = hub.refused("org/tiny", &[]);
    assert!(message.contains("in 86400 seconds") && message.contains("answers 429"), "{message}");
    let hub = Hub::new();
    hub.state.lock().unwrap().busy = vec![(503, Some("0")); 50];
    assert!(hub.refused("org/tiny", &[]).contains("the hub is busy"));
}

#[test]
fn a_damaged_small_file_is_removed() {
    let hub = Hub::new();
    hub.state.lock().unwrap().damaged = Some("tokenizer.json");
    let message = hub.refused("org/tiny", &[]);
    assert!(message.contains("tokenizer.json") && message.contains("checksum mismatch: sha1"), "{message}");
    hub.state.lock().unwrap().damaged = None;
    hub.fetched("org/tiny");
}

#[test]
fn a_folder_that_is_not_there_is_not_looked_up() {
    let hub = Hub::new();
    for name in ["models/show-o", "./org/tiny", "checkpoints/mine", "models--org--tiny/tiny"] {
        fs::create_dir_all(hub.cache.path().join("models--org--tiny")).unwrap();
        let message = hub.refused(name, &[]);
        assert!(message.contains("no such folder") || message.contains("neither a path"), "{message}");
    }
    assert!(hub.state.lock().unwrap().seen.is_empty(), "the hub is not asked");
}

#[test]
fn a_damaged_download_is_removed() {
    let hub = Hub::new();
    hub.state.lock().unwrap().damaged = Some("safetensors");
    let message = hub.refused("org/tiny", &[]);
    assert!(message.contains("model.safetensors") && message.contains("checksum mismatch: sha256"), "{message}");
    let blobs = hub.cache.path().join("models--org--tiny/blobs");
    assert!(!blobs.join("5a".repeat(32)).exists() && !blobs.join(format!("{}.incomplete", "5a".repeat(32))).exists());
    hub.state.lock().unwrap().damaged = None;
    assert_eq!(fs::read(hub.fetched("org/tiny").join("model.safetensors")).unwrap(), hub.weights());
}

#[test]
fn refusals_say_what_to_do() {
    let hub = Hub::new();
    hub.state.lock().unwrap().refuse = Some(401);
    let message = hub.refused("org/tiny", &[]);
    assert!(message.contains("HF_TOKEN") && message.contains("no token was given"), "{message}");
    let message = hub.refused("org/tiny", &[("HF_TOKEN", "hf_secret")]);
    assert!(message.contains("the token was refused") && !message.contains("hf_secret"), "{message}");
    let token = hub.state.lock().unwrap().seen.last().unwrap().2.clone();
    assert_eq!(token.as_deref(), Some("Bearer hf_secret"));
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join("token"), "hf_from_file\n").unwrap();
    hub.refused("org/tiny", &[("HF_HOME", home.path().to_str().unwrap())]);
    let token = hub.state.lock().unwrap().seen.last().unwrap().2.clone();
    assert_eq!(token.as_deref(), Some("Bearer hf_from_file"));
    hub.state.lock().unwrap().refuse = None;
    let message = hub.refused("org/tiny@no-such", &[]);
    assert!(message.contains("org/tiny at revision no-such") && message.contains("check the name"), "{message}");
}

#[test]
fn a_model_that_cannot_be_had_names_what_does_instead() {
    let hub = Hub::new();
    let message = hub.refused("bert-large-uncased", &[("HF_HUB_OFFLINE", "1")]);
    for part in
        ["1.3 GB", "HF_HUB_OFFLINE", "models--bert-large-uncased", "model.safetensors", "pair.similarity: lexical"]
    {
        assert!(message.contains(part), "{part}: {message}");
    }
    assert!(hub.state.lock().unwrap().seen.is_empty(), "offline is offline");
    let message =
        hub.refused("tifa-benchmark/llama2_tifa_question_generation", &[("HF_ENDPOINT", "http://127.0.0.1:9")]);
    for part in ["13 GB", "no answer", "HF_ENDPOINT", "ask.writer: template"] {
        assert!(message.contains(part), "{part}: {message}");
    }
    let message = hub.refused("no/such/folder", &[]);
    assert!(message.contains("no/such/folder: neither a path"), "{message}");
}
