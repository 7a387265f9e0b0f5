//! `sluice-eval build`: every artefact of a bundle, its golden cases and its manifest, from training data with fixed seeds.
//!
//! The order is that of the request path: classifier and thresholds, risk from freshly simulated cases, action model, then the
//! golden cases, which are what the models just trained answer to the example events. The manifest comes last, so a build that
//! stops half-way leaves a bundle that no service loads.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};
use sluice::bundle::{self, EncoderEntry, Expected, FileEntry, GoldenCase, Manifest, Models, Training};
use sluice::event::EventWire;

use crate::classifier::heads::HeadParams;
use crate::classifier::dense::EncoderTraining;
use crate::dataset::Columns;
use crate::finetune::FineTuneParams;
use crate::{actions, classifier, risk, scoring, simulate};

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
    #[arg(long, default_value_t = 7)]
    pub seed: u64,
    /// Where simulated cases and cached embeddings go.
    #[arg(long, default_value = "target/build-bundle")]
    pub scratch: PathBuf,
}

/// Rebuilds the bundle.
///
/// # Errors
/// The first step that failed; the manifest is then absent or unchanged.
pub fn run(args: &Args) -> Result<()> {
    std::fs::create_dir_all(&args.scratch).with_context(|| format!("`{}` cannot be created", args.scratch.display()))?;
    let narratives = files_in(&args.training_data.join("narratives"), "jsonl")?;
    let encoder = args.out.join(&args.encoder);

    train_classifier(args, &narratives, &encoder)?;
    train_risk(args)?;
    actions::run(&actions::Args {
        data: narratives.clone(),
        taxonomy: args.out.join(bundle::TAXONOMY),
        assumptions: None,
        smoothing: actions::DEFAULT_SMOOTHING,
        out: args.out.clone(),
    })?;
    let mut manifest = manifest(args, &narratives)?;
    let golden = golden_cases(args, &manifest)?;
    write(&args.out.join(bundle::GOLDEN), &golden)?;
    manifest.files.push(FileEntry::describe(&args.out, bundle::GOLDEN)?);
    write(&args.out.join(bundle::MANIFEST), &manifest.to_toml())?;

    let loaded = bundle::load(&args.out).context("the bundle just built does not load")?;
    tracing::info!(hash = loaded.models.identity.hash, golden = loaded.golden.len(), "built");
    Ok(())
}

/// As `sluice-eval train classifier` with its defaults.
fn train_classifier(args: &Args, narratives: &[PathBuf], encoder: &Path) -> Result<()> {
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
    Ok(())
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

/// The manifest of everything trained so far.
fn manifest(args: &Args, narratives: &[PathBuf]) -> Result<Manifest> {
    let artefacts = [
        bundle::TAXONOMY,
        bundle::CLASSIFIER_CONFIG,
        bundle::CLASSIFIER_WEIGHTS,
        bundle::THRESHOLDS,
        bundle::RISK_FEATURES,
        bundle::RISK_SLA,
        bundle::RISK_REVENUE,
        bundle::RISK_CALIBRATION,
        bundle::RISK_GOLDEN,
        bundle::ACTIONS,
    ];
    let adapter = args.out.join(bundle::ENCODER_ADAPTER).exists().then_some(bundle::ENCODER_ADAPTER);
    let artefacts = artefacts.into_iter().chain(adapter);
    let files = artefacts.map(|path| FileEntry::describe(&args.out, path)).collect::<Result<_, _>>()?;
    let encoder_name = args.encoder.file_name().context("the encoder's folder has no name")?.to_string_lossy();
    Ok(Manifest {
        name: args.name.clone(),
        version: args.bundle_version.clone(),
        training: Training {
            command: "cargo run --release -p sluice-eval -- build".to_owned(),
            seed: args.seed,
            data_sha256: data_sha256(narratives)?,
        },
        encoder: EncoderEntry::describe(&encoder_name, &args.out, &args.encoder)?,
        files,
    })
}

/// What the models just trained answer to the example events.
fn golden_cases(args: &Args, manifest: &Manifest) -> Result<String> {
    let artefacts = manifest.read_artefacts(&args.out)?;
    let models = Models::parse(manifest, String::new(), &artefacts)?;
    let examples = files_in(&args.examples, "json")?;
    ensure!(!examples.is_empty(), "`{}` holds no JSON events", args.examples.display());
    let mut events = Vec::new();
    for path in examples {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let event = EventWire::from_json(&std::fs::read(&path)?).with_context(|| format!("`{}`", path.display()))?;
        let content = event.clone().into_content(&GoldenCase::LIMITS).with_context(|| format!("`{}`", path.display()))?;
        events.push((name, event, content));
    }
    let narratives: Vec<&str> = events.iter().map(|(_, _, content)| content.narrative.as_str()).collect();
    let encoded = scoring::encode_texts(&manifest.read_encoder(&args.out, &artefacts)?, &narratives, None)?;
    let mut cases = Vec::new();
    for ((name, event, content), encoded) in events.into_iter().zip(encoded) {
        let classification = models.classifier.classify(&encoded.text, encoded.tokens, &encoded.embedding);
        let risk = models.risk.as_ref().map(|model| model.score(&content.facts)).transpose()?;
        cases.push((name, event, Expected::of(&classification, risk.as_ref())));
    }
    Ok(GoldenCase::to_json(cases))
}

/// SHA-256 over the names and contents of the training files, in name order.
fn data_sha256(files: &[PathBuf]) -> Result<String> {
    let mut hasher = Sha256::new();
    for path in files {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let bytes = std::fs::read(path)?;
        hasher.update((name.len() as u64).to_le_bytes());
        hasher.update(name.as_bytes());
        hasher.update((bytes.len() as u64).to_le_bytes());
        hasher.update(&bytes);
    }
    Ok(hex::encode(hasher.finalize()))
}

fn files_in(directory: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(directory).with_context(|| format!("`{}` cannot be read", directory.display()))?;
    let paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    let mut files: Vec<_> = paths.into_iter().filter(|path| path.extension().is_some_and(|found| found == extension)).collect();
    files.sort();
    Ok(files)
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("`{}` cannot be written", path.display()))
}
