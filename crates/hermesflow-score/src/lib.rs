//! Text judges: caption similarity, question writing and filtering, choice matching.

pub mod choice;
pub mod lexical;
