//! `hermesflow answer`: the model answers the questions about its own images.

use std::collections::HashMap;
use std::path::PathBuf;

use anyhow::{Context, Result};
use hermesflow_models::{Reply, ReplyRequest, Sampling, UnifiedModel};
use hermesflow_records::{AnswerRecord, InitialRecord, QuestionRecord, RecordId, three_decimals};
use serde_json::json;

use super::{StageArgs, scenes};
use crate::config::{AnswerScore, RunConfig};
use crate::judges::Answered;
use crate::layout::RunLayout;
use crate::pictures::Pictures;
use crate::progress::Progress;
use crate::stage::{self, Stage};
use crate::{files, judges, models};

/// Let the model answer the questions about its own images
///
/// Shows the model each of its images and asks it, greedily, every question of vqa_data.json about the caption behind
/// it. A reply counts as the choice it matches best; the share of right answers is the image's score, rounded to three
/// decimals (`answer.score: confidence` weighs them by their probability). Writes generation_vqa_results.json. Kill it
/// anywhere: it continues where it was.
///
/// Example: hermesflow answer configs/scenes.yaml
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    stage: StageArgs,
}

/// Runs the command.
pub fn run(args: Args) -> Result<()> {
    let (config, layout, progress) = args.stage.open()?;
    let model = models::player(&config, &layout)?;
    answer(&model, &config, &layout, &progress)?;
    println!("{}", layout.answers().display());
    Ok(())
}

/// The accuracy of every image of an iteration, in the records' order; records without questions are left out.
///
/// # Errors
/// Names the record and the file that stand in the way; answers already written are kept.
pub fn answer(
    model: &impl UnifiedModel,
    config: &RunConfig,
    layout: &RunLayout,
    progress: &Progress,
) -> Result<Vec<AnswerRecord>> {
    let mut records = scenes::initial_data(config, layout, progress)?;
    let mut questions: HashMap<RecordId, Vec<QuestionRecord>> = HashMap::new();
    for question in files::questions(&layout.questions())? {
        questions.entry(question.id.clone()).or_default().push(question);
    }
    records.retain(|record| questions.contains_key(&record.id));
    let images = config.imagine.images;
    stage::settled(layout, "answer", config, &json!({ "answer": config.answer, "ask": config.ask, "images": images }))?;
    let pictures = Pictures::new(layout.data(), model.resolution());
    let stage = Stage { name: "answer", unit: "records", file: layout.answers(), chunk: config.data.chunk };
    stage.run(&records, progress, |chunk| {
        chunk
            .iter()
            .map(|record| answer_record(model, config, layout, &pictures, record, &questions[&record.id]))
            .collect()
    })
}

/// All questions about all images of one record: one batch, whatever the chunk.
fn answer_record(
    model: &impl UnifiedModel,
    config: &RunConfig,
    layout: &RunLayout,
    pictures: &Pictures,
    record: &InitialRecord,
    questions: &[QuestionRecord],
) -> Result<AnswerRecord> {
    let named = || format!("record {}", record.id);
    let paths: Vec<PathBuf> =
        (0..config.imagine.images).map(|number| layout.image(record.id.as_str(), number)).collect();
    let result = scores(model, config, pictures, &paths, questions).with_context(named)?;
    Ok(AnswerRecord {
        id: record.id.clone(),
        caption: record.caption.clone(),
        question_number: questions.len(),
        result,
    })
}

/// How well the model answers `questions` about each image, rounded to three decimals: the share of right answers,
/// weighted by its confidence in them if `answer.score` says so.
///
/// # Errors
/// Names the image that is missing or broken.
pub fn scores(
    model: &impl UnifiedModel,
    config: &RunConfig,
    pictures: &Pictures,
    paths: &[PathBuf],
    questions: &[QuestionRecord],
) -> Result<Vec<f64>> {
    let images = paths.iter().map(|path| pictures.load(path)).collect::<Result<Vec<_>>>()?;
    let codes = model.encode_images(&images)?;
    let requests: Vec<ReplyRequest> = questions
        .iter()
        .map(|question| ReplyRequest {
            question: judges::prompt(&question.question, &question.choices),
            sampling: Sampling::GREEDY,
            seed: 0,
            max_new_tokens: config.answer.max_new_tokens,
        })
        .collect();
    let asked: Vec<(&[u32], &[ReplyRequest])> =
        codes.iter().map(|codes| (codes.as_slice(), requests.as_slice())).collect();
    let replies = model.reply_many(&asked)?;
    replies.iter().map(|replies| score(config, questions, replies)).collect()
}

/// One image's score, rounded to three decimals.
fn score(config: &RunConfig, questions: &[QuestionRecord], replies: &[Reply]) -> Result<f64> {
    let answered: Vec<Answered<'_>> = questions
        .iter()
        .zip(replies)
        .map(|(asked, reply)| Answered { reply: &reply.text, choices: &asked.choices, answer: &asked.answer })
        .collect();
    let counts = |reply: &Reply| match config.answer.score {
        AnswerScore::Accuracy => 1.0,
        AnswerScore::Confidence => reply.log_prob.exp(),
    };
    let right = judges::right(config.answer.matcher, &answered)?;
    let sum: f64 = right.iter().zip(replies).filter(|(right, _)| **right).map(|(_, reply)| counts(reply)).sum();
    Ok(three_decimals(sum / questions.len().max(1) as f64))
}
