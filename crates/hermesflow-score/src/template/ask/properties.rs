//! Questions about properties: colour, material, shape, size, age.

use super::*;

/// Colours that may be taken for each other.
const NEAR: [(&str, &[&str]); 8] = [
    ("red", &["pink", "orange", "purple", "brown"]),
    ("yellow", &["orange", "brown", "white"]),
    ("blue", &["purple", "green"]),
    ("gray", &["white", "black", "blue"]),
    ("brown", &["orange", "yellow", "red", "black"]),
    ("purple", &["pink", "blue", "red"]),
    ("orange", &["red", "yellow", "brown", "pink"]),
    ("white", &["gray", "yellow"]),
];

const COLORS: [&str; 11] =
    ["red", "blue", "green", "yellow", "orange", "purple", "pink", "brown", "black", "white", "gray"];
const MATERIALS: [&str; 8] = ["wood", "metal", "stone", "glass", "brick", "plastic", "leather", "paper"];
const SHAPES: [&str; 6] = ["round", "square", "triangular", "hexagonal", "heart-shaped", "star-shaped"];

impl Asker<'_> {
    pub(super) fn properties(&mut self) {
        for index in 0..self.scene.things.len() {
            let thing = self.thing(index);
            if thing.absent
                || ["abstract", "medium"].contains(&thing.section())
                || (thing.vague && thing.phrase.noun.is_none_or(|noun| !noun.general))
            {
                continue;
            }
            let Some(the) = self.owned(index) else { continue };
            self.color(index, &the);
            self.material(index, &the);
            self.shape(index, &the);
            self.opposites(index, &the);
        }
        for (made, of) in self.scene.made.clone() {
            let material = self.thing(of).phrase.name.clone();
            let lexicon = Lexicon::get();
            let line = lexicon.adjective(&material).iter().find_map(|says| match says {
                Adjective::Material(line) => Some(*line),
                _ => None,
            });
            if let (Some(line), Some((the, plural))) = (line, self.those(&[made])) {
                self.made_of(&the, plural, &material, line);
            }
        }
    }

    /// A thing as in "the cat" or "the woman's hair".
    fn owned(&self, index: usize) -> Option<String> {
        match self.thing(index).owner {
            Some(owner) => {
                let the = self.the(owner)?;
                let mark = if self.thing(owner).phrase.plural && the.ends_with('s') { "'" } else { "'s" };
                Some(format!("{the}{mark} {}", self.form(index)))
            }
            None if self.thing(index).section() == "body" => None,
            None => self.the(index),
        }
    }

    fn color(&mut self, index: usize, the: &str) {
        let phrase = self.thing(index).phrase.clone();
        let section = self.thing(index).section();
        if ["person", "drink", "place"].contains(&section) || phrase.proper || phrase.name.ends_with("light") {
            return;
        }
        let (are, form) = (is_are(phrase.plural), &phrase.name);
        let colors: Vec<(&str, &str)> = said(&phrase.adjectives)
            .filter_map(|(word, says)| match says {
                Adjective::Color(line) => Some((word, line)),
                _ => None,
            })
            .collect();
        let question = format!("what color {are} {the}?");
        match colors[..] {
            [(word, line)] => {
                let near = NEAR.iter().find(|(color, _)| *color == line).map_or(&[][..], |(_, near)| *near);
                let wrong: Vec<String> = COLORS
                    .iter()
                    .filter(|color| **color != line && !near.contains(color))
                    .map(|color| (*color).to_string())
                    .collect();
                let other = wrong[Draws::of(self.caption, &question).below(wrong.len())].clone();
                self.choose(1, "color", word, question, word, wrong);
                if self.thing(index).owner.is_none() {
                    self.yes_no(4, "color", form, format!("{are} {the} {other}?"), false);
                }
            }
            [(one, first), (two, second)] if phrase.adjectives.iter().any(|word| word == "and") => {
                let free: Vec<&str> = COLORS.iter().copied().filter(|color| ![first, second].contains(color)).collect();
                let free = Draws::of(self.caption, the).shuffled(free);
                let wrong = free.chunks_exact(2).map(|pair| format!("{} and {}", pair[0], pair[1])).collect();
                let right = format!("{one} and {two}");
                self.choose(1, "color", &right, question, &right, wrong);
            }
            _ => {}
        }
    }

    fn material(&mut self, index: usize, the: &str) {
        let phrase = self.thing(index).phrase.clone();
        let section = self.thing(index).section();
        if ["person", "animal", "food", "place", "plant", "sky", "body", "drink"].contains(&section) {
            return;
        }
        let found = said(&phrase.adjectives).find_map(|(word, says)| match says {
            Adjective::Material(line) if !["rocky", "crystalline"].contains(&word) => Some((word, line)),
            _ => None,
        });
        if let Some((word, line)) = found {
            let nouns = [
                "steel",
                "iron",
                "copper",
                "brass",
                "bronze",
                "marble",
                "granite",
                "bamboo",
                "cardboard",
                "porcelain",
                "clay",
                "silk",
                "satin",
                "velvet",
                "lace",
                "cotton",
                "linen",
                "denim",
                "wool",
                "oak",
                "wicker",
            ];
            let material = if nouns.contains(&word) { word } else { line };
            self.made_of(the, phrase.plural, material, line);
        }
    }

    fn made_of(&mut self, the: &str, plural: bool, material: &str, line: &str) {
        let alike: &[&str] =
            if ["stone", "brick", "concrete", "ceramic"].contains(&line) { &["stone", "brick"] } else { &[] };
        let wrong =
            MATERIALS.iter().filter(|other| **other != line && !alike.contains(other) && !self.mentioned.word(other));
        let wrong: Vec<String> = wrong.map(|other| (*other).to_string()).collect();
        self.choose(1, "material", material, format!("what {} {the} made of?", is_are(plural)), material, wrong);
    }

    fn shape(&mut self, index: usize, the: &str) {
        let phrase = self.thing(index).phrase.clone();
        let found = said(&phrase.adjectives).find_map(|(word, says)| match says {
            Adjective::Shape(line) => Some((word, line)),
            _ => None,
        });
        let Some((word, line)) = found else { return };
        let wrong = SHAPES.iter().filter(|other| **other != line).map(|other| (*other).to_string()).collect();
        let question = format!("what shape {} {the}?", is_are(phrase.plural));
        self.choose(1, "shape", word, question, word, wrong);
    }

    /// Whether a property with an opposite can be asked about a thing; `first` identifies the pair of opposites.
    fn fits(&self, index: usize, word: &str, first: &str) -> bool {
        let lives = self.thing(index).lives();
        let owned = self.thing(index).owner.is_some();
        let pair = match first {
            "young" | "fat" | "happy" => lives,
            "new" => !lives,
            "open" => !owned,
            _ => true,
        };
        let one = match word {
            "cooked" | "raw" | "thin" => lives,
            "hot" => !lives,
            "cold" => false,
            "straight" => owned,
            _ => true,
        };
        pair && one
    }

    fn opposites(&mut self, index: usize, the: &str) {
        let phrase = self.thing(index).phrase.clone();
        let lexicon = Lexicon::get();
        let adjectives: Vec<(String, Adjective)> =
            said(&phrase.adjectives).map(|(word, says)| (word.to_string(), says)).collect();
        let mut asked = HashSet::new();
        for (word, says) in adjectives {
            let at = phrase.adjectives.iter().position(|adjective| *adjective == word).unwrap_or_default();
            let next = phrase.adjectives.get(at + 1).map_or("", String::as_str);
            let shade = lexicon.adjective(next).iter().any(|says| matches!(says, Adjective::Color(_)));
            if shade && ["dark", "bright"].contains(&word.as_str()) || !asked.insert(word.clone()) {
                continue;
            }
            let are = is_are(phrase.plural);
            match says {
                Adjective::Opposite(number, side) => {
                    let words = &lexicon.opposites[number];
                    if !self.fits(index, &word, words[0][0]) {
                        continue;
                    }
                    let crowd = word == "empty" && ["place", "building"].contains(&self.thing(index).section());
                    let opposite = if crowd { "crowded" } else { words[usize::from(!side)][0] };
                    if self.mentioned.word(opposite) {
                        continue;
                    }
                    let rank = if asked.len() == 1 { 2 } else { 6 };
                    let truth = Draws::of(self.caption, &format!("{the} {word}")).below(2) == 0;
                    let said = if truth { word.as_str() } else { opposite };
                    self.yes_no(rank, "attribute", &word, format!("{are} {the} {said}?"), truth);
                }
                Adjective::Seen
                    if ![
                        "toy", "lit", "wild", "bare", "medieval", "tropical", "sandy", "grassy", "rainy", "stuffed",
                    ]
                    .contains(&word.as_str()) =>
                {
                    self.yes_no(4, "attribute", &word, format!("{are} {the} {word}?"), true);
                }
                _ => {}
            }
        }
    }
}
