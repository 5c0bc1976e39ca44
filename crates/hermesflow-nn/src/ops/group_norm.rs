//! Group normalisation, with an optional SiLU.
