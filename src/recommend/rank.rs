//! The ranking: how likely an operator accepts the action, what the facts say about it, and what it is expected to save.
//!
//! Feasible actions come first. Among them the order is by `score + value_weight × saved`, where `saved` is the expected value as a
//! share of the money at risk, between -1 and 1; then by how often the action is an operator's first choice; then by the order of
//! the taxonomy. `manual_review` is always there and comes last among the feasible, because it solves nothing, unless the text
//! names no type: then nothing else is known to fit, and it leads.

use super::feasibility::{Support, support};
use super::{RecommendInput, Recommendation, Recommender};
use crate::classifier::Classification;

/// Money at stake, for the expected value.
struct Stake<'a> {
    expected: f64,
    currency: &'a str,
    /// Units of the settings' currency to one of `currency`.
    rate: f64,
}

struct Scored {
    action_idx: usize,
    score: f64,
    best: f64,
    utility: f64,
    expected_value: Option<f64>,
    infeasible_because: Option<String>,
}

impl Recommender {
    /// Every candidate action, feasible ones first, best first; never empty: `manual_review` is always among them.
    pub fn recommend(&self, input: &RecommendInput<'_>) -> Vec<Recommendation> {
        let weights = self.type_weights(input.classification);
        let stake = self.stake(input);
        let manual_review = self.manual_review_idx();
        let leads = input.classification.is_none_or(|classification| classification.abstained);
        let mut scored: Vec<Scored> = (0..self.actions.len())
            .map(|action_idx| self.score(action_idx, &weights, stake.as_ref(), input))
            .filter(|scored| scored.action_idx == manual_review || scored.score >= self.settings.minimum_score)
            .collect();
        // Smaller places come first: a leading manual review, the feasible, a trailing manual review, the infeasible.
        let place = |scored: &Scored| match (scored.action_idx == manual_review, scored.infeasible_because.is_some()) {
            (true, _) if leads => 0,
            (false, false) => 1,
            (true, _) => 2,
            (false, true) => 3,
        };
        scored.sort_by(|left, right| {
            place(left)
                .cmp(&place(right))
                .then_with(|| right.utility.total_cmp(&left.utility))
                .then_with(|| right.best.total_cmp(&left.best))
                .then_with(|| left.action_idx.cmp(&right.action_idx))
        });
        let currency = stake.as_ref().map(|stake| stake.currency);
        scored.into_iter().enumerate().map(|(row_idx, scored)| self.present(row_idx + 1, scored, currency)).collect()
    }

    /// Calibrated probability of each type of the model, summing to 1; all alike where there is no classification.
    fn type_weights(&self, classification: Option<&Classification>) -> Vec<f64> {
        let probability = |code: &str| {
            let candidates = classification.map_or(&[][..], |classification| &classification.candidates);
            let candidate = candidates.iter().find(|candidate| candidate.r#type == code);
            candidate.map_or(0.0, |candidate| candidate.score).max(0.0)
        };
        let raw: Vec<f64> = self.types.iter().map(|model| probability(&model.code)).collect();
        let total: f64 = raw.iter().sum();
        if total.is_finite() && total > 0.0 {
            return raw.into_iter().map(|weight| weight / total).collect();
        }
        vec![1.0 / self.types.len() as f64; self.types.len()]
    }

    fn stake<'a>(&self, input: &RecommendInput<'a>) -> Option<Stake<'a>> {
        let revenue = input.risk?.revenue_at_risk.as_ref().filter(|revenue| revenue.expected.is_finite())?;
        let currency = revenue.currency.as_deref()?;
        Some(Stake { expected: revenue.expected, currency, rate: self.settings.rate(currency)? })
    }

    fn score(&self, action_idx: usize, weights: &[f64], stake: Option<&Stake<'_>>, input: &RecommendInput<'_>) -> Scored {
        let action = &self.actions[action_idx];
        let mix = |of: fn(&super::model::TypeModel) -> &[f64]| -> f64 {
            self.types.iter().zip(weights).map(|(model, weight)| of(model)[action_idx] * weight).sum()
        };
        let (factor, infeasible_because) = match support(&action.requires, input.facts) {
            Support::Full => (1.0, None),
            Support::Partial => (self.settings.unsupported_factor, None),
            Support::Infeasible(because) => (1.0, Some(because)),
        };
        let score = (mix(|model| &model.acceptable) * factor).clamp(0.0, 1.0);
        let expected_value = stake.map(|stake| stake.expected * action.effectiveness - action.cost / stake.rate);
        let saved = match (stake, expected_value) {
            (Some(stake), Some(value)) if stake.expected > 0.0 => (value / stake.expected).clamp(-1.0, 1.0),
            _ => 0.0,
        };
        let utility = score + self.settings.value_weight * saved;
        Scored { action_idx, score, best: mix(|model| &model.best), utility, expected_value, infeasible_because }
    }

    fn present(&self, rank: usize, scored: Scored, currency: Option<&str>) -> Recommendation {
        Recommendation {
            action: self.actions[scored.action_idx].code.clone(),
            rank,
            score: scored.score,
            expected_value: scored.expected_value,
            currency: scored.expected_value.and(currency).map(str::to_owned),
            feasible: scored.infeasible_because.is_none(),
            infeasible_because: scored.infeasible_because,
            approver_role: None,
        }
    }
}
