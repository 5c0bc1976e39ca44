//! Nearest-neighbour upsampling.
