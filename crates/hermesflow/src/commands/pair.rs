//! `hermesflow pair`: the best and the worst of every record.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use anyhow::Result;

use super::{StageArgs, scenes};
use crate::config::RunConfig;
use crate::layout::RunLayout;
use crate::progress::Progress;
use crate::records_stub::{Candidates, RecordId, first_round};
use crate::{files, judges};

/// Choose the best and the worst caption and image of every record
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    stage: StageArgs,
}

/// Runs the command.
pub fn run(args: Args) -> Result<()> {
    let (config, layout, progress) = args.stage.open()?;
    println!("{}", pair(&config, &layout, &progress)?);
    Ok(())
}

/// What became of the records.
#[derive(Debug, Clone, Default)]
pub struct Chosen {
    pub kept: usize,
    pub dropped: BTreeMap<String, usize>,
}

impl fmt::Display for Chosen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} pairs", self.kept)?;
        for (reason, count) in &self.dropped {
            write!(f, "; {count} dropped: {reason}")?;
        }
        Ok(())
    }
}

/// Chooses and writes the pairs.
pub fn pair(config: &RunConfig, layout: &RunLayout, progress: &Progress) -> Result<Chosen> {
    let records = scenes::initial_data(config, layout, progress)?;
    let captions: HashMap<RecordId, _> =
        files::captions(&layout.captions())?.into_iter().map(|c| (c.id.clone(), c)).collect();
    let answers: HashMap<RecordId, _> =
        files::answers(&layout.answers())?.into_iter().map(|c| (c.id.clone(), c)).collect();
    let (mut pairs, mut chosen) = (Vec::new(), Chosen::default());
    for record in records {
        let own = captions.get(&record.id).map(|c| c.caption_mmu.clone()).unwrap_or_default();
        let scored = own
            .into_iter()
            .map(|c| {
                let s = judges::similarity(&record.caption, &c);
                (c, s)
            })
            .collect();
        let result = answers.get(&record.id).map(|a| a.result.clone()).unwrap_or_default();
        let images = result
            .into_iter()
            .enumerate()
            .map(|(k, s)| {
                let path = layout.image(record.id.as_ref(), k);
                (path.strip_prefix(layout.data()).unwrap_or(&path).display().to_string(), s)
            })
            .collect();
        match first_round(&Candidates { record, captions: scored, images }, config.pair.min_accuracy) {
            Ok(pair) => pairs.push(pair),
            Err(reason) => *chosen.dropped.entry(reason.into()).or_default() += 1,
        }
    }
    chosen.kept = pairs.len();
    files::write_records(&layout.pairs(), &pairs)?;
    Ok(chosen)
}
