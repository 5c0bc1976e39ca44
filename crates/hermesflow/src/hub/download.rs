//! Downloads into the cache: each file under `blobs/{etag}.incomplete` until it is whole, so that the next try goes on
//! where this one was cut off; then it gets its name in the snapshot, and last the reference that makes it a model.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use ureq::http::Response;
use ureq::{Agent, Body};

use super::{Hub, Name, Parts, wanted};
use crate::files;
use crate::progress::{Progress, Task};

/// How often a file is tried before the download is given up.
const TRIES: u32 = 4;

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
    /// Its name among the blobs: what the hub gives as its etag.
    fn blob(&self, commit: &str) -> String {
        let etag = self.lfs.as_ref().and_then(|lfs| lfs.sha256.clone()).or_else(|| self.blob_id.clone());
        let safe = etag.filter(|etag| !etag.is_empty() && etag.bytes().all(|byte| byte.is_ascii_alphanumeric()));
        safe.unwrap_or_else(|| format!("{commit}-{}", self.rfilename.replace('/', "-")))
    }

    /// Compares a whole download with the digest that the hub gives; what differs is removed.
    fn check(&self, downloaded: &Path) -> Result<()> {
        let Some(expected) = self.lfs.as_ref().and_then(|lfs| lfs.sha256.as_ref()) else { return Ok(()) };
        let named = || downloaded.display().to_string();
        let mut hash = Sha256::new();
        std::io::copy(&mut File::open(downloaded).with_context(named)?, &mut hash).with_context(named)?;
        let found: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        if !found.eq_ignore_ascii_case(expected) {
            fs::remove_file(downloaded).with_context(named)?;
            bail!(
                "what came is not what the hub has (sha256 {found}, expected {expected}); it is removed: fetch it again"
            );
        }
        Ok(())
    }
}

impl Hub {
    /// Fetches what is missing of a model.
    pub(super) fn download(&self, name: &Name, parts: Option<Parts>, progress: &Progress) -> Result<()> {
        let agent = agent();
        let url = format!(
            "{}/api/models/{}/revision/{}?blobs=true",
            self.endpoint,
            name.model,
            name.revision.replace('/', "%2F")
        );
        let mut response = self.get(&agent, &url, name, 0)?;
        let text = response.body_mut().read_to_string().with_context(|| url.clone())?;
        let revision: Revision =
            serde_json::from_str(&text).with_context(|| format!("{url}: not what a hub says of a model"))?;
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

    /// One file, from where the last try ended.
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
                let tried = self.go_on(agent, url, name, before, &partial, &task);
                let whole = size.is_none_or(|size| there() == size);
                if tried.is_ok() && !whole || tried.as_ref().is_err_and(is_cut_off) {
                    // A try that brought something does not count against the others.
                    tries = if there() > before { 1 } else { tries + 1 };
                    if tries < TRIES {
                        std::thread::sleep(Duration::from_millis(200 * u64::from(tries)));
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
    fn go_on(&self, agent: &Agent, url: &str, name: &Name, from: u64, partial: &Path, task: &Task) -> Result<()> {
        let response = self.get(agent, url, name, from)?;
        let goes_on = from > 0 && response.status().as_u16() == 206;
        let mut file = OpenOptions::new()
            .create(true)
            .write(true)
            .append(goes_on)
            .truncate(!goes_on)
            .open(partial)
            .with_context(|| partial.display().to_string())?;
        let mut reader = response.into_body().into_reader();
        let mut buffer = vec![0; 1 << 16];
        let mut counted = if goes_on { from } else { 0 };
        loop {
            let read = reader.read(&mut buffer).map_err(|error| anyhow::Error::new(CutOff(error)))?;
            if read == 0 {
                return sync(&file, partial);
            }
            file.write_all(&buffer[..read]).with_context(|| partial.display().to_string())?;
            let now = counted + read as u64;
            task.advance((now.div_ceil(MEGABYTE) - counted.div_ceil(MEGABYTE)) as usize);
            counted = now;
        }
    }

    /// A request; what the server refuses is said with its remedy.
    fn get(&self, agent: &Agent, url: &str, name: &Name, from: u64) -> Result<Response<Body>> {
        let mut request = agent.get(url);
        if let Some(token) = &self.token {
            request = request.header("Authorization", &format!("Bearer {token}"));
        }
        if from > 0 {
            request = request.header("Range", &format!("bytes={from}-"));
        }
        let response = request
            .call()
            .with_context(|| format!("{url}: no answer; is there a network, and is HF_ENDPOINT right?"))?;
        let with = if self.token.is_some() { "the token was refused" } else { "no token was given" };
        match response.status().as_u16() {
            200 | 206 => Ok(response),
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

/// The connection ended before the file did.
#[derive(Debug, thiserror::Error)]
#[error("the connection was cut: {0}")]
struct CutOff(std::io::Error);

fn is_cut_off(error: &anyhow::Error) -> bool {
    error.downcast_ref::<CutOff>().is_some()
}

fn agent() -> Agent {
    Agent::config_builder()
        .http_status_as_error(false)
        .timeout_connect(Some(Duration::from_secs(15)))
        .timeout_recv_response(Some(Duration::from_secs(60)))
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
