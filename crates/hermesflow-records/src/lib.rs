//! Records, stores and preference rules: pure data, no tensors.
