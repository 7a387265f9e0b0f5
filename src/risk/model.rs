//! The risk models of a bundle: loading, which refuses what does not score as its trainer did, and scoring.
//!
//! It refuses to guess: a loss in money needs an order value, and without one [`Risk::revenue_at_risk`] is `None`. From here go
//! to [`super::features`] for what the models see and to [`super::calibration`] for how their answers are read.

use serde::{Deserialize, Serialize};

use super::calibration::RiskCalibration;
use super::features::{FeatureSchema, FeatureVector};
use super::trees::{Link, TreeEnsemble};
use super::{RevenueAtRisk, Risk, RiskError, SlaBreach};
use crate::event::{Facts, Order};

/// Largest difference between a golden row's stored score and ours. `f32` sums of a few hundred leaves differ by some 1e-6
/// between runtimes; a wrong tree differs by far more.
pub const GOLDEN_TOLERANCE: f64 = 1e-5;

/// The files of a bundle that make its risk models.
#[derive(Debug, Clone, Copy)]
pub struct RiskArtefacts<'a> {
    /// `features.toml`.
    pub features: &'a [u8],
    /// `risk_sla.onnx`: probability that the promise breaks.
    pub sla: &'a [u8],
    /// `risk_revenue.onnx`: loss as a fraction of order value.
    pub revenue: &'a [u8],
    /// `risk.toml`.
    pub calibration: &'a [u8],
    /// `risk_golden.json`.
    pub golden: &'a [u8],
}

/// Rows with the trainer's own predictions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GoldenRows {
    pub rows: Vec<GoldenRow>,
}

/// One row as the trainer scored it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GoldenRow {
    /// In the schema's order; `null` where missing.
    pub values: Vec<Option<f32>>,
    /// Raw score of the SLA model.
    pub sla: f64,
    /// Raw score of the revenue model.
    pub revenue: f64,
}

/// The risk models of a bundle.
#[derive(Debug)]
pub struct RiskModel {
    schema: FeatureSchema,
    pub(super) sla: TreeEnsemble,
    revenue: TreeEnsemble,
    calibration: RiskCalibration,
}

/// What the two models say of one row before calibration.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RawScores {
    pub sla: f64,
    pub revenue: f64,
}

impl RiskModel {
    /// Reads the artefacts, whose hashes the bundle has checked, and scores the golden rows.
    ///
    /// # Errors
    /// The file at fault with the reason; [`RiskError::Golden`] where a row's score is not the trainer's.
    pub fn load(artefacts: &RiskArtefacts<'_>) -> Result<Self, RiskError> {
        let text = |bytes| std::str::from_utf8(bytes);
        let schema = text(artefacts.features).map_err(|error| RiskError::Schema { reason: error.to_string() })?;
        let schema = FeatureSchema::parse(schema)?;
        let calibration = text(artefacts.calibration).map_err(|error| RiskError::Calibration { reason: error.to_string() })?;
        let calibration = RiskCalibration::parse(calibration)?;
        let ensemble = |model, bytes| {
            let ensemble = TreeEnsemble::parse(bytes).map_err(|source| RiskError::Onnx { model, source })?;
            if ensemble.n_features() != schema.n_features() {
                return Err(RiskError::Width { expected: schema.n_features(), got: ensemble.n_features() });
            }
            Ok(ensemble)
        };
        let sla = ensemble("sla", artefacts.sla)?;
        let revenue = ensemble("revenue", artefacts.revenue)?;
        if revenue.link() != Link::Identity {
            return Err(RiskError::RevenueIsProbability);
        }
        let model = Self { schema, sla, revenue, calibration };
        model.check_golden(artefacts.golden)?;
        Ok(model)
    }

    /// Scores the facts of one event.
    ///
    /// # Errors
    /// As [`FeatureVector::from_facts`]; [`RiskError::NotAProbability`] where a user's model answers outside 0 to 1.
    pub fn score(&self, facts: &Facts) -> Result<Risk, RiskError> {
        let vector = FeatureVector::from_facts(&self.schema, facts)?;
        let raw = self.raw_scores(&vector.values)?[0];
        if !(0.0..=1.0).contains(&raw.sla) {
            return Err(RiskError::NotAProbability { raw_score: raw.sla });
        }
        let score = self.calibration.sla.calibrator.probability(raw.sla);
        let (mean, p90) = self.calibration.revenue.mean_and_p90(raw.revenue);
        let order = facts.order.as_ref();
        let currency = order.and_then(|order| order.currency.clone());
        let worth = order.and_then(Order::worth);
        let revenue_at_risk = worth.map(|worth| RevenueAtRisk { expected: mean * worth, p90: p90 * worth, currency });
        let tier = facts.customer.as_ref().and_then(|customer| customer.sla_tier.as_deref());
        let expected = revenue_at_risk.as_ref().map(|revenue| revenue.expected);
        let currency = order.and_then(|order| order.currency.as_deref());
        let mut missing_features = self.names(&vector.missing);
        if order.is_none_or(|order| order.value.is_none()) && !missing_features.iter().any(|name| name == "order.value") {
            missing_features.insert(0, "order.value".to_owned());
        }
        Ok(Risk {
            sla_breach: SlaBreach { score, band: self.calibration.sla.bands.band(score) },
            revenue_at_risk,
            priority: self.calibration.priority.priority(score, tier, expected, currency),
            missing_features,
            out_of_range: self.names(&vector.out_of_range),
        })
    }

    /// What the models say of rows in the schema's order: row-major, NaN where missing. One answer a row, order kept.
    ///
    /// # Errors
    /// As [`TreeEnsemble::margins`].
    pub fn raw_scores(&self, rows: &[f32]) -> Result<Vec<RawScores>, RiskError> {
        let sla = self.sla.margins(rows)?;
        let revenue = self.revenue.margins(rows)?;
        let scores = sla.into_iter().zip(revenue);
        Ok(scores
            .map(|(sla, revenue)| RawScores { sla: self.sla.score_of(sla), revenue: self.revenue.score_of(revenue) })
            .collect())
    }

    pub fn schema(&self) -> &FeatureSchema {
        &self.schema
    }

    pub fn calibration(&self) -> &RiskCalibration {
        &self.calibration
    }

    /// Names of features, the important ones first.
    fn names(&self, indices: &[usize]) -> Vec<String> {
        let features = self.schema.features();
        let named = |important: bool| {
            indices.iter().map(|&idx| &features[idx]).filter(move |feature| feature.important == important).map(|f| f.name.clone())
        };
        named(true).chain(named(false)).collect()
    }

    fn check_golden(&self, bytes: &[u8]) -> Result<(), RiskError> {
        let golden: GoldenRows = serde_json::from_slice(bytes).map_err(|source| RiskError::GoldenForm { source })?;
        if golden.rows.is_empty() {
            return Err(RiskError::NoGoldenRows);
        }
        for (row, golden) in golden.rows.iter().enumerate() {
            if golden.values.len() != self.schema.n_features() {
                return Err(RiskError::Width { expected: self.schema.n_features(), got: golden.values.len() });
            }
            let values: Vec<f32> = golden.values.iter().map(|value| value.unwrap_or(f32::NAN)).collect();
            let raw = self.raw_scores(&values)?[0];
            for (model, expected, got) in [("sla", golden.sla, raw.sla), ("revenue", golden.revenue, raw.revenue)] {
                let difference = (expected - got).abs();
                if difference.is_nan() || difference > GOLDEN_TOLERANCE {
                    return Err(RiskError::Golden { model, row, expected, got });
                }
            }
        }
        Ok(())
    }
}
