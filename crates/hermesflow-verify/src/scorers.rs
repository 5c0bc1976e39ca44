//! Judges of texts with weights: token ids, hidden states, similarities and replies; `config.json`'s `model_type` says
//! which.

use std::path::Path;

use candle_core::{DType, Device};
use hermesflow_score::neural::{Bert, Llama, SentenceBert, T5, TextTokenizer, cosine};
use hermesflow_score::{ChoiceMatcher, Choosing};
use serde::Deserialize;

use crate::Result;
use crate::check::{Report, largest};
use crate::others::read;

/// The largest error of hidden states and logits, which are sums over the hidden size.
const STATES: f64 = 1e-4;
/// The largest error of large hidden states and logits, as a share of the largest. T5 does not scale its attention
/// scores, so with large weights the rounding of the weights to f32 alone moves its logits by a hundred-thousandth of
/// the largest.
const SHARE: f64 = 2e-5;
/// The largest error of cosines, and of vectors of length one.
const COSINES: f64 = 1e-5;
/// The largest error of mean log-probabilities.
const SCORES: f64 = 1e-4;
/// The number of beams of the recorded search.
const BEAMS: usize = 5;

#[derive(Deserialize)]
struct Config {
    model_type: String,
}

pub(crate) fn replay(folder: &Path, device: &Device, report: &mut Report) -> Result<()> {
    let config: Config = read(&folder.join("config.json"))?;
    match config.model_type.as_str() {
        "bert" => bert(folder, device, report),
        "mpnet" => sentence_bert(folder, device, report),
        "t5" => t5(folder, device, report),
        "llama" => llama(folder, device, report),
        other => {
            report.skip("scorer", format!("no judge of the kind {other:?} in this build"));
            Ok(())
        }
    }
}

/// The difference of each pair of entries; rows of different lengths give NaN.
fn differences<'a>(
    ours: impl IntoIterator<Item = Vec<f64>>,
    recorded: impl IntoIterator<Item = &'a Vec<f64>>,
) -> impl Iterator<Item = f64> {
    ours.into_iter().zip(recorded).flat_map(|(ours, recorded)| match ours.len() == recorded.len() {
        true => ours.iter().zip(recorded).map(|(a, b)| a - b).collect(),
        false => vec![f64::NAN],
    })
}

/// Compares rows with recorded rows; another number of rows fails.
fn rows(report: &mut Report, what: &str, ours: Vec<Vec<f64>>, recorded: &[Vec<f64>], tolerance: f64) {
    if ours.is_empty() || ours.len() != recorded.len() {
        report.fail(what, format!("{} rows, recorded {}", ours.len(), recorded.len()));
        return;
    }
    report.within(what, largest(differences(ours, recorded)), tolerance);
}

/// The largest error that passes for hidden states and logits of this size.
fn of_size(recorded: &[Vec<f64>]) -> f64 {
    STATES.max(SHARE * largest(recorded.iter().flatten().copied()))
}

fn widened(row: &[f32]) -> Vec<f64> {
    row.iter().map(|x| f64::from(*x)).collect()
}

#[derive(Deserialize)]
struct BertCase {
    sentences: Vec<String>,
    ids: Vec<Vec<u32>>,
    cls: Vec<Vec<f64>>,
    cosine: Vec<Vec<f64>>,
}

fn bert(folder: &Path, device: &Device, report: &mut Report) -> Result<()> {
    let case: BertCase = read(&folder.join("expected.json"))?;
    let judge = Bert::load(folder, device)?;
    let sentences = || case.sentences.iter().map(String::as_str);
    report.equal("ids (differing texts)", &judge.ids(sentences())?, &case.ids);
    let states = judge.first_states(sentences())?;
    rows(report, "first states", states.iter().map(|state| widened(state)).collect(), &case.cls, of_size(&case.cls));
    let cosines = states.iter().map(|a| states.iter().map(|b| cosine(a, b)).collect()).collect();
    rows(report, "cosines", cosines, &case.cosine, COSINES);
    Ok(())
}

#[derive(Deserialize)]
struct SentenceCase {
    sentences: Vec<String>,
    ids: Vec<Vec<u32>>,
    embeddings: Vec<Vec<f64>>,
    multiple_choice: Vec<ChoiceCase>,
}

#[derive(Deserialize)]
struct ChoiceCase {
    answer: String,
    choices: Vec<String>,
    scores: Vec<f64>,
    chosen: String,
}

fn sentence_bert(folder: &Path, device: &Device, report: &mut Report) -> Result<()> {
    let case: SentenceCase = read(&folder.join("expected.json"))?;
    let judge = SentenceBert::load(folder, device)?;
    let sentences: Vec<&str> = case.sentences.iter().map(String::as_str).collect();
    report.equal("ids (differing texts)", &judge.ids(sentences.iter().copied())?, &case.ids);
    let embeddings = judge.embed(&sentences)?.iter().map(|embedding| widened(embedding)).collect();
    rows(report, "embeddings", embeddings, &case.embeddings, COSINES);
    let asked = |one: &'_ ChoiceCase| (one.answer.clone(), one.choices.clone());
    let asked: Vec<(String, Vec<String>)> = case.multiple_choice.iter().map(asked).collect();
    let replies: Vec<Choosing<'_>> = asked.iter().map(|(reply, choices)| Choosing { reply, choices }).collect();
    let recorded: Vec<Vec<f64>> = case.multiple_choice.iter().map(|one| one.scores.clone()).collect();
    rows(report, "scores of choices", judge.scores(&replies)?, &recorded, COSINES);
    let chosen = judge.choose(&replies)?;
    let chosen: Vec<Option<&str>> =
        chosen.iter().zip(&replies).map(|(choice, one)| choice.map(|at| one.choices[at].as_str())).collect();
    let recorded: Vec<Option<&str>> = case.multiple_choice.iter().map(|one| Some(one.chosen.as_str())).collect();
    report.equal("chosen (differing)", &chosen, &recorded);
    Ok(())
}

#[derive(Deserialize)]
struct ReplyCase {
    text: String,
    ids: Vec<u32>,
    generated: Vec<u32>,
    first_logits: Vec<f64>,
}

/// The largest number of new ids: no case states its limit, so the longest recorded reply.
fn longest(lengths: impl Iterator<Item = usize>) -> usize {
    lengths.max().unwrap_or(0)
}

fn t5(folder: &Path, device: &Device, report: &mut Report) -> Result<()> {
    let cases: Vec<ReplyCase> = read(&folder.join("expected.json"))?;
    let model = T5::load(folder, DType::F32, device)?;
    let tokenizer = TextTokenizer::load(folder, model.vocab_size())?.reading_controls();
    let ids = tokenizer.ids(cases.iter().map(|case| case.text.as_str()))?;
    let recorded: Vec<&Vec<u32>> = cases.iter().map(|case| &case.ids).collect();
    report.equal("ids (differing texts)", &ids.iter().collect::<Vec<_>>(), &recorded);
    let first = model.first_logits(&ids)?.iter().map(|logits| widened(logits)).collect();
    let recorded: Vec<Vec<f64>> = cases.iter().map(|case| case.first_logits.clone()).collect();
    rows(report, "first logits", first, &recorded, of_size(&recorded));
    let most = longest(cases.iter().map(|case| case.generated.len().saturating_sub(1)));
    let said = model.generate(&ids, most)?;
    let said: Vec<Vec<u32>> = said.into_iter().map(|said| [vec![model.start()], said].concat()).collect();
    let recorded: Vec<Vec<u32>> = cases.into_iter().map(|case| case.generated).collect();
    report.equal("greedy replies (differing)", &said, &recorded);
    Ok(())
}

#[derive(Deserialize)]
struct WritingCase {
    text: String,
    ids: Vec<u32>,
    greedy: Vec<u32>,
    beam5: Vec<u32>,
    beam5_score: f64,
}

fn llama(folder: &Path, device: &Device, report: &mut Report) -> Result<()> {
    let cases: Vec<WritingCase> = read(&folder.join("expected.json"))?;
    if cases.is_empty() {
        report.fail("texts", "expected.json is empty");
    }
    let model = Llama::load(folder, DType::F32, device)?;
    let tokenizer = TextTokenizer::load(folder, model.vocab_size())?.reading_controls();
    let recorded = cases
        .iter()
        .flat_map(|case| [&case.greedy, &case.beam5].map(|said| said.len() - case.ids.len().min(said.len())));
    let most = longest(recorded);
    for (number, case) in cases.iter().enumerate() {
        let prompt = model.framed(&tokenizer, &case.text)?;
        report.equal(format!("text {number}: ids (differing)"), &prompt, &case.ids);
        let with_prompt = |said: Vec<u32>| [prompt.clone(), said].concat();
        let greedy = with_prompt(model.greedy(&prompt, most)?);
        report.equal(format!("text {number}: greedy (differing)"), &greedy, &case.greedy);
        let beam = model.beam(&prompt, BEAMS, most)?;
        report.equal(format!("text {number}: {BEAMS} beams (differing)"), &with_prompt(beam.ids), &case.beam5);
        let off = (beam.score - case.beam5_score).abs();
        report.within(format!("text {number}: score of {BEAMS} beams"), off, SCORES);
    }
    Ok(())
}
