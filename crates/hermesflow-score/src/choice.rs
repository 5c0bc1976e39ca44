//! Questions with choices: how they are put to the model, and which choice a reply means.

use crate::chrf::{chrf_of, words};
use crate::numbers::in_digits;
use crate::{ChoiceMatcher, Choosing, Lexical, Result};

impl ChoiceMatcher for Lexical {
    fn choose(&self, replies: &[Choosing<'_>]) -> Result<Vec<Option<usize>>> {
        Ok(replies.iter().map(|Choosing { reply, choices }| choice(reply, choices)).collect())
    }
}

/// A question with its choices in Python's list notation, as the released script writes it.
pub fn prompt(question: &str, choices: &[String]) -> String {
    let choices: Vec<String> = choices.iter().map(|choice| python_repr(choice)).collect();
    format!("Question:{question} Choice:[{}]", choices.join(", "))
}

/// Python's `repr` of a string: single quotes, unless the text holds one and no double quote.
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

/// The number of the choice that a free reply means: the one it equals (case, punctuation, articles and number words
/// aside), else the only one it contains, else the nearest by letters; none if it shares nothing with any of them.
pub fn choice(reply: &str, choices: &[String]) -> Option<usize> {
    let said = normalized(reply);
    let choices: Vec<Vec<String>> = choices.iter().map(|choice| normalized(choice)).collect();
    if let Some(equal) = choices.iter().position(|choice| *choice == said && !said.is_empty()) {
        return Some(equal);
    }
    let contains = |choice: &[String]| !choice.is_empty() && said.windows(choice.len()).any(|words| words == choice);
    let mut contained = (0..choices.len()).filter(|number| contains(&choices[*number]));
    if let (Some(only), None) = (contained.next(), contained.next()) {
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
}
