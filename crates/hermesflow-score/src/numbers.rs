//! English number words as digits.

/// The words for zero to nineteen.
pub(crate) const SMALL: [&str; 20] = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
];
/// The words for twenty to ninety.
pub(crate) const TENS: [&str; 8] = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"];
const SCALES: [(&str, u64); 2] = [("thousand", 1_000), ("million", 1_000_000)];

/// Replaces every number in words, among words in lower case, by one word of digits: "twenty", "one", "dogs" → "21",
/// "dogs".
pub(crate) fn in_digits(words: &[String]) -> Vec<String> {
    let (mut digits, mut at) = (Vec::with_capacity(words.len()), 0);
    while at < words.len() {
        let (word, length) = match number(&words[at..]) {
            Some((number, length)) => (number.to_string(), length),
            None => (words[at].clone(), 1),
        };
        digits.push(word);
        at += length;
    }
    digits
}

/// The number that the words contain in words, if there is exactly one.
pub(crate) fn only_number(words: &[String]) -> Option<u64> {
    let (mut found, mut at) = (None, 0);
    while at < words.len() {
        match number(&words[at..]) {
            Some(_) if found.is_some() => return None,
            Some((number, length)) => {
                found = Some(number);
                at += length;
            }
            None => at += 1,
        }
    }
    found
}

/// The number with which the words begin, and how many words it takes.
fn number(words: &[String]) -> Option<(u64, usize)> {
    let (mut total, mut scale, mut at) = (0, u64::MAX, 0);
    loop {
        // A number below a thousand; "thousand" alone counts as one thousand.
        let behind_and = usize::from(at > 0 && words.get(at).is_some_and(|word| word == "and"));
        let group = below_thousand(&words[at + behind_and..]);
        let behind = at + group.map_or(0, |(_, length)| behind_and + length);
        let named = words.get(behind).and_then(|word| SCALES.iter().find(|(name, _)| name == word));
        match (group, named) {
            (group, Some((_, factor))) if *factor < scale && (group.is_some() || at == 0) => {
                total += group.map_or(1, |(value, _)| value) * factor;
                (scale, at) = (*factor, behind + 1);
            }
            (Some((value, _)), _) => return Some((total + value, behind)),
            _ => return (at > 0).then_some((total, at)),
        }
    }
}

fn below_thousand(words: &[String]) -> Option<(u64, usize)> {
    let hundred = |at: usize| words.get(at).is_some_and(|word| word == "hundred");
    let (hundreds, mut at) = match below_hundred(words) {
        Some((value, length)) if value > 0 && hundred(length) => (value * 100, length + 1),
        Some(found) => return Some(found),
        None if hundred(0) => (100, 1),
        None => return None,
    };
    let behind_and = usize::from(words.get(at).is_some_and(|word| word == "and"));
    let rest = below_hundred(&words[at + behind_and..]).filter(|(value, _)| *value > 0);
    at += rest.map_or(0, |(_, length)| behind_and + length);
    Some((hundreds + rest.map_or(0, |(value, _)| value), at))
}

fn below_hundred(words: &[String]) -> Option<(u64, usize)> {
    let small = |at: usize| SMALL.iter().position(|name| words.get(at).is_some_and(|word| word == name));
    let ten = TENS.iter().position(|name| words.first().is_some_and(|word| word == name));
    match (ten, small(1)) {
        (Some(ten), Some(one @ 1..=9)) => Some((20 + 10 * ten as u64 + one as u64, 2)),
        (Some(ten), _) => Some((20 + 10 * ten as u64, 1)),
        (None, _) => small(0).map(|value| (value as u64, 1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chrf::words;

    #[test]
    fn numbers_become_digits() {
        for (text, expected) in [
            ("three dogs", "3 dogs"),
            ("twenty-one", "21"),
            ("nineteen ninety", "19 90"),
            ("one, two", "1 2"),
            ("twenty ten", "20 10"),
            ("hundred", "100"),
            ("one hundred and five cats and two dogs", "105 cats and 2 dogs"),
            ("two hundred and a dog", "200 and a dog"),
            ("three thousand two hundred", "3200"),
            ("one million and one", "1000001"),
            ("thousand", "1000"),
            ("two thousand million", "2000 1000000"),
            ("and none", "and none"),
            ("7 of nine", "7 of 9"),
        ] {
            assert_eq!(in_digits(&words(text)).join(" "), expected, "{text}");
        }
    }

    #[test]
    fn the_only_number_is_found() {
        assert_eq!(only_number(&words("there are twenty-one dogs")), Some(21));
        assert_eq!(only_number(&words("two of three")), None);
        assert_eq!(only_number(&words("3 dogs")), None, "in words only");
    }
}
