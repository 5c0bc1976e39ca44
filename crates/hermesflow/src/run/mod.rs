//! One run: where its files lie, what its stages share, and what is checked before it begins.

pub mod before;
pub mod layout;
pub mod pictures;
pub mod stage;
pub mod texts;
