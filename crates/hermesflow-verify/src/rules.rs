//! The preference rules in a first and in a later iteration.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use hermesflow_records::{Candidates, InitialRecord, PairRecord, RecordId, Scored, first_round, later_round};
use serde::Deserialize;
use serde_json::Value;

use crate::Result;
use crate::check::Report;
use crate::others::read;

/// The accuracy threshold of the recorded cases.
const MIN_ACCURACY: f64 = 0.6;

#[derive(Deserialize)]
struct Cases {
    records: Vec<InitialRecord>,
    #[serde(flatten)]
    candidates: CandidateLists,
    expected_pairs: Vec<Value>,
    expected_dropped: HashMap<String, String>,
    second_round: SecondRound,
}

#[derive(Deserialize)]
struct CandidateLists {
    captions: Vec<Captions>,
    answers: Vec<Answers>,
}

#[derive(Deserialize)]
struct SecondRound {
    #[serde(flatten)]
    candidates: CandidateLists,
    expected_pairs: Vec<Value>,
    expected_carried: Vec<Carried>,
}

#[derive(Deserialize)]
struct Captions {
    id: RecordId,
    caption_mmu: Vec<String>,
    similarity: Vec<f64>,
}

#[derive(Deserialize)]
struct Answers {
    id: RecordId,
    result: Vec<f64>,
}

#[derive(Deserialize)]
struct Carried {
    id: RecordId,
    side: String,
}

impl CandidateLists {
    /// The candidates of a record, joined by id. An image's name is `prefix` and its number.
    fn of(&self, id: &RecordId, prefix: &str) -> (Vec<Scored>, Vec<Scored>) {
        let captions = self.captions.iter().find(|captions| captions.id == *id);
        let captions = captions.map_or(vec![], |c| c.caption_mmu.iter().cloned().zip(c.similarity.clone()).collect());
        let answers = self.answers.iter().find(|answers| answers.id == *id);
        let named = |(number, accuracy): (usize, &f64)| (format!("{prefix}{number}"), *accuracy);
        (captions, answers.map_or(vec![], |answers| answers.result.iter().enumerate().map(named).collect()))
    }
}

pub(crate) fn replay(folder: &Path, report: &mut Report) -> Result<()> {
    let cases: Cases = read(&folder.join("pairs.json"))?;
    let (mut pairs, mut dropped) = (Vec::new(), BTreeMap::new());
    for record in &cases.records {
        let (captions, images) = cases.candidates.of(&record.id, "");
        match first_round(&Candidates { record: record.clone(), captions, images }, MIN_ACCURACY) {
            Ok(pair) => pairs.push(pair),
            Err(reason) => {
                dropped.insert(record.id.to_string(), reason.to_string());
            }
        }
    }
    report.within("first round: pairs (differing)", differing(&pairs, &cases.expected_pairs), 0.0);
    // Reasons may be worded differently, but records with equal reasons must have equal recorded reasons.
    let mut wrong = dropped.len().abs_diff(cases.expected_dropped.len());
    let mut meaning: HashMap<&String, &String> = HashMap::new();
    for (id, reason) in &dropped {
        match cases.expected_dropped.get(id) {
            Some(expected) => wrong += usize::from(*meaning.entry(reason).or_insert(expected) != expected),
            None => wrong += 1,
        }
    }
    let groups = |reasons: &mut dyn Iterator<Item = &String>| reasons.collect::<std::collections::HashSet<_>>().len();
    wrong += groups(&mut dropped.values()).abs_diff(groups(&mut cases.expected_dropped.values()));
    report.within("first round: dropped records (differing)", wrong as f64, 0.0);

    let second = &cases.second_round;
    let renewed: Vec<PairRecord> = pairs
        .iter()
        .map(|old| {
            let (captions, images) = second.candidates.of(&old.id, "iter2/");
            later_round(old, &captions, &images)
        })
        .collect();
    report.within("second round: pairs (differing)", differing(&renewed, &second.expected_pairs), 0.0);
    let mut carried: Vec<(String, &str)> = Vec::new();
    for (old, new) in pairs.iter().zip(&renewed) {
        let captions = (&old.caption_win, &old.caption_lose) == (&new.caption_win, &new.caption_lose);
        let images = (&old.image_win, &old.image_lose) == (&new.image_win, &new.image_lose);
        match (captions, images) {
            (true, true) => carried.push((old.id.to_string(), "both")),
            (true, false) => carried.push((old.id.to_string(), "understanding")),
            (false, true) => carried.push((old.id.to_string(), "generation")),
            (false, false) => {}
        }
    }
    let expected: Vec<(String, &str)> =
        second.expected_carried.iter().map(|carried| (carried.id.to_string(), carried.side.as_str())).collect();
    report.equal("second round: carried over (differing)", &carried, &expected);
    Ok(())
}

/// The number of pairs that differ in any field; images are compared by name.
fn differing(ours: &[PairRecord], recorded: &[Value]) -> f64 {
    let same = |ours: &PairRecord, recorded: &Value| -> bool {
        let Ok(Value::Object(ours)) = serde_json::to_value(ours) else { return false };
        let Value::Object(recorded) = recorded else { return false };
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        ours.len() == recorded.len()
            && ours.iter().all(|(key, value)| match (recorded.get(key), key.starts_with("image_")) {
                (Some(recorded), true) => text(value) == text(recorded),
                (Some(recorded), false) => match (value.as_f64(), recorded.as_f64()) {
                    (Some(a), Some(b)) => (a - b).abs() < 1e-9,
                    _ => value == recorded,
                },
                (None, _) => false,
            })
    };
    let wrong = ours.iter().zip(recorded).filter(|(ours, recorded)| !same(ours, recorded)).count();
    (wrong + ours.len().abs_diff(recorded.len())) as f64
}
