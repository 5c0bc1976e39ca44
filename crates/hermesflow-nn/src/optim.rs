//! Fused AdamW and the global gradient norm.
