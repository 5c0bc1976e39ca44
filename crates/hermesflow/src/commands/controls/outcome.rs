//! What the arms came to, and the tables of it.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::report;
use crate::world::evaluate::{EvalReport, PromptRow, Verdict};
use crate::world::floors::Floor;
use crate::world::statistics::{Interval, Mean};

/// A model's report, with the guidance under which it is compared.
pub struct Evaluated {
    /// The report.
    pub report: EvalReport,
    /// The guidance that was best on dev prompts.
    pub guidance: f64,
    /// The guidance of the run, under which the report's own pictures were drawn.
    pub own: f64,
}

impl Evaluated {
    /// What the oracle says of each prompt's picture that was drawn under a guidance.
    fn under(&self, guidance: f64) -> Result<Vec<Verdict>> {
        let of = |row: &PromptRow| match guidance == self.own {
            true => Some(Verdict { facts: row.generation(), all: row.all }),
            false => row.drawn_under(guidance),
        };
        let all: Option<Vec<Verdict>> = self.report.rows.iter().map(of).collect();
        all.with_context(|| format!("the report of {} has no pictures under guidance {guidance}", self.report.model))
    }

    /// All guidances of its report.
    fn guidances(&self) -> Vec<f64> {
        let others = self.report.rows.first().map(|row| row.under.iter().map(|(guidance, _)| *guidance));
        let mut all: Vec<f64> = others.into_iter().flatten().chain([self.own]).collect();
        all.sort_by(f64::total_cmp);
        all
    }

    fn understanding(&self) -> Vec<f64> {
        self.report.rows.iter().map(PromptRow::understanding).collect()
    }
}

/// Pictures under one guidance, beside the base's under the same.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Under {
    guidance: f64,
    generation: Mean,
    generation_change: Mean,
    all_right_change: Mean,
}

/// One arm after one iteration with one seed. Generation, all right and the gap are those under the best guidance of the
/// arm, and their changes are from the base under its own best.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Outcome {
    arm: String,
    seed: u64,
    iteration: usize,
    /// How many pairs or records it learned from.
    records: Option<usize>,
    /// The best guidance: of the base, then of the arm.
    best_guidance: [f64; 2],
    understanding: Mean,
    generation: Mean,
    all_right: Mean,
    understanding_change: Mean,
    generation_change: Mean,
    all_right_change: Mean,
    gap_change: Mean,
    gap_before: Mean,
    under: Vec<Under>,
}

fn facts(verdicts: &[Verdict]) -> Vec<f64> {
    verdicts.iter().map(|verdict| verdict.facts).collect()
}

fn rights(verdicts: &[Verdict]) -> Vec<f64> {
    verdicts.iter().map(|verdict| f64::from(u8::from(verdict.all))).collect()
}

/// The mean of some numbers, and its change from those before.
fn means(before: &[f64], after: &[f64]) -> (Mean, Mean) {
    (Mean::of(after.iter().copied()), Mean::of_differences(before, after))
}

impl Outcome {
    /// What an arm came to beside the base, on the same prompts.
    ///
    /// # Errors
    /// When the two were evaluated on other prompts or under other guidances.
    pub fn of_arm(
        arm: &str,
        (seed, iteration): (u64, usize),
        records: Option<usize>,
        base: &Evaluated,
        after: &Evaluated,
    ) -> Result<Self> {
        base.report
            .check_about(&after.report.settings)
            .with_context(|| format!("the report of {}", base.report.model))?;
        let (old, new) = (base.under(base.guidance)?, after.under(after.guidance)?);
        let gap = |all: &Evaluated, facts: Vec<f64>| -> Vec<f64> {
            all.understanding().into_iter().zip(facts).map(|(understanding, facts)| understanding - facts).collect()
        };
        let gaps = (gap(base, facts(&old)), gap(after, facts(&new)));
        let (understanding, understanding_change) = means(&base.understanding(), &after.understanding());
        let (generation, generation_change) = means(&facts(&old), &facts(&new));
        let (all_right, all_right_change) = means(&rights(&old), &rights(&new));
        let under = |guidance: f64| -> Result<Under> {
            let (old, new) = (base.under(guidance)?, after.under(guidance)?);
            let (generation, generation_change) = means(&facts(&old), &facts(&new));
            let all_right_change = Mean::of_differences(&rights(&old), &rights(&new));
            Ok(Under { guidance, generation, generation_change, all_right_change })
        };
        Ok(Self {
            arm: arm.to_owned(),
            seed,
            iteration,
            records,
            best_guidance: [base.guidance, after.guidance],
            understanding,
            generation,
            all_right,
            understanding_change,
            generation_change,
            all_right_change,
            gap_change: Mean::of_differences(&gaps.0, &gaps.1),
            gap_before: Mean::of(gaps.0.iter().copied()),
            under: after.guidances().into_iter().map(under).collect::<Result<_>>()?,
        })
    }

    /// A floor beside the base under its best guidance: its pictures show no understanding, and were not made by an arm.
    ///
    /// # Errors
    /// When the base's report lacks that guidance.
    pub fn of_floor(floor: &Floor, seed: u64, base: &Evaluated) -> Result<Self> {
        let (none, old) = (Mean::of([]), base.under(base.guidance)?);
        let (generation, generation_change) = means(&facts(&old), &facts(&floor.verdicts));
        let (all_right, all_right_change) = means(&rights(&old), &rights(&floor.verdicts));
        Ok(Self {
            arm: floor.name.into(),
            seed,
            iteration: 0,
            records: None,
            best_guidance: [base.guidance; 2],
            understanding: none,
            generation,
            all_right,
            understanding_change: none,
            generation_change,
            all_right_change,
            gap_change: none,
            gap_before: none,
            under: Vec::new(),
        })
    }
}

/// Three tables of what the arms came to after their last iteration, by their names and what they are: over all seeds,
/// guidance by guidance, and seed by seed.
pub fn tables(named: &[(&str, &str)], outcomes: &[Outcome]) -> String {
    let header = ["", "pairs", "generation", "change", "all right", "understanding", "gap before", "gap"];
    let mut pooled = report::table(&header);
    let mut single = report::table(&[&["", "seed", "guidance"], &header[1..]].concat());
    let guidances: Vec<f64> = outcomes
        .iter()
        .map(|one| &one.under)
        .max_by_key(|under| under.len())
        .map_or(vec![], |all| all.iter().map(|under| under.guidance).collect());
    let columns: Vec<String> = guidances.iter().map(|guidance| format!("at {guidance}")).collect();
    let mut by_guidance = report::table(&[&[""], &columns.iter().map(String::as_str).collect::<Vec<_>>()[..]].concat());
    for (name, what) in named {
        let of_arm: Vec<&Outcome> = outcomes.iter().filter(|outcome| outcome.arm == *name).collect();
        let last = of_arm.iter().map(|outcome| outcome.iteration).max().unwrap_or(0);
        let ended: Vec<&Outcome> = of_arm.into_iter().filter(|outcome| outcome.iteration == last).collect();
        if ended.is_empty() {
            continue;
        }
        pooled.add_row([vec![(*what).to_owned()], figures(&ended)].concat());
        if ended.iter().all(|outcome| outcome.under.len() == guidances.len()) {
            let at = |place: usize| {
                let over = |of: fn(&Under) -> Mean| Interval::over(ended.iter().map(|one| of(&one.under[place])));
                format!("{:+}", over(|under| under.generation_change))
            };
            by_guidance.add_row([vec![(*what).to_owned()], (0..guidances.len()).map(at).collect()].concat());
        }
        for outcome in ended {
            let [base, arm] = outcome.best_guidance;
            let guidance = format!("{base} → {arm}");
            let first = vec![(*what).to_owned(), outcome.seed.to_string(), guidance];
            single.add_row([first, figures(&[outcome])].concat());
        }
    }
    format!(
        "Each model under the guidance that was best for it on dev prompts; changes from the base:\n\n{pooled}\n\n\
         Change of generation, base and arm under the same guidance:\n\n{by_guidance}\n\n\
         Seed by seed, with the best guidance of base and arm:\n\n{single}\n\n\
         ± is half the 95 % interval: over prompts where there is one seed (1.96 standard errors), else over the means of the \
         seeds (Student's t), which differ by their prompts and by their trainings"
    )
}

/// The figures of one arm's outcomes, in the order of the header.
fn figures(outcomes: &[&Outcome]) -> Vec<String> {
    let over = |of: fn(&Outcome) -> Mean| Interval::over(outcomes.iter().map(|outcome| of(outcome)));
    let plain =
        |interval: Interval| if interval.count == 0 { interval.to_string() } else { format!("{:.3}", interval.mean) };
    let records: Option<Vec<usize>> = outcomes.iter().map(|outcome| outcome.records).collect();
    let records = records.map_or("–".to_owned(), |all| {
        (all.iter().sum::<usize>() as f64 / all.len().max(1) as f64).round().to_string()
    });
    vec![
        records,
        plain(over(|outcome| outcome.generation)),
        format!("{:+}", over(|outcome| outcome.generation_change)),
        format!("{:+}", over(|outcome| outcome.all_right_change)),
        format!("{:+}", over(|outcome| outcome.understanding_change)),
        plain(over(|outcome| outcome.gap_before)),
        format!("{:+}", over(|outcome| outcome.gap_change)),
    ]
}
