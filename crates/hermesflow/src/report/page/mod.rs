//! The report of runs: one HTML file that shows what was run, what taught the model what, and whether it got better.
//!
//! The page holds its style, its script, its charts and, within a budget, its pictures: it needs no network and no other
//! file. `page.html` is a template of minijinja; `script.js` filters and shows the records.

mod charts;
mod figures;
mod folder;
mod previews;
mod records;
pub mod serve;
mod settings;
mod source;
mod statistics;
mod thumbnails;
mod training;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use hermesflow_records::{Identified, Record, ScoreRecord, temporary};
use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, Value};
use serde::Serialize;

use crate::files;
use charts::Chart;
use figures::Figures;
use folder::RunFolder;
use previews::Previews;
use records::{Iteration, OPEN, Tally};
use settings::Settings;
use source::Source;
use statistics::{Comparison, Looks, PICTURES, PROMPTS, measure, spread};
use thumbnails::{Links, Thumbnails};
use training::Training;

const TEMPLATE: &str = include_str!("page.html");
const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("script.js");
/// Where the records stand in the template.
const RECORDS: &str = "<!-- records -->";

/// The runs of a page.
#[derive(Debug, Clone)]
pub struct Page(Vec<RunFolder>);

/// What the template shows.
#[derive(Serialize)]
struct PageView {
    title: String,
    style: &'static str,
    script: &'static str,
    version: &'static str,
    runs: Vec<RunView>,
    /// Names and outcomes of the runs, as JSON.
    for_script: String,
    /// Charts of several runs.
    compared: Vec<Chart>,
    several: bool,
    watched: bool,
}

/// What a reader is told of a run.
#[derive(Serialize)]
struct RunView {
    name: String,
    folder: String,
    /// In sentences: what was done, and whether it helped.
    said: Vec<String>,
    settings: Settings,
    iterations: Vec<IterationView>,
    evaluated: Option<Figures>,
    judged: Option<Figures>,
    /// Tables of benchmarks, by name.
    benchmarks: Vec<(String, Figures)>,
    previews: Option<Previews>,
    unseen: Vec<Comparison>,
    warnings: Vec<String>,
    charts: Vec<Chart>,
}

#[derive(Serialize)]
struct IterationView {
    number: usize,
    records: usize,
    pairs: usize,
    state: String,
    /// What became of the records: outcome, number, and the reason in a sentence.
    outcomes: Vec<(String, usize, String)>,
}

impl Page {
    /// Opens the folders of runs.
    ///
    /// # Errors
    /// Names the folder that is none of a run.
    pub fn open(folders: &[PathBuf]) -> Result<Self> {
        Ok(Self(folders.iter().map(|folder| RunFolder::open(folder)).collect::<Result<_>>()?))
    }

    /// Where the page of one run lies unless told otherwise: beside what the run is known by.
    pub fn usual_file(&self) -> PathBuf {
        self.0.first().map_or_else(|| "report.html".into(), |run| run.given.join("report.html"))
    }

    /// Writes the page into a file.
    ///
    /// # Errors
    /// Names what of a run cannot be read, or the file that cannot be written.
    pub fn write(&self, out: &Path) -> Result<()> {
        let folder = out.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        let unfinished = temporary(out);
        let write = || -> Result<()> {
            let file = std::fs::File::create(&unfinished)?;
            let mut file = std::io::BufWriter::new(file);
            self.render(Links::From(folder.to_owned()), false, &mut file)?;
            file.flush()?;
            file.get_ref().sync_all()?;
            std::fs::rename(&unfinished, out)?;
            Ok(())
        };
        write().inspect_err(|_| drop(std::fs::remove_file(&unfinished))).with_context(|| out.display().to_string())
    }

    /// Renders the page; one that is `watched` asks its server whether there is a newer one.
    fn render(&self, links: Links, watched: bool, out: &mut impl Write) -> Result<()> {
        let opened = self.0.iter().map(opened).collect::<Result<Vec<_>>>()?;
        let of: usize = opened.iter().flatten().map(|(_, iteration)| iteration.len()).sum();
        let (mut first, mut data, mut views, mut trainings) = (0, Vec::new(), Vec::new(), Vec::new());
        for (number, (run, iterations)) in self.0.iter().zip(&opened).enumerate() {
            let thumbnails = Thumbnails { run: number, root: run.config.data.root.clone(), links: links.clone() };
            let mut tallies = Vec::new();
            for (iteration, made) in iterations {
                let (lines, tally) = made.write(&thumbnails, (first, of)).with_context(|| run.name())?;
                first += made.len();
                data.push((number, *iteration, lines));
                tallies.push((*iteration, tally));
            }
            let training = Training::read(run)?;
            views.push(view(run, iterations, tallies, &training).with_context(|| run.name())?);
            trainings.push((run.name(), training));
        }
        let several = self.0.len() > 1;
        let named: Vec<(String, &Training)> =
            trainings.iter().map(|(name, training)| (name.clone(), training)).collect();
        let compared = if several { training::compared(&named)? } else { Vec::new() };
        let mut environment = Environment::new();
        environment.set_auto_escape_callback(|_| AutoEscape::Html);
        environment.add_template("page", TEMPLATE).context("the report's template")?;
        let page =
            environment.get_template("page").context("the report's template")?.render(Value::from(Serde(PageView {
                title: self.0.iter().map(RunFolder::name).collect::<Vec<_>>().join(" and "),
                style: STYLE,
                script: SCRIPT,
                version: env!("CARGO_PKG_VERSION"),
                for_script: for_script(&views)?,
                runs: views,
                compared,
                several,
                watched,
            })));
        let page = page.context("the report's template")?;
        let (head, tail) = page.split_once(RECORDS).context("the report's template has no place for records")?;
        out.write_all(head.as_bytes())?;
        for (run, iteration, lines) in data {
            write!(out, "<script type=\"application/json\" class=\"records\" data-run=\"{run}\" ")?;
            write!(out, "data-iteration=\"{iteration}\">[")?;
            for (at, line) in lines.iter().enumerate() {
                out.write_all(if at == 0 { b"\n" } else { b",\n" })?;
                out.write_all(line.as_bytes())?;
            }
            out.write_all(b"\n]</script>\n")?;
        }
        out.write_all(tail.as_bytes())?;
        Ok(())
    }
}

/// What the script must know of the runs, as JSON in which nothing ends a script.
fn for_script(views: &[RunView]) -> Result<String> {
    let reasons = |view: &RunView| -> BTreeMap<String, serde_json::Value> {
        view.iterations.iter().map(|one| (one.number.to_string(), serde_json::json!(one.outcomes))).collect()
    };
    let runs: Vec<_> =
        views.iter().map(|view| serde_json::json!({ "name": view.name, "reasons": reasons(view) })).collect();
    Ok(serde_json::to_string(&runs)?.replace('<', "\\u003c"))
}

fn opened(run: &RunFolder) -> Result<Vec<(usize, Iteration)>> {
    let open = |iteration| Ok((iteration, Iteration::open(run, iteration).with_context(|| run.name())?));
    run.iterations().into_iter().map(open).collect()
}

fn view(
    run: &RunFolder,
    iterations: &[(usize, Iteration)],
    tallies: Vec<(usize, Tally)>,
    training: &Training,
) -> Result<RunView> {
    let evaluated = figures::of_evaluations(&figures::evaluations(run))?;
    let judged = figures::of_judges(&tallies, !run.config.data.fresh)?;
    let (previews, mut unseen) = previews::of(run)?.map_or((None, Vec::new()), |(all, unseen)| (Some(all), unseen));
    unseen.extend(candidates(run, iterations)?);
    let pairs = |tally: &Tally| {
        [ScoreRecord::PAIR, ScoreRecord::CARRIED]
            .iter()
            .filter_map(|outcome| tally.outcomes.get(*outcome))
            .sum::<usize>()
    };
    let shown: Vec<IterationView> = iterations
        .iter()
        .zip(&tallies)
        .map(|((number, made), (_, tally))| IterationView {
            number: *number,
            records: made.len(),
            pairs: pairs(tally),
            state: state(run, *number, made, training),
            outcomes: outcomes(run, &tally.outcomes),
        })
        .collect();
    let mut said = vec![overview(&shown)];
    said.extend(
        evaluated.iter().chain(evaluated.is_none().then_some(()).and(judged.as_ref())).flat_map(|it| it.said.clone()),
    );
    let mut warnings: Vec<String> = unseen.iter().flat_map(|comparison| comparison.warnings.clone()).collect();
    if let Some((iteration, step, text)) = training.warnings.first() {
        let more = match training.warnings.len() - 1 {
            0 => String::new(),
            more => format!(" (and {more} more)"),
        };
        warnings.push(format!("iteration {iteration}, step {step}: {text}{more}"));
    }
    Ok(RunView {
        name: run.name(),
        folder: run.config.output.display().to_string(),
        said,
        settings: Settings::of(run)?,
        iterations: shown,
        evaluated,
        judged,
        benchmarks: figures::of_benchmarks(run)?,
        previews,
        unseen,
        warnings,
        charts: training.charts()?,
    })
}

/// What a run has done, in a sentence.
fn overview(iterations: &[IterationView]) -> String {
    let records: usize = iterations.iter().map(|one| one.records).sum();
    let pairs: usize = iterations.iter().map(|one| one.pairs).sum();
    let open = iterations.iter().flat_map(|one| &one.outcomes).filter(|(outcome, ..)| outcome == OPEN);
    let open: usize = open.map(|(_, count, _)| count).sum();
    match (records, pairs) {
        (0, _) => "Nothing has been made yet: the run has no records so far.".into(),
        (_, 0) => format!("{} so far, and no preference pair yet.", counted(records, "record")),
        _ => format!(
            "{} of {} taught the model, in {}; the others gave no pair{}.",
            counted(pairs, "preference pair"),
            counted(records - open, "record"),
            counted(iterations.iter().filter(|one| one.pairs > 0).count(), "iteration"),
            if open > 0 { format!(", and {} are not decided yet", counted(open, "record")) } else { String::new() }
        ),
    }
}

fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// How far an iteration is.
fn state(run: &RunFolder, number: usize, made: &Iteration, training: &Training) -> String {
    if run.at(number).model().is_dir() {
        return "finished".into();
    }
    if let Some((_, steps)) = training.steps.iter().find(|(iteration, _)| *iteration == number) {
        return format!("training: {steps} of {} steps", run.config.train.schedule.steps);
    }
    if made.pairs.is_whole() {
        return "pairs are chosen; not trained yet".into();
    }
    if made.answers.len() > 0 {
        return format!("answering: {} of {} records", made.answers.len(), made.len());
    }
    if made.questions.is_whole() {
        return "questions are asked; not answered yet".into();
    }
    working("captions", &made.captions, made.len()).unwrap_or_else(|| "not begun".into())
}

fn working<R: Record + Identified + Clone>(what: &str, source: &Source<R>, of: usize) -> Option<String> {
    match source {
        Source::Missing => None,
        Source::Growing(_) => Some(format!("{what}: {} of {of} records", source.len())),
        Source::Whole(_) => Some(format!("{what} are written; images or questions are not done yet")),
    }
}

/// The outcomes of records with their reasons in sentences, pairs first.
fn outcomes(run: &RunFolder, outcomes: &BTreeMap<String, usize>) -> Vec<(String, usize, String)> {
    let mut all: Vec<(String, usize, String)> =
        outcomes.iter().map(|(outcome, count)| (outcome.clone(), *count, reason(run, outcome))).collect();
    all.sort_by_key(|(outcome, count, _)| {
        (outcome != ScoreRecord::PAIR, outcome != ScoreRecord::CARRIED, usize::MAX - count)
    });
    all
}

/// Why a record has an outcome.
fn reason(run: &RunFolder, outcome: &str) -> String {
    let threshold = run.config.pair.min_accuracy;
    match outcome {
        ScoreRecord::PAIR => "has a best and a worst caption and image, from which the model learned".into(),
        ScoreRecord::CARRIED => "nothing better was found: the pair of the iteration before stays".into(),
        OPEN => "the stage `pair` has not come to it yet".into(),
        "no captions" => "the model wrote no captions, for example because the picture cannot be read".into(),
        "no answers" => "its images have no scores: there are no questions about it, or no images".into(),
        "captions tie" => {
            "its best and its worst caption are equally similar to the true one, or the same words: none can \
                           be preferred"
                .into()
        }
        "images tie" => "all of its images have the same score: none can be preferred".into(),
        "best image below threshold" => {
            format!(
                "even its best image scored no more than {threshold} (pair.min_accuracy): it is no example to follow"
            )
        }
        _ => "its scores were not kept, so the reason is not known exactly; `hermesflow pair` notes it anew".into(),
    }
}

/// What no judge sees of the candidates, iteration by iteration, beside the records' own pictures.
fn candidates(run: &RunFolder, iterations: &[(usize, Iteration)]) -> Result<Option<Comparison>> {
    let mut sets: Vec<(String, Looks)> = Vec::new();
    for (number, made) in iterations {
        let (layout, Some(records)) = (run.at(*number), &made.records) else { continue };
        let chosen = spread((0..records.len()).collect(), PROMPTS);
        let chosen = chosen.into_iter().map(|at| Ok(records.read(at..at + 1)?.pop())).collect::<Result<Vec<_>>>()?;
        let chosen: Vec<_> = chosen.into_iter().flatten().collect();
        if sets.is_empty() {
            let own: Vec<Vec<PathBuf>> =
                chosen.iter().map(|record| vec![layout.data().join(&record.img_path)]).collect();
            sets.extend(measure(&own).map(|looks| ("the records' own pictures".to_owned(), looks)));
        }
        let of_record = |id: &str| -> Vec<PathBuf> {
            let all = (0..run.config.imagine.images).map(|number| layout.image(id, number));
            spread(all.filter(|path| path.is_file()).collect(), PICTURES)
        };
        let drawn: Vec<Vec<PathBuf>> = chosen.iter().map(|record| of_record(record.id.as_str())).collect();
        sets.extend(measure(&drawn).map(|looks| (format!("iteration {number}"), looks)));
    }
    let own = sets.first().is_some_and(|(name, _)| name.starts_with("the records"));
    if sets.len() < 1 + usize::from(own) {
        return Ok(None);
    }
    let note = "Images of the iterations' captions, some of each. Iteration 1 was drawn by the model before training.";
    Ok(Some(Comparison::new("Candidates", note, sets, usize::from(own))))
}

/// Writes the report of a run's folder where it usually lies; the file.
///
/// # Errors
/// As [`Page::open`] and [`Page::write`].
pub fn write_usual(folder: &Path) -> Result<PathBuf> {
    let page = Page::open(&[folder.to_owned()])?;
    let out = page.usual_file();
    ensure_ours(&out)?;
    page.write(&out)?;
    Ok(out)
}

/// Refuses to write over a file that is no report.
///
/// # Errors
/// Names the file.
pub fn ensure_ours(out: &Path) -> Result<()> {
    let beginning = files::if_there(out, |path| {
        use std::io::Read;
        let mut text = Vec::new();
        std::fs::File::open(path)?.take(400).read_to_end(&mut text)?;
        Ok(text)
    })?;
    let ours = |text: Vec<u8>| String::from_utf8_lossy(&text).contains("name=\"generator\" content=\"hermesflow");
    anyhow::ensure!(
        beginning.is_none_or(|text| text.is_empty() || ours(text)),
        "{}: already exists, and is not a report of this program; choose another file with --out",
        out.display()
    );
    Ok(())
}
