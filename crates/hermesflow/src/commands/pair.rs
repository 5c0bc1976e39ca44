//! `hermesflow pair`: the best and the worst caption and image of every record.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use super::args::stage_command;
use super::scenes;
use crate::config::ImageJudge;
use crate::files;
use crate::judges::{self, Judges};
use crate::made::{Origin, WholeFile};
use crate::run::attempts::{self, attempt, is_first_round};
use crate::run::context::RunContext;
use crate::run::layout::RunLayout;
use crate::run::pictures::Pictures;
use crate::run::sharing::Turn;
use crate::run::stage;
use hermesflow_records::{
    AnswerRecord, Candidates, CaptionRecord, DropReason, InitialRecord, PairRecord, ScoreRecord, Scored, Table,
    first_round, later_round, ranked,
};
use hermesflow_score::CaptionSimilarity;

stage_command! {
    /// Choose the best and the worst caption and image of every record
    ///
    /// Captions are compared by their similarity to the true one, images by the share of questions that the model answered
    /// rightly about them (with `answer.caption_likelihood` by that and by how likely it finds the caption, ranks summed). A
    /// record gives a pair only if both sides have a clear winner and its best image is good enough
    /// (`pair.min_accuracy`); what is dropped is counted by reason, after what `hermesflow run` drew of it again
    /// (`pair.retries`). With the same records in every iteration
    /// (`data.fresh: false`) later iterations renew the pairs of the one before. Writes pair_dpo_data.json, and the scores of
    /// all candidates, which `hermesflow report` shows, into pair_dpo_scores.json.
    ///
    /// Example: hermesflow pair scenes pair.min_accuracy=0.8
    "pair", |run| {
        if let Some(chosen) = pair(run)? {
            say!("{chosen}")?;
        }
        Ok(run.layout.pairs())
    }
}

/// What became of the records.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chosen {
    /// Records that gave a pair.
    pub kept: usize,
    /// Pairs of the iteration before of which nothing better was found, on either side.
    pub carried: usize,
    /// Records that gave theirs when they were tried again.
    pub again: usize,
    /// Pairs whose rejected image is one of an altered caption.
    pub altered: usize,
    /// Records that did not, by reason.
    pub dropped: BTreeMap<DropReason, usize>,
}

impl fmt::Display for Chosen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = self.kept + self.dropped.values().sum::<usize>();
        write!(f, "pair: {} pairs from {all} records", self.kept)?;
        if self.again > 0 {
            write!(f, "; {} of them when tried again", self.again)?;
        }
        if self.altered > 0 {
            write!(f, "; {} against images of altered captions", self.altered)?;
        }
        if self.carried > 0 {
            write!(f, "; {} carried over", self.carried)?;
        }
        for (reason, count) in &self.dropped {
            write!(f, "; {count} dropped: {reason}")?;
        }
        Ok(())
    }
}

/// Chooses and writes the pairs of an iteration; what became of the records, for the writer. Where several processes do a
/// run, they share out what a judge with weights has to say.
///
/// # Errors
/// Names the record and the file that stand in the way.
pub fn pair(run: &RunContext) -> Result<Option<Chosen>> {
    score_together(run, run.config.pair.retries)?;
    run.once(choose)
}

/// Begins with the pairs of an iteration after so many further tries: where several processes do a run, they share out what a
/// judge with weights has to say.
fn score_together(run: &RunContext, tries: usize) -> Result<()> {
    run.sharing.enter_round(run.layout.iteration(), Turn::Pair, tries);
    if !run.group().is_alone() && run.config.pair.similarity.model().is_some() {
        let (records, competition) = (scenes::initial_data(run)?, Competition::open(run, tries)?);
        let of_chunk = |chunk: Range<usize>| competition.contests(&records, chunk).map(drop);
        stage::share_out("similarity", "records", &competition.chunks(&records), run, of_chunk)?;
        competition.judges.settle()?;
    }
    Ok(())
}

/// Chooses and writes the pairs of an iteration, in one process.
fn choose(run: &RunContext) -> Result<Chosen> {
    let records = scenes::initial_data(run)?;
    let competition = Competition::open(run, run.config.pair.retries)?;
    let output = WholeFile {
        path: run.layout.pairs(),
        note: run.layout.stamp("pair"),
        remedy: "`hermesflow train` takes it as it is; to choose pairs anew, move it away",
    };
    let scores = WholeFile {
        path: run.layout.pair_scores(),
        note: run.layout.stamp("pair-scores"),
        remedy: "move it away; `hermesflow pair` writes it anew",
    };
    let (mut pairs, mut chosen) = (output.begin()?, Chosen::default());
    let mut scored = scores.begin()?;
    let chunks = competition.chunks(&records);
    let task = run.progress.task("similarity", "records", chunks.last().map_or(0, |chunk| chunk.end), 0);
    for (number, chunk) in chunks.into_iter().enumerate() {
        run.sharing.begin(number);
        for contest in competition.contests(&records, chunk)? {
            match contest {
                Contest::First(Tried { pair, mut scores, again }) => {
                    chosen.again += usize::from(again > 0 && pair.is_ok());
                    match pair {
                        Ok(pair) => {
                            chosen.altered += usize::from(attempts::is_altered(&pair.image_lose));
                            pairs.push(&pair)?;
                        }
                        Err(reason) => {
                            scores.outcome = reason.to_string();
                            *chosen.dropped.entry(reason).or_default() += 1;
                        }
                    }
                    scored.push(&scores)?;
                }
                Contest::Later(old, new) => {
                    let (captions, images, all) = match new {
                        Some((new, all)) => (new.captions, new.images, Some(all)),
                        None => Default::default(),
                    };
                    let renewed = later_round(&old, &captions, &images);
                    let carried = renewed == *old;
                    chosen.carried += usize::from(carried);
                    pairs.push(&renewed)?;
                    if let Some(mut all) = all {
                        all.outcome = if carried { ScoreRecord::CARRIED.into() } else { all.outcome };
                        scored.push(&all)?;
                    }
                }
            }
            task.advance(1);
        }
    }
    competition.judges.settle()?;
    chosen.kept = pairs.len();
    scores.publish(scored, Origin::default())?;
    output.publish(pairs, Origin::default())?;
    Ok(chosen)
}

/// The records of an iteration that gave no pair, of those that other draws may give one, after so many further tries: for all
/// processes of a run.
///
/// # Errors
/// Names the record and the file that stand in the way.
pub fn left_over(run: &RunContext, tries: usize) -> Result<Vec<InitialRecord>> {
    score_together(run, tries)?;
    let left = run.once(|run| places_left(run, tries))?;
    let (left, records) = (run.group().tell_numbers(left.as_deref())?, scenes::initial_data(run)?);
    let mut all = Vec::with_capacity(left.len());
    for place in left {
        all.extend(records.read(place..place + 1)?);
    }
    Ok(all)
}

/// Where the records that [`left_over`] returns are in the list of all, in one process.
fn places_left(run: &RunContext, tries: usize) -> Result<Vec<usize>> {
    let (records, competition) = (scenes::initial_data(run)?, Competition::open(run, tries)?);
    let mut left = Vec::new();
    for (number, chunk) in records.chunks(run.config.data.chunk).enumerate() {
        run.sharing.begin(number);
        for (place, record) in chunk.clone().zip(records.read(chunk)?) {
            match competition.first_round(&record)?.pair {
                Ok(_) | Err(DropReason::NoCaptions | DropReason::NoAnswers) => {}
                Err(DropReason::CaptionsTie | DropReason::ImagesTie | DropReason::BestImageBelowThreshold) => {
                    left.push(place);
                }
            }
        }
    }
    competition.judges.settle()?;
    Ok(left)
}

/// What competes for the pairs of an iteration, and its judges.
struct Competition<'a> {
    run: &'a RunContext,
    similarity: Box<dyn CaptionSimilarity>,
    judges: Judges,
    /// What was drawn of all records, then what further tries drew of those that were left.
    drawn: Vec<Drawn>,
    /// The images of altered captions, which can only lose: where they lie, and their scores.
    altered: Option<(RunLayout, Images)>,
    /// The pairs of the iteration before, where they are renewed.
    old: Option<Table<PairRecord>>,
}

/// What was drawn in one folder.
struct Drawn {
    layout: RunLayout,
    captions: Table<CaptionRecord>,
    images: Images,
}

/// A record in the first round, or its candidates and all their scores against an earlier pair.
enum Contest {
    First(Tried),
    Later(Box<PairRecord>, Option<(Candidates, ScoreRecord)>),
}

/// Where the scores of images come from.
enum Images {
    Answers(Table<AnswerRecord>),
    /// The control: the share of a caption's statements that the oracle sees in each image.
    Oracle(Pictures),
}

impl<'a> Competition<'a> {
    /// What was drawn, with up to so many further tries.
    fn open(run: &'a RunContext, tries: usize) -> Result<Self> {
        let judges = Judges::of_run(run)?;
        let similarity = judges.similarity(run.config.pair.similarity)?;
        let (mut drawn, mut altered) = (vec![Drawn::open(run)?], None);
        if is_first_round(run) {
            let beside = attempts::altered(run);
            if run.config.pair.altered > 0 && beside.layout.initial_data().is_file() {
                altered = Some((beside.layout.clone(), Images::open(&beside)?));
            }
            let attempts = (1..=tries).map(|number| attempt(run, number)).take_while(Drawn::is_there);
            for attempt in attempts {
                drawn.push(Drawn::open(&attempt)?);
            }
        }
        let previous = run.layout.previous().filter(|_| !is_first_round(run));
        let old = previous.map(|previous| files::pairs(&previous.pairs())).transpose()?;
        Ok(Self { run, similarity, judges, drawn, altered, old })
    }

    /// The work in chunks: of the records, or of the pairs that are renewed.
    fn chunks(&self, records: &Table<InitialRecord>) -> Vec<Range<usize>> {
        let chunk = self.run.config.data.chunk;
        match &self.old {
            None => records.chunks(chunk).collect(),
            Some(old) => old.chunks(chunk).collect(),
        }
    }

    /// What competes in a chunk.
    fn contests(&self, records: &Table<InitialRecord>, chunk: Range<usize>) -> Result<Vec<Contest>> {
        let Some(old) = &self.old else {
            let first = |record| Ok(Contest::First(self.first_round(&record)?));
            return records.read(chunk)?.into_iter().map(first).collect();
        };
        let renew = |old: PairRecord| {
            let new = records.of_id(&old.id)?.pop().map(|record| self.candidates(&record, 1)).transpose()?;
            Ok(Contest::Later(Box::new(old), new))
        };
        old.read(chunk)?.into_iter().map(renew).collect()
    }

    /// The pair of a record: of its first draws or, where these give none, with those of further tries.
    fn first_round(&self, record: &InitialRecord) -> Result<Tried> {
        let (mut again, mut scores) = (0, None);
        loop {
            let (candidates, all) = self.candidates(record, again + 1)?;
            let scores = scores.get_or_insert(all);
            let pair = first_round(&candidates, self.run.config.pair.min_accuracy);
            let has_more = |drawn: &Drawn| drawn.captions.has(record.id.key());
            match self.drawn.get(again + 1) {
                Some(next) if pair.is_err() && has_more(next) => again += 1,
                _ => return Ok(Tried { pair, scores: scores.clone(), again }),
            }
        }
    }

    /// A record with the captions and images of the first draws and of further tries that compete for its pair, `tries` in all,
    /// and all scores that the first draws were given.
    fn candidates(&self, record: &InitialRecord, tries: usize) -> Result<(Candidates, ScoreRecord)> {
        let (mut captions, mut images, mut second) = (Vec::new(), Vec::new(), Vec::new());
        let mut first = None;
        for drawn in &self.drawn[..tries] {
            let found = self.of(drawn, record).with_context(|| format!("record {}", record.id))?;
            let number = |score: &f64| score.is_finite().then_some(*score);
            first.get_or_insert_with(|| ScoreRecord {
                id: record.id.clone(),
                outcome: ScoreRecord::PAIR.into(),
                captions: found.captions.iter().map(|(_, score)| number(score)).collect(),
                images: found.images.iter().map(|(_, score)| number(score)).collect(),
            });
            captions.extend(found.captions);
            images.extend(found.images);
            second.extend(found.likelihoods.into_iter().flatten());
        }
        let by_two = self.run.config.answer.caption_likelihood && second.len() == images.len() && !images.is_empty();
        let images = if by_two { ranked(&images, &second) } else { images };
        let images = self.against_altered(record, images).with_context(|| format!("record {}", record.id))?;
        let scores = first.context("nothing was drawn")?;
        Ok((Candidates { record: record.clone(), captions, images }, scores))
    }

    /// What was drawn of a record in one folder, with its scores.
    fn of(&self, drawn: &Drawn, record: &InitialRecord) -> Result<Found> {
        let captions = drawn.captions.of_id(&record.id)?.pop().map(|one| one.caption_mmu).unwrap_or_default();
        let similarities = self.similarity.similarities(&record.caption, &captions)?;
        let path = |number| drawn.layout.image(record.id.as_str(), number);
        let config = &self.run.config;
        let asked = (config.imagine.images, config.answer.caption_likelihood);
        let (scores, likelihoods) = drawn.images.scores(record, path, asked)?;
        let images = self.named(&drawn.layout, record, scores);
        Ok(Found { captions: captions.into_iter().zip(similarities).collect(), images, likelihoods })
    }

    /// Images as records name them, with their scores.
    fn named(&self, layout: &RunLayout, record: &InitialRecord, scores: Vec<f64>) -> Vec<Scored> {
        let image = |(number, score)| {
            let path = layout.image(record.id.as_str(), number);
            (path.strip_prefix(self.run.layout.data()).unwrap_or(&path).display().to_string(), score)
        };
        scores.into_iter().enumerate().map(image).collect()
    }

    /// The best of some images and the worst of an altered caption where the judge tells these two apart; else the images.
    fn against_altered(&self, record: &InitialRecord, images: Vec<Scored>) -> Result<Vec<Scored>> {
        let Some((layout, altered)) = &self.altered else { return Ok(images) };
        let pair = &self.run.config.pair;
        let path = |number| layout.image(record.id.as_str(), number);
        let is_there = path(0).is_file();
        let (scores, _) =
            if is_there { altered.scores(record, path, (pair.altered, false))? } else { Default::default() };
        let others = self.named(layout, record, scores);
        Ok(told_apart(&images, &others, pair.altered_margin).unwrap_or(images))
    }
}

/// What became of a record in the first round.
struct Tried {
    pair: Result<PairRecord, DropReason>,
    /// The scores of the first draws.
    scores: ScoreRecord,
    /// How many further tries were looked at.
    again: usize,
}

impl Images {
    fn open(run: &RunContext) -> Result<Self> {
        Ok(match run.config.pair.judge {
            ImageJudge::Itself => Self::Answers(files::answers(&run.layout.answers())?),
            ImageJudge::Oracle => Self::Oracle(Pictures::new(&run.layout, hermesflow_scenes::scene::SIDE)),
        })
    }

    /// The scores of a record's images, `count` of them, and how likely its caption is given each where `likely` asks.
    fn scores(
        &self,
        record: &InitialRecord,
        path: impl Fn(usize) -> PathBuf,
        (count, likely): (usize, bool),
    ) -> Result<(Vec<f64>, Option<Vec<f64>>)> {
        Ok(match self {
            Self::Answers(answers) => {
                let answered = answers.of_id(&record.id)?.pop();
                let likely = answered.as_ref().filter(|_| likely).map(likelihoods).transpose()?;
                (answered.map(|one| one.result).unwrap_or_default(), likely)
            }
            Self::Oracle(pictures) => {
                let score = |number| Ok(judges::oracle(&pictures.load(&path(number))?, &record.caption));
                ((0..count).map(score).collect::<Result<_>>()?, None)
            }
        })
    }
}

impl Drawn {
    fn open(run: &RunContext) -> Result<Self> {
        let captions = files::captions(&run.layout.captions())?;
        Ok(Self { layout: run.layout.clone(), captions, images: Images::open(run)? })
    }

    /// Whether a try is there as a whole.
    fn is_there(attempt: &RunContext) -> bool {
        let last = match attempt.config.pair.judge {
            ImageJudge::Itself => attempt.layout.answers(),
            ImageJudge::Oracle => attempt.layout.captions(),
        };
        attempt.layout.initial_data().is_file() && last.is_file()
    }
}

/// The best image, and the first of the lowest score of some others if it scores lower by the margin.
fn told_apart(images: &[Scored], others: &[Scored], margin: f64) -> Option<Vec<Scored>> {
    let known = |images: &[Scored]| images.iter().filter(|one| !one.1.is_nan()).cloned().collect::<Vec<_>>();
    let best = known(images).into_iter().reduce(|best, one| if one.1 > best.1 { one } else { best })?;
    let worst = known(others).into_iter().reduce(|worst, one| if one.1 < worst.1 { one } else { worst })?;
    (worst.1 < best.1 && worst.1 <= best.1 - margin).then(|| vec![best, worst])
}

/// What one folder has of a record: captions and images with their scores.
struct Found {
    captions: Vec<Scored>,
    images: Vec<Scored>,
    /// How likely the caption is given each image, where that is a second judge.
    likelihoods: Option<Vec<f64>>,
}

/// How likely the record's caption is given each of its images.
fn likelihoods(answered: &AnswerRecord) -> Result<Vec<f64>> {
    let found = answered.caption_log_prob.clone().context(
        "answer.caption_likelihood: its answers were written without; `hermesflow answer` with this key adds it",
    )?;
    let (images, scores) = (found.len(), answered.result.len());
    ensure!(images == scores, "{scores} images were judged by their answers, {images} by the caption");
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scored(scores: &[f64]) -> Vec<Scored> {
        scores.iter().enumerate().map(|(number, score)| (number.to_string(), *score)).collect()
    }

    #[test]
    fn an_altered_image_loses_only_where_it_is_told_apart() {
        let apart = |own: &[f64], others: &[f64], margin| {
            told_apart(&scored(own), &scored(others), margin).map(|two| [two[0].0.clone(), two[1].0.clone()])
        };
        let found = |win: &str, lose: &str| Some([win.to_owned(), lose.to_owned()]);
        assert_eq!(apart(&[0.5, 0.9, 0.9], &[0.4, 0.3, 0.3], 0.5), found("1", "1"));
        assert_eq!(apart(&[0.5, 0.9], &[0.4], 0.51), None);
        assert_eq!(apart(&[0.9, 0.9], &[0.4], 0.5), found("0", "0"), "a tie of its own images is none");
        assert_eq!(apart(&[f64::NAN, 0.9], &[f64::NAN, 0.1], 0.5), found("1", "1"));
        assert_eq!(apart(&[0.9], &[0.9], 0.0), None);
        assert_eq!(apart(&[], &[0.1], 0.0), None);
        assert_eq!(apart(&[0.9], &[], 0.0), None);
    }
}
