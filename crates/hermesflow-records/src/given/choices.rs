//! The choices of a question, and which of them its answer means.

use serde_json::Value;

/// The choices with their letters, from `{"A": "red"}`, `["red"]` or `["A. red"]`.
pub(super) fn options(value: &Value) -> Vec<(Option<String>, String)> {
    match value {
        Value::Object(map) => map
            .iter()
            .filter_map(|(letter, choice)| {
                Some((Some(letter.trim().to_uppercase()), choice.as_str()?.trim().to_string()))
            })
            .collect(),
        Value::Array(list) => {
            let texts: Vec<&str> = list.iter().filter_map(Value::as_str).map(str::trim).collect();
            let lettered: Option<Vec<_>> = texts.iter().map(|text| lettered(text)).collect();
            match lettered {
                Some(lettered) => lettered.into_iter().map(|(letter, rest)| (Some(letter), rest)).collect(),
                None => texts.into_iter().map(|text| (None, text.to_string())).collect(),
            }
        }
        _ => Vec::new(),
    }
}

/// The choice that an answer means: the one with the same text, or with its letter, alone or before the text ("B",
/// "(b)", "B. blue").
pub(super) fn meant(options: &[(Option<String>, String)], answer: &str) -> Option<String> {
    let answer = answer.trim();
    let same = |text: &str| {
        options.iter().find(|(_, choice)| choice.eq_ignore_ascii_case(text)).map(|(_, choice)| choice.clone())
    };
    let by_letter = |letter: &str| {
        let letter = letter.to_uppercase();
        let named = options.iter().find(|(name, _)| name.as_deref() == Some(letter.as_str()));
        let place =
            letter.bytes().next().filter(|_| letter.len() == 1).map(|byte| usize::from(byte.wrapping_sub(b'A')));
        let lettered = options.iter().any(|(name, _)| name.is_some());
        named
            .or_else(|| place.filter(|_| !lettered).and_then(|place| options.get(place)))
            .map(|(_, choice)| choice.clone())
    };
    let bare = answer.trim_matches(['(', ')', '.', ':', ' ']);
    same(answer).or_else(|| if bare.len() == 1 { by_letter(bare) } else { None }).or_else(|| {
        lettered(answer)
            .and_then(|(letter, rest)| by_letter(&letter).filter(|choice| choice.eq_ignore_ascii_case(&rest)))
    })
}

/// The letter and the text of "A. red", "(a) red" or "B: blue".
pub(super) fn lettered(text: &str) -> Option<(String, String)> {
    let text = text.trim_start_matches('(');
    let letter = text.chars().next().filter(char::is_ascii_alphabetic)?;
    let rest = text[1..].strip_prefix(['.', ')', ':'])?;
    Some((letter.to_uppercase().to_string(), rest.trim().to_string()))
}
