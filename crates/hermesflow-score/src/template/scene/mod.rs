//! What a caption says: which things there are, what they do, where they are, what they wear and have.

use super::lexicon::Verb;
use super::phrases::{Article, NounPhrase, Phrase, Place};

mod places;

/// A thing that a caption names.
#[derive(Debug, Clone)]
pub(super) struct Thing {
    /// The phrase that names the thing.
    pub phrase: NounPhrase,
    /// Whether the caption says that the thing is not there.
    pub absent: bool,
    /// Whether the thing's presence must not be asked about.
    pub vague: bool,
    /// The index of the owner, for parts of bodies.
    pub owner: Option<usize>,
    /// The index of a vessel's content: the wine of a glass of wine.
    pub content: Option<usize>,
}

/// Something that somebody does.
#[derive(Debug, Clone)]
pub(super) struct Activity {
    /// The indices of those who do it.
    pub subjects: Vec<usize>,
    /// The verb's -ing form.
    pub ing: String,
    /// How the verb is used, if it is known.
    pub verb: Option<Verb>,
    /// The index of the verb's object.
    pub object: Option<usize>,
    /// Whether there are further objects.
    pub more: bool,
    /// A preposition right after the verb, and the index of what it leads to: "looking at a phone".
    pub tail: Option<(String, usize)>,
}

/// Something that is somewhere.
#[derive(Debug, Clone)]
pub(super) struct Relation {
    /// The indices of what is somewhere.
    pub subjects: Vec<usize>,
    /// The -ing form of what they do there.
    pub ing: Option<String>,
    /// The words of the preposition.
    pub text: String,
    /// The meaning of the preposition.
    pub place: Place,
    /// The index of where they are.
    pub object: usize,
}

/// Everything that a caption says.
#[derive(Debug, Clone, Default)]
pub(super) struct Scene {
    pub things: Vec<Thing>,
    pub activities: Vec<Activity>,
    pub relations: Vec<Relation>,
    /// Pairs of a wearer and a piece of clothing.
    pub worn: Vec<(usize, usize)>,
    /// Pairs of an owner and a part of the body.
    pub parts: Vec<(usize, usize)>,
    /// Things with writing on them, and the writing.
    pub texts: Vec<(usize, String)>,
    /// Pairs of a thing and its material.
    pub made: Vec<(usize, usize)>,
    /// Things with their distance: in the foreground or background.
    pub depths: Vec<(usize, &'static str)>,
}

impl Thing {
    /// The section of its noun, or "" for an unknown noun.
    pub fn section(&self) -> &'static str {
        self.phrase.noun.map_or("", |noun| noun.section)
    }

    /// Whether it is alive, or looks as if it were.
    pub fn lives(&self) -> bool {
        self.phrase.proper || ["person", "animal"].contains(&self.section())
    }
}

/// The scene that phrases describe.
pub(super) fn scene(phrases: &[Phrase]) -> Scene {
    let mut builder = Builder::default();
    for phrase in phrases {
        builder.take(phrase);
    }
    builder.scene
}

/// The role of the next noun phrase.
#[derive(Debug, Clone, PartialEq)]
enum Expected {
    Subject,
    Object,
    Place(String, Place),
    Nothing,
    /// A statement: "the image features".
    Told,
}

#[derive(Debug)]
struct Builder {
    scene: Scene,
    expected: Expected,
    /// What sentences are about.
    subjects: Vec<usize>,
    /// The last thing, and whether "with" or a verb led to it.
    last: Option<usize>,
    activity: Option<usize>,
    /// "and" or a comma came before.
    joined: bool,
    comma: bool,
    /// How the last thing came in, for "a suit and tie".
    role: Expected,
    says: bool,
    be: bool,
    /// Inside of what is not there.
    unreal: bool,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            scene: Scene::default(),
            expected: Expected::Subject,
            subjects: Vec::new(),
            last: None,
            activity: None,
            joined: false,
            comma: false,
            role: Expected::Subject,
            says: false,
            be: false,
            unreal: false,
        }
    }
}

impl Builder {
    fn take(&mut self, phrase: &Phrase) {
        match phrase {
            Phrase::Noun(noun) => self.noun(noun),
            Phrase::Verb(ing, verb) => self.verb(ing, Some(*verb)),
            Phrase::Unknown(ing) => self.verb(ing, None),
            Phrase::Preposition(text, place) => self.preposition(text, *place),
            Phrase::Pronoun(word) => self.pronoun(word),
            Phrase::Properties(words) => self.properties(words),
            Phrase::Depth(depth) => {
                let things = if self.role == Expected::Subject {
                    self.subjects.clone()
                } else {
                    self.last.into_iter().collect()
                };
                self.scene.depths.extend(things.into_iter().map(|thing| (thing, *depth)));
            }
            Phrase::And => {
                self.joined = true;
                if self.expected != Expected::Nothing {
                    self.expected = self.role.clone();
                }
            }
            Phrase::Comma => {
                (self.comma, self.joined) = (true, false);
                (self.expected, self.unreal, self.be) = (Expected::Subject, false, false);
            }
            Phrase::Stop => {
                let scene = std::mem::take(&mut self.scene);
                *self = Self { scene, ..Self::default() };
            }
            Phrase::Be => self.be = true,
            Phrase::Says => self.says = true,
            Phrase::Relative => {
                // "a child that is carrying a balloon"
                self.subjects = self.last.into_iter().collect();
                (self.activity, self.role, self.expected) = (None, Expected::Subject, Expected::Subject);
            }
            Phrase::Quote(words) => {
                let with = matches!(self.expected, Expected::Place(_, Place::With));
                self.expected = Expected::Subject;
                if let Some(thing) = self.last.filter(|_| self.says || with) {
                    self.scene.texts.push((thing, words.clone()));
                }
                self.says = false;
            }
            Phrase::Other => {}
        }
    }

    fn noun(&mut self, noun: &NounPhrase) {
        let expected = std::mem::replace(&mut self.expected, Expected::Subject);
        let (joined, comma) = (std::mem::take(&mut self.joined), std::mem::take(&mut self.comma));
        let be = std::mem::take(&mut self.be);
        if expected == Expected::Nothing || self.unreal {
            self.unreal = true;
            return;
        }
        let shown = self.last.is_some_and(|last| ["medium", "abstract"].contains(&self.scene.things[last].section()));
        let led = |place: Place| !(place == Place::With || place == Place::Of && shown);
        if noun.proper && matches!(expected, Expected::Place(_, place) if led(place)) {
            self.last = None;
            return; // "in Paris", "at Christmas"
        }
        let index = self.add(noun);
        if be && !self.subjects.is_empty() {
            self.scene.things[index].vague = true; // "the man is a doctor"
        }
        let countable = noun.noun.is_some_and(|noun| !noun.mass) && !noun.plural && !noun.proper;
        let bare = noun.article == Article::Bare && countable && noun.adjectives.is_empty();
        // A tag of a prompt, "blender"; or "playing baseball".
        self.scene.things[index].vague |= bare && comma && expected == Expected::Subject && index > 0;
        let plays = self.activity.is_some_and(|activity| self.scene.activities[activity].ing == "playing");
        self.scene.things[index].vague |= bare && plays && expected == Expected::Object;
        let medium = ["medium", "abstract"].contains(&self.scene.things[index].section());
        match &expected {
            Expected::Subject | Expected::Told => {
                let list = (joined || comma) && self.role == Expected::Subject && self.activity.is_none() && !medium;
                if list && joined {
                    self.subjects.push(index);
                } else {
                    self.subjects = vec![index];
                }
                self.activity = None;
            }
            Expected::Object => self.object(index, joined),
            Expected::Place(text, place) => self.place(text, *place, index, joined),
            Expected::Nothing => {}
        }
        if let Some(doing) = noun.doing {
            let ing = doing.to_string();
            let activity =
                Activity { subjects: vec![index], ing, verb: Some(Verb::Move), object: None, more: false, tail: None };
            self.scene.activities.push(activity);
        }
        let made = matches!(expected, Expected::Place(_, Place::Made));
        let vessel = self.last.filter(|last| made || self.scene.things[*last].content == Some(index));
        self.last = vessel.or(Some(index));
        if vessel.is_none() {
            self.role = expected;
        }
    }

    /// Adds a thing, or finds the one that a definite phrase means.
    fn add(&mut self, noun: &NounPhrase) -> usize {
        let general = noun.noun.is_some_and(|noun| noun.general);
        let same = |thing: &Thing| thing.phrase.name == noun.name && thing.phrase.plural == noun.plural;
        let known = self.scene.things.iter().rposition(|thing| same(thing) && !thing.absent);
        if noun.article == Article::Definite
            && let Some(known) = known
        {
            let there = &mut self.scene.things[known].phrase.adjectives;
            for adjective in &noun.adjectives {
                if !there.contains(adjective) {
                    there.push(adjective.clone());
                }
            }
            return known;
        }
        // "the structure", "the animal": something that has been named already.
        let again = general && noun.article == Article::Definite && !self.scene.things.is_empty();
        let hidden = matches!(noun.noun.map_or("", |noun| noun.section), "abstract" | "medium");
        let vague = hidden || again || noun.article == Article::Another && known.is_some();
        // "smiling at the camera": that camera is behind the picture.
        let viewer = ["camera", "viewer"].contains(&noun.name.as_str()) && noun.article == Article::Definite;
        let vague = vague || viewer;
        let absent = noun.article == Article::No;
        self.scene.things.push(Thing { phrase: noun.clone(), absent, vague, owner: None, content: None });
        self.scene.things.len() - 1
    }

    fn object(&mut self, index: usize, joined: bool) {
        let Some(activity) = self.activity else { return };
        let wears = self.scene.activities[activity].ing == "wearing";
        if wears {
            let subjects = self.scene.activities[activity].subjects.clone();
            self.scene.worn.extend(subjects.into_iter().map(|subject| (subject, index)));
        }
        let doing = &mut self.scene.activities[activity];
        match doing.object {
            None if !joined => doing.object = Some(index),
            _ => doing.more = true,
        }
    }

    fn verb(&mut self, ing: &str, verb: Option<Verb>) {
        let be = std::mem::take(&mut self.be);
        let (joined, comma) = (std::mem::take(&mut self.joined), std::mem::take(&mut self.comma));
        match verb {
            Some(Verb::Make) => {
                self.expected = Expected::Nothing;
                return;
            }
            Some(Verb::Tell) => {
                if ing == "having" {
                    self.expected = Expected::Place("with".into(), Place::With);
                    return;
                }
                let medium = self
                    .last
                    .is_none_or(|last| ["medium", "abstract", "place"].contains(&self.scene.things[last].section()));
                if medium || comma {
                    self.subjects.clear();
                }
                (self.expected, self.activity) = (Expected::Told, None);
                return;
            }
            _ => {}
        }
        if self.unreal {
            self.expected = Expected::Nothing;
            return;
        }
        let new_subject = self.last.filter(|last| {
            let thing = &self.scene.things[*last];
            let moves = thing.lives() || ["vehicle"].contains(&thing.section());
            let first_lives = self.subjects.first().is_some_and(|first| {
                let first = &self.scene.things[*first];
                first.lives() || first.section() == "vehicle" && thing.lives()
            });
            let with = matches!(self.role, Expected::Place(_, Place::With | Place::Of))
                && (ing != "parked" || thing.section() == "vehicle");
            !joined
                && !comma
                && self.role != Expected::Subject
                && ((moves && (!first_lives || with))
                    || (!first_lives && ing != "parked" && self.role != Expected::Told))
        });
        if let Some(subject) = new_subject.filter(|_| self.activity.is_none() && !be) {
            self.subjects = vec![subject];
        }
        if self.role == Expected::Told
            && let Some(last) = self.last
            && !joined
        {
            self.subjects = if self.subjects.is_empty() { vec![last] } else { self.subjects.clone() };
        }
        self.expected = if matches!(verb, Some(Verb::Still)) { Expected::Subject } else { Expected::Object };
        self.role = Expected::Object;
        if self.subjects.is_empty() {
            self.activity = None;
            return;
        }
        let activity = Activity {
            subjects: self.subjects.clone(),
            ing: ing.to_string(),
            verb,
            object: None,
            more: false,
            tail: None,
        };
        self.scene.activities.push(activity);
        self.activity = Some(self.scene.activities.len() - 1);
    }

    fn preposition(&mut self, text: &str, place: Place) {
        self.be = false;
        self.comma = false;
        let joined = std::mem::take(&mut self.joined);
        self.expected = if place == Place::Absent && text != "without" {
            Expected::Nothing
        } else {
            Expected::Place(text.to_string(), place)
        };
        if joined {
            self.role = Expected::Subject; // "in a hat and with a stick": back to the subject
            self.last = self.subjects.last().copied();
        }
    }

    fn pronoun(&mut self, word: &str) {
        let things = &self.scene.things;
        let people: Vec<usize> = (0..things.len()).filter(|at| things[*at].lives()).collect();
        let plural = word == "they" || word == "them";
        let fitting: Vec<usize> = match word {
            "he" | "she" | "him" | "her" => people.into_iter().filter(|at| !things[*at].phrase.plural).collect(),
            _ if plural => people.into_iter().filter(|at| things[*at].phrase.plural).collect(),
            _ => Vec::new(),
        };
        let expected = std::mem::replace(&mut self.expected, Expected::Subject);
        if expected != Expected::Subject {
            return; // "with it", "on them"
        }
        self.subjects = if let [only] = fitting[..] { vec![only] } else { Vec::new() };
        self.last = self.subjects.first().copied();
        (self.activity, self.role) = (None, Expected::Subject);
    }

    fn properties(&mut self, words: &[String]) {
        let be = std::mem::take(&mut self.be);
        if let [only] = self.subjects[..]
            && (be || self.role == Expected::Subject)
            && !self.unreal
            && self.last == Some(only)
        {
            let there = &mut self.scene.things[only].phrase.adjectives;
            there.extend(words.iter().filter(|word| word.as_str() != "and").cloned());
            if words.len() > 1 && words.iter().any(|word| word == "and") {
                there.push("and".into());
            }
        }
    }
}
