//! `hermesflow samplers`: how to draw with a model, searched.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use hermesflow_models::{ImageDecoding, UnifiedModel};
use serde_json::json;

use super::args::ConfigArgs;
use super::args::count;
use super::eval::split;
use crate::config::RunConfig;
use crate::files;
use crate::files::lock::Lock;
use crate::made::Origin;
use crate::models;
use crate::progress::Progress;
use crate::report;
use crate::run::context::RunContext;
use crate::run::kernels;
use crate::world::evaluate::{BLOCK, EvalSettings};
use crate::world::samplers::{Drawn, Sampler, draw};

/// Search the steps, the noise and the guidance under which a model draws best
///
/// Draws pictures of scenes under every combination of --steps, --noise and --guidance, on the same prompts with the same
/// seeds, and prints what the oracle finds in them: the share of facts and, in brackets, of pictures that are entirely
/// right. Nothing is asked and nothing is captioned, so this is far cheaper than `eval`. Search on dev prompts, measure on
/// held-out ones: the best of many is flattered by chance. Kill it anywhere: with --out it continues.
///
/// Example: hermesflow samplers scenes --iteration 2 --steps 16,32 --noise 4,8 --guidance 0,0.5,1,3
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    config: ConfigArgs,

    /// Draw with what this iteration of the run trained; 0 is the model that the run begins with
    #[arg(long, value_name = "N", default_value_t = 0)]
    iteration: usize,

    /// How many prompts
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = count::<1_000_000>)]
    prompts: usize,

    /// Which combinations: dev (choosing settings), heldout (final figures) or train
    #[arg(long, value_name = "SPLIT", default_value = "dev")]
    split: String,

    /// The seed of prompts and draws
    #[arg(long, value_name = "N", default_value_t = 0)]
    eval_seed: u64,

    /// Denoising steps, one or several; left out, the run's
    #[arg(long, value_name = "N,…", value_delimiter = ',')]
    steps: Vec<usize>,

    /// The noise on the confidence, or the temperature of a model that draws one code after the other
    /// (imagine.temperature), one or several; left out, the run's
    #[arg(long, value_name = "X,…", value_delimiter = ',')]
    noise: Vec<f64>,

    /// Classifier-free guidance, one or several; left out, 0 and the run's
    #[arg(long, value_name = "G,…", value_delimiter = ',')]
    guidance: Vec<f64>,

    /// Keep what was drawn, a line of JSON per sampler
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Runs the command.
pub fn run(args: Args) -> Result<()> {
    let config = args.config.load()?;
    let settings = EvalSettings { split: split(&args.split)?, prompts: args.prompts, seed: args.eval_seed };
    let samplers = samplers(&args, &config)?;
    let run = RunContext::new(config, args.iteration + 1, Progress::stderr());
    kernels::settle(&run.config, false)?;
    let model = models::player(&run)?;
    let drawn = match &args.out {
        None => draw_all(&model, &run, &settings, &samplers, Vec::new(), |_| Ok(()))?,
        Some(out) => {
            let _lock = Lock::beside(out)?;
            draw_into(&model, &run, &settings, &samplers, out)?
        }
    };
    say!("{}", table(&drawn, &samplers, &settings))?;
    Ok(())
}

/// Every combination, in the order of the table.
fn samplers(args: &Args, config: &RunConfig) -> Result<Vec<Sampler>> {
    let imagine = config.imagine;
    let by_steps = config.model.backbone.image_decoding() == ImageDecoding::Masked;
    ensure!(by_steps || args.steps.is_empty(), "--steps: the model draws one code after the other, in no steps");
    let steps = match args.steps.is_empty() {
        _ if !by_steps => vec![0],
        true => vec![imagine.steps],
        false => args.steps.clone(),
    };
    let noise = if args.noise.is_empty() { vec![imagine.temperature] } else { args.noise.clone() };
    let guidance = match args.guidance.as_slice() {
        [] if imagine.guidance == 0.0 => vec![0.0],
        [] => vec![0.0, imagine.guidance],
        given => given.to_vec(),
    };
    for steps in &steps {
        ensure!(!by_steps || (1..=10_000).contains(steps), "--steps: {steps} is not within 1 … 10000");
    }
    for (key, values) in [("--noise", &noise), ("--guidance", &guidance)] {
        for value in values {
            let number = *value as f32;
            ensure!(number.is_finite() && number >= 0.0, "{key}: {value} is not 0 or more");
        }
    }
    let mut all: Vec<Sampler> = Vec::new();
    for &steps in &steps {
        for &noise in &noise {
            for &guidance in &guidance {
                let sampler = Sampler { steps, noise, guidance };
                if !all.contains(&sampler) {
                    all.push(sampler);
                }
            }
        }
    }
    Ok(all)
}

/// Draws under the samplers that are not `done` yet; `keep` gets each.
fn draw_all(
    model: &impl UnifiedModel,
    run: &RunContext,
    settings: &EvalSettings,
    samplers: &[Sampler],
    done: Vec<Drawn>,
    mut keep: impl FnMut(&Drawn) -> Result<()>,
) -> Result<Vec<Drawn>> {
    let mut all = done;
    for &sampler in samplers {
        if all.iter().all(|drawn| drawn.sampler != sampler) {
            let drawn = draw(model, run.config.imagine, settings, sampler, &run.progress)?;
            keep(&drawn)?;
            all.push(drawn);
        }
    }
    Ok(all)
}

/// Draws under all samplers, with a file that remembers what was drawn by the very same model of the same prompts.
///
/// # Errors
/// When the model fails, or the file is another's.
pub fn draw_into(
    model: &impl UnifiedModel,
    run: &RunContext,
    settings: &EvalSettings,
    samplers: &[Sampler],
    out: &Path,
) -> Result<Vec<Drawn>> {
    let config = &run.config;
    let origin = Origin::of(json!({
        "samplers": settings,
        "batch": BLOCK,
        "model": { "dtype": config.model.dtype, "device": config.model.device },
        "imagine": { "schedule": config.imagine.schedule },
    }));
    let origin = origin.with(models::player_files(run)?);
    let header = serde_json::to_string(&origin)?;
    let text = match std::fs::read_to_string(out) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        read => read.with_context(|| format!("{}: cannot be read", out.display()))?,
    };
    let mut lines = text.lines();
    if let Some(first) = lines.next() {
        let before: Origin = serde_json::from_str(first)
            .with_context(|| format!("{}: not a file of `hermesflow samplers --out`", out.display()))?;
        let differing = origin.differences(&before);
        ensure!(
            differing.is_empty(),
            "{}: holds what was drawn otherwise ({}); choose another file or remove it",
            out.display(),
            differing.join("; ")
        );
    }
    // A line that was cut off by a kill is drawn again.
    let done: Vec<Drawn> = lines.filter_map(|line| serde_json::from_str(line).ok()).collect();
    let mut kept = header + "\n";
    for drawn in &done {
        kept.push_str(&(serde_json::to_string(drawn)? + "\n"));
    }
    files::write_atomically(out, kept.as_bytes())?;
    let keep = |drawn: &Drawn| -> Result<()> {
        kept.push_str(&(serde_json::to_string(drawn)? + "\n"));
        files::write_atomically(out, kept.as_bytes())
    };
    draw_all(model, run, settings, samplers, done, keep)
}

/// A row per steps and noise, a column per guidance; under it the best.
fn table(drawn: &[Drawn], samplers: &[Sampler], settings: &EvalSettings) -> String {
    let of = |sampler: Sampler| drawn.iter().find(|drawn| drawn.sampler == sampler);
    let mut guidance: Vec<f64> = Vec::new();
    let mut rows: Vec<(usize, f64)> = Vec::new();
    for sampler in samplers {
        if !guidance.contains(&sampler.guidance) {
            guidance.push(sampler.guidance);
        }
        if !rows.contains(&(sampler.steps, sampler.noise)) {
            rows.push((sampler.steps, sampler.noise));
        }
    }
    let in_steps = rows.iter().any(|&(steps, _)| steps > 0);
    let mut header = vec![if in_steps { "steps / noise" } else { "temperature" }.to_owned()];
    header.extend(guidance.iter().map(|guidance| format!("guidance {guidance}")));
    let mut table = report::table(&header.iter().map(String::as_str).collect::<Vec<_>>());
    for (steps, noise) in rows {
        let mut row = vec![if in_steps { format!("{steps} / {noise}") } else { noise.to_string() }];
        row.extend(guidance.iter().map(|&guidance| match of(Sampler { steps, noise, guidance }) {
            None => String::new(),
            Some(drawn) => format!("{:.3} ({:.2})", drawn.generation().mean, drawn.all_right().mean),
        }));
        table.add_row(row);
    }
    let asked = samplers.iter().filter_map(|&sampler| of(sampler));
    let best = asked.max_by(|a, b| a.generation().mean.total_cmp(&b.generation().mean));
    let best = best.map_or(String::new(), |best| {
        format!(
            "best: {}: {}, all right {} (± 95 %); {}\n",
            best.sampler,
            best.generation(),
            best.all_right(),
            best.sampler.passes()
        )
    });
    format!(
        "{table}\n{best}share of facts (entirely right), {} {} prompts, seed {}",
        settings.prompts,
        settings.split.name(),
        settings.seed
    )
}
