//! Understanding, generation and the gap, iteration by iteration: as `hermesflow eval` measured them, and by the run's own
//! judges.

use std::path::PathBuf;

use anyhow::Result;
use serde::Serialize;

use super::charts::{Chart, Line};
use super::folder::RunFolder;
use super::records::Tally;
use crate::benchmarks::BenchmarkReport;
use crate::report::FIGURES;
use crate::world::evaluate::EvalReport;
use crate::world::statistics::Mean;

/// A table of figures, one column per model.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Figures {
    columns: Vec<String>,
    rows: Vec<FigureRow>,
    note: String,
    chart: Option<Chart>,
    /// In a sentence each, what became better or worse.
    pub said: Vec<String>,
}

#[derive(Debug, Clone, Serialize)]
struct FigureRow {
    name: String,
    /// Whether the figure is a part of the one above.
    part: bool,
    cells: Vec<FigureCell>,
}

#[derive(Debug, Clone, Serialize)]
struct FigureCell {
    value: String,
    /// The change from the first column; empty in it.
    change: String,
    /// `better`, `worse`, or empty where nothing clear can be said.
    verdict: &'static str,
}

/// What a change means, if its interval leaves no doubt.
fn verdict(change: Mean, higher_is_better: bool) -> &'static str {
    match (change.mean.abs() > change.half_width() && change.count > 1, (change.mean > 0.0) == higher_is_better) {
        (false, _) => "",
        (true, true) => "better",
        (true, false) => "worse",
    }
}

fn sentence(what: &str, from: f64, to: f64, change: Mean, verdict: &str) -> String {
    let verdict = match verdict {
        "" => "no clear change",
        known => known,
    };
    format!("{what} went from {from:.3} to {to:.3} ({change:+}): {verdict}.")
}

/// The reports of `hermesflow eval` that lie in a run's folder or a demo's, about the same prompts, in the order of their
/// names.
pub fn evaluations(run: &RunFolder) -> Vec<EvalReport> {
    let mut files: Vec<PathBuf> = [&run.given, &run.config.output]
        .into_iter()
        .filter_map(|folder| std::fs::read_dir(folder).ok())
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            name.starts_with("eval") && name.ends_with(".json")
        })
        .collect();
    files.sort();
    files.dedup();
    let read = |path: &PathBuf| serde_json::from_slice::<EvalReport>(&std::fs::read(path).ok()?).ok();
    let mut reports: Vec<EvalReport> = files.iter().filter_map(read).collect();
    if let Some(settings) = reports.first().map(|report| report.settings) {
        reports.retain(|report| report.check_about(&settings).is_ok());
    }
    let mut seen = std::collections::HashSet::new();
    reports.retain(|report| seen.insert(report.model.clone()));
    reports
}

/// The table of reports about the same prompts; none without any.
///
/// # Errors
/// When the reports are about other prompts, or a chart cannot be drawn.
pub fn of_evaluations(reports: &[EvalReport]) -> Result<Option<Figures>> {
    let Some((base, later)) = reports.split_first() else { return Ok(None) };
    let mut figures = Figures {
        columns: reports.iter().map(|report| report.model.clone()).collect(),
        note: format!(
            "{} {} prompts with the seed {}, the same for all models, none of which training saw. ± is half the 95 % \
             interval; changes are paired over prompts.",
            base.rows.len(),
            base.settings.split.name(),
            base.settings.seed
        ),
        ..Figures::default()
    };
    for (name, figure) in FIGURES {
        let mut cells = vec![FigureCell { value: base.mean(figure).to_string(), change: String::new(), verdict: "" }];
        for report in later {
            let change = report.difference(base, figure)?;
            let verdict = verdict(change, name != "gap");
            let change = format!("{change:+}");
            cells.push(FigureCell { value: report.mean(figure).to_string(), change, verdict });
        }
        if let Some((last, cell)) = reports.last().zip(cells.last()).filter(|_| !later.is_empty()) {
            let what = match name {
                "understanding" => "Understanding",
                "generation (oracle)" => "Generation, as the oracle counts it,",
                "gap" => "The gap between them",
                _ => "",
            };
            if !what.is_empty() {
                let (from, to) = (base.mean(figure).mean, last.mean(figure).mean);
                figures.said.push(sentence(what, from, to, last.difference(base, figure)?, cell.verdict));
            }
        }
        figures.rows.push(FigureRow { name: name.trim().into(), part: name.starts_with(' '), cells });
    }
    if !later.is_empty() {
        let line = |name: &str, at: usize| {
            let means: Vec<Mean> = reports.iter().map(|report| report.mean(FIGURES[at].1)).collect();
            points(name, &means, 0.0)
        };
        let lines = [line("understanding", 0), line("generation", 3), line("gap", 6)];
        figures.chart =
            Chart::draw("Understanding, generation and gap", "Bars are 95 % intervals.", "iteration", &lines)?;
    }
    Ok(Some(figures))
}

fn points(name: &str, means: &[Mean], first: f64) -> Line {
    let points = means.iter().enumerate().map(|(at, mean)| (first + at as f64, mean.mean)).collect();
    Line { name: name.into(), points, intervals: means.iter().map(Mean::half_width).collect() }
}

/// A row: its name, how a sentence calls it if it is told in one, and its number.
type OfJudges<'a> = (&'a str, &'a str, &'a dyn Fn(&Tally) -> Mean);

/// The table by the run's own judges: one column per iteration. None before anything was judged.
///
/// # Errors
/// When a chart cannot be drawn.
pub fn of_judges(tallies: &[(usize, Tally)], paired: bool) -> Result<Option<Figures>> {
    let judged: Vec<&(usize, Tally)> = tallies.iter().filter(|(_, tally)| !tally.images.is_empty()).collect();
    let Some((_, base)) = judged.first() else { return Ok(None) };
    let captions = |tally: &Tally| Mean::of(tally.captions.iter().copied());
    let images = |tally: &Tally| Mean::of(tally.images.iter().copied());
    let gap = |tally: &Tally| difference(images(tally), captions(tally));
    let rows: [OfJudges<'_>; 3] = [
        ("captions: similarity to the true one", "Its captions' similarity to the true ones", &captions),
        ("images: score by its own answers", "The score of its images by its own answers", &images),
        ("captions − images", "", &gap),
    ];
    let mut figures = Figures {
        columns: judged.iter().map(|(number, _)| format!("iteration {number}")).collect(),
        note: format!(
            "Means over records of all candidates, with half the 95 % interval. Iteration 1 is the model before training; \
             iteration n is what n − 1 trainings made of it{}. The two sides have judges of their own: look at how the \
             difference changes, not at its size.",
            if paired { "" } else { ". Every iteration has other records" }
        ),
        ..Figures::default()
    };
    for (name, what, of) in rows {
        if of(base).count == 0 {
            continue;
        }
        let cells = judged.iter().enumerate().map(|(at, (_, tally))| {
            let change = difference(of(base), of(tally));
            match at {
                0 => FigureCell { value: of(tally).to_string(), change: String::new(), verdict: "" },
                _ => FigureCell {
                    value: of(tally).to_string(),
                    change: format!("{change:+}"),
                    verdict: verdict(change, !what.is_empty()),
                },
            }
        });
        let cells: Vec<FigureCell> = cells.collect();
        if let (Some((_, last)), true, false) = (judged.last(), judged.len() > 1, what.is_empty()) {
            let change = difference(of(base), of(last));
            figures.said.push(sentence(what, of(base).mean, of(last).mean, change, verdict(change, true)));
        }
        figures.rows.push(FigureRow { name: name.into(), part: false, cells });
    }
    if judged.len() > 1 {
        let first = judged[0].0 as f64;
        let of = |of: &dyn Fn(&Tally) -> Mean| judged.iter().map(|(_, tally)| of(tally)).collect::<Vec<_>>();
        let sides: [(&str, Vec<Mean>); 2] = [("captions", of(&captions)), ("images", of(&images))];
        let known = sides.iter().filter(|(_, means)| means.iter().all(|mean| mean.count > 0));
        let lines: Vec<Line> = known.map(|(name, means)| points(name, means, first)).collect();
        figures.chart = Chart::draw("By its own judges", "Bars are 95 % intervals.", "iteration", &lines)?;
    }
    Ok(Some(figures))
}

/// The tables of the benchmarks in a run's folder, with paired differences from the first model of each.
///
/// # Errors
/// Never for reports that were made by the same command.
pub fn of_benchmarks(run: &RunFolder) -> Result<Vec<(String, Figures)>> {
    let mut all: std::collections::BTreeMap<&str, Vec<BenchmarkReport>> = std::collections::BTreeMap::new();
    let folders = std::fs::read_dir(run.config.output.join("benchmarks")).into_iter().flatten();
    for folder in folders.filter_map(|entry| Some(entry.ok()?.path())) {
        let Ok(bytes) = std::fs::read(folder.join("report.json")) else { continue };
        let Ok(report) = serde_json::from_slice::<BenchmarkReport>(&bytes) else { continue };
        all.entry(report.benchmark.name()).or_default().push(report);
    }
    let mut tables = Vec::new();
    for (name, mut reports) in all {
        reports.sort_by(|a, b| a.model.cmp(&b.model));
        let before = &reports[0];
        let mut figures = Figures { note: before.line.clone(), ..Figures::default() };
        for (at, report) in reports.iter().enumerate() {
            let compared = if at == 0 { None } else { Some(before) };
            let Ok(found) = crate::benchmarks::figures::of(report, compared) else { continue }; // of other items
            figures.columns.push(report.model.clone());
            for (number, figure) in found.iter().enumerate() {
                if figures.rows.len() <= number {
                    let name = figure.name.clone();
                    figures.rows.push(FigureRow { name, part: false, cells: Vec::new() });
                }
                let clear = figure.difference.filter(|(value, half)| !half.is_nan() && value.abs() > *half);
                let verdict = match clear {
                    Some(_) if figure.name.ends_with("share of yes") => "",
                    Some((value, _)) if value > 0.0 => "better",
                    Some(_) => "worse",
                    None => "",
                };
                figures.rows[number].cells.push(FigureCell {
                    value: figure.shown(),
                    change: figure.difference(),
                    verdict,
                });
            }
        }
        tables.push((name.to_owned(), figures));
    }
    Ok(tables)
}

/// The difference of two means of different records.
fn difference(before: Mean, after: Mean) -> Mean {
    let error = before.error.hypot(after.error);
    Mean { mean: after.mean - before.mean, error, count: before.count.min(after.count) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mean(mean: f64, error: f64) -> Mean {
        Mean { mean, error, count: 10 }
    }

    #[test]
    fn only_what_is_clear_is_called_better_or_worse() {
        assert_eq!(verdict(mean(0.1, 0.04), true), "better");
        assert_eq!(verdict(mean(0.1, 0.06), true), "", "0.1 is within ± 0.118");
        assert_eq!(verdict(mean(-0.1, 0.04), true), "worse");
        assert_eq!(verdict(mean(-0.1, 0.04), false), "better", "a smaller gap");
    }

    #[test]
    fn errors_of_different_records_add_up() {
        let found = difference(mean(0.5, 0.03), mean(0.75, 0.04));
        assert_eq!((found.mean, found.count), (0.25, 10));
        assert!((found.error - 0.05).abs() < 1e-12);
    }
}
