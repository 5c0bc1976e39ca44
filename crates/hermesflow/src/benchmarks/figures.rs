//! What the rows of a benchmark amount to, by its published rule, with 95 % intervals over prompts.
//!
//! Some of the rules are no means (F1, sums over categories, pairs of questions), so intervals come from 1,000 draws of as
//! many units with replacement, category by category (the bootstrap): ± is 1.96 standard deviations of the draws. Draws
//! depend on the units alone, so that two models are compared on the same ones.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, ensure};
use hermesflow_records::derive_seed;
use rayon::prelude::*;
use serde::Serialize;

use super::geneval::ScorerResults;
use super::{Benchmark, BenchmarkReport, Row};

/// Draws of the bootstrap.
const DRAWS: u64 = 1000;
/// MME's categories of cognition; all others are perception.
const COGNITION: [&str; 4] = ["code_reasoning", "commonsense_reasoning", "numerical_calculation", "text_translation"];

/// A figure of a benchmark.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figure {
    /// What it is.
    pub name: String,
    /// Its value.
    pub value: f64,
    /// Half the width of the 95 % interval; NaN where a single prompt decides, of whose chance nothing is known.
    pub half_width: f64,
    /// The difference from another model and half the width of its interval, paired over prompts.
    pub difference: Option<(f64, f64)>,
}

impl Figure {
    /// The value with its interval.
    pub fn shown(&self) -> String {
        match self.half_width.is_nan() {
            true => format!("{:.3} ± –", self.value),
            false => format!("{:.3} ± {:.3}", self.value, self.half_width),
        }
    }

    /// The difference with its interval; empty without one.
    pub fn difference(&self) -> String {
        let sign = |value: f64| if value.abs() < 0.0005 { 0.0 } else { value };
        match self.difference {
            None => String::new(),
            Some((value, half)) if half.is_nan() => format!("{:+.3} ± –", sign(value)),
            Some((value, half)) => format!("{:+.3} ± {half:.3}", sign(value)),
        }
    }
}

/// Figures of a draw, by name.
type Amounts = BTreeMap<String, f64>;

/// The figures of a report, with paired differences from another one about the same items if there is one.
///
/// # Errors
/// When the other is about other items.
pub fn of(report: &BenchmarkReport, before: Option<&BenchmarkReport>) -> Result<Vec<Figure>> {
    if let Some(before) = before {
        let about = |report: &BenchmarkReport| -> Vec<(String, String)> {
            report.rows.iter().map(|row| (row.item.clone(), format!("{:?} {}", row.guidance, row.category))).collect()
        };
        ensure!(
            before.benchmark == report.benchmark && about(before) == about(report),
            "the report of {} is about other items, samples or guidances; only the same can be compared",
            before.model
        );
    }
    let strata = strata(&report.rows);
    let whole = amount(report.benchmark, &report.rows.iter().collect::<Vec<_>>());
    let whole_before = before.map(|before| amount(before.benchmark, &before.rows.iter().collect::<Vec<_>>()));
    let draws: Vec<(Amounts, Option<Amounts>)> = (0..DRAWS)
        .into_par_iter()
        .map(|draw| {
            let chosen = drawn(&strata, draw);
            let of = |rows: &[Row]| {
                let rows: Vec<&Row> = chosen.iter().map(|&at| &rows[at]).collect();
                amount(report.benchmark, &rows).into_iter().collect::<Amounts>()
            };
            (of(&report.rows), before.map(|before| of(&before.rows)))
        })
        .collect();
    let single = decided_by_one(report.benchmark, &report.rows, &strata, &whole);
    let known = |name: &String, half: f64| if single.contains(name) { f64::NAN } else { half };
    let figures = whole.into_iter().enumerate().map(|(at, (name, value))| {
        let own: Vec<f64> = draws.iter().filter_map(|(own, _)| own.get(&name).copied()).collect();
        let difference = whole_before.as_ref().and_then(|before| before.get(at)).map(|(_, before)| {
            let apart = draws.iter().filter_map(|(own, before)| Some(own.get(&name)? - before.as_ref()?.get(&name)?));
            (value - before, known(&name, 1.96 * deviation(&apart.collect::<Vec<_>>())))
        });
        Figure { half_width: known(&name, 1.96 * deviation(&own)), difference, name, value }
    });
    Ok(figures.collect())
}

/// The figures that depend on a category of a single unit: drawing it anew never changes it, so its interval is not known.
fn decided_by_one(
    benchmark: Benchmark,
    rows: &[Row],
    strata: &[Vec<Vec<usize>>],
    whole: &[(String, f64)],
) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for alone in strata.iter().filter(|units| units.len() == 1) {
        let others: Vec<&Row> =
            rows.iter().enumerate().filter(|(at, _)| !alone[0].contains(at)).map(|(_, row)| row).collect();
        let without: Amounts = amount(benchmark, &others).into_iter().collect();
        found.extend(
            whole.iter().filter(|(name, value)| without.get(name) != Some(value)).map(|(name, _)| name.clone()),
        );
    }
    found
}

/// The rows of each unit, in the order of units, by category.
fn strata(rows: &[Row]) -> Vec<Vec<Vec<usize>>> {
    let mut all: BTreeMap<&str, BTreeMap<&str, Vec<usize>>> = BTreeMap::new();
    for (at, row) in rows.iter().enumerate() {
        all.entry(&row.category).or_default().entry(&row.unit).or_default().push(at);
    }
    all.into_values().map(|units| units.into_values().collect()).collect()
}

/// As many units as there are, with replacement.
fn drawn(strata: &[Vec<Vec<usize>>], draw: u64) -> Vec<usize> {
    let mut chosen = Vec::new();
    for (number, units) in strata.iter().enumerate() {
        for at in 0..units.len() {
            let unit = derive_seed(draw, &[number as u64, at as u64]) % units.len() as u64;
            chosen.extend_from_slice(&units[unit as usize]);
        }
    }
    chosen
}

fn deviation(values: &[f64]) -> f64 {
    let mean = values.iter().sum::<f64>() / values.len().max(1) as f64;
    let square = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>();
    (square / (values.len().max(2) - 1) as f64).sqrt()
}

/// The figures of rows, by the benchmark's rule.
fn amount(benchmark: Benchmark, rows: &[&Row]) -> Vec<(String, f64)> {
    match benchmark {
        Benchmark::Geneval => under_each(rows, geneval),
        Benchmark::Tifa | Benchmark::Dpg => under_each(rows, answered),
        Benchmark::Pope => pope(rows),
        Benchmark::Mme => mme(rows),
        Benchmark::Vqa => by_category(rows).into_iter().map(|(name, rows)| (name, mean(&rows, "right"))).collect(),
    }
}

/// The figures under each guidance, named by it.
fn under_each(rows: &[&Row], of: fn(&[&Row]) -> Vec<(String, f64)>) -> Vec<(String, f64)> {
    let mut guidances: Vec<f64> = rows.iter().filter_map(|row| row.guidance).collect();
    guidances.sort_by(f64::total_cmp);
    guidances.dedup();
    let under = |guidance: f64| {
        let own: Vec<&Row> = rows.iter().filter(|row| row.guidance == Some(guidance)).copied().collect();
        of(&own).into_iter().map(move |(name, value)| (format!("guidance {guidance}: {name}"), value))
    };
    guidances.into_iter().flat_map(under).collect()
}

/// All rows, and those of each category where there are several.
fn by_category<'r>(rows: &[&'r Row]) -> Vec<(String, Vec<&'r Row>)> {
    let mut all: BTreeMap<&str, Vec<&Row>> = BTreeMap::new();
    rows.iter().for_each(|row| all.entry(&row.category).or_default().push(row));
    let several = all.len() > 1;
    let each = all.into_iter().filter(|_| several).map(|(name, rows)| (name.to_owned(), rows));
    std::iter::once(("all".to_owned(), rows.to_vec())).chain(each).collect()
}

fn mean(rows: &[&Row], score: &str) -> f64 {
    rows.iter().map(|row| row.score(score)).sum::<f64>() / rows.len().max(1) as f64
}

/// GenEval: the overall score is the mean over tasks, not over prompts.
fn geneval(rows: &[&Row]) -> Vec<(String, f64)> {
    let tasks: Vec<(String, Vec<&Row>)> = match by_category(rows) {
        all if all.len() > 1 => all.into_iter().skip(1).collect(),
        all => all,
    };
    let overall = |score| tasks.iter().map(|(_, rows)| mean(rows, score)).sum::<f64>() / tasks.len().max(1) as f64;
    let mut figures =
        vec![("overall, product".to_owned(), overall("product")), ("overall, mean".to_owned(), overall("mean"))];
    for (task, rows) in tasks.iter().filter(|_| tasks.len() > 1) {
        figures.push((format!("{task}, product"), mean(rows, "product")));
        figures.push((format!("{task}, mean"), mean(rows, "mean")));
    }
    figures
}

/// TIFA and DPG-Bench: a prompt's share of right answers, averaged over prompts; kinds of questions over questions.
fn answered(rows: &[&Row]) -> Vec<(String, f64)> {
    let mut figures: Vec<(String, f64)> =
        by_category(rows).into_iter().map(|(name, rows)| (name, mean(&rows, "all"))).collect();
    let mut kinds: BTreeMap<&str, (f64, f64)> = BTreeMap::new();
    for (name, value) in rows.iter().flat_map(|row| &row.scores) {
        if let Some(kind) = name.strip_prefix("right: ") {
            kinds.entry(kind).or_default().0 += value;
        } else if let Some(kind) = name.strip_prefix("asked: ") {
            kinds.entry(kind).or_default().1 += value;
        }
    }
    figures.extend(kinds.into_iter().map(|(kind, (right, asked))| (format!("about {kind}"), right / asked)));
    figures
}

/// POPE: accuracy, precision, recall, F1 and the share of yes, per setting and over all.
fn pope(rows: &[&Row]) -> Vec<(String, f64)> {
    let mut figures = Vec::new();
    for (name, rows) in by_category(rows) {
        let count = |said: f64, is: f64| {
            rows.iter().filter(|row| row.score("said yes") == said && row.score("is yes") == is).count() as f64
        };
        let (hits, false_hits, misses) = (count(1.0, 1.0), count(1.0, 0.0), count(0.0, 1.0));
        let share = |part: f64, of: f64| if of > 0.0 { part / of } else { 0.0 };
        let (precision, recall) = (share(hits, hits + false_hits), share(hits, hits + misses));
        for (figure, value) in [
            ("accuracy", mean(&rows, "right")),
            ("precision", precision),
            ("recall", recall),
            ("F1", share(2.0 * precision * recall, precision + recall)),
            ("share of yes", mean(&rows, "said yes")),
        ] {
            figures.push((format!("{name}, {figure}"), value));
        }
    }
    figures
}

/// MME: per category accuracy and accuracy⁺ (both questions about a picture right), in percent; a category's score is
/// their sum, and perception and cognition are sums over categories.
fn mme(rows: &[&Row]) -> Vec<(String, f64)> {
    let mut categories: BTreeMap<&str, BTreeMap<&str, Vec<f64>>> = BTreeMap::new();
    for row in rows {
        // A picture that was drawn twice has its pair of answers twice, one after the other.
        categories.entry(&row.category).or_default().entry(&row.unit).or_default().push(row.score("right"));
    }
    let (mut sums, mut figures) = ([0.0, 0.0], Vec::new());
    for (category, pictures) in &categories {
        let answers: Vec<f64> = pictures.values().flatten().copied().collect();
        let accuracy = 100.0 * answers.iter().sum::<f64>() / answers.len() as f64;
        let pairs: Vec<f64> = pictures
            .values()
            .flat_map(|answers| {
                answers.chunks(2).map(|pair| f64::from(u8::from(pair.iter().all(|right| *right == 1.0))))
            })
            .collect();
        let plus = 100.0 * pairs.iter().sum::<f64>() / pairs.len() as f64;
        sums[usize::from(COGNITION.contains(category))] += accuracy + plus;
        figures.push((format!("{category}, accuracy"), accuracy));
        figures.push((format!("{category}, accuracy+"), plus));
        figures.push((format!("{category}, score"), accuracy + plus));
    }
    let named = [("perception", sums[0]), ("cognition", sums[1])];
    named.map(|(name, sum)| (name.to_owned(), sum)).into_iter().chain(figures).collect()
}

/// The table of GenEval's own scorer: per task and overall, intervals over prompts.
pub fn of_scorer(results: &ScorerResults) -> Vec<Figure> {
    let row = |(task, (prompt, right)): (&String, (&String, &Vec<bool>))| Row {
        item: prompt.clone(),
        category: task.clone(),
        unit: prompt.clone(),
        guidance: None,
        scores: BTreeMap::from([(
            "right".to_owned(),
            right.iter().filter(|right| **right).count() as f64 / right.len().max(1) as f64,
        )]),
        said: Vec::new(),
    };
    let rows: Vec<Row> =
        results.iter().flat_map(|(task, prompts)| prompts.iter().map(move |prompt| row((task, prompt)))).collect();
    let amount = |rows: &[&Row]| -> BTreeMap<String, f64> {
        let mut tasks: BTreeMap<&str, Vec<&Row>> = BTreeMap::new();
        rows.iter().for_each(|row| tasks.entry(&row.category).or_default().push(row));
        let tasks: BTreeMap<String, f64> =
            tasks.into_iter().map(|(task, rows)| (task.to_owned(), mean(&rows, "right"))).collect();
        let overall = tasks.values().sum::<f64>() / tasks.len().max(1) as f64;
        std::iter::once(("overall".to_owned(), overall)).chain(tasks).collect()
    };
    let strata = strata(&rows);
    let draws: Vec<BTreeMap<String, f64>> = (0..DRAWS)
        .map(|draw| amount(&drawn(&strata, draw).into_iter().map(|at| &rows[at]).collect::<Vec<_>>()))
        .collect();
    let mut figures: Vec<Figure> = amount(&rows.iter().collect::<Vec<_>>())
        .into_iter()
        .map(|(name, value)| {
            let own: Vec<f64> = draws.iter().filter_map(|draw| draw.get(&name).copied()).collect();
            let alone =
                |units: &Vec<Vec<usize>>| units.len() == 1 && (name == "overall" || rows[units[0][0]].category == name);
            let half_width = if strata.iter().any(alone) { f64::NAN } else { 1.96 * deviation(&own) };
            Figure { half_width, difference: None, name, value }
        })
        .collect();
    figures.sort_by_key(|figure| figure.name != "overall");
    figures
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::made::Origin;

    fn row(category: &str, unit: &str, scores: &[(&str, f64)]) -> Row {
        let scores = scores.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
        Row { item: unit.into(), category: category.into(), unit: unit.into(), guidance: None, scores, said: vec![] }
    }

    fn figures(benchmark: Benchmark, rows: &[Row]) -> BTreeMap<String, f64> {
        amount(benchmark, &rows.iter().collect::<Vec<_>>()).into_iter().collect()
    }

    fn near(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-9, "{found} against {expected}");
    }

    #[test]
    fn pope_worked_by_hand() {
        // Three hits, one false hit, two misses, four right noes.
        let answers = [(1.0, 1.0, 3), (1.0, 0.0, 1), (0.0, 1.0, 2), (0.0, 0.0, 4)];
        let mut rows = Vec::new();
        for (said, is, count) in answers {
            for number in 0..count {
                let right = f64::from(u8::from(said == is));
                rows.push(row(
                    "random",
                    &format!("{said}{is}{number}"),
                    &[("said yes", said), ("is yes", is), ("right", right)],
                ));
            }
        }
        let found = figures(Benchmark::Pope, &rows);
        near(found["all, accuracy"], 0.7);
        near(found["all, precision"], 0.75);
        near(found["all, recall"], 0.6);
        near(found["all, F1"], 2.0 * 0.75 * 0.6 / 1.35);
        near(found["all, share of yes"], 0.4);
    }

    #[test]
    fn mme_worked_by_hand() {
        // Colours: pictures with 2, 1 and 0 right of 2: accuracy 50, accuracy+ 33.3. Code: one picture, both right.
        let mut rows = Vec::new();
        for (category, unit, right) in [
            ("color", "a", [1.0, 1.0]),
            ("color", "b", [1.0, 0.0]),
            ("color", "c", [0.0, 0.0]),
            ("code_reasoning", "d", [1.0, 1.0]),
        ] {
            rows.extend(right.map(|right| row(category, unit, &[("right", right)])));
        }
        let found = figures(Benchmark::Mme, &rows);
        near(found["color, accuracy"], 50.0);
        near(found["color, accuracy+"], 100.0 / 3.0);
        near(found["perception"], 50.0 + 100.0 / 3.0);
        near(found["cognition"], 200.0);
    }

    #[test]
    fn image_benchmarks_worked_by_hand() {
        let under = |guidance: f64, row: Row| Row { guidance: Some(guidance), ..row };
        let rows = [
            under(0.0, row("colors", "0", &[("mean", 0.5), ("product", 0.2)])),
            under(0.0, row("colors", "1", &[("mean", 0.7), ("product", 0.4)])),
            under(0.0, row("position", "2", &[("mean", 1.0), ("product", 0.9)])),
            under(5.0, row("position", "2", &[("mean", 0.0), ("product", 0.0)])),
        ];
        let found = figures(Benchmark::Geneval, &rows);
        near(found["guidance 0: overall, mean"], 0.8); // (0.6 + 1.0) / 2, over tasks
        near(found["guidance 0: overall, product"], 0.6);
        near(found["guidance 0: colors, product"], 0.3);
        near(found["guidance 5: overall, mean"], 0.0);
        let rows = [
            under(1.0, row("all", "a", &[("all", 0.5), ("right: object", 1.0), ("asked: object", 2.0)])),
            under(1.0, row("all", "b", &[("all", 1.0), ("right: object", 1.0), ("asked: object", 1.0)])),
        ];
        let found = figures(Benchmark::Dpg, &rows);
        near(found["guidance 1: all"], 0.75);
        near(found["guidance 1: about object"], 2.0 / 3.0);
    }

    #[test]
    fn intervals_are_those_of_the_mean_and_differences_are_paired() {
        let rows = |shift: f64| -> Vec<Row> {
            (0..400)
                .map(|at| row("all", &format!("{at:03}"), &[("right", f64::from(at % 2 == 0) * 0.5 + shift)]))
                .collect()
        };
        let report = |model: &str, shift: f64| BenchmarkReport {
            benchmark: Benchmark::Vqa,
            model: model.into(),
            line: String::new(),
            made_from: Origin::default(),
            rows: rows(shift),
        };
        let (before, after) = (report("base", 0.0), report("aligned", 0.1));
        let found = of(&after, Some(&before)).unwrap();
        near(found[0].value, 0.35);
        // 1.96 · 0.25 / √400 = 0.0245
        assert!((found[0].half_width - 0.0245).abs() < 0.002, "{}", found[0].half_width);
        let (difference, half) = found[0].difference.unwrap();
        assert!((difference - 0.1).abs() < 1e-9 && half < 1e-9, "the same shift everywhere");
        let mut mixed = before.clone();
        mixed.rows.push(row("rare", "x", &[("right", 1.0)]));
        let found: BTreeMap<String, String> =
            of(&mixed, None).unwrap().into_iter().map(|figure| (figure.name.clone(), figure.shown())).collect();
        assert_eq!(found["rare"], "1.000 ± –", "of one question nothing is known");
        let other = BenchmarkReport { rows: before.rows[1..].to_vec(), ..before };
        assert!(of(&after, Some(&other)).unwrap_err().to_string().contains("other items"));
    }

    #[test]
    fn the_scorers_results_are_averaged_over_tasks() {
        let prompts = |all: &[(&str, &[bool])]| {
            all.iter().map(|(prompt, right)| ((*prompt).to_owned(), right.to_vec())).collect()
        };
        let results = ScorerResults::from([
            ("colors".to_owned(), prompts(&[("a", &[true, true, false, false]), ("b", &[true; 4])])),
            ("position".to_owned(), prompts(&[("c", &[false; 4])])),
        ]);
        let found = of_scorer(&results);
        assert_eq!(found[0].name, "overall");
        near(found[0].value, 0.375);
        near(found[1].value, 0.75);
    }
}
