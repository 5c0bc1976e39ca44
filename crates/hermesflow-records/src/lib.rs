//! Records, their files and the preference rules: pure data, no tensors.

mod error;
mod given;
mod id;
pub mod pairing;
mod read;
mod record;
mod seed;
mod store;

pub use error::{Error, Result};
pub use given::{Given, QuestionForm, given_questions, journeydb_questions};
pub use id::{InvalidId, RecordId};
pub use pairing::{Candidates, DropReason, Scored, first_round, later_round, three_decimals};
pub use read::{parse, read, read_unique};
pub use record::{AnswerRecord, CaptionRecord, Identified, InitialRecord, PairRecord, QuestionRecord};
pub use seed::derive_seed;
pub use store::{ArrayFile, Rows, Store, Unit, write_atomically, write_records};
