//! Sluice decides what flows and what stops: it classifies a fulfilment exception, says what is at stake, ranks what to do next
//! and tells whether a machine may do it alone. Start at [`decision`]: the way of one exception, top to bottom.

pub mod application;
pub mod batching;
pub mod bundle;
pub mod classifier;
pub mod config;
pub mod decision;
pub mod encoder;
pub mod error;
pub mod event;
pub mod http;
pub mod policy;
pub mod recommend;
pub mod risk;
pub mod store;
pub mod taxonomy;
pub mod telemetry;
pub mod text;
