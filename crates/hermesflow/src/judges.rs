//! The judges of texts and images that a configuration names.

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
