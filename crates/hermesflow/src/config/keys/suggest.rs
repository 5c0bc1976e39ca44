//! What a key that does not exist may have been meant to be.

use super::list::Keys;
use crate::config::aliases;

/// How alike two names must be, from 0 to 1.
const ALIKE: f64 = 0.7;
/// How alike two names in different sections must be.
const VERY_ALIKE: f64 = 0.85;

impl Keys {
    /// The names of all keys and sections.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let sections = self.sections.iter().map(|section| section.name.as_str()).filter(|name| !name.is_empty());
        sections.chain(self.sections.iter().flat_map(|section| section.keys.iter().map(|key| key.name.as_str())))
    }

    /// Today's names of the keys that an unknown one may have been meant to be, the likeliest first: those of the same
    /// name in other sections, else the most alike one in the same section, else the most alike one anywhere.
    pub fn nearest(&self, unknown: &str) -> Vec<&str> {
        let unknown = unknown.replace(|character: char| character.is_ascii_digit(), "");
        let (section, name) = split(&unknown);
        // A key with the section and the name under which it may have been looked for.
        let today = self.names().map(|key| (key, split(key)));
        let earlier = self.names().flat_map(|key| aliases::of(key).map(move |alias| (key, split(alias))));
        let all: Vec<(&str, (&str, &str))> = today.chain(earlier).collect();
        let mut same: Vec<&str> = all.iter().filter(|(_, (_, known))| *known == name).map(|(key, _)| *key).collect();
        same.sort_unstable();
        same.dedup();
        if !same.is_empty() {
            return same;
        }
        let best = |least: f64, inside: &dyn Fn(&str) -> bool| {
            let alike = all.iter().filter(|(_, (place, _))| inside(place));
            let alike = alike.map(|(key, (_, known))| (strsim::jaro_winkler(known, name), *key));
            alike.filter(|(likeness, _)| *likeness > least).max_by(|(a, _), (b, _)| a.total_cmp(b))
        };
        let found = best(ALIKE, &|place| place == section).or_else(|| best(VERY_ALIKE, &|_| true));
        found.map(|(_, key)| key).into_iter().collect()
    }
}

/// A key's section and its name there.
fn split(key: &str) -> (&str, &str) {
    key.rsplit_once('.').unwrap_or(("", key))
}
