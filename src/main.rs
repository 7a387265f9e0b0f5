//! The service: see `sluice --help`.

fn main() {}
