//! TEMPORARY until hermesflow-records is there.
pub use hermesflow_records::derive_seed;
use serde::{Deserialize, Serialize};
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RecordId(String);
impl AsRef<str> for RecordId {
    fn as_ref(&self) -> &str {
        &self.0
    }
}
impl From<String> for RecordId {
    fn from(s: String) -> Self {
        Self(s)
    }
}
impl std::fmt::Display for RecordId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InitialRecord {
    pub id: RecordId,
    pub img_path: String,
    pub prompt: String,
    pub caption: String,
}
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CaptionRecord {
    pub id: RecordId,
    pub img_path: String,
    pub prompt: String,
    pub caption: String,
    pub caption_mmu: Vec<String>,
}
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct QuestionRecord {
    pub id: RecordId,
    pub img_path: String,
    pub prompt: String,
    pub caption: String,
    pub element: String,
    pub question: String,
    pub choices: Vec<String>,
    pub answer: String,
}
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AnswerRecord {
    pub id: RecordId,
    pub caption: String,
    pub question_number: usize,
    pub result: Vec<f64>,
}
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PairRecord {
    pub id: RecordId,
    pub img_path: String,
    pub prompt: String,
    pub caption: String,
    pub caption_win: String,
    pub caption_lose: String,
    pub bert_score_win: f64,
    pub bert_score_lose: f64,
    pub image_win: String,
    pub image_lose: String,
    pub vqa_score_win: f64,
    pub vqa_score_lose: f64,
}
