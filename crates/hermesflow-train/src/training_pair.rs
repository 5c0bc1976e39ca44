//! The pairs that a training reads, and how much each counts.

use serde::Serialize;

use crate::draws::MaskStates;
use crate::own_image::OwnImage;
use crate::pair_settings::{PairDpoSettings, Sides};
use crate::{Error, Result};

/// One record, ready for training: its texts as records hold them, its own image as the model understands it, and its
/// generated images as codes of the image tokenizer.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct TrainingPair {
    /// The record's id.
    pub id: String,
    /// The record's own image, which the captions describe.
    pub image: OwnImage,
    /// The question that the captions were sampled for.
    pub question: String,
    /// The record's caption, from which the images were generated.
    pub caption: String,
    /// The preferred caption.
    pub caption_win: String,
    /// The rejected caption.
    pub caption_lose: String,
    /// The codes of the preferred image.
    pub image_win: Vec<u32>,
    /// The codes of the rejected image.
    pub image_lose: Vec<u32>,
    /// How much better the win of captions was judged than the loser, then that of images: the difference of their scores.
    /// Stored only where pairs are weighted by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub margins: Option<[f64; 2]>,
    /// The denoising step, from 0, in which each code of the preferred and of the rejected image was drawn. Stored only where
    /// images are scored in the states that were visited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<[Vec<u32>; 2]>,
}

/// For each pair, the margins of both sides, divided by their means over all pairs.
pub(crate) fn by_margin(pairs: &[TrainingPair], sides: Sides) -> Result<Vec<[f32; 2]>> {
    let mut means = [0.0; 2];
    for pair in pairs {
        let problem = |problem: String| Error::TrainingPair { id: pair.id.clone(), problem };
        let margins = pair.margins.ok_or_else(|| problem("nothing says how much better its win was judged".into()))?;
        for ((mean, margin), side) in means.iter_mut().zip(margins).zip(["captions", "images"]) {
            if !(margin.is_finite() && margin >= 0.0) {
                return Err(problem(format!(
                    "its {side} differ by {margin} in their scores; a win has the higher one"
                )));
            }
            *mean += margin / pairs.len() as f64;
        }
    }
    let used = [sides.understanding(), sides.generation()];
    for ((mean, used), side) in means.iter().zip(used).zip(["captions", "images"]) {
        if used && *mean == 0.0 {
            let problem = format!("no pair of {side} differs in its scores, so that none would count");
            return Err(Error::Setting { key: "weights", problem });
        }
    }
    let weight = |margin: f64, mean: f64| if mean == 0.0 { 1.0 } else { (margin / mean) as f32 };
    let margins = pairs.iter().filter_map(|pair| pair.margins);
    Ok(margins.map(|[und, r#gen]| [weight(und, means[0]), weight(r#gen, means[1])]).collect())
}

/// Refuses a pair that lacks what it is trained on.
pub(crate) fn check(pair: &TrainingPair, settings: &PairDpoSettings, masked: bool) -> Result<()> {
    let sides = settings.sides;
    let problem = |problem: String| Err(Error::TrainingPair { id: pair.id.clone(), problem });
    if sides.understanding() && pair.image.is_empty() {
        return problem("its own image is neither encoded nor read".into());
    }
    let (win, lose) = (pair.image_win.len(), pair.image_lose.len());
    if sides.generation() && (win == 0 || win != lose) {
        return problem(format!("the winning image has {win} codes, the losing one {lose}"));
    }
    if sides.generation() && masked && settings.masks == MaskStates::Visited {
        let known = pair.steps.as_ref().is_some_and(|steps| steps.iter().all(|steps| steps.len() == win));
        if !known {
            return problem("nothing says in which step each code of its images was drawn".into());
        }
    }
    Ok(())
}
