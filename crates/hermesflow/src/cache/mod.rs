//! What was computed once and is kept beside the data: image codes, the reference's log-probabilities of captions, and
//! what the judges said.

pub mod codes;
mod log;
pub mod pictures;
pub mod reference;
pub mod scores;
