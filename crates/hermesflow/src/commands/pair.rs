//! `hermesflow pair`: the best and the worst caption and image of every record.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use anyhow::{Context, Result, ensure};

use super::args::stage_command;
use super::scenes;
use crate::config::ImageJudge;
use crate::files;
use crate::judges::{self, Judges};
use crate::made::{Origin, WholeFile};
use crate::run::context::RunContext;
use crate::run::pictures::Pictures;
use crate::run::sharing::Turn;
use crate::run::stage;
use hermesflow_records::{
    AnswerRecord, Candidates, CaptionRecord, DropReason, InitialRecord, PairRecord, ScoreRecord, Table, first_round,
    later_round, ranked,
};
use hermesflow_score::CaptionSimilarity;

stage_command! {
    /// Choose the best and the worst caption and image of every record
    ///
    /// Captions are compared by their similarity to the true one, images by the share of questions that the model answered
    /// rightly about them (with `answer.caption_likelihood` by that and by how likely it finds the caption, ranks summed). A
    /// record gives a pair only if both sides have a clear winner and its best image is good enough
    /// (`pair.min_accuracy`); what is dropped is counted by reason. With the same records in every iteration
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

/// Chooses and writes the pairs of an iteration; what became of the records, for the writer. Where several processes do a
/// run, they share out what a judge with weights has to say.
///
/// # Errors
/// Names the record and the file that stand in the way.
pub fn pair(run: &RunContext) -> Result<Option<Chosen>> {
    run.sharing.enter(run.layout.iteration(), Turn::Pair);
    if !run.group().is_alone() && run.config.pair.similarity.model().is_some() {
        let (records, competition) = (scenes::initial_data(run)?, Competition::open(run)?);
        let of_chunk = |chunk: Range<usize>| competition.contests(&records, chunk).map(drop);
        stage::share_out("similarity", "records", &competition.chunks(&records), run, of_chunk)?;
        competition.judges.settle()?;
    }
    run.once(choose)
}

/// Chooses and writes the pairs of an iteration, in one process.
fn choose(run: &RunContext) -> Result<Chosen> {
    let records = scenes::initial_data(run)?;
    let competition = Competition::open(run)?;
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
                Contest::First(new, mut all) => {
                    match first_round(&new, run.config.pair.min_accuracy) {
                        Ok(pair) => pairs.push(&pair)?,
                        Err(reason) => {
                            all.outcome = reason.to_string();
                            *chosen.dropped.entry(reason).or_default() += 1;
                        }
                    }
                    scored.push(&all)?;
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

/// What competes for the pairs of an iteration, and its judges.
struct Competition<'a> {
    run: &'a RunContext,
    captions: Table<CaptionRecord>,
    similarity: Box<dyn CaptionSimilarity>,
    images: Images,
    judges: Judges,
    /// The pairs of the iteration before, where they are renewed.
    old: Option<Table<PairRecord>>,
}

/// A record's candidates and all their scores, in the first iteration or against an earlier pair.
enum Contest {
    First(Candidates, ScoreRecord),
    Later(Box<PairRecord>, Option<(Candidates, ScoreRecord)>),
}

/// Where the scores of images come from.
enum Images {
    Answers(Table<AnswerRecord>),
    /// The control: the share of a caption's statements that the oracle sees in each image.
    Oracle(Pictures),
}

impl<'a> Competition<'a> {
    fn open(run: &'a RunContext) -> Result<Self> {
        let captions = files::captions(&run.layout.captions())?;
        let images = match run.config.pair.judge {
            ImageJudge::Itself => Images::Answers(files::answers(&run.layout.answers())?),
            ImageJudge::Oracle => Images::Oracle(Pictures::new(&run.layout, hermesflow_scenes::scene::SIDE)),
        };
        let judges = Judges::of_run(run)?;
        let similarity = judges.similarity(run.config.pair.similarity)?;
        let previous = run.layout.previous().filter(|_| !run.config.data.fresh);
        let old = previous.map(|previous| files::pairs(&previous.pairs())).transpose()?;
        Ok(Self { run, captions, similarity, images, judges, old })
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
            let records = records.read(chunk)?.into_iter();
            let first = |(new, all)| Contest::First(new, all);
            return records.map(|record| self.candidates(record).map(first)).collect();
        };
        let renew = |old: PairRecord| {
            let new = records.of_id(&old.id)?.pop().map(|record| self.candidates(record)).transpose()?;
            Ok(Contest::Later(Box::new(old), new))
        };
        old.read(chunk)?.into_iter().map(renew).collect()
    }

    /// A record with the captions and images that compete for its pair, and all scores that were given.
    fn candidates(&self, record: InitialRecord) -> Result<(Candidates, ScoreRecord)> {
        let named = || format!("record {}", record.id);
        let captions = self.captions.of_id(&record.id)?.pop().map(|one| one.caption_mmu).unwrap_or_default();
        let similarities = self.similarity.similarities(&record.caption, &captions).with_context(named)?;
        let path = |number| self.run.layout.image(record.id.as_str(), number);
        let mut second = None;
        let scores = match &self.images {
            Images::Answers(answers) => {
                let answered = answers.of_id(&record.id)?.pop();
                if let Some(answered) = answered.as_ref().filter(|_| self.run.config.answer.caption_likelihood) {
                    second = Some(likelihoods(answered).with_context(named)?);
                }
                answered.map(|one| one.result).unwrap_or_default()
            }
            Images::Oracle(pictures) => {
                let score = |number| Ok(judges::oracle(&pictures.load(&path(number))?, &record.caption));
                (0..self.run.config.imagine.images).map(score).collect::<Result<_>>().with_context(named)?
            }
        };
        let number = |score: &f64| score.is_finite().then_some(*score);
        let all = ScoreRecord {
            id: record.id.clone(),
            outcome: ScoreRecord::PAIR.into(),
            captions: similarities.iter().map(number).collect(),
            images: scores.iter().map(number).collect(),
        };
        let image = |(number, score)| {
            let path = path(number);
            (path.strip_prefix(self.run.layout.data()).unwrap_or(&path).display().to_string(), score)
        };
        let images: Vec<_> = scores.into_iter().enumerate().map(image).collect();
        let images = match second {
            Some(second) => ranked(&images, &second),
            None => images,
        };
        Ok((Candidates { captions: captions.into_iter().zip(similarities).collect(), images, record }, all))
    }
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
