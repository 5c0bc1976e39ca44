//! Log-probability of a target.
