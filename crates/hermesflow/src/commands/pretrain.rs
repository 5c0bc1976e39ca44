//! `hermesflow pretrain`: makes the small model of the scenes world from nothing.
//!
//! Three stages, each of which is skipped when its result exists and continues from its newest
//! checkpoint when it was killed: the text tokenizer, the image tokenizer, the base model. All of it
//! follows from one YAML file and its seed.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use hermesflow_models::{DType, Device, Weights};
use hermesflow_records::derive_seed;
use hermesflow_train::{Masking, Objective, Outcome, StepReport, Trainer, TrainerSettings, checkpoint};
use serde_json::{Value, json};

use crate::config::{BackboneName, PretrainConfig};
use crate::digest;
use crate::files::lock::Lock;
use crate::files::{self, NewFolder};
use crate::made::{Origin, Results};
use crate::models::embedded::{
    Made, Magvit, New, Small, VqLossWeights, folder, is_exported, load_magvit, new, random_magvit, train_tokenizer,
    write_json,
};
use crate::progress::Progress;
use crate::world::pretraining::{BasePretraining, VqPretraining};

/// Train the embedded model from nothing: text tokenizer, image tokenizer, base model
///
/// Everything follows from one YAML file and its seed; `hermesflow keys --pretrain` lists its settings. When it was
/// interrupted, the same command continues.
///
/// Example: hermesflow pretrain pretrain-scenes base.model.num_hidden_layers=4 output=runs/small
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Pretraining configuration: a YAML file, or pretrain-scenes, which is inside this program
    config: PathBuf,
    /// Settings to change, such as vq.steps=500
    #[arg(value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// Seed of every random number; the same as seed=N
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Write the finished model here too, a new or empty folder, in 16 bits: this is how assets/scenes is made.
    #[arg(long, value_name = "DIR")]
    export: Option<PathBuf>,
    /// Begin with a model that `--export` wrote, or with the output folder of an earlier pretraining: its tokenizers as they
    /// are and, with `--stage`, its weights.
    #[arg(long, value_name = "DIR")]
    from: Option<PathBuf>,
    /// With `--from`: the first stage of `base.stages` to train, counted from 1, from the weights of that model. Without it
    /// the base model begins with random weights.
    #[arg(long, value_name = "N", requires = "from", value_parser = clap::value_parser!(u64).range(1..))]
    stage: Option<u64>,
    /// Stop after this many more steps of each stage (a checkpoint is not written for that).
    #[arg(long, hide = true)]
    stop_after: Option<usize>,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    let mut config = PretrainConfig::load(&args.config, &args.overrides)?;
    config.seed = args.seed.unwrap_or(config.seed);
    let output = config.output.clone();
    let dir = |name: &str| output.join(name);
    let _lock = Lock::take([dir(".hermesflow-lock")])?;
    let begin = args.from.as_deref().map(|exported| Begin { exported, stage: args.stage });
    if let Some(stage) = args.stage {
        let stages = config.base.stages.len();
        ensure!(stage as usize <= stages, "--stage {stage}: base.stages of {} has {stages}", args.config.display());
    }
    ensure!(
        args.export.is_none() || is_exported(config.base.backbone),
        "--export: a model of this kind is one folder, {}, which is written anyway; `--from {}` begins with it",
        dir(folder(config.base.backbone)).display(),
        output.display()
    );
    let exported = args.export.as_deref().map(NewFolder::begin).transpose()?;
    save_config(&config, &dir("config.yaml"))?;
    tokenizer_stage(&config, begin)?;
    let Some(vq) = vq_stage(&config, begin, args.stop_after)? else { return Ok(()) };
    let Some(made) = base_stage(&config, vq, begin, args.stop_after)? else { return Ok(()) };
    if let Some(folder) = exported {
        export(made.small.as_ref().context("--export: not of this kind")?, &output, folder.path())?;
        folder.publish()?;
    }
    say!("{}", dir(folder(config.base.backbone)).display())?;
    Ok(())
}

/// An exported model to begin with: its tokenizers and, with a stage, its weights into that one.
#[derive(Debug, Clone, Copy)]
struct Begin<'a> {
    exported: &'a Path,
    stage: Option<u64>,
}

/// The first line of a saved configuration: what has it may be written over.
const SAVED: &str = "# The whole configuration of this pretraining, as hermesflow resolved it.\n";

fn save_config(config: &PretrainConfig, path: &Path) -> anyhow::Result<()> {
    let is_ours = || Ok::<_, anyhow::Error>(std::fs::read_to_string(path)?.starts_with(SAVED));
    ensure!(
        !path.exists() || is_ours().with_context(|| path.display().to_string())?,
        "{}: would be overwritten, and is not the configuration of an earlier pretraining; choose another `output`, or \
         move it away",
        path.display()
    );
    files::write_atomically(path, (SAVED.to_owned() + &serde_yaml_ng::to_string(config)?).as_bytes())
}

/// Refuses what a stage has left under other settings, and notes those of the first time. With an exported model to begin
/// with, its files stand for the settings.
fn ensure_same_settings(
    config: &PretrainConfig,
    (name, what): (&str, &str),
    results: Vec<PathBuf>,
    settings: Value,
    files: Vec<(&str, PathBuf)>,
) -> anyhow::Result<()> {
    let note = config.output.join(".settings").join(format!("{name}.json"));
    let digests = files.into_iter().map(|(what, path)| Ok((what.to_owned(), digest::of_model(&path)?)));
    let digests: Vec<_> = digests.collect::<anyhow::Result<_>>()?;
    let results = Results { what, note, files: results, elsewhere: "another `output`" };
    results.ensure_same_settings(&Origin::of(settings).with(digests))
}

/// What a training has left in a stage's folder: the weights, and checkpoints on the way to them.
fn results(folder: &Path, trainings: &[String]) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = vec![folder.join(WEIGHTS)];
    for training in trainings {
        found.extend(checkpoint::list(&folder.join(training))?.into_iter().map(|(_, path)| path));
    }
    Ok(found)
}

const WEIGHTS: &str = "pytorch_model.safetensors";

fn tokenizer_stage(config: &PretrainConfig, begin: Option<Begin<'_>>) -> anyhow::Result<()> {
    let tokenizer = config.output.join("tokenizer.json");
    let exported = begin.map(|begin| begin.exported.join("tokenizer.json"));
    let settings = match exported {
        Some(_) => json!({}),
        None => json!({ "seed": config.seed, "tokenizer": config.tokenizer }),
    };
    let files = exported.iter().map(|path| ("the tokenizer to begin with", path.clone())).collect();
    ensure_same_settings(
        config,
        ("tokenizer", "the files of the text tokenizer"),
        vec![tokenizer.clone()],
        settings,
        files,
    )?;
    if tokenizer.is_file() {
        return Ok(());
    }
    let text = match exported {
        Some(path) => std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?,
        None => {
            let corpus = hermesflow_scenes::corpus(config.tokenizer.lines, derive_seed(config.seed, &[0]));
            train_tokenizer(&corpus, config.tokenizer.vocab_size)?.0.into_bytes()
        }
    };
    files::write_atomically(&tokenizer, &text)
}

fn vq_stage(
    config: &PretrainConfig,
    begin: Option<Begin<'_>>,
    stop_after: Option<usize>,
) -> anyhow::Result<Option<Magvit>> {
    let (device, folder, settings) = (Device::Cpu, &config.output.join("vq"), &config.vq);
    let exported = begin.map(|begin| begin.exported.join("vq"));
    let decisive = if exported.is_some() { json!({}) } else { json!({ "seed": config.seed, "vq": settings }) };
    let files = exported.iter().map(|path| ("the image tokenizer to begin with", path.clone())).collect();
    ensure_same_settings(
        config,
        ("vq", "the files of the image tokenizer"),
        results(folder, &["training".into()])?,
        decisive,
        files,
    )?;
    if folder.join(WEIGHTS).is_file() {
        return Ok(Some(load_magvit(folder, &device)?));
    }
    if let Some(exported) = exported {
        for file in ["config.json", WEIGHTS] {
            let from = exported.join(file);
            let bytes = std::fs::read(&from).with_context(|| format!("cannot read {}", from.display()))?;
            files::write_atomically(&folder.join(file), &bytes)?;
        }
        return Ok(Some(load_magvit(folder, &device)?));
    }
    settings.model.validate(folder)?;
    let weights = random_magvit(&settings.model, derive_seed(config.seed, &[1]), &device)?.trainable()?;
    let objective = VqPretraining {
        vq: Magvit::new(&weights, &settings.model)?,
        parameters: weights.variables(),
        weights: VqLossWeights {
            commitment: settings.commitment,
            entropy: settings.entropy,
            salience: settings.salience,
        },
        harden_steps: settings.harden_steps,
        batch_size: settings.batch_size,
        seed: derive_seed(config.seed, &[2]),
    };
    let trainer = settings.trainer(config.checkpoint_every);
    if !train("image tokenizer", objective, trainer, &folder.join("training"), stop_after)? {
        return Ok(None);
    }
    write_json(&folder.join("config.json"), &settings.model)?;
    weights.save(&folder.join(WEIGHTS), DType::F32)?;
    Ok(Some(load_magvit(folder, &device)?))
}

fn base_stage(
    config: &PretrainConfig,
    vq: Magvit,
    begin: Option<Begin<'_>>,
    stop_after: Option<usize>,
) -> anyhow::Result<Option<Made>> {
    let settings = &config.base;
    let name = folder(settings.backbone);
    let (folder, tokenizer_file) = (config.output.join(name), &config.output.join("tokenizer.json"));
    let training =
        |number: usize| if number == 0 { "training".into() } else { format!("training_stage{}", number + 1) };
    let trainings: Vec<String> = (0..settings.stages.len()).map(training).collect();
    let weights_of = begin.and_then(|begin| Some((begin.exported.join(name), begin.stage? as usize - 1)));
    let first = weights_of.as_ref().map_or(0, |(_, stage)| *stage);
    let decisive = json!({ "seed": config.seed, "base": settings, "first_stage": first + 1 });
    let mut files =
        vec![("the text tokenizer", tokenizer_file.clone()), ("the image tokenizer", config.output.join("vq"))];
    files.extend(weights_of.iter().map(|(folder, _)| ("the model to begin with", folder.clone())));
    ensure_same_settings(
        config,
        (name, "the files of the base model"),
        results(&folder, &trainings)?,
        decisive,
        files,
    )?;
    let text = std::fs::read(tokenizer_file).with_context(|| format!("cannot read {}", tokenizer_file.display()))?;
    let made = new(New {
        sizes: settings,
        tokenizer: (&text, tokenizer_file),
        words: text_vocabulary(&text).with_context(|| tokenizer_file.display().to_string())?,
        vq: (vq, &config.output.join("vq")),
        weights: (weights_of.as_ref().map(|(folder, _)| folder.as_path()), derive_seed(config.seed, &[3])),
    })?;
    let trained = made.model.for_training(settings.products.into())?;
    for (number, stage) in settings.stages.iter().enumerate().skip(first) {
        // A stage that is finished gives its weights at once: they are its last checkpoint.
        let (seed, name) = match number {
            0 => (derive_seed(config.seed, &[4]), "base model".to_owned()),
            _ => (derive_seed(config.seed, &[4, number as u64 + 1]), format!("base model, stage {}", number + 1)),
        };
        let objective = BasePretraining {
            model: trained.clone(),
            mix: stage.mix.clone(),
            masking: Masking::default(),
            caption_question: settings.caption_question.clone(),
            seed,
        };
        let trainer = stage.trainer(config.checkpoint_every);
        if !train(&name, objective, trainer, &folder.join(&trainings[number]), stop_after)? {
            return Ok(None);
        }
    }
    made.model.save_trained(&folder)?;
    Ok(Some(made))
}

/// The model, its image tokenizer and its text tokenizer in one folder, weights in f16.
fn export(model: &Small, output: &Path, folder: &Path) -> anyhow::Result<()> {
    model.save(&folder.join(crate::models::embedded::folder(BackboneName::Auto)), DType::F16)?;
    write_json(&folder.join("vq/config.json"), model.vq().config())?;
    let weights = Weights::load(&output.join("vq"), DType::F32, &Device::Cpu)?;
    weights.save(&folder.join("vq").join(WEIGHTS), DType::F16)?;
    let tokenizer = output.join("tokenizer.json");
    let bytes = std::fs::read(&tokenizer).with_context(|| tokenizer.display().to_string())?;
    files::write_atomically(&folder.join("tokenizer.json"), &bytes)
}

/// Text tokens of a `tokenizer.json`: its vocabulary with its own added tokens.
fn text_vocabulary(tokenizer: &[u8]) -> anyhow::Result<usize> {
    let json: serde_json::Value = serde_json::from_slice(tokenizer)?;
    let ids = json["model"]["vocab"].as_object().context("has no model.vocab")?.values().filter_map(|id| id.as_u64());
    let added = json["added_tokens"].as_array().into_iter().flatten().filter_map(|token| token["id"].as_u64());
    Ok(ids.chain(added).max().context("has an empty vocabulary")? as usize + 1)
}

fn train<O: Objective>(
    what: &str,
    objective: O,
    settings: TrainerSettings,
    folder: &Path,
    stop_after: Option<usize>,
) -> anyhow::Result<bool> {
    let mut trainer = Trainer::new(objective, settings.clone(), folder)?;
    let progress = Progress::stderr();
    for (checkpoint, why) in trainer.passed_over() {
        progress.log(format!("WARNING: {} cannot be read and is skipped: {why}", checkpoint.display()));
    }
    let task = progress.task(what, "steps", settings.schedule.steps, trainer.steps());
    let mut made = 0;
    let outcome = trainer.run(|report: &StepReport| {
        made += 1;
        task.advance(1);
        task.message(format!("loss {:.4}", report.record.loss));
        if stop_after.is_some_and(|limit| made >= limit) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    Ok(outcome == Outcome::Finished)
}
