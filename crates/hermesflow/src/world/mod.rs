//! What the commands take from the scenes world.

pub mod evaluate;
pub mod floors;
pub mod pretraining;
pub mod samplers;
pub mod statistics;

use hermesflow_records::derive_seed;
use hermesflow_scenes::Scene;

use crate::judges;

/// A uniform number in [0, 1) that is a function of its seed.
pub fn unit(seed: u64) -> f64 {
    (derive_seed(seed, &[]) >> 11) as f64 / (1u64 << 53) as f64
}

/// Some of the questions about a scene as the model is asked them, with their answers; with `count_all` also those
/// that only imagined pictures are asked.
pub fn training_questions(scene: &Scene, seed: u64, count: usize, count_all: bool) -> Vec<(String, String)> {
    let ask = if count_all { hermesflow_scenes::picture_questions } else { hermesflow_scenes::questions };
    let mut all = ask(&scene.facts(), seed);
    let mut chosen = Vec::with_capacity(count);
    for draw in 0..count.min(all.len()) {
        let at = derive_seed(seed, &[draw as u64]) as usize % all.len();
        let question = all.swap_remove(at);
        chosen.push((judges::prompt(&question.question, &question.choices), question.answer));
    }
    chosen
}
