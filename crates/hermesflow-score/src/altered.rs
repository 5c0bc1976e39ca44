//! Captions that say something else than the one they are made of: two words exchanged, one replaced by another of its kind, or
//! the last part left out. A picture of such a caption is a wrong picture of the first one, and a likely one.
//!
//! Words are exchanged and replaced within their kinds: colours, numbers, sizes, places, materials, and things in the singular
//! and in the plural, so that what comes out is a caption again.

/// Words of a kind, any of which may stand where another one stands.
const KINDS: [&[&str]; 7] = [
    &["red", "blue", "green", "yellow", "orange", "purple", "pink", "brown", "black", "white", "gray"],
    &["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"],
    &["wooden", "metal", "plastic", "glass", "stone", "leather"],
    &["circle", "square", "triangle", "cross", "cube", "sphere"],
    &["circles", "squares", "triangles", "crosses", "cubes", "spheres"],
    &[
        "dog", "cat", "bird", "horse", "cow", "sheep", "car", "bus", "bicycle", "boat", "chair", "table", "bottle",
        "cup",
    ],
    &[
        "dogs", "cats", "birds", "horses", "cows", "cars", "buses", "bicycles", "boats", "chairs", "tables", "bottles",
        "cups",
    ],
];

/// Sizes, which are exchanged with each other; several say the same, so that they are replaced by their opposites only.
const SIZES: &[&str] = &["small", "large", "big", "tiny", "huge", "little"];

/// Sizes and places, each with its opposite.
const OPPOSITES: [(&str, &str); 10] = [
    ("small", "large"),
    ("little", "big"),
    ("tiny", "huge"),
    ("left", "right"),
    ("above", "below"),
    ("over", "under"),
    ("inside", "outside"),
    ("top", "bottom"),
    ("before", "behind"),
    ("near", "far"),
];

/// Before these words the rest of a caption can be left out.
const JOINTS: [&str; 2] = [" and ", " with "];

/// A caption that says something else, chosen by a seed among all that can be made in these ways; none where no word of the
/// caption is of a known kind and nothing can be left out.
pub fn altered(caption: &str, seed: u64) -> Option<String> {
    // The ways are equally likely where there are any, however many words they find.
    let mut ways = vec![swapped(caption), replaced(caption), shortened(caption)];
    ways.iter_mut().for_each(|way| way.retain(|other| !other.eq_ignore_ascii_case(caption)));
    ways.retain(|way| !way.is_empty());
    let (first, second) = (mixed(seed), mixed(seed ^ 0x9e37_79b9_7f4a_7c15));
    let way = ways.get(first.checked_rem(ways.len() as u64)? as usize)?;
    way.get(second.checked_rem(way.len() as u64)? as usize).cloned()
}

/// A number that has little to do with its neighbours' (SplitMix64).
fn mixed(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The words of a text in small letters, with the bytes at which they stand.
fn words(text: &str) -> Vec<(std::ops::Range<usize>, String)> {
    let (mut found, mut begin) = (Vec::new(), None);
    for (at, letter) in text.char_indices().chain([(text.len(), ' ')]) {
        match (letter.is_alphanumeric(), begin) {
            (true, None) => begin = Some(at),
            (false, Some(first)) => {
                found.push((first..at, text[first..at].to_lowercase()));
                begin = None;
            }
            _ => {}
        }
    }
    found
}

/// The text with some of its words replaced, and with the articles that these ask for.
fn with(text: &str, words: &[(std::ops::Range<usize>, String)], changes: &[(usize, &str)]) -> String {
    let mut now: Vec<String> = words.iter().map(|(place, _)| text[place.clone()].to_owned()).collect();
    for (at, word) in changes {
        now[*at] = (*word).to_owned();
        if let Some(article) = at.checked_sub(1).map(|before| &mut now[before])
            && ["a", "an"].contains(&article.to_lowercase().as_str())
        {
            let capital = article.starts_with('A');
            let vowel = word.starts_with(['a', 'e', 'i', 'o', 'u']);
            *article = match (capital, vowel) {
                (true, true) => "An",
                (true, false) => "A",
                (false, true) => "an",
                (false, false) => "a",
            }
            .to_owned();
        }
    }
    let (mut out, mut behind) = (String::with_capacity(text.len()), 0);
    for ((place, _), word) in words.iter().zip(now) {
        out.push_str(&text[behind..place.start]);
        out.push_str(&word);
        behind = place.end;
    }
    out + &text[behind..]
}

/// All exchanges of two different words of one kind.
fn swapped(caption: &str) -> Vec<String> {
    let words = words(caption);
    let mut all = Vec::new();
    for kind in KINDS.into_iter().chain([SIZES]) {
        let of_kind: Vec<usize> = (0..words.len()).filter(|at| kind.contains(&words[*at].1.as_str())).collect();
        for (number, &first) in of_kind.iter().enumerate() {
            for &second in &of_kind[number + 1..] {
                if words[first].1 != words[second].1 {
                    all.push(with(caption, &words, &[(first, &words[second].1), (second, &words[first].1)]));
                }
            }
        }
    }
    all
}

/// All captions with one word replaced by another of its kind, or by its opposite.
fn replaced(caption: &str) -> Vec<String> {
    let words = words(caption);
    let mut all = Vec::new();
    for (at, (_, word)) in words.iter().enumerate() {
        let opposites = OPPOSITES.iter().filter_map(|(one, other)| match word.as_str() {
            word if word == *one => Some(*other),
            word if word == *other => Some(*one),
            _ => None,
        });
        let of_kind = KINDS.iter().filter(|kind| kind.contains(&word.as_str())).flat_map(|kind| kind.iter().copied());
        let others = opposites.chain(of_kind).filter(|other| other != word);
        all.extend(others.map(|other| with(caption, &words, &[(at, other)])));
    }
    all
}

/// The captions that end before a joint.
fn shortened(caption: &str) -> Vec<String> {
    let lower = caption.to_ascii_lowercase();
    let ends = JOINTS.iter().flat_map(|joint| lower.match_indices(joint).map(|(at, _)| at).collect::<Vec<_>>());
    ends.filter(|end| words(&caption[..*end]).len() > 1).map(|end| caption[..end].to_owned()).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::collections::BTreeSet;

    fn all(caption: &str) -> BTreeSet<String> {
        (0..400).filter_map(|seed| altered(caption, seed)).collect()
    }

    #[test]
    fn words_are_exchanged_replaced_and_left_out() {
        let found = all("a red circle and two orange squares");
        for expected in [
            "an orange circle and two red squares",
            "a blue circle and two orange squares",
            "a red circle and five orange squares",
            "a red triangle and two orange squares",
            "a red circle",
        ] {
            assert!(found.contains(expected), "{expected}: {found:?}");
        }
        assert!(!found.contains("a red circle and two orange squares"));
        assert_eq!(swapped("a red circle and two orange squares").len(), 1, "one circle, several squares");
        let found = all("A dog to the left of a large cat.");
        assert!(
            found.contains("A dog to the right of a large cat.") && found.contains("A cat to the left of a large dog.")
        );
        assert!(all("An orange cat").contains("A red cat"), "{:?}", all("An orange cat"));
    }

    #[test]
    fn a_seed_decides_and_each_way_is_met() {
        let caption = "two small dogs with a white cat";
        assert_eq!(altered(caption, 7), altered(caption, 7));
        let shortened = (0..600).filter(|seed| altered(caption, *seed).unwrap() == "two small dogs").count();
        assert!((200..400).contains(&shortened), "one of the two ways here: {shortened} of 600");
        assert_eq!(altered("Un chat noir dort sur une chaise.", 1), None);
        assert_eq!(altered("", 1), None);
    }

    /// Whatever the world says can be said wrongly, and the parser of its captions finds other facts then.
    #[test]
    fn captions_of_the_world_get_other_facts() {
        for index in 0..300 {
            let scene = hermesflow_scenes::scene(hermesflow_scenes::Split::Train, 1, index);
            let caption = scene.caption(index);
            let other = altered(&caption, index).unwrap();
            let facts = hermesflow_scenes::parse_caption;
            assert_ne!(facts(&caption), facts(&other), "{caption} {other}");
        }
    }
}
