//! `sluice-eval build`: every artefact of a bundle, its golden cases and its manifest, from training data with fixed seeds.
//!
//! The order is that of the request path: classifier and thresholds, risk from freshly simulated cases, action model, then the
//! golden cases, which are what the models just trained answer to the example events. The manifest comes last, so a build that
//! stops half-way leaves a bundle that no service loads.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use sluice::bundle;
use sluice::event::EventWire;

use crate::assemble::{Identity, assemble};
use crate::classifier::dense::EncoderTraining;
use crate::classifier::heads::HeadParams;
use crate::classifier::report::TrainingReport;
use crate::dataset::Columns;
use crate::evaluate::baseline::Baseline;
use crate::finetune::FineTuneParams;
use crate::{actions, classifier, risk, simulate};

/// The promise of the default thresholds: with this confidence at most this share of the cases over a threshold is wrong.
const MAX_ERROR: f64 = 0.05;
const CONFIDENCE: f64 = 0.95;

/// What `sluice-eval build` is told; the defaults rebuild the bundle that is committed.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Folder with `narratives/*.jsonl`.
    #[arg(long, default_value = "training-data")]
    pub training_data: PathBuf,
    /// Folder of JSON events that become golden cases.
    #[arg(long, default_value = "examples")]
    pub examples: PathBuf,
    /// The bundle's folder; its `taxonomy.toml` is read, everything else in it is written.
    #[arg(long, default_value = "models/bundles/default")]
    pub out: PathBuf,
    /// The encoder's folder, relative to the bundle's.
    #[arg(long, default_value = "../../encoders/minilm-l6-v2")]
    pub encoder: PathBuf,
    /// Whether the encoder learns too.
    #[arg(long, value_enum, default_value_t = EncoderTraining::FineTuned)]
    pub encoder_training: EncoderTraining,
    #[arg(long, default_value = "default")]
    pub name: String,
    #[arg(long, default_value = "0.1.0")]
    pub bundle_version: String,
    /// Cases to simulate for the risk models.
    #[arg(long, default_value_t = 40_000)]
    pub cases: usize,
    /// Figures that the held-out predictions must hold; looked at once everything is written.
    #[arg(long, default_value = "eval/baselines/default.toml")]
    pub baseline: PathBuf,
    #[arg(long, default_value_t = 7)]
    pub seed: u64,
    /// Where simulated cases and cached embeddings go.
    #[arg(long, default_value = "target/build-bundle")]
    pub scratch: PathBuf,
}

/// Rebuilds the bundle.
///
/// # Errors
/// The first step that failed; the manifest is then absent or unchanged. A figure that misses the baseline, with the bundle written.
pub fn run(args: &Args) -> Result<()> {
    std::fs::create_dir_all(&args.scratch).with_context(|| format!("`{}` cannot be created", args.scratch.display()))?;
    let narratives = files_in(&args.training_data.join("narratives"), "jsonl")?;
    let encoder = args.out.join(&args.encoder);

    let report = train_classifier(args, &narratives, &encoder)?;
    train_risk(args)?;
    actions::run(&actions::Args {
        data: narratives.clone(),
        taxonomy: args.out.join(bundle::TAXONOMY),
        assumptions: None,
        smoothing: actions::DEFAULT_SMOOTHING,
        out: args.out.clone(),
    })?;
    let events = files_in(&args.examples, "json")?;
    ensure!(!events.is_empty(), "`{}` holds no JSON events", args.examples.display());
    let events = events.iter().map(|path| {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let event = EventWire::from_json(&std::fs::read(path)?).with_context(|| format!("`{}`", path.display()))?;
        Ok((name, event))
    });
    let identity = Identity {
        name: args.name.clone(),
        version: args.bundle_version.clone(),
        command: "cargo run --release -p sluice-eval -- build".to_owned(),
        seed: args.seed,
    };
    assemble(&args.out, &args.encoder, identity, &narratives, events.collect::<Result<_>>()?)?;
    Baseline::read(&args.baseline)?.check(&report.held_out)
}

/// As `sluice-eval train classifier` with its defaults.
fn train_classifier(args: &Args, narratives: &[PathBuf], encoder: &Path) -> Result<TrainingReport> {
    let report = classifier::train::train(&classifier::train::Args {
        columns: Columns::of(narratives.to_vec()),
        taxonomy: Some(args.out.join(bundle::TAXONOMY)),
        encoder: args.encoder_training,
        encoder_path: encoder.to_owned(),
        out: args.out.clone(),
        work: Some(args.scratch.join("classifier")),
        folds: None,
        max_error: MAX_ERROR,
        confidence: CONFIDENCE,
        params: HeadParams::DEFAULT,
        fine_tune: FineTuneParams::DEFAULT,
        no_floor: false,
        seed: args.seed,
    })?;
    tracing::info!(%report, "trained the classifier");
    Ok(report)
}

fn train_risk(args: &Args) -> Result<()> {
    let cases = args.scratch.join("cases.jsonl");
    simulate::run(&simulate::Args {
        cases: args.cases,
        seed: args.seed,
        out: cases.clone(),
        narratives: Some(args.training_data.join("narratives")),
    })?;
    risk::train_default_risk(&cases, &args.out, args.seed).map(drop)
}

fn files_in(directory: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(directory).with_context(|| format!("`{}` cannot be read", directory.display()))?;
    let paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    let mut files: Vec<_> = paths.into_iter().filter(|path| path.extension().is_some_and(|found| found == extension)).collect();
    files.sort();
    Ok(files)
}
