//! TIFA (Hu et al. 2023, arXiv 2303.11897): the questions in a question writer's reply, and which of them are kept.
//!
//! A reply continues the prompt's `Entities:`. After six lines that list what the caption names come, for every
//! element, `About {element} ({type}):` and questions of three lines each, `Q: `, `Choices: ` and `A: `.

use std::collections::HashSet;

use crate::chrf::words;
use crate::numbers::{in_digits, only_number};
use crate::{CaptionAnswer, Question};

/// The types of elements that the writer was trained on; questions about others are dropped.
const TYPES: [&str; 13] = [
    "object",
    "human",
    "animal",
    "food",
    "activity",
    "attribute",
    "counting",
    "color",
    "material",
    "spatial",
    "location",
    "shape",
    "other",
];

/// The number of lines before the first question.
const PREAMBLE: usize = 6;

/// A free answer agrees with the right one if their word F₁ is above this.
const WORD_F1: f64 = 0.6;

/// The questions of a writer's reply, up to its first blank line. Questions without choices are dropped.
pub fn parse_reply(reply: &str) -> Vec<Question> {
    let reply = reply.replace("\r\n", "\n");
    let reply = reply.split("\n\n").next().unwrap_or_default();
    let mut questions = Vec::new();
    let (mut element, mut question, mut choices) = (None, None, None);
    for line in reply.split('\n').skip(PREAMBLE) {
        if let Some(about) = line.strip_prefix("About ") {
            element = about
                .split_once(" (")
                .and_then(|(element, rest)| rest.split_once(')').map(|(kind, _)| (element, kind)))
                .filter(|(element, kind)| !element.is_empty() && TYPES.contains(kind))
                .map(|(element, _)| element);
        } else if let Some(text) = line.strip_prefix("Q: ") {
            question = Some(text);
        } else if let Some(list) = line.strip_prefix("Choices: ") {
            choices = Some(list);
        } else if let Some(answer) = line.strip_prefix("A: ") {
            if let (Some(element), Some(question), Some(choices)) = (element, question, choices) {
                questions.push(Question {
                    element: element.to_string(),
                    question: question.to_string(),
                    choices: choices.split(", ").map(str::to_string).collect(),
                    answer: answer.to_string(),
                });
            }
            (question, choices) = (None, None);
        }
    }
    questions
}

/// The first of all questions with the same wording.
pub fn deduplicated(questions: Vec<Question>) -> Vec<Question> {
    let mut seen = HashSet::new();
    questions.into_iter().filter(|question| seen.insert(question.question.clone())).collect()
}

/// Whether the answers from the caption alone confirm a question's right answer: the choice is the same and, unless
/// that is "yes" or "no", the word F₁ of the free answer is above 0.6.
pub fn agrees(question: &Question, answer: &CaptionAnswer) -> bool {
    answer.multiple_choice.trim() == question.answer.trim()
        && (["yes", "no"].contains(&question.answer.trim()) || word_f1(&question.answer, &answer.free_form) > WORD_F1)
}

/// The F₁ of the words of a free answer against the right one; number words count as digits. If the right answer is a
/// number and the free one contains exactly one number in words, only that number counts.
pub fn word_f1(right: &str, free: &str) -> f64 {
    let free = words(free);
    let is_number = !right.trim().is_empty() && right.trim().chars().all(|c| c.is_ascii_digit());
    let free = match only_number(&free).filter(|_| is_number) {
        Some(number) => vec![number.to_string()],
        None => in_digits(&free),
    };
    let right = in_digits(&words(right));
    let known = right.iter().filter(|word| free.contains(word)).count() as f64;
    let wrong = free.iter().filter(|word| !right.contains(word)).count() as f64;
    if known == 0.0 {
        return f64::from(u8::from(right.is_empty() && free.is_empty()));
    }
    let (precision, recall) = (known / (known + wrong), known / right.len() as f64);
    2.0 * precision * recall / (precision + recall)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const PREAMBLE_LINES: &str =
        " a\nActivities:\nColors:\nCounting:\nOther attributes:\nQuestions and answers are below:\n";

    #[test]
    fn a_reply_is_read_to_its_first_blank_line() {
        let body = "About dog (animal):\nQ: a dog?\nChoices: yes, no\nA: yes\n";
        let one = parse_reply(&format!("{PREAMBLE_LINES}{body}"));
        assert_eq!(one.len(), 1);
        assert_eq!((one[0].element.as_str(), one[0].choices.len()), ("dog", 2));
        assert_eq!(parse_reply(&format!("{PREAMBLE_LINES}{body}\n{body}")), one, "cut at the blank line");
        assert_eq!(parse_reply(&format!("{PREAMBLE_LINES}{body}").replace('\n', "\r\n")), one);
        assert_eq!(parse_reply(body), [], "inside the preamble");
        assert_eq!(parse_reply(""), []);
    }

    #[test]
    fn questions_with_a_part_missing_are_left_out() {
        for body in [
            "About dog (planet):\nQ: a dog?\nChoices: yes, no\nA: yes",
            "About dog:\nQ: a dog?\nChoices: yes, no\nA: yes",
            "Q: a dog?\nChoices: yes, no\nA: yes",
            "About dog (animal):\nQ: a dog?\nA: yes",
            "About dog (animal):\nChoices: yes, no\nA: yes",
            "About dog (animal):\nQ: a dog?\nChoices: yes, no",
        ] {
            assert_eq!(parse_reply(&format!("{PREAMBLE_LINES}{body}")), [], "{body}");
        }
        let stale = "About dog (animal):\nQ: a dog?\nChoices: yes, no\nA: yes\nQ: a cat?\nA: yes";
        assert_eq!(parse_reply(&format!("{PREAMBLE_LINES}{stale}")).len(), 1, "choices belong to one question");
    }

    #[test]
    fn word_f1_by_hand() {
        for (right, free, expected) in [
            ("in the park", "the park", 0.8),
            ("raccoon", "a raccoon", 2.0 / 3.0),
            ("hat", "hat made of orange roses", 1.0 / 3.0),
            ("3", "three", 1.0),
            ("21", "there are twenty-one of them", 1.0),
            ("twenty-one", "21", 1.0),
            ("2", "two of three", 0.5),
            ("3", "3 dogs", 2.0 / 3.0),
            ("red", "blue", 0.0),
            ("red", "", 0.0),
        ] {
            assert!((word_f1(right, free) - expected).abs() < 1e-12, "{right}; {free}: {}", word_f1(right, free));
        }
    }

    #[test]
    fn the_threshold_itself_is_not_enough() {
        let question = |answer: &str| Question {
            element: "e".into(),
            question: "q".into(),
            choices: vec![],
            answer: answer.into(),
        };
        let answer = |multiple_choice: &str, free_form: &str| CaptionAnswer {
            multiple_choice: multiple_choice.into(),
            free_form: free_form.into(),
        };
        // Three of five words either way: F₁ = 0.6.
        assert!(!agrees(&question("a b c d e"), &answer("a b c d e", "a b c x y")));
        assert!(agrees(&question("a b c d e"), &answer("a b c d e", "a b c x")));
        assert!(agrees(&question("yes"), &answer("yes", "anything")));
        assert!(!agrees(&question("yes"), &answer("no", "yes")));
        assert!(!agrees(&question("red"), &answer("blue", "red")));
    }
}
