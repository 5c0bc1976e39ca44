//! Multiple-choice questions: how they are put to the model, and which choice a reply means.

use crate::chrf::{chrf_of, words};
use crate::numbers::in_digits;
use crate::{ChoiceMatcher, Choosing, Lexical, Result};

impl ChoiceMatcher for Lexical {
    fn choose(&self, replies: &[Choosing<'_>]) -> Result<Vec<Option<usize>>> {
        Ok(replies.iter().map(|Choosing { reply, choices }| choice(reply, choices)).collect())
    }
}

/// A question with its choices as a list in Python's notation, as the released script writes it: `Question:…
/// Choice:['a', 'b']`.
pub fn prompt(question: &str, choices: &[String]) -> String {
    let choices: Vec<String> = choices.iter().map(|choice| python_repr(choice)).collect();
    format!("Question:{question} Choice:[{}]", choices.join(", "))
}

/// Python's `repr` of a string: single quotes, unless the text contains one and no double quote.
fn python_repr(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut repr = String::from(quote);
    for character in text.chars() {
        match character {
            '\\' => repr.push_str("\\\\"),
            '\n' => repr.push_str("\\n"),
            '\r' => repr.push_str("\\r"),
            '\t' => repr.push_str("\\t"),
            c if c == quote => repr.extend(['\\', c]),
            c if (c as u32) < 0x20 || (0x7f..0xa1).contains(&(c as u32)) => {
                repr.push_str(&format!("\\x{:02x}", c as u32));
            }
            c => repr.push(c),
        }
    }
    repr.push(quote);
    repr
}

/// The index of the choice that a reply equals exactly, or else of the only one that it equals except for case;
/// surrounding spaces are ignored.
pub fn equal(reply: &str, choices: &[String]) -> Option<usize> {
    let reply = reply.trim();
    let folded = reply.to_lowercase();
    let same = |choice: &String| choice.trim() == reply;
    choices.iter().position(same).or_else(|| only(choices.iter().map(|choice| choice.trim().to_lowercase() == folded)))
}

/// Two choices that a matcher cannot tell apart, because they differ at most in case, punctuation, articles and number
/// words; `None` if there are no such two.
pub fn alike(choices: &[String]) -> Option<[&str; 2]> {
    let normal: Vec<Vec<String>> = choices.iter().map(|choice| normalized(choice)).collect();
    let earlier = |at: usize| normal[..at].iter().position(|other| *other == normal[at]).map(|other| [other, at]);
    (0..normal.len()).find_map(earlier).map(|pair| pair.map(|at| choices[at].as_str()))
}

/// The index of the choice that a free reply means: the one that it [equals](equal); else the only one that it equals
/// except for case, punctuation, articles and number words; else the only one that it contains; else the one with the
/// most similar spelling ([`crate::chrf`]). `None` if it shares no letters with any choice, or equals several.
pub fn choice(reply: &str, choices: &[String]) -> Option<usize> {
    if let Some(equal) = equal(reply, choices) {
        return Some(equal);
    }
    let said = normalized(reply);
    let choices: Vec<Vec<String>> = choices.iter().map(|choice| normalized(choice)).collect();
    let equals = |choice: &Vec<String>| *choice == said && !said.is_empty();
    if choices.iter().any(equals) {
        return only(choices.iter().map(equals));
    }
    let contains = |choice: &[String]| !choice.is_empty() && said.windows(choice.len()).any(|words| words == choice);
    if let Some(only) = only(choices.iter().map(|choice| contains(choice))) {
        return Some(only);
    }
    let mut best = None;
    for (number, choice) in choices.iter().enumerate() {
        let score = chrf_of(choice, &said);
        if score > best.map_or(0.0, |(_, best)| best) {
            best = Some((number, score));
        }
    }
    best.map(|(number, _)| number)
}

/// The index of the only true value.
fn only(all: impl Iterator<Item = bool>) -> Option<usize> {
    let mut places = all.enumerate().filter(|(_, is)| *is).map(|(place, _)| place);
    places.next().filter(|_| places.next().is_none())
}

fn normalized(text: &str) -> Vec<String> {
    let words: Vec<String> =
        words(text).into_iter().filter(|word| !["a", "an", "the"].contains(&word.as_str())).collect();
    in_digits(&words)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meant<'a>(reply: &str, choices: &[&'a str]) -> Option<&'a str> {
        let owned: Vec<String> = choices.iter().map(|choice| (*choice).to_string()).collect();
        Some(choices[choice(reply, &owned)?])
    }

    #[test]
    fn choices_are_written_as_python_writes_lists() {
        let choices = ["yes", "it's", "\"so\" it's", "a\\b\n"].map(String::from);
        let expected = r#"Question:q? Choice:['yes', "it's", '"so" it\'s', 'a\\b\n']"#;
        assert_eq!(prompt("q?", &choices), expected);
    }

    #[test]
    fn exact_then_contained_then_nearest() {
        assert_eq!(meant(" Red.", &["green", "red"]), Some("red"));
        assert_eq!(meant("two", &["1", "2", "3"]), Some("2"));
        assert_eq!(meant("There are Twenty-One.", &["20", "21", "1"]), Some("21"));
        assert_eq!(meant("21", &["one", "twenty one"]), Some("twenty one"));
        assert_eq!(meant("the circle", &["square", "a circle"]), Some("a circle"));
        assert_eq!(meant("it is yellow", &["blue", "yellow"]), Some("yellow"));
        assert_eq!(meant("not red but blue", &["red", "blue"]), Some("blue"), "both are contained: the nearest");
        assert_eq!(meant("triangular", &["circle", "triangle"]), Some("triangle"));
        assert_eq!(meant("", &["yes", "no"]), None);
        assert_eq!(meant("%%%", &["yes", "no"]), None);
    }

    #[test]
    fn a_reply_that_equals_a_choice_is_that_choice() {
        for choices in [&["C", "C++", "c#"][..], &["a cat", "the cat", "Cat"], &["+5", "-5", "five"], &["%", "$", ""]] {
            for said in choices {
                assert_eq!(meant(&format!(" {said}\n"), choices), Some(*said), "{choices:?}");
            }
        }
        assert_eq!(meant("THE CAT", &["a cat", "the cat"]), Some("the cat"), "but for case");
        assert_eq!(meant("cat", &["a cat", "the cat"]), None, "either");
    }

    #[test]
    fn choices_that_cannot_be_told_apart_are_found() {
        let found = |choices: &[&str]| {
            let owned: Vec<String> = choices.iter().map(|choice| (*choice).to_string()).collect();
            alike(&owned).map(|pair| pair.map(str::to_owned))
        };
        assert_eq!(found(&["yes", "no"]), None);
        assert_eq!(found(&["dog", "a cat", "The cat."]), Some(["a cat".into(), "The cat.".into()]));
        assert_eq!(found(&["2", "3", "two"]), Some(["2".into(), "two".into()]));
        assert_eq!(found(&["?", "!"]), Some(["?".into(), "!".into()]));
    }
}
