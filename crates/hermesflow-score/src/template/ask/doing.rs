//! Questions about what is done, ridden, held, worn or eaten, what belongs to whom, and what is written.

use super::*;

/// What a person may be doing instead, with words that must not be in the caption, and whether it can be done while
/// standing or sitting.
const INSTEAD: [(&str, &[&str], bool); 12] = [
    (
        "swimming",
        &["water", "pool", "surf", "ocean", "lake", "sea", "beach", "wave", "diving", "wading", "river"],
        false,
    ),
    ("sleeping", &["bed", "lying", "laying", "nap", "resting", "lie"], false),
    ("running", &["jog", "race", "chase", "walk", "walking", "playing", "play"], false),
    ("dancing", &["party", "music", "concert", "stage", "wedding", "singing"], false),
    ("climbing a ladder", &["ladder", "climb", "roof"], false),
    ("riding a horse", &["horse", "ride", "riding"], false),
    ("reading a book", &["book", "read", "reading", "library", "newspaper", "looking", "studying", "sitting"], true),
    ("cooking", &["kitchen", "food", "cook", "chef", "stove", "preparing", "grill", "eating"], true),
    ("painting a wall", &["paint", "wall", "brush", "painting"], true),
    ("driving a car", &["car", "drive", "driving", "truck", "street", "vehicle"], false),
    ("playing the piano", &["piano", "music", "playing", "play", "band"], true),
    ("brushing teeth", &["tooth", "teeth", "brush", "bathroom"], true),
];
const ANIMAL_INSTEAD: [(&str, &[&str], bool); 6] = [
    (
        "swimming",
        &["water", "pool", "surf", "ocean", "lake", "sea", "beach", "wave", "pond", "river", "wading", "floating"],
        false,
    ),
    ("sleeping", &["bed", "lying", "laying", "nap", "resting", "lie", "curled", "lounging"], false),
    ("running", &["chasing", "race", "walk", "walking", "playing", "galloping", "catching", "crossing"], false),
    ("jumping", &["leap", "jump", "catching", "flying", "playing"], false),
    ("eating", &["food", "eat", "graze", "grazing", "bowl", "chewing", "nibbling", "grass"], true),
    ("climbing a tree", &["tree", "climb", "branch"], false),
];

/// Verbs whose objects are asked for, with wrong objects.
const OBJECTS: [(&str, &[&str]); 9] = [
    ("riding", &["horse", "bicycle", "motorcycle", "elephant", "skateboard", "camel", "wave"]),
    ("holding", &["umbrella", "phone", "book", "flower", "ball", "camera", "sword", "cup", "balloon"]),
    ("carrying", &["umbrella", "backpack", "book", "flower", "ball", "camera", "basket", "surfboard"]),
    ("eating", &["pizza", "sandwich", "cake", "banana", "salad", "apple", "donut"]),
    ("drinking", &["coffee", "tea", "wine", "beer", "milk", "juice"]),
    ("playing", &["guitar", "piano", "violin", "drum", "trumpet", "flute"]),
    ("driving", &["car", "truck", "bus", "boat", "train"]),
    ("reading", &["book", "newspaper", "map", "letter"]),
    ("catching", &["frisbee", "ball", "fish", "butterfly"]),
];

/// Verbs that are incomplete without what follows: "looking at a phone".
const HALF: [&str; 14] = [
    "looking", "talking", "playing", "working", "staring", "gazing", "pointing", "reaching", "peeking", "waving",
    "smiling", "taking", "going", "hanging",
];

const SIGNS: [&str; 6] = ["OPEN", "EXIT", "SALE", "WELCOME", "NO PARKING", "LOVE"];

/// Prepositions that complete such a verb.
const COMPLETE: [&str; 9] = ["at", "with", "on", "to", "in", "for", "into", "through", "from"];

impl Asker<'_> {
    pub(super) fn activities(&mut self) {
        let mut asked: HashSet<Vec<usize>> = HashSet::new();
        for activity in self.scene.activities.clone() {
            let sure = activity.verb.is_some() || activity.object.is_some();
            if !sure || activity.subjects.iter().any(|subject| self.thing(*subject).absent) {
                continue;
            }
            let Some((those, plural)) = self.those(&activity.subjects) else { continue };
            let alive = activity.subjects.iter().all(|subject| self.thing(*subject).lives());
            let first = asked.insert(activity.subjects.clone());
            if activity.ing == "wearing" {
                continue;
            }
            self.object(&activity, &those, plural, alive);
            let Some(said) = self.said(&activity) else { continue };
            if alive && first {
                self.instead(&activity, &those, plural, &said);
            }
            let moving =
                matches!(activity.verb, Some(Verb::Move)) || ["sleeping", "parked"].contains(&activity.ing.as_str());
            if alive && !first || !alive && moving {
                self.yes_no(4, "activity", &activity.ing, format!("{} {those} {said}?", is_are(plural)), true);
            }
        }
        self.worn();
        self.parts();
        for (thing, text) in self.scene.texts.clone() {
            if let Some((the, plural)) = self.those(&[thing]) {
                let wrong = SIGNS
                    .iter()
                    .filter(|other| !text.to_lowercase().contains(&other.to_lowercase()))
                    .map(|other| (*other).to_string())
                    .collect();
                let does = if plural { "do" } else { "does" };
                self.choose(1, "other", &text, format!("what {does} {the} say?"), &text, wrong);
            }
        }
    }

    /// What somebody does, as in "riding a wave" or "looking at a phone".
    fn said(&self, activity: &Activity) -> Option<String> {
        let ing = &activity.ing;
        if let Some(object) = activity.object {
            let thing = self.thing(object);
            if activity.more
                || thing.section() == "body"
                || thing.section() == "abstract" && thing.phrase.noun.is_some_and(|noun| noun.general)
            {
                return None;
            }
            if ing == "playing" && thing.vague && thing.phrase.article == Article::Bare {
                return Some(format!("{ing} {}", thing.phrase.name)); // "playing baseball"
            }
            return Some(format!("{ing} {}", self.object_words(object)?));
        }
        match &activity.tail {
            Some((preposition, object)) if HALF.contains(&ing.as_str()) => {
                let good = COMPLETE.contains(&preposition.as_str()) && self.thing(*object).section() != "abstract";
                good.then(|| self.object_words(*object)).flatten().map(|object| format!("{ing} {preposition} {object}"))
            }
            _ if HALF.contains(&ing.as_str()) && !["working", "smiling", "waving"].contains(&ing.as_str()) => None,
            _ if matches!(activity.verb, Some(Verb::Act))
                && ![
                    "eating",
                    "drinking",
                    "reading",
                    "cooking",
                    "fishing",
                    "laughing",
                    "singing",
                    "fighting",
                    "smiling",
                    "barking",
                    "crying",
                    "painting",
                    "writing",
                    "working",
                    "waving",
                    "praying",
                    "meditating",
                    "performing",
                    "shopping",
                    "yawning",
                ]
                .contains(&ing.as_str()) =>
            {
                None
            }
            _ => activity.verb.map(|_| ing.clone()),
        }
    }

    /// The object of a verb, as in "a wave", "the grass" or "teeth".
    fn object_words(&self, index: usize) -> Option<String> {
        let phrase = &self.thing(index).phrase;
        if phrase.proper {
            return Some(phrase.name.clone());
        }
        match phrase.article {
            Article::Definite => Some(format!("the {}", self.form(index))),
            Article::Possessive if self.thing(index).section() == "body" => None,
            Article::Possessive => Some(format!("the {}", self.form(index))),
            _ => self.some(index),
        }
    }

    fn instead(&mut self, activity: &Activity, those: &str, plural: bool, said: &str) {
        let are = is_are(plural);
        let people = activity.subjects.iter().all(|subject| self.thing(*subject).section() != "animal");
        let table: &[(&str, &[&str], bool)] = if people { &INSTEAD } else { &ANIMAL_INSTEAD };
        let still = matches!(activity.verb, Some(Verb::Still))
            || ["holding", "carrying", "looking", "smiling"].contains(&activity.ing.as_str());
        let line = |word: &str| Lexicon::get().noun(word).map(|noun| noun.line);
        let swims = activity.subjects.iter().any(|subject| {
            let of = self.thing(*subject).phrase.noun.map(|noun| noun.line);
            ["fish", "shark", "seal", "turtle", "octopus", "surfer", "bird"].iter().any(|word| line(word) == of)
        });
        let wrong: Vec<String> = table
            .iter()
            .filter(|(other, unless, while_still)| {
                let unsure = unless.iter().any(|word| self.mentioned.word(word));
                !(unsure || swims && *other == "swimming" || still && *while_still || self.mentioned.word(other))
            })
            .map(|(other, _, _)| (*other).to_string())
            .collect();
        if wrong.is_empty() {
            return;
        }
        let question = format!("what {are} {those} doing?");
        let other = wrong[Draws::of(self.caption, &question).below(wrong.len())].clone();
        self.choose(1, "activity", &activity.ing, question, said, wrong);
        let truth = Draws::of(self.caption, said).below(2) == 0;
        let doing = if truth { said } else { &other };
        self.yes_no(4, "activity", &activity.ing, format!("{are} {those} {doing}?"), truth);
    }

    /// Asks for the object of a verb: "what is the man riding?"
    fn object(&mut self, activity: &Activity, those: &str, plural: bool, alive: bool) {
        let Some(object) = activity.object.filter(|_| alive && !activity.more) else { return };
        let Some((ing, wrong)) = OBJECTS.iter().find(|(ing, _)| *ing == activity.ing) else { return };
        let lexicon = Lexicon::get();
        let thing = self.thing(object);
        let fits = match *ing {
            "playing" => thing.section() == "instrument",
            _ => {
                !["abstract", "body", "person"].contains(&thing.section())
                    && thing.phrase.noun.is_some_and(|noun| !noun.general)
            }
        };
        if !fits {
            return;
        }
        let in_plural = thing.phrase.plural;
        let free = |word: &&&str| lexicon.noun(word).is_none_or(|noun| !self.mentioned.noun(&noun));
        let number = |word: &&str| {
            if in_plural && lexicon.noun(word).is_some_and(|noun| !noun.mass) {
                super::plural(word)
            } else {
                (*word).to_string()
            }
        };
        let wrong: Vec<String> = wrong.iter().filter(free).map(number).collect();
        let (right, kind) = (self.form(object), thing.phrase.noun.map_or("object", |noun| noun.kind));
        self.choose(1, kind, &right, format!("what {} {those} {ing}?", is_are(plural)), &right, wrong);
    }

    fn worn(&mut self) {
        for (wearer, garment) in self.scene.worn.clone() {
            let Some((the, plural)) = self.those(&[wearer]) else { continue };
            let others = self.scene.worn.iter().filter(|(one, _)| *one == wearer).count();
            let thing = self.thing(garment);
            if thing.section() != "clothing" || thing.phrase.noun.is_none_or(|noun| noun.general) || thing.absent {
                continue;
            }
            let (right, in_plural, are) = (self.form(garment), thing.phrase.plural, is_are(plural));
            if others == 1 {
                let wrong = self.others("clothing", in_plural);
                self.choose(1, "object", &right, format!("what {are} {the} wearing?"), &right, wrong);
            }
            if let Some(some) = self.some(garment) {
                self.yes_no(3, "object", &right, format!("{are} {the} wearing {some}?"), true);
            }
        }
    }

    /// Asks for parts of the body: "does the woman have long hair?"
    fn parts(&mut self) {
        let lexicon = Lexicon::get();
        for (owner, part) in self.scene.parts.clone() {
            let thing = self.thing(part);
            let living = self.thing(owner).lives();
            let negated = thing.absent;
            let body = thing.section() == "body";
            if !(living && body || negated) || ["expression", "gaze", "pose"].contains(&thing.phrase.name.as_str()) {
                continue;
            }
            let Some((the, plural)) = self.those(&[owner]) else { continue };
            let does = if plural { "do" } else { "does" };
            let opposite = said(&thing.phrase.adjectives).find_map(|(word, says)| match says {
                Adjective::Opposite(number, side) => {
                    let other = lexicon.opposites[number][usize::from(!side)][0];
                    ["long", "short", "big", "large", "small", "curly", "straight", "thick"]
                        .contains(&word)
                        .then_some((word, other))
                }
                _ => None,
            });
            let form = self.form(part);
            let single = !thing.phrase.plural && thing.phrase.noun.is_some_and(|noun| !noun.mass);
            let name = thing.phrase.name.clone();
            match opposite {
                Some((word, other)) => {
                    let truth = Draws::of(self.caption, &form).below(2) == 0;
                    let described = format!("{} {form}", if truth { word } else { other });
                    let described = if single { with_article(&described) } else { described };
                    self.yes_no(2, "attribute", &name, format!("{does} {the} have {described}?"), truth);
                }
                None if [
                    "beard",
                    "mustache",
                    "moustache",
                    "ponytail",
                    "wing",
                    "horn",
                    "antler",
                    "braid",
                    "tattoo",
                    "antlers",
                    "horns",
                    "tentacles",
                    "mohawk",
                    "goatee",
                    "freckles",
                    "tentacle",
                ]
                .contains(&name.as_str()) =>
                {
                    let Some(some) = self.some(part) else { continue };
                    self.yes_no(3, "attribute", &name, format!("{does} {the} have {some}?"), !negated);
                }
                None => {}
            }
        }
    }
}
