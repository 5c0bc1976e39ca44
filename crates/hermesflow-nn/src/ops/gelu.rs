//! GELU, tanh form.
