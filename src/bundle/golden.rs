//! Golden cases: events whose answers the author of the bundle saw. A bundle that answers them otherwise, on this machine and with
//! this binary, is not the bundle that was evaluated.

use serde::{Deserialize, Serialize};

use super::BundleError;
use crate::classifier::Classification;
use crate::event::{Content, EventLimits, EventWire};
use crate::risk::Risk;

/// How far a score may be from the author's: float kernels of other processors add in another order. A wrong model is further off.
const SCORE_TOLERANCE: f64 = 1e-3;

/// One event with the answer it must get.
#[derive(Debug, Clone)]
pub struct GoldenCase {
    pub name: String,
    pub content: Content,
    pub expected: Expected,
}

/// The parts of the answer that are compared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expected {
    pub r#type: String,
    pub score: f64,
    pub acceptance: f64,
    /// `null` where the bundle has no risk model.
    pub sla_breach: Option<f64>,
}

/// A case as it stands in the file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    name: String,
    event: EventWire,
    expected: Expected,
}

impl Expected {
    /// What the author saw.
    pub fn of(classification: &Classification, risk: Option<&Risk>) -> Self {
        Self {
            r#type: classification.r#type.clone(),
            score: classification.score,
            acceptance: classification.acceptance,
            sla_breach: risk.map(|risk| risk.sla_breach.score),
        }
    }
}

impl GoldenCase {
    /// Golden cases are the bundle's own, so only their sanity is bounded.
    pub const LIMITS: EventLimits = EventLimits { max_narrative_chars: 32_000, max_lines: 1_000, max_attributes: 256 };

    /// How an answer differs from the expected one; `None` where it does not.
    pub fn difference(&self, classification: &Classification, risk: Option<&Risk>) -> Option<String> {
        let got = Expected::of(classification, risk);
        if got.r#type != self.expected.r#type {
            return Some(format!("is `{}` instead of `{}`", got.r#type, self.expected.r#type));
        }
        if got.sla_breach.is_some() != self.expected.sla_breach.is_some() {
            return Some("has a risk where none is expected, or none where one is".to_owned());
        }
        let pairs = [
            ("score", got.score, self.expected.score),
            ("acceptance", got.acceptance, self.expected.acceptance),
            ("SLA-breach score", got.sla_breach.unwrap_or(0.0), self.expected.sla_breach.unwrap_or(0.0)),
        ];
        let differs = |&(_, got, expected): &(&str, f64, f64)| (got - expected).abs() > SCORE_TOLERANCE || !got.is_finite();
        let (name, got, expected) = pairs.into_iter().find(differs)?;
        Some(format!("has the {name} {got:.6} instead of {expected:.6}"))
    }

    /// The file's text for these events and the answers they got.
    pub fn to_json(cases: Vec<(String, EventWire, Expected)>) -> String {
        let rows: Vec<Row> = cases.into_iter().map(|(name, event, expected)| Row { name, event, expected }).collect();
        let mut text = serde_json::to_string_pretty(&rows).expect("events and scores are JSON");
        text.push('\n');
        text
    }

    pub(super) fn parse_all(bytes: &[u8]) -> Result<Vec<Self>, BundleError> {
        let rows: Vec<Row> = serde_json::from_slice(bytes).map_err(BundleError::Golden)?;
        if rows.is_empty() {
            return Err(BundleError::NoGoldenCases);
        }
        let case = |row: Row| match row.event.into_content(&Self::LIMITS) {
            Ok(content) => Ok(Self { name: row.name, content, expected: row.expected }),
            Err(error) => Err(BundleError::GoldenEvent { case: row.name, reason: error.to_string() }),
        };
        rows.into_iter().map(case).collect()
    }
}
