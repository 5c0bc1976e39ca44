//! The preference rules: which candidates of a record become its pair.

use std::fmt;

use crate::{InitialRecord, PairRecord};

/// A candidate and its score.
pub type Scored = (String, f64);

/// A record with everything that competes for its pair.
#[derive(Debug, Clone)]
pub struct Candidates {
    /// The record.
    pub record: InitialRecord,
    /// Captions with their similarity to the true one.
    pub captions: Vec<Scored>,
    /// Images, by path, with their accuracy.
    pub images: Vec<Scored>,
}

/// Why a record gives no pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DropReason {
    /// The model wrote no captions.
    NoCaptions,
    /// Its images were not judged: no questions, or no images.
    NoAnswers,
    /// The best caption is no better than the worst, or says the same.
    CaptionsTie,
    /// All images are equally good.
    ImagesTie,
    /// Even the best image is not good enough.
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

/// The first of the highest and the first of the lowest.
fn extremes(candidates: &[Scored]) -> Option<(&Scored, &Scored)> {
    let first = candidates.first()?;
    let best = candidates.iter().fold(first, |best, one| if one.1 > best.1 { one } else { best });
    let worst = candidates.iter().fold(first, |worst, one| if one.1 < worst.1 { one } else { worst });
    Some((best, worst))
}

/// The pair of a record in its first round: best against worst, if both sides have a clear winner and the best
/// image's accuracy is above `min_accuracy`.
///
/// # Errors
/// Why there is none.
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

/// The pair of a record in a later round. Per side: where the new best beats the old win, it wins against that; where
/// it beats the old loser only, it wins against the old loser; else the old pair stands.
pub fn later_round(old: &PairRecord, captions: &[Scored], images: &[Scored]) -> PairRecord {
    let mut pair = old.clone();
    let win = (old.caption_win.clone(), old.bert_score_win);
    let lose = (old.caption_lose.clone(), old.bert_score_lose);
    let (win, lose) = renewed(win, lose, captions);
    // Two captions may be the same but for white space; then the old pair stands.
    if win.0.trim() != lose.0.trim() {
        (pair.caption_win, pair.bert_score_win) = win;
        (pair.caption_lose, pair.bert_score_lose) = lose;
    }
    let win = (old.image_win.clone(), old.vqa_score_win);
    let lose = (old.image_lose.clone(), old.vqa_score_lose);
    let (win, lose) = renewed(win, lose, images);
    (pair.image_win, pair.vqa_score_win) = win;
    (pair.image_lose, pair.vqa_score_lose) = lose;
    pair
}

fn renewed(win: Scored, lose: Scored, candidates: &[Scored]) -> (Scored, Scored) {
    match extremes(candidates) {
        Some((best, _)) if best.1 > win.1 => (best.clone(), win),
        Some((best, _)) if best.1 > lose.1 => (best.clone(), lose),
        _ => (win, lose),
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
        assert_eq!(pairs.iter().map(renew).collect::<Vec<_>>(), golden(&second["expected_pairs"]));
    }
}
