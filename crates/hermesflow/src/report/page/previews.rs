//! Before and after on fixed prompts, under several guidances.

use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::Serialize;

use super::folder::RunFolder;
use super::statistics::{Comparison, measure};
use super::thumbnails::{Share, embedded};
use crate::run::preview::{PreviewFolder, PreviewPlan, picture};

/// The longer side of the pictures, in pixels.
const SIDE: u32 = 192;
/// Prompts that are shown; the numbers are of all.
const PROMPTS: usize = 16;

/// Pictures of fixed prompts before and after training.
#[derive(Debug, Clone, Serialize)]
pub struct Previews {
    note: String,
    rows: Vec<PreviewRow>,
}

#[derive(Debug, Clone, Serialize)]
struct PreviewRow {
    prompt: String,
    /// By guidance: its name, the pictures before and those after.
    cells: Vec<(String, Vec<String>, Vec<String>)>,
}

/// A drawn set: its folder and a name for it.
type Drawn = (PathBuf, String);

/// The first pictures of a run and the newest ones drawn by the same plan; none where nothing was drawn twice.
fn ends(run: &RunFolder) -> Result<Option<(PreviewPlan, Drawn, Drawn)>> {
    let mut first: Option<(PreviewPlan, Drawn)> = None;
    let mut last = None;
    for iteration in run.iterations() {
        let folder = PreviewFolder::of(&run.at(iteration));
        let Some(plan) = folder.plan()? else { continue };
        for step in folder.steps() {
            let name = match (iteration, step) {
                (1, 0) => "before training".to_owned(),
                _ => format!("iteration {iteration}, step {step}"),
            };
            match &first {
                None => first = Some((plan.clone(), (folder.step(step), name))),
                Some((begun, _)) if *begun == plan => last = Some((folder.step(step), name)),
                Some(_) => {}
            }
        }
    }
    Ok(first.zip(last).map(|((plan, first), last)| (plan, first, last)))
}

/// The pictures before and after, and what no judge sees of them.
///
/// # Errors
/// When the plan of the pictures cannot be read.
pub fn of(run: &RunFolder) -> Result<Option<(Previews, Vec<Comparison>)>> {
    let Some((plan, (first, before), (last, after))) = ends(run)? else { return Ok(None) };
    let mut share = Share::whole();
    let mut shown = |folder: &Path, prompt: usize, guidance: usize| -> Vec<String> {
        let file = |number| embedded(&picture(folder, prompt, guidance, number), SIDE, &mut share).unwrap_or_default();
        (0..plan.images).map(file).collect()
    };
    let rows = plan.prompts.iter().take(PROMPTS).enumerate().map(|(prompt, text)| {
        let cell = |(at, guidance): (usize, &f64)| {
            (format!("guidance {guidance}"), shown(&first, prompt, at), shown(&last, prompt, at))
        };
        PreviewRow { prompt: text.clone(), cells: plan.guidances.iter().enumerate().map(cell).collect() }
    });
    let rows = rows.collect();
    let note = format!(
        "The same prompts and the same draws: left of the arrow {before}, right of it {after}; {} steps of denoising, \
         seed {}.",
        plan.steps, plan.seed
    );
    let mut comparisons = Vec::new();
    for (at, guidance) in plan.guidances.iter().enumerate() {
        let files =
            |folder: &Path, prompt| (0..plan.images).map(|number| picture(folder, prompt, at, number)).collect();
        let all =
            |folder: &Path| measure(&(0..plan.prompts.len()).map(|prompt| files(folder, prompt)).collect::<Vec<_>>());
        if let Some((one, other)) = all(&first).zip(all(&last)) {
            let title = format!("Fixed prompts at guidance {guidance}");
            let note = format!("{} prompts, {} pictures of each, the same draws.", plan.prompts.len(), plan.images);
            let sets = vec![(before.clone(), one), (after.clone(), other)];
            comparisons.push(Comparison::new(&title, &note, sets, 0));
        }
    }
    Ok(Some((Previews { note, rows }, comparisons)))
}
