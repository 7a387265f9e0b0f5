//! All integration tests are one binary: one link step, shared helpers.

mod architecture;
mod batching;
mod bundle;
mod classifier;
mod cli;
mod decision;
mod encoder;
mod event;
mod http;
mod policy;
mod recommend;
mod risk;
mod store;
mod support;
mod text;
