//! `hermesflow train`: Pair-DPO on the pairs of one iteration.

use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use hermesflow_models::showo::{Showo, ShowoConfig, reply_text};
use hermesflow_models::{DType, UnifiedModel};
use hermesflow_records::{PairRecord, Table, temporary};
use hermesflow_train::{Objective, Outcome, PairDpo, Sides, StepReport, Trainer, TrainingPair, checkpoint};
use rayon::prelude::*;
use serde_json::json;

use super::StageArgs;
use crate::cache::codes::{Opened, Reader};
use crate::cache::reference::ReferenceFile;
use crate::config::{ImageCodes, ObjectiveName, Reference, RunConfig};
use crate::digest::{self, digest};
use crate::files;
use crate::made::Place;
use crate::models;
use crate::models::memory_plan;
use crate::progress::{Progress, Task};
use crate::run::layout::RunLayout;
use crate::run::pictures::Pictures;
use crate::run::stage;
use crate::run::texts::Cut;
use crate::world::pretraining::BasePretraining;

/// Train on the pairs: the best against the worst, captions and images
///
/// Reads pair_dpo_data.json, encodes those of its images whose codes are not known yet, and minimises the Pair-DPO loss
/// against the frozen model that the iteration began with. The training folder holds config.yaml (every number,
/// resolved), metrics.jsonl (a line per step with TRL's names under und/ and gen/), reference.jsonl (what the reference
/// says of the captions), checkpoint-{step}/ and, at the end, model/ in the published layout. A killed run continues
/// from its newest checkpoint, bit for bit.
///
/// Example: hermesflow train scenes train.steps=100 train.anchor_gen=0
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    stage: StageArgs,
}

/// Runs the command.
pub fn run(args: Args) -> Result<()> {
    let (config, layout, progress, _lock) = args.stage.open("train")?;
    let player = models::player(&config, &layout, &progress)?;
    can_train(player.config(), &config)?;
    let reference = models::reference(&player, &config, &layout, &progress)?;
    train(&player, &reference, &config, &layout, &progress)?;
    say!("{}", layout.model().display())?;
    Ok(())
}

/// Whether the configuration's training can be done on this model.
///
/// # Errors
/// Names the key to change.
pub fn can_train(model: &ShowoConfig, config: &RunConfig) -> Result<()> {
    let images_only = config.train.objective != ObjectiveName::ContinuePretraining && config.train.sides == Sides::Gen;
    ensure!(
        images_only || !model.w_clip_vit,
        "train.sides: the captions of {} are about CLIP features (w_clip_vit), and only its images can be trained; \
         set train.sides=gen (with train.objective=pair_dpo or sft_wins)",
        config.model.showo
    );
    Ok(())
}

/// Trains `player` against `reference` on the iteration's pairs; the trained model, which is also saved.
///
/// # Errors
/// Names the record, file or setting that stands in the way.
pub fn train(
    player: &Showo,
    reference: &Showo,
    config: &RunConfig,
    layout: &RunLayout,
    progress: &Progress,
) -> Result<Showo> {
    let config = &memory_plan::chosen(config, player)?;
    if config.train.objective == ObjectiveName::ContinuePretraining {
        return continue_pretraining(player, config, layout, progress);
    }
    let pairs = files::pairs(&layout.pairs())?;
    ensure!(!pairs.is_empty(), "{}: no pair to train on; {}", layout.pairs().display(), more_pairs(layout.iteration()));
    let files = [
        ("the pairs".to_owned(), digest::of_file(&layout.pairs())?),
        ("the pairs' pictures".to_owned(), pictures(&pairs, config, layout)?),
    ];
    if let Some(model) = begin(player, config, layout, files, progress)? {
        return Ok(model);
    }
    let pairs = encode(player, &pairs, config, layout, progress)?;
    let task = progress.task("reference", "pairs", pairs.len(), 0);
    let mut seen = 0;
    let settings = config.train.pair_dpo(stage::seed(config, layout, "train", &[]));
    let products = config.train.products.into();
    let policy = player.trainable()?.training(products)?.recompute(config.train.checkpoints());
    let reference = reference.frozen()?.training(products)?;
    let mut memory = ReferenceFile::open(layout.reference(), &reference)?;
    let objective = PairDpo::remembering(policy, reference, pairs, settings, &mut memory, |done, _| {
        task.advance(done - std::mem::replace(&mut seen, done));
    })?;
    drop(task);
    memory.finish()?;
    let trained = fit(objective, config, layout, progress)?.into_models().0.frozen()?;
    hand_over(trained, player, layout)
}

/// What gives pairs where there are none, and is not refused then.
fn more_pairs(iteration: usize) -> String {
    let more = "more images or captions per record";
    match iteration {
        1 => format!(
            "a lower pair.min_accuracy or more records give some, and so do, with another data.root, {more} \
             (imagine.images, caption.candidates)"
        ),
        _ => format!(
            "more records, {more} or a lower pair.min_accuracy give some, with another `output` and data.root; \
             iterations={} ends the run with what it has",
            iteration - 1
        ),
    }
}

/// The control without pairs: the embedded world's pretraining goes on for as many steps.
fn continue_pretraining(player: &Showo, config: &RunConfig, layout: &RunLayout, progress: &Progress) -> Result<Showo> {
    if let Some(model) = begin(player, config, layout, [], progress)? {
        return Ok(model);
    }
    let objective = BasePretraining {
        model: player.trainable()?,
        mix: config.train.pretraining.clone(),
        masking: config.train.masking(),
        caption_question: config.caption.question.clone(),
        seed: stage::seed(config, layout, "train", &[]),
    };
    let trained = fit(objective, config, layout, progress)?.model.frozen()?;
    hand_over(trained, player, layout)
}

/// Settings that leave the model of a step as it is.
pub const BESIDE: [&str; 5] = ["checkpoint_every", "keep", "checkpointing", "optimizer_state", "watch"];

/// What a training has left: its model and its checkpoints.
fn results(layout: &RunLayout) -> Result<Vec<PathBuf>> {
    let checkpoints = checkpoint::list(&layout.training())?.into_iter().map(|(_, path)| path);
    Ok(std::iter::once(layout.model()).chain(checkpoints).collect())
}

/// Whether an iteration's training has left anything.
pub fn has_begun(layout: &RunLayout) -> bool {
    results(layout).is_ok_and(|results| results.iter().any(|path| path.exists()))
}

/// Notes what decides a training, in its folder; the model that is there already, if it is.
///
/// # Errors
/// When what is there was made from something else; names what differs.
fn begin(
    player: &Showo,
    config: &RunConfig,
    layout: &RunLayout,
    inputs: impl IntoIterator<Item = (String, String)>,
    progress: &Progress,
) -> Result<Option<Showo>> {
    let mut settings = json!({ "train": config.train, "caption": { "question": config.caption.question } });
    if let Some(train) = settings["train"].as_object_mut() {
        train.retain(|key, _| !BESIDE.contains(&key.as_str()));
    }
    let mut origin = stage::origin(config, settings).with(models::player_files(config, layout, progress)?).with(inputs);
    if config.train.reference == Reference::Run {
        let first = models::player_files(config, &RunLayout::new(config, 1), progress)?;
        origin = origin.with(first.into_iter().map(|(what, digest)| (format!("{what} of the reference"), digest)));
    }
    let what = format!("the checkpoints and the model of iteration {}", layout.iteration());
    let note = layout.training_origin();
    // Whatever lies in a folder that is not a training's is somebody's.
    let results = if note.exists() { results(layout)? } else { vec![layout.training()] };
    Place { what: &what, note, results, elsewhere: "another `output`" }.settle(&origin)?;
    if layout.model().join("pytorch_model.safetensors").is_file() {
        progress.log(format!("train: {} is there already", layout.model().display()));
        return models::trained(player, layout).map(Some);
    }
    files::write_atomically(&layout.training().join("config.yaml"), config.to_yaml()?.as_bytes())?;
    Ok(None)
}

/// What the files of all pictures hold that training reads, and the codes beside them where these are wanted.
fn pictures(pairs: &Table<PairRecord>, config: &RunConfig, layout: &RunLayout) -> Result<String> {
    let pictures = Pictures::new(layout, 1);
    let content = |pair: &PairRecord| -> Result<String> {
        let named = || format!("record {}", pair.id);
        let own = Some(&pair.img_path).filter(|_| config.train.sides != Sides::Gen);
        let imagined = [&pair.image_win, &pair.image_lose].into_iter().filter(|_| config.train.sides != Sides::Und);
        let mut held = Vec::new();
        for path in own.into_iter().chain(imagined) {
            held.push(digest::of_file(&pictures.find(path.as_ref()).with_context(named)?)?);
            if config.train.codes == ImageCodes::Drawn {
                held.push(format!("{:?}", pictures.codes(path.as_ref()).with_context(named)?));
            }
        }
        Ok(digest(held))
    };
    let mut all = Vec::with_capacity(pairs.len());
    for chunk in pairs.chunks(TOGETHER) {
        all.extend(pairs.read(chunk)?.par_iter().map(content).collect::<Result<Vec<_>>>()?);
    }
    Ok(digest(all))
}

/// Pairs whose pictures are looked at side by side.
const TOGETHER: usize = 256;

/// Makes all steps of an objective in the iteration's training folder.
///
/// # Errors
/// When a step fails, or the likelihood watch stopped the run: then no model is saved, and there is no next iteration.
pub fn fit<O: Objective>(objective: O, config: &RunConfig, layout: &RunLayout, progress: &Progress) -> Result<O> {
    let folder = layout.training();
    let mut trainer = Trainer::new(objective, config.train.trainer(), &folder)?;
    for (checkpoint, why) in trainer.passed_over() {
        progress.log(format!("WARNING: train: {} cannot be read and is passed over: {why}", checkpoint.display()));
    }
    if let Some(checkpoint) = trainer.resumed_from() {
        progress.log(format!("train: continues from {}", checkpoint.display()));
    }
    let task = progress.task("train", "steps", config.train.steps, trainer.steps());
    let outcome = trainer.run(|report| {
        show(report, &task, progress);
        ControlFlow::Continue(())
    })?;
    drop(task);
    if let Outcome::LikelihoodFell { step } = outcome {
        bail!(
            "train: stopped after step {step} because the winning likelihood kept falling (train.watch.stop); the model \
             of that step is {}; train.watch.stop=false goes on from there, and an anchor (train.anchor_und, \
             train.anchor_gen) or a lower train.learning_rate, with another `output`, may keep it from falling",
            folder.join(format!("checkpoint-{step}")).display()
        );
    }
    Ok(trainer.into_objective())
}

fn show(report: &StepReport, task: &Task, progress: &Progress) {
    let metrics = &report.record.metrics;
    let mut message = format!("loss {:.4}", report.record.loss);
    for side in ["und", "gen"] {
        if let Some(accuracy) = metrics.get(&format!("{side}/rewards/accuracies")) {
            message.push_str(&format!("  {side} accuracy {accuracy:.2}"));
        }
    }
    task.message(message);
    task.advance(1);
    for fall in &report.falls {
        progress.log(format!("WARNING: {fall}"));
    }
}

/// Pairs ready for training.
fn encode(
    model: &Showo,
    pairs: &Table<PairRecord>,
    config: &RunConfig,
    layout: &RunLayout,
    progress: &Progress,
) -> Result<Vec<TrainingPair>> {
    let source = Source {
        sides: config.train.sides,
        codes: config.train.codes,
        pictures: Pictures::new(layout, model.resolution()),
        reader: Reader::new(model, &config.model, layout, progress)?,
        model,
    };
    let task = progress.task("encode", "pairs", pairs.len(), 0);
    let mut cut = Cut::new("train", progress);
    let mut encoded = Vec::with_capacity(pairs.len());
    let open = |pair: &PairRecord| source.open(pair).with_context(|| format!("record {}", pair.id));
    let open = |chunk: Range<usize>| -> Result<(Vec<PairRecord>, Vec<Opened>)> {
        let pairs = pairs.read(chunk)?;
        let opened = pairs.iter().map(open).collect::<Result<Vec<_>>>()?;
        Ok((pairs, opened.into_iter().flatten().collect()))
    };
    stage::ahead(pairs.chunks(config.data.chunk).collect(), open, |opened| {
        let (chunk, opened) = opened?;
        let codes = source.reader.codes(opened)?;
        let (codes, _) = codes.as_chunks::<3>();
        for (pair, [image, image_win, image_lose]) in chunk.iter().zip(codes.iter().cloned()) {
            source.check_texts(pair, &config.caption.question).with_context(|| format!("record {}", pair.id))?;
            if config.train.sides != Sides::Und {
                cut.look(model, &pair.id, &pair.caption)?;
            }
            encoded.push(TrainingPair {
                id: pair.id.to_string(),
                image,
                question: config.caption.question.clone(),
                caption: pair.caption.clone(),
                caption_win: reply_text(&pair.caption_win),
                caption_lose: reply_text(&pair.caption_lose),
                image_win,
                image_lose,
            });
        }
        task.advance(chunk.len());
        Ok(())
    })?;
    cut.finish(pairs.len());
    Ok(encoded)
}

/// Where the codes of pairs come from.
struct Source<'a> {
    sides: Sides,
    codes: ImageCodes,
    pictures: Pictures,
    reader: Reader<'a, Showo>,
    model: &'a Showo,
}

impl Source<'_> {
    /// The pair's own image, the winning and the losing one; no codes of those that its side does not need.
    fn open(&self, pair: &PairRecord) -> Result<[Opened; 3]> {
        let nothing = || Opened::Codes(Vec::new());
        let own = match self.sides {
            Sides::Gen => nothing(),
            _ => self.reader.open_codes(pair.img_path.as_ref())?,
        };
        let (win, lose) = (pair.image_win.as_ref(), pair.image_lose.as_ref());
        if self.sides == Sides::Und {
            return Ok([own, nothing(), nothing()]);
        }
        // Either both are as they were drawn or both as they are read back: these differ in likelihood.
        if self.codes == ImageCodes::Drawn
            && let (Some(win), Some(lose)) = (self.drawn(win)?, self.drawn(lose)?)
        {
            return Ok([own, Opened::Codes(win), Opened::Codes(lose)]);
        }
        Ok([own, self.reader.open_codes(win)?, self.reader.open_codes(lose)?])
    }

    /// Whether its captions fit the model's positions.
    fn check_texts(&self, pair: &PairRecord, question: &str) -> Result<()> {
        if self.sides == Sides::Gen {
            return Ok(());
        }
        for (key, caption) in [("caption_win", &pair.caption_win), ("caption_lose", &pair.caption_lose)] {
            self.model.check_caption(question, &reply_text(caption)).context(key)?;
        }
        Ok(())
    }

    /// The codes that a picture was drawn with, where they lie beside it.
    fn drawn(&self, picture: &Path) -> Result<Option<Vec<u32>>> {
        let drawn = self.pictures.codes(picture)?;
        let (tokens, codebook) = (self.model.image_tokens(), self.model.config().codebook_size);
        let fit = |codes: &Vec<u32>| codes.len() == tokens && codes.iter().all(|code| (*code as usize) < codebook);
        ensure!(
            drawn.as_ref().is_none_or(fit),
            "the codes beside {} are another model's; imagine it again or set train.codes=encoded",
            picture.display()
        );
        Ok(drawn)
    }
}

/// Saves what was trained, and opens it again as the player's successor: in the type of `model.dtype`, as a run that was
/// killed right here and started again would have it.
fn hand_over(trained: Showo, player: &Showo, layout: &RunLayout) -> Result<Showo> {
    save(&trained, &layout.model())?;
    drop(trained);
    models::trained(player, layout)
}

/// Saves a model so that its folder is whole or absent.
fn save(model: &Showo, folder: &Path) -> Result<()> {
    let temporary = temporary(folder);
    if temporary.exists() {
        std::fs::remove_dir_all(&temporary).with_context(|| temporary.display().to_string())?;
    }
    std::fs::create_dir_all(temporary.join("phi")).with_context(|| temporary.display().to_string())?;
    model.save(&temporary, DType::F32)?;
    std::fs::rename(&temporary, folder).with_context(|| folder.display().to_string())
}

#[cfg(all(test, embedded_model))]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use image::{Rgb, RgbImage};
    use serde_json::Value;

    /// Each part of a pair is that of its record: pictures, captions, the question, the prompt.
    #[test]
    fn pairs_are_trained_as_their_records_have_them() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = RunConfig::default();
        config.data.root = folder.path().into();
        config.caption.question = "What is there?".into();
        let layout = RunLayout::new(&config, 1);
        let progress = Progress::stderr();
        let model = models::open(&config.model, &progress).unwrap();
        let picture = |seed: u32| {
            RgbImage::from_fn(64, 64, |x, y| {
                Rgb([(x * seed % 251) as u8, (y * (seed + 3) % 241) as u8, (seed * 37 % 256) as u8])
            })
        };
        let records: Vec<Value> = (0..3u32)
            .map(|record| {
                for (number, kind) in (0..).zip(["own", "win", "lose"]) {
                    picture(1 + record * 3 + number).save(folder.path().join(format!("{kind}{record}.png"))).unwrap();
                }
                json!({
                    "id": record.to_string(), "img_path": format!("own{record}.png"), "prompt": "not trained",
                    "caption": format!("the prompt {record}"), "caption_win": format!(" win {record} "),
                    "caption_lose": if record == 1 { String::new() } else { format!("lose {record}") },
                    "bert_score_win": 0.9, "bert_score_lose": 0.1, "image_win": format!("win{record}.png"),
                    "image_lose": format!("lose{record}.png"), "vqa_score_win": 1.0, "vqa_score_lose": 0.0,
                })
            })
            .collect();
        std::fs::write(layout.pairs(), Value::from(records).to_string()).unwrap();
        let pairs = files::pairs(&layout.pairs()).unwrap();
        let encoded = encode(&model, &pairs, &config, &layout, &progress).unwrap();
        assert_eq!(encoded.len(), 3);
        for (record, pair) in (0..).zip(encoded) {
            let codes = |number: u32| model.encode_images(&[picture(1 + record * 3 + number)]).unwrap().remove(0);
            let expected = TrainingPair {
                id: record.to_string(),
                image: codes(0),
                question: "What is there?".into(),
                caption: format!("the prompt {record}"),
                caption_win: format!(" win {record}"),
                caption_lose: if record == 1 { String::new() } else { format!(" lose {record}") },
                image_win: codes(1),
                image_lose: codes(2),
            };
            assert_eq!(pair, expected);
        }
    }
}
