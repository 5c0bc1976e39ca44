//! `hermesflow inpaint`: a part of a picture is made anew.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use hermesflow_models::preprocess::{load_mask, load_square};
use hermesflow_models::{ImagineJob, UnifiedModel};
use hermesflow_records::derive_seed;
use image::{Rgb, RgbImage};

use super::args::ModelArgs;
use super::args::PictureArgs;
use super::args::save_pictures;
use crate::models;
use crate::report::sheet::{Cell, Words};
use crate::run::pictures::slug;
use crate::run::stage::text_number;
use crate::run::texts;

/// Repaint part of a picture from a prompt
///
/// The model makes the parts where the mask is white and keeps those where it is black. Picture and mask may have any
/// format; both are fitted to the model's square in the same way, so draw the mask over the picture at its own size. A
/// mask is as fine as the model's image tokens: one is made anew where the mask is at least half white there. What is
/// kept are tokens, not pixels: it looks as `hermesflow reconstruct` shows it. The `imagine` section gives steps,
/// guidance, temperature and schedule. Writes the pictures and a sheet (before, mask, what is kept, after); prints the
/// files.
///
/// Example: hermesflow inpaint scenes --image scene.png --mask mask.png --prompt "a large red circle"
///
/// Example: hermesflow inpaint run.yaml --image bus.jpg --mask bus_mask.webp --prompt "a blue sports car" --images 8
/// imagine.steps=16 imagine.guidance=1.75
#[derive(Debug, clap::Args)]
#[command(
    override_usage = "hermesflow inpaint [OPTIONS] --image <FILE> --mask <FILE> --prompt <TEXT>\n       <CONFIG> [KEY=VALUE]..."
)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,

    /// The picture
    #[arg(long, value_name = "FILE")]
    image: PathBuf,

    /// The mask: white is repainted, black is kept
    #[arg(long, value_name = "FILE")]
    mask: PathBuf,

    /// What the whole picture shows when it is done
    #[arg(long, value_name = "TEXT")]
    prompt: String,

    #[command(flatten)]
    made: PictureArgs,
}

/// Runs the command.
pub fn run(args: Args) -> Result<()> {
    let (run, model) = args.model.open()?;
    let side = model.resolution();
    let grid = model.image_tokens().isqrt();
    let before = load_square(&args.image, side)?;
    let mask = load_mask(&args.mask, side, grid)?;
    let painted = mask.painted.iter().filter(|painted| **painted).count();
    ensure!(
        painted > 0,
        "{}: no part is white enough to be painted; white is painted, black is kept",
        args.mask.display()
    );
    let codes = model.encode_images(std::slice::from_ref(&before))?.pop().context("a picture without codes")?;
    let known: Vec<Option<u32>> =
        codes.iter().zip(&mask.painted).map(|(code, painted)| (!painted).then_some(*code)).collect();
    texts::note_cut(&model, &args.prompt, &run.progress)?;
    let job = |number: u64| ImagineJob {
        prompt: args.prompt.clone(),
        seed: derive_seed(run.config.seed, &[text_number("inpaint"), text_number(&args.prompt), number]),
        known: known.clone(),
    };
    let jobs: Vec<ImagineJob> = (0..args.made.images).map(job).collect();
    let pictures = model.decode_images(&model.imagine(&jobs, &models::imagine_options(&model, &run.config))?)?;

    let folder = args.made.folder(&run.config, "inpaint");
    let stem = args.image.file_stem().unwrap_or_default().to_string_lossy();
    let name = format!("{stem}-{}", slug(&args.prompt));
    let row = vec![
        Cell::Text(200, vec![Words::plain(&args.prompt)]),
        Cell::Picture(before.clone(), Words::plain("before")),
        Cell::Picture(mask.picture, Words::plain("mask")),
        Cell::Picture(kept(&before, &mask.painted, grid), Words::plain("kept")),
    ];
    let subtitle = format!("{painted} of {} image tokens made anew, seed {}", codes.len(), run.config.seed);
    save_pictures(&folder, &name, ("Inpainted", &subtitle), row, pictures)
}

/// The picture with grey where it is painted anew.
fn kept(picture: &RgbImage, painted: &[bool], grid: usize) -> RgbImage {
    let (width, height) = picture.dimensions();
    let cell = |at: u32, size: u32| at as usize * grid / size as usize;
    RgbImage::from_fn(width, height, |x, y| {
        let painted = painted[cell(y, height) * grid + cell(x, width)];
        if painted { Rgb([127; 3]) } else { *picture.get_pixel(x, y) }
    })
}
