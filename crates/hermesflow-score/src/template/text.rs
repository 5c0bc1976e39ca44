//! Splits a caption into words. Additions for an image generator are cut off, and punctuation ends phrases.

use super::lexicon::Lexicon;
use super::words::number;

/// Frequent English words, by which a text is recognised as English.
const FUNCTION: [&str; 60] = [
    "a", "an", "the", "of", "in", "on", "at", "with", "and", "or", "is", "are", "to", "by", "for", "from", "his",
    "her", "its", "their", "this", "that", "there", "it", "some", "no", "under", "over", "near", "behind", "front",
    "next", "top", "as", "into", "while", "who", "which", "two", "three", "four", "against", "through", "between",
    "up", "down", "above", "below", "around", "across", "without", "beside", "very", "has", "he", "she", "they",
    "several", "many", "style",
];

/// The largest length of a caption; the rest is cut off.
const LONGEST: usize = 400;

/// A piece of a caption.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Token {
    /// A word in lower case, and whether it began with a capital in the middle of a sentence.
    Word(String, bool),
    /// Words in quotes, as they stand.
    Quote(String),
    /// A comma, or whatever else parts phrases.
    Comma,
    /// The end of a sentence.
    Stop,
}

impl Token {
    /// The word; empty for other tokens.
    pub fn word(&self) -> &str {
        match self {
            Self::Word(word, _) => word,
            _ => "",
        }
    }
}

/// The tokens of a caption.
pub(super) fn tokens(caption: &str) -> Vec<Token> {
    let text = plain(caption);
    let words: Vec<&str> = text.split_whitespace().filter(|word| word.chars().any(char::is_alphabetic)).collect();
    let capital = |word: &str| word.chars().next().is_some_and(char::is_uppercase);
    let capitals = words.iter().filter(|word| capital(word)).count();
    // In a title every word has a capital, so none of them tells a name.
    let title = words.len() > 3 && capitals * 10 > words.len() * 6;
    let (mut tokens, mut first) = (Vec::new(), true);
    let mut rest = text.as_str();
    while let Some(character) = rest.chars().next() {
        if let Some((quote, behind)) = quoted(rest) {
            tokens.push(Token::Quote(quote.to_string()));
            (rest, first) = (behind, false);
            continue;
        }
        if character.is_alphanumeric() {
            let inner = |c: char| c.is_alphanumeric() || "'-’".contains(c);
            let end = rest.find(|c| !inner(c)).unwrap_or(rest.len());
            let word = rest[..end].trim_end_matches(['-', '\'', '’']);
            push_word(&mut tokens, word, title || first && !begins_name(word, &rest[end..]));
            (rest, first) = (&rest[end..], false);
            continue;
        }
        match character {
            '.' | '!' | '?' | '\n' => {
                tokens.push(Token::Stop);
                first = true;
            }
            ',' | ';' | ':' | '|' | '(' | ')' | '[' | ']' | '{' | '}' | '—' | '–' | '*' | '/' | '+' | '#' | '。'
            | '，' => {
                tokens.push(Token::Comma);
            }
            '&' => tokens.push(Token::Word("and".into(), false)),
            _ => {}
        }
        rest = &rest[character.len_utf8()..];
    }
    tokens.truncate(LONGEST);
    tokens
}

/// A caption without the flags, weights and links of a prompt, and with straight quotes.
fn plain(caption: &str) -> String {
    let mut text = String::new();
    for word in caption.replace("/imagine", " ").replace("prompt:", " ").split_inclusive(char::is_whitespace) {
        if word.starts_with("--") || (word.starts_with('—') && word.len() > 5) {
            break; // flags come last: --ar 16:9 --v 5
        }
        if !word.contains("http") && !word.starts_with('<') {
            text.push_str(word);
        }
    }
    text.replace(['“', '”', '«', '»', '„'], "\"").replace(['’', '‘'], "'").replace("--", ",")
}

/// The words in quotes at the beginning of a text, and what follows them.
fn quoted(text: &str) -> Option<(&str, &str)> {
    let quote = text.chars().next().filter(|c| "\"'".contains(*c))?;
    let inner = &text[1..];
    let mut from = 0;
    loop {
        let end = from + inner[from..].find(quote)?;
        let behind = inner[end + 1..].chars().next();
        // An apostrophe inside a word closes nothing.
        if behind.is_none_or(|c| !c.is_alphanumeric()) {
            let said = inner[..end].trim();
            let short = !said.is_empty() && said.chars().count() <= 60;
            return short.then(|| (said.trim_end_matches(['.', ',']), &inner[end + 1..]));
        }
        from = end + 1;
    }
}

/// Whether the first word of a sentence begins a name, because a capital follows at once: "New York", not "A Toyota".
fn begins_name(word: &str, rest: &str) -> bool {
    let next = rest.strip_prefix(' ').unwrap_or_default();
    let mut letters = next.chars();
    let capital = letters.next().is_some_and(char::is_uppercase) && letters.next().is_some_and(char::is_lowercase);
    let word = word.to_lowercase();
    let lexicon = Lexicon::get();
    let known = lexicon.noun(&word).is_some() || lexicon.verb(&word).is_some_and(|(_, _, finite)| !finite);
    capital && !known && !FUNCTION.contains(&word.as_str()) && number(&word).is_none()
}

fn push_word(tokens: &mut Vec<Token>, word: &str, no_name: bool) {
    let word = word.replace('’', "'");
    // Words in capitals throughout are abbreviations: UHD.
    let name = !no_name && word.chars().next().is_some_and(char::is_uppercase) && word.chars().any(char::is_lowercase);
    let lower = word.to_lowercase();
    let digits = lower.chars().any(|c| c.is_ascii_digit());
    let known = number(&lower).is_some() || lower.contains('-') || lower == "3d" || lower == "2d";
    if digits && !known {
        // 8k, 35mm, 2023: no English. In "a 1920s car" it parts nothing.
        if !matches!(tokens.last().map(Token::word), Some("a" | "an" | "the")) {
            tokens.push(Token::Comma);
        }
        return;
    }
    match lower.strip_suffix("'s") {
        Some(owner) if !["it", "he", "she", "that", "there", "who"].contains(&owner) => {
            tokens.push(Token::Word(owner.to_string(), name));
            tokens.push(Token::Word("'s".into(), false));
        }
        Some(pronoun) => {
            tokens.push(Token::Word(pronoun.to_string(), false));
            tokens.push(Token::Word("is".into(), false));
        }
        None => tokens.push(Token::Word(lower, name)),
    }
}

/// Whether enough of the words are English.
pub(super) fn is_english(tokens: &[Token]) -> bool {
    let lexicon = Lexicon::get();
    let words: Vec<&str> = tokens.iter().map(Token::word).filter(|word| !word.is_empty()).collect();
    let nouns = |word: &str| lexicon.noun(word).is_some() || !lexicon.adjective(word).is_empty();
    let known = |word: &&&str| FUNCTION.contains(*word) || nouns(word) || lexicon.verb(word).is_some();
    let count = words.iter().filter(known).count();
    count > 0 && count * 5 >= words.len() * 2
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(caption: &str) -> String {
        let show = |token: &Token| match token {
            Token::Word(word, true) => format!("^{word}"),
            Token::Word(word, false) => word.clone(),
            Token::Quote(words) => format!("<{words}>"),
            Token::Comma => ",".into(),
            Token::Stop => ".".into(),
        };
        tokens(caption).iter().map(show).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn words_quotes_and_flags() {
        assert_eq!(shown("A dog, near Paris. It's red"), "a dog , near ^paris . it is red");
        assert_eq!(shown("a man's hat --ar 16:9 --v 5"), "a man 's hat");
        assert_eq!(shown("a sign that says 'DON'T STOP'"), "a sign that says <DON'T STOP>");
        assert_eq!(shown("cat, 8k, 35mm (blue:1.2)"), "cat , , , , , blue , 1 . 2 ,");
        assert_eq!(shown("A Red Car In The City"), "a red car in the city");
    }

    #[test]
    fn other_languages_are_told() {
        for (text, english) in [
            ("a dog on a couch", true),
            ("un perro grande en la calle", false),
            ("ein roter Ball liegt auf dem Tisch", false),
            ("一只猫坐在椅子上", false),
            ("", false),
            ("!!! ???", false),
        ] {
            assert_eq!(is_english(&tokens(text)), english, "{text}");
        }
    }
}
