//! TIFA's filter of questions: UnifiedQA-v2 (Khashabi et al., arXiv 2202.12359), a T5 that answers from the caption
//! alone.
//!
//! Prompts are those of TIFA's released code, and replies are greedy with at most 30 tokens:
//! - free answers: `{question} ⏎ {caption}`; letters, digits and spaces of the reply count, in lower case;
//! - choices: `{question} ⏎ {caption} ⏎ (A) {choice} (B) {choice} `, with the first four choices only; the reply counts
//!   as it is. TIFA requires it to equal the right choice exactly; with [`UnifiedQa::with_matcher`], a reply that is
//!   none of the choices is first mapped to one.

use std::path::Path;

use candle_core::{DType, Device};

use super::tokenizer::cleaned;
use super::{T5, TextTokenizer};
use crate::CaptionAnswer;
use crate::ChoiceMatcher;
use crate::Choosing;
use crate::Question;
use crate::QuestionFilter;
use crate::Result;
use crate::tifa;

/// The largest number of tokens of a reply.
const REPLY: usize = 30;

/// The headings of choices; further choices are not shown.
const HEADINGS: [&str; 4] = ["(A)", "(B)", "(C)", "(D)"];

/// Answers questions from a caption alone.
pub struct UnifiedQa {
    model: T5,
    tokenizer: TextTokenizer,
    matcher: Option<Box<dyn ChoiceMatcher>>,
}

impl UnifiedQa {
    /// Loads a folder of a T5 in f32.
    ///
    /// # Errors
    /// If a file is missing or malformed; it is named.
    pub fn load(folder: &Path, device: &Device) -> Result<Self> {
        let model = T5::load(folder, DType::F32, device)?;
        let tokenizer = TextTokenizer::load(folder, model.vocab_size())?;
        Ok(Self { model, tokenizer, matcher: None })
    }

    /// Maps replies that are none of the choices to the choice that `matcher` finds.
    pub fn with_matcher(mut self, matcher: Box<dyn ChoiceMatcher>) -> Self {
        self.matcher = Some(matcher);
        self
    }

    /// The model's replies to prompts, which are processed together.
    ///
    /// # Errors
    /// If the model fails.
    pub fn replies(&self, prompts: &[String]) -> Result<Vec<String>> {
        let ids = self.tokenizer.ids(prompts.iter().map(String::as_str))?;
        let replies = self.model.generate(&ids, REPLY)?;
        replies.iter().map(|reply| Ok(cleaned(&self.tokenizer.text(reply)?))).collect()
    }

    fn choices(&self, questions: &[Question], replies: Vec<String>) -> Result<Vec<String>> {
        let Some(matcher) = &self.matcher else {
            return Ok(replies);
        };
        let asked = replies.iter().zip(questions);
        let choosing: Vec<_> = asked.map(|(reply, question)| Choosing { reply, choices: &question.choices }).collect();
        let meant = matcher.choose(&choosing)?;
        let mapped = choosing.iter().zip(meant).map(|(one, meant)| match meant {
            Some(choice) if !one.choices.iter().any(|choice| choice == one.reply) => one.choices[choice].clone(),
            _ => one.reply.to_string(),
        });
        Ok(mapped.collect())
    }

    fn chosen(&self, caption: &str, questions: &[Question]) -> Result<Vec<String>> {
        let prompts: Vec<String> = questions.iter().map(|question| multiple_choice_prompt(question, caption)).collect();
        self.choices(questions, self.replies(&prompts)?)
    }

    fn free<'a>(&self, caption: &str, questions: impl IntoIterator<Item = &'a Question>) -> Result<Vec<String>> {
        let prompts: Vec<String> =
            questions.into_iter().map(|question| format!("{} \n {caption}", question.question)).collect();
        Ok(self.replies(&prompts)?.iter().map(|reply| plain(reply)).collect())
    }
}

impl QuestionFilter for UnifiedQa {
    fn answers(&self, caption: &str, questions: &[Question]) -> Result<Vec<CaptionAnswer>> {
        let both = self.chosen(caption, questions)?.into_iter().zip(self.free(caption, questions)?);
        Ok(both.map(|(multiple_choice, free_form)| CaptionAnswer { multiple_choice, free_form }).collect())
    }

    /// Like the provided method, but asks for a free answer only where it decides.
    fn keep(&self, caption: &str, questions: Vec<Question>) -> Result<Vec<Question>> {
        let questions = tifa::deduplicated(questions);
        let chosen = self.chosen(caption, &questions)?;
        let same = |question: &Question, multiple_choice: String, free_form: String| {
            tifa::agrees(question, &CaptionAnswer { multiple_choice, free_form })
        };
        // With the right answer as the free answer, only the choice decides.
        let hopeful: Vec<(Question, String)> = questions
            .into_iter()
            .zip(chosen)
            .filter(|(question, choice)| same(question, choice.clone(), question.answer.clone()))
            .collect();
        let open = |question: &Question| !["yes", "no"].contains(&question.answer.trim());
        let asked = hopeful.iter().map(|(question, _)| question).filter(|question| open(question));
        let mut free = self.free(caption, asked)?.into_iter();
        let kept = hopeful.into_iter().filter_map(|(question, choice)| {
            let free_form = if open(&question) { free.next().unwrap_or_default() } else { String::new() };
            same(&question, choice, free_form).then_some(question)
        });
        Ok(kept.collect())
    }
}

fn multiple_choice_prompt(question: &Question, caption: &str) -> String {
    let choices = HEADINGS.iter().zip(&question.choices).map(|(heading, choice)| format!("{heading} {choice} "));
    format!("{} \n {caption} \n {}", question.question, choices.collect::<String>())
}

/// The letters, digits and spaces of a reply, in lower case.
fn plain(reply: &str) -> String {
    let kept: String = reply.chars().filter(|c| c.is_alphanumeric() || c.is_whitespace()).collect();
    kept.trim().to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_and_answers_are_written_as_tifa_writes_them() {
        let question = |choices: &[&str]| Question {
            element: "dog".into(),
            question: "how many dogs?".into(),
            choices: choices.iter().map(|choice| (*choice).to_string()).collect(),
            answer: "3".into(),
        };
        let prompt = multiple_choice_prompt(&question(&["1", "2", "3", "4", "5"]), "three dogs in the park");
        assert_eq!(prompt, "how many dogs? \n three dogs in the park \n (A) 1 (B) 2 (C) 3 (D) 4 ");
        assert_eq!(multiple_choice_prompt(&question(&[]), "c"), "how many dogs? \n c \n ");
        assert_eq!(plain(" It's 3, I think! "), "its 3 i think");
    }
}
