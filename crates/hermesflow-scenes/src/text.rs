//! Captions of the scenes world: writing them for a scene, and reading what a caption claims.

use std::fmt;

use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::scene::{Background, Colour, Group, Relation, Scene, SceneKind, Shape, Size};

/// A group of equal objects that a caption mentions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The stated number of objects, 1 for "a".
    pub count: usize,
    /// The stated colour, if any.
    pub colour: Option<Colour>,
    /// The stated shape.
    pub shape: Shape,
    /// The stated size, if any.
    pub size: Option<Size>,
}

/// What a caption says about a picture.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// The groups of objects, in the order in which they are mentioned.
    pub groups: Vec<Claim>,
    /// Where the first group is relative to the second, if stated.
    pub relation: Option<Relation>,
    /// The colour of the background, if stated.
    pub background: Option<Background>,
}

const NUMBERS: [&str; 5] = ["zero", "one", "two", "three", "four"];

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.count > 1 {
            write!(f, "{} ", NUMBERS.get(self.count).copied().unwrap_or("many"))?;
        } else {
            let first = self.size.map(Size::word).or(self.colour.map(Colour::word)).unwrap_or(self.shape.word());
            f.write_str(if first.starts_with(['a', 'e', 'i', 'o', 'u']) { "an " } else { "a " })?;
        }
        if let Some(size) = self.size {
            write!(f, "{} ", size.word())?;
        }
        if let Some(colour) = self.colour {
            write!(f, "{} ", colour.word())?;
        }
        match (self.count > 1, self.shape) {
            (true, Shape::Cross) => f.write_str("crosses"),
            (true, shape) => write!(f, "{}s", shape.word()),
            (false, shape) => f.write_str(shape.word()),
        }
    }
}

fn phrase(relation: Relation) -> &'static str {
    match relation {
        Relation::Left => "to the left of",
        Relation::Right => "to the right of",
        Relation::Above => "above",
        Relation::Below => "below",
    }
}

impl Scene {
    /// A caption of the scene. Different seeds give paraphrases that differ in wording and in how much they mention.
    pub fn caption(&self, seed: u64) -> String {
        let mut random = ChaCha8Rng::seed_from_u64(seed ^ 0x6361_7074_696f_6e73);
        let sizes = self.kind == SceneKind::Binding || random.random_bool(0.4);
        let claim = |group: &Group| Claim {
            count: group.count,
            colour: Some(group.colour),
            shape: group.shape,
            size: sizes.then_some(group.size),
        };
        let first = claim(&self.groups[0]);
        let mut things = match (self.groups.get(1).map(claim), self.relation) {
            (None, _) => match (first.count, random.random_range(0..3)) {
                (1, 0) => format!("there is {first}"),
                (_, 0) => format!("there are {first}"),
                (_, 1) => format!("a picture of {first}"),
                _ => first.to_string(),
            },
            (Some(second), Some(relation)) => match random.random_range(0..4) {
                0 => format!("{first} {} {second}", phrase(relation)),
                1 => format!("{second} {} {first}", phrase(relation.opposite())),
                2 => format!("a picture of {first} {} {second}", phrase(relation)),
                _ => format!("there is {first} {} {second}", phrase(relation)),
            },
            (Some(second), None) => {
                let (a, b) = if random.random() { (first, second) } else { (second, first) };
                match random.random_range(0..4) {
                    0 => format!("a picture of {a} and {b}"),
                    1 if a.count == 1 => format!("there is {a} and {b}"),
                    1 => format!("there are {a} and {b}"),
                    2 => format!("{a} with {b}"),
                    _ => format!("{a} and {b}"),
                }
            }
        };
        if random.random_bool(0.4) {
            let on = ["on a", "in front of a", "against a"].choose(&mut random).copied().unwrap_or("on a");
            things = format!("{things} {on} {} background", self.background.word());
        }
        things
    }

    /// A true caption that mentions only one of the scene's groups.
    pub fn short_caption(&self, seed: u64) -> String {
        let mut random = ChaCha8Rng::seed_from_u64(seed ^ 0x7368_6f72_7420_6361);
        let mut said = self.clone();
        said.groups = vec![self.groups[random.random_range(0..self.groups.len())]];
        said.relation = None;
        said.caption(seed)
    }

    /// An unreliable caption, like much of the alt text that image generators learn from: each word that describes an
    /// object is, with probability 1/2, replaced by a random one, and a second group may be left out.
    pub fn alt_text(&self, seed: u64) -> String {
        let mut random = ChaCha8Rng::seed_from_u64(seed ^ 0x616c_7420_7465_7874);
        let mut said = self.clone();
        if said.groups.len() > 1 && random.random() {
            said.groups.remove(random.random_range(0..said.groups.len()));
            said.relation = None;
        }
        fn perhaps<T: Copy>(right: &mut T, all: &[T], random: &mut ChaCha8Rng) {
            if random.random() {
                *right = all.choose(random).copied().unwrap_or(*right);
            }
        }
        for group in &mut said.groups {
            perhaps(&mut group.count, &[1, 2, 3, 4], &mut random);
            perhaps(&mut group.colour, Colour::ALL, &mut random);
            perhaps(&mut group.shape, Shape::ALL, &mut random);
            perhaps(&mut group.size, Size::ALL, &mut random);
        }
        if let Some(relation) = &mut said.relation {
            perhaps(relation, Relation::ALL, &mut random);
        }
        perhaps(&mut said.background, Background::ALL, &mut random);
        said.caption(seed)
    }

    /// What a complete caption of the scene says.
    pub fn facts(&self) -> Facts {
        let claim = |g: &Group| Claim { count: g.count, colour: Some(g.colour), shape: g.shape, size: Some(g.size) };
        Facts {
            groups: self.groups.iter().map(claim).collect(),
            relation: self.relation,
            background: Some(self.background),
        }
    }
}

/// Reads the facts of any English caption; `None` if it names none of this world's shapes.
pub fn parse_caption(caption: &str) -> Option<Facts> {
    let lower = caption.to_lowercase();
    let words: Vec<&str> = lower.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).collect();
    let mut facts = Facts { groups: vec![], relation: None, background: None };
    let (mut count, mut colour, mut size) = (1, None, None);
    for (at, word) in words.iter().enumerate() {
        if words.get(at + 1) == Some(&"background") {
            facts.background = Background::from_word(word).or(facts.background);
            continue;
        }
        if let Some(number) = number(word) {
            count = number;
        } else if let Some(found) = Colour::from_word(word) {
            colour = Some(found);
        } else if let Some(found) = Size::from_word(word) {
            size = Some(found);
        } else if let Some(shape) = shape(word) {
            facts.groups.push(Claim { count, colour, shape, size });
            (count, colour, size) = (1, None, None);
        } else if let Some(relation) = Relation::from_word(word)
            && facts.groups.len() == 1
            && facts.relation.is_none()
        {
            facts.relation = Some(relation);
        }
    }
    if facts.groups.len() < 2 {
        facts.relation = None;
    }
    (!facts.groups.is_empty()).then_some(facts)
}

fn number(word: &str) -> Option<usize> {
    match word {
        "a" | "an" => Some(1),
        _ => NUMBERS.iter().position(|number| *number == word).or_else(|| word.parse().ok().filter(|n| *n < 10)),
    }
}

fn shape(word: &str) -> Option<Shape> {
    let singular = word.strip_suffix("es").filter(|stem| *stem == "cross").or_else(|| word.strip_suffix('s'));
    Shape::from_word(word).or_else(|| singular.and_then(Shape::from_word))
}
