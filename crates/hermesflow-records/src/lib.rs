//! The records of a run, their files, and the rules by which preference pairs are chosen: data only, no tensors.

mod append_log;
mod error;
mod fnv;
mod given;
mod id;
pub mod pairing;
mod read;
mod record;
mod seed;
mod store;
mod table;
mod whole;

pub use append_log::{AppendLog, of_process, of_processes};
pub use error::{Error, Result};
pub use fnv::Fnv1a;
pub use given::{QuestionCounts, QuestionFile, QuestionForm, journeydb_questions};
pub use id::{IdKey, InvalidId, RecordId};
pub use pairing::{Candidates, DropReason, Scored, first_round, later_round, ranked, three_decimals};
pub use read::read;
pub use record::{
    AnswerRecord, CaptionRecord, Identified, InitialRecord, PairRecord, QuestionRecord, Record, ReplyRecord,
    ScoreRecord,
};
pub use seed::derive_seed;
pub use store::Store;
pub use table::Table;
pub use whole::{ArrayFile, ClosedArray, TEMPORARY, beside, temporary, write_atomically};
