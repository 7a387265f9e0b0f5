//! The evaluation harness: it trains, calibrates and evaluates with the code that serves.
//!
//! Each command of `sluice-eval` is one module with an `Args` and a `run`; the binary only dispatches.

pub mod actions;
pub mod assemble;
pub mod build;
pub mod classifier;
pub mod dataset;
pub mod evaluate;
pub mod finetune;
pub mod metrics;
pub mod parallel;
pub mod risk;
pub mod scoring;
pub mod simulate;
