//! Noun phrases: their beginnings, adjectives and nouns, and what follows and belongs to them.

use super::closed::{ABSTRACT, CLOSED, PARTITIVES, QUANTITIES};
use super::{Article, NounPhrase, PhraseReader};
use crate::template::lexicon::{Noun, Verb};
use crate::template::text::Token;
use crate::template::words::{number, plural, singular_of_unknown};

impl PhraseReader<'_> {
    /// Whether adjectives may be joined at a position.
    fn is_joint(&self, at: usize) -> bool {
        self.tokens.get(at) == Some(&Token::Comma) || ["and", "or"].contains(&self.word(at))
    }

    /// The noun phrase that begins at a position, and where it ends.
    pub(super) fn noun_phrase(&self, from: usize) -> Option<(NounPhrase, usize)> {
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

    /// Whether a noun phrase can continue at a position.
    pub(super) fn goes_on(&self, at: usize) -> bool {
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

    /// The nouns of a phrase, the last of which is its head.
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
                && (!word.ends_with("ed") || run.is_empty());
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

    /// The number of words of the proper name at a position.
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

    /// Whether a word that could be a noun is the verb of the noun before it: "a man drinks coffee".
    fn is_verb_here(&self, at: usize, head: Option<(Noun, bool)>) -> bool {
        let Some((_, verb, finite)) = self.lexicon.verb(self.word(at)) else { return false };
        let next = self.word(at + 1);
        let object = ["a", "an", "the", "his", "her", "their", "its"].contains(&next);
        let living = head.is_some_and(|(noun, _)| ["person", "animal"].contains(&noun.section));
        let goes_on = object || self.preposition_at(at + 1).is_some() || verb == Verb::Still;
        let moves = matches!(verb, Verb::Still | Verb::Move) && self.preposition_at(at + 1).is_some();
        if finite { self.word(at).ends_with('s') && (living || object || moves) } else { object || (living && goes_on) }
    }

    /// What follows a noun and belongs to it: a possessive, or "of" after a quantity or a part.
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
