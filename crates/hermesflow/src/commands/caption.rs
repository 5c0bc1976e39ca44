//! `hermesflow caption`: the model captions every image of the data root.

use anyhow::{Result, bail};
use hermesflow_models::{ImageView, ReplyRequest, UnifiedModel};
use hermesflow_records::{CaptionRecord, InitialRecord};
use serde_json::json;

use super::StageArgs;
use super::scenes;
use crate::cache::codes::{Opened, Reader};
use crate::config::RunConfig;
use crate::digest::digest;
use crate::models;
use crate::progress::Progress;
use crate::run::layout::RunLayout;
use crate::run::pictures::{Pictures, Skipped};
use crate::run::stage::{self, Stage};

/// Caption every image: ten candidates each, from careful to wild
///
/// Asks the model `caption.question` about every image of initial_data.json and samples one reply under each of
/// `caption.candidates` (greedy, then top-k 2, 3, 4 at temperatures 0.1, 0.7, 2.0). The best and the worst of them,
/// by similarity to the true caption, become the understanding half of a pair. Writes
/// understanding_caption_results.json. Kill it anywhere: it continues where it was. A picture that is missing or broken
/// is named and skipped; mend it and run the command again, and its captions are made too.
///
/// Example: hermesflow caption scenes caption.max_new_tokens=20
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    stage: StageArgs,
}

/// Runs the command.
pub fn run(args: Args) -> Result<()> {
    let (config, layout, progress, _lock) = args.stage.open("caption")?;
    let model = models::player(&config, &layout, &progress)?;
    caption(&model, &config, &layout, &progress)?;
    say!("{}", layout.captions().display())?;
    Ok(())
}

/// Makes the captions of every record of an iteration, in the records' order.
///
/// # Errors
/// Names the record and the file that stand in the way; captions already written are kept.
pub fn caption(
    model: &(impl UnifiedModel + Sync),
    config: &RunConfig,
    layout: &RunLayout,
    progress: &Progress,
) -> Result<()> {
    let records = scenes::initial_data(config, layout, progress)?;
    let origin = stage::origin(config, json!({ "caption": config.caption }));
    let origin = origin.with(models::player_files(config, layout, progress)?);
    stage::settle(layout, "caption", stage::store_files(&layout.captions()), &origin)?;
    let reader = Reader::new(model, &config.model, layout, progress)?;
    let (file, ledger) = (layout.captions(), layout.ledger("caption"));
    let stage = Stage { name: "caption", unit: "images", file, ledger, chunk: config.data.chunk };
    let pictures = Pictures::new(layout, model.resolution());
    let made_from = |record: &InitialRecord| {
        let picture = pictures.digest(record.img_path.as_ref())?;
        Some(digest([&picture, &record.img_path, &record.prompt, &record.caption]))
    };
    let mut skipped = Skipped::new("caption", progress);
    let open = |chunk: &[InitialRecord]| -> Vec<Result<Opened>> {
        chunk.iter().map(|record| reader.open(record.img_path.as_ref())).collect()
    };
    let captions = stage.run(&records, progress, made_from, open, |chunk, opened, has| {
        let (mut readable, mut pictures) = (Vec::new(), Vec::new());
        for (record, opened) in chunk.iter().zip(opened) {
            match opened {
                Ok(picture) => {
                    readable.push(record);
                    pictures.push(picture);
                }
                Err(_) if has(&record.id) => {} // it was there once
                Err(error) => skipped.add(&record.id, &error),
            }
        }
        // A chunk lacks either what a kill cut off or unreadable pictures alone, which are no work.
        if readable.iter().all(|record| has(&record.id)) {
            return Ok(vec![]);
        }
        caption_chunk(model, config, layout, &readable, &reader.views(pictures)?)
    })?;
    if let Some(first) = skipped.finish(records.len()).filter(|_| captions == 0) {
        let _ = std::fs::remove_file(layout.captions()); // no captions are no result
        bail!("no picture could be read: {first}; relative paths begin at data.root, {}", layout.data().display());
    }
    Ok(())
}

fn caption_chunk(
    model: &impl UnifiedModel,
    config: &RunConfig,
    layout: &RunLayout,
    chunk: &[&InitialRecord],
    views: &[ImageView],
) -> Result<Vec<CaptionRecord>> {
    let requests: Vec<Vec<ReplyRequest>> = chunk
        .iter()
        .map(|record| {
            let request = |(number, sampling): (usize, &crate::config::SamplingSettings)| ReplyRequest {
                question: config.caption.question.clone(),
                sampling: (*sampling).into(),
                seed: stage::candidate_seed(config, layout, "caption", &record.id, number),
                max_new_tokens: config.caption.max_new_tokens,
            };
            config.caption.candidates.iter().enumerate().map(request).collect()
        })
        .collect();
    let asked: Vec<(&ImageView, &[ReplyRequest])> = views.iter().zip(requests.iter().map(Vec::as_slice)).collect();
    let replies = model.reply_many(&asked)?;
    let results = chunk.iter().zip(replies).map(|(record, replies)| CaptionRecord {
        id: record.id.clone(),
        img_path: record.img_path.clone(),
        prompt: record.prompt.clone(),
        caption: record.caption.clone(),
        caption_mmu: replies.iter().map(|reply| reply.text.trim().to_owned()).collect(),
    });
    Ok(results.collect())
}
