//! What is at stake, from the order facts alone.
//!
//! It refuses to see the narrative, and to guess a missing value: missing is a value of its own.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::event::Facts;

/// The answer of the risk models for one event.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Risk {
    pub sla_breach: SlaBreach,
    pub revenue_at_risk: RevenueAtRisk,
    pub priority: Priority,
    /// Features of the model that the event did not give, by name.
    pub missing_features: Vec<String>,
}

/// Probability that the promise to the customer breaks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SlaBreach {
    /// Calibrated probability, 0 to 1.
    pub score: f64,
    pub band: Band,
}

/// Money that the exception may cost, in `currency`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RevenueAtRisk {
    /// Mean.
    pub expected: f64,
    /// Nine in ten comparable cases lose at most this.
    pub p90: f64,
    /// Currency of the order; absent where the event names none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub currency: Option<String>,
}

impl RevenueAtRisk {
    /// The mean, where it was scored. Policy and the ranking read it here alone.
    pub fn known_expected(&self) -> Option<f64> {
        Some(self.expected)
    }
}

/// A range of SLA-breach probability.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Band {
    Low,
    Medium,
    High,
}

/// In which order people should look at cases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    Low,
    Normal,
    High,
    Critical,
}

/// The risk models of a bundle.
#[derive(Debug)]
pub struct RiskModel {}

/// Why no risk was scored.
#[derive(Debug, thiserror::Error)]
pub enum RiskError {}

impl RiskModel {
    /// Scores the facts of one event.
    pub fn score(&self, _facts: &Facts) -> Result<Risk, RiskError> {
        todo!()
    }
}
