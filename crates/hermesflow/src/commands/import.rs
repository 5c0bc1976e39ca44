//! `hermesflow import`: a data root from images and captions as others publish them.

use std::path::PathBuf;

use anyhow::Result;

use crate::datasets::{ImportSettings, Names, import};
use crate::progress::Progress;

/// Turn your images and captions into a data root
///
/// Reads JSON, JSON Lines, Parquet and WebDataset shards (.tar, .tar.gz), told apart by their content, and writes
/// initial_data.json: an id, an image, a caption and a prompt per record. Images inside Parquet files and shards are
/// written to images/; image files stay where they are. JourneyDB's annotation is known: its captions, prompts and
/// questions are taken, and `ask.writer: file` with `ask.file: ROOT/journeydb_questions.json` asks those questions.
///
/// Fields go by their usual names (id, key, image_id, uid; image, img_path, jpg, file_name, path; caption, text, txt,
/// prompt, sentence, the first of captions), or by those that you give; a path such as Task2.Caption or captions.1
/// leads inside. Without an id field, an image's path, a shard's key or the row is the id; without a prompt it is the
/// caption.
///
/// A record without a caption, with a missing or broken image, or with an id that is there twice is named, counted and
/// skipped. Memory does not grow with the number of records. An import that was interrupted starts again: initial_data.json is
/// there only when it is whole, and images that are written are not written again.
///
/// Example: hermesflow import coco/data-{000..012}.tar --to datasets/coco --caption txt --limit 10000
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Files, folders of files, or shard patterns such as data-{000..012}.tar
    #[arg(required = true, value_name = "SOURCE")]
    sources: Vec<String>,

    /// The data root: data.root of the runs to come
    #[arg(long, value_name = "ROOT")]
    to: PathBuf,

    /// The field of the id
    #[arg(long, value_name = "FIELD")]
    id: Option<String>,

    /// The field of the image: a path, a struct of bytes and path, a binary column, or a shard's extension
    #[arg(long, value_name = "FIELD")]
    image: Option<String>,

    /// The field of the true caption; of a list the first
    #[arg(long, value_name = "FIELD")]
    caption: Option<String>,

    /// The field of the text that the image was made from
    #[arg(long, value_name = "FIELD")]
    prompt: Option<String>,

    /// Where relative image paths begin; otherwise beside the source, there in images/ or imgs/, under ROOT, or here
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,

    /// Copy image files to ROOT/images, so that ROOT can be moved
    #[arg(long)]
    copy: bool,

    /// Stop after this many records
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,

    /// Check that images are images of a size that is read, but not every pixel of theirs
    #[arg(long)]
    quick: bool,
}

/// Runs the command.
pub fn run(args: Args) -> Result<()> {
    let settings = ImportSettings {
        sources: args.sources,
        root: args.to,
        names: Names { id: args.id, image: args.image, caption: args.caption, prompt: args.prompt },
        images: args.images,
        copy: args.copy,
        quick: args.quick,
        limit: args.limit.map(|limit| limit as usize),
    };
    let imported = import(&settings, &Progress::stderr())?;
    say!("{}", imported.records.display())?;
    if let Some(questions) = imported.questions {
        say!("{}", questions.display())?;
    }
    Ok(())
}
