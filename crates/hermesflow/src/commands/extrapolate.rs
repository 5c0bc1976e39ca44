//! `hermesflow extrapolate`: a picture goes on beyond its edges.

use std::path::PathBuf;

use anyhow::{Context, Result};
use hermesflow_models::grid::{Direction, Grid, kept};
use hermesflow_models::preprocess::load_square;
use hermesflow_models::{ImagineJob, ImagineOptions, UnifiedModel};
use hermesflow_records::derive_seed;

use super::args::ModelArgs;
use super::args::PictureArgs;
use super::args::save_pictures;
use crate::models;
use crate::report::sheet::{Cell, Words};
use crate::run::pictures::slug;
use crate::run::stage::text_number;
use crate::run::texts;

/// Continue a picture to the left, right, up or down
///
/// Each step keeps the half of the picture that is nearest to the edge and makes as much again beyond it, so a step
/// adds half a picture. --offset N keeps N rows or columns of image tokens less and makes N more; a negative one keeps
/// more. Directions follow each other, and may turn: a picture that has become wide is continued up or down in several
/// overlapping parts. All is decoded at last as one picture. The `imagine` section gives steps of decoding, guidance,
/// temperature and schedule. Writes the pictures and a sheet (before, after); prints the files.
///
/// Example: hermesflow extrapolate scenes --image scene.png --prompt "three small green circles"
/// --direction right --steps 2
///
/// Example: hermesflow extrapolate run.yaml --image lake.jpg --prompt "a clear blue lake" --direction left --direction
/// right --steps 3 imagine.steps=16 imagine.guidance=1.75
#[derive(Debug, clap::Args)]
#[command(
    override_usage = "hermesflow extrapolate [OPTIONS] --image <FILE> --prompt <TEXT>\n       --direction <DIRECTION> <CONFIG> [KEY=VALUE]..."
)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,

    /// The picture
    #[arg(long, value_name = "FILE")]
    image: PathBuf,

    /// What the picture shows. Once for all steps, or as often as --direction, or once per step
    #[arg(long = "prompt", value_name = "TEXT", required = true)]
    prompts: Vec<String>,

    /// left, right, up or down; repeat it for several, one after the other
    #[arg(long = "direction", value_name = "DIRECTION", required = true)]
    directions: Vec<Direction>,

    /// Steps in each direction
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1000))]
    steps: u64,

    /// Rows or columns of image tokens that a step keeps less than half a picture and makes more
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true)]
    offset: i64,

    #[command(flatten)]
    made: PictureArgs,
}

/// Runs the command.
pub fn run(args: Args) -> Result<()> {
    let steps = steps(&args.directions, &args.prompts, args.steps as usize)?;
    let (run, model) = args.model.open()?;
    let before = load_square(&args.image, model.resolution())?;
    let codes = model.encode_images(std::slice::from_ref(&before))?.pop().context("a picture without codes")?;
    let grids = vec![Grid::square(&codes)?; args.made.images as usize];
    args.prompts.iter().try_for_each(|prompt| texts::note_cut(&model, prompt, &run.progress))?;
    let task = run.progress.task("extrapolate", "steps", steps.len(), 0);
    let options = models::imagine_options(&model, &run.config);
    let grids = extrapolate(&model, grids, &steps, args.offset, run.config.seed, &options, || task.advance(1))?;
    drop(task);
    let (height, width) = grids.first().map_or((0, 0), |grid| (grid.height(), grid.width()));
    let codes: Vec<Vec<u32>> =
        grids.iter().map(Grid::complete).collect::<Option<_>>().context("a code was not made")?;

    let folder = args.made.folder(&run.config, "extrapolate");
    let stem = args.image.file_stem().unwrap_or_default().to_string_lossy();
    let name = format!("{stem}-{}", slug(&args.prompts[0]));
    let way = args.directions.iter().map(Direction::to_string).collect::<Vec<_>>().join(", ");
    let mut texts: Vec<Words> = args.prompts.iter().map(Words::plain).collect();
    texts.push(Words::plain(format!("{way}: {} steps", steps.len())));
    let row = vec![Cell::Text(200, texts), Cell::Picture(before, Words::plain("before"))];
    let subtitle = format!("{width}×{height} image tokens, offset {}, seed {}", args.offset, run.config.seed);
    save_pictures(&folder, &name, ("Extrapolated", &subtitle), row, model.decode_grids(&codes, height, width)?)
}

/// Where each step goes, and what it shows.
fn steps(directions: &[Direction], prompts: &[String], each: usize) -> Result<Vec<(Direction, String)>> {
    let all = directions.len() * each;
    let prompt = |step: usize| match prompts.len() {
        1 => Some(0),
        count if count == directions.len() => Some(step / each),
        count if count == all => Some(step),
        _ => None,
    };
    (0..all)
        .map(|step| {
            let prompt = prompt(step).with_context(|| {
                let (count, directions) = (prompts.len(), directions.len());
                format!("--prompt: {count} prompts for {directions} directions and {all} steps; give one, or as many as either")
            })?;
            Ok((directions[step / each], prompts[prompt].clone()))
        })
        .collect()
}

/// Grows every grid step by step, each from draws of its own; `on_step` follows.
///
/// # Errors
/// When the offset leaves nothing to keep or to make.
fn extrapolate(
    model: &impl UnifiedModel,
    mut grids: Vec<Grid>,
    steps: &[(Direction, String)],
    offset: i64,
    seed: u64,
    options: &ImagineOptions,
    mut on_step: impl FnMut(),
) -> Result<Vec<Grid>> {
    let side = model.image_tokens().isqrt();
    let kept = kept(side, offset)?;
    for (step, (direction, prompt)) in steps.iter().enumerate() {
        grids = grids.iter().map(|grid| grid.extended(*direction, side - kept)).collect();
        let windows = grids.first().map_or(vec![], |grid| grid.windows(*direction, side, kept));
        for (window, corner) in windows.into_iter().enumerate() {
            let job = |(number, grid): (usize, &Grid)| ImagineJob {
                prompt: prompt.clone(),
                seed: derive_seed(seed, &[text_number("extrapolate"), step as u64, window as u64, number as u64]),
                known: grid.window(corner, side),
            };
            let jobs: Vec<ImagineJob> = grids.iter().enumerate().map(job).collect();
            for (grid, codes) in grids.iter_mut().zip(model.imagine(&jobs, options)?) {
                grid.fill(corner, side, &codes);
            }
        }
        on_step();
    }
    Ok(grids)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use Direction::{Left, Right};

    #[test]
    fn prompts_are_shared_out_to_the_steps() {
        let plan = |prompts: &[&str]| {
            let prompts: Vec<String> = prompts.iter().map(|prompt| (*prompt).into()).collect();
            steps(&[Left, Right], &prompts, 2).map(|steps| {
                steps.into_iter().map(|(direction, prompt)| format!("{direction} {prompt}")).collect::<Vec<_>>()
            })
        };
        assert_eq!(plan(&["a"]).unwrap(), ["left a", "left a", "right a", "right a"]);
        assert_eq!(plan(&["a", "b"]).unwrap(), ["left a", "left a", "right b", "right b"]);
        assert_eq!(plan(&["a", "b", "c", "d"]).unwrap(), ["left a", "left b", "right c", "right d"]);
        assert!(plan(&["a", "b", "c"]).unwrap_err().to_string().contains("3 prompts for 2 directions and 4 steps"));
    }
}
