//! One run: where its files lie, what its stages share, and what is checked before it begins.

pub mod attempts;
pub mod before;
pub mod context;
pub mod decisive;
pub mod folder;
pub mod kernels;
pub mod layout;
pub mod pictures;
pub mod preview;
pub mod questions;
pub mod sharing;
pub mod stage;
pub mod texts;
