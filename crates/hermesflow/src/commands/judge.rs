//! `hermesflow judge`: a judge of texts, tried by hand.

use anyhow::{Result, ensure};
use hermesflow_score::{Choosing, tifa};
use serde_json::{Value, json};

use super::args::count;
use crate::config::{Filter, JudgeSettings, Matcher, Similarity, Writer};
use crate::judges::{self, Judges};
use crate::progress::Progress;
use crate::report;

/// Try a judge of texts before trusting it
///
/// Compares captions, matches replies to choices, or writes and filters questions about a caption, with the very judges
/// that a run asks. The judges that need no model are the defaults here; the others are fetched from the hub by name
/// the first time, or taken from a folder that `--model` gives.
///
/// Example: hermesflow judge similarity --judge bert "two red circles" "a pair of red circles" "a blue square"
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    Similarity(SimilarityArgs),
    Choice(ChoiceArgs),
    Questions(QuestionsArgs),
}

/// How similar captions are to a true one
///
/// Example: hermesflow judge similarity --judge sbert --model models/all-MiniLM-L6-v2 "a dog" "a puppy" "a car"
#[derive(Debug, clap::Args)]
struct SimilarityArgs {
    /// The judge
    #[arg(long, value_enum, default_value = "lexical")]
    judge: Similarity,

    /// The judge's model: a name on the hub or a folder
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,

    /// Layer whose states BERTScore compares, counted from 1 [default: known by the model's name]
    #[arg(long, value_name = "N")]
    layer: Option<usize>,

    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,

    /// The true caption
    reference: String,

    /// Captions to compare with it
    #[arg(required = true)]
    candidates: Vec<String>,
}

/// Which choice a free reply means
///
/// Example: hermesflow judge choice "There are two of them." 1 2 3
#[derive(Debug, clap::Args)]
struct ChoiceArgs {
    /// The judge
    #[arg(long, value_enum, default_value = "lexical")]
    judge: Matcher,

    /// The judge's model: a name on the hub or a folder
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,

    /// Print JSON instead of text
    #[arg(long)]
    json: bool,

    /// The reply
    reply: String,

    /// The choices
    #[arg(required = true)]
    choices: Vec<String>,
}

/// The questions about captions, and which of them are kept
///
/// Example: hermesflow judge questions --writer llama --filter unifiedqa "Three dogs in a park"
#[derive(Debug, clap::Args)]
struct QuestionsArgs {
    /// Writer of the questions
    #[arg(long, value_enum, default_value = "template")]
    writer: Writer,

    /// Filter that decides which questions are kept
    #[arg(long, value_enum, default_value = "none")]
    filter: Filter,

    /// The writer's model: a name on the hub, a folder or a .gguf file
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,

    /// The filter's model: a name on the hub or a folder
    #[arg(long, value_name = "MODEL")]
    filter_model: Option<String>,

    /// Beams of the writer's search; 1 is greedy
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = count::<64>)]
    beams: usize,

    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,

    /// The captions
    #[arg(required = true)]
    captions: Vec<String>,
}

/// Runs the command.
pub fn run(args: Args) -> Result<()> {
    match args.what {
        What::Similarity(args) => similarity(args),
        What::Choice(args) => choice(args),
        What::Questions(args) => questions(args),
    }
}

fn similarity(args: SimilarityArgs) -> Result<()> {
    let mut settings = JudgeSettings { bertscore_layer: args.layer, ..JudgeSettings::default() };
    settings.set(args.judge.model(), args.model);
    let judge = Judges::alone(settings, &Progress::stderr()).similarity(args.judge)?;
    let scores = judge.similarities(&args.reference, &args.candidates)?;
    if args.json {
        let scored = args.candidates.iter().zip(&scores);
        let scored: Vec<Value> =
            scored.map(|(caption, score)| json!({ "caption": caption, "similarity": score })).collect();
        say!("{}", serde_json::to_string_pretty(&json!({ "reference": args.reference, "candidates": scored }))?)?;
    } else {
        let mut table = report::text_table(&["similarity", "caption"]);
        for (caption, score) in args.candidates.iter().zip(&scores) {
            table.add_row([format!("{score:.4}"), caption.clone()]);
        }
        say!("{table}")?;
    }
    Ok(())
}

fn choice(args: ChoiceArgs) -> Result<()> {
    let mut settings = JudgeSettings::default();
    settings.set(args.judge.model(), args.model);
    let judge = Judges::alone(settings, &Progress::stderr()).matcher(args.judge)?;
    let choosing = Choosing { reply: &args.reply, choices: &args.choices };
    let meant = judges::meant(&*judge, &[choosing])?.into_iter().next().flatten().map(|at| args.choices[at].as_str());
    match (args.json, meant) {
        (true, meant) => say!("{}", json!({ "reply": args.reply, "choices": args.choices, "choice": meant }))?,
        (false, Some(choice)) => say!("{choice}")?,
        (false, None) => say!("(none of them)")?,
    }
    Ok(())
}

fn questions(args: QuestionsArgs) -> Result<()> {
    let mut settings = JudgeSettings { beams: args.beams, ..JudgeSettings::default() };
    settings.validate()?;
    settings.set(args.writer.model(), args.model);
    settings.set(args.filter.model(), args.filter_model);
    let judges = Judges::alone(settings, &Progress::stderr());
    let filter = judges.filter(args.filter)?;
    let writer = judges.writer(args.writer)?;
    ensure!(writer.is_some(), "--writer: name one that writes: scenes, template or llama");
    let captions: Vec<&str> = args.captions.iter().map(String::as_str).collect();
    let written = writer.map(|writer| writer.write(&captions)).transpose()?.unwrap_or_default();
    let (mut listed, mut table) = (Vec::new(), report::text_table(&["", "question", "choices", "answer"]));
    for (caption, asked) in captions.iter().zip(written) {
        let asked = tifa::deduplicated(asked);
        let kept = match &filter {
            Some(filter) => filter.keep(caption, asked.clone())?,
            None => asked.clone(),
        };
        table.add_row(["caption", caption, "", ""]);
        for question in &asked {
            let mark = if kept.contains(question) { "kept" } else { "left out" };
            table.add_row([mark, &question.question, &question.choices.join(" | "), &question.answer]);
        }
        let of = |question| json!({ "question": question, "kept": kept.contains(question) });
        listed.push(json!({ "caption": caption, "questions": asked.iter().map(of).collect::<Vec<_>>() }));
    }
    if args.json {
        say!("{}", serde_json::to_string_pretty(&listed)?)?
    } else {
        say!("{table}")?
    }
    Ok(())
}
