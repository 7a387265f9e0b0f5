//! The service: see `sluice --help`.

mod cli;

use std::process::ExitCode;

use clap::Parser as _;

use crate::cli::{Cli, Outcome};

#[tokio::main]
async fn main() -> ExitCode {
    match Cli::parse().run().await {
        Ok(Outcome::Success) => ExitCode::SUCCESS,
        Ok(Outcome::Failure) => ExitCode::from(1),
        Err(error) => {
            // The log may not be set up yet, and whoever typed the command looks here.
            #[allow(clippy::print_stderr)]
            {
                eprintln!("sluice: {error:#}");
            }
            ExitCode::from(2)
        }
    }
}
