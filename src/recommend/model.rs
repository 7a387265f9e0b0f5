//! The action model: how often an action is acceptable for a type, learnt from cases, and what acting costs and saves, assumed.
//!
//! `actions.toml` carries both, so that an assumption is versioned with the bundle and read beside what it shapes. It refuses codes
//! that the taxonomy does not know and numbers out of range. The file is written by `sluice-eval train actions`.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::feasibility::Requirement;
use crate::taxonomy::{MANUAL_REVIEW, Taxonomy};

/// The action model of a bundle.
#[derive(Debug)]
pub struct Recommender {
    pub(super) settings: Settings,
    /// Every action of the taxonomy, in its order.
    pub(super) actions: Vec<ActionModel>,
    pub(super) types: Vec<TypeModel>,
}

/// How actions are compared.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Settings {
    /// Factor on the score of an action whose supporting facts are not known, 0 to 1.
    pub(super) unsupported_factor: f64,
    /// Actions under this score are not shown.
    pub(super) minimum_score: f64,
    /// Weight of expected value, as a share of the money at risk, beside the score when ranking.
    pub(super) value_weight: f64,
    /// Currency of the costs.
    pub(super) currency: String,
    /// Value of one unit of another currency, in `currency`.
    #[serde(default)]
    pub(super) exchange_rates: BTreeMap<String, f64>,
}

/// What one action needs, costs and saves.
#[derive(Debug)]
pub(super) struct ActionModel {
    pub(super) code: String,
    /// Share of the money at risk that the action saves, 0 to 1: an assumption.
    pub(super) effectiveness: f64,
    /// What the action costs each time, in the settings' currency: an assumption.
    pub(super) cost: f64,
    pub(super) requires: Vec<Requirement>,
}

/// What was learnt about one type. `acceptable` and `best` are indexed as [`Recommender::actions`].
#[derive(Debug)]
pub(super) struct TypeModel {
    pub(super) code: String,
    pub(super) name: String,
    /// P(a competent operator accepts the action | type).
    pub(super) acceptable: Vec<f64>,
    /// P(the action is the operator's first choice | type).
    pub(super) best: Vec<f64>,
}

/// Why an action model was refused.
#[derive(Debug, thiserror::Error)]
pub enum RecommendError {
    #[error("the action model is not readable")]
    Parse(#[from] toml::de::Error),
    #[error("`{name}` is no {kind} of the taxonomy")]
    UnknownName { kind: &'static str, name: String },
    #[error("the action model knows nothing of {kind} `{name}`; train it with this taxonomy")]
    Missing { kind: &'static str, name: String },
    #[error("{kind} `{name}` stands twice in the action model")]
    Duplicate { kind: &'static str, name: String },
    #[error("`{field}` must be {expected}")]
    BadNumber { field: String, expected: &'static str },
    #[error("`manual_review` must require nothing: a person must always be able to take over")]
    ConditionalManualReview,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ModelFile {
    settings: Settings,
    #[serde(rename = "action")]
    actions: Vec<ActionFile>,
    #[serde(rename = "type")]
    types: Vec<TypeFile>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ActionFile {
    code: String,
    effectiveness: f64,
    cost: f64,
    #[serde(default)]
    requires: Vec<Requirement>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TypeFile {
    code: String,
    /// Cases it was learnt from.
    #[serde(rename = "n")]
    _n: u64,
    acceptable: BTreeMap<String, f64>,
    best: BTreeMap<String, f64>,
}

impl Recommender {
    /// Reads `actions.toml`. Every action and type of the taxonomy must be in it; an action that a type's table leaves out is
    /// never acceptable there.
    ///
    /// # Errors
    /// Codes that the taxonomy does not know or that stand twice or nowhere, numbers out of range.
    pub fn from_toml(text: &str, taxonomy: &Taxonomy) -> Result<Self, RecommendError> {
        let file: ModelFile = toml::from_str(text)?;
        file.settings.check()?;
        for action in &file.actions {
            if taxonomy.action_by_code(&action.code).is_none() {
                return Err(RecommendError::UnknownName { kind: "action", name: action.code.clone() });
            }
        }
        let mut actions = Vec::with_capacity(taxonomy.actions.len());
        for definition in &taxonomy.actions {
            let row = only("action", &definition.code, file.actions.iter().filter(|row| row.code == definition.code))?;
            actions.push(row.compile()?);
        }
        for row in &file.types {
            if taxonomy.type_by_code(&row.code).is_none() {
                return Err(RecommendError::UnknownName { kind: "type", name: row.code.clone() });
            }
        }
        let mut types = Vec::with_capacity(taxonomy.types.len());
        for definition in &taxonomy.types {
            let row = only("type", &definition.code, file.types.iter().filter(|row| row.code == definition.code))?;
            types.push(TypeModel {
                code: row.code.clone(),
                name: definition.name.clone(),
                acceptable: probabilities(&row.acceptable, &row.code, &actions)?,
                best: probabilities(&row.best, &row.code, &actions)?,
            });
        }
        Ok(Self { settings: file.settings, actions, types })
    }

    pub(super) fn manual_review_idx(&self) -> usize {
        let position = self.actions.iter().position(|action| action.code == MANUAL_REVIEW);
        position.expect("a checked taxonomy has `manual_review`, and the model holds every action of it")
    }
}

impl Settings {
    fn check(&self) -> Result<(), RecommendError> {
        share("settings.unsupported_factor", self.unsupported_factor)?;
        share("settings.minimum_score", self.minimum_score)?;
        share("settings.value_weight", self.value_weight)?;
        if let Some((code, _)) = self.exchange_rates.iter().find(|(_, rate)| !(rate.is_finite() && **rate > 0.0)) {
            return Err(RecommendError::BadNumber { field: format!("exchange_rates.{code}"), expected: "a finite number over 0" });
        }
        Ok(())
    }

    /// What one unit of `currency` is worth in the settings' currency.
    pub(super) fn rate(&self, currency: &str) -> Option<f64> {
        if currency == self.currency { Some(1.0) } else { self.exchange_rates.get(currency).copied() }
    }
}

impl ActionFile {
    fn compile(&self) -> Result<ActionModel, RecommendError> {
        share(&format!("effectiveness of {}", self.code), self.effectiveness)?;
        if !(self.cost.is_finite() && self.cost >= 0.0) {
            return Err(RecommendError::BadNumber {
                field: format!("cost of {}", self.code),
                expected: "a finite number, not negative",
            });
        }
        if self.code == MANUAL_REVIEW && !self.requires.is_empty() {
            return Err(RecommendError::ConditionalManualReview);
        }
        Ok(ActionModel {
            code: self.code.clone(),
            effectiveness: self.effectiveness,
            cost: self.cost,
            requires: self.requires.clone(),
        })
    }
}

fn probabilities(table: &BTreeMap<String, f64>, at: &str, actions: &[ActionModel]) -> Result<Vec<f64>, RecommendError> {
    for (code, probability) in table {
        if !actions.iter().any(|action| action.code == *code) {
            return Err(RecommendError::UnknownName { kind: "action", name: code.clone() });
        }
        share(&format!("{at}.{code}"), *probability)?;
    }
    Ok(actions.iter().map(|action| table.get(&action.code).copied().unwrap_or(0.0)).collect())
}

fn only<'a, T>(kind: &'static str, name: &str, mut rows: impl Iterator<Item = &'a T>) -> Result<&'a T, RecommendError> {
    let first = rows.next().ok_or_else(|| RecommendError::Missing { kind, name: name.to_owned() })?;
    match rows.next() {
        Some(_) => Err(RecommendError::Duplicate { kind, name: name.to_owned() }),
        None => Ok(first),
    }
}

fn share(field: &str, value: f64) -> Result<(), RecommendError> {
    if (0.0..=1.0).contains(&value) {
        return Ok(());
    }
    Err(RecommendError::BadNumber { field: field.to_owned(), expected: "a number between 0 and 1" })
}
