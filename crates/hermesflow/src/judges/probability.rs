//! How surely a model would answer questions rightly, without a reply: the probability of the right choice among all choices.

use anyhow::Result;
use hermesflow_models::{GivenReply, ImageView, Likelihood, UnifiedModel};

use super::prompt;

/// A question with its choices and the right one.
#[derive(Debug, Clone, Copy)]
pub struct Posed<'a> {
    /// The question, without its choices.
    pub question: &'a str,
    /// The answers to choose from.
    pub choices: &'a [String],
    /// The right answer, which is one of the choices.
    pub answer: &'a str,
}

/// The probability of the right choice of each question about each image: the likelihoods of the choices as replies, divided
/// by their sum.
///
/// # Errors
/// If a question does not fit the model, or logits are not finite.
pub fn probabilities(
    model: &(impl UnifiedModel + ?Sized),
    questions: &[Posed<'_>],
    views: &[ImageView],
) -> Result<Vec<Vec<f64>>> {
    let given = |asked: &Posed<'_>| {
        let question = prompt(asked.question, asked.choices);
        asked
            .choices
            .iter()
            .map(move |choice| GivenReply { question: question.clone(), reply: choice.clone() })
            .collect::<Vec<_>>()
    };
    let given: Vec<GivenReply> = questions.iter().flat_map(given).collect();
    let asked: Vec<(&ImageView, &[GivenReply])> = views.iter().map(|view| (view, given.as_slice())).collect();
    let of_image = |found: Vec<Likelihood>| {
        let mut rest = found.as_slice();
        let of_question = |asked: &Posed<'_>| {
            let (own, behind) = rest.split_at(asked.choices.len());
            rest = behind;
            let highest = own.iter().map(|one| one.log_prob).fold(f64::NEG_INFINITY, f64::max);
            let share = |one: &Likelihood| (one.log_prob - highest).exp();
            let right = own.iter().zip(asked.choices).filter(|(_, choice)| **choice == asked.answer);
            right.map(|(one, _)| share(one)).sum::<f64>() / own.iter().map(share).sum::<f64>()
        };
        questions.iter().map(of_question).collect::<Vec<f64>>()
    };
    Ok(model.score_replies(&asked)?.into_iter().map(of_image).collect())
}
