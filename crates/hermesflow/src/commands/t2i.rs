//! `hermesflow t2i`: pictures of any prompts.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use hermesflow_models::{ImagineJob, UnifiedModel};
use hermesflow_records::derive_seed;
use image::RgbImage;

use super::args::{ModelArgs, PictureArgs};
use crate::files::{self, OwnFiles};
use crate::models;
use crate::report::sheet::{Cell, Words, draw};
use crate::run::pictures::{png, slug};
use crate::run::stage::text_number;
use crate::run::texts;

/// Prompts on one contact sheet.
const ROWS: usize = 50;

/// Generate pictures from your own prompts
///
/// Generates a picture of every --prompt (and every line of --prompts FILE) under the configuration's `imagine` section: `imagine.steps`, `imagine.guidance`, `imagine.temperature`, `imagine.schedule` (cosine, linear,
/// pow2 with any exponent, sigmoid). A picture depends on the seed, its prompt and its number alone, so it can be made
/// again. Several pictures also come as one contact sheet, sheet.png. Prints the files.
///
/// Example: hermesflow t2i scenes --prompt "a large red circle above two small blue squares" --images 8
///
/// Example: hermesflow t2i run.yaml --prompts prompts.txt --iteration 2 imagine.steps=18 imagine.guidance=1.75
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,

    /// A prompt; repeat it for several
    #[arg(long = "prompt", value_name = "TEXT")]
    prompts: Vec<String>,

    /// A text file with a prompt per line
    #[arg(long = "prompts", value_name = "FILE")]
    file: Option<PathBuf>,

    #[command(flatten)]
    made: PictureArgs,
}

/// Runs the command.
pub fn run(args: Args) -> Result<()> {
    let prompts = prompts(&args)?;
    let (run, model) = args.model.open()?;
    let mut own = OwnFiles::of(&args.made.folder(&run.config, "t2i"))?;
    let images = args.made.images as usize;
    let jobs: Vec<(usize, usize)> =
        (0..prompts.len()).flat_map(|prompt| (0..images).map(move |number| (prompt, number))).collect();
    prompts.iter().try_for_each(|prompt| texts::note_cut(&model, prompt, &run.progress))?;
    let task = run.progress.task("t2i", "images", jobs.len(), 0);
    let mut made: Vec<Vec<RgbImage>> = vec![Vec::new(); prompts.len()];
    for chunk in jobs.chunks(run.config.data.chunk) {
        let job = |&(prompt, number): &(usize, usize)| {
            let prompt = prompts[prompt].clone();
            let seed = derive_seed(run.config.seed, &[text_number("t2i"), text_number(&prompt), number as u64]);
            ImagineJob { prompt, seed, known: vec![] }
        };
        let jobs: Vec<ImagineJob> = chunk.iter().map(job).collect();
        let pictures = model.decode_images(&model.imagine(&jobs, &models::imagine_options(&model, &run.config))?)?;
        for (&(prompt, number), picture) in chunk.iter().zip(pictures) {
            let number = if images > 1 { format!("-{number}") } else { String::new() };
            let name = format!("{prompt:03}-{}{number}.png", slug(&prompts[prompt]));
            let file = own.write(&name, &png(&picture)?)?;
            say!("{}", file.display())?;
            if prompt < ROWS {
                made[prompt].push(picture);
            }
        }
        task.advance(chunk.len());
    }
    if jobs.len() > 1 {
        let row = |(prompt, pictures): (&String, Vec<RgbImage>)| {
            let pictures = pictures.into_iter().map(|picture| Cell::Picture(picture, Words::plain("")));
            std::iter::once(Cell::Text(260, vec![Words::plain(prompt)])).chain(pictures).collect()
        };
        let rows: Vec<Vec<Cell>> = prompts.iter().zip(made).take(ROWS).map(row).collect();
        let shown = format!("{} of {} prompts, seed {}", rows.len(), prompts.len(), run.config.seed);
        let file = own.write("sheet.png", &png(&draw("Imagined", &shown, &["prompt"], &rows)?)?)?;
        say!("{}", file.display())?;
    }
    Ok(())
}

fn prompts(args: &Args) -> Result<Vec<String>> {
    let mut prompts = args.prompts.clone();
    if let Some(file) = &args.file {
        let text = files::text(file).context("--prompts")?;
        prompts.extend(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(String::from));
    }
    ensure!(!prompts.is_empty(), "no prompt; give --prompt TEXT, or --prompts FILE with one per line");
    Ok(prompts)
}
