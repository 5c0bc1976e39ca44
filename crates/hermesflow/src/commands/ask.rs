//! `hermesflow ask`: questions with choices about every caption.

use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use hermesflow_records::{ArrayFile, InitialRecord, QuestionFile, QuestionRecord, RecordId, Table};
use hermesflow_score::{Question, QuestionFilter, QuestionWriter};

use super::args::stage_command;
use super::scenes;
use crate::config::{RunConfig, Writer};
use crate::files;
use crate::judges::{Judges, alike};
use crate::made::{Origin, WholeFile};
use crate::run::context::RunContext;
use crate::run::questions::LeftOut;
use crate::run::sharing::Turn;
use crate::run::stage;

stage_command! {
    /// Write questions with choices about every caption
    ///
    /// With `ask.writer: scenes` a rule-based writer reads what each caption of the scenes world claims (things, colours,
    /// counts, places, sizes, background) and asks about it; with `template` one that reads any English caption does; with
    /// `llama` TIFA's fine-tuned Llama 2, whose questions UnifiedQA filters (`ask.filter`); with `file` the questions of
    /// `ask.file` are taken, in the form of vqa_data.json, of TIFA's benchmark (tifa_v1.0_question_answers.json) or of
    /// JourneyDB's annotation (JSON Lines with Task3). Writes vqa_data.json, one entry per question.
    ///
    /// Example: hermesflow ask paper ask.writer=file ask.filter=none ask.file=my_questions.json
    "ask", |run| {
        ask(run)?;
        Ok(run.layout.questions())
    }
}

/// Writes questions about every record of an iteration, in the records' order. Where several processes do a run, they share
/// out what a judge with weights has to say.
///
/// # Errors
/// When there is no question at all, or the questions' file is missing or broken.
pub fn ask(run: &RunContext) -> Result<()> {
    run.sharing.enter(run.layout.iteration(), Turn::Ask);
    let has_weights = run.config.ask.writer.model().is_some() || run.config.ask.filter.model().is_some();
    if !run.group().is_alone() && has_weights {
        let (records, judges) = (scenes::initial_data(run)?, Judges::of_run(run)?);
        let asking = Asking::open(run, &judges, &records)?;
        let chunks: Vec<Range<usize>> = records.chunks(run.config.data.chunk).collect();
        let of_chunk = |chunk: Range<usize>| asking.ask(&records, chunk, &mut Sheet::default());
        stage::share_out("questions", "captions", &chunks, run, of_chunk)?;
        judges.settle()?;
    }
    run.once(write).map(drop)
}

/// Writes questions about every record of an iteration, in one process.
fn write(run: &RunContext) -> Result<()> {
    let records = scenes::initial_data(run)?;
    let judges = Judges::of_run(run)?;
    let own =
        run.config.ask.writer == Writer::File && same_file(run.config.ask.file.as_deref(), &run.layout.questions());
    let mut sheet = Sheet::default();
    let output = WholeFile {
        path: run.layout.questions(),
        note: run.layout.stamp("ask"),
        remedy: "to ask its questions, name it as ask.file with ask.writer=file; to write new ones, move it away",
    };
    if !own {
        sheet.file = Some(output.begin()?);
    }
    let asking = Asking::open(run, &judges, &records)?;
    asking.count(run, &mut sheet);
    let task = run.progress.task("ask", "captions", records.len(), 0);
    for (number, chunk) in records.chunks(run.config.data.chunk).enumerate() {
        let count = chunk.len();
        run.sharing.begin(number);
        asking.ask(&records, chunk, &mut sheet)?;
        task.advance(count);
    }
    drop(task);
    judges.settle()?;
    let lost = sheet.left_out();
    ensure!(
        !own || lost.is_empty(),
        "{}: {}; the file lies where the others would be written: move it elsewhere and name it in ask.file",
        run.layout.questions().display(),
        lost.join("; ")
    );
    lost.iter().for_each(|line| run.progress.log(format!("ask: {line}")));
    let silent = records.len() - sheet.asked;
    if silent == records.len() {
        let left_out: String = sheet.left_out().iter().map(|line| format!("; {line}")).collect();
        bail!("{}: {}{left_out}", run.layout.initial_data().display(), without_questions(&run.config));
    }
    if silent > 0 {
        run.progress.log(format!("ask: {silent} of {} records have no question and will give no pair", records.len()));
    }
    sheet.file.map_or(Ok(()), |file| output.publish(file, Origin::default()))
}

/// Where questions go, record by record.
#[derive(Default)]
struct Sheet {
    /// The file that is written; none where the questions of `ask.file` are that file already.
    file: Option<ArrayFile>,
    /// Records that have questions.
    asked: usize,
    /// Questions that were left out.
    lost: LeftOut,
    /// The first one that has choices which no judge could tell apart.
    alike: Option<String>,
}

impl Sheet {
    /// Whether a question's choices can be told apart; one whose cannot is counted.
    fn distinct(&mut self, id: &RecordId, question: &str, choices: &[String]) -> bool {
        let Some([one, other]) = alike(choices) else { return true };
        self.alike.get_or_insert_with(|| format!("record {id}: {question:?} has {one:?} and {other:?}"));
        self.lost.alike += 1;
        false
    }

    /// How many questions were left out, and why.
    fn left_out(&self) -> Vec<String> {
        let mut lines = self.lost.lines();
        lines.extend(self.alike.iter().map(|first| format!("the first of these: {first}")));
        lines
    }

    fn add(&mut self, questions: &[QuestionRecord]) -> Result<()> {
        self.asked += usize::from(!questions.is_empty());
        let Some(file) = &mut self.file else { return Ok(()) };
        questions.iter().try_for_each(|question| file.push(question)).context("cannot write the records")
    }
}

/// Whether the questions that were given already lie where they belong; they are not written over.
fn same_file(given: Option<&Path>, own: &Path) -> bool {
    given.is_some_and(|given| matches!((given.canonicalize(), own.canonicalize()), (Ok(a), Ok(b)) if a == b))
}

/// Where questions come from, and what keeps the good ones.
struct Asking {
    source: Source,
    filter: Option<Box<dyn QuestionFilter>>,
}

enum Source {
    Writer(Box<dyn QuestionWriter>),
    /// The questions of a file, which has this path.
    File(PathBuf, Box<QuestionFile>),
}

impl Asking {
    fn open(run: &RunContext, judges: &Judges, records: &Table<InitialRecord>) -> Result<Self> {
        let filter = judges.filter(run.config.ask.filter)?;
        let source = match judges.writer(run.config.ask.writer)? {
            Some(writer) => Source::Writer(writer),
            None => {
                let path = run.config.ask.file.as_deref().context("ask.file: missing; `ask.writer: file` needs it")?;
                Source::File(path.into(), Box::new(files::given_questions(path, records)?))
            }
        };
        Ok(Self { source, filter })
    }

    /// Counts what a file has that cannot be asked, or is about none of the records.
    fn count(&self, run: &RunContext, sheet: &mut Sheet) {
        let Source::File(path, given) = &self.source else { return };
        let found = given.found();
        sheet.lost = LeftOut::of_file(found);
        if found.elsewhere > 0 {
            let elsewhere = found.elsewhere;
            run.progress.log(format!("ask: {}: {elsewhere} entries are about none of the records", path.display()));
        }
    }

    /// Puts the questions about a chunk's records on a sheet.
    fn ask(&self, records: &Table<InitialRecord>, chunk: Range<usize>, sheet: &mut Sheet) -> Result<()> {
        let filter = self.filter.as_deref();
        match &self.source {
            Source::Writer(writer) => written(&**writer, filter, &records.read(chunk)?, sheet),
            Source::File(_, given) => {
                for (number, record) in chunk.clone().zip(records.read(chunk)?) {
                    let mut questions = given.questions(number, &record)?;
                    questions.retain(|question| sheet.distinct(&record.id, &question.question, &question.choices));
                    if let Some(filter) = filter {
                        let before = questions.len();
                        questions = kept(questions, filter)?;
                        sheet.lost.filtered += before - questions.len();
                    }
                    sheet.add(&questions)?;
                }
                Ok(())
            }
        }
    }
}

/// What a writer asks about some records' captions, and a filter keeps of it.
fn written(
    writer: &dyn QuestionWriter,
    filter: Option<&dyn QuestionFilter>,
    records: &[InitialRecord],
    sheet: &mut Sheet,
) -> Result<()> {
    let captions: Vec<&str> = records.iter().map(|record| record.caption.as_str()).collect();
    let asked = writer.write(&captions).with_context(|| format!("records from {} on", records[0].id))?;
    for (record, mut asked) in records.iter().zip(asked) {
        // A question whose answer cannot be chosen is always answered wrongly.
        let before = asked.len();
        asked.retain(|question| question.choices.contains(&question.answer));
        sheet.lost.unanswered += before - asked.len();
        asked.retain(|question| sheet.distinct(&record.id, &question.question, &question.choices));
        if let Some(filter) = filter {
            asked = filter.keep(&record.caption, asked).with_context(|| format!("record {}", record.id))?;
        }
        let questions: Vec<QuestionRecord> = asked.into_iter().map(|question| about(record, question)).collect();
        sheet.add(&questions)?;
    }
    Ok(())
}

fn about(record: &InitialRecord, question: Question) -> QuestionRecord {
    QuestionRecord {
        id: record.id.clone(),
        img_path: record.img_path.clone(),
        prompt: record.prompt.clone(),
        caption: record.caption.clone(),
        element: question.element,
        question: question.question,
        choices: question.choices,
        answer: question.answer,
    }
}

/// What a filter keeps of a record's questions that were given, in their order.
fn kept(questions: Vec<QuestionRecord>, filter: &dyn QuestionFilter) -> Result<Vec<QuestionRecord>> {
    let Some(first) = questions.first() else { return Ok(questions) };
    let plain = |one: &QuestionRecord| Question {
        element: one.element.clone(),
        question: one.question.clone(),
        choices: one.choices.clone(),
        answer: one.answer.clone(),
    };
    let asked = questions.iter().map(plain).collect();
    let good = filter.keep(&first.caption, asked).with_context(|| format!("record {}", first.id))?;
    Ok(questions.into_iter().filter(|one| good.contains(&plain(one))).collect())
}

/// Why no record has a question, and what to do.
fn without_questions(config: &RunConfig) -> String {
    match config.ask.writer {
        Writer::Auto | Writer::Llama => {
            "no caption gave a question that was kept; `hermesflow judge questions` shows what \
                                         the writer says about one"
                .into()
        }
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
