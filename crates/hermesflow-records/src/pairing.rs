//! The preference rules: which candidates of a record become its pair.

use std::fmt;

use crate::{InitialRecord, PairRecord};

/// A candidate (a caption, or the path of an image) and its score.
pub type Scored = (String, f64);

/// A record with everything that competes for its pair.
#[derive(Debug, Clone)]
pub struct Candidates {
    /// The record.
    pub record: InitialRecord,
    /// The captions, with their similarity to the true one.
    pub captions: Vec<Scored>,
    /// The paths of the images, with their accuracy from 0 to 1.
    pub images: Vec<Scored>,
}

/// Why a record gives no pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DropReason {
    /// The model wrote no captions, for example because the image cannot be read.
    NoCaptions,
    /// The images have no scores, because there are no questions or no images.
    NoAnswers,
    /// The best and the worst caption have equal scores or the same text.
    CaptionsTie,
    /// All images have equal scores.
    ImagesTie,
    /// The score of the best image is not above the threshold.
    BestImageBelowThreshold,
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoCaptions => "no captions",
            Self::NoAnswers => "no answers",
            Self::CaptionsTie => "captions tie",
            Self::ImagesTie => "images tie",
            Self::BestImageBelowThreshold => "best image below threshold",
        })
    }
}

/// A score rounded to three decimals, ties to even, as Python's `round` does.
pub fn three_decimals(score: f64) -> f64 {
    format!("{score:.3}").parse().unwrap_or(score)
}

/// The best and the worst image of a record by two judges, with their accuracies. Images are ranked by accuracy and by a
/// `second` score, and the highest and the lowest sum of both ranks win and lose (the first of equal ones). If the best
/// image by this sum is not more accurate than the worst, the judges disagree, and the best is returned twice: a tie.
pub fn ranked(images: &[Scored], second: &[f64]) -> Vec<Scored> {
    let accuracies: Vec<f64> = images.iter().map(|image| image.1).collect();
    let sums: Vec<f64> = ranks(&accuracies).into_iter().zip(ranks(second)).map(|(a, b)| a + b).collect();
    let known = || (0..sums.len()).filter(|&at| !sums[at].is_nan());
    let first_of = |better: fn(f64, f64) -> bool| {
        known().fold(None, |best: Option<usize>, at| match best {
            Some(best) if !better(sums[at], sums[best]) => Some(best),
            _ => Some(at),
        })
    };
    let (Some(best), Some(worst)) = (first_of(|a, b| a > b), first_of(|a, b| a < b)) else { return Vec::new() };
    let agree = images[best].1 > images[worst].1;
    vec![images[best].clone(), images[if agree { worst } else { best }].clone()]
}

/// The rank of each score, from 0 for the lowest. Equal scores share the mean of their ranks; NaN has the rank NaN.
fn ranks(scores: &[f64]) -> Vec<f64> {
    let rank = |score: &f64| {
        let lower = scores.iter().filter(|other| *other < score).count() as f64;
        let equal = scores.iter().filter(|other| *other == score).count() as f64;
        if score.is_nan() { f64::NAN } else { lower + (equal - 1.0) / 2.0 }
    };
    scores.iter().map(rank).collect()
}

/// The first candidate of the highest and the first of the lowest score. Scores that are NaN are ignored.
fn extremes(candidates: &[Scored]) -> Option<(&Scored, &Scored)> {
    let mut candidates = candidates.iter().filter(|one| !one.1.is_nan());
    let first = candidates.next()?;
    let (mut best, mut worst) = (first, first);
    for one in candidates {
        if one.1 > best.1 {
            best = one;
        }
        if one.1 < worst.1 {
            worst = one;
        }
    }
    Some((best, worst))
}

/// The pair of a record in its first iteration: the best candidate against the worst, if both sides have a clear winner
/// and the best image's accuracy is above `min_accuracy`.
///
/// # Errors
/// Why the record gives no pair.
pub fn first_round(candidates: &Candidates, min_accuracy: f64) -> Result<PairRecord, DropReason> {
    let (caption_win, caption_lose) = extremes(&candidates.captions).ok_or(DropReason::NoCaptions)?;
    let (image_win, image_lose) = extremes(&candidates.images).ok_or(DropReason::NoAnswers)?;
    if caption_win.1 <= caption_lose.1 || caption_win.0.trim() == caption_lose.0.trim() {
        return Err(DropReason::CaptionsTie);
    }
    if image_win.1 <= image_lose.1 {
        return Err(DropReason::ImagesTie);
    }
    if image_win.1 <= min_accuracy {
        return Err(DropReason::BestImageBelowThreshold);
    }
    let InitialRecord { id, img_path, prompt, caption } = candidates.record.clone();
    let ((caption_win, bert_score_win), (caption_lose, bert_score_lose)) = (caption_win.clone(), caption_lose.clone());
    let ((image_win, vqa_score_win), (image_lose, vqa_score_lose)) = (image_win.clone(), image_lose.clone());
    Ok(PairRecord {
        id,
        img_path,
        prompt,
        caption,
        caption_win,
        caption_lose,
        bert_score_win,
        bert_score_lose,
        image_win,
        image_lose,
        vqa_score_win,
        vqa_score_lose,
    })
}

/// The pair of a record in a later iteration. On each side, a new best that beats the old winner becomes the winner
/// against it; one that beats only the old loser becomes the winner against the old loser; otherwise the old pair
/// stays. The old captions also stay if the new two have the same text, which expresses no preference.
pub fn later_round(old: &PairRecord, captions: &[Scored], images: &[Scored]) -> PairRecord {
    let mut pair = old.clone();
    let win = (old.caption_win.clone(), old.bert_score_win);
    let lose = (old.caption_lose.clone(), old.bert_score_lose);
    let new = renewed(win, lose, captions).filter(|(win, lose)| win.0.trim() != lose.0.trim());
    if let Some((win, lose)) = new {
        (pair.caption_win, pair.bert_score_win) = win;
        (pair.caption_lose, pair.bert_score_lose) = lose;
    }
    let win = (old.image_win.clone(), old.vqa_score_win);
    let lose = (old.image_lose.clone(), old.vqa_score_lose);
    if let Some((win, lose)) = renewed(win, lose, images) {
        (pair.image_win, pair.vqa_score_win) = win;
        (pair.image_lose, pair.vqa_score_lose) = lose;
    }
    pair
}

/// The new winner and loser, if the best candidate beats either of the old ones.
fn renewed(win: Scored, lose: Scored, candidates: &[Scored]) -> Option<(Scored, Scored)> {
    match extremes(candidates)?.0 {
        best if best.1 > win.1 => Some((best.clone(), win)),
        best if best.1 > lose.1 => Some((best.clone(), lose)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::collections::HashMap;

    use serde_json::Value;

    /// Candidates by id: captions with their similarities, images named by number.
    fn candidates(
        captions: &Value,
        answers: &Value,
        image: impl Fn(usize) -> String,
    ) -> HashMap<u64, [Vec<Scored>; 2]> {
        let mut all: HashMap<u64, [Vec<Scored>; 2]> = HashMap::new();
        for one in captions.as_array().unwrap() {
            let texts = one["caption_mmu"].as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned());
            let scores = one["similarity"].as_array().unwrap().iter().map(|score| score.as_f64().unwrap());
            all.entry(one["id"].as_u64().unwrap()).or_default()[0] = texts.zip(scores).collect();
        }
        for one in answers.as_array().unwrap() {
            let scores = one["result"].as_array().unwrap().iter().map(|score| score.as_f64().unwrap());
            all.entry(one["id"].as_u64().unwrap()).or_default()[1] =
                scores.enumerate().map(|(number, score)| (image(number), score)).collect();
        }
        all
    }

    /// The golden pairs name first-round images by bare numbers.
    fn golden(pairs: &Value) -> Vec<PairRecord> {
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let mut pairs = pairs.clone();
        for pair in pairs.as_array_mut().unwrap() {
            for side in ["image_win", "image_lose"] {
                pair[side] = text(&pair[side]).into();
            }
        }
        serde_json::from_value(pairs).unwrap()
    }

    #[test]
    fn both_rounds_match_the_worked_cases() {
        let case: Value = serde_json::from_str(include_str!("../tests/fixtures/pairs.json")).unwrap();
        let records: Vec<InitialRecord> = serde_json::from_value(case["records"].clone()).unwrap();
        let all = candidates(&case["captions"], &case["answers"], |number| number.to_string());
        let (mut pairs, mut dropped) = (Vec::new(), serde_json::Map::new());
        for record in records {
            let id = record.id.to_string();
            let [captions, images] = all.get(&id.parse().unwrap()).cloned().unwrap_or_default();
            match first_round(&Candidates { record, captions, images }, 0.6) {
                Ok(pair) => pairs.push(pair),
                Err(reason) => drop(dropped.insert(id, reason.to_string().into())),
            }
        }
        assert_eq!(pairs, golden(&case["expected_pairs"]));
        assert_eq!(Value::Object(dropped), case["expected_dropped"]);

        let second = &case["second_round"];
        let all = candidates(&second["captions"], &second["answers"], |number| format!("iter2/{number}"));
        let renew = |old: &PairRecord| {
            let [captions, images] = all.get(&old.id.as_str().parse().unwrap()).cloned().unwrap_or_default();
            later_round(old, &captions, &images)
        };
        let second_pairs: Vec<PairRecord> = pairs.iter().map(renew).collect();
        assert_eq!(second_pairs, golden(&second["expected_pairs"]));
        let carried = pairs.iter().zip(&second_pairs).filter_map(|(old, new)| {
            let captions = (&old.caption_win, &old.caption_lose) == (&new.caption_win, &new.caption_lose);
            let images = (&old.image_win, &old.image_lose) == (&new.image_win, &new.image_lose);
            let side = match (captions, images) {
                (true, true) => "both",
                (true, false) => "understanding",
                (false, true) => "generation",
                (false, false) => return None,
            };
            Some(serde_json::json!({ "id": new.id, "side": side }))
        });
        assert_eq!(Value::Array(carried.collect()), second["expected_carried"]);
    }

    fn scored(candidates: &[(&str, f64)]) -> Vec<Scored> {
        candidates.iter().map(|(name, score)| ((*name).to_string(), *score)).collect()
    }

    fn competing(captions: &[(&str, f64)], images: &[(&str, f64)]) -> Candidates {
        let record = InitialRecord { id: 1u64.into(), img_path: "i".into(), prompt: "p".into(), caption: "c".into() };
        Candidates { record, captions: scored(captions), images: scored(images) }
    }

    #[test]
    fn the_threshold_itself_is_not_enough() {
        let competing = competing(&[("a", 0.2), ("b", 0.1)], &[("0", 0.6), ("1", 0.5)]);
        assert_eq!(first_round(&competing, 0.6), Err(DropReason::BestImageBelowThreshold));
        assert!(first_round(&competing, 0.59).is_ok());
    }

    #[test]
    fn a_score_that_is_no_number_neither_wins_nor_loses() {
        let captions = [("a", f64::NAN), ("b", 0.1), ("c", 0.2), ("d", f64::NAN)];
        let pair = first_round(&competing(&captions, &[("0", 1.0), ("1", 0.0)]), 0.6).unwrap();
        assert_eq!((pair.caption_win.as_str(), pair.caption_lose.as_str()), ("c", "b"));
        let none = first_round(&competing(&captions[..1], &[("0", 1.0), ("1", 0.0)]), 0.6);
        assert_eq!(none, Err(DropReason::NoCaptions));
    }

    #[test]
    fn two_judges_rank_together() {
        let images = |scores: &[f64]| -> Vec<Scored> {
            scores.iter().enumerate().map(|(number, score)| (number.to_string(), *score)).collect()
        };
        let said = |scores: &[f64], second: &[f64]| -> Vec<String> {
            ranked(&images(scores), second).into_iter().map(|image| image.0).collect()
        };
        // Ranks 2, 3, 0.5, 0.5 and 3, 1, 2, 0: sums 5, 4, 2.5, 0.5.
        assert_eq!(said(&[0.8, 0.9, 0.5, 0.5], &[-1.0, -3.0, -2.0, -4.0]), ["0", "3"]);
        // A single accuracy for all: the second judge alone gives no pair.
        assert_eq!(said(&[0.5; 3], &[-1.0, -2.0, -3.0]), ["0", "0"]);
        assert_eq!(said(&[0.7, 0.6], &[-2.0, -1.0]), ["0", "0"], "they disagree");
        assert_eq!(said(&[f64::NAN, 0.6, 0.7], &[-1.0, -2.0, -1.5]), ["2", "1"]);
        assert!(said(&[], &[]).is_empty());
        let pair = first_round(
            &Candidates {
                images: ranked(&images(&[0.7, 0.65, 0.1]), &[-2.0, -1.0, -3.0]),
                ..competing(&[("a", 0.5), ("b", 0.1)], &[])
            },
            0.6,
        );
        let pair = pair.unwrap();
        assert_eq!((pair.image_win.as_str(), pair.vqa_score_win, pair.image_lose.as_str()), ("0", 0.7, "2"));
        let tie = Candidates {
            images: ranked(&images(&[0.7, 0.7]), &[-2.0, -1.0]),
            ..competing(&[("a", 0.5), ("b", 0.1)], &[])
        };
        assert_eq!(first_round(&tie, 0.6), Err(DropReason::ImagesTie));
    }

    #[test]
    fn a_later_caption_that_says_the_same_is_no_winner() {
        let old = first_round(&competing(&[("a", 0.5), ("b", 0.1)], &[("0", 1.0), ("1", 0.0)]), 0.6).unwrap();
        let renewed = later_round(&old, &scored(&[(" b ", 0.3)]), &scored(&[("2", 0.5)]));
        assert_eq!((renewed.caption_win.as_str(), renewed.caption_lose.as_str()), ("a", "b"));
        assert_eq!((renewed.image_win.as_str(), renewed.image_lose.as_str()), ("2", "1"));
    }

    #[test]
    fn scores_are_rounded_as_python_rounds_them() {
        let cases = [(2.0 / 3.0, 0.667), (1.0 / 16.0, 0.062), (3.0 / 16.0, 0.188), (0.0005, 0.001), (1.0, 1.0)];
        for (score, expected) in cases {
            assert_eq!(three_decimals(score), expected, "{score}");
        }
    }
}
