//! The reader that keeps TIFA's questions honest: UnifiedQA-v2 (Khashabi et al., arXiv 2202.12359), a T5.
//!
//! Prompts as TIFA's released code writes them, greedy replies of at most 30 tokens:
//! - free form: `{question} ⏎ {caption}`; of the reply letters, digits and spaces count, in lower case;
//! - choices: `{question} ⏎ {caption} ⏎ (A) {choice} (B) {choice} `, the first four choices only; the reply counts as
//!   it is. TIFA compares it with the right choice letter by letter; [`UnifiedQa::with_matcher`] maps a reply that is
//!   none of the choices to one of them first.

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

/// The most tokens of a reply.
const REPLY: usize = 30;

/// How choices are headed; further choices are not shown.
const HEADINGS: [&str; 4] = ["(A)", "(B)", "(C)", "(D)"];

/// Answers questions from a caption alone.
pub struct UnifiedQa {
    model: T5,
    tokenizer: TextTokenizer,
    matcher: Option<Box<dyn ChoiceMatcher>>,
}

impl UnifiedQa {
    /// Loads a T5 folder in f32.
    ///
    /// # Errors
    /// When a file is missing or broken; the file is named.
    pub fn load(folder: &Path, device: &Device) -> Result<Self> {
        let model = T5::load(folder, DType::F32, device)?;
        let tokenizer = TextTokenizer::load(folder, model.vocab_size())?;
        Ok(Self { model, tokenizer, matcher: None })
    }

    /// Replies that are none of the choices become the one that the matcher finds.
    pub fn with_matcher(mut self, matcher: Box<dyn ChoiceMatcher>) -> Self {
        self.matcher = Some(matcher);
        self
    }

    /// The model's replies to prompts, all at once.
    ///
    /// # Errors
    /// When the model fails.
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

    /// As the provided method, but asks freely only where that decides.
    fn keep(&self, caption: &str, questions: Vec<Question>) -> Result<Vec<Question>> {
        let questions = tifa::deduplicated(questions);
        let chosen = self.chosen(caption, &questions)?;
        let same = |question: &Question, multiple_choice: String, free_form: String| {
            tifa::agrees(question, &CaptionAnswer { multiple_choice, free_form })
        };
        // An answer in exactly the right words passes whatever the words are.
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

/// Letters, digits and spaces, in lower case.
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
