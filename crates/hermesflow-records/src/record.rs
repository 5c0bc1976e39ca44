//! The records of all files of a run. Fields have the names that the released scripts use.

use std::fmt;

use serde::de::{DeserializeOwned, Deserializer, Visitor};
use serde::{Deserialize, Serialize};

use crate::RecordId;

/// A record that can be joined to others.
pub trait Identified {
    /// The record's id.
    fn id(&self) -> &RecordId;
}

/// A record of one of the files of a run.
pub trait Record: Identified + Serialize + DeserializeOwned {
    /// Accepts and rejects the same JSON as the record but keeps only the id, so that indexing a file costs little
    /// memory.
    type Outline: Identified + DeserializeOwned;
}

/// The type that a field of a [`Record::Outline`] is read as.
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

impl<T: Outlined> Outlined for Option<T> {
    type As = Option<T::As>;
}

/// A string that is not kept.
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
            /// The id, by which the record is joined to those of other files.
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
    /// A record of `initial_data.json`: an image and its true caption.
    InitialRecord {
        /// The path of the image, relative to the data root.
        img_path: String,
        /// The text that the image was generated from.
        prompt: String,
        /// The true caption.
        caption: String,
    }

    /// A record of `understanding_caption_results.json`: the model's captions of an image.
    CaptionRecord {
        /// The path of the image, relative to the data root.
        img_path: String,
        /// The text that the image was generated from.
        prompt: String,
        /// The true caption.
        caption: String,
        /// The model's captions, one per sampling setting.
        caption_mmu: Vec<String>,
    }

    /// A record of `vqa_data.json`: one question about one caption.
    QuestionRecord {
        /// The path of the image, relative to the data root.
        img_path: String,
        /// The text that the image was generated from.
        prompt: String,
        /// The true caption.
        caption: String,
        /// The word or phrase of the caption that the question is about.
        element: String,
        /// The question, without its choices.
        question: String,
        /// The answers to choose from.
        choices: Vec<String>,
        /// The right answer, which is one of the choices.
        answer: String,
    }

    /// A record of `generation_vqa_results.json`: how many questions about a caption the images generated from it
    /// answer rightly.
    AnswerRecord {
        /// The true caption.
        caption: String,
        /// The number of questions.
        question_number: usize,
        /// The share of right answers of each image, rounded to three decimals.
        result: Vec<f64>,
        /// The caption's log-probability given each image, per token, where it was asked.
        #[serde(skip_serializing_if = "Option::is_none")]
        caption_log_prob: Option<Vec<f64>>,
    }

    /// A record of `generation_vqa_replies.json`: what the model answered about each image, for people to read.
    ReplyRecord {
        /// The replies about each image, in the order of the record's questions; empty where `answer.score: probability`
        /// asks for none.
        replies: Vec<Vec<String>>,
        /// What each question added to the score of each image: 0 for a wrong answer.
        counts: Vec<Vec<f64>>,
    }

    /// A record of `pair_dpo_scores.json`: the scores of everything that competed for a pair, and what became of it.
    ScoreRecord {
        /// What became of the record: `pair`, `carried over`, or the reason why it gives no pair.
        outcome: String,
        /// The similarity of each caption; `null` where it is not a number.
        captions: Vec<Option<f64>>,
        /// The accuracy of each image; `null` where it is not a number.
        images: Vec<Option<f64>>,
    }

    /// A record of `pair_dpo_data.json`: the preferred and the rejected caption and image of a record.
    PairRecord {
        /// The path of the image, relative to the data root.
        img_path: String,
        /// The text that the image was generated from.
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
        /// The path of the preferred image, relative to the data root.
        image_win: String,
        /// The path of the rejected image, relative to the data root.
        image_lose: String,
        /// The accuracy of the preferred image.
        vqa_score_win: f64,
        /// The accuracy of the rejected image.
        vqa_score_lose: f64,
    }
}

impl ScoreRecord {
    /// The outcome of a record that gave a pair.
    pub const PAIR: &'static str = "pair";
    /// The outcome of a record whose pair of the iteration before stays as it is.
    pub const CARRIED: &'static str = "carried over";
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
