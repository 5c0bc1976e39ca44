//! The records of every file of a run, as the released scripts name their fields.

use std::fmt;
use std::hash::{Hash, Hasher};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What joins the files of a run: a text or a number, written back as it was read.
#[derive(Debug, Clone)]
pub struct RecordId {
    text: String,
    number: bool,
}

impl RecordId {
    /// The id as text; it names the record's folder of images.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Why this id cannot name a folder, if so.
    fn problem(&self) -> Option<&'static str> {
        match self.text.as_str() {
            "" | "." | ".." => Some("the id names no folder"),
            text if text.contains(['/', '\\', '\0']) => Some("the id holds a path separator"),
            _ => None,
        }
    }
}

impl PartialEq for RecordId {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for RecordId {}

impl Hash for RecordId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}

impl From<&str> for RecordId {
    fn from(text: &str) -> Self {
        Self { text: text.into(), number: false }
    }
}

impl fmt::Display for RecordId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Serialize for RecordId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.text.parse::<i64>() {
            Ok(number) if self.number => serializer.serialize_i64(number),
            _ => serializer.serialize_str(&self.text),
        }
    }
}

impl<'de> Deserialize<'de> for RecordId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Number(i64),
            Text(String),
        }
        let id = match Either::deserialize(deserializer) {
            Ok(Either::Number(number)) => Self { text: number.to_string(), number: true },
            Ok(Either::Text(text)) => Self { text, number: false },
            Err(_) => return Err(serde::de::Error::custom("the id is neither a text nor a whole number")),
        };
        match id.problem() {
            Some(problem) => Err(serde::de::Error::custom(problem)),
            None => Ok(id),
        }
    }
}

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
