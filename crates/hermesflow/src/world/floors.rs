//! Floors: what pictures amount to that were not made for their prompts. A figure of generation says something only as far as
//! it is above these.

use hermesflow_records::derive_seed;
use hermesflow_scenes::{SIDE, Split};
use image::{Rgb, RgbImage};

use super::evaluate::{EvalReport, EvalSettings, Verdict, prompt, verdict};

/// A floor.
#[derive(Debug, Clone, PartialEq)]
pub struct Floor {
    /// A short name for files.
    pub name: &'static str,
    /// What the pictures are, in words.
    pub what: &'static str,
    /// The oracle's verdict on the picture of each prompt.
    pub verdicts: Vec<Verdict>,
}

/// The names of all floors with what their pictures are, in the order of [`floors`].
pub const FLOORS: [(&str, &str); 3] = [
    ("floor-blank", "floor: blank pictures"),
    ("floor-random", "floor: random scenes"),
    ("floor-other", "floor: pictures of another prompt"),
];

/// The floors of a report about some prompts: pictures of nothing but the true background, true pictures of random scenes
/// of training, and what the report's model drew for other prompts. The last is missing where the report, of an earlier
/// version, did not look at it.
pub fn floors(report: &EvalReport) -> Vec<Floor> {
    let settings = &report.settings;
    let of = |picture: fn(&EvalSettings, usize) -> RgbImage| {
        (0..settings.prompts).map(|index| verdict(settings, index, &picture(settings, index))).collect()
    };
    let other: Option<Vec<Verdict>> = report.rows.iter().map(|row| row.other).collect();
    let verdicts = [Some(of(blank)), Some(of(random)), other];
    let named = FLOORS.into_iter().zip(verdicts);
    named.filter_map(|((name, what), verdicts)| Some(Floor { name, what, verdicts: verdicts? })).collect()
}

/// Nothing but the background of a prompt's scene.
fn blank(settings: &EvalSettings, index: usize) -> RgbImage {
    let background = prompt(settings, index).0.background.rgb();
    RgbImage::from_pixel(SIDE as u32, SIDE as u32, Rgb(background))
}

/// A scene of training that has nothing to do with the prompt.
fn random(settings: &EvalSettings, index: usize) -> RgbImage {
    hermesflow_scenes::scene(Split::Train, derive_seed(settings.seed, &[5]), index as u64).render()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::world::evaluate::PromptRow;
    use crate::world::statistics::Mean;

    fn report(prompts: usize, other: Option<Verdict>) -> EvalReport {
        let row = |index| PromptRow {
            index,
            prompt: String::new(),
            facts: vec![],
            all: false,
            by_itself: 0.0,
            answers: vec![],
            caption: (0, 0),
            caption_text: String::new(),
            under: vec![],
            other,
        };
        let settings = EvalSettings { split: Split::Dev, prompts, seed: 3 };
        EvalReport { model: "base".into(), settings, made_from: None, rows: (0..prompts).map(row).collect() }
    }

    /// Blank pictures and random scenes have some of the facts, and true pictures have all.
    #[test]
    fn floors_are_below_what_true_pictures_have() {
        let report = report(120, Some(Verdict { facts: 0.25, all: false }));
        let found = floors(&report);
        let mean = |number: usize| Mean::of(found[number].verdicts.iter().map(|verdict| verdict.facts)).mean;
        let settings = &report.settings;
        let truth = |index| verdict(settings, index, &prompt(settings, index).0.render());
        assert!((0..120).all(|index| truth(index).all));
        let (blank, random, other) = (mean(0), mean(1), mean(2));
        assert!(blank < 0.6 && random < 0.6, "{blank} {random}");
        assert!(found.iter().all(|floor| floor.verdicts.iter().filter(|verdict| verdict.all).count() < 12));
        assert_eq!((found.len(), other), (3, 0.25));
        assert_eq!(floors(&super::tests::report(2, None)).len(), 2, "an earlier report did not look at other prompts");
        assert_eq!(found.iter().map(|floor| (floor.name, floor.what)).collect::<Vec<_>>(), FLOORS);
    }
}
