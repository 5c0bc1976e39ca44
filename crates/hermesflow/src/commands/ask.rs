//! `hermesflow ask`: questions with choices about every caption.

use std::collections::HashSet;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use hermesflow_records::{InitialRecord, QuestionRecord, RecordId};
use hermesflow_score::template::TemplateWriter;
use hermesflow_score::{Question, QuestionWriter};

use super::{StageArgs, scenes};
use crate::config::{RunConfig, Writer};
use crate::files;
use crate::judges::SceneWriter;
use crate::layout::RunLayout;
use crate::progress::Progress;

/// Write questions with choices about every caption
///
/// With `ask.writer: scenes` a rule-based writer reads what each caption of the scenes world claims (things, colours,
/// counts, places, sizes, background) and asks about it; with `ask.writer: template` one that reads any English caption
/// does; with `ask.writer: file` the questions of `ask.file` are taken, in the form of vqa_data.json, of TIFA's
/// benchmark (tifa_v1.0_question_answers.json) or of JourneyDB's annotation (JSON Lines with Task3). Writes
/// vqa_data.json, one entry per question.
///
/// Example: hermesflow ask configs/paper.yaml ask.file=my_questions.json
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    stage: StageArgs,
}

/// Runs the command.
pub fn run(args: Args) -> Result<()> {
    let (config, layout, progress) = args.stage.open()?;
    ask(&config, &layout, &progress)?;
    println!("{}", layout.questions().display());
    Ok(())
}

/// Questions about every record of an iteration, in the records' order.
///
/// # Errors
/// When there is no question at all, or the questions' file is missing or broken.
pub fn ask(config: &RunConfig, layout: &RunLayout, progress: &Progress) -> Result<Vec<QuestionRecord>> {
    let records = scenes::initial_data(config, layout, progress)?;
    let questions = match config.ask.writer {
        Writer::Scenes => written(&SceneWriter { seed: config.seed }, &records)?,
        Writer::Template => written(&TemplateWriter, &records)?,
        Writer::File => given(config, &records, progress)?,
    };
    let asked: HashSet<&RecordId> = questions.iter().map(|question: &QuestionRecord| &question.id).collect();
    let silent = records.iter().filter(|record| !asked.contains(&record.id)).count();
    ensure!(silent < records.len(), "{}: {}", layout.initial_data().display(), without_questions(config));
    if silent > 0 {
        progress.log(format!("ask: {silent} of {} records have no question and will give no pair", records.len()));
    }
    if config.ask.writer != Writer::File || !same_file(config.ask.file.as_deref(), &layout.questions()) {
        files::write_records(&layout.questions(), &questions)?;
    }
    Ok(questions)
}

/// Whether the questions that were given already lie where they belong; they are not written over.
fn same_file(given: Option<&Path>, own: &Path) -> bool {
    given.is_some_and(|given| matches!((given.canonicalize(), own.canonicalize()), (Ok(a), Ok(b)) if a == b))
}

/// What a writer asks about the records' captions.
fn written(writer: &dyn QuestionWriter, records: &[InitialRecord]) -> Result<Vec<QuestionRecord>> {
    let captions: Vec<&str> = records.iter().map(|record| record.caption.as_str()).collect();
    let asked = writer.write(&captions)?;
    let named = |(record, question): (&InitialRecord, Question)| QuestionRecord {
        id: record.id.clone(),
        img_path: record.img_path.clone(),
        prompt: record.prompt.clone(),
        caption: record.caption.clone(),
        element: question.element,
        question: question.question,
        choices: question.choices,
        answer: question.answer,
    };
    let of_records = records.iter().zip(asked);
    Ok(of_records
        .flat_map(|(record, questions)| questions.into_iter().map(move |one| (record, one)))
        .map(named)
        .collect())
}

/// Why no record has a question, and what to do.
fn without_questions(config: &RunConfig) -> String {
    match config.ask.writer {
        Writer::Scenes => "no caption gave a question; the scenes writer reads captions of the scenes world only: use \
                           ask.writer=template for other English captions, or give your questions with ask.writer=file \
                           ask.file=PATH"
            .into(),
        Writer::Template => "no caption gave a question; the template writer reads English captions only: give your \
                             questions with ask.writer=file ask.file=PATH"
            .into(),
        Writer::File => {
            let path = config.ask.file.as_deref().map_or_else(String::new, |path| path.display().to_string());
            format!(
                "{path} has no question about any of these records; its entries are joined to them by id, by image path \
                 or by equal caption"
            )
        }
    }
}

/// The questions of a file about these records, in the records' order.
fn given(config: &RunConfig, records: &[InitialRecord], progress: &Progress) -> Result<Vec<QuestionRecord>> {
    let path = config.ask.file.as_deref().context("ask.file: missing; `ask.writer: file` needs it")?;
    let given = files::given_questions(path, records)?;
    let lost = [
        (given.unanswered, "whose answer is none of the choices"),
        (given.incomplete, "that lack a part or have fewer than two choices"),
    ];
    for (count, why) in lost.into_iter().filter(|(count, _)| *count > 0) {
        progress.log(format!("ask: {}: left out {count} questions {why}", path.display()));
    }
    if given.elsewhere > 0 {
        progress.log(format!("ask: {}: {} entries are about none of the records", path.display(), given.elsewhere));
    }
    Ok(given.questions)
}
