//! `sluice-eval`: see `sluice-eval --help`.

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "sluice-eval", version, about = "Train, calibrate, evaluate and compare with the code that serves")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Trains a model of a bundle.
    #[command(subcommand)]
    Train(Train),
    /// Figures, predictions and a report of a bundle on labelled texts.
    Evaluate(sluice_eval::evaluate::Args),
}

#[derive(Debug, Subcommand)]
enum Train {
    /// Heads, calibration and thresholds from labelled texts.
    Classifier(sluice_eval::classifier::train::Args),
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Train(Train::Classifier(args)) => sluice_eval::classifier::train::run(args),
        Command::Evaluate(args) => sluice_eval::evaluate::run(args),
    }
}
