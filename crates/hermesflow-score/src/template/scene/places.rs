//! What prepositions lead to: places, clothes, parts, contents.

use super::{Builder, Expected, Relation};
use crate::template::lexicon::Verb;
use crate::template::phrases::Place;

impl Builder {
    /// Handles the noun phrase that follows a preposition.
    pub(super) fn place(&mut self, text: &str, place: Place, index: usize, joined: bool) {
        let section = self.scene.things[index].section();
        let clothing = section == "clothing" || (self.scene.things[index].phrase.name.ends_with("armor"));
        let subject_lives = |builder: &Self, subject: usize| builder.scene.things[subject].lives();
        match place {
            Place::Absent => {
                self.scene.things[index].absent = text == "without";
                self.scene.things[index].vague = true;
                self.unreal = text != "without";
            }
            Place::Of => self.of(index),
            Place::Made => {
                self.scene.things[index].vague = true;
                let made = self.last.or(self.subjects.last().copied());
                self.scene.made.extend(made.map(|made| (made, index)));
            }
            Place::In if clothing => {
                let wearer =
                    self.last.into_iter().chain(self.subjects.iter().copied()).find(|one| subject_lives(self, *one));
                self.scene.worn.extend(wearer.map(|wearer| (wearer, index)));
            }
            Place::With => {
                if let Some(activity) = self.activity.filter(|_| !joined) {
                    let doing = &mut self.scene.activities[activity];
                    if doing.object.is_none() && doing.tail.is_none() {
                        doing.tail = Some((text.to_string(), index));
                    }
                }
                let body = ["body", "clothing"].contains(&section);
                let owner = match (self.last, self.subjects.first()) {
                    (Some(last), _) if self.role == Expected::Subject || self.scene.things[last].lives() => Some(last),
                    (_, Some(first)) if body && subject_lives(self, *first) => Some(*first),
                    (last, _) => last,
                };
                if let Some(owner) = owner.filter(|owner| *owner != index && !joined || body) {
                    self.scene.parts.push((owner, index));
                    if section == "body" {
                        self.scene.things[index].owner = Some(owner);
                    }
                }
            }
            _ => self.relation(text, place, index, joined),
        }
    }

    fn relation(&mut self, text: &str, place: Place, index: usize, joined: bool) {
        if joined {
            return; // "next to a table and a chair": the second one is not surely there
        }
        let location = self.scene.things[index].section() == "place";
        let beside = matches!(place, Place::Near | Place::Front | Place::Behind | Place::Left | Place::Right);
        let (subjects, ing) = match self.activity {
            Some(activity) => {
                let doing = &mut self.scene.activities[activity];
                let first = doing.object.is_none() && doing.tail.is_none();
                if first {
                    doing.tail = Some((text.to_string(), index));
                }
                let known = doing.verb.is_some();
                let (subjects, ing) = (doing.subjects.clone(), doing.ing.clone());
                let still = matches!(doing.verb, Some(Verb::Still | Verb::Move));
                if first && (still || location) && known {
                    (subjects, Some(ing))
                } else if location && matches!(place, Place::In | Place::At | Place::On) || (beside && still) {
                    (subjects, None)
                } else {
                    return;
                }
            }
            None => match self.last {
                Some(_) if self.role == Expected::Subject || self.role == Expected::Told => {
                    let state = place == Place::State;
                    (if state { self.last.into_iter().collect() } else { self.subjects.clone() }, None)
                }
                Some(last) => {
                    let role = self.role.clone();
                    let listed =
                        matches!(role, Expected::Place(_, Place::With)) && self.scene.things[last].section() == "food";
                    let state = matches!(role, Expected::Place(_, Place::State)) || listed;
                    let passing =
                        state || ["clothing", "body", "place", "abstract"].contains(&self.scene.things[last].section());
                    if passing && (self.subjects.is_empty() || !location && !beside && !state) {
                        return;
                    }
                    (if passing { self.subjects.clone() } else { vec![last] }, None)
                }
                None => return,
            },
        };
        if subjects.is_empty() || subjects.contains(&index) {
            return;
        }
        self.scene.relations.push(Relation { subjects, ing, text: text.to_string(), place, object: index });
    }

    fn of(&mut self, index: usize) {
        let Some(last) = self.last else { return };
        let (of, name) = (self.scene.things[last].section(), self.scene.things[last].phrase.name.clone());
        match of {
            "medium" | "abstract" => {
                // "a painting of a cat": the cat is what it is about.
                self.subjects = vec![index];
                self.activity = None;
                self.expected = Expected::Subject;
                if self.scene.things[index].section() == "medium" {
                    self.scene.things[index].vague = true;
                }
            }
            "vessel" => self.scene.things[last].content = Some(index),
            "place" => {}
            _ if ["bouquet", "field"].contains(&name.as_str()) => {}
            _ => {
                // "a statue of a man": there is no man.
                self.scene.things[index].vague = true;
                self.scene.things[last].vague |= self.scene.things[last].phrase.noun.is_none_or(|noun| noun.general)
                    && self.scene.things[last].section() != "building";
            }
        }
    }
}
