//! Questions with choices: how they are put to the model, and which choice a reply means.

use crate::lexical::{chrf, words};

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

/// The choice that a free reply means: the one it equals (case, punctuation, articles and number words aside), else
/// the only one it contains, else the nearest by letters; none if it shares nothing with any of them.
pub fn choice<'a>(reply: &str, choices: &'a [String]) -> Option<&'a str> {
    let said = normalized(reply);
    let equal = choices.iter().find(|choice| normalized(choice) == said);
    if let Some(choice) = equal.filter(|_| !said.is_empty()) {
        return Some(choice);
    }
    let mut contained = choices.iter().filter(|choice| {
        let wanted = normalized(choice);
        !wanted.is_empty() && said.windows(wanted.len()).any(|words| words == wanted)
    });
    if let (Some(choice), None) = (contained.next(), contained.next()) {
        return Some(choice);
    }
    let said = said.join(" ");
    let mut best: Option<(&str, f64)> = None;
    for choice in choices {
        let score = chrf(&normalized(choice).join(" "), &said);
        if score > best.map_or(0.0, |(_, best)| best) {
            best = Some((choice, score));
        }
    }
    best.map(|(choice, _)| choice)
}

fn normalized(text: &str) -> Vec<String> {
    const NUMBERS: [&str; 11] = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"];
    let digits = |word: String| NUMBERS.iter().position(|number| *number == word).map_or(word, |n| n.to_string());
    words(text).into_iter().filter(|word| !["a", "an", "the"].contains(&word.as_str())).map(digits).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meant<'a>(reply: &str, choices: &[&'a str]) -> Option<&'a str> {
        let owned: Vec<String> = choices.iter().map(|choice| (*choice).to_string()).collect();
        let found = choice(reply, &owned)?.to_string();
        choices.iter().copied().find(|choice| **choice == found)
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
        assert_eq!(meant("the circle", &["square", "a circle"]), Some("a circle"));
        assert_eq!(meant("it is yellow", &["blue", "yellow"]), Some("yellow"));
        assert_eq!(meant("not red but blue", &["red", "blue"]), Some("blue"), "both are contained: the nearest");
        assert_eq!(meant("triangular", &["circle", "triangle"]), Some("triangle"));
        assert_eq!(meant("", &["yes", "no"]), None);
        assert_eq!(meant("%%%", &["yes", "no"]), None);
    }
}
