//! The records of an iteration as the page's script reads them, and what became of them, counted.

use std::collections::BTreeMap;

use anyhow::Result;
use hermesflow_records::{
    AnswerRecord, CaptionRecord, InitialRecord, PairRecord, QuestionRecord, ReplyRecord, ScoreRecord, Table,
};
use rayon::prelude::*;
use serde_json::{Value, json};

use super::folder::RunFolder;
use super::source::Source;
use super::thumbnails::{Share, Thumbnails};
use crate::files;
use crate::run::layout::RunLayout;

/// The longer side of pictures that decided, in pixels, and of the other candidates.
const LARGE: u32 = 192;
const SMALL: u32 = 96;
/// Records that are read and drawn at a time.
const TOGETHER: usize = 128;
/// The outcome of a record for which `pair` has not run yet.
pub const OPEN: &str = "not chosen yet";

/// What one iteration made.
pub struct Iteration {
    layout: RunLayout,
    /// The number of images of a record, where nothing else says how many there are.
    images: usize,
    /// The images with their true captions; none where there is no file yet.
    pub records: Option<Table<InitialRecord>>,
    /// The captions.
    pub captions: Source<CaptionRecord>,
    /// The questions.
    pub questions: Source<QuestionRecord>,
    /// The scores of images.
    pub answers: Source<AnswerRecord>,
    replies: Source<ReplyRecord>,
    scores: Source<ScoreRecord>,
    /// The pairs.
    pub pairs: Source<PairRecord>,
}

/// What became of the records of an iteration, and how its judges scored them.
#[derive(Debug, Default)]
pub struct Tally {
    /// How many records have each outcome.
    pub outcomes: BTreeMap<String, usize>,
    /// The mean similarity of each record's captions to the true one.
    pub captions: Vec<f64>,
    /// The mean score of each record's images.
    pub images: Vec<f64>,
    /// Images of a record with scores.
    pub candidates: usize,
}

impl Iteration {
    /// Opens what there is of an iteration.
    ///
    /// # Errors
    /// Names the file, the line and the record of what cannot be read.
    pub fn open(run: &RunFolder, iteration: usize) -> Result<Self> {
        let layout = run.at(iteration);
        let initial = layout.initial_data();
        Ok(Self {
            images: run.config.imagine.images,
            records: if initial.is_file() { Some(files::initial_data(&initial)?) } else { None },
            captions: Source::open(&layout.captions())?,
            questions: Source::open(&layout.questions())?,
            answers: Source::open(&layout.answers())?,
            replies: Source::open(&layout.replies())?,
            scores: Source::open(&layout.pair_scores())?,
            pairs: Source::open(&layout.pairs())?,
            layout,
        })
    }

    /// The number of records.
    pub fn len(&self) -> usize {
        self.records.as_ref().map_or(0, Table::len)
    }

    /// Every record as JSON, in order, and the tally of all. `first` is the number of the first record in the whole page,
    /// `of` the number of all records in it.
    ///
    /// # Errors
    /// Names the file that cannot be read.
    pub fn write(&self, thumbnails: &Thumbnails, (first, of): (usize, usize)) -> Result<(Vec<String>, Tally)> {
        let (mut lines, mut tally) = (Vec::new(), Tally::default());
        let Some(records) = &self.records else { return Ok((lines, tally)) };
        for chunk in records.chunks(TOGETHER) {
            let begin = first + chunk.start;
            let joined =
                records.read(chunk)?.into_iter().map(|record| self.join(record)).collect::<Result<Vec<_>>>()?;
            joined.iter().for_each(|joined| tally.count(joined));
            let line = |(at, joined): (usize, &Joined)| {
                let text = joined.json(&self.layout, thumbnails, Share::of(begin + at, of)).to_string();
                text.replace('<', "\\u003c") // so that nothing in it ends the script that holds it
            };
            lines.par_extend(joined.par_iter().enumerate().map(line));
        }
        Ok((lines, tally))
    }

    fn join(&self, record: InitialRecord) -> Result<Joined> {
        let id = &record.id;
        let scored = self.scores.of_id(id)?.pop();
        let answered = self.answers.of_id(id)?.pop();
        let pair = self.pairs.of_id(id)?.pop();
        let captions = self.captions.of_id(id)?.pop().map(|one| one.caption_mmu).unwrap_or_default();
        let images: Vec<Option<f64>> = match (&scored, &answered) {
            (Some(scored), _) if !scored.images.is_empty() => scored.images.clone(),
            (_, Some(answered)) => answered.result.iter().map(|score| Some(*score)).collect(),
            _ => {
                let drawn = |number: &usize| self.layout.image(id.as_str(), *number).is_file();
                (0..self.images).take_while(drawn).map(|_| None).collect()
            }
        };
        let outcome = match (&scored, &pair) {
            (Some(scored), _) => scored.outcome.clone(),
            (None, Some(_)) => ScoreRecord::PAIR.into(),
            (None, None) if self.pairs.is_whole() => unscored(&captions, &images).into(),
            (None, None) => OPEN.into(),
        };
        Ok(Joined {
            questions: self.questions.of_id(id)?,
            said: self.replies.of_id(id)?.pop(),
            similarities: scored.map(|scored| scored.captions).unwrap_or_default(),
            record,
            captions,
            images,
            pair,
            outcome,
        })
    }
}

/// Why a record gave no pair, where its scores were not kept.
fn unscored(captions: &[String], images: &[Option<f64>]) -> &'static str {
    let mut scores = images.iter().flatten();
    let first = scores.next();
    match first {
        _ if captions.is_empty() => "no captions",
        None => "no answers",
        Some(first) if scores.all(|score| score == first) => "images tie",
        Some(_) => "a tie, or best image below threshold",
    }
}

/// A record with all that was made of it.
struct Joined {
    record: InitialRecord,
    outcome: String,
    captions: Vec<String>,
    similarities: Vec<Option<f64>>,
    images: Vec<Option<f64>>,
    questions: Vec<QuestionRecord>,
    said: Option<ReplyRecord>,
    pair: Option<PairRecord>,
}

impl Tally {
    fn count(&mut self, joined: &Joined) {
        *self.outcomes.entry(joined.outcome.clone()).or_default() += 1;
        self.candidates = self.candidates.max(joined.images.len());
        self.captions.extend(mean(&joined.similarities));
        self.images.extend(mean(&joined.images));
    }
}

fn mean(scores: &[Option<f64>]) -> Option<f64> {
    let known: Vec<f64> = scores.iter().flatten().copied().collect();
    (!known.is_empty()).then(|| known.iter().sum::<f64>() / known.len() as f64)
}

impl Joined {
    /// The record as the script reads it; `script.js` says what each name means.
    fn json(&self, layout: &RunLayout, thumbnails: &Thumbnails, mut share: Share) -> Value {
        let path = |number: usize| {
            let path = layout.image(self.record.id.as_str(), number);
            path.strip_prefix(layout.data()).unwrap_or(&path).display().to_string()
        };
        let numbered: Vec<String> = (0..self.images.len()).map(path).collect();
        let mut sources = vec![None; numbered.len()];
        let truth = thumbnails.source(&self.record.img_path, LARGE, &mut share);
        // What decided first: the share may end before the others.
        let mut decided = |picture: &str| match numbered.iter().position(|one| one == picture) {
            Some(at) => {
                sources[at] = Some(thumbnails.source(picture, LARGE, &mut share));
                at.into()
            }
            None => Value::from(thumbnails.source(picture, LARGE, &mut share)),
        };
        let pair = self.pair.as_ref().map(|pair| {
            json!({
                "c": [pair.caption_win.trim(), short(pair.bert_score_win), pair.caption_lose.trim(), short(pair.bert_score_lose)],
                "i": [decided(&pair.image_win), short(pair.vqa_score_win), decided(&pair.image_lose), short(pair.vqa_score_lose)],
            })
        });
        let known = |number: usize| self.said.as_ref().and_then(|said| said.counts.get(number)).cloned();
        let replies = |number: usize| self.said.as_ref().and_then(|said| said.replies.get(number)).cloned();
        let images: Vec<Value> = numbered
            .iter()
            .enumerate()
            .map(|(at, picture)| {
                let source = sources[at].take().unwrap_or_else(|| thumbnails.source(picture, SMALL, &mut share));
                json!({ "s": source, "v": self.images[at].map(short), "a": known(at), "r": replies(at) })
            })
            .collect();
        let captions = self
            .captions
            .iter()
            .enumerate()
            .map(|(at, text)| json!([text.trim(), self.similarities.get(at).copied().flatten().map(short)]));
        let questions = self.questions.iter().map(|asked| json!([asked.question, asked.answer, asked.choices]));
        json!({
            "id": self.record.id.as_str(),
            "t": truth,
            "c": self.record.caption,
            "o": self.outcome,
            "k": captions.collect::<Vec<_>>(),
            "g": images,
            "q": questions.collect::<Vec<_>>(),
            "w": pair,
        })
    }
}

/// A number with four decimals.
fn short(number: f64) -> f64 {
    (number * 1e4).round() / 1e4
}
