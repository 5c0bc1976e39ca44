//! The scenes world: procedurally drawn pictures with captions and questions, and an oracle that judges pictures by
//! their pixels.
//!
//! It stands in for a small captioned photo collection: 64×64 pictures of one to four coloured shapes that differ in
//! number, size, position and background; paraphrased captions; multiple-choice questions of the kinds of TIFA (arXiv
//! 2303.11897); and train, dev and held-out splits that share no combination of objects. The [`oracle`] involves no
//! model: it finds the shapes of any picture from its pixels alone.

pub mod oracle;
pub mod questions;
mod render;
pub mod scene;
pub mod text;

pub use questions::{QuestionKind, SceneQuestion, picture_questions, questions};
pub use scene::{
    Background, Category, Colour, Group, Object, Relation, SIDE, Scene, SceneKind, Shape, Size, Split, crowd, scene,
};
pub use text::{Claim, Facts, parse_caption};

/// The text of a multiple-choice question as the model is asked it: `Question:… Choice:['a', 'b']`, the choices as a
/// list in Python's notation.
fn prompt(question: &str, choices: &[String]) -> String {
    let quoted: Vec<String> = choices.iter().map(|choice| format!("'{choice}'")).collect();
    format!("Question:{question} Choice:[{}]", quoted.join(", "))
}

/// `lines` lines of text of this world to train a text tokenizer on: captions, questions with their choices, and
/// answers. The same `seed` gives the same lines.
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
