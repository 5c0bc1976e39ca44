//! Results for people: tables for the terminal and the README, pictures for the eye.

pub mod page;
pub mod sheet;

use anyhow::Result;
use comfy_table::{CellAlignment, Table, presets};

use crate::world::evaluate::{EvalReport, PromptRow, Verdict};
use crate::world::floors::floors;
use crate::world::statistics::Mean;

/// A table with a header; all columns but the first are aligned to the right.
pub fn table(header: &[&str]) -> Table {
    let mut table = text_table(header);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// A table with a header and texts in all columns.
pub fn text_table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::ASCII_MARKDOWN).set_header(header);
    table
}

/// A named figure of a prompt.
pub type Figure = (&'static str, fn(&PromptRow) -> f64);

/// The figures of every table, in order.
pub const FIGURES: [Figure; 7] = [
    ("understanding", PromptRow::understanding),
    ("  questions", PromptRow::answered),
    ("  captions", PromptRow::captioned),
    ("generation (oracle)", PromptRow::generation),
    ("  all right", |row| f64::from(u8::from(row.all))),
    ("generation (itself)", |row| row.by_itself),
    ("gap", PromptRow::gap),
];

/// The guidances of a report's pictures beside the run's own.
fn guidances(report: &EvalReport) -> Vec<f64> {
    report.rows.first().map_or(vec![], |row| row.under.iter().map(|(guidance, _)| *guidance).collect())
}

/// The figures of pictures drawn under another guidance: their names, and what a prompt has of them.
fn figures_under(guidance: f64) -> [(String, impl Fn(&PromptRow) -> f64 + Copy); 2] {
    let figure = move |all: bool| {
        move |row: &PromptRow| match row.drawn_under(guidance) {
            Some(verdict) if all => f64::from(u8::from(verdict.all)),
            Some(verdict) => verdict.facts,
            None => f64::NAN,
        }
    };
    [(format!("generation at guidance {guidance}"), figure(false)), ("  all right".to_owned(), figure(true))]
}

/// One model's figures, with paired differences from another report if there is one.
///
/// # Errors
/// When the two reports are about other prompts.
pub fn evaluation(report: &EvalReport, before: Option<&EvalReport>) -> Result<String> {
    let mut header = vec![report.model.as_str(), "mean ± 95 %"];
    header.extend(before.map(|_| "difference ± 95 %"));
    let mut all = table(&header);
    let mut add = |name: String, mean: Mean, difference: Option<Mean>| {
        let mut row = vec![name, mean.to_string()];
        row.extend(before.map(|_| difference.map_or(String::new(), |d| format!("{d:+}"))));
        all.add_row(row);
    };
    for (name, figure) in FIGURES {
        let difference = before.map(|before| report.difference(before, figure)).transpose()?;
        add(name.into(), report.mean(figure), difference);
    }
    for guidance in guidances(report) {
        for (name, figure) in figures_under(guidance) {
            let before = before.filter(|before| guidances(before).contains(&guidance));
            let difference = before.map(|before| report.difference(before, figure)).transpose()?;
            add(name, report.mean(figure), difference);
        }
    }
    for (category, mean) in report.categories() {
        add(format!("oracle: {} ({})", category.name(), mean.count), mean, None);
    }
    for (kind, mean) in report.kinds() {
        add(format!("questions: {} ({})", format!("{kind:?}").to_lowercase(), mean.count), mean, None);
    }
    Ok(format!("{all}\n{} {} prompts, seed {}", report.rows.len(), report.settings.split.name(), report.settings.seed))
}

/// The course of a run: one column per model, the first the base.
///
/// # Errors
/// When the reports are about other prompts.
pub fn course(reports: &[EvalReport]) -> Result<String> {
    let Some((base, later)) = reports.split_first() else { return Ok(String::new()) };
    let names: Vec<String> = later.iter().map(|report| report.model.clone()).collect();
    let mut header = vec!["", base.model.as_str()];
    for name in &names {
        header.extend([name.as_str(), "change"]);
    }
    let mut all = table(&header);
    for (name, figure) in FIGURES {
        let mut row = vec![name.to_string(), base.mean(figure).to_string()];
        for report in later {
            row.push(format!("{:.3}", report.mean(figure).mean));
            row.push(format!("{:+}", report.difference(base, figure)?));
        }
        all.add_row(row);
    }
    for guidance in guidances(base) {
        for (name, figure) in figures_under(guidance) {
            let mut row = vec![name, base.mean(figure).to_string()];
            for report in later {
                row.push(format!("{:.3}", report.mean(figure).mean));
                row.push(format!("{:+}", report.difference(base, figure)?));
            }
            all.add_row(row);
        }
    }
    for floor in floors(base) {
        let mean = |of: fn(&Verdict) -> f64| Mean::of(floor.verdicts.iter().map(of)).to_string();
        let facts = mean(|verdict| verdict.facts);
        for (name, mean) in [(floor.what, facts), ("  all right", mean(|verdict| f64::from(u8::from(verdict.all))))] {
            let mut row = vec![name.to_owned(), mean];
            row.resize(header.len(), String::new());
            all.add_row(row);
        }
    }
    Ok(format!(
        "{all}\n± is half the 95 % interval; changes are paired over {} {} prompts (seed {}) with the same draws",
        base.rows.len(),
        base.settings.split.name(),
        base.settings.seed
    ))
}
