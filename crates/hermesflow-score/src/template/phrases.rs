//! Noun phrases, verbs and prepositions in the words of a caption.

use super::lexicon::{Adjective, Lexicon, Noun, Verb};
use super::text::Token;
use super::words::{number, plural, singular_of_unknown};

/// How a noun phrase begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Article {
    /// "a", "an", a number.
    Indefinite,
    /// "the", "this".
    Definite,
    /// "his", "the man's".
    Possessive,
    /// "some", "a group of".
    Some,
    /// "another", "other".
    Another,
    /// "no", "without".
    No,
    /// Nothing.
    Bare,
}

/// A noun with what stands before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NounPhrase {
    /// The noun in the singular with the nouns before it: "flower pot".
    pub name: String,
    /// What the head noun names, if it is known.
    pub noun: Option<Noun>,
    /// It is a proper name.
    pub proper: bool,
    /// More than one.
    pub plural: bool,
    /// How many, where the caption says so.
    pub count: Option<u32>,
    /// How it begins.
    pub article: Article,
    /// The adjectives.
    pub adjectives: Vec<String>,
    /// "flying" in "a flying car".
    pub doing: Option<&'static str>,
}

/// Where a preposition puts things.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    On,
    In,
    At,
    Under,
    Above,
    Near,
    Front,
    Behind,
    Left,
    Right,
    /// "on the side of": a part of a place.
    Part,
    With,
    Of,
    Made,
    /// "covered in", "surrounded by".
    State,
    /// What follows is not there: "like", "as", "inspired by".
    Absent,
    Other,
}

/// A phrase.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Phrase {
    Noun(NounPhrase),
    Verb(&'static str, Verb),
    /// A verb that is not in the list.
    Unknown(String),
    Preposition(String, Place),
    /// "he", "she", "it", "they".
    Pronoun(String),
    /// Adjectives without a noun: "is small and white".
    Properties(Vec<String>),
    /// "in the background".
    Depth(&'static str),
    And,
    Comma,
    Stop,
    Be,
    Says,
    /// "that", "which", "who".
    Relative,
    Quote(String),
    Other,
}

/// Prepositions of several words, the longer ones first.
const PREPOSITIONS: [(&str, Place); 99] = [
    ("on the left hand side of", Place::Left),
    ("on the right hand side of", Place::Right),
    ("on the left side of", Place::Left),
    ("on the right side of", Place::Right),
    ("to the left of", Place::Left),
    ("to the right of", Place::Right),
    ("on the left of", Place::Left),
    ("on the right of", Place::Right),
    ("in the style of", Place::Absent),
    ("in the shape of", Place::Absent),
    ("in the form of", Place::Absent),
    ("as well as", Place::With),
    ("as part of", Place::Absent),
    ("made up of", Place::Of),
    ("made out of", Place::Made),
    ("made of", Place::Made),
    ("made from", Place::Made),
    ("carved from", Place::Made),
    ("left of", Place::Left),
    ("right of", Place::Right),
    ("in front of", Place::Front),
    ("on top of", Place::On),
    ("in between", Place::Other),
    ("next to", Place::Near),
    ("close to", Place::Near),
    ("adjacent to", Place::Near),
    ("inside of", Place::In),
    ("instead of", Place::Absent),
    ("out of", Place::Other),
    ("along with", Place::With),
    ("together with", Place::With),
    ("accompanied by", Place::With),
    ("covered in", Place::State),
    ("covered with", Place::State),
    ("covered by", Place::State),
    ("filled with", Place::State),
    ("full of", Place::State),
    ("surrounded by", Place::State),
    ("topped with", Place::State),
    ("decorated with", Place::State),
    ("adorned with", Place::State),
    ("lined with", Place::State),
    ("inspired by", Place::Absent),
    ("reminiscent of", Place::Absent),
    ("style of", Place::Absent),
    ("shaped like", Place::Absent),
    ("such as", Place::Other),
    ("because of", Place::Absent),
    ("about to", Place::Absent),
    ("as if", Place::Absent),
    ("on", Place::On),
    ("atop", Place::On),
    ("upon", Place::On),
    ("onto", Place::On),
    ("in", Place::In),
    ("inside", Place::In),
    ("within", Place::In),
    ("into", Place::Other),
    ("at", Place::At),
    ("under", Place::Under),
    ("underneath", Place::Under),
    ("beneath", Place::Under),
    ("below", Place::Under),
    ("above", Place::Above),
    ("over", Place::Other),
    ("near", Place::Near),
    ("beside", Place::Near),
    ("alongside", Place::Near),
    ("by", Place::Near),
    ("behind", Place::Behind),
    ("with", Place::With),
    ("without", Place::Absent),
    ("of", Place::Of),
    ("like", Place::Absent),
    ("as", Place::Absent),
    ("for", Place::Absent),
    ("about", Place::Absent),
    ("resembling", Place::Absent),
    ("during", Place::Absent),
    ("from", Place::Other),
    ("to", Place::Other),
    ("toward", Place::Other),
    ("towards", Place::Other),
    ("through", Place::Other),
    ("across", Place::Other),
    ("along", Place::Other),
    ("around", Place::Other),
    ("between", Place::Other),
    ("among", Place::Other),
    ("amongst", Place::Other),
    ("against", Place::Other),
    ("down", Place::Other),
    ("up", Place::Other),
    ("off", Place::Other),
    ("past", Place::Other),
    ("after", Place::Absent),
    ("before", Place::Absent),
    ("via", Place::Absent),
    ("versus", Place::Other),
];

/// Parts that a thing is on, at or in.
const PARTS: [&str; 15] = [
    "top", "back", "side", "middle", "edge", "front", "end", "center", "centre", "corner", "bottom", "base", "foot",
    "inside", "rest",
];

/// Heads before "of" that only say how many.
const QUANTITIES: [&str; 38] = [
    "group",
    "herd",
    "flock",
    "bunch",
    "crowd",
    "pair",
    "couple",
    "lot",
    "lots",
    "row",
    "rows",
    "pile",
    "piles",
    "stack",
    "set",
    "collection",
    "number",
    "variety",
    "series",
    "array",
    "line",
    "team",
    "pack",
    "swarm",
    "school",
    "dozens",
    "hundreds",
    "thousands",
    "plenty",
    "trio",
    "assortment",
    "cluster",
    "heap",
    "duo",
    "family",
    "fleet",
    "couples",
    "groups",
];

/// Heads before "of" that name a part of what follows.
const PARTITIVES: [&str; 6] = ["slice", "piece", "scoop", "loaf", "slices", "pieces"];

/// Words that end a noun phrase.
const CLOSED: [&str; 92] = [
    "a",
    "an",
    "the",
    "and",
    "or",
    "but",
    "is",
    "are",
    "was",
    "were",
    "be",
    "been",
    "being",
    "that",
    "which",
    "who",
    "whose",
    "where",
    "when",
    "while",
    "it",
    "its",
    "he",
    "she",
    "they",
    "them",
    "him",
    "his",
    "her",
    "their",
    "this",
    "these",
    "those",
    "there",
    "here",
    "then",
    "than",
    "not",
    "no",
    "nor",
    "so",
    "very",
    "too",
    "also",
    "just",
    "only",
    "almost",
    "can",
    "could",
    "will",
    "would",
    "may",
    "might",
    "must",
    "should",
    "do",
    "does",
    "did",
    "has",
    "have",
    "had",
    "i",
    "you",
    "we",
    "us",
    "me",
    "my",
    "your",
    "our",
    "each",
    "every",
    "all",
    "both",
    "some",
    "any",
    "several",
    "multiple",
    "numerous",
    "another",
    "together",
    "away",
    "out",
    "back",
    "'s",
    "if",
    "what",
    "how",
    "why",
    "himself",
    "herself",
    "itself",
    "themselves",
];

/// Endings of nouns that name nothing to be seen.
const ABSTRACT: [&str; 15] = [
    "ness", "ity", "tion", "sion", "ism", "ment", "ance", "ence", "ship", "hood", "acy", "logy", "graphy", "ility",
    "esque",
];

/// The phrases of a caption, in order.
pub(super) fn phrases(tokens: &[Token]) -> Vec<Phrase> {
    let reader = Reader { tokens, lexicon: Lexicon::get() };
    let (mut phrases, mut at) = (Vec::new(), 0);
    while at < tokens.len() {
        let (phrase, next) = reader.phrase(at, &phrases);
        debug_assert!(next > at, "the reader goes on");
        phrases.push(phrase);
        at = next.max(at + 1);
    }
    phrases
}

struct Reader<'a> {
    tokens: &'a [Token],
    lexicon: &'static Lexicon,
}

impl Reader<'_> {
    fn word(&self, at: usize) -> &str {
        self.tokens.get(at).map_or("", Token::word)
    }

    fn is_capital(&self, at: usize) -> bool {
        matches!(self.tokens.get(at), Some(Token::Word(_, true)))
    }

    fn is_adjective(&self, at: usize) -> bool {
        let word = self.word(at);
        let colored =
            ["colored", "coloured"].contains(&self.word(at + 1)) && !CLOSED.contains(&word) && !word.is_empty();
        colored || !self.lexicon.adjective(word).is_empty() || (word.contains('-') && self.noun_at(at).is_none())
    }

    /// A mouse beside a laptop is no animal.
    fn unambiguous(&self, at: usize) -> &str {
        let computer =
            || self.tokens.iter().any(|token| ["laptop", "computer", "keyboard", "monitor"].contains(&token.word()));
        match self.word(at) {
            "mouse" if computer() => "computer mouse",
            word => word,
        }
    }

    /// The longest known noun at a place, and how many words it has.
    fn noun_at(&self, at: usize) -> Option<(Noun, usize)> {
        (1..=3).rev().find_map(|length| {
            let words: Vec<&str> = (at..at + length).map(|at| self.unambiguous(at)).collect();
            let whole = words.iter().all(|word| !word.is_empty());
            whole.then(|| self.lexicon.noun(&words.join(" "))).flatten().map(|noun| (noun, length))
        })
    }

    fn preposition_at(&self, at: usize) -> Option<(String, Place, usize)> {
        for start in ["on", "in", "at", "from", "by", "near", "along", "to", "around"] {
            let article = usize::from(["the", "a"].contains(&self.word(at + 1)));
            let part = self.word(at + 1 + article);
            if self.word(at) == start && PARTS.contains(&part) && self.word(at + 2 + article) == "of" && part != "top" {
                let article = if article == 1 { format!("{} ", self.word(at + 1)) } else { String::new() };
                let place = if part == "front" { Place::Front } else { Place::Part };
                let length = 3 + usize::from(!article.is_empty());
                return Some((format!("{start} {article}{part} of"), place, length));
            }
        }
        let matches = |text: &str| text.split(' ').enumerate().all(|(number, word)| self.word(at + number) == word);
        let found = PREPOSITIONS.iter().find(|(text, _)| matches(text));
        found.map(|(text, place)| ((*text).to_string(), *place, text.split(' ').count()))
    }

    fn phrase(&self, at: usize, before: &[Phrase]) -> (Phrase, usize) {
        let word = match &self.tokens[at] {
            Token::Comma => return (Phrase::Comma, at + 1),
            Token::Stop => return (Phrase::Stop, at + 1),
            Token::Quote(words) => return (Phrase::Quote(words.clone()), at + 1),
            Token::Word(word, _) => word.as_str(),
        };
        let after_noun = matches!(
            before.last(),
            Some(Phrase::Noun(_) | Phrase::Be | Phrase::Pronoun(_) | Phrase::Properties(_) | Phrase::Depth(_))
        ) || (matches!(before.last(), Some(Phrase::Other | Phrase::And | Phrase::Comma))
            && before.len() > 1);
        match word {
            "and" | "or" | "plus" => return (Phrase::And, at + 1),
            "but" | "while" | "where" | "when" => return (Phrase::Comma, at + 1),
            "is" | "are" | "was" | "were" => return (Phrase::Be, at + 1),
            "that" | "which" | "who" => return (Phrase::Relative, at + 1),
            "he" | "she" | "it" | "they" | "him" | "them" => return (Phrase::Pronoun(word.into()), at + 1),
            "her" if self.noun_phrase(at).is_none() => return (Phrase::Pronoun(word.into()), at + 1),
            "says" | "saying" | "reads" | "read" | "reading" | "spelling" | "spells" | "written" | "words" | "word"
                if (1..=3).any(|ahead| matches!(self.tokens.get(at + ahead), Some(Token::Quote(_)))) =>
            {
                return (Phrase::Says, at + 1);
            }
            "to" if self.lexicon.verb(self.word(at + 1)).is_some_and(|(_, _, finite)| finite)
                && self.lexicon.noun(self.word(at + 1)).is_none() =>
            {
                return (Phrase::Other, at + 2); // "trying to catch": what is tried is not done
            }
            _ => {}
        }
        for depth in ["in the background", "in the foreground", "in the distance"] {
            if depth.split(' ').enumerate().all(|(number, word)| self.word(at + number) == word)
                && self.word(at + 3) != "of"
            {
                return (Phrase::Depth(depth), at + 3);
            }
        }
        if let Some((text, place, length)) = self.preposition_at(at) {
            let artist = word == "by" && self.is_capital(at + 1);
            return (Phrase::Preposition(text, if artist { Place::Absent } else { place }), at + length);
        }
        let participle = self.lexicon.verb(word).is_some_and(|(_, _, finite)| !finite);
        let begins = matches!(before.last(), None | Some(Phrase::Comma | Phrase::Stop | Phrase::And));
        let object = ["a", "an", "the", "his", "her", "their"].contains(&self.word(at + 1));
        if participle
            && begins
            && object
            && let Some((ing, verb, _)) = self.lexicon.verb(word)
        {
            return (Phrase::Verb(ing, verb), at + 1); // "painting a wall"
        }
        let led = matches!(before.last(), Some(Phrase::Preposition(..)));
        if participle
            && led
            && self.noun_at(at).is_none()
            && self.noun_at(at + 1).is_some()
            && let Some((phrase, next)) = self.noun_phrase(at + 1)
        {
            return (Phrase::Noun(phrase), next); // "in shining armor"
        }
        if after_noun && let Some(found) = self.verb(at, before) {
            return (found, at + 1);
        }
        if let Some((phrase, next)) = self.noun_phrase(at) {
            return (Phrase::Noun(phrase), next);
        }
        if let Some(found) = self.verb(at, before) {
            return (found, at + 1);
        }
        let adjectives: Vec<String> = (at..)
            .take_while(|at| self.is_adjective(*at) || (self.word(*at) == "and" && self.is_adjective(at + 1)))
            .map(|at| self.word(at).to_string())
            .collect();
        if adjectives.is_empty() {
            (Phrase::Other, at + 1)
        } else {
            (Phrase::Properties(adjectives.clone()), at + adjectives.len())
        }
    }

    fn verb(&self, at: usize, before: &[Phrase]) -> Option<Phrase> {
        let word = self.word(at);
        let next = self.word(at + 1);
        let object_follows = ["a", "an", "the", "his", "her", "their", "its", "some", "two"].contains(&next);
        if let Some((ing, verb, finite)) = self.lexicon.verb(word) {
            let noun = self.noun_at(at);
            // "a painting", "a light", "watches": nouns unless the place of a verb is sure.
            let sure = matches!(before.last(), Some(Phrase::Noun(_) | Phrase::Be | Phrase::Pronoun(_)))
                && (object_follows
                    || noun.is_none()
                    || (finite
                        && next.is_empty()
                        && matches!(before.last(), Some(Phrase::Noun(phrase)) if phrase.plural))
                    || (finite && self.preposition_at(at + 1).is_some()));
            let adjective = !self.lexicon.adjective(word).is_empty() && self.noun_at(at + 1).is_some();
            let subject = !finite
                || matches!(before.last(), Some(Phrase::Noun(_) | Phrase::Pronoun(_) | Phrase::Other | Phrase::And));
            return ((noun.is_none() || sure) && subject && !adjective).then_some(Phrase::Verb(ing, verb));
        }
        let ing = word.len() > 5 && word.ends_with("ing") && self.noun_at(at).is_none() && !self.is_adjective(at);
        ing.then(|| Phrase::Unknown(word.to_string()))
    }

    /// Whether adjectives may be joined there.
    fn is_joint(&self, at: usize) -> bool {
        self.tokens.get(at) == Some(&Token::Comma) || ["and", "or"].contains(&self.word(at))
    }

    /// The noun phrase that begins at a place, and where it ends.
    fn noun_phrase(&self, from: usize) -> Option<(NounPhrase, usize)> {
        let (article, mut count, mut at) = self.determiner(from);
        let determined = at > from;
        let (mut adjectives, mut doing) = (Vec::new(), None);
        loop {
            let word = self.word(at);
            if word.is_empty() {
                return None;
            }
            if count.is_none()
                && at > from
                && let Some(number) = number(word).filter(|_| self.word(at + 1) != "of")
            {
                (count, at) = (Some(number), at + 1); // "the two dogs"
                continue;
            }
            let several = self.noun_at(at).is_some_and(|(_, length)| length > 1);
            let capitals = self.is_capital(at) && self.is_capital(at + 1);
            let joined_ahead = self.is_joint(at + 1) && self.is_adjective(at + 2) && self.goes_on(at + 3);
            if self.is_adjective(at) && !several && !capitals && (self.goes_on(at + 1) || joined_ahead) {
                adjectives.push(word.to_string());
                at += 1;
                let joined = self.tokens.get(at) == Some(&Token::Comma) || ["and", "or"].contains(&self.word(at));
                if joined
                    && self.is_adjective(at + 1)
                    && self.goes_on(at + 2)
                    && self.noun_at(at + 1).is_none_or(|(_, n)| n == 1)
                {
                    if self.word(at) == "and" {
                        adjectives.push("and".into());
                    }
                    at += 1;
                }
                continue;
            }
            let adverb = word.ends_with("ly") || ["very", "extremely", "so", "too", "super"].contains(&word);
            if adverb && self.noun_at(at).is_none() && self.goes_on(at + 1) {
                at += 1;
                continue;
            }
            let verb = self.lexicon.verb(word).filter(|(_, _, finite)| !finite);
            let in_phrase = determined || !adjectives.is_empty();
            let participle = verb.is_some() || word.ends_with("ed") || word.ends_with("ing");
            if in_phrase && participle && self.noun_at(at).is_none() && self.goes_on(at + 1) {
                doing = verb.filter(|(_, verb, _)| matches!(verb, Verb::Still | Verb::Move)).map(|(ing, _, _)| ing);
                at += 1;
                continue;
            }
            break;
        }
        let mut phrase = self.nouns(at, determined, &adjectives)?;
        let next = std::mem::take(&mut phrase.1);
        let mut phrase = phrase.0;
        (phrase.article, phrase.count, phrase.doing) = (article, count.filter(|count| *count > 0), doing);
        phrase.adjectives = adjectives;
        let unchanged = phrase.noun.is_some_and(|noun| !noun.mass) && plural(&phrase.name) == phrase.name; // sheep
        phrase.plural |=
            unchanged && (matches!(article, Article::Bare | Article::Some) || count.is_some_and(|count| count > 1));
        if phrase.count == Some(1) && phrase.plural || phrase.count.is_some_and(|count| count > 1) && !phrase.plural {
            phrase.count = None; // "two red" and a noun that is none
        }
        self.behind(phrase, next)
    }

    /// Whether a noun phrase can go on at a place.
    fn goes_on(&self, at: usize) -> bool {
        let word = self.word(at);
        if word.is_empty() || CLOSED.contains(&word) {
            return false;
        }
        if self.noun_at(at).is_some() || self.is_adjective(at) {
            return true;
        }
        self.preposition_at(at).is_none()
            && self.lexicon.verb(word).is_none_or(|(_, _, finite)| !finite && self.noun_at(at + 1).is_some())
    }

    fn determiner(&self, from: usize) -> (Article, Option<u32>, usize) {
        let mut at = from;
        if ["all", "both", "only", "just", "about", "exactly"].contains(&self.word(at)) && !self.word(at + 1).is_empty()
        {
            at += 1;
        }
        let (article, length) = match (self.word(at), self.word(at + 1), self.word(at + 2)) {
            ("a", "few", _) | ("a", "couple", "more") => (Article::Some, 2),
            ("a", "single", _) => (Article::Indefinite, 2),
            ("a" | "an", _, _) => (Article::Indefinite, 1),
            ("neither" | "nor", "a" | "an", _) => (Article::No, 2),
            ("the" | "this" | "these" | "those", _, _) => (Article::Definite, 1),
            ("his" | "her" | "its" | "their" | "my" | "your" | "our", _, _) => (Article::Possessive, 1),
            ("some" | "several" | "many" | "multiple" | "numerous" | "various" | "few" | "any", _, _) => {
                (Article::Some, 1)
            }
            ("another" | "other", _, _) => (Article::Another, 1),
            ("no", _, _) => (Article::No, 1),
            ("each" | "every", _, _) => (Article::Some, 1),
            (word, next, _) if number(word).is_some() && next != "of" => {
                return (Article::Indefinite, number(word), at + 1);
            }
            _ => (Article::Bare, 0),
        };
        if length == 0 { (article, None, from) } else { (article, None, at + length) }
    }

    /// The nouns of a phrase: the last one is its head.
    fn nouns(&self, from: usize, determined: bool, adjectives: &[String]) -> Option<(NounPhrase, usize)> {
        let (mut at, mut run, mut head): (usize, Vec<String>, Option<(Noun, bool)>) = (from, Vec::new(), None);
        let mut proper = false;
        if let Some(length) = self.name_at(at) {
            let capital = |word: &str| {
                let mut letters = word.chars();
                let first: String = letters.next().into_iter().flat_map(char::to_uppercase).collect();
                first + letters.as_str()
            };
            run = vec![(at..at + length).map(|at| capital(self.word(at))).collect::<Vec<_>>().join(" ")];
            (at, proper) = (at + length, true);
        }
        loop {
            let word = self.word(at);
            if word.is_empty() || CLOSED.contains(&word) {
                break;
            }
            if let Some((noun, length)) = self.noun_at(at) {
                if self.preposition_at(at).is_some() && head.is_some() || !run.is_empty() && self.is_verb_here(at, head)
                {
                    break;
                }
                if proper {
                    (run, proper) = (Vec::new(), false); // "Toyota car"
                }
                if head.is_none() {
                    run.clear(); // unknown words before a known one: "carousel horse"
                }
                run.push(noun.lemma.to_string());
                (head, at) = (Some((noun, noun.plural)), at + length);
                if noun.plural {
                    break;
                }
                continue;
            }
            let open = head.is_none() && !proper && (determined || run.len() == 1);
            let unknown = self.preposition_at(at).is_none()
                && self.lexicon.verb(word).is_none_or(|(_, _, finite)| finite && run.is_empty() && determined)
                && word.is_ascii()
                && self.lexicon.adjective(word).is_empty()
                && word.len() > 2
                && word.bytes().all(|byte| byte.is_ascii_alphabetic() || byte == b'-')
                && (!word.ends_with("ing") || run.is_empty())
                && !(word.ends_with("ed") && !run.is_empty());
            if !(open && unknown) || run.len() >= 2 && head.is_none() && !determined {
                break;
            }
            run = vec![word.to_string()];
            at += 1;
        }
        let name = run.join(" ");
        if name.is_empty() || adjectives.last().is_some_and(|last| *last == name) {
            return None;
        }
        let blank = |name: String, noun, plural| NounPhrase {
            name,
            noun,
            proper,
            plural,
            count: None,
            article: Article::Bare,
            adjectives: Vec::new(),
            doing: None,
        };
        if let Some((noun, plural)) = head {
            return Some((blank(name, Some(noun), plural), at));
        }
        if proper {
            return Some((blank(name, None, false), at));
        }
        if !determined
            || ABSTRACT.iter().any(|end| name.ends_with(end))
            || name.ends_with("ly")
            || name.ends_with("ing")
        {
            return None;
        }
        let single = singular_of_unknown(&name);
        Some((blank(single.clone().unwrap_or(name), None, single.is_some()), at))
    }

    /// How many words of a proper name stand at a place.
    fn name_at(&self, at: usize) -> Option<usize> {
        let length = (at..)
            .take_while(|at| {
                self.is_capital(*at)
                    || (["van", "von", "de", "del"].contains(&self.word(*at)) && self.is_capital(at + 1))
            })
            .count();
        let unknown =
            self.noun_at(at).is_none() && !self.is_adjective(at) && self.lexicon.verb(self.word(at)).is_none();
        if length >= 2 || (length == 1 && unknown) {
            return Some(length);
        }
        // At the beginning every word has a capital: "Superman flying".
        let begins = at == 0 && unknown && self.preposition_at(0).is_none() && !CLOSED.contains(&self.word(0));
        let ahead = (1..).take_while(|at| self.is_capital(*at)).count();
        let verb = self.lexicon.verb(self.word(1 + ahead)).is_some_and(|(_, _, finite)| !finite)
            || self.word(1 + ahead) == "is";
        let word = self.word(0);
        (begins
            && (ahead > 0 || verb)
            && !word.ends_with('s')
            && number(word).is_none()
            && !word.ends_with("ly")
            && word.is_ascii())
        .then_some(1 + ahead)
    }

    /// Whether a word that could be a noun is the verb of the noun before: "a man drinks coffee".
    fn is_verb_here(&self, at: usize, head: Option<(Noun, bool)>) -> bool {
        let Some((_, verb, finite)) = self.lexicon.verb(self.word(at)) else { return false };
        let next = self.word(at + 1);
        let object = ["a", "an", "the", "his", "her", "their", "its"].contains(&next);
        let living = head.is_some_and(|(noun, _)| ["person", "animal"].contains(&noun.section));
        let goes_on = object || self.preposition_at(at + 1).is_some() || verb == Verb::Still;
        let moves = matches!(verb, Verb::Still | Verb::Move) && self.preposition_at(at + 1).is_some();
        if finite { self.word(at).ends_with('s') && (living || object || moves) } else { object || (living && goes_on) }
    }

    /// What follows a noun and belongs to it: a possessive, "of" behind a quantity or a part.
    fn behind(&self, phrase: NounPhrase, at: usize) -> Option<(NounPhrase, usize)> {
        if self.word(at) == "'s" {
            let (mut owned, next) = self.noun_phrase_with(at + 1, true)?;
            owned.article = Article::Possessive;
            return Some((owned, next));
        }
        let word = self.word(at.saturating_sub(1));
        if self.word(at) != "of" {
            return Some((phrase, at));
        }
        if QUANTITIES.contains(&word)
            && let Some((mut content, next)) = self.noun_phrase(at + 1)
        {
            let two = ["pair", "couple", "duo"].contains(&word);
            let three = word == "trio";
            let living = content.noun.is_some_and(|noun| ["person", "animal"].contains(&noun.section));
            content.article = if phrase.article == Article::No { Article::No } else { Article::Some };
            content.plural |= content.noun.is_some_and(|noun| !noun.mass);
            if content.count.is_none() && living && phrase.article == Article::Indefinite && (two || three) {
                content.count = Some(if two { 2 } else { 3 });
            }
            return Some((content, next));
        }
        if PARTITIVES.contains(&word)
            && let Some((content, next)) = self.noun_phrase(at + 1)
        {
            let many = phrase.plural || ["slices", "pieces"].contains(&word);
            let inner = if content.plural { plural(&content.name) } else { content.name.clone() };
            let part = word.trim_end_matches('s');
            let noun = content.noun.map(|noun| Noun { mass: false, plural: false, ..noun });
            let name = format!("{part} of {inner}");
            return Some((NounPhrase { name, noun, plural: many, proper: false, ..phrase }, next));
        }
        Some((phrase, at))
    }

    /// A noun phrase whose determiner has been read.
    fn noun_phrase_with(&self, at: usize, determined: bool) -> Option<(NounPhrase, usize)> {
        let mut from = at;
        let mut adjectives = Vec::new();
        while self.is_adjective(from)
            && self.goes_on(from + 1)
            && self.noun_at(from).is_none_or(|(_, length)| length == 1)
        {
            adjectives.push(self.word(from).to_string());
            from += 1;
        }
        let (mut phrase, next) = self.nouns(from, determined, &adjectives)?;
        phrase.adjectives = adjectives;
        Some((phrase, next))
    }
}

/// What adjectives say of a kind, with the word that says it.
pub(super) fn said<'a>(adjectives: &'a [String]) -> impl Iterator<Item = (&'a str, Adjective)> {
    let lexicon = Lexicon::get();
    adjectives.iter().flat_map(move |word| lexicon.adjective(word).iter().map(move |says| (word.as_str(), *says)))
}
