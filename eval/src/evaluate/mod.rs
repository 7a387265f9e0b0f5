//! `sluice-eval evaluate`: how a bundle does on labelled texts, with the very code that serves.
//!
//! Writes `metrics.json`, `predictions.parquet` and one self-contained `report.html`, and fails where a figure misses its
//! baseline. It refuses to know how the bundle was trained: whether the texts are new to it is for the caller to know.

pub mod baseline;
pub mod figures;
pub mod html;
pub mod predictions;

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use sluice::classifier::Classification;

use crate::dataset::{Columns, Dataset};
use crate::scoring::{ClassifierBundle, encode_texts};
use baseline::Baseline;
use figures::Metrics;

/// What `sluice-eval evaluate` is told.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Folder of the bundle.
    #[arg(long)]
    pub bundle: PathBuf,
    /// Folder of the encoder; the one of the bundle's manifest where none is named.
    #[arg(long)]
    pub encoder: Option<PathBuf>,
    #[command(flatten)]
    pub columns: Columns,
    /// Folder for `metrics.json`, `predictions.parquet` and `report.html`.
    #[arg(long)]
    pub out: PathBuf,
    /// Figures that must hold: a TOML file with tables `minimum` and `maximum`.
    #[arg(long)]
    pub baseline: Option<PathBuf>,
    /// File that keeps embeddings between runs.
    #[arg(long)]
    pub embeddings: Option<PathBuf>,
}

/// One text with its truth and what the service says.
#[derive(Debug, Clone)]
pub struct Prediction {
    pub text: String,
    pub group: String,
    /// A type code, or the label of texts that fit no type.
    pub label: String,
    /// The label's place among the types; `None` where the text fits no type.
    pub class: Option<usize>,
    pub classification: Classification,
}

/// A bundle's answers on labelled texts.
#[derive(Debug, Clone)]
pub struct Evaluation {
    pub types: Vec<String>,
    pub oos_label: String,
    pub predictions: Vec<Prediction>,
    pub metrics: Metrics,
}

/// Evaluates, writes the three files, prints the metrics.
///
/// # Errors
/// Unreadable data or bundle, labels that the taxonomy does not know, a missed baseline.
#[expect(clippy::print_stdout, reason = "the metrics of a command go to its standard output")]
pub fn run(args: Args) -> Result<()> {
    let baseline = args.baseline.as_deref().map(Baseline::read).transpose()?;
    let evaluation = evaluate(&args)?;
    std::fs::create_dir_all(&args.out).with_context(|| format!("`{}` cannot be created", args.out.display()))?;
    let metrics = serde_json::to_string_pretty(&evaluation.metrics)?;
    std::fs::write(args.out.join("metrics.json"), &metrics)?;
    predictions::write(&evaluation, &args.out.join("predictions.parquet"))?;
    std::fs::write(args.out.join("report.html"), html::render(&evaluation))?;
    println!("{metrics}");
    match baseline {
        Some(baseline) => baseline.check(&evaluation.metrics),
        None => Ok(()),
    }
}

/// Classifies every text and takes the figures.
pub fn evaluate(args: &Args) -> Result<Evaluation> {
    let dataset = Dataset::read(&args.columns)?;
    let bundle = ClassifierBundle::open(&args.bundle, args.encoder.as_deref())?;
    let types: Vec<String> = bundle.taxonomy.types.iter().map(|definition| definition.code.clone()).collect();
    let oos_label = args.columns.oos_label.clone();
    for example in &dataset.examples {
        let known = types.contains(&example.label) || example.label == oos_label;
        ensure!(known, "the label `{}` is neither a type of the bundle nor `{oos_label}`", example.label);
    }
    let texts: Vec<&str> = dataset.examples.iter().map(|example| example.text.as_str()).collect();
    let encoded = encode_texts(&bundle.encoder, &texts, args.embeddings.as_deref())?;
    let classifications = bundle.classify(&encoded)?;
    let rows = dataset.examples.into_iter().zip(classifications);
    let predictions: Vec<Prediction> = rows
        .map(|(example, classification)| Prediction {
            class: types.iter().position(|code| *code == example.label),
            text: example.text,
            group: dataset.groups[example.group].clone(),
            label: example.label,
            classification,
        })
        .collect();
    let metrics = Metrics::of(&predictions, &types);
    Ok(Evaluation { types, oos_label, predictions, metrics })
}
