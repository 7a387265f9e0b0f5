//! Heads, calibration and novelty: an embedding and the normalised text become calibrated scores.
//!
//! Pure: no clock, no I/O, the same input gives the same answer in any batch. It refuses to know facts or policy.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::text::{NormalizedText, TokenCount};

/// What an exception is, as far as its narrative tells.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Classification {
    /// A type code of the taxonomy, or `unrecognized`.
    pub r#type: String,
    /// Calibrated probability of the best type, 0 to 1.
    pub score: f64,
    /// What the gate compares with a threshold: probability, margin, novelty and lost tokens together; higher is safer.
    pub acceptance: f64,
    /// Whether the service declines to name a type; `type` is then `unrecognized`.
    pub abstained: bool,
    /// Every type, best first, also where the answer abstains.
    pub candidates: Vec<Candidate>,
    /// Further types that the text also speaks of, best first.
    pub secondary_types: Vec<Candidate>,
    /// How unlike the training narratives the text is, 0 (familiar) to 1 (foreign).
    pub novelty: f64,
    /// The queue of the best type's owner; absent where the answer abstains.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    pub tokens: TokenCount,
}

/// One type with its calibrated probability.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Candidate {
    pub r#type: String,
    pub score: f64,
}

/// The trained heads of a bundle.
#[derive(Debug)]
pub struct Classifier {}

impl Classifier {
    /// Scores one text. `embedding` has shape `(hidden_size,)`.
    pub fn classify(&self, _text: &NormalizedText, _tokens: TokenCount, _embedding: &[f32]) -> Classification {
        todo!()
    }
}
