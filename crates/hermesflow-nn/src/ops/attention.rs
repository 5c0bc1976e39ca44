//! Packed attention.
