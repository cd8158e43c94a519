//! Frozen weights.
