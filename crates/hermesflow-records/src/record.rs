//! The records of every file of a run, as the released scripts name their fields.

use serde::{Deserialize, Serialize};

use crate::RecordId;

/// A record that others are joined to.
pub trait Identified {
    /// Its id.
    fn id(&self) -> &RecordId;
}

macro_rules! records {
    ($($(#[$doc:meta])* $name:ident { $($(#[$fdoc:meta])* $field:ident: $type:ty),+ $(,)? })+) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        pub struct $name {
            /// What joins it to the other files.
            pub id: RecordId,
            $($(#[$fdoc])* pub $field: $type),+
        }
        impl Identified for $name {
            fn id(&self) -> &RecordId {
                &self.id
            }
        }
    )+};
}

records! {
    /// `initial_data.json`: an image and its true caption.
    InitialRecord {
        /// The image, relative to the data root.
        img_path: String,
        /// The text that the image was made from.
        prompt: String,
        /// The true caption.
        caption: String,
    }

    /// `understanding_caption_results.json`: the model's captions.
    CaptionRecord {
        /// The image, relative to the data root.
        img_path: String,
        /// The text that the image was made from.
        prompt: String,
        /// The true caption.
        caption: String,
        /// The candidates, one per sampling setting.
        caption_mmu: Vec<String>,
    }

    /// `vqa_data.json`: one question about one caption.
    QuestionRecord {
        /// The image, relative to the data root.
        img_path: String,
        /// The text that the image was made from.
        prompt: String,
        /// The true caption.
        caption: String,
        /// What the question is about.
        element: String,
        /// The question.
        question: String,
        /// What may be answered.
        choices: Vec<String>,
        /// The right choice.
        answer: String,
    }

    /// `generation_vqa_results.json`: how well the images of a caption answer its questions.
    AnswerRecord {
        /// The true caption.
        caption: String,
        /// How many questions there were.
        question_number: usize,
        /// The share of right answers per image, rounded to three decimals.
        result: Vec<f64>,
    }

    /// `pair_dpo_data.json`: the best and the worst of a record.
    PairRecord {
        /// The image, relative to the data root.
        img_path: String,
        /// The text that the image was made from.
        prompt: String,
        /// The true caption.
        caption: String,
        /// The preferred caption.
        caption_win: String,
        /// The rejected caption.
        caption_lose: String,
        /// The similarity of the preferred caption.
        bert_score_win: f64,
        /// The similarity of the rejected caption.
        bert_score_lose: f64,
        /// The preferred image, relative to the data root.
        image_win: String,
        /// The rejected image, relative to the data root.
        image_lose: String,
        /// The accuracy of the preferred image.
        vqa_score_win: f64,
        /// The accuracy of the rejected image.
        vqa_score_lose: f64,
    }
}
