//! Records that gave no pair are tried again with other draws (`pair.retries`).
//!
//! A try is a curation of its own of the records that are left, in the folder `again-N` of the data root, with a seed of its own
//! and the same questions. What it made competes with what was made before, so that a tie is broken by any draw that differs.
//! All of it follows from the seed and the records, so that a run that was killed continues with the same tries.

use std::path::Path;

use anyhow::{Context, Result};
use hermesflow_models::Model;
use hermesflow_records::{ArrayFile, InitialRecord, QuestionRecord, Table};

use super::{answer, caption, imagine, pair};
use crate::config::ImageJudge;
use crate::files;
use crate::run::attempts::{attempt, from_below, is_first_round};
use crate::run::context::RunContext;

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
        try_again(player, run, &attempt, left).with_context(|| format!("try {number}"))?;
    }
    Ok(())
}

fn try_again(player: &Model, run: &RunContext, attempt: &RunContext, left: Vec<InitialRecord>) -> Result<()> {
    let root = run.layout.data();
    let mut records = ArrayFile::create(&attempt.layout.initial_data())?;
    for record in &left {
        records.push(&InitialRecord { img_path: from_below(root, &record.img_path), ..record.clone() })?;
    }
    records.finish()?;
    caption::caption(player, attempt)?;
    imagine::imagine(player, attempt)?;
    if run.config.pair.judge == ImageJudge::Itself {
        let known = files::questions(&run.layout.questions())?;
        copy_questions(&left, &known, &attempt.layout.questions())?;
        answer::answer(player, attempt)?;
    }
    Ok(())
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
