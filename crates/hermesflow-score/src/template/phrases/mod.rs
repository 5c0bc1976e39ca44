//! Finds noun phrases, verbs and prepositions in the words of a caption.

use super::lexicon::{Adjective, Lexicon, Noun, Verb};
use super::text::Token;

use closed::{CLOSED, PARTS, PREPOSITIONS};

mod closed;
mod nouns;

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
    /// No article.
    Bare,
}

/// A noun with the words before it that belong to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NounPhrase {
    /// The noun in the singular with the nouns before it: "flower pot".
    pub name: String,
    /// The head noun's entry in the lexicon, if it is known.
    pub noun: Option<Noun>,
    /// Whether it is a proper name.
    pub proper: bool,
    /// Whether it is in the plural.
    pub plural: bool,
    /// The number of things, if the caption states it.
    pub count: Option<u32>,
    /// The beginning of the phrase.
    pub article: Article,
    /// The adjectives before the noun.
    pub adjectives: Vec<String>,
    /// A participle before the noun, such as "flying" in "a flying car".
    pub doing: Option<&'static str>,
}

/// Where a preposition places things.
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

/// A phrase of a caption.
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

/// The phrases of a caption, in order.
pub(super) fn phrases(tokens: &[Token]) -> Vec<Phrase> {
    let reader = PhraseReader { tokens, lexicon: Lexicon::get() };
    let (mut phrases, mut at) = (Vec::new(), 0);
    while at < tokens.len() {
        let (phrase, next) = reader.phrase(at, &phrases);
        debug_assert!(next > at, "the reader goes on");
        phrases.push(phrase);
        at = next.max(at + 1);
    }
    phrases
}

struct PhraseReader<'a> {
    tokens: &'a [Token],
    lexicon: &'static Lexicon,
}

impl PhraseReader<'_> {
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

    /// The word at a position; beside a laptop, a mouse is no animal.
    fn unambiguous(&self, at: usize) -> &str {
        let computer =
            || self.tokens.iter().any(|token| ["laptop", "computer", "keyboard", "monitor"].contains(&token.word()));
        match self.word(at) {
            "mouse" if computer() => "computer mouse",
            word => word,
        }
    }

    /// The longest known noun at a position, and how many words it has.
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
}

/// What adjectives say, each with its word.
pub(super) fn said(adjectives: &[String]) -> impl Iterator<Item = (&str, Adjective)> {
    let lexicon = Lexicon::get();
    adjectives.iter().flat_map(move |word| lexicon.adjective(word).iter().map(move |says| (word.as_str(), *says)))
}
