//! Affine map.
