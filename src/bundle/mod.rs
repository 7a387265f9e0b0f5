//! The bundle: the versioned, hashed set of artefacts that decides together.
//!
//! `bundle.toml` lists every file with its size and SHA-256. [`load`] reads each file once, compares it with the list and only then
//! hands the very bytes it compared to the room that parses them, so a file that changed is refused before anything looks inside
//! (a damaged ONNX file or tokenizer can load and answer nonsense, or end the process). It refuses to parse before the hash is
//! right and to serve half a bundle. Next: `manifest` for the list, `golden` for the cases a loaded bundle must still answer.

mod golden;
mod manifest;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use golden::{Expected, GoldenCase};
pub use manifest::{Artefacts, ENCODER_FILES, EncoderEntry, FileEntry, Manifest, Training};

use crate::classifier::{Classifier, ClassifierArtefacts, ClassifierError};
use crate::policy::{PolicyError, Thresholds};
use crate::recommend::{RecommendError, Recommender};
use crate::risk::{RiskArtefacts, RiskError, RiskModel};
use crate::taxonomy::{Taxonomy, TaxonomyError};

/// The manifest's file name.
pub const MANIFEST: &str = "bundle.toml";
pub const TAXONOMY: &str = "taxonomy.toml";
pub const CLASSIFIER_CONFIG: &str = "classifier.toml";
pub const CLASSIFIER_WEIGHTS: &str = "classifier.safetensors";
/// What fine-tuning changed of the encoder; absent where the encoder serves as it is.
pub const ENCODER_ADAPTER: &str = "adapter.safetensors";
pub const THRESHOLDS: &str = "thresholds.toml";
pub const ACTIONS: &str = "actions.toml";
pub const RISK_FEATURES: &str = "features.toml";
pub const RISK_SLA: &str = "risk_sla.onnx";
pub const RISK_REVENUE: &str = "risk_revenue.onnx";
pub const RISK_CALIBRATION: &str = "risk.toml";
pub const RISK_GOLDEN: &str = "risk_golden.json";
pub const GOLDEN: &str = "golden.json";

/// Where the bundle lies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BundleConfig {
    /// The folder that holds `bundle.toml`.
    pub path: PathBuf,
}

/// Which bundle decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BundleIdentity {
    pub name: String,
    pub version: String,
    /// SHA-256 of the manifest, which holds the hash of every artefact.
    pub hash: String,
}

/// The models of one bundle, ready to decide. The encoder lives on its own threads and is reached through a handle.
#[derive(Debug)]
pub struct Models {
    pub identity: BundleIdentity,
    pub taxonomy: Taxonomy,
    pub classifier: Classifier,
    /// `None` where the bundle has no risk model: every case then goes to a person.
    pub risk: Option<RiskModel>,
    pub recommender: Recommender,
    pub thresholds: Thresholds,
}

/// A bundle whose hashes hold, parsed.
#[derive(Debug)]
pub struct Bundle {
    pub models: Models,
    pub encoder: EncoderFiles,
    /// Cases whose answers the author of the bundle saw.
    pub golden: Vec<GoldenCase>,
}

/// The verified bytes of the encoder, for the engine to parse.
#[derive(Debug, Clone)]
pub struct EncoderFiles {
    /// `config.json`.
    pub config: Vec<u8>,
    /// `model.safetensors`.
    pub weights: Vec<u8>,
    /// `tokenizer.json`.
    pub tokenizer: Vec<u8>,
    /// The bundle's own `adapter.safetensors`, to be merged into the weights.
    pub adapter: Option<Vec<u8>>,
}

/// Why a bundle was refused.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    #[error("`{}` is not readable", .path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("`{}` is not a manifest", .path.display())]
    Manifest { path: PathBuf, source: toml::de::Error },
    #[error("the manifest names `{path}`, which is not a plain file name beside it")]
    FileName { path: String },
    #[error("`{path}` is listed twice")]
    DuplicateFile { path: String },
    #[error("`{path}` has {got} bytes, the manifest says {expected}; restore the file or rebuild the bundle")]
    Size { path: String, expected: u64, got: u64 },
    #[error("`{path}` has SHA-256 {got}, the manifest says {expected}; restore the file or rebuild the bundle")]
    Hash { path: String, expected: String, got: String },
    #[error("the manifest does not list `{path}`, which a bundle needs")]
    MissingFile { path: &'static str },
    #[error("`{path}` is not UTF-8 text")]
    Text { path: &'static str },
    #[error("`{TAXONOMY}` was refused")]
    Taxonomy(#[from] TaxonomyError),
    #[error("the classifier was refused")]
    Classifier(#[from] ClassifierError),
    #[error("the risk model was refused")]
    Risk(#[from] RiskError),
    #[error("`{ACTIONS}` was refused")]
    Actions(#[from] RecommendError),
    #[error("`{THRESHOLDS}` was refused")]
    Thresholds(#[source] PolicyError),
    #[error("`{GOLDEN}` was refused")]
    Golden(#[source] serde_json::Error),
    #[error("`{GOLDEN}` holds no cases: a bundle must be able to show that it still answers as its author saw")]
    NoGoldenCases,
    #[error("the golden case `{case}` is not an acceptable event: {reason}")]
    GoldenEvent { case: String, reason: String },
}

/// Loads the bundle in `directory`: hashes first, then every model.
///
/// # Errors
/// The first file that is absent, differs from the manifest or cannot be served. A bundle without any risk file loads with
/// `risk: None`; one with a part of them is refused.
pub fn load(directory: &Path) -> Result<Bundle, BundleError> {
    let (manifest, hash) = Manifest::read(directory)?;
    let artefacts = manifest.read_artefacts(directory)?;
    let encoder = manifest.read_encoder(directory, &artefacts)?;
    let models = Models::parse(&manifest, hash, &artefacts)?;
    let golden = GoldenCase::parse_all(artefacts.bytes(GOLDEN)?)?;
    Ok(Bundle { models, encoder, golden })
}

/// The taxonomy of the bundle in `directory`, its hash checked.
///
/// # Errors
/// As [`load`].
pub fn taxonomy(directory: &Path) -> Result<Taxonomy, BundleError> {
    let (manifest, _) = Manifest::read(directory)?;
    let artefacts = manifest.read_artefacts(directory)?;
    Ok(Taxonomy::from_toml(artefacts.text(TAXONOMY)?)?)
}

impl Models {
    /// Parses the models of a bundle from bytes whose hashes hold; `hash` is the manifest's own.
    ///
    /// # Errors
    /// The first artefact that is not listed or cannot be served.
    pub fn parse(manifest: &Manifest, hash: String, artefacts: &Artefacts) -> Result<Self, BundleError> {
        let taxonomy = Taxonomy::from_toml(artefacts.text(TAXONOMY)?)?;
        let classifier_artefacts =
            ClassifierArtefacts { config: artefacts.bytes(CLASSIFIER_CONFIG)?, weights: artefacts.bytes(CLASSIFIER_WEIGHTS)? };
        let classifier = Classifier::load(&classifier_artefacts, &taxonomy)?;
        let has_risk =
            [RISK_FEATURES, RISK_SLA, RISK_REVENUE, RISK_CALIBRATION, RISK_GOLDEN].iter().any(|path| artefacts.has(path));
        let risk = if has_risk {
            Some(RiskModel::load(&RiskArtefacts {
                features: artefacts.bytes(RISK_FEATURES)?,
                sla: artefacts.bytes(RISK_SLA)?,
                revenue: artefacts.bytes(RISK_REVENUE)?,
                calibration: artefacts.bytes(RISK_CALIBRATION)?,
                golden: artefacts.bytes(RISK_GOLDEN)?,
            })?)
        } else {
            None
        };
        let recommender = Recommender::from_toml(artefacts.text(ACTIONS)?, &taxonomy)?;
        let thresholds = Thresholds::from_toml(artefacts.text(THRESHOLDS)?, &taxonomy).map_err(BundleError::Thresholds)?;
        let identity = BundleIdentity { name: manifest.name.clone(), version: manifest.version.clone(), hash };
        Ok(Self { identity, taxonomy, classifier, risk, recommender, thresholds })
    }
}
