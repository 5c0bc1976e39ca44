//! `hermesflow imagine`: the model imagines every caption of the data root.

use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use hermesflow_models::{ImageDecoding, ImagineJob, Imagined, UnifiedModel};
use hermesflow_records::InitialRecord;
use hermesflow_train::MaskStates;
use image::RgbImage;
use serde_json::json;

use super::args::stage_command;
use super::scenes;
use crate::digest::digest;
use crate::made::Ledger;
use crate::models;
use crate::run::context::RunContext;
use crate::run::decisive;
use crate::run::pictures::{has_steps, save_codes, save_png, save_steps};
use crate::run::stage;
use crate::run::texts::Cut;

stage_command! {
    /// Generate images from every caption: sixteen each
    ///
    /// Generates `imagine.images` images from every caption of initial_data.json, in the way of the model (`imagine.steps`
    /// steps of MaskGIT parallel decoding, or one code after the other), as generated_images/{id}/{k}.png. The best and the worst of them, by the model's own
    /// answers to questions about the caption, become the generation half of a pair. When it was interrupted, the same
    /// command continues; images that exist are kept.
    ///
    /// Example: hermesflow imagine scenes imagine.images=4 imagine.guidance=2
    "imagine", |run| {
        imagine(&models::player(run)?, run)?;
        Ok(run.layout.images())
    }
}

/// Images of every record of an iteration, as files.
///
/// # Errors
/// Names the record and the file that stand in the way; images already written are kept.
pub fn imagine(model: &impl UnifiedModel, run: &RunContext) -> Result<()> {
    imagine_as(model, run, |record| record.caption.clone())
}

/// Images of every record of an iteration, as files, from the text that is given for each.
///
/// # Errors
/// As [`imagine`].
pub fn imagine_as(
    model: &impl UnifiedModel,
    run: &RunContext,
    prompt: impl Fn(&InitialRecord) -> String + Sync,
) -> Result<()> {
    let records = scenes::initial_data(run)?;
    let origin = decisive::origin(&run.config, json!({ "imagine": run.config.imagine }));
    let origin = origin.with(models::player_files(run)?);
    stage::ensure_same_settings(run, "imagine", vec![run.layout.images()], &origin)?;
    let images = run.config.imagine.images;
    let made_from = |record: &InitialRecord| digest([&prompt(record)]);
    // Images of an earlier version lack the steps in which their codes were drawn.
    let in_steps = model.image_decoding() == ImageDecoding::Masked && run.config.train.masks == MaskStates::Visited;
    let is_image = |picture: &Path| picture.is_file() && (!in_steps || has_steps(picture));
    let is_there =
        |record: &InitialRecord| (0..images).all(|number| is_image(&run.layout.image(record.id.as_str(), number)));
    // Whole chunks, as in every stage: a chunk that was cut off is made again as it was.
    let chunks: Vec<Range<usize>> = records.chunks(run.config.data.chunk).collect();
    let found = run.group().once(|| -> Result<(Ledger, Vec<usize>)> {
        let mut ledger = Ledger::open(&run.layout.ledger("imagine"))?;
        let mut open = Vec::new();
        for (number, chunk) in chunks.iter().enumerate() {
            let there = records.read(chunk.clone())?;
            let is_stale = |record: &InitialRecord| !ledger.was_made_from(&record.id, &made_from(record));
            if there.iter().any(is_stale) || !there.iter().all(is_there) {
                // Whatever lies there is of no record until all of a record's images do.
                ledger.strike(there.iter().map(|record| &record.id))?;
                open.push(number);
            }
        }
        Ok((ledger, open))
    })?;
    let open = run.group().tell_numbers(found.as_ref().map(|(_, open)| &open[..]))?;
    let mut ledger = match found {
        Some((ledger, _)) => ledger,
        None => Ledger::open(&run.layout.ledger("imagine"))?,
    };
    run.group().meet()?; // no one notes before all have read
    if !run.group().is_alone() {
        ledger.append_as(run.group().rank())?;
    }
    let left: usize = open.iter().map(|number| chunks[*number].len()).sum();
    let task = run.progress.task("imagine", "images", records.len() * images, (records.len() - left) * images);
    let mut cut = Cut::new("imagine", run);
    run.group().deal(
        open.len(),
        |count| task.advance(count),
        |deal| {
            let store = |(chunk, made): (Vec<InitialRecord>, Vec<Drawn>)| {
                for image in &made {
                    // The codes first: a picture that is there has its codes.
                    let Imagined { codes, steps } = &image.made;
                    if let Some(steps) = steps {
                        save_steps(steps, codes, &image.path)?;
                    }
                    save_codes(codes, &image.path)?;
                    save_png(&image.picture, &image.path)?;
                }
                ledger.note(chunk.iter().map(|record| (&record.id, made_from(record))))?;
                deal.done(made.len());
                Ok(())
            };
            stage::write_behind(store, |hand_on| {
                while let Some(at) = deal.next()? {
                    let chunk = records.read(chunks[open[at]].clone())?;
                    chunk.iter().try_for_each(|record| cut.look(model, &record.id, &prompt(record)))?;
                    let made = imagine_chunk(model, run, &chunk, &prompt)
                        .with_context(|| format!("records {} to {}", chunk[0].id, chunk[chunk.len() - 1].id))?;
                    hand_on((chunk, made))?;
                }
                Ok(())
            })
        },
    )?;
    cut.finish(records.len(), |count| Ok(run.group().total(count)?))?;
    run.group().once(|| {
        ledger.collect()?;
        ledger.finish(&records, |_| true)
    })?;
    Ok(())
}

/// An image and where it belongs.
struct Drawn {
    path: PathBuf,
    made: Imagined,
    picture: RgbImage,
}

fn imagine_chunk(
    model: &impl UnifiedModel,
    run: &RunContext,
    chunk: &[InitialRecord],
    prompt: impl Fn(&InitialRecord) -> String,
) -> Result<Vec<Drawn>> {
    let named: Vec<(&InitialRecord, usize)> =
        chunk.iter().flat_map(|record| (0..run.config.imagine.images).map(move |number| (record, number))).collect();
    let jobs: Vec<ImagineJob> = named
        .iter()
        .map(|(record, number)| ImagineJob {
            prompt: prompt(record),
            seed: stage::candidate_seed(run, "imagine", &record.id, *number),
            known: vec![],
        })
        .collect();
    let made = model.imagine_in_steps(&jobs, &models::imagine_options(model, &run.config))?;
    let codes: Vec<Vec<u32>> = made.iter().map(|image| image.codes.clone()).collect();
    let pictures = model.decode_images(&codes)?;
    let drawn = |(((record, number), picture), made): (((&InitialRecord, usize), RgbImage), Imagined)| Drawn {
        path: run.layout.image(record.id.as_str(), number),
        made,
        picture,
    };
    Ok(named.into_iter().zip(pictures).zip(made).map(drawn).collect())
}
