//! The judges of texts and images that a configuration names.

use hermesflow_records::three_decimals;
use hermesflow_scenes::{SceneQuestion, parse_caption};
use image::RgbImage;

pub use hermesflow_score::choice::prompt;

use crate::config::TextJudge;

/// How near each candidate is to the true caption, higher is nearer.
pub fn similarities(judge: TextJudge, truth: &str, candidates: &[String]) -> Vec<f64> {
    match judge {
        TextJudge::Lexical => {
            candidates.iter().map(|candidate| hermesflow_score::lexical::similarity(truth, candidate)).collect()
        }
    }
}

/// The choice that a reply means, if any.
pub fn choice<'a>(judge: TextJudge, reply: &str, choices: &'a [String]) -> Option<&'a str> {
    match judge {
        TextJudge::Lexical => hermesflow_score::choice::choice(reply, choices),
    }
}

/// What the rule-based writer asks about a caption; nothing if it names no shape of the scenes world.
pub fn scene_questions(caption: &str, seed: u64) -> Vec<SceneQuestion> {
    parse_caption(caption).map(|facts| hermesflow_scenes::questions(&facts, seed)).unwrap_or_default()
}

/// The share of a caption's statements that the oracle sees in a picture, rounded to three decimals.
pub fn oracle(picture: &RgbImage, caption: &str) -> f64 {
    parse_caption(caption)
        .map_or(0.0, |facts| three_decimals(hermesflow_scenes::oracle::judge(picture, &facts).fact_accuracy()))
}
