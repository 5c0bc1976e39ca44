//! Records, their files and the preference rules: pure data, no tensors.

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

pub use error::{Error, Result};
pub use fnv::Fnv1a;
pub use given::{Found, Given, QuestionForm, journeydb_questions};
pub use id::{IdKey, InvalidId, RecordId};
pub use pairing::{Candidates, DropReason, Scored, first_round, later_round, three_decimals};
pub use read::read;
pub use record::{AnswerRecord, CaptionRecord, Identified, InitialRecord, PairRecord, QuestionRecord, Record};
pub use seed::derive_seed;
pub use store::Store;
pub use table::Table;
pub use whole::{ArrayFile, ClosedArray, TEMPORARY, beside, temporary, write_atomically};
