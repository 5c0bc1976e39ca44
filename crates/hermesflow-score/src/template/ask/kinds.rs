//! Questions about what is there, of which kind and how many, and about the kind of picture.

use super::*;

/// Sections of nouns whose presence is not asked for.
const UNASKED: [&str; 4] = ["body", "abstract", "medium", "game"];

/// Sections whose kinds are asked for, and the words that ask for one or several.
const ASKED: [(&str, &str, &str); 7] = [
    ("animal", "animal is", "animals are"),
    ("vehicle", "vehicle is", "vehicles are"),
    ("drink", "drink is", "drinks are"),
    ("food", "food is", "food is"),
    ("instrument", "musical instrument is", "musical instruments are"),
    ("furniture", "piece of furniture is", "pieces of furniture are"),
    ("sport", "piece of sports equipment is", "pieces of sports equipment are"),
];

/// Words for people that may name the same person.
const LOOSE: [&str; 6] = ["man", "woman", "boy", "girl", "child", "baby"];

const TIMES: [(&str, &[&str]); 5] = [
    ("night", &["sunrise", "noon", "morning"]),
    ("sunset", &["noon", "midnight", "early morning"]),
    ("sunrise", &["noon", "midnight", "late evening"]),
    ("dawn", &["noon", "midnight", "late evening"]),
    ("dusk", &["noon", "midnight", "early morning"]),
];

impl Asker<'_> {
    pub(super) fn presence(&mut self) {
        let mut asked = 0;
        for index in 0..self.scene.things.len() {
            let thing = self.thing(index);
            let section = thing.section();
            let general_place = section == "place" && thing.phrase.noun.is_some_and(|noun| noun.general);
            let everywhere =
                ["sky", "air", "ground", "night sky", "scene", "light", "earth"].contains(&thing.phrase.name.as_str());
            let vast = section == "place" && thing.phrase.noun.is_some_and(|noun| noun.mass);
            if UNASKED.contains(&section) || general_place || everywhere || vast {
                continue;
            }
            let (kind, name) = (thing.phrase.noun.map_or("object", |noun| noun.kind), thing.phrase.name.clone());
            if thing.absent {
                if let Some(some) = self.some(index).filter(|_| !self.mentioned_elsewhere(index)) {
                    let question = format!("{} there {some}?", is_are(self.thing(index).phrase.plural));
                    self.yes_no(1, kind, &name, question, false);
                }
                continue;
            }
            if thing.vague {
                continue;
            }
            let known = thing.phrase.noun.is_some();
            let sure = thing.phrase.proper || !matches!(thing.phrase.article, Article::Definite | Article::Possessive);
            if !known && !sure {
                continue;
            }
            let rank = match asked {
                0 | 1 => 0,
                2 | 3 => 3,
                _ => 7,
            };
            asked += 1;
            let (proper, plural) = (thing.phrase.proper, thing.phrase.plural);
            if proper && self.thing(index).phrase.article != Article::Indefinite {
                self.yes_no(rank, "human", &name, format!("is {name} in the picture?"), true);
                continue;
            }
            let several = self.scene.things.iter().filter(|other| other.phrase.name == name).count() > 1;
            let Some(some) = self.some(index) else { continue };
            if several {
                self.told_apart(rank, index);
            } else {
                self.yes_no(rank, kind, &name, format!("{} there {some}?", is_are(plural)), true);
            }
        }
    }

    /// Asks "is there a red car?" where there is also a blue one.
    fn told_apart(&mut self, rank: usize, index: usize) {
        let phrase = &self.thing(index).phrase;
        let colors: Vec<&str> = said(&phrase.adjectives)
            .filter(|(_, says)| matches!(says, Adjective::Color(_)))
            .map(|(word, _)| word)
            .collect();
        let (plural, name) = (phrase.plural, phrase.name.clone());
        if let [color] = colors[..] {
            let colored = format!("{color} {}", self.form(index));
            let some = if plural { colored } else { with_article(&colored) };
            let element = format!("{color} {name}");
            self.yes_no(rank, "color", &element, format!("{} there {some}?", is_are(plural)), true);
        }
    }

    /// Whether the same thing is also there: "a man without a hat and a man with a hat".
    fn mentioned_elsewhere(&self, index: usize) -> bool {
        let name = &self.thing(index).phrase.name;
        self.scene.things.iter().filter(|thing| thing.phrase.name == *name).count() > 1
    }

    /// The only thing of a section, if nothing else in the caption could be one.
    fn only(&self, section: &str) -> Option<usize> {
        let mut of = (0..self.scene.things.len()).filter(|index| self.thing(*index).section() == section);
        let only = of.next()?;
        let thing = self.thing(only);
        let clear =
            of.next().is_none() && !thing.vague && !thing.absent && thing.phrase.noun.is_some_and(|noun| !noun.general);
        (clear && !self.unread(section, only)).then_some(only)
    }

    /// Whether the caption has another word of the section that the grammar did not read as a thing.
    fn unread(&self, section: &str, only: usize) -> bool {
        let lexicon = Lexicon::get();
        let line = self.thing(only).phrase.noun.map(|noun| noun.line);
        self.words
            .iter()
            .filter_map(|word| lexicon.noun(word))
            .any(|noun| noun.section == section && Some(noun.line) != line)
    }

    pub(super) fn kinds(&mut self) {
        for (section, singular, many) in ASKED {
            let Some(only) = self.only(section) else { continue };
            let phrase = self.thing(only).phrase.clone();
            let form = self.form(only);
            let kind = phrase.noun.map_or("object", |noun| noun.kind);
            let asked = if phrase.plural { many } else { singular };
            let question = format!("what {asked} in the picture?");
            let wrong = self.others(section, phrase.plural);
            self.choose(1, kind, &phrase.name, question, &form, wrong.clone());
            if ["animal", "vehicle", "instrument"].contains(&section) && !phrase.plural && !wrong.is_empty() {
                let other = &wrong[Draws::of(self.caption, section).below(wrong.len())];
                let word = if section == "instrument" { "musical instrument" } else { section };
                let question = format!("is the {word} {}?", with_article(other));
                self.yes_no(5, kind, &phrase.name, question, false);
            }
        }
        self.who();
    }

    fn who(&mut self) {
        let people = (0..self.scene.things.len())
            .filter(|index| self.thing(*index).lives() && self.thing(*index).section() != "animal")
            .count();
        let Some(only) = self.only("person").filter(|_| people == 1) else { return };
        let phrase = self.thing(only).phrase.clone();
        let Some(noun) = phrase.noun.filter(|_| !phrase.plural && phrase.article == Article::Indefinite) else {
            return;
        };
        let line = |head: &str| Lexicon::get().noun(head).map(|noun| noun.line);
        let loose = LOOSE.iter().any(|word| line(word) == Some(noun.line));
        let wrong: Vec<String> = self
            .others("person", false)
            .into_iter()
            .filter(|other| match phrase.name.as_str() {
                "man" | "gentleman" => ["woman", "girl", "boy", "baby"].contains(&other.as_str()),
                "woman" | "lady" => ["man", "girl", "boy", "baby"].contains(&other.as_str()),
                "boy" => ["man", "woman", "girl"].contains(&other.as_str()),
                "girl" => ["man", "woman", "boy"].contains(&other.as_str()),
                "baby" | "child" => ["man", "woman"].contains(&other.as_str()),
                _ => {
                    !loose
                        && !LOOSE.contains(&other.as_str())
                        && !["family", "passenger", "hiker", "angel", "ghost"].contains(&other.as_str())
                }
            })
            .collect();
        self.choose(2, "human", &phrase.name, "who is in the picture?".into(), &phrase.name, wrong);
    }

    pub(super) fn counts(&mut self) {
        let mut ones = 0;
        for index in 0..self.scene.things.len() {
            let thing = self.thing(index);
            let (section, phrase) = (thing.section(), thing.phrase.clone());
            if thing.absent || thing.vague || phrase.proper || UNASKED.contains(&section) {
                continue;
            }
            let lines = |other: &Thing| other.phrase.noun.map(|noun| noun.line) == phrase.noun.map(|noun| noun.line);
            let alike = self
                .scene
                .things
                .iter()
                .filter(|other| lines(other) && other.phrase.noun.is_some() || other.phrase.name == phrase.name)
                .count();
            let people = section == "person"
                && self
                    .words
                    .iter()
                    .any(|word| ["people", "crowd", "men", "women", "others", "family", "group"].contains(word));
            let many = if phrase.plural { self.form(index) } else { plural_form(&phrase.name) };
            let explicit = phrase.count.filter(|count| (1..=20).contains(count));
            let single = phrase.article == Article::Indefinite && !phrase.plural && explicit.is_none();
            let count = match explicit {
                Some(count) => count,
                None if single && !people && ["person", "animal", "vehicle"].contains(&section) && ones < 1 => 1,
                None => continue,
            };
            if alike > 1
                || phrase.noun.is_some_and(|noun| noun.mass || noun.plural && !phrase.plural)
                || phrase.name.contains(" of ") && single
            {
                continue;
            }
            let rank = if single { 6 } else { 1 };
            ones += usize::from(single);
            let near = (count.saturating_sub(2).max(1)..=count + 3)
                .filter(|other| *other != count)
                .map(|other| other.to_string());
            self.choose(
                rank,
                "counting",
                &count.to_string(),
                format!("how many {many} are there?"),
                &count.to_string(),
                near.collect(),
            );
            if !single {
                let mut draws = Draws::of(self.caption, &many);
                let other = if count > 2 && draws.below(2) == 0 { count - 1 } else { count + 1 };
                self.yes_no(5, "counting", &count.to_string(), format!("are there {} {many}?", in_words(other)), false);
            }
        }
    }

    /// Asks for the kind of picture and the time of day.
    pub(super) fn media(&mut self) {
        let media: Vec<usize> =
            (0..self.scene.things.len()).filter(|index| self.thing(*index).section() == "medium").collect();
        let named: Vec<&usize> =
            media.iter().filter(|index| self.thing(**index).phrase.noun.is_some_and(|noun| !noun.general)).collect();
        if let [only] = named[..]
            && !self.unread("medium", *only)
            && !self.thing(*only).phrase.plural
            && (self.thing(*only).phrase.article == Article::Bare
                || self.scene.things[..*only].iter().all(|thing| ["medium", "abstract"].contains(&thing.section())))
        {
            let name = self.thing(*only).phrase.name.clone();
            let wrong = self.others("medium", false);
            self.choose(2, "other", &name, "what kind of picture is this?".into(), &name, wrong);
            if name.contains("paint")
                || name.contains("watercolor")
                || name.contains("drawing")
                || name.contains("sketch")
            {
                self.yes_no(6, "other", &name, "is this a photograph?".into(), false);
            }
        }
        let named: Vec<usize> = (0..TIMES.len()).filter(|at| self.words.contains(&TIMES[*at].0)).collect();
        if let [only] = named[..] {
            let (time, wrong) = TIMES[only];
            let at = self.words.iter().position(|word| *word == time).unwrap_or_default();
            let before = if at > 0 { self.words[at - 1] } else { "" };
            let behind = self.words.get(at + 1).copied().unwrap_or_default();
            let day = ["at", "during", "by"].contains(&before)
                || (["the", "a"].contains(&before) && at > 1 && ["in", "at", "during"].contains(&self.words[at - 2]));
            if day && behind != "of" && !["market", "club", "light", "gown", "stand"].contains(&behind) {
                let wrong = wrong.iter().map(|other| (*other).to_string()).collect();
                self.choose(2, "other", time, "what time of day is it?".into(), time, wrong);
            }
        }
    }
}
