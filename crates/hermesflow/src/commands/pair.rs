//! `hermesflow pair`: the best and the worst caption and image of every record.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use anyhow::{Context, Result};

use super::{StageArgs, scenes};
use crate::config::{ImageJudge, RunConfig};
use crate::layout::RunLayout;
use crate::pictures::Pictures;
use crate::progress::Progress;
use crate::{files, judges};
use hermesflow_records::{Candidates, DropReason, InitialRecord, RecordId, first_round, later_round};

/// Choose the best and the worst caption and image of every record
///
/// Captions are compared by their similarity to the true one, images by the share of questions that the model answered
/// rightly about them. A record gives a pair only if both sides have a clear winner and its best image is good enough
/// (`pair.min_accuracy`); what is dropped is counted by reason. With the same records in every iteration
/// (`data.fresh: false`) later iterations renew the pairs of the one before. Writes pair_dpo_data.json.
///
/// Example: hermesflow pair configs/scenes.yaml pair.min_accuracy=0.8
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    stage: StageArgs,
}

/// Runs the command.
pub fn run(args: Args) -> Result<()> {
    let (config, layout, progress) = args.stage.open()?;
    println!("{}", pair(&config, &layout, &progress)?);
    println!("{}", layout.pairs().display());
    Ok(())
}

/// What became of the records.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chosen {
    /// Records that gave a pair.
    pub kept: usize,
    /// Pairs of the iteration before of which nothing better was found, on either side.
    pub carried: usize,
    /// Records that did not, by reason.
    pub dropped: BTreeMap<DropReason, usize>,
}

impl fmt::Display for Chosen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = self.kept + self.dropped.values().sum::<usize>();
        write!(f, "pair: {} pairs from {all} records", self.kept)?;
        if self.carried > 0 {
            write!(f, "; {} carried over", self.carried)?;
        }
        for (reason, count) in &self.dropped {
            write!(f, "; {count} dropped: {reason}")?;
        }
        Ok(())
    }
}

/// Chooses and writes the pairs of an iteration.
///
/// # Errors
/// Names the record and the file that stand in the way.
pub fn pair(config: &RunConfig, layout: &RunLayout, progress: &Progress) -> Result<Chosen> {
    let candidates = candidates(config, layout, progress)?;
    let (mut pairs, mut chosen) = (Vec::new(), Chosen::default());
    match layout.previous().filter(|_| !config.data.fresh) {
        None => {
            for candidates in &candidates {
                match first_round(candidates, config.pair.min_accuracy) {
                    Ok(pair) => pairs.push(pair),
                    Err(reason) => *chosen.dropped.entry(reason).or_default() += 1,
                }
            }
        }
        Some(previous) => {
            let by_id: HashMap<&RecordId, &Candidates> = candidates.iter().map(|c| (&c.record.id, c)).collect();
            for old in files::pairs(&previous.pairs())? {
                let (captions, images) =
                    by_id.get(&old.id).map_or_else(Default::default, |new| (&*new.captions, &*new.images));
                let renewed = later_round(&old, captions, images);
                chosen.carried += usize::from(renewed == old);
                pairs.push(renewed);
            }
        }
    }
    chosen.kept = pairs.len();
    files::write_records(&layout.pairs(), &pairs)?;
    Ok(chosen)
}

/// Every record with its captions and images and their scores, in the records' order.
fn candidates(config: &RunConfig, layout: &RunLayout, progress: &Progress) -> Result<Vec<Candidates>> {
    let records = scenes::initial_data(config, layout, progress)?;
    let mut captions: HashMap<RecordId, Vec<String>> =
        files::captions(&layout.captions())?.into_iter().map(|one| (one.id, one.caption_mmu)).collect();
    let mut scores = match config.pair.judge {
        ImageJudge::Itself => files::answers(&layout.answers())?.into_iter().map(|one| (one.id, one.result)).collect(),
        ImageJudge::Oracle => oracle(config, layout, &records)?,
    };
    let images = |record: &InitialRecord, scores: Vec<f64>| {
        let named = |(number, score): (usize, f64)| {
            let path = layout.image(record.id.as_str(), number);
            (path.strip_prefix(layout.data()).unwrap_or(&path).display().to_string(), score)
        };
        scores.into_iter().enumerate().map(named).collect()
    };
    let judge = judges::Judges::of_run(config, layout, progress)?.similarity(config.pair.similarity)?;
    let task = progress.task("similarity", "records", records.len(), 0);
    let candidates = |record: InitialRecord| {
        let own = captions.remove(&record.id).unwrap_or_default();
        let similarities =
            judge.similarities(&record.caption, &own).with_context(|| format!("record {}", record.id))?;
        task.advance(1);
        let images = images(&record, scores.remove(&record.id).unwrap_or_default());
        Ok(Candidates { captions: own.into_iter().zip(similarities).collect(), images, record })
    };
    records.into_iter().map(candidates).collect()
}

/// The control: the share of a caption's statements that the oracle sees in each image.
fn oracle(config: &RunConfig, layout: &RunLayout, records: &[InitialRecord]) -> Result<HashMap<RecordId, Vec<f64>>> {
    let pictures = Pictures::new(layout.data(), hermesflow_scenes::scene::SIDE);
    let judge = |record: &InitialRecord| {
        let image = |number| pictures.load(&layout.image(record.id.as_str(), number));
        let score = |number| Ok(judges::oracle(&image(number)?, &record.caption));
        let scores = (0..config.imagine.images).map(score).collect::<Result<_>>();
        Ok((record.id.clone(), scores.with_context(|| format!("record {}", record.id))?))
    };
    records.iter().map(judge).collect()
}
