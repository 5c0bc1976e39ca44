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
/// Candidates of one record.
#[derive(Debug, Clone)]
pub struct Candidates {
    pub record: InitialRecord,
    pub captions: Vec<(String, f64)>,
    pub images: Vec<(String, f64)>,
}
fn extremes(c: &[(String, f64)]) -> Option<(&(String, f64), &(String, f64))> {
    let mut best = c.first()?;
    let mut worst = best;
    for x in c {
        if x.1 > best.1 {
            best = x;
        }
        if x.1 < worst.1 {
            worst = x;
        }
    }
    Some((best, worst))
}
pub fn first_round(c: &Candidates, min: f64) -> Result<PairRecord, &'static str> {
    let (cw, cl) = extremes(&c.captions).ok_or("no captions")?;
    let (iw, il) = extremes(&c.images).ok_or("no answers")?;
    if cw.1 <= cl.1 || cw.0.trim() == cl.0.trim() {
        return Err("captions tie");
    }
    if iw.1 <= il.1 {
        return Err("images tie");
    }
    if iw.1 <= min {
        return Err("best image below threshold");
    }
    let r = &c.record;
    Ok(PairRecord {
        id: r.id.clone(),
        img_path: r.img_path.clone(),
        prompt: r.prompt.clone(),
        caption: r.caption.clone(),
        caption_win: cw.0.clone(),
        caption_lose: cl.0.clone(),
        bert_score_win: cw.1,
        bert_score_lose: cl.1,
        image_win: iw.0.clone(),
        image_lose: il.0.clone(),
        vqa_score_win: iw.1,
        vqa_score_lose: il.1,
    })
}

/// Per side: (new best, old win), else (new best, old lose), else the old pair.
pub fn later_round(old: PairRecord, captions: &[(String, f64)], images: &[(String, f64)]) -> PairRecord {
    let mut new = old.clone();
    if let Some((best, _)) = extremes(captions) {
        if best.1 > old.bert_score_win && best.0.trim() != old.caption_win.trim() {
            (new.caption_lose, new.bert_score_lose) = (old.caption_win, old.bert_score_win);
            (new.caption_win, new.bert_score_win) = best.clone();
        } else if best.1 > old.bert_score_lose && best.0.trim() != old.caption_lose.trim() {
            (new.caption_win, new.bert_score_win) = best.clone();
        }
    }
    if let Some((best, _)) = extremes(images) {
        if best.1 > old.vqa_score_win {
            (new.image_lose, new.vqa_score_lose) = (old.image_win, old.vqa_score_win);
            (new.image_win, new.vqa_score_win) = best.clone();
        } else if best.1 > old.vqa_score_lose {
            (new.image_win, new.vqa_score_win) = best.clone();
        }
    }
    new
}
