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
