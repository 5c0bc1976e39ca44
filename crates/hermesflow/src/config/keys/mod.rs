//! Every key that a file of settings may hold, read off the structures of the configuration: their doc comments, types,
//! ranges and defaults. `hermesflow keys`, `docs/KEYS.md`, the JSON Schemas, the checks of ranges and the help of error
//! messages are all made of this.
//!
//! A doc comment is the meaning of a key; its last paragraph may hold lines that begin with `Unit:`, `Default:` and
//! `Source:`.

mod list;
mod schema;
mod show;
mod suggest;
#[cfg(test)]
mod tests;
mod words;

pub use list::Keys;
pub use schema::object;
pub use show::page;
