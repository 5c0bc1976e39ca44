//! `hermesflow answer`: the model answers the questions about its own images.

use anyhow::{Context, Result};
use hermesflow_models::{GivenReply, ImageView, Likelihood, Reply, ReplyRequest, Sampling, UnifiedModel};
use hermesflow_records::{AnswerRecord, InitialRecord, QuestionRecord, ReplyRecord, Store, three_decimals};
use hermesflow_score::ChoiceMatcher;
use serde_json::json;

use super::args::stage_command;
use super::scenes;
use crate::cache::pictures::{OpenedView, PictureReader};
use crate::config::{AnswerScore, RunConfig};
use crate::digest::digest;
use crate::files;
use crate::judges;
use crate::judges::{Answered, Judges, Posed};
use crate::models;
use crate::run::context::RunContext;
use crate::run::decisive;
use crate::run::pictures::Pictures;
use crate::run::sharing::Turn;
use crate::run::stage::{self, Stage};

stage_command! {
    /// Let the model answer the questions about its own images
    ///
    /// Shows the model each of its images and asks it, greedily, every question of vqa_data.json about the caption behind
    /// it. A reply counts as the choice it matches best; the share of right answers is the image's score, rounded to three
    /// decimals (`answer.score: confidence` weighs them by their probability; `probability` asks for no replies and takes the
    /// mean probability of the right choices). Writes generation_vqa_results.json, and the answers themselves, which
    /// `hermesflow report` shows, into generation_vqa_replies.json. When it was interrupted, the same command continues.
    ///
    /// Example: hermesflow answer scenes
    "answer", |run| {
        answer(&models::player(run)?, run)?;
        Ok(run.layout.answers())
    }
}

/// Scores every image of an iteration, in the records' order; records without questions, or without captions where
/// these are there, are left out.
///
/// # Errors
/// Names the record and the file that stand in the way; answers already written are kept.
pub fn answer(model: &(impl UnifiedModel + Sync), run: &RunContext) -> Result<()> {
    let mut records = scenes::initial_data(run)?;
    let questions = files::questions(&run.layout.questions())?;
    records.retain(|key| questions.has(key));
    if run.layout.captions().is_file() {
        // Without captions, as where its picture cannot be read, a record gives no pair whatever the answers.
        let captions = files::captions(&run.layout.captions())?;
        records.retain(|key| captions.has(key));
    }
    let images = run.config.imagine.images;
    run.sharing.enter(run.layout.iteration(), Turn::Answer);
    let judges = Judges::of_run(run)?;
    let origin = decisive::origin(&run.config, json!({ "answer": run.config.answer, "imagine": { "images": images } }));
    let origin = origin.with(models::player_files(run)?);
    let matched = run.config.answer.score != AnswerScore::Probability;
    let origin = if matched { origin.with(judges.matcher_files(run.config.answer.matcher)?) } else { origin };
    stage::ensure_same_settings(run, "answer", stage::store_files(&run.layout.answers())?, &origin)?;
    let examiner = Examiner {
        model,
        config: &run.config,
        reader: PictureReader::new(model, run)?,
        matcher: if matched { Some(judges.matcher(run.config.answer.matcher)?) } else { None },
    };
    let (file, ledger) = (run.layout.answers(), run.layout.ledger("answer"));
    let (chunk, sharing) = (run.config.data.chunk, run.sharing.clone());
    let stage = Stage { name: "answer", unit: "records", file, ledger, chunk, sharing };
    let pictures = Pictures::new(&run.layout, model.resolution());
    let made_from = |record: &InitialRecord| {
        let mut decided = vec![record.caption.clone()];
        for asked in questions.of_id(&record.id).ok()? {
            decided.extend([asked.question, asked.answer, asked.choices.len().to_string()]);
            decided.extend(asked.choices);
        }
        for number in 0..images {
            decided.push(pictures.digest(&run.layout.image(record.id.as_str(), number))?);
        }
        Some(digest(decided))
    };
    for chunk in records.chunks(run.config.data.chunk) {
        for record in records.read(chunk)? {
            examiner.check(&questions.of_id(&record.id)?).with_context(|| format!("record {}", record.id))?;
        }
    }
    let open = |record: &InitialRecord| -> Result<Exam> {
        let open = |number| examiner.reader.open(&run.layout.image(record.id.as_str(), number));
        Ok((questions.of_id(&record.id)?, (0..images).map(open).collect::<Result<_>>()?))
    };
    let open = |chunk: &[InitialRecord]| -> Vec<_> { chunk.iter().map(open).collect() };
    let mut replies: Store<ReplyRecord> = stage::open_together(&run.layout.replies(), run.group())?;
    stage.run(&records, &run.progress, made_from, open, |chunk, opened, _| {
        let answer = |(record, opened): (&InitialRecord, Result<Exam>)| {
            opened
                .and_then(|(questions, images)| examiner.answer(record, &questions, images))
                .with_context(|| format!("record {}", record.id))
        };
        let answered = chunk.iter().zip(opened).map(answer).collect::<Result<Vec<_>>>()?;
        let (answers, said): (Vec<_>, Vec<_>) = answered.into_iter().unzip();
        // Before the scores: killed in between, both are made again.
        replies.append(&said)?;
        Ok(answers)
    })?;
    run.group().once(|| {
        replies.collect()?;
        if records.keys().any(|key| replies.has(key)) {
            replies.finish(records.keys())?;
        }
        Ok::<_, anyhow::Error>(())
    })?;
    examiner.reader.settle()?;
    judges.settle()
}

/// What a model says of the images of a record.
struct Said {
    /// The replies about each image; empty where none are written.
    replies: Vec<Vec<String>>,
    /// What each question adds to the score of each image.
    counts: Vec<Vec<f64>>,
    /// The score of each image.
    scores: Vec<f64>,
}

/// A record's questions and its images.
type Exam = (Vec<QuestionRecord>, Vec<OpenedView>);

/// Asks a model about its own images.
struct Examiner<'a, M> {
    model: &'a M,
    config: &'a RunConfig,
    reader: PictureReader<'a, M>,
    /// None where no reply is written.
    matcher: Option<Box<dyn ChoiceMatcher>>,
}

/// A question as the model is asked it.
fn prompt(question: &QuestionRecord) -> String {
    judges::prompt(&question.question, &question.choices)
}

impl<M: UnifiedModel> Examiner<'_, M> {
    /// Refuses questions that are too long for the model, before any is asked.
    fn check(&self, questions: &[QuestionRecord]) -> Result<()> {
        let length = self.config.answer.max_new_tokens;
        questions.iter().try_for_each(|question| Ok(self.model.check_question(&prompt(question), length)?))
    }

    /// Answers all questions about all images of one record, as one batch whatever the chunk.
    fn answer(
        &self,
        record: &InitialRecord,
        questions: &[QuestionRecord],
        images: Vec<OpenedView>,
    ) -> Result<(AnswerRecord, ReplyRecord)> {
        let views = self.reader.views(images)?;
        let Said { replies, counts, scores } = match &self.matcher {
            Some(matcher) => self.of_replies(&**matcher, questions, &views)?,
            None => self.of_choices(questions, &views)?,
        };
        let likelihood = self.config.answer.caption_likelihood;
        let caption_log_prob = if likelihood { Some(self.of_caption(&record.caption, &views)?) } else { None };
        let (id, caption, question_number) = (record.id.clone(), record.caption.clone(), questions.len());
        let answer = AnswerRecord { id, caption, question_number, result: scores, caption_log_prob };
        let counts = counts.into_iter().map(|counts| counts.into_iter().map(three_decimals).collect()).collect();
        Ok((answer, ReplyRecord { id: record.id.clone(), replies, counts }))
    }

    /// How well the model answers `questions` about each image, rounded to three decimals: the share of right answers,
    /// weighted by its confidence in them if `answer.score` says so.
    fn of_replies(
        &self,
        matcher: &dyn ChoiceMatcher,
        questions: &[QuestionRecord],
        views: &[ImageView],
    ) -> Result<Said> {
        let request = |question: &QuestionRecord| ReplyRequest {
            question: prompt(question),
            sampling: Sampling::GREEDY,
            seed: 0,
            max_new_tokens: self.config.answer.max_new_tokens,
        };
        let requests: Vec<ReplyRequest> = questions.iter().map(request).collect();
        let asked: Vec<(&ImageView, &[ReplyRequest])> = views.iter().map(|view| (view, requests.as_slice())).collect();
        let replies = self.model.reply_many(&asked)?.concat();
        let answered: Vec<Answered<'_>> = replies
            .iter()
            .zip(questions.iter().cycle())
            .map(|(reply, asked)| Answered { reply: &reply.text, choices: &asked.choices, answer: &asked.answer })
            .collect();
        let right = judges::right(matcher, &answered)?;
        let counts = |(reply, right): (&Reply, &bool)| match (right, self.config.answer.score) {
            (false, _) => 0.0,
            (true, AnswerScore::Confidence) => reply.log_prob.exp(),
            (true, _) => 1.0,
        };
        let counts: Vec<f64> = replies.iter().zip(&right).map(counts).collect();
        let by_image = counts.chunks(questions.len().max(1));
        let scores = by_image.clone().map(mean_in_three_decimals).collect();
        let text = |reply: &Reply| reply.text.trim().to_owned();
        let replies = replies.chunks(questions.len().max(1)).map(|about| about.iter().map(text).collect()).collect();
        Ok(Said { replies, counts: by_image.map(<[f64]>::to_vec).collect(), scores })
    }

    /// How likely the right choices of `questions` are among all choices, about each image: the mean.
    fn of_choices(&self, questions: &[QuestionRecord], views: &[ImageView]) -> Result<Said> {
        let posed: Vec<Posed<'_>> = questions
            .iter()
            .map(|QuestionRecord { question, choices, answer, .. }| Posed { question, choices, answer })
            .collect();
        let counts = judges::probabilities(self.model, &posed, views)?;
        let mean = |counts: &Vec<f64>| counts.iter().sum::<f64>() / questions.len() as f64;
        Ok(Said { replies: Vec::new(), scores: counts.iter().map(mean).collect(), counts })
    }

    /// How likely a caption is given each image: its log-probability per token, the end counted.
    fn of_caption(&self, caption: &str, views: &[ImageView]) -> Result<Vec<f64>> {
        let given = [GivenReply { question: self.config.caption.question.clone(), reply: caption.to_owned() }];
        let asked: Vec<(&ImageView, &[GivenReply])> = views.iter().map(|view| (view, given.as_slice())).collect();
        let per_token = |one: &Likelihood| one.log_prob / one.tokens.max(1) as f64;
        Ok(self.model.score_replies(&asked)?.iter().flatten().map(per_token).collect())
    }
}

fn mean_in_three_decimals(counts: &[f64]) -> f64 {
    three_decimals(counts.iter().sum::<f64>() / counts.len() as f64)
}
