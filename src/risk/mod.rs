//! What is at stake, from the order facts alone.
//!
//! [`features`] makes a row of the facts, [`trees`] scores it with gradient-boosted trees read from ordinary ONNX by [`parse`],
//! [`calibration`] turns the raw scores into what people read, [`model`] ties them together. Training writes the same files, and
//! users replace them with exports of their own trainer.
//!
//! It refuses to see the narrative, and to guess a missing value: missing is a value of its own. Start at [`RiskModel::score`].

pub mod calibration;
pub mod features;
pub mod model;
pub mod onnx;
pub mod parse;
pub mod shap;
pub mod sources;
pub mod trees;

pub use features::{Feature, FeatureKind, FeatureSchema, FeatureVector};
pub use model::{GoldenRow, GoldenRows, RawScores, RiskArtefacts, RiskModel};
pub use parse::OnnxError;
pub use shap::{Contribution, Contributions};
pub use trees::TreeEnsemble;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The answer of the risk models for one event.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Risk {
    pub sla_breach: SlaBreach,
    /// `null` where the event gives no order value: a loss in money cannot be told without one. It is a share of the stated value, or
    /// of what the lines add up to where that is more.
    pub revenue_at_risk: Option<RevenueAtRisk>,
    pub priority: Priority,
    /// Features of the model that the event did not give, by name; those the model leans on come first.
    pub missing_features: Vec<String>,
    /// Features given outside what training saw: a number out of range or an unknown category. The score then extrapolates.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub out_of_range: Vec<String>,
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

/// Why no risk was scored, or no risk model loaded.
#[derive(Debug, thiserror::Error)]
pub enum RiskError {
    #[error("`features.toml` is not acceptable: {reason}")]
    Schema { reason: String },
    #[error("`risk.toml` is not acceptable: {reason}")]
    Calibration { reason: String },
    #[error("the {model} model cannot be served")]
    Onnx { model: &'static str, source: OnnxError },
    #[error("the revenue model answers probabilities; it must answer a loss as a fraction of order value")]
    RevenueIsProbability,
    #[error("a row has {got} values, {expected} are expected")]
    Width { expected: usize, got: usize },
    #[error("row {row} holds an infinite value")]
    InfiniteRow { row: usize },
    #[error("feature `{feature}` is not a finite number an `f32` holds")]
    NotFinite { feature: String },
    #[error("feature `{feature}` is not {expected:?} as the schema says")]
    WrongKind { feature: String, expected: FeatureKind },
    #[error("the SLA model answers {raw_score}, which is no probability")]
    NotAProbability { raw_score: f64 },
    #[error("the SLA model's file gives no training covers, which exact contributions need")]
    NoCovers,
    #[error("`risk_golden.json` is not acceptable")]
    GoldenForm { source: serde_json::Error },
    #[error("`risk_golden.json` holds no rows; without its trainer's own predictions a model is not served")]
    NoGoldenRows,
    #[error("the {model} model scores golden row {row} as {got}, its trainer as {expected}")]
    Golden { model: &'static str, row: usize, expected: f64, got: f64 },
}
