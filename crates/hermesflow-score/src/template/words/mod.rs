//! Forms of English words: plurals, articles, numbers.

use crate::numbers::{SMALL, TENS};

/// Plurals that follow no rule.
const IRREGULAR: [(&str, &str); 25] = [
    ("man", "men"),
    ("woman", "women"),
    ("child", "children"),
    ("person", "people"),
    ("mouse", "mice"),
    ("goose", "geese"),
    ("foot", "feet"),
    ("tooth", "teeth"),
    ("ox", "oxen"),
    ("knife", "knives"),
    ("leaf", "leaves"),
    ("shelf", "shelves"),
    ("loaf", "loaves"),
    ("wolf", "wolves"),
    ("calf", "calves"),
    ("elf", "elves"),
    ("dwarf", "dwarves"),
    ("wife", "wives"),
    ("hoof", "hooves"),
    ("scarf", "scarves"),
    ("sheep", "sheep"),
    ("deer", "deer"),
    ("fish", "fish"),
    ("aircraft", "aircraft"),
    ("spacecraft", "spacecraft"),
];

/// Words that end in -o and take -es.
const O_ES: [&str; 8] = ["tomato", "potato", "hero", "echo", "buffalo", "mango", "mosquito", "volcano"];

/// The numbers that are one word, up to twenty.
fn numbers() -> impl Iterator<Item = &'static str> {
    SMALL.into_iter().chain([TENS[0]])
}

/// The plural of a noun; of several words only the last changes.
pub(super) fn plural(noun: &str) -> String {
    let (before, last) = noun.rsplit_once(' ').map_or(("", noun), |(before, last)| (before, last));
    let space = if before.is_empty() { "" } else { " " };
    format!("{before}{space}{}", plural_of_word(last))
}

fn plural_of_word(word: &str) -> String {
    for (one, many) in IRREGULAR {
        // Whole words, and what is made of them: snowmen, policewomen; not "human".
        let prefix = word.strip_suffix(one);
        if word == one
            || (one.ends_with("man")
                && prefix.is_some()
                && !["hu", "ger", "sha", "ro"].contains(&&word[..word.len() - 3]))
        {
            return format!("{}{many}", prefix.unwrap_or_default());
        }
    }
    let before_last = word.chars().rev().nth(1).unwrap_or('e');
    let vowel = "aeiou".contains(before_last);
    match word {
        _ if O_ES.contains(&word) => format!("{word}es"),
        _ if word.ends_with('y') && !vowel => format!("{}ies", &word[..word.len() - 1]),
        _ if ["s", "x", "z", "ch", "sh"].iter().any(|end| word.ends_with(end)) => format!("{word}es"),
        _ => format!("{word}s"),
    }
}

/// The singular of an unknown word, if it looks like a plural.
pub(super) fn singular_of_unknown(word: &str) -> Option<String> {
    let long = word.chars().count() > 3;
    if !long || !word.ends_with('s') || ["ss", "us", "is", "'s"].iter().any(|end| word.ends_with(end)) {
        return None;
    }
    if let Some(stem) = word.strip_suffix("ies") {
        return Some(format!("{stem}y"));
    }
    let hissing = |stem: &&str| ["s", "x", "z", "ch", "sh"].iter().any(|end| stem.ends_with(end));
    let stem = word.strip_suffix("es").filter(hissing).or_else(|| word.strip_suffix('s'));
    stem.map(str::to_string)
}

/// A noun with "a" or "an".
pub(super) fn with_article(noun: &str) -> String {
    let silent = ["hour", "heir", "honest"].iter().any(|word| noun.starts_with(word));
    let consonant =
        ["uni", "use", "eu", "one", "ufo", "uku", "urinal", "utensil"].iter().any(|start| noun.starts_with(start));
    let spelled = ["suv", "mri", "x-ray", "fbi"].iter().any(|word| noun.split(' ').next() == Some(word));
    let vowel = noun.starts_with(['a', 'e', 'i', 'o', 'u']);
    let article = if silent || spelled || (vowel && !consonant) { "an" } else { "a" };
    format!("{article} {noun}")
}

/// A number up to twenty in words, or up to 999 in digits.
pub(super) fn number(word: &str) -> Option<u32> {
    let in_digits = word.len() <= 3 && word.bytes().all(|byte| byte.is_ascii_digit());
    match numbers().position(|name| name == word) {
        Some(number) => u32::try_from(number).ok(),
        None if in_digits => word.parse().ok(),
        None => None,
    }
}

/// A small number in words.
pub(super) fn in_words(number: u32) -> String {
    numbers().nth(number as usize).map_or_else(|| number.to_string(), str::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plurals_and_articles() {
        for (one, many) in [
            ("dog", "dogs"),
            ("bus", "buses"),
            ("puppy", "puppies"),
            ("boy", "boys"),
            ("fireman", "firemen"),
            ("human", "humans"),
            ("wine glass", "wine glasses"),
            ("bookshelf", "bookshelfs"),
            ("knife", "knives"),
            ("sheep", "sheep"),
        ] {
            assert_eq!(plural(one), many);
        }
        for (noun, with) in
            [("owl", "an owl"), ("unicorn", "a unicorn"), ("hourglass", "an hourglass"), ("dog", "a dog")]
        {
            assert_eq!(with_article(noun), with);
        }
        assert_eq!(singular_of_unknown("glorps").as_deref(), Some("glorp"));
        assert_eq!(singular_of_unknown("grass"), None);
        assert_eq!((number("three"), number("12"), number("8k")), (Some(3), Some(12), None));
    }
}
