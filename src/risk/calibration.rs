//! From raw model answers to what people read: calibrated probability, bands, the loss nine in ten stay under, priority.
//!
//! All numbers come from `risk.toml`, which training fits on cases the trees did not see. It refuses tables that are not
//! monotone or not finite.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Band, Priority, RiskError};

/// The form of `risk.toml` this code reads.
const CALIBRATION_VERSION: u32 = 1;
/// Scores are kept this far from 0 and 1 before their logit is taken; a finite model says nothing beyond it.
const SCORE_FLOOR: f64 = 1e-7;
/// Bounds of the money factor: an order's size may halve or double its priority, never decide it alone.
const MONEY_FACTOR: (f64, f64) = (0.5, 2.0);

/// Everything in `risk.toml`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RiskCalibration {
    pub version: u32,
    pub sla: SlaCalibration,
    pub revenue: RevenueCalibration,
    pub priority: PriorityRule,
}

/// How a raw SLA score is read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SlaCalibration {
    pub bands: BandLimits,
    pub calibrator: Calibrator,
}

/// Lowest calibrated probability of the two upper bands.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BandLimits {
    pub medium: f64,
    pub high: f64,
}

/// A monotone map from raw score to probability.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Calibrator {
    /// `logistic(slope × logit(raw_score) + intercept)` (Platt 1999).
    Platt { slope: f64, intercept: f64 },
    /// Linear between the points, constant outside them; both lists ascend (Zadrozny and Elkan 2002).
    Isotonic { raw_scores: Vec<f64>, probabilities: Vec<f64> },
}

/// How a predicted loss fraction is read. The 90 % limit is split conformal within bins of the prediction (Lei et al. 2018):
/// the 0.9 quantile of the residuals of calibration cases with a like prediction.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RevenueCalibration {
    /// Ascending limits between the bins of predicted loss fraction.
    pub bin_edges: Vec<f64>,
    /// Per bin, what is added to the prediction; one more than edges.
    pub p90_offsets: Vec<f64>,
}

/// In which order people look: probability × tier weight × money factor against three limits. The money factor is the square
/// root of expected loss over the currency's reference loss, held between 0.5 and 2; it is 1 where the loss or the reference is
/// not known, so an unknown amount neither raises nor lowers a case.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PriorityRule {
    /// Weight of a known tier, by its lower-case name.
    pub tier_weights: BTreeMap<String, f64>,
    /// Weight of a tier that is missing or unknown.
    pub other_tier_weight: f64,
    /// Expected loss of a usual case, by currency.
    pub reference_loss: BTreeMap<String, f64>,
    /// Lowest index of each priority above low.
    pub normal: f64,
    pub high: f64,
    pub critical: f64,
}

impl RiskCalibration {
    /// Reads `risk.toml`.
    ///
    /// # Errors
    /// [`RiskError::Calibration`] for another form, or limits and tables that are not finite or do not ascend.
    pub fn parse(toml: &str) -> Result<Self, RiskError> {
        let calibration: Self = toml::from_str(toml).map_err(|error| RiskError::Calibration { reason: error.to_string() })?;
        calibration.check().map_err(|reason| RiskError::Calibration { reason: reason.to_owned() })?;
        Ok(calibration)
    }

    /// The text of `risk.toml`.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("a calibration has only strings, numbers and lists")
    }

    fn check(&self) -> Result<(), &'static str> {
        if self.version != CALIBRATION_VERSION {
            return Err("its version is not 1");
        }
        let BandLimits { medium, high } = self.sla.bands;
        if !(0.0 < medium && medium < high && high < 1.0) {
            return Err("band limits must ascend between 0 and 1");
        }
        match &self.sla.calibrator {
            Calibrator::Platt { slope, intercept } if *slope > 0.0 && slope.is_finite() && intercept.is_finite() => {}
            Calibrator::Platt { .. } => return Err("a Platt slope must be positive and both numbers finite"),
            Calibrator::Isotonic { raw_scores, probabilities } => {
                let in_unit = |values: &[f64]| values.iter().all(|value| (0.0..=1.0).contains(value));
                if raw_scores.is_empty() || raw_scores.len() != probabilities.len() {
                    return Err("an isotonic table needs as many probabilities as raw scores, at least one");
                }
                if !in_unit(raw_scores) || !in_unit(probabilities) || !ascends(raw_scores, true) || !ascends(probabilities, false) {
                    return Err("an isotonic table must ascend between 0 and 1");
                }
            }
        }
        let RevenueCalibration { bin_edges, p90_offsets } = &self.revenue;
        if p90_offsets.len() != bin_edges.len() + 1
            || !ascends(bin_edges, true)
            || p90_offsets.iter().any(|offset| !offset.is_finite())
        {
            return Err("revenue needs ascending `bin_edges` and one more finite `p90_offsets`");
        }
        let rule = &self.priority;
        let mut weights =
            rule.tier_weights.values().chain(rule.reference_loss.values()).chain([&rule.other_tier_weight, &rule.normal]);
        if weights.any(|weight| !(*weight > 0.0 && weight.is_finite())) || !ascends(&[rule.normal, rule.high, rule.critical], true)
        {
            return Err("priority weights must be positive and its limits ascend");
        }
        Ok(())
    }
}

impl Calibrator {
    /// The calibrated probability of a raw score between 0 and 1.
    pub fn probability(&self, raw_score: f64) -> f64 {
        match self {
            Self::Platt { slope, intercept } => {
                let clipped = raw_score.clamp(SCORE_FLOOR, 1.0 - SCORE_FLOOR);
                let logit = (clipped / (1.0 - clipped)).ln();
                1.0 / (1.0 + (-(slope * logit + intercept)).exp())
            }
            Self::Isotonic { raw_scores, probabilities } => {
                let above = raw_scores.partition_point(|known| *known <= raw_score);
                match (above.checked_sub(1), raw_scores.get(above)) {
                    (None, _) => probabilities[0],
                    (Some(last), None) => probabilities[last],
                    (Some(below), Some(next)) => {
                        let share = (raw_score - raw_scores[below]) / (next - raw_scores[below]);
                        probabilities[below] + share * (probabilities[above] - probabilities[below])
                    }
                }
            }
        }
    }
}

impl BandLimits {
    pub fn band(self, probability: f64) -> Band {
        match probability {
            p if p >= self.high => Band::High,
            p if p >= self.medium => Band::Medium,
            _ => Band::Low,
        }
    }
}

impl RevenueCalibration {
    /// Mean and 90 % limit of the loss as a fraction of order value, from the model's prediction. Neither is negative, and the
    /// limit is never under the mean.
    pub fn mean_and_p90(&self, predicted: f64) -> (f64, f64) {
        let mean = predicted.max(0.0);
        (mean, (predicted + self.offset(predicted)).max(mean))
    }

    /// What the bin of this prediction adds to it for the 90 % limit.
    pub fn offset(&self, predicted: f64) -> f64 {
        self.p90_offsets[self.bin_edges.partition_point(|edge| *edge <= predicted)]
    }
}

impl PriorityRule {
    /// The priority of a case. `expected_loss` is in `currency`.
    pub fn priority(&self, probability: f64, tier: Option<&str>, expected_loss: Option<f64>, currency: Option<&str>) -> Priority {
        match self.index(probability, tier, expected_loss, currency) {
            index if index >= self.critical => Priority::Critical,
            index if index >= self.high => Priority::High,
            index if index >= self.normal => Priority::Normal,
            _ => Priority::Low,
        }
    }

    /// The number that priorities compare.
    pub fn index(&self, probability: f64, tier: Option<&str>, expected_loss: Option<f64>, currency: Option<&str>) -> f64 {
        let tier =
            tier.and_then(|tier| self.tier_weights.get(&tier.trim().to_lowercase())).copied().unwrap_or(self.other_tier_weight);
        let reference = currency.and_then(|currency| self.reference_loss.get(currency));
        let money = expected_loss
            .zip(reference)
            .map_or(1.0, |(loss, reference)| (loss / reference).sqrt().clamp(MONEY_FACTOR.0, MONEY_FACTOR.1));
        probability * tier * money
    }
}

fn ascends(values: &[f64], strictly: bool) -> bool {
    values.iter().all(|value| value.is_finite())
        && values.windows(2).all(|pair| if strictly { pair[0] < pair[1] } else { pair[0] <= pair[1] })
}
