//! Writes questions about a scene.

use std::collections::HashSet;

use super::TemplateQuestion;
use super::choices::{Draws, Mentioned};
use super::lexicon::{Adjective, Lexicon, Noun, Verb};
use super::phrases::{Article, Place, said};
use super::scene::{Activity, Relation, Scene, Thing};
use super::text::Token;
use super::words::{in_words, plural, with_article};
use crate::Question;

mod doing;
mod kinds;
mod properties;
mod whereabouts;

/// A question that may be asked; lower ranks are asked first.
struct Candidate {
    rank: usize,
    question: TemplateQuestion,
}

/// What all makers of questions share.
struct Asker<'a> {
    scene: &'a Scene,
    caption: &'a str,
    mentioned: Mentioned,
    words: Vec<&'a str>,
    candidates: Vec<Candidate>,
}

/// The questions about a scene, at most `most`.
pub(super) fn ask(scene: &Scene, tokens: &[Token], caption: &str, most: usize) -> Vec<TemplateQuestion> {
    let words: Vec<&str> = tokens.iter().map(Token::word).filter(|word| !word.is_empty()).collect();
    let mentioned = Mentioned::of(&words);
    let mut asker = Asker { scene, caption, mentioned, words, candidates: Vec::new() };
    asker.presence();
    asker.kinds();
    asker.counts();
    asker.properties();
    asker.activities();
    asker.whereabouts();
    asker.media();
    let mut candidates = asker.candidates;
    candidates.sort_by_key(|candidate| candidate.rank);
    let mut seen = HashSet::new();
    candidates.retain(|candidate| seen.insert(candidate.question.question.question.clone()));
    candidates.truncate(most);
    candidates.into_iter().map(|candidate| candidate.question).collect()
}

impl Asker<'_> {
    /// Adds a question whose right choice is `right`; the order of the choices follows from caption and question.
    fn choose(
        &mut self,
        rank: usize,
        kind: &'static str,
        element: &str,
        question: String,
        right: &str,
        wrong: Vec<String>,
    ) {
        let mut choices = vec![right.to_string()];
        let mut draws = Draws::of(self.caption, &question);
        for choice in draws.shuffled(wrong) {
            if choices.len() < 4 && !choices.contains(&choice) {
                choices.push(choice);
            }
        }
        if choices.len() < 2 {
            return;
        }
        let choices = draws.shuffled(choices);
        self.push(rank, kind, element, question, choices, right);
    }

    /// Adds a question whose answer is yes or no.
    fn yes_no(&mut self, rank: usize, kind: &'static str, element: &str, question: String, truth: bool) {
        let answer = if truth { "yes" } else { "no" };
        self.push(rank, kind, element, question, vec!["yes".into(), "no".into()], answer);
    }

    fn push(
        &mut self,
        rank: usize,
        kind: &'static str,
        element: &str,
        question: String,
        choices: Vec<String>,
        answer: &str,
    ) {
        let question = Question { element: element.to_string(), question, choices, answer: answer.to_string() };
        self.candidates.push(Candidate { rank, question: TemplateQuestion { kind, question } });
    }

    /// Wrong choices from a section of nouns, none of which the caption could mean.
    fn others(&self, section: &str, in_plural: bool) -> Vec<String> {
        let heads = Lexicon::get().heads.iter().filter(|noun| noun.section == section && !self.mentioned.noun(noun));
        heads
            .map(
                |noun| {
                    if in_plural && !noun.mass && !noun.plural { plural(noun.lemma) } else { noun.lemma.to_string() }
                },
            )
            .collect()
    }

    fn thing(&self, index: usize) -> &Thing {
        &self.scene.things[index]
    }

    /// A thing's name in the caption's number: "dogs".
    fn form(&self, index: usize) -> String {
        let phrase = &self.thing(index).phrase;
        let only_plural = phrase
            .noun
            .is_some_and(|noun| noun.plural && noun.lemma.split(' ').next_back() == phrase.name.split(' ').next_back())
            && phrase.noun.is_some_and(|noun| Lexicon::get().noun(noun.lemma).is_some_and(|own| own.plural));
        if phrase.plural && !only_plural { plural_form(&phrase.name) } else { phrase.name.clone() }
    }

    /// A thing as in "the dogs"; `None` if the phrase could mean several things.
    fn the(&self, index: usize) -> Option<String> {
        let thing = self.thing(index);
        let same = |other: &&Thing| other.phrase.name == thing.phrase.name;
        if self.scene.things.iter().filter(same).count() > 1 || thing.absent {
            return None;
        }
        if thing.phrase.proper {
            return Some(thing.phrase.name.clone());
        }
        let vast = thing.section() == "place"
            && thing.phrase.noun.is_some_and(|noun| noun.mass && noun.lemma.ends_with("space"));
        Some(if vast { self.form(index) } else { format!("the {}", self.form(index)) })
    }

    /// Several things as in "the cat and the dog", and whether the verb is in the plural.
    fn those(&self, indices: &[usize]) -> Option<(String, bool)> {
        let unseen = |index: &usize| ["abstract", "medium"].contains(&self.thing(*index).section());
        if indices.iter().any(unseen) {
            return None;
        }
        match indices {
            [one] => Some((self.the(*one)?, self.thing(*one).phrase.plural)),
            [one, other] => Some((format!("{} and {}", self.the(*one)?, self.the(*other)?), true)),
            _ => None,
        }
    }

    /// A thing as in "a dog", "dogs" or "snow"; `None` if it cannot be asked about.
    fn some(&self, index: usize) -> Option<String> {
        let thing = self.thing(index);
        let mass = thing.phrase.noun.is_some_and(|noun| noun.mass);
        if thing.phrase.plural || mass {
            return Some(self.form(index));
        }
        Some(with_article(&thing.phrase.name))
    }
}

fn plural_form(name: &str) -> String {
    match name.split_once(" of ") {
        Some((part, whole)) => format!("{} of {whole}", plural(part)),
        None => plural(name),
    }
}

fn is_are(plural: bool) -> &'static str {
    if plural { "are" } else { "is" }
}
