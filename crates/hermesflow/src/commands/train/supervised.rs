//! What the control `train.objective: supervised` trains on: the records themselves.

use std::path::PathBuf;

use anyhow::Result;
use hermesflow_records::{InitialRecord, PairRecord};

use crate::commands::scenes;
use crate::made::{Origin, WholeFile};
use crate::run::context::RunContext;

/// The file of an iteration's records in the form of pairs, written from its list of records.
///
/// # Errors
/// When the records cannot be read, or the file is somebody's.
pub fn written(run: &RunContext) -> Result<PathBuf> {
    let records = scenes::initial_data(run)?;
    let path = run.layout.supervised();
    run.group().once(|| {
        let file = WholeFile {
            path: path.clone(),
            note: run.layout.stamp("supervised"),
            remedy: "move it away; `hermesflow train` writes it anew",
        };
        let mut pairs = file.begin()?;
        for chunk in records.chunks(run.config.data.chunk) {
            for record in records.read(chunk)? {
                pairs.push(&own(record))?;
            }
        }
        file.publish(pairs, Origin::default())
    })?;
    Ok(path)
}

/// A record's own caption and picture as the wins of a pair. A likelihood of wins alone ignores what loses.
fn own(record: InitialRecord) -> PairRecord {
    let InitialRecord { id, img_path, prompt, caption } = record;
    PairRecord {
        id,
        img_path: img_path.clone(),
        prompt,
        caption_win: caption.clone(),
        caption_lose: caption.clone(),
        caption,
        bert_score_win: 1.0,
        bert_score_lose: 0.0,
        image_win: img_path.clone(),
        image_lose: img_path,
        vqa_score_win: 1.0,
        vqa_score_lose: 0.0,
    }
}
