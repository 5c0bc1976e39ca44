//! `hermesflow pretrain`: makes the small Show-o of the scenes world from nothing.
//!
//! Three stages, each of which is skipped when its result exists and continues from its newest
//! checkpoint when it was killed: the text tokenizer, the image tokenizer, the base model. All of it
//! follows from one YAML file and its seed.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use hermesflow_models::showo::config::ADDED_TOKENS;
use hermesflow_models::showo::pretrain::{VqLossWeights, random_magvit, random_showo, train_tokenizer};
use hermesflow_models::showo::{
    Magvit, MagvitConfig, PhiConfig, Showo, ShowoConfig, ShowoTokenizer, load_magvit, write_json,
};
use hermesflow_models::{DType, Device, Weights};
use hermesflow_records::derive_seed;
use hermesflow_train::{
    AdamWSettings, Masking, Objective, Outcome, Schedule, ScheduleKind, StepReport, Trainer, TrainerSettings,
};
use serde::{Deserialize, Serialize};

use crate::objectives::{BasePretraining, PretrainingMix, VqPretraining};
use crate::progress::Progress;
use crate::{files, overrides};

/// Train the image tokenizer and the base model of the scenes world from nothing.
///
/// Everything follows from one YAML file and its seed; kill it at any time and the same command
/// continues where it was.
///
/// Example: hermesflow pretrain configs/pretrain-scenes.yaml base.steps=500 output=runs/short
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The YAML file (see configs/pretrain-scenes.yaml).
    config: PathBuf,
    /// `key=value` overrides, e.g. `base.steps=500`.
    overrides: Vec<String>,
    /// Overrides the file's seed.
    #[arg(long)]
    seed: Option<u64>,
    /// Write the finished model here too, in 16 bits: this is how assets/scenes is made.
    #[arg(long, value_name = "DIR")]
    export: Option<PathBuf>,
    /// Begin with a model that `--export` wrote: its tokenizers as they are, its weights into `--stage`.
    #[arg(long, value_name = "DIR", requires = "stage")]
    from: Option<PathBuf>,
    /// With `--from`: the first stage of `base.stages` to train, counted from 1.
    #[arg(long, value_name = "N", requires = "from", value_parser = clap::value_parser!(u64).range(1..))]
    stage: Option<u64>,
    /// Stop after this many more steps of each stage (a checkpoint is not written for that).
    #[arg(long, hide = true)]
    stop_after: Option<usize>,
}

/// The numbers of a pretraining.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PretrainConfig {
    seed: u64,
    output: PathBuf,
    tokenizer: TokenizerSettings,
    vq: VqSettings,
    base: BaseSettings,
    checkpoint_every: usize,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenizerSettings {
    vocab_size: usize,
    lines: usize,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct VqSettings {
    model: MagvitConfig,
    commitment: f64,
    entropy: f64,
    salience: f64,
    harden_steps: usize,
    batch_size: usize,
    steps: usize,
    learning_rate: f64,
    warmup_steps: usize,
    weight_decay: f64,
    max_grad_norm: f64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct BaseSettings {
    model: PhiConfig,
    max_text_len: usize,
    caption_question: String,
    stages: Vec<StageSettings>,
}

/// One stage of the base model's training: it begins with the weights of the stage before and a fresh optimizer.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StageSettings {
    mix: PretrainingMix,
    steps: usize,
    learning_rate: f64,
    warmup_steps: usize,
    weight_decay: f64,
    max_grad_norm: f64,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    let yaml = files::text(&args.config).context("cannot read the configuration")?;
    let mut config: PretrainConfig =
        overrides::parse(&yaml, &args.overrides).with_context(|| args.config.display().to_string())?;
    config.seed = args.seed.unwrap_or(config.seed);
    let output = config.output.clone();
    let dir = |name: &str| output.join(name);
    std::fs::create_dir_all(&output).with_context(|| format!("cannot make {}", output.display()))?;
    write(&dir("config.yaml"), serde_yaml_ng::to_string(&config)?.as_bytes())?;

    let begin = args.from.as_deref().zip(args.stage);
    if let Some((exported, stage)) = begin {
        let stages = config.base.stages.len();
        ensure!(stage as usize <= stages, "--stage {stage}: base.stages of {} has {stages}", args.config.display());
        for file in ["tokenizer.json", "vq/config.json", "vq/pytorch_model.safetensors"] {
            copy_if_absent(&exported.join(file), &dir(file))?;
        }
    }
    let tokenizer = dir("tokenizer.json");
    if !tokenizer.is_file() {
        let corpus = hermesflow_scenes::corpus(config.tokenizer.lines, derive_seed(config.seed, &[0]));
        let (text, _) = train_tokenizer(&corpus, config.tokenizer.vocab_size)?;
        write(&tokenizer, text.as_bytes())?;
    }
    let Some(vq) = vq_stage(&config, &dir("vq"), args.stop_after)? else { return Ok(()) };
    let Some(model) = base_stage(&config, vq, &tokenizer, begin, args.stop_after)? else { return Ok(()) };
    if let Some(folder) = &args.export {
        export(&model, &output, folder)?;
    }
    say!("{}", dir("showo").display())?;
    Ok(())
}

fn vq_stage(config: &PretrainConfig, folder: &Path, stop_after: Option<usize>) -> anyhow::Result<Option<Magvit>> {
    let device = Device::Cpu;
    if folder.join("pytorch_model.safetensors").is_file() {
        return Ok(Some(load_magvit(folder, &device)?));
    }
    let settings = &config.vq;
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
    let numbers = (settings.steps, settings.learning_rate, settings.warmup_steps, settings.weight_decay);
    let trainer = trainer_settings(numbers, settings.max_grad_norm, config.checkpoint_every);
    if !train("image tokenizer", objective, trainer, &folder.join("training"), stop_after)? {
        return Ok(None);
    }
    write_json(&folder.join("config.json"), &settings.model)?;
    weights.save(&folder.join("pytorch_model.safetensors"), DType::F32)?;
    Ok(Some(load_magvit(folder, &device)?))
}

fn base_stage(
    config: &PretrainConfig,
    vq: Magvit,
    tokenizer_file: &Path,
    begin: Option<(&Path, u64)>,
    stop_after: Option<usize>,
) -> anyhow::Result<Option<Showo>> {
    let device = Device::Cpu;
    let settings = &config.base;
    let folder = config.output.join("showo");
    let text = std::fs::read(tokenizer_file).with_context(|| format!("cannot read {}", tokenizer_file.display()))?;
    let mut showo = ShowoConfig {
        class_name: "Showo".into(),
        vocab_size: 0,
        llm_vocab_size: text_vocabulary(&text).with_context(|| tokenizer_file.display().to_string())?,
        codebook_size: 1 << vq.config().z_channels,
        num_vq_tokens: (vq.config().resolution / vq.config().downsampling()).pow(2),
        mask_token_id: None,
        w_clip_vit: false,
        llm_model_path: "phi".into(),
        max_text_len: settings.max_text_len,
    };
    showo.vocab_size = showo.llm_vocab_size + ADDED_TOKENS.len() + showo.codebook_size + 1;
    showo.mask_token_id = Some(showo.vocab_size as u32 - 1);
    let tokenizer = ShowoTokenizer::from_bytes(&text, &showo, tokenizer_file)?;
    let weights = match begin {
        Some((exported, _)) => Weights::load(&exported.join("showo"), DType::F32, &device)?,
        None => random_showo(&showo, &settings.model, derive_seed(config.seed, &[3]), &device)?,
    };
    let model = Showo::new(showo, settings.model.clone(), weights.trainable()?, tokenizer, vq)?;
    let first = begin.map_or(0, |(_, stage)| stage as usize - 1);
    for (number, stage) in settings.stages.iter().enumerate().skip(first) {
        // A stage that is finished gives its weights at once: they are its last checkpoint.
        let (seed, training, name) = match number {
            0 => (derive_seed(config.seed, &[4]), "training".to_owned(), "base model".to_owned()),
            _ => {
                let number = number + 1;
                let seed = derive_seed(config.seed, &[4, number as u64]);
                (seed, format!("training_stage{number}"), format!("base model, stage {number}"))
            }
        };
        let objective = BasePretraining {
            model: model.clone(),
            mix: stage.mix.clone(),
            masking: Masking::default(),
            caption_question: settings.caption_question.clone(),
            seed,
        };
        let numbers = (stage.steps, stage.learning_rate, stage.warmup_steps, stage.weight_decay);
        let trainer = trainer_settings(numbers, stage.max_grad_norm, config.checkpoint_every);
        if !train(&name, objective, trainer, &folder.join(training), stop_after)? {
            return Ok(None);
        }
    }
    model.save(&folder, DType::F32)?;
    Ok(Some(model))
}

/// The model, its image tokenizer and its text tokenizer in one folder, weights in f16.
fn export(model: &Showo, output: &Path, folder: &Path) -> anyhow::Result<()> {
    model.save(&folder.join("showo"), DType::F16)?;
    write_json(&folder.join("vq/config.json"), model.vq().config())?;
    let weights = Weights::load(&output.join("vq"), DType::F32, &Device::Cpu)?;
    weights.save(&folder.join("vq/pytorch_model.safetensors"), DType::F16)?;
    let tokenizer = output.join("tokenizer.json");
    let bytes = std::fs::read(&tokenizer).with_context(|| tokenizer.display().to_string())?;
    write(&folder.join("tokenizer.json"), &bytes)
}

fn copy_if_absent(from: &Path, to: &Path) -> anyhow::Result<()> {
    if to.is_file() {
        return Ok(());
    }
    let bytes = std::fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
    crate::files::write_atomically(to, &bytes).with_context(|| format!("cannot write {}", to.display()))
}

fn write(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    std::fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}

/// Text tokens of a `tokenizer.json`: its vocabulary with its own added tokens.
fn text_vocabulary(tokenizer: &[u8]) -> anyhow::Result<usize> {
    let json: serde_json::Value = serde_json::from_slice(tokenizer)?;
    let ids = json["model"]["vocab"].as_object().context("has no model.vocab")?.values().filter_map(|id| id.as_u64());
    let added = json["added_tokens"].as_array().into_iter().flatten().filter_map(|token| token["id"].as_u64());
    Ok(ids.chain(added).max().context("has an empty vocabulary")? as usize + 1)
}

fn trainer_settings(
    (steps, learning_rate, warmup_steps, weight_decay): (usize, f64, usize, f64),
    max_grad_norm: f64,
    checkpoint_every: usize,
) -> TrainerSettings {
    let kind = ScheduleKind::Cosine;
    let schedule = Schedule { kind, learning_rate, warmup_steps, total_steps: steps };
    TrainerSettings {
        optimizer: AdamWSettings { weight_decay, beta2: 0.98, ..AdamWSettings::default() },
        max_grad_norm: Some(max_grad_norm),
        watch: None,
        checkpoint_every,
        ..TrainerSettings::new(schedule)
    }
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
    let task = progress.task(what, "steps", settings.schedule.total_steps, trainer.steps());
    let mut made = 0;
    let outcome = trainer.run(|report: &StepReport| {
        made += 1;
        task.advance(1);
        task.message(format!("loss {:.4}", report.record.loss));
        if stop_after.is_some_and(|limit| made >= limit) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    Ok(outcome == Outcome::Finished)
}
