//! `hermesflow mmu`: free questions about any pictures.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use hermesflow_models::preprocess;
use hermesflow_models::{ImageView, ReplyRequest, Sampling, UnifiedModel};
use hermesflow_records::derive_seed;
use serde_json::json;

use super::args::ModelArgs;
use super::args::count;
use crate::print;
use crate::run::pictures;
use crate::run::stage::text_number;

/// Ask the model anything about your own pictures
///
/// Every --question is put to every picture and answered in the model's own words. Pictures may have any format and
/// shape: the short side is fitted to the model's resolution and the middle cut out, as everywhere. Answers are greedy
/// unless --top-k and --temperature say otherwise. Prints each picture with its questions and answers, or one line of
/// JSON (file, question, answer) for each answer.
///
/// Example: hermesflow mmu scenes --image photo.png --question "Give a caption for this image."
///
/// Example: hermesflow mmu run.yaml --image pictures/ --question "Is it unusual?" --question "Why?" --json
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,

    /// A picture, or a folder of pictures; repeat it for several
    #[arg(long = "image", value_name = "PATH", required = true)]
    images: Vec<PathBuf>,

    /// What is asked; repeat it for several. `caption.question` of the configuration if not given
    #[arg(long = "question", value_name = "TEXT")]
    questions: Vec<String>,

    /// Draw from this many likeliest tokens; 1 is greedy, 0 is all
    #[arg(long, value_name = "K", default_value_t = 1)]
    top_k: usize,

    /// Logits are divided by it before the draw
    #[arg(long, value_name = "T", default_value_t = 1.0)]
    temperature: f64,

    /// An answer ends after this many tokens; `caption.max_new_tokens` of the configuration if not given
    #[arg(long, value_name = "N", value_parser = count::<100_000>)]
    max_new_tokens: Option<usize>,

    /// Print JSON Lines
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: Args) -> Result<()> {
    let temperature = args.temperature;
    let good = temperature as f32 > 0.0 && (temperature as f32).is_finite();
    ensure!(good, "--temperature: {temperature} is no number above 0 that can be computed with");
    let files = pictures::named(&args.images)?;
    let (run, model) = args.model.open()?;
    let questions = if args.questions.is_empty() { vec![run.config.caption.question.clone()] } else { args.questions };
    for chunk in files.chunks(run.config.data.chunk) {
        if print::is_left() {
            break; // the answers are printed, and nobody reads on
        }
        let prepare = |file: &PathBuf| Ok(model.prepare(preprocess::load(file)?)?);
        let views = model.understand(&chunk.iter().map(prepare).collect::<Result<Vec<_>>>()?)?;
        let request = |file: &PathBuf, question: &String| {
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            ReplyRequest {
                question: question.clone(),
                sampling: Sampling { top_k: args.top_k, temperature },
                seed: derive_seed(run.config.seed, &[text_number("mmu"), text_number(&name), text_number(question)]),
                max_new_tokens: args.max_new_tokens.unwrap_or(run.config.caption.max_new_tokens),
            }
        };
        let requests: Vec<Vec<ReplyRequest>> =
            chunk.iter().map(|file| questions.iter().map(|question| request(file, question)).collect()).collect();
        let asked: Vec<(&ImageView, &[ReplyRequest])> = views.iter().zip(requests.iter().map(Vec::as_slice)).collect();
        for (file, replies) in chunk.iter().zip(model.reply_many(&asked)?) {
            if !args.json {
                say!("{}", file.display())?;
            }
            for (question, reply) in questions.iter().zip(replies) {
                let answer = reply.text.trim();
                if args.json {
                    say!("{}", json!({ "file": file.to_string_lossy(), "question": question, "answer": answer }))?;
                } else {
                    say!("  {question}\n    {answer}")?;
                }
            }
        }
    }
    Ok(())
}
