//! Records, their files and the preference rules: pure data, no tensors.

mod error;
mod pairing;
mod read;
mod record;
mod seed;
mod store;

pub use error::{Error, Result};
pub use pairing::{Candidates, DropReason, first_round, later_round};
pub use read::{parse, read, read_unique};
pub use record::{AnswerRecord, CaptionRecord, Identified, InitialRecord, PairRecord, QuestionRecord, RecordId};
pub use seed::derive_seed;
pub use store::{Store, write_atomically, write_records};
