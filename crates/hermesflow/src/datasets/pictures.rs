//! Where the images of imported records are and come to lie.

use std::path::{Path, PathBuf};

use hermesflow_models::preprocess;
use hermesflow_records::RecordId;
use image::ImageFormat;

use super::Reason;
use super::fields::{Picture, short};
use crate::files;

/// Looks images up, checks them, and puts those that are embedded into the data root.
#[derive(Debug)]
pub struct Gallery {
    /// The data root.
    pub root: PathBuf,
    /// Where relative paths begin, if that was said.
    pub images: Option<PathBuf>,
    /// Copy files into the data root too.
    pub copy: bool,
    /// Check the beginning of pictures only.
    pub quick: bool,
    /// An import was begun here before: pictures that are there may be its.
    pub begun: bool,
}

impl Gallery {
    /// The path of a record's image as the records name it, once it is known to be one.
    ///
    /// # Errors
    /// Why the record is to be skipped.
    ///
    /// The outer error is that of a file that cannot be written.
    pub fn place(
        &self,
        id: &RecordId,
        picture: Picture,
        source: &Path,
    ) -> anyhow::Result<Result<String, (Reason, String)>> {
        match picture {
            Picture::Bytes(bytes) => self.put(id, &bytes),
            Picture::Path(path) => {
                let Some(file) = self.find(&path, source) else {
                    return Ok(Err((Reason::MissingImage, short(&path).into_owned())));
                };
                let broken = |why: String| (Reason::BrokenImage, format!("{}: {why}", file.display()));
                let bytes = match preprocess::read(&file) {
                    Ok(bytes) => bytes,
                    Err(error) => return Ok(Err((Reason::BrokenImage, error.to_string()))),
                };
                if self.copy {
                    return Ok(self.put(id, &bytes)?.map_err(|(_, why)| broken(why)));
                }
                Ok(self.check(&bytes).map(|()| self.named(&file)).map_err(broken))
            }
        }
    }

    /// Writes an image under its id; one that already exists is not written again.
    fn put(&self, id: &RecordId, bytes: &[u8]) -> anyhow::Result<Result<String, (Reason, String)>> {
        let extension = match image::guess_format(bytes) {
            Ok(ImageFormat::Png) => "png",
            Ok(ImageFormat::Jpeg) => "jpg",
            Ok(ImageFormat::WebP) => "webp",
            _ => return Ok(Err((Reason::BrokenImage, "neither PNG nor JPEG nor WebP".into()))),
        };
        let name = format!("images/{id}.{extension}");
        let path = self.root.join(&name);
        let there = path.metadata().is_ok_and(|file| file.len() == bytes.len() as u64)
            && std::fs::read(&path).is_ok_and(|there| there == bytes);
        if !there {
            if let Err(why) = self.check(bytes) {
                return Ok(Err((Reason::BrokenImage, why)));
            }
            anyhow::ensure!(
                self.begun || !path.exists(),
                "{}: already exists, and is another picture; choose another --to, or move it away",
                path.display()
            );
            files::write_atomically(&path, bytes)?;
        }
        Ok(Ok(name))
    }

    fn check(&self, bytes: &[u8]) -> Result<(), String> {
        let nowhere = Path::new(""); // the callers know the file, if there is one
        let checked = match self.quick {
            true => preprocess::check_header(bytes, nowhere),
            false => preprocess::decode(bytes, nowhere).map(drop),
        };
        checked.map_err(|error| match error {
            hermesflow_models::Error::Image { message, .. } => message,
            other => other.to_string(),
        })
    }

    /// The file of a path: under the folder that was given, else beside the source, under the root, or from here.
    fn find(&self, path: &str, source: &Path) -> Option<PathBuf> {
        let beside = source.parent().unwrap_or(Path::new(""));
        let places = match &self.images {
            Some(images) => vec![images.clone()],
            None => vec![beside.into(), beside.join("images"), beside.join("imgs"), self.root.clone(), PathBuf::new()],
        };
        places.into_iter().map(|place| place.join(path)).find(|file| file.is_file())
    }

    /// A file as the records name it: from the root if it lies there, else from the file system's.
    fn named(&self, file: &Path) -> String {
        let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.into());
        let (file, root) = (absolute(file), absolute(&self.root));
        file.strip_prefix(&root).unwrap_or(&file).display().to_string()
    }
}
