//! What is drawn beside the candidates of an iteration: images of altered captions (`pair.altered`), and everything once more
//! for records that gave no pair (`pair.retries`).
//!
//! A try is a curation of its own of the records that are left, in the folder `again-N` of the data root, with a seed of its own
//! and the same questions. What it made competes with what was made before, so that a tie is broken by any draw that differs.
//! All of it follows from the seed and the records, so that a run that was killed continues with the same tries. Where several
//! processes do a run, each knows which records are drawn once more, the writer writes their lists, and the stages share out the
//! rest as they always do.

use std::path::Path;

use anyhow::{Context, Result};
use hermesflow_models::Model;
use hermesflow_records::{ArrayFile, InitialRecord, QuestionRecord, Table};

use super::{answer, caption, imagine, pair, scenes};
use crate::config::ImageJudge;
use crate::files;
use crate::run::attempts::{self, attempt, from_below, is_first_round};
use crate::run::context::RunContext;
use crate::run::stage;

/// Draws images of altered captions, which may be the rejected ones of pairs, as many as `pair.altered` says, and has them
/// judged by the questions about the captions as they were.
///
/// # Errors
/// What the stage says that failed.
pub fn altered(player: &Model, run: &RunContext) -> Result<()> {
    if !is_first_round(run) || run.config.pair.altered == 0 {
        return Ok(());
    }
    let beside = attempts::altered(run);
    let other = |record: &InitialRecord| {
        hermesflow_score::altered::altered(&record.caption, stage::candidate_seed(&beside, "alter", &record.id, 0))
    };
    let records = scenes::initial_data(run)?;
    let mut changed = Vec::new();
    for chunk in records.chunks(run.config.data.chunk) {
        changed.extend(records.read(chunk)?.into_iter().filter(|record| other(record).is_some()));
    }
    if changed.len() < records.len() {
        let left = records.len() - changed.len();
        run.progress.log(format!("pair: {left} captions have no word that is known to be altered (pair.altered)"));
    }
    if changed.is_empty() {
        return Ok(());
    }
    write_records(run, &beside, &changed)?;
    imagine::imagine_as(player, &beside, |record| other(record).unwrap_or_default()).context("pair.altered")?;
    judge(player, run, &beside, &changed).context("pair.altered")
}

/// Tries the records again that gave no pair, as often as `pair.retries` says or until none is left.
///
/// # Errors
/// What the stage says that failed.
pub fn again(player: &Model, run: &RunContext) -> Result<()> {
    if !is_first_round(run) {
        return Ok(());
    }
    for number in 1..=run.config.pair.retries {
        let left = pair::left_over(run, number - 1)?;
        if left.is_empty() {
            break;
        }
        run.progress.log(format!("pair: {} records gave no pair and are tried again ({number})", left.len()));
        let attempt = attempt(run, number);
        try_again(player, run, &attempt, &left).with_context(|| format!("try {number}"))?;
    }
    Ok(())
}

fn try_again(player: &Model, run: &RunContext, attempt: &RunContext, left: &[InitialRecord]) -> Result<()> {
    write_records(run, attempt, left)?;
    caption::caption(player, attempt)?;
    imagine::imagine(player, attempt)?;
    judge(player, run, attempt, left)
}

/// Writes records where they are drawn once more.
fn write_records(run: &RunContext, beside: &RunContext, records: &[InitialRecord]) -> Result<()> {
    let written = run.group().once(|| -> Result<()> {
        let mut file = ArrayFile::create(&beside.layout.initial_data())?;
        for record in records {
            file.push(&InitialRecord { img_path: from_below(run.layout.data(), &record.img_path), ..record.clone() })?;
        }
        Ok(file.finish()?)
    });
    written.map(drop)
}

/// Lets the model answer the same questions about further images.
fn judge(player: &Model, run: &RunContext, beside: &RunContext, records: &[InitialRecord]) -> Result<()> {
    if run.config.pair.judge != ImageJudge::Itself {
        return Ok(());
    }
    run.group().once(|| {
        let known = files::questions(&run.layout.questions())?;
        copy_questions(records, &known, &beside.layout.questions())
    })?;
    answer::answer(player, beside)
}

/// The same questions about the records that are left.
fn copy_questions(left: &[InitialRecord], known: &Table<QuestionRecord>, path: &Path) -> Result<()> {
    let mut file = ArrayFile::create(path)?;
    for record in left {
        for question in known.of_id(&record.id)? {
            file.push(&question)?;
        }
    }
    Ok(file.finish()?)
}
