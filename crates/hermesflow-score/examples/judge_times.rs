//! Times the judges with weights record by record, at the pace of whoever asks: the other half of `benches/judges.py`.
//!
//! `judge_times BERT SENTENCE_BERT` loads two model folders and says `ready`. Every line of standard input is a JSON
//! record, `{"reference": …, "candidates": […]}` or `{"replies": [[reply, [choice, …]], …]}`; the answer is a line with
//! the seconds that it took and the similarities or the numbers of the choices.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, Write};
use std::path::Path;
use std::time::Instant;

use candle_core::Device;
use hermesflow_nn::weights::FileBacked;
use hermesflow_score::neural::{Bert, SentenceBert};
use hermesflow_score::{CaptionSimilarity, ChoiceMatcher, Choosing};
use mimalloc::MiMalloc;
use serde::Deserialize;
use serde_json::json;

#[global_allocator]
static ALLOCATOR: FileBacked<MiMalloc> = FileBacked(MiMalloc);

#[derive(Deserialize)]
#[serde(untagged)]
enum Record {
    Captions { reference: String, candidates: Vec<String> },
    Replies { replies: Vec<(String, Vec<String>)> },
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, bert, sentence_bert] = arguments.as_slice() else { panic!("judge_times BERT SENTENCE_BERT") };
    let bert = Bert::load(Path::new(bert), &Device::Cpu).unwrap();
    let sentence_bert = SentenceBert::load(Path::new(sentence_bert), &Device::Cpu).unwrap();
    let mut out = std::io::stdout().lock();
    writeln!(out, "ready").unwrap();
    for line in std::io::stdin().lock().lines() {
        let record: Record = serde_json::from_str(&line.unwrap()).unwrap();
        let clock = Instant::now();
        let said = match &record {
            Record::Captions { reference, candidates } => json!(bert.similarities(reference, candidates).unwrap()),
            Record::Replies { replies } => {
                let asked: Vec<_> = replies.iter().map(|(reply, choices)| Choosing { reply, choices }).collect();
                json!(sentence_bert.choose(&asked).unwrap())
            }
        };
        writeln!(out, "{}", json!({ "seconds": clock.elapsed().as_secs_f64(), "said": said })).unwrap();
        out.flush().unwrap();
    }
}
