//! The word lists of `words/`, parsed once.

use std::collections::HashMap;
use std::sync::OnceLock;

use super::words::plural;

/// A noun and what it names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Noun {
    /// The section of `nouns.txt`.
    pub section: &'static str,
    /// TIFA's type.
    pub kind: &'static str,
    /// The line of `nouns.txt`; nouns on one line may name the same thing.
    pub line: usize,
    /// Whether it is too general to be asked for.
    pub general: bool,
    /// Whether it has no plural.
    pub mass: bool,
    /// The form is a plural.
    pub plural: bool,
    /// The singular, or the only form.
    pub lemma: &'static str,
}

/// What an adjective says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Adjective {
    /// A colour, by its line.
    Color(&'static str),
    /// A material, by its line.
    Material(&'static str),
    /// A shape, by its line.
    Shape(&'static str),
    /// A property with an opposite: the line and the side.
    Opposite(usize, bool),
    /// A visible property without an opposite.
    Seen,
    /// Nothing that is asked about.
    Plain,
}

/// How a verb is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    /// A posture.
    Still,
    /// A way of moving.
    Move,
    /// Something that is done.
    Act,
    /// Says what a picture holds.
    Tell,
    /// What follows is an effect.
    Make,
}

/// All word lists.
pub(super) struct Lexicon {
    nouns: HashMap<String, Noun>,
    /// The first words of the lines that may be wrong choices, section by section.
    pub heads: Vec<Noun>,
    adjectives: HashMap<&'static str, Vec<Adjective>>,
    /// Two sides of words each.
    pub opposites: Vec<[Vec<&'static str>; 2]>,
    /// Verbs by any form: the -ing form, how it is used, whether the form is finite.
    verbs: HashMap<String, (&'static str, Verb, bool)>,
}

impl Lexicon {
    /// The word lists, which are compiled into the program.
    pub fn get() -> &'static Self {
        static LEXICON: OnceLock<Lexicon> = OnceLock::new();
        LEXICON.get_or_init(Self::read)
    }

    /// A noun by its singular or plural, which may be several words.
    pub fn noun(&self, form: &str) -> Option<Noun> {
        self.nouns.get(form).copied()
    }

    /// What an adjective says; "old" is the opposite of both "young" and "new".
    pub fn adjective(&self, word: &str) -> &[Adjective] {
        self.adjectives.get(word).map_or(&[], Vec::as_slice)
    }

    /// A verb by one of its forms: the -ing form, its use, and whether this form is finite.
    pub fn verb(&self, form: &str) -> Option<(&'static str, Verb, bool)> {
        self.verbs.get(form).copied()
    }

    fn read() -> Self {
        let mut lexicon = Self {
            nouns: HashMap::new(),
            heads: Vec::new(),
            adjectives: HashMap::new(),
            opposites: Vec::new(),
            verbs: HashMap::new(),
        };
        lexicon.read_nouns(include_str!("words/nouns.txt"));
        lexicon.read_adjectives(include_str!("words/adjectives.txt"));
        lexicon.read_verbs(include_str!("words/verbs.txt"));
        lexicon
    }

    fn read_nouns(&mut self, text: &'static str) {
        for (number, (section, line)) in sections(text).enumerate() {
            let (section, kind) = section.split_once(' ').unwrap_or((section, "object"));
            let (general, line) = line.strip_prefix('!').map_or((false, line), |line| (true, line));
            for (at, word) in line.split([':', ',']).map(str::trim).filter(|word| !word.is_empty()).enumerate() {
                let lemma = word.trim_end_matches(['~', '+']);
                let (mass, only_plural) = (word.ends_with('~'), word.ends_with('+'));
                let noun = Noun { section, kind, line: number, general, mass, plural: only_plural, lemma };
                if at == 0 && !general {
                    self.heads.push(noun);
                }
                if !mass && !only_plural {
                    self.nouns.entry(plural(lemma)).or_insert(Noun { plural: true, ..noun });
                }
                // A plural that another line derived gives way to a word of its own.
                self.nouns.insert(lemma.to_string(), noun);
            }
        }
    }

    fn read_adjectives(&mut self, text: &'static str) {
        for (section, line) in sections(text) {
            let (first, _) = line.split_once(':').unwrap_or((line, ""));
            let words = line.split([':', ',', '/']).map(str::trim).filter(|word| !word.is_empty());
            if section == "opposites" {
                let mut sides = line.split('/').map(|side| side.split(',').map(str::trim).collect::<Vec<_>>());
                let number = self.opposites.len();
                let pair = [sides.next().unwrap_or_default(), sides.next().unwrap_or_default()];
                for (side, words) in pair.iter().enumerate() {
                    for word in words {
                        self.adjectives.entry(word).or_default().push(Adjective::Opposite(number, side == 1));
                    }
                }
                self.opposites.push(pair);
                continue;
            }
            for word in words {
                let says = match section {
                    "color" => Adjective::Color(first),
                    "material" => Adjective::Material(first),
                    "shape" => Adjective::Shape(first),
                    "seen" => Adjective::Seen,
                    _ => Adjective::Plain,
                };
                self.adjectives.entry(word).or_default().push(says);
            }
        }
    }

    fn read_verbs(&mut self, text: &'static str) {
        for (section, line) in sections(text) {
            let verb = match section {
                "still" => Verb::Still,
                "move" => Verb::Move,
                "act" => Verb::Act,
                "tell" => Verb::Tell,
                _ => Verb::Make,
            };
            for (base, ing) in line.split(',').filter_map(|pair| pair.trim().split_once(' ')) {
                self.verbs.insert(ing.to_string(), (ing, verb, false));
                for finite in [base.to_string(), plural(base)] {
                    self.verbs.entry(finite).or_insert((ing, verb, true));
                }
            }
        }
        for (form, ing, verb) in [
            ("parked", "parked", Verb::Still),
            ("seated", "sitting", Verb::Still),
            ("perched", "perching", Verb::Still),
            ("has", "having", Verb::Tell),
            ("located", "located", Verb::Still),
            ("displayed", "displayed", Verb::Still),
            ("placed", "placed", Verb::Still),
            ("mounted", "mounted", Verb::Still),
            ("situated", "located", Verb::Still),
            ("tied", "tied", Verb::Still),
            ("dressed", "wearing", Verb::Act),
            ("clad", "wearing", Verb::Act),
        ] {
            self.verbs.insert(form.to_string(), (ing, verb, false));
        }
    }
}

/// The lines with words, each with its section.
fn sections(text: &'static str) -> impl Iterator<Item = (&'static str, &'static str)> {
    let mut section = "";
    text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).filter_map(move |line| {
        match line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            Some(name) => {
                section = name;
                None
            }
            None => Some((section, line)),
        }
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn words_are_found_in_every_form() {
        let lexicon = Lexicon::get();
        let noun = |form| lexicon.noun(form).unwrap();
        assert_eq!((noun("puppies").lemma, noun("puppies").plural, noun("puppies").section), ("puppy", true, "animal"));
        assert_eq!(noun("poodle").line, noun("dog").line);
        assert!(noun("snow").mass && noun("pants").plural && noun("animals").general);
        assert_eq!(noun("traffic lights").lemma, "traffic light");
        assert_eq!(lexicon.adjective("crimson"), [Adjective::Color("red")]);
        assert_eq!(lexicon.adjective("old").len(), 2);
        assert_eq!(lexicon.verb("rides"), Some(("riding", Verb::Act, true)));
        assert_eq!(lexicon.verb("sitting"), Some(("sitting", Verb::Still, false)));
    }
}
