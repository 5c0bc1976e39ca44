//! Questions about where things are.

use super::*;

impl Asker<'_> {
    pub(super) fn whereabouts(&mut self) {
        let mut located: HashSet<usize> = HashSet::new();
        for relation in self.scene.relations.clone() {
            let seen = |index: &usize| {
                !["abstract", "medium", "body"].contains(&self.thing(*index).section()) && !self.thing(*index).absent
            };
            let object = self.thing(relation.object);
            if !relation.subjects.iter().all(seen)
                || object.absent
                || ["abstract", "medium", "body"].contains(&object.section())
            {
                continue;
            }
            let Some((those, plural)) = self.those(&relation.subjects) else { continue };
            let Some((the, _)) = self.those(&[relation.object]) else { continue };
            if object.section() == "place" && matches!(relation.place, Place::In | Place::At | Place::On | Place::Part)
            {
                if located.insert(relation.subjects[0]) {
                    self.location(&relation, &those, plural, &the);
                }
                continue;
            }
            self.spatial(&relation, &those, plural, &the);
        }
        for (thing, depth) in self.scene.depths.clone() {
            let section = self.thing(thing).section();
            if self.thing(thing).absent || ["abstract", "medium", "body"].contains(&section) {
                continue;
            }
            let phrase = self.thing(thing).phrase.clone();
            if let Some(the) = self.the(thing).filter(|_| phrase.article == Article::Definite) {
                self.yes_no(3, "spatial", &phrase.name, format!("{} {the} {depth}?", is_are(phrase.plural)), true);
            } else if let Some(some) = self.some(thing).filter(|_| !phrase.proper) {
                let question = format!("{} there {some} {depth}?", is_are(self.thing(thing).phrase.plural));
                let name = self.thing(thing).phrase.name.clone();
                self.yes_no(3, "spatial", &name, question, true);
            }
        }
        self.setting();
    }

    fn location(&mut self, relation: &Relation, those: &str, plural: bool, the: &str) {
        let phrase = self.thing(relation.object).phrase.clone();
        let Some(noun) = phrase.noun else { return };
        if noun.general || phrase.plural {
            return;
        }
        let (are, name) = (is_are(plural), phrase.name.clone());
        if relation.place != Place::Part {
            let wrong: Vec<String> = self.far_places(&noun);
            self.choose(1, "location", &name, format!("where {are} {those}?"), &name, wrong);
        }
        self.yes_no(5, "location", &name, format!("{are} {those} {} {the}?", relation.text), true);
    }

    /// Places that can neither be in this place nor contain it.
    fn far_places(&self, noun: &Noun) -> Vec<String> {
        let line = |word: &str| Lexicon::get().noun(word).map(|noun| noun.line);
        let same = |word: &str| line(word) == Some(noun.line);
        let near: &[&str] = match () {
            () if same("beach") || same("lake") => &["lake", "beach", "street", "forest", "desert"],
            () if same("street") => &["store", "restaurant", "theater", "museum", "forest", "beach", "train station"],
            () if same("forest") => &["lake", "street", "zoo", "tennis court", "ski slope", "desert", "beach"],
            () if same("space") => &["desert"],
            () if same("tennis court") => &["gym", "forest", "street"],
            () if same("zoo") => &["forest"],
            () if same("ski slope") => &["forest"],
            () if same("bedroom")
                || same("living room")
                || same("kitchen")
                || same("office")
                || same("dining room") =>
            {
                &["hospital", "workshop", "attic", "living room", "dining room", "office", "restaurant"]
            }
            () => &["workshop", "attic"],
        };
        let others = self.others("place", false);
        others.into_iter().filter(|other| !near.contains(&other.as_str())).collect()
    }

    fn spatial(&mut self, relation: &Relation, those: &str, plural: bool, the: &str) {
        let (are, object) = (is_are(plural), relation.object);
        let opposite = match relation.place {
            Place::On => Some("under"),
            Place::Under => Some("on top of"),
            Place::Above => Some("below"),
            Place::Front => Some("behind"),
            Place::Behind => Some("in front of"),
            Place::Left => Some("to the right of"),
            Place::Right => Some("to the left of"),
            Place::In if relation.text != "in" => Some("outside"),
            Place::In | Place::Near | Place::Part | Place::State => None,
            _ => return,
        };
        let section = self.thing(object).section();
        if relation.place == Place::Part && section != "place" && section != "building" {
            return;
        }
        let ground =
            self.thing(object).phrase.noun.is_some_and(|noun| ["sky", "air", "wall", "ground"].contains(&noun.lemma));
        let ing = relation.ing.as_deref().filter(|ing| *ing != "having");
        let element = relation.text.clone();
        let doing = ing.map(|ing| format!("{ing} ")).unwrap_or_default();
        let the = &if relation.place == Place::State {
            self.some(object).unwrap_or_else(|| the.to_string())
        } else {
            the.to_string()
        };
        let question = format!("{are} {those} {doing}{} {the}?", relation.text);
        let draws = Draws::of(self.caption, &question).below(2);
        match opposite {
            Some(opposite) if draws == 0 && !ground => {
                self.yes_no(2, "spatial", &element, format!("{are} {those} {opposite} {the}?"), false);
            }
            _ => self.yes_no(2, "spatial", &element, question, true),
        }
        // "what is the cat sitting on?"
        let phrase = &self.thing(object).phrase;
        let pool = ["furniture", "vehicle", "animal", "sport", "plant"].contains(&section)
            && phrase.noun.is_some_and(|noun| !noun.general);
        let unique = self
            .scene
            .relations
            .iter()
            .filter(|other| other.text == relation.text && other.subjects == relation.subjects)
            .count()
            == 1;
        if let Some(ing) = ing.filter(|_| {
            pool && unique
                && matches!(relation.place, Place::On | Place::Under | Place::Front | Place::Behind | Place::Near)
        }) {
            let (right, in_plural) = (self.form(object), phrase.plural);
            let wrong = self.others(section, in_plural);
            self.choose(3, "spatial", &right, format!("what {are} {those} {ing} {}?", relation.text), &right, wrong);
        }
    }

    /// Asks for the place that a caption begins with.
    fn setting(&mut self) {
        let Some(first) = self.scene.things.iter().position(|thing| !["medium", "abstract"].contains(&thing.section()))
        else {
            return;
        };
        let thing = self.thing(first);
        let Some(noun) =
            thing.phrase.noun.filter(|noun| noun.section == "place" && !noun.general && !thing.phrase.plural)
        else {
            return;
        };
        if self.scene.things.iter().filter(|thing| thing.section() == "place").count() > 1
            || thing.vague
            || thing.absent
        {
            return;
        }
        let name = thing.phrase.name.clone();
        let wrong = self.far_places(&noun);
        self.choose(1, "location", &name, "what place is shown in the picture?".into(), &name, wrong);
    }
}
