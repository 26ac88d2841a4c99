//! Per-crate benchmarks.
