//! The scenes world: procedural images, captions, questions, and an oracle that judges pixels.
