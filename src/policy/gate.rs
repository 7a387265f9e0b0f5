//! The gate: is the classification sure enough for a machine to act, by a threshold that carries a promise.
//!
//! [`Thresholds`] come with the bundle, per type, with their evidence. Policy may ask for more than a threshold (a floor under the
//! acceptance, a stronger promise), never for less. It refuses a type without a certified threshold, an abstention, a text that is
//! foreign, speaks of a second problem or was not read to its end, and the absence of a classification.

use serde::Deserialize;

use super::evaluate::Finding;
use super::{Disposition, Gate, Guarantee, PolicyError, ReasonCode};
use crate::classifier::Classification;
use crate::taxonomy::{Taxonomy, UNRECOGNIZED};

/// The acceptance thresholds of a bundle, per type.
#[derive(Debug, Clone, PartialEq)]
pub struct Thresholds {
    max_error: f64,
    confidence: f64,
    method: String,
    split: String,
    rows: Vec<ThresholdRow>,
}

impl Thresholds {
    /// Reads `thresholds.toml`: the promise (`max_error`, `confidence`), how it was calibrated (`method`, `split`), and one
    /// `[[threshold]]` a type. A type without a row has insufficient evidence.
    ///
    /// # Errors
    /// Unknown or repeated types, numbers out of range, a row that is certified and lacks evidence at once.
    pub fn from_toml(text: &str, taxonomy: &Taxonomy) -> Result<Self, PolicyError> {
        let file: ThresholdsFile = toml::from_str(text)?;
        let thresholds = Self {
            max_error: file.max_error,
            confidence: file.confidence,
            method: file.method,
            split: file.split,
            rows: file.threshold,
        };
        thresholds.check(taxonomy)?;
        Ok(thresholds)
    }

    /// The row of a type, where calibration saw it.
    pub fn row(&self, r#type: &str) -> Option<&ThresholdRow> {
        self.rows.iter().find(|row| row.r#type == r#type)
    }

    /// Every row, in the order of the file.
    pub fn rows(&self) -> &[ThresholdRow] {
        &self.rows
    }

    /// Largest share of wrong cases among those over a threshold.
    pub fn max_error(&self) -> f64 {
        self.max_error
    }

    /// Confidence of the promise.
    pub fn confidence(&self) -> f64 {
        self.confidence
    }

    /// How the thresholds were found.
    pub fn method(&self) -> &str {
        &self.method
    }

    /// Which held-out cases they were found on.
    pub fn split(&self) -> &str {
        &self.split
    }

    /// The threshold that a policy's case states, under a promise that every policy accepts.
    pub(super) fn for_case(r#type: Option<&str>, threshold: Option<f64>) -> Self {
        let row = r#type.map(|code| ThresholdRow {
            r#type: code.to_owned(),
            threshold,
            n: 0,
            errors: 0,
            insufficient_evidence: threshold.is_none(),
            needed: None,
        });
        let (method, split) = ("case".to_owned(), "case".to_owned());
        Self { max_error: 0.0, confidence: 1.0, method, split, rows: row.into_iter().collect() }
    }

    fn check(&self, taxonomy: &Taxonomy) -> Result<(), PolicyError> {
        super::load::share("max_error", self.max_error)?;
        super::load::share("confidence", self.confidence)?;
        for (row_idx, row) in self.rows.iter().enumerate() {
            if taxonomy.type_by_code(&row.r#type).is_none() {
                return Err(PolicyError::UnknownName { kind: "type", name: row.r#type.clone(), at: "threshold".to_owned() });
            }
            if self.rows[..row_idx].iter().any(|earlier| earlier.r#type == row.r#type) {
                return Err(PolicyError::DuplicateId { table: "threshold", id: row.r#type.clone() });
            }
            if row.threshold.is_some_and(|threshold| !threshold.is_finite()) {
                return Err(PolicyError::BadNumber { field: format!("threshold `{}`", row.r#type), expected: "a finite number" });
            }
            if row.errors > row.n {
                return Err(PolicyError::BadNumber { field: format!("errors of `{}`", row.r#type), expected: "at most `n`" });
            }
            if row.threshold.is_some() == row.insufficient_evidence {
                return Err(PolicyError::ContradictoryThreshold { r#type: row.r#type.clone() });
            }
        }
        Ok(())
    }
}

/// What calibration found for one type.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ThresholdRow {
    pub r#type: String,
    /// Least acceptance that keeps the promise.
    #[serde(default)]
    pub threshold: Option<f64>,
    /// Held-out cases over the threshold, or all that there were.
    pub n: u64,
    /// How many of them were wrong.
    pub errors: u64,
    #[serde(default)]
    pub insufficient_evidence: bool,
    /// How many more cases would be needed, roughly.
    #[serde(default)]
    pub needed: Option<u64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ThresholdsFile {
    max_error: f64,
    confidence: f64,
    method: String,
    split: String,
    #[serde(default)]
    threshold: Vec<ThresholdRow>,
}

/// What policy asks of a classification beyond the certified threshold.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct GateSettings {
    /// Acceptance under which nothing is automated, whatever threshold is certified. Where it lies over the certified threshold,
    /// the answer shows no guarantee: the evidence was for the other one.
    pub(super) minimum_acceptance: f64,
    /// Acceptance under which not even an action is proposed.
    pub(super) propose_acceptance: f64,
    /// Novelty over which a person decides.
    pub(super) maximum_novelty: f64,
    /// Weakest promise that the policy accepts.
    pub(super) max_error: f64,
    pub(super) confidence: f64,
}

impl GateSettings {
    pub(super) fn check(&self) -> Result<(), PolicyError> {
        super::load::share("gate.minimum_acceptance", self.minimum_acceptance)?;
        super::load::share("gate.propose_acceptance", self.propose_acceptance)?;
        super::load::share("gate.maximum_novelty", self.maximum_novelty)?;
        super::load::share("gate.max_error", self.max_error)?;
        super::load::share("gate.confidence", self.confidence)?;
        if self.propose_acceptance > self.minimum_acceptance {
            return Err(PolicyError::BadNumber {
                field: "gate.propose_acceptance".to_owned(),
                expected: "at most `gate.minimum_acceptance`",
            });
        }
        Ok(())
    }

    /// Compares a classification with its threshold. Each finding is a reason why a machine may not act alone.
    pub(super) fn judge(
        &self,
        classification: Option<&Classification>,
        thresholds: &Thresholds,
        findings: &mut Vec<Finding>,
    ) -> Gate {
        let Some(classification) = classification else {
            findings.push(Finding::new(
                "gate.classifier",
                Disposition::Review,
                ReasonCode::ClassifierUnavailable,
                "the classifier gave no answer",
            ));
            return Gate { score: None, threshold: None, guarantee: None };
        };
        let tokens = classification.tokens;
        if tokens.used < tokens.total {
            findings.push(Finding::new(
                "gate.tokens",
                Disposition::Review,
                ReasonCode::TextTruncated,
                format!("only {} of the text's {} tokens were read", tokens.used, tokens.total),
            ));
        }
        if !reaches(self.maximum_novelty, classification.novelty) {
            findings.push(Finding::new(
                "gate.novelty",
                Disposition::Review,
                ReasonCode::NovelText,
                "the text is unlike those the classifier was trained on",
            ));
        }
        if classification.abstained || classification.r#type == UNRECOGNIZED {
            findings.push(Finding::new(
                "gate.type",
                Disposition::Review,
                ReasonCode::TypeUnrecognized,
                "the text fits no known type of exception",
            ));
            return Gate { score: Some(classification.acceptance), threshold: None, guarantee: None };
        }
        if !reaches(classification.acceptance, self.propose_acceptance) {
            findings.push(Finding::new(
                "gate.propose",
                Disposition::Review,
                ReasonCode::BelowThreshold,
                format!("the acceptance score is under {}, from which an action may be proposed", self.propose_acceptance),
            ));
        }
        if let Some(second) = classification.secondary_types.first() {
            findings.push(Finding::new(
                "gate.secondary",
                Disposition::Propose,
                ReasonCode::SecondProblem,
                format!("the text also speaks of `{}`, which one action may not settle", second.r#type),
            ));
        }
        self.compare(classification, thresholds, findings)
    }

    fn compare(&self, classification: &Classification, thresholds: &Thresholds, findings: &mut Vec<Finding>) -> Gate {
        let score = Some(classification.acceptance);
        let held = Gate { score, threshold: None, guarantee: None };
        let row = thresholds.row(&classification.r#type);
        let Some((row, certified)) = row.and_then(|row| Some((row, row.threshold?))) else {
            let detail = match row.and_then(|row| row.needed) {
                Some(needed) => {
                    format!("no threshold with a guarantee exists for this type; about {needed} more judged cases are needed")
                }
                None => "no threshold with a guarantee exists for this type".to_owned(),
            };
            findings.push(Finding::new("gate.evidence", Disposition::Propose, ReasonCode::InsufficientEvidence, detail));
            return held;
        };
        if thresholds.max_error > self.max_error || thresholds.confidence < self.confidence {
            findings.push(Finding::new(
                "gate.promise",
                Disposition::Propose,
                ReasonCode::InsufficientEvidence,
                format!(
                    "the bundle promises an error of at most {} with confidence {}; this policy asks for {} with {}",
                    thresholds.max_error, thresholds.confidence, self.max_error, self.confidence
                ),
            ));
            return held;
        }
        let threshold = certified.max(self.minimum_acceptance);
        if !reaches(classification.acceptance, threshold) {
            findings.push(Finding::new(
                "gate.threshold",
                Disposition::Propose,
                ReasonCode::BelowThreshold,
                format!("the acceptance score is under the threshold of {threshold}"),
            ));
        }
        // Error among the cases over a threshold may rise with the threshold, so evidence for one is none for another.
        let guarantee = (threshold == certified).then_some(Guarantee {
            max_error: thresholds.max_error,
            confidence: thresholds.confidence,
            n: row.n,
            errors: row.errors,
        });
        Gate { score, threshold: Some(threshold), guarantee }
    }
}

/// A score that is not a number reaches nothing, so that it is held.
fn reaches(score: f64, bound: f64) -> bool {
    score >= bound
}
