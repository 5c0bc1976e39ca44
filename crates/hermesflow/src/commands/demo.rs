//! `hermesflow demo`: the whole loop on the embedded world and model.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use hermesflow_scenes::oracle::judge;
use hermesflow_scenes::{Split, parse_caption};
use image::RgbImage;

use super::args::count;
use super::eval;
use super::run;
use crate::config::{DEMO, RunConfig};
use crate::files;
use crate::models::Model;
use crate::progress::{Progress, brief};
use crate::report;
use crate::report::sheet::{BAD, Cell, GOOD, Words, draw};
use crate::run::context::RunContext;
use crate::run::layout::RunLayout;
use crate::run::pictures::Pictures;
use crate::world::evaluate::{EvalReport, EvalSettings, other_guidances, prompt, several_pictures};

/// Rows of the contact sheets.
const ROWS: usize = 12;
/// Pictures of each prompt on the sheet of before and after: the one that was measured, and others.
const DRAWS: usize = 4;

/// Run the whole loop on the embedded model in minutes, and see what improved
///
/// Nothing has to be downloaded: the model, its world of simple scenes and the judge are inside this program. The model
/// captions scenes and generates pictures of captions, judges its own pictures, trains on its best against its worst,
/// and repeats this. Before and after, an oracle that reads the pixels measures it on combinations of shapes that
/// training never showed. The folder then holds the preference pairs, two contact sheets (pairs.png, before-after.png),
/// the figures, the trained models, and report.html, which shows all of it in a browser. A demo that was interrupted continues with the same command.
///
/// Example: hermesflow demo --out /tmp/demo --seed 7
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder of the results
    #[arg(long, value_name = "DIR", default_value = "hermesflow-demo")]
    out: PathBuf,

    /// Seed of every random number
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,

    /// Iterations of the loop [default: 3; 1 with --quick]
    #[arg(long, value_name = "N")]
    iterations: Option<usize>,

    /// Prompts on which the model is measured before and after
    #[arg(long, value_name = "N", default_value_t = 192, value_parser = count::<1_000_000>)]
    prompts: usize,

    /// A small run that shows every step in about a minute; its figures mean little
    #[arg(long)]
    quick: bool,

    /// Settings of the demo's configuration to change, such as train.loss.anchor_gen=0; `hermesflow keys` lists all
    #[arg(value_name = "KEY=VALUE")]
    overrides: Vec<String>,
}

/// Runs the command.
pub fn run(args: Args) -> Result<()> {
    let started = Instant::now();
    let progress = Progress::stderr();
    let out = &args.out;
    let mut overrides = vec![
        format!("seed={}", args.seed),
        format!("output={}", out.join("run").display()),
        format!("data.root={}", out.join("data").display()),
    ];
    if args.quick {
        overrides.extend(
            [
                "data.scenes.records=24",
                "imagine.images=4",
                "train.schedule.steps=12",
                "train.schedule.warmup_steps=2",
                "iterations=1",
            ]
            .map(String::from),
        );
    }
    overrides.extend(args.iterations.map(|iterations| format!("iterations={iterations}")));
    overrides.extend(args.overrides.iter().cloned());
    let config = RunConfig::parse(DEMO, &overrides)?;
    files::refuse_foreign(out, &["figures.md", "pairs.png", "before-after.png"], layout(&config).config().is_file())?;
    let prompts = if args.quick { args.prompts.min(32) } else { args.prompts };
    let settings = EvalSettings { split: Split::HeldOut, prompts, seed: 0 };

    let first = RunContext::new(config.clone(), 1, progress.clone());
    let guidances = other_guidances(&config);
    let mut reports: Vec<EvalReport> = Vec::new();
    let mut after: Vec<RgbImage> = Vec::new();
    let mut before: Vec<RgbImage> = Vec::new();
    run::run_loop(&config, &progress, |iteration: usize, model: &Model| {
        let name = if iteration == 0 { "base".to_string() } else { format!("iteration {iteration}") };
        let file = out.join(format!("eval-{iteration}.json"));
        reports.push(eval::evaluate_into(model, &name, (&first.at(iteration + 1), &guidances), settings, &file)?);
        after = several_pictures(model, &config, &settings, (&shown(&settings), DRAWS))?;
        if iteration == 0 {
            before = after.clone();
        }
        Ok(())
    })?;
    let pairs = pairs_sheet(&config, &out.join("pairs.png"))?;
    before_after_sheet(&settings, &before, &after, &out.join("before-after.png"))?;
    let table = report::course(&reports)?;
    files::write_atomically(&out.join("figures.md"), (table.clone() + "\n").as_bytes())?;
    say!("{table}\n")?;
    say!("{} preference pairs of the last iteration: {}", pairs, layout(&config).pairs().display())?;
    let report = run::write_report(out, &progress);
    say!("look at: {}", out.join("pairs.png").display())?;
    say!("         {}", out.join("before-after.png").display())?;
    say!("in {}", brief(started.elapsed()))?;
    if let Some(report) = report {
        say!("all of it, with every pair and why: {}", report.display())?;
    }
    Ok(())
}

fn layout(config: &RunConfig) -> RunLayout {
    RunLayout::new(config, config.iterations)
}

/// The prompts of the before-and-after sheet, spread over the evaluation.
fn shown(settings: &EvalSettings) -> Vec<usize> {
    let step = (settings.prompts / ROWS).max(1);
    (0..settings.prompts).step_by(step).take(ROWS).collect()
}

/// Prompt, winning and losing image, true image, winning and losing caption; returns the number of pairs.
fn pairs_sheet(config: &RunConfig, path: &Path) -> Result<usize> {
    let layout = layout(config);
    let pairs = files::pairs(&layout.pairs())?;
    let pictures = Pictures::new(&layout, hermesflow_scenes::SIDE);
    let step = (pairs.len() / ROWS).max(1);
    let rows = (0..pairs.len())
        .step_by(step)
        .take(ROWS)
        .map(|number| {
            let pair = pairs.read(number..number + 1)?.remove(0);
            let load = |name: &str| pictures.load(name.as_ref()).with_context(|| format!("record {}", pair.id));
            let score = |name, score: f64, colour| Words::coloured(format!("{name} {score:.2}"), colour);
            Ok(vec![
                Cell::Text(200, vec![Words::plain(&pair.caption)]),
                Cell::Picture(load(&pair.image_win)?, score("wins", pair.vqa_score_win, GOOD)),
                Cell::Picture(load(&pair.image_lose)?, score("loses", pair.vqa_score_lose, BAD)),
                Cell::Picture(load(&pair.img_path)?, Words::plain("the true image")),
                Cell::Text(
                    330,
                    vec![
                        Words::coloured(format!("{} ({:.2})", pair.caption_win.trim(), pair.bert_score_win), GOOD),
                        Words::coloured(format!("{} ({:.2})", pair.caption_lose.trim(), pair.bert_score_lose), BAD),
                    ],
                ),
            ])
        })
        .collect::<Result<Vec<_>>>()?;
    let subtitle =
        format!("{} pairs of iteration {}; scores by the model's own answers", pairs.len(), config.iterations);
    let header = ["prompt", "imagined", "imagined", "real", "captions of the real image (similarity to the true one)"];
    save(&draw("What the model learned from", &subtitle, &header, &rows)?, path)?;
    Ok(pairs.len())
}

fn before_after_sheet(settings: &EvalSettings, before: &[RgbImage], after: &[RgbImage], path: &Path) -> Result<()> {
    let rows: Vec<Vec<Cell>> = shown(settings)
        .into_iter()
        .zip(before.chunks(DRAWS).zip(after.chunks(DRAWS)))
        .map(|(index, (before, after))| {
            let text = prompt(settings, index).1;
            let judged = |picture: &RgbImage| {
                let judged = parse_caption(&text).map(|facts| judge(picture, &facts));
                let right = judged.as_ref().map_or(0, |j| j.facts.iter().filter(|fact| fact.holds).count());
                let all = judged.as_ref().map_or(0, |j| j.facts.len());
                let verdict = format!("{right} of {all} facts");
                Cell::Picture(picture.clone(), Words::coloured(verdict, if right == all { GOOD } else { BAD }))
            };
            let words = Cell::Text(200, vec![Words::plain(&text)]);
            std::iter::once(words).chain(before.iter().chain(after).map(judged)).collect()
        })
        .collect();
    let subtitle = "held-out prompts, each drawn four times, with the same random draws; facts counted by the oracle";
    let mut header = vec!["prompt", "base"];
    header.resize(1 + DRAWS, "");
    header.push("aligned");
    save(&draw("Before and after", subtitle, &header, &rows)?, path)
}

fn save(picture: &RgbImage, path: &Path) -> Result<()> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    picture.write_to(&mut bytes, image::ImageFormat::Png).with_context(|| path.display().to_string())?;
    files::write_atomically(path, bytes.get_ref())
}
