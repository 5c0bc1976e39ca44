//! Which files a SOURCE means, and what each of them is by its content.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use flate2::bufread::MultiGzDecoder;

use super::Take;
use super::fields::Names;
use super::json;
use super::meter::{Meter, Metered};
use super::parquet;
use super::shards;

/// Extensions in the order in which a folder's files are wanted: its JSON is often about the others.
const KINDS: [&[&str]; 3] =
    [&[".parquet"], &[".tar", ".tar.gz", ".tgz"], &[".jsonl", ".json", ".ndjson", ".jsonl.gz", ".json.gz"]];

/// Bytes that are looked at to tell what a file is: a tar's first header.
const HEAD: usize = 512;

/// The files of all sources, in order.
///
/// # Errors
/// Names the source that does not exist or holds none.
pub fn files(sources: &[String]) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for source in sources {
        for path in expanded(source)? {
            match Path::new(&path) {
                folder if folder.is_dir() => files.extend(in_folder(folder)?),
                file if file.is_file() => files.push(file.to_path_buf()),
                missing if path == *source => bail!("{}: does not exist", missing.display()),
                missing => bail!("{}: does not exist; {source} asks for it", missing.display()),
            }
        }
    }
    Ok(files)
}

/// All names of a shard pattern: `data-{000..012}.tar`, `{a,b}/x.tar`.
fn expanded(pattern: &str) -> Result<Vec<String>> {
    if Path::new(pattern).exists() {
        return Ok(vec![pattern.to_string()]); // a name may have braces
    }
    let Some((before, rest)) = pattern.split_once('{') else { return Ok(vec![pattern.to_string()]) };
    let (inner, after) = rest.split_once('}').with_context(|| format!("{pattern}: the brace is not closed"))?;
    let parts: Vec<String> = match inner.split_once("..") {
        Some((first, last)) => {
            let number = |text: &str| text.parse::<u64>().with_context(|| format!("{pattern}: {text:?} is no number"));
            let (low, high) = (number(first)?, number(last)?);
            ensure!(low <= high && high - low < 10_000_000, "{pattern}: {inner} is no range of shards");
            (low..=high).map(|number| format!("{number:0width$}", width = first.len())).collect()
        }
        None => inner.split(',').map(str::to_string).collect(),
    };
    let after = expanded(after)?;
    Ok(parts.iter().flat_map(|part| after.iter().map(move |after| format!("{before}{part}{after}"))).collect())
}

/// The files of a folder and its subfolders by name: its Parquet files, else its shards, else its JSON.
fn in_folder(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found: [Vec<PathBuf>; 3] = Default::default();
    let mut open = vec![folder.to_path_buf()];
    while let Some(next) = open.pop() {
        for entry in std::fs::read_dir(&next).with_context(|| next.display().to_string())? {
            let path = entry.with_context(|| next.display().to_string())?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
            if name.starts_with('.') {
                continue;
            }
            if path.is_dir() {
                open.push(path);
            } else if let Some(kind) = KINDS.iter().position(|kind| kind.iter().any(|end| name.ends_with(end))) {
                found[kind].push(path);
            }
        }
    }
    let mut files = found
        .into_iter()
        .find(|files| !files.is_empty())
        .with_context(|| format!("{}: holds no .parquet, .tar, .tar.gz, .jsonl or .json file", folder.display()))?;
    files.sort();
    Ok(files)
}

/// Gives every record of a file to `take`.
///
/// # Errors
/// When the file is nothing that is read, or `take` fails.
pub fn read(path: &Path, names: &Names, meter: &Meter<'_>, take: &mut Take<'_>) -> Result<()> {
    let file: Arc<Path> = path.into();
    let mut magic = Vec::new();
    let open = File::open(path).with_context(|| path.display().to_string())?;
    open.take(4).read_to_end(&mut magic).with_context(|| path.display().to_string())?;
    if magic.starts_with(b"PAR1") {
        return parquet::read(&file, names, meter, take);
    }
    let open = File::open(path).with_context(|| path.display().to_string())?;
    let bytes = BufReader::with_capacity(1 << 16, Metered::new(open, meter));
    if magic.starts_with(b"\x1f\x8b") {
        return text_or_shard(BufReader::with_capacity(1 << 16, MultiGzDecoder::new(bytes)), &file, names, take);
    }
    text_or_shard(bytes, &file, names, take)
}

fn text_or_shard(mut bytes: impl BufRead, file: &Arc<Path>, names: &Names, take: &mut Take<'_>) -> Result<()> {
    let head = bytes.fill_buf().with_context(|| file.display().to_string())?;
    let name = file.to_string_lossy().to_lowercase();
    let is_tar = head.get(257..262) == Some(b"ustar") || KINDS[1].iter().any(|end| name.ends_with(end));
    match is_tar {
        true => shards::read(bytes, file, names, take),
        false if json::looks_like(&head[..head.len().min(HEAD)]) => json::read(bytes, file, take),
        false => bail!("{}: neither JSON records nor Parquet nor a tar file", file.display()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn patterns_mean_their_shards() {
        assert_eq!(expanded("a-{008..011}.tar").unwrap(), ["a-008.tar", "a-009.tar", "a-010.tar", "a-011.tar"]);
        assert_eq!(expanded("{x,y}/{0..1}.tar").unwrap(), ["x/0.tar", "x/1.tar", "y/0.tar", "y/1.tar"]);
        assert_eq!(expanded("plain.tar").unwrap(), ["plain.tar"]);
        let folder = tempfile::tempdir().unwrap();
        let name = folder.path().join("a,{b,c}.json").display().to_string();
        assert_eq!(expanded(&name).unwrap().len(), 2);
        std::fs::write(&name, "").unwrap();
        assert_eq!(expanded(&name).unwrap(), [name]);
        for broken in ["a{0..", "{a..3}", "{5..1}"] {
            assert!(expanded(broken).is_err(), "{broken}");
        }
    }

    #[test]
    fn a_folder_is_its_data_not_what_describes_it() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["b/1.tar", "b/0.tar.gz", "info.json", "README.md", ".hidden.tar"] {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        let source = folder.path().display().to_string();
        let names =
            |files: Vec<PathBuf>| files.iter().map(|file| file.file_name().unwrap().to_owned()).collect::<Vec<_>>();
        assert_eq!(names(files(std::slice::from_ref(&source)).unwrap()), ["0.tar.gz", "1.tar"]);
        let message = files(&[format!("{source}/x-{{0..1}}.tar")]).unwrap_err().to_string();
        assert!(message.contains("x-0.tar: does not exist"), "{message}");
        std::fs::remove_dir_all(folder.path().join("b")).unwrap();
        assert_eq!(names(files(&[source]).unwrap()), ["info.json"]);
    }
}
