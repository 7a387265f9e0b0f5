//! What to do next: candidate actions, which of them the facts allow, and how they rank.
//!
//! The action model of a bundle ([`model`]) says how often a competent operator accepts an action for a type; it is mixed over the
//! candidate types by their calibrated probability, so that doubt about the type spreads to the actions. [`feasibility`] lets the
//! facts rule actions out or speak for them. [`summary`] says to a person what is known, extractively.
//!
//! It refuses to decide whether a machine may act: that is policy.

mod feasibility;
mod model;
mod rank;
mod summary;

pub use model::{RecommendError, Recommender};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::classifier::Classification;
use crate::event::Facts;
use crate::risk::Risk;
use crate::taxonomy::Taxonomy;

/// One action with its place in the ranking.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Recommendation {
    /// Code of the taxonomy.
    pub action: String,
    /// From 1, the best.
    pub rank: usize,
    /// Share of comparable cases in which a competent operator accepts this action, 0 to 1; discounted where facts that speak for
    /// it are not known.
    pub score: f64,
    /// Money the action is expected to save net of its cost, in `currency`; absent where no risk is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_value: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub currency: Option<String>,
    /// Whether the facts of the event allow it. Infeasible actions rank after all feasible ones.
    pub feasible: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub infeasible_because: Option<String>,
    /// Role that must approve this action, where one must.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approver_role: Option<String>,
}

/// A resolved case like the one at hand.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Precedent {
    pub decision_id: String,
    pub r#type: String,
    pub action: String,
    /// Cosine of the two narratives' embeddings.
    pub similarity: f64,
}

/// What the ranking looks at.
#[derive(Debug, Clone, Copy)]
pub struct RecommendInput<'a> {
    pub taxonomy: &'a Taxonomy,
    pub classification: Option<&'a Classification>,
    pub facts: &'a Facts,
    pub risk: Option<&'a Risk>,
}
