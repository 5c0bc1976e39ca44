//! The scenes world: procedural pictures, captions, questions, and an oracle that judges pixels.
//!
//! It behaves like a captioned photo collection at the small end: 64×64 pictures of one to four
//! coloured shapes with counts, sizes, positions and backgrounds; paraphrased captions; questions with
//! choices of TIFA's kinds; and splits by combination. The [`oracle`] has nothing to do with any
//! model: it finds the shapes of any picture from its pixels alone.

pub mod oracle;
pub mod questions;
mod render;
pub mod scene;
pub mod text;

pub use questions::{QuestionKind, SceneQuestion, picture_questions, questions};
pub use scene::{
    Background, Category, Colour, Group, Kind, Object, Relation, SIDE, Scene, Shape, Size, Split, crowd, scene,
};
pub use text::{Claim, Facts, parse_caption};

/// The question as the model is asked it, choices in Python's list notation.
pub fn prompt(question: &str, choices: &[String]) -> String {
    let quoted: Vec<String> = choices.iter().map(|choice| format!("'{choice}'")).collect();
    format!("Question:{question} Choice:[{}]", quoted.join(", "))
}

/// Lines of the world's text, to train a tokenizer on.
pub fn corpus(lines: usize, seed: u64) -> Vec<String> {
    let mut corpus = Vec::with_capacity(lines);
    let mut index = 0;
    while corpus.len() < lines {
        let scene = scene(Split::Train, seed, index);
        corpus.push(format!(" {}", scene.caption(index)));
        corpus.push(scene.caption(index + 1));
        for question in questions(&scene.facts(), index) {
            corpus.push(format!("USER: \n{} ASSISTANT:", prompt(&question.question, &question.choices)));
            corpus.push(format!(" {}", question.answer));
        }
        corpus.push("USER: \nGive a caption for this image. ASSISTANT:".into());
        index += 1;
    }
    corpus.truncate(lines);
    corpus
}
