//! `hermesflow caption`: the model captions every image of the data root.

use anyhow::{Result, bail};
use hermesflow_models::{ImageView, ReplyRequest, UnifiedModel};
use hermesflow_records::{CaptionRecord, InitialRecord};
use serde_json::json;

use super::args::stage_command;
use super::scenes;
use crate::cache::pictures::{OpenedView, PictureReader};
use crate::digest::digest;
use crate::models;
use crate::run::context::RunContext;
use crate::run::decisive;
use crate::run::pictures::{Pictures, Skipped};
use crate::run::sharing::Turn;
use crate::run::stage::{self, Stage};

stage_command! {
    /// Caption every image: ten candidates each, from careful to wild
    ///
    /// Asks the model `caption.question` about every image of initial_data.json and samples one reply under each of
    /// `caption.candidates` (greedy, then top-k 2, 3, 4 at temperatures 0.1, 0.7, 2.0). The best and the worst of them,
    /// by similarity to the true caption, become the understanding half of a pair. Writes
    /// understanding_caption_results.json. When it was interrupted, the same command continues. A picture that is missing or broken
    /// is named and skipped; replace it and run the command again: its captions are added.
    ///
    /// Example: hermesflow caption scenes caption.max_new_tokens=20
    "caption", |run| {
        caption(&models::player(run)?, run)?;
        Ok(run.layout.captions())
    }
}

/// Makes the captions of every record of an iteration, in the records' order.
///
/// # Errors
/// Names the record and the file that stand in the way; captions already written are kept.
pub fn caption(model: &(impl UnifiedModel + Sync), run: &RunContext) -> Result<()> {
    let records = scenes::initial_data(run)?;
    let origin = decisive::origin(&run.config, json!({ "caption": run.config.caption }));
    let origin = origin.with(models::player_files(run)?);
    stage::ensure_same_settings(run, "caption", stage::store_files(&run.layout.captions())?, &origin)?;
    run.sharing.enter(run.layout.iteration(), Turn::Caption);
    let reader = PictureReader::new(model, run)?;
    let (file, ledger) = (run.layout.captions(), run.layout.ledger("caption"));
    let (chunk, sharing) = (run.config.data.chunk, run.sharing.clone());
    let stage = Stage { name: "caption", unit: "images", file, ledger, chunk, sharing };
    let pictures = Pictures::new(&run.layout, model.resolution());
    let made_from = |record: &InitialRecord| {
        let picture = pictures.digest(record.img_path.as_ref())?;
        Some(digest([&picture, &record.img_path, &record.prompt, &record.caption]))
    };
    let mut skipped = Skipped::new("caption", run);
    let open = |chunk: &[InitialRecord]| -> Vec<Result<OpenedView>> {
        chunk.iter().map(|record| Ok(reader.open_own(record.img_path.as_ref())?.1)).collect()
    };
    let captions = stage.run(&records, &run.progress, made_from, open, |chunk, opened, has| {
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
        caption_chunk(model, run, &readable, &reader.views(pictures)?)
    })?;
    reader.settle()?;
    if let Some(first) = skipped.finish(records.len())?.filter(|_| captions == 0) {
        // No captions are no result.
        run.once(|run| Ok(std::fs::remove_file(run.layout.captions()).is_ok()))?;
        bail!("no picture could be read: {first}; relative paths begin at data.root, {}", run.layout.data().display());
    }
    Ok(())
}

fn caption_chunk(
    model: &impl UnifiedModel,
    run: &RunContext,
    chunk: &[&InitialRecord],
    views: &[ImageView],
) -> Result<Vec<CaptionRecord>> {
    let requests: Vec<Vec<ReplyRequest>> = chunk
        .iter()
        .map(|record| {
            let request = |(number, sampling): (usize, &crate::config::SamplingSettings)| ReplyRequest {
                question: run.config.caption.question.clone(),
                sampling: (*sampling).into(),
                seed: stage::candidate_seed(run, "caption", &record.id, number),
                max_new_tokens: run.config.caption.max_new_tokens,
            };
            run.config.caption.candidates.iter().enumerate().map(request).collect()
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
