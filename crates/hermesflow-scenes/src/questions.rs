//! Multiple-choice questions about what a caption says, of the kinds of TIFA (arXiv 2303.11897).

use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::scene::{Background, Colour, Relation, Shape, Size};
use crate::text::{Claim, Facts};

/// The kinds of TIFA's questions that this world has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum QuestionKind {
    /// Whether an object is there, and which shape it has.
    Object,
    /// Which colour an object has.
    Color,
    /// How many objects there are.
    Counting,
    /// Where an object is relative to another.
    Spatial,
    /// Whether an object is small or large, and the colour of the background.
    Attribute,
}

/// A multiple-choice question about a scene, with its kind and its right answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SceneQuestion {
    /// The kind of question.
    pub kind: QuestionKind,
    /// The word or phrase of the caption that it asks about.
    pub element: String,
    /// The question, without its choices.
    pub question: String,
    /// The answers to choose from.
    pub choices: Vec<String>,
    /// The right answer, which is one of the choices.
    pub answer: String,
}

/// Four to eight questions about what a caption says, in a fixed order; `seed` decides the wrong choices.
pub fn questions(facts: &Facts, seed: u64) -> Vec<SceneQuestion> {
    let mut random = ChaCha8Rng::seed_from_u64(seed ^ 0x7175_6573_7469_6f6e);
    let random = &mut random;
    let mut asked = Vec::new();
    for group in &facts.groups {
        asked.push(presence(group, facts, random));
        if let Some(colour) = group.colour {
            if facts.groups.iter().filter(|other| other.shape == group.shape).count() == 1 {
                let verb = if group.count > 1 { "are" } else { "is" };
                let question = format!("what color {verb} the {}?", noun(group.shape, group.count));
                asked.push(choose(QuestionKind::Color, colour.word(), question, colour, Colour::ALL, random));
            }
            if facts.groups.iter().filter(|other| other.colour == group.colour).count() == 1 {
                let question = match group.count {
                    1 => format!("what shape is the {} object?", colour.word()),
                    _ => format!("what shape are the {} objects?", colour.word()),
                };
                asked.push(choose(QuestionKind::Object, colour.word(), question, group.shape, Shape::ALL, random));
            }
        }
        if facts.groups.len() == 1 || group.count > 1 {
            asked.push(how_many(group));
        }
        if let Some(size) = group.size {
            let verb = if group.count > 1 { "are" } else { "is" };
            let question = format!("{verb} the {} small or large?", name(&Claim { size: None, ..*group }));
            asked.push(choose(QuestionKind::Attribute, size.word(), question, size, Size::ALL, random));
        }
    }
    if let (Some(relation), [first, second]) = (facts.relation, facts.groups.as_slice()) {
        let (first, second) = (bare(first), bare(second));
        let question = format!("where is the {first} relative to the {second}?");
        asked.push(choose(QuestionKind::Spatial, relation.word(), question, relation, Relation::ALL, random));
        let truth = random.random::<bool>();
        let claimed = if truth { relation } else { relation.opposite() };
        let place = match claimed {
            Relation::Left | Relation::Right => format!("to the {} of", claimed.word()),
            Relation::Above | Relation::Below => claimed.word().to_string(),
        };
        asked.push(yes_no(
            QuestionKind::Spatial,
            relation.word(),
            format!("is the {first} {place} the {second}?"),
            truth,
        ));
    }
    if let Some(background) = facts.background {
        let question = "what color is the background?".to_string();
        asked.push(choose(QuestionKind::Attribute, "background", question, background, Background::ALL, random));
    }
    asked
}

/// The questions that an image generated from a caption is scored by: those of [`questions`], how many there are of
/// each object (single ones included), and how many objects in all. Captions of this world mention every object, so a
/// picture with more objects is wrong.
pub fn picture_questions(facts: &Facts, seed: u64) -> Vec<SceneQuestion> {
    let mut asked = questions(facts, seed);
    if facts.groups.len() > 1 {
        asked.extend(facts.groups.iter().filter(|group| group.count == 1).map(how_many));
    }
    let total = facts.groups.iter().map(|group| group.count).sum();
    asked.push(number_of("objects", "objects in all", total));
    asked
}

fn how_many(group: &Claim) -> SceneQuestion {
    let things = name(&Claim { size: None, count: 2, ..*group });
    number_of(&name(&Claim { size: None, ..*group }), &things, group.count)
}

fn number_of(element: &str, things: &str, count: usize) -> SceneQuestion {
    SceneQuestion {
        kind: QuestionKind::Counting,
        element: element.to_string(),
        question: format!("how many {things} are there?"),
        choices: (1..=count.max(4)).map(|n| n.to_string()).collect(),
        answer: count.to_string(),
    }
}

/// A yes/no question whether the group is there, or whether an absent object that differs from it in one word is there.
fn presence(group: &Claim, facts: &Facts, random: &mut ChaCha8Rng) -> SceneQuestion {
    let one = Claim { count: 1, size: None, ..*group };
    let recoloured = Colour::ALL.iter().map(|&colour| Claim { colour: one.colour.map(|_| colour), ..one });
    let reshaped = Shape::ALL.iter().map(|&shape| Claim { shape, ..one });
    let same = |a: &Claim, b: &Claim| a.shape == b.shape && (a.colour == b.colour || b.colour.is_none());
    let absent: Vec<Claim> =
        recoloured.chain(reshaped).filter(|claim| !facts.groups.iter().any(|there| same(claim, there))).collect();
    let (asked, truth) = match absent.choose(random) {
        Some(absent) if random.random() => (*absent, false),
        _ => (one, true),
    };
    yes_no(QuestionKind::Object, &name(&one), format!("is there {asked}?"), truth)
}

fn yes_no(kind: QuestionKind, element: &str, question: String, truth: bool) -> SceneQuestion {
    let choices = vec!["yes".to_string(), "no".to_string()];
    let answer = if truth { "yes" } else { "no" }.to_string();
    SceneQuestion { kind, element: element.to_string(), question, choices, answer }
}

fn choose<T: Copy + PartialEq + Word>(
    kind: QuestionKind,
    element: &str,
    question: String,
    right: T,
    all: &[T],
    random: &mut ChaCha8Rng,
) -> SceneQuestion {
    let mut choices: Vec<T> = all.iter().copied().filter(|one| *one != right).collect();
    choices.shuffle(random);
    choices.truncate(3);
    choices.push(right);
    choices.shuffle(random);
    SceneQuestion {
        kind,
        element: element.to_string(),
        question,
        choices: choices.iter().map(|one| one.word_of().to_string()).collect(),
        answer: right.word_of().to_string(),
    }
}

trait Word {
    fn word_of(&self) -> &'static str;
}

macro_rules! word {
    ($($name:ident),+) => { $(impl Word for $name { fn word_of(&self) -> &'static str { self.word() } })+ };
}
word!(Colour, Shape, Size, Relation, Background);

fn noun(shape: Shape, count: usize) -> String {
    match (count > 1, shape) {
        (true, Shape::Cross) => "crosses".to_string(),
        (true, shape) => format!("{}s", shape.word()),
        (false, shape) => shape.word().to_string(),
    }
}

/// The group's noun with its size and colour, without article or number.
fn name(group: &Claim) -> String {
    let mut name = String::new();
    if let Some(size) = group.size {
        name.push_str(size.word());
        name.push(' ');
    }
    if let Some(colour) = group.colour {
        name.push_str(colour.word());
        name.push(' ');
    }
    name + &noun(group.shape, group.count)
}

fn bare(group: &Claim) -> String {
    name(&Claim { size: None, ..*group })
}
