//! `sluice-eval`: train, evaluate and simulate. Every command is a module of the library; this file only dispatches.

use clap::{Parser, Subcommand};
use sluice_eval::{actions, assemble, build, classifier, evaluate, risk, simulate};

#[derive(Debug, Parser)]
#[command(name = "sluice-eval", version, about = "The evaluation harness of Sluice")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Train one of a bundle's models.
    Train {
        #[command(subcommand)]
        model: Model,
    },
    /// Make a bundle that a service loads of trained artefacts.
    Assemble(assemble::Args),
    /// Figures, predictions and a report of a bundle on labelled texts; fails where a baseline is missed.
    Evaluate(evaluate::Args),
    /// Make synthetic case history with known ground truth.
    Simulate(simulate::Args),
    /// Rebuild every artefact of a bundle from training data, with fixed seeds.
    Build(build::Args),
}

#[derive(Debug, Subcommand)]
enum Model {
    /// Heads, calibration, novelty and thresholds from labelled texts.
    Classifier(Box<classifier::train::Args>),
    /// Boosted trees from any table, written as ONNX.
    Risk(risk::Args),
    /// Which action a competent operator accepts, by type.
    Actions(actions::Args),
}

fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "warn".into()))
        .with_writer(std::io::stderr)
        .init();
    match Cli::parse().command {
        Command::Train { model: Model::Classifier(args) } => classifier::train::run(*args),
        Command::Train { model: Model::Risk(args) } => print(&serde_json::to_string_pretty(&risk::run(&args)?)?),
        Command::Train { model: Model::Actions(args) } => print(&actions::run(&args)?),
        Command::Assemble(args) => assemble::run(&args),
        Command::Evaluate(args) => evaluate::run(args),
        Command::Simulate(args) => simulate::run(&args).map(drop),
        Command::Build(args) => build::run(&args),
    }
}

/// Writes the report of a command to standard output.
#[expect(clippy::print_stdout, reason = "a report is a command's result")]
fn print(report: &impl std::fmt::Display) -> anyhow::Result<()> {
    println!("{report}");
    Ok(())
}
