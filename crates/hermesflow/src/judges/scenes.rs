//! The judges that know the scenes world: the writer of its questions, and the oracle.

use hermesflow_records::{derive_seed, three_decimals};
use hermesflow_scenes::parse_caption;
use hermesflow_score::{Question, QuestionWriter};
use image::RgbImage;

use crate::run::stage::text_number;

/// Writes questions about everything that a caption of the scenes world says, and none about other captions.
///
/// A caption gets the same questions in every iteration.
#[derive(Debug, Clone, Copy)]
pub struct SceneWriter {
    /// The seed that decides which wrong choices are offered.
    pub seed: u64,
}

impl QuestionWriter for SceneWriter {
    fn write(&self, captions: &[&str]) -> hermesflow_score::Result<Vec<Vec<Question>>> {
        let of = |caption: &&str| {
            let seed = derive_seed(self.seed, &[text_number("ask"), text_number(caption)]);
            let questions = parse_caption(caption).map(|facts| hermesflow_scenes::picture_questions(&facts, seed));
            let without_kind = |one: hermesflow_scenes::SceneQuestion| Question {
                element: one.element,
                question: one.question,
                choices: one.choices,
                answer: one.answer,
            };
            questions.unwrap_or_default().into_iter().map(without_kind).collect()
        };
        Ok(captions.iter().map(of).collect())
    }
}

/// The share of a caption's statements that the oracle finds true of a picture, rounded to three decimals; 0 for a
/// caption that names no shape of the scenes world.
pub fn oracle(picture: &RgbImage, caption: &str) -> f64 {
    parse_caption(caption)
        .map_or(0.0, |facts| three_decimals(hermesflow_scenes::oracle::judge(picture, &facts).fact_accuracy()))
}
