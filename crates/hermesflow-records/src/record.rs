//! The records of every file of a run, as the released scripts name their fields.

use std::fmt;

use serde::de::{DeserializeOwned, Deserializer, Visitor};
use serde::{Deserialize, Serialize};

use crate::RecordId;

/// A record that others are joined to.
pub trait Identified {
    /// Its id.
    fn id(&self) -> &RecordId;
}

/// A record of one of the files.
pub trait Record: Identified + Serialize + DeserializeOwned {
    /// Reads the same JSON and refuses the same, but keeps the id alone: what it costs to look through a file.
    type Outline: Identified + DeserializeOwned;
}

/// What a field of an [`Record::Outline`] is read as.
trait Outlined {
    type As: DeserializeOwned;
}

impl Outlined for String {
    type As = SomeText;
}

impl Outlined for usize {
    type As = Self;
}

impl Outlined for f64 {
    type As = Self;
}

impl<T: Outlined> Outlined for Vec<T> {
    type As = Vec<T::As>;
}

/// A text that is not kept.
struct SomeText;

impl<'de> Deserialize<'de> for SomeText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnyText;
        impl Visitor<'_> for AnyText {
            type Value = SomeText;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_str<E>(self, _: &str) -> Result<SomeText, E> {
                Ok(SomeText)
            }
        }
        deserializer.deserialize_str(AnyText)
    }
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
        const _: () = {
            #[derive(Deserialize)]
            #[expect(dead_code, reason = "these fields are only checked")]
            pub struct Outline {
                id: RecordId,
                $($field: <$type as Outlined>::As),+
            }
            impl Identified for Outline {
                fn id(&self) -> &RecordId {
                    &self.id
                }
            }
            impl Record for $name {
                type Outline = Outline;
            }
        };
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_outline_takes_and_refuses_what_its_record_does() {
        let good = r#"{"id": 7, "caption": "a \" ü", "question_number": 1, "result": [1, 0.5], "more": null}"#;
        for (from, to) in [
            ("", ""),
            ("7", "1.5"),
            ("7", "\"a/b\""),
            ("1,", "-1,"),
            ("0.5", "\"x\""),
            ("\"a \\\" ü\"", "[\"a\"]"),
            ("\"result\"", "\"results\""),
        ] {
            let text = good.replacen(from, to, 1);
            let record = serde_json::from_str::<AnswerRecord>(&text).map(|record| record.id);
            let outline = serde_json::from_str::<<AnswerRecord as Record>::Outline>(&text);
            let outline = outline.map(|outline| outline.id().clone());
            assert_eq!(record.is_ok(), to.is_empty(), "{text}");
            let said = |result: Result<RecordId, serde_json::Error>| result.map_err(|error| error.to_string());
            assert_eq!(said(outline), said(record));
        }
    }
}
