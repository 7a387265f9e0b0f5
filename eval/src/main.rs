//! `sluice-eval`: see `sluice-eval --help`.

fn main() {}
