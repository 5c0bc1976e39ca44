//! The judges of texts and images that a configuration names.

use image::RgbImage;

use crate::config::TextJudge;

pub use hermesflow_scenes::prompt;

pub fn scene_questions(caption: &str, seed: u64) -> Vec<hermesflow_scenes::SceneQuestion> {
    hermesflow_scenes::parse_caption(caption)
        .map(|facts| hermesflow_scenes::questions(&facts, seed))
        .unwrap_or_default()
}
pub fn choice<'a>(_judge: TextJudge, reply: &str, choices: &'a [String]) -> Option<&'a str> {
    choices.iter().find(|c| c.as_str() == reply.trim()).map(String::as_str)
}
pub fn three_decimals(x: f64) -> f64 {
    (x * 1000.0).round() / 1000.0
}
/// TEMPORARY chrF.
pub fn similarity(truth: &str, candidate: &str) -> f64 {
    use std::collections::HashMap;
    let grams = |t: &str, n: usize| {
        let c: Vec<char> = t.chars().filter(|c| !c.is_whitespace()).collect();
        let mut m: HashMap<Vec<char>, usize> = HashMap::new();
        for w in c.windows(n) {
            *m.entry(w.to_vec()).or_default() += 1;
        }
        m
    };
    let (mut p, mut r, mut k) = (0.0, 0.0, 0.0);
    for n in 1..=6 {
        let (a, b) = (grams(truth, n), grams(candidate, n));
        let hit: usize = a.iter().map(|(g, c)| (*c).min(b.get(g).copied().unwrap_or(0))).sum();
        let (ta, tb) = (a.values().sum::<usize>(), b.values().sum::<usize>());
        if ta > 0 && tb > 0 {
            p += hit as f64 / tb as f64;
            r += hit as f64 / ta as f64;
            k += 1.0;
        }
    }
    if k == 0.0 || p + r == 0.0 {
        return 0.0;
    }
    let (p, r) = (p / k, r / k);
    5.0 * p * r / (4.0 * p + r)
}

pub fn similarities(_judge: TextJudge, truth: &str, candidates: &[String]) -> Vec<f64> {
    candidates.iter().map(|candidate| similarity(truth, candidate)).collect()
}

/// The share of a caption's statements that the oracle sees in a picture, rounded to three decimals.
pub fn oracle(picture: &RgbImage, caption: &str) -> f64 {
    hermesflow_scenes::parse_caption(caption)
        .map_or(0.0, |facts| three_decimals(hermesflow_scenes::oracle::judge(picture, &facts).fact_accuracy()))
}
