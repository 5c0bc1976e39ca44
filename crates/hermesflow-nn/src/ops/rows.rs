//! Row gathering and embedding.
