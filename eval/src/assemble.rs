//! `sluice-eval assemble`: trained artefacts become a bundle that a service loads.
//!
//! The folder already holds a classifier and its thresholds. What else a bundle needs is added: an action model that knows only
//! "hand over to a person" where none was trained, golden cases, which are what the models answer to given events, and last the
//! manifest with every hash, so that a run that stops half-way leaves a folder that no service loads.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};
use sluice::bundle::{self, EncoderEntry, Expected, FileEntry, GoldenCase, Manifest, Models, Training};
use sluice::event::EventWire;
use sluice::taxonomy::{MANUAL_REVIEW, Taxonomy};

use crate::dataset::{Columns, Dataset};
use crate::scoring;

/// Golden cases taken from the data.
const N_GOLDEN: usize = 10;

/// What `sluice-eval assemble` is told.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The folder of the trained artefacts, which becomes the bundle.
    #[arg(long)]
    pub bundle: PathBuf,
    /// The data the classifier was trained on; ten of its texts become golden cases.
    #[command(flatten)]
    pub columns: Columns,
    /// The encoder's folder.
    #[arg(long, default_value = scoring::DEFAULT_ENCODER)]
    pub encoder_path: PathBuf,
    #[arg(long)]
    pub name: String,
    #[arg(long, default_value = "0.1.0")]
    pub bundle_version: String,
    /// The seed the artefacts were trained with, for the record.
    #[arg(long, default_value_t = 7)]
    pub seed: u64,
}

/// What a bundle says about itself.
#[derive(Debug, Clone)]
pub struct Identity {
    pub name: String,
    pub version: String,
    /// The command that rebuilds it.
    pub command: String,
    pub seed: u64,
}

/// Makes a bundle of a folder of trained artefacts.
///
/// # Errors
/// An artefact that is missing or contradictory, data that cannot be read.
pub fn run(args: &Args) -> Result<()> {
    let dataset = Dataset::read(&args.columns)?;
    let step = dataset.examples.len().div_ceil(N_GOLDEN).max(1);
    let events = dataset.examples.iter().step_by(step).enumerate().map(|(idx, example)| {
        let event = serde_json::json!({ "narrative": example.text }).to_string();
        Ok((format!("text {}", idx + 1), EventWire::from_json(event.as_bytes())?))
    });
    let encoder = relative(&args.encoder_path, &args.bundle)?;
    let identity = Identity {
        name: args.name.clone(),
        version: args.bundle_version.clone(),
        command: "sluice-eval train classifier, then sluice-eval assemble".to_owned(),
        seed: args.seed,
    };
    let actions = args.bundle.join(bundle::ACTIONS);
    if !actions.exists() {
        let taxonomy = std::fs::read_to_string(args.bundle.join(bundle::TAXONOMY)).context("the folder has no taxonomy")?;
        write(&actions, &hand_over_only(&Taxonomy::from_toml(&taxonomy)?)?)?;
    }
    assemble(&args.bundle, &encoder, identity, &args.columns.data, events.collect::<Result<_>>()?)
}

/// Writes golden cases and manifest of the artefacts in `directory`, and loads the bundle as a service would. `encoder` is relative
/// to `directory`; `events` are the golden cases' names and events.
///
/// # Errors
/// An artefact that is missing or contradictory.
pub fn assemble(
    directory: &Path,
    encoder: &Path,
    identity: Identity,
    data: &[PathBuf],
    events: Vec<(String, EventWire)>,
) -> Result<()> {
    let mut manifest = manifest(directory, encoder, identity, data)?;
    write(&directory.join(bundle::GOLDEN), &golden_cases(directory, &manifest, events)?)?;
    manifest.files.push(FileEntry::describe(directory, bundle::GOLDEN)?);
    write(&directory.join(bundle::MANIFEST), &manifest.to_toml())?;
    let loaded = bundle::load(directory).context("the bundle just assembled does not load")?;
    tracing::info!(hash = loaded.models.identity.hash, golden = loaded.golden.len(), "assembled");
    Ok(())
}

fn manifest(directory: &Path, encoder: &Path, identity: Identity, data: &[PathBuf]) -> Result<Manifest> {
    let required = [bundle::TAXONOMY, bundle::CLASSIFIER_CONFIG, bundle::CLASSIFIER_WEIGHTS, bundle::THRESHOLDS, bundle::ACTIONS];
    let optional = [
        bundle::ENCODER_ADAPTER,
        bundle::RISK_FEATURES,
        bundle::RISK_SLA,
        bundle::RISK_REVENUE,
        bundle::RISK_CALIBRATION,
        bundle::RISK_GOLDEN,
    ];
    let optional = optional.into_iter().filter(|path| directory.join(path).exists());
    let files = required.into_iter().chain(optional).map(|path| FileEntry::describe(directory, path));
    let encoder_name = encoder.file_name().context("the encoder's folder has no name")?.to_string_lossy();
    Ok(Manifest {
        name: identity.name,
        version: identity.version,
        training: Training { command: identity.command, seed: identity.seed, data_sha256: data_sha256(data)? },
        encoder: EncoderEntry::describe(&encoder_name, directory, encoder)?,
        files: files.collect::<Result<_, _>>()?,
    })
}

/// What the models just trained answer to the events.
fn golden_cases(directory: &Path, manifest: &Manifest, events: Vec<(String, EventWire)>) -> Result<String> {
    let artefacts = manifest.read_artefacts(directory)?;
    let models = Models::parse(manifest, String::new(), &artefacts)?;
    let mut contents = Vec::with_capacity(events.len());
    for (name, event) in &events {
        contents.push(event.clone().into_content(&GoldenCase::LIMITS).with_context(|| format!("golden case `{name}`"))?);
    }
    let narratives: Vec<&str> = contents.iter().map(|content| content.narrative.as_str()).collect();
    let encoded = scoring::encode_texts(&manifest.read_encoder(directory, &artefacts)?, &narratives, None)?;
    let mut cases = Vec::with_capacity(events.len());
    for (((name, event), content), encoded) in events.into_iter().zip(contents).zip(encoded) {
        let classification = models.classifier.classify(&encoded.text, encoded.tokens, &encoded.embeddings);
        let risk = models.risk.as_ref().map(|model| model.score(&content.facts)).transpose()?;
        cases.push((name, event, Expected::of(&classification, risk.as_ref())));
    }
    Ok(GoldenCase::to_json(cases))
}

/// An action model in which every case goes to a person.
fn hand_over_only(taxonomy: &Taxonomy) -> Result<String> {
    let mut text =
        "# Written by `sluice-eval assemble`: no action model was trained, so every case is handed over to a person.\n\n\
                    [settings]\nunsupported_factor = 0.8\nminimum_score = 0.05\nvalue_weight = 0.15\ncurrency = \"USD\"\n"
            .to_owned();
    for action in &taxonomy.actions {
        write!(text, "\n[[action]]\ncode = {:?}\neffectiveness = 0.0\ncost = 0.0\n", action.code)?;
    }
    for definition in &taxonomy.types {
        let code = &definition.code;
        write!(
            text,
            "\n[[type]]\ncode = {code:?}\nn = 0\nacceptable = {{ {MANUAL_REVIEW} = 1.0 }}\nbest = {{ {MANUAL_REVIEW} = 1.0 }}\n"
        )?;
    }
    Ok(text)
}

/// `path` as seen from `directory`; both exist.
fn relative(path: &Path, directory: &Path) -> Result<PathBuf> {
    let absolute = |path: &Path| path.canonicalize().with_context(|| format!("`{}` cannot be found", path.display()));
    let (path, directory) = (absolute(path)?, absolute(directory)?);
    let shared = path.components().zip(directory.components()).take_while(|(a, b)| a == b).count();
    ensure!(shared > 0, "the encoder and the bundle lie on different drives");
    let up = directory.components().skip(shared).map(|_| Path::new("..").to_owned());
    Ok(up.chain(path.components().skip(shared).map(|part| PathBuf::from(part.as_os_str()))).collect())
}

/// SHA-256 over the names and contents of the training files, in their order.
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

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("`{}` cannot be written", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_seen_from_another_folder() {
        let root = tempfile::tempdir().unwrap();
        let (encoder, bundle) = (root.path().join("models/encoders/mini"), root.path().join("bundles/mine"));
        std::fs::create_dir_all(&encoder).unwrap();
        std::fs::create_dir_all(&bundle).unwrap();
        let found = relative(&encoder, &bundle).unwrap();
        assert_eq!(found, Path::new("../../models/encoders/mini"));
        assert_eq!(bundle.join(found).canonicalize().unwrap(), encoder.canonicalize().unwrap());
    }
}
