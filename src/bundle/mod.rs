//! The bundle: the versioned, hashed set of artefacts that decides together.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::classifier::Classifier;
use crate::policy::Thresholds;
use crate::recommend::Recommender;
use crate::risk::RiskModel;
use crate::taxonomy::Taxonomy;

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

#[derive(Debug)]
pub struct Bundle {
    pub models: Models,
    pub encoder: EncoderFiles,
    pub golden: Vec<GoldenCase>,
}

#[derive(Debug)]
pub struct EncoderFiles {
    pub config: Vec<u8>,
    pub weights: Vec<u8>,
    pub tokenizer: Vec<u8>,
}

#[derive(Debug, Clone)]
pub struct GoldenCase {
    pub name: String,
    pub narrative: String,
    pub r#type: String,
    pub score: f64,
    pub tolerance: f64,
}

#[derive(Debug, thiserror::Error)]
pub enum BundleError {}

pub fn load(_path: &std::path::Path) -> Result<Bundle, BundleError> {
    todo!()
}

pub fn taxonomy(_path: &std::path::Path) -> Result<Taxonomy, BundleError> {
    todo!()
}
