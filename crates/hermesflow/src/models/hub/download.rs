//! Downloads into the cache: each file under `blobs/{etag}.incomplete` until it is whole, so that the next try goes on
//! where this one was cut off; then it gets its name in the snapshot, and last the reference that makes it a model.
//!
//! A server that is busy (429, 5xx) is asked again after the time that it names, or after longer and longer ones; one that
//! sends nothing for too long is as good as cut off. Every file is compared with the digest that the hub gives.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::Deserialize;
use sha1::Sha1;
use sha2::{Digest, Sha256};
use ureq::http::Response;
use ureq::{Agent, Body};

use super::Hub;
use super::Name;
use super::Parts;
use super::wanted;
use crate::files;
use crate::progress::{Progress, Task};

/// How often a file is tried before the download is given up, and how often a busy server is asked.
const TRIES: u32 = 4;
const ASKED: u32 = 6;
/// How long a busy server may let us wait.
const LONGEST_WAIT: Duration = Duration::from_secs(600);
/// What a hub says of a model has no more bytes.
const LONGEST_ANSWER: usize = 64 << 20;

/// Progress is counted in these.
const MEGABYTE: u64 = 1_000_000;

/// What the hub says of a revision.
#[derive(Debug, Deserialize)]
struct Revision {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

/// A file of a revision.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Debug, Deserialize)]
struct Lfs {
    sha256: Option<String>,
}

impl Sibling {
    /// The file's name among the blobs of the cache: the hub's etag for it.
    fn blob(&self, commit: &str) -> String {
        let etag = self.lfs.as_ref().and_then(|lfs| lfs.sha256.clone()).or_else(|| self.blob_id.clone());
        let safe = etag.filter(|etag| !etag.is_empty() && etag.bytes().all(|byte| byte.is_ascii_alphanumeric()));
        safe.unwrap_or_else(|| format!("{commit}-{}", self.rfilename.replace('/', "-")))
    }

    /// Compares a whole download with the digest that the hub gives; what differs is removed.
    fn check(&self, downloaded: &Path) -> Result<()> {
        let named = || downloaded.display().to_string();
        let is_sha1 = |id: &&String| id.len() == 40 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
        let (kind, expected, found) = match self.lfs.as_ref().and_then(|lfs| lfs.sha256.as_ref()) {
            Some(expected) => ("sha256", expected, digest_of(Sha256::new(), downloaded).with_context(named)?),
            None => {
                // Small files are git's own: a blob's id is the digest of its size and its bytes.
                let Some(expected) = self.blob_id.as_ref().filter(is_sha1) else { return Ok(()) };
                let size = fs::metadata(downloaded).with_context(named)?.len();
                let header = Sha1::new().chain_update(format!("blob {size}\0"));
                ("sha1", expected, digest_of(header, downloaded).with_context(named)?)
            }
        };
        if !found.eq_ignore_ascii_case(expected) {
            fs::remove_file(downloaded).with_context(named)?;
            bail!("checksum mismatch: {kind} {found}, expected {expected}; the download was removed: fetch it again");
        }
        Ok(())
    }
}

/// The digest of a file's bytes behind what was digested before them.
fn digest_of<D: Digest + Write>(mut digest: D, file: &Path) -> std::io::Result<String> {
    std::io::copy(&mut File::open(file)?, &mut digest)?;
    Ok(digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

impl Hub {
    /// Fetches what is missing of a model.
    pub(super) fn download(&self, name: &Name, parts: Option<Parts>, progress: &Progress) -> Result<()> {
        let agent = agent(self.silence);
        let url = format!(
            "{}/api/models/{}/revision/{}?blobs=true",
            self.endpoint,
            name.model,
            name.revision.replace('/', "%2F")
        );
        let answer = Pieces::of(self.get(&agent, &url, name, 0, progress)?, self.silence);
        let answer = answer.all(LONGEST_ANSWER).with_context(|| url.clone())?;
        let revision: Revision =
            serde_json::from_slice(&answer).with_context(|| format!("{url}: not what a hub says of a model"))?;
        let commit = revision.sha;
        ensure!(
            !commit.is_empty() && commit.bytes().all(|byte| byte.is_ascii_alphanumeric()),
            "{url}: {commit:?} is no commit"
        );
        let names: Vec<&str> = revision.siblings.iter().map(|file| file.rfilename.as_str()).collect();
        let wanted = wanted(name, parts, &names)?;
        let of: Vec<&Sibling> = revision.siblings.iter().filter(|file| wanted.contains(&file.rfilename)).collect();
        let folder = self.cache.join(name.folder());
        for (number, file) in of.iter().enumerate() {
            let (target, blob) = (
                folder.join("snapshots").join(&commit).join(&file.rfilename),
                folder.join("blobs").join(file.blob(&commit)),
            );
            if target.is_file() {
                continue;
            }
            if !blob.is_file() {
                let label = format!("{} ({} of {})", file.rfilename, number + 1, of.len());
                let url = format!("{}/{}/resolve/{commit}/{}", self.endpoint, name.model, file.rfilename);
                self.fetch(&agent, &url, name, file, &blob, &label, progress)?;
            }
            link(&blob, &target)?;
        }
        files::write_atomically(&folder.join("refs").join(&name.revision), commit.as_bytes())
    }

    /// Downloads one file, continuing where the last try ended.
    #[allow(clippy::too_many_arguments)] // what a file is, and where it goes; there is one caller
    fn fetch(
        &self,
        agent: &Agent,
        url: &str,
        name: &Name,
        file: &Sibling,
        blob: &Path,
        label: &str,
        progress: &Progress,
    ) -> Result<()> {
        let (partial, size) = (blob.with_extension("incomplete"), file.size);
        if let Some(folder) = blob.parent() {
            fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        }
        let there = || fs::metadata(&partial).map_or(0, |partial| partial.len());
        let megabytes = |bytes: u64| bytes.div_ceil(MEGABYTE) as usize;
        let task = progress.task(label, "MB", megabytes(size.unwrap_or_default()), megabytes(there()));
        let mut tries = 0;
        loop {
            let before = there();
            if size.is_some_and(|size| before > size) {
                fs::remove_file(&partial).with_context(|| partial.display().to_string())?;
                continue;
            }
            if size != Some(before) || before == 0 {
                let tried = self.go_on(agent, url, name, before, &partial, (progress, &task));
                let whole = size.is_none_or(|size| there() == size);
                if tried.is_ok() && !whole || tried.as_ref().is_err_and(is_cut_off) {
                    // A try that brought something does not count against the others.
                    tries = if there() > before { 1 } else { tries + 1 };
                    if tries < TRIES {
                        std::thread::sleep(longer(tries) / 2);
                        continue;
                    }
                    let kept = there();
                    tried
                        .with_context(|| format!("{url}: cut off after {kept} bytes; run again to go on from there"))?;
                    bail!(
                        "{url}: {kept} bytes came, {} were promised; run again to go on from there",
                        size.unwrap_or_default()
                    );
                }
                tried?;
            }
            drop(task);
            file.check(&partial).with_context(|| url.to_owned())?;
            return fs::rename(&partial, blob).with_context(|| blob.display().to_string());
        }
    }

    /// Appends what the server still has of a file.
    fn go_on(
        &self,
        agent: &Agent,
        url: &str,
        name: &Name,
        from: u64,
        partial: &Path,
        (progress, task): (&Progress, &Task),
    ) -> Result<()> {
        let response = self.get(agent, url, name, from, progress)?;
        let goes_on = from > 0 && response.status().as_u16() == 206;
        let mut file = OpenOptions::new()
            .create(true)
            .write(true)
            .append(goes_on)
            .truncate(!goes_on)
            .open(partial)
            .with_context(|| partial.display().to_string())?;
        let pieces = Pieces::of(response, self.silence);
        let mut counted = if goes_on { from } else { 0 };
        while let Some(piece) = pieces.next().map_err(|error| anyhow::Error::new(CutOff(error)))? {
            file.write_all(&piece).with_context(|| partial.display().to_string())?;
            let now = counted + piece.len() as u64;
            task.advance((now.div_ceil(MEGABYTE) - counted.div_ceil(MEGABYTE)) as usize);
            counted = now;
        }
        sync(&file, partial)
    }

    /// Asks as [`Hub::ask`] does, and tries again while the server is busy.
    fn get(&self, agent: &Agent, url: &str, name: &Name, from: u64, progress: &Progress) -> Result<Response<Body>> {
        let mut asked = 1;
        loop {
            let (error, after) = match self.ask(agent, url, name, from)? {
                Answer::Given(response) => return Ok(response),
                Answer::Later(error, after) => (error, after),
            };
            let wait = after.unwrap_or_else(|| longer(asked));
            if asked == ASKED || wait > LONGEST_WAIT {
                let seconds = after.map_or_else(String::new, |after| format!(" in {} seconds", after.as_secs()));
                return Err(error.context(format!("{url}: the hub is busy; run again{seconds} to continue")));
            }
            progress.log(format!("fetch: {error:#}; next try in {:.1} s", wait.as_secs_f64()));
            std::thread::sleep(wait);
            asked += 1;
        }
    }

    /// A request; what the server refuses is said with its remedy.
    fn ask(&self, agent: &Agent, url: &str, name: &Name, from: u64) -> Result<Answer> {
        let mut request = agent.get(url);
        if let Some(token) = &self.token {
            request = request.header("Authorization", &format!("Bearer {token}"));
        }
        if from > 0 {
            request = request.header("Range", &format!("bytes={from}-"));
        }
        let none = || format!("{url}: no answer; is there a network, and is HF_ENDPOINT right?");
        let response = match request.call() {
            Ok(response) => response,
            Err(error) if is_passing(&error) => {
                return Ok(Answer::Later(anyhow::Error::new(error).context(none()), None));
            }
            Err(error) => return Err(error).with_context(none),
        };
        let with = if self.token.is_some() { "the token was refused" } else { "no token was given" };
        match response.status().as_u16() {
            200 | 206 => Ok(Answer::Given(response)),
            status @ (408 | 425 | 429 | 500..=599) => {
                let after = response.headers().get("retry-after").and_then(|after| after.to_str().ok());
                let after = after.and_then(|after| after.trim().parse().ok()).map(Duration::from_secs);
                Ok(Answer::Later(anyhow!("{url}: the hub answers {status}"), after))
            }
            401 | 403 => bail!(
                "{url}: the hub refuses {} ({with}); accept its terms on its page if it has some, and set HF_TOKEN to a \
                 token that may read it; the hub says the same of a model that does not exist",
                name.model
            ),
            404 => bail!("{url}: the hub has no {} at revision {}; check the name", name.model, name.revision),
            status => bail!("{url}: the hub answers {status}"),
        }
    }
}

/// What a server says.
enum Answer {
    Given(Response<Body>),
    /// Not now: why, and after how long to ask again, if it says so.
    Later(anyhow::Error, Option<Duration>),
}

/// Whether a request may succeed when it is made again.
fn is_passing(error: &ureq::Error) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, TimedOut, UnexpectedEof, WouldBlock};
    match error {
        ureq::Error::Timeout(_) => true,
        ureq::Error::Io(error) => [BrokenPipe, ConnectionAborted, ConnectionReset, TimedOut, UnexpectedEof, WouldBlock]
            .contains(&error.kind()),
        _ => false,
    }
}

/// How long to wait before the next try.
fn longer(tries: u32) -> Duration {
    Duration::from_millis(500) * 2u32.pow(tries.min(8) - 1)
}

/// The bytes of an answer, read on a thread of its own: whoever waits for them can give up.
struct Pieces {
    pieces: Receiver<std::io::Result<Vec<u8>>>,
    silence: Duration,
}

impl Pieces {
    fn of(response: Response<Body>, silence: Duration) -> Self {
        let (sender, pieces) = sync_channel(4);
        let mut reader = response.into_body().into_reader();
        std::thread::spawn(move || {
            loop {
                let mut piece = vec![0; 1 << 16];
                let read = reader.read(&mut piece);
                let more = matches!(read, Ok(1..));
                piece.truncate(*read.as_ref().unwrap_or(&0));
                // An empty piece is the end.
                if sender.send(read.map(|_| piece)).is_err() || !more {
                    return;
                }
            }
        });
        Self { pieces, silence }
    }

    /// The next bytes; none behind the last ones.
    fn next(&self) -> std::io::Result<Option<Vec<u8>>> {
        let piece = self.pieces.recv_timeout(self.silence).map_err(|error| match error {
            RecvTimeoutError::Timeout => {
                let message = format!("nothing came for {} seconds", self.silence.as_secs());
                std::io::Error::new(std::io::ErrorKind::TimedOut, message)
            }
            RecvTimeoutError::Disconnected => std::io::ErrorKind::UnexpectedEof.into(),
        })??;
        Ok(Some(piece).filter(|piece| !piece.is_empty()))
    }

    /// All bytes of the answer, if there are no more than `most`.
    fn all(&self, most: usize) -> Result<Vec<u8>> {
        let mut all = Vec::new();
        while let Some(piece) = self.next()? {
            all.extend(piece);
            ensure!(all.len() <= most, "an answer of more than {most} bytes");
        }
        Ok(all)
    }
}

/// The connection ended before the file did.
#[derive(Debug, thiserror::Error)]
#[error("the connection was cut: {0}")]
struct CutOff(std::io::Error);

fn is_cut_off(error: &anyhow::Error) -> bool {
    error.downcast_ref::<CutOff>().is_some()
}

fn agent(silence: Duration) -> Agent {
    Agent::config_builder()
        .http_status_as_error(false)
        .timeout_resolve(Some(silence))
        .timeout_connect(Some(silence))
        .timeout_send_request(Some(silence))
        .timeout_recv_response(Some(silence))
        .user_agent(concat!("hermesflow/", env!("CARGO_PKG_VERSION")))
        .build()
        .new_agent()
}

fn sync(file: &File, path: &Path) -> Result<()> {
    file.sync_all().with_context(|| path.display().to_string())
}

/// Gives a blob its name in the snapshot: a relative link, as other programs make it, or else a copy.
fn link(blob: &Path, target: &Path) -> Result<()> {
    if let Some(folder) = target.parent() {
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    #[cfg(unix)]
    {
        // snapshots/{commit}/{file…} → blobs/{etag}
        let inside = target.iter().rev().take_while(|part| *part != "snapshots").count();
        let relative = "../".repeat(inside) + "blobs/" + &blob.file_name().unwrap_or_default().to_string_lossy();
        let _ = fs::remove_file(target); // a link that leads nowhere
        if std::os::unix::fs::symlink(&relative, target).is_ok() && target.is_file() {
            return Ok(());
        }
    }
    let _ = fs::remove_file(target);
    fs::copy(blob, target).map(drop).with_context(|| target.display().to_string())
}
