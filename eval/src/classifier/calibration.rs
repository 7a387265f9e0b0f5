//! Fits what turns raw scores into probabilities, novelty and acceptance, on predictions for held-out groups only.

use sluice::classifier::calibration::{
    ACCEPTANCE_SIGNS, Calibration, Logistic, N_ACCEPTANCE_FEATURES, N_NOVELTY_FEATURES, N_SECONDARY_FEATURES, NOVELTY_SIGNS,
    RawScores, SECONDARY_SIGNS, acceptance_features, novelty_features, secondary_features,
};
use sluice::text::TokenCount;

use super::logistic::fit_logistic;

/// Level of secondary types where no example has any.
const DEFAULT_SECONDARY_LEVEL: f64 = 0.25;

/// Types less likely than this to be a second problem are not shown as one.
const MIN_SECONDARY_LEVEL: f64 = 0.1;

/// What an in-scope text lost to an abstention weighs against an out-of-scope text let through. Two to one: the gate still
/// stands behind a text let through, nothing stands behind an abstention but a person's time.
const COVERAGE_WEIGHT: f64 = 2.0;

/// A held-out example with its raw scores.
#[derive(Debug, Clone)]
pub struct HeldOut {
    pub raw: RawScores,
    pub tokens: TokenCount,
    /// `None` where the text fits no type.
    pub class: Option<usize>,
    pub secondary: Vec<usize>,
}

/// A held-out example with its calibrated scores.
#[derive(Debug, Clone)]
pub struct Scored {
    pub class: Option<usize>,
    pub best: usize,
    pub probabilities: Vec<f64>,
    pub novelty: f64,
    pub acceptance: f64,
    pub abstained: bool,
}

impl Scored {
    /// Whether the best type is the right one, abstention or not.
    pub fn is_right(&self) -> bool {
        self.class == Some(self.best)
    }

    pub fn score(&self) -> f64 {
        self.probabilities[self.best]
    }
}

/// Applies a calibration as the service does.
pub fn apply(calibration: &Calibration, example: &HeldOut) -> Scored {
    let probabilities = calibration.probabilities(&example.raw);
    let novelty = calibration.novelty(&example.raw, &probabilities);
    let acceptance = calibration.acceptance(&example.raw, &probabilities, novelty, example.tokens);
    let abstained = novelty > calibration.novelty_threshold;
    Scored { class: example.class, best: first_max(&probabilities), probabilities, novelty, acceptance, abstained }
}

/// Fits every number of a calibration.
///
/// Without texts that fit no type, novelty is the probability of a wrong answer: the best that can be said then.
pub fn fit_calibration(examples: &[&HeldOut]) -> Calibration {
    let (lexical_weight, dense_weight) = fit_weights(examples);
    let mut calibration = Calibration {
        lexical_weight,
        dense_weight,
        uniform_share: 0.0,
        longest_text: examples.iter().map(|example| example.tokens.total).max().unwrap_or(0),
        least_known_words: least_known_words(examples),
        novelty_threshold: 1.0,
        secondary_level: DEFAULT_SECONDARY_LEVEL,
        secondary: Logistic { intercept: 0.0, coefficients: [0.0; N_SECONDARY_FEATURES] },
        novelty: Logistic { intercept: 0.0, coefficients: [0.0; N_NOVELTY_FEATURES] },
        acceptance: Logistic { intercept: 0.0, coefficients: [0.0; N_ACCEPTANCE_FEATURES] },
    };
    let sharp: Vec<Vec<f64>> = examples.iter().map(|example| calibration.probabilities(&example.raw)).collect();
    calibration.uniform_share = uniform_share(examples, &sharp);
    let probabilities: Vec<Vec<f64>> = examples.iter().map(|example| calibration.probabilities(&example.raw)).collect();
    let is_right = |idx: usize| examples[idx].class == Some(first_max(&probabilities[idx]));
    let any_outlier = examples.iter().any(|example| example.class.is_none());
    let is_novel = |idx: usize| if any_outlier { examples[idx].class.is_none() } else { !is_right(idx) };

    let rows: Vec<_> =
        (0..examples.len()).map(|idx| (novelty_features(&examples[idx].raw, &probabilities[idx]), is_novel(idx))).collect();
    calibration.novelty = fit_logistic(&rows, &NOVELTY_SIGNS);
    let novelties: Vec<f64> =
        examples.iter().zip(&probabilities).map(|(example, row)| calibration.novelty(&example.raw, row)).collect();
    calibration.novelty_threshold = novelty_threshold(&novelties, is_novel);

    let rows: Vec<_> = (0..examples.len())
        .map(|idx| (acceptance_features(&examples[idx].raw, &probabilities[idx], novelties[idx]), is_right(idx)))
        .collect();
    calibration.acceptance = fit_logistic(&rows, &ACCEPTANCE_SIGNS);
    fit_secondary(&mut calibration, examples, &probabilities);
    calibration
}

/// The two weights with the smallest log loss over the texts that have a type: a convex problem, by Newton's method.
fn fit_weights(examples: &[&HeldOut]) -> (f64, f64) {
    let (mut lexical, mut dense) = (1.0, 1.0);
    for _ in 0..60 {
        let (mut gradient, mut hessian) = ([0.0; 2], [1e-6, 0.0, 1e-6]);
        for example in examples {
            let Some(class) = example.class else { continue };
            let logits: Vec<[f64; 2]> =
                example.raw.lexical.iter().zip(&example.raw.dense).map(|(&a, &b)| [f64::from(a), f64::from(b)]).collect();
            let fused: Vec<f64> = logits.iter().map(|pair| lexical * pair[0] + dense * pair[1]).collect();
            let max = fused.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = fused.iter().map(|logit| (logit - max).exp()).sum();
            let (mut mean, mut square) = ([0.0; 2], [0.0; 3]);
            for (pair, logit) in logits.iter().zip(&fused) {
                let probability = (logit - max).exp() / sum;
                mean[0] += probability * pair[0];
                mean[1] += probability * pair[1];
                square[0] += probability * pair[0] * pair[0];
                square[1] += probability * pair[0] * pair[1];
                square[2] += probability * pair[1] * pair[1];
            }
            gradient[0] += mean[0] - logits[class][0];
            gradient[1] += mean[1] - logits[class][1];
            hessian[0] += square[0] - mean[0] * mean[0];
            hessian[1] += square[1] - mean[0] * mean[1];
            hessian[2] += square[2] - mean[1] * mean[1];
        }
        let determinant = hessian[0] * hessian[2] - hessian[1] * hessian[1];
        // Steps of at most 1: far from the minimum the quadratic promises too much.
        let step = |numerator: f64| (numerator / determinant).clamp(-1.0, 1.0);
        lexical = (lexical - step(hessian[2] * gradient[0] - hessian[1] * gradient[1])).max(0.0);
        dense = (dense - step(hessian[0] * gradient[1] - hessian[1] * gradient[0])).max(0.0);
    }
    (lexical, dense)
}

/// Far under what the middle half of the in-scope texts know: an outer fence (Tukey 1977, with the quartile's distance to the median
/// seven times instead of three, because words are skewed). A second language among the texts moves it little.
fn least_known_words(examples: &[&HeldOut]) -> f64 {
    let in_scope = examples.iter().filter(|example| example.class.is_some());
    let mut known: Vec<f64> = in_scope.map(|example| f64::from(example.raw.health.known_words)).collect();
    if known.is_empty() {
        return 0.0;
    }
    known.sort_by(f64::total_cmp);
    let quantile = |share: f64| known[((known.len() - 1) as f64 * share) as usize];
    (quantile(0.25) - 7.0 * (quantile(0.5) - quantile(0.25))).clamp(0.0, 1.0)
}

/// The threshold with the largest `2 · share of in-scope texts answered + share of out-of-scope texts caught`.
fn novelty_threshold(novelties: &[f64], is_novel: impl Fn(usize) -> bool) -> f64 {
    let mut order: Vec<usize> = (0..novelties.len()).collect();
    order.sort_by(|&a, &b| novelties[a].total_cmp(&novelties[b]));
    let n_novel = order.iter().filter(|&&idx| is_novel(idx)).count() as f64;
    let n_familiar = order.len() as f64 - n_novel;
    if n_novel == 0.0 || n_familiar == 0.0 {
        return 1.0;
    }
    let (mut covered, mut let_through) = (0.0, 0.0);
    let mut best = (0.0, 1.0);
    for (position, &idx) in order.iter().enumerate() {
        if is_novel(idx) {
            let_through += 1.0
        } else {
            covered += 1.0
        }
        let value = COVERAGE_WEIGHT * covered / n_familiar + (n_novel - let_through) / n_novel;
        if value > best.0 {
            // Between two neighbours, so that rounding puts neither on the wrong side.
            let next = order.get(position + 1).map_or(1.0, |&next| novelties[next]);
            best = (value, 0.5 * (novelties[idx] + next));
        }
    }
    best.1
}

/// The share with the smallest log loss over the texts that have a type: a concave problem in one number, by bisection.
///
/// At least one label in as many as were held out counts as unlike all the others, because that many texts cannot show less.
fn uniform_share(examples: &[&HeldOut], sharp: &[Vec<f64>]) -> f64 {
    let in_scope = examples.iter().zip(sharp).filter_map(|(example, row)| Some((row[example.class?], 1.0 / row.len() as f64)));
    let pairs: Vec<(f64, f64)> = in_scope.collect();
    let slope = |share: f64| -> f64 {
        pairs.iter().map(|&(sharp, uniform)| (uniform - sharp) / ((1.0 - share) * sharp + share * uniform).max(1e-12)).sum()
    };
    let (mut low, mut high) = (1.0 / (pairs.len() + 2) as f64, 0.5);
    for _ in 0..50 {
        let middle = 0.5 * (low + high);
        if slope(middle) > 0.0 { low = middle } else { high = middle }
    }
    low
}

/// Fits the probability of being secondary, and the level with the best F1, against the secondary types of the examples.
fn fit_secondary(calibration: &mut Calibration, examples: &[&HeldOut], probabilities: &[Vec<f64>]) {
    let mut rows = Vec::new();
    for (example, row) in examples.iter().zip(probabilities) {
        let best = first_max(row);
        let features = secondary_features(&example.raw, row).into_iter().enumerate();
        let others = features.filter(|&(class, _)| class != best);
        rows.extend(others.map(|(class, features)| (features, example.secondary.contains(&class))));
    }
    let n_true = rows.iter().filter(|row| row.1).count() as f64;
    if n_true == 0.0 {
        // Nothing to learn from: a type counts as secondary by how near it comes to the best one.
        calibration.secondary = Logistic { intercept: 0.0, coefficients: [1.0, 0.0, 0.0] };
        return;
    }
    calibration.secondary = fit_logistic(&rows, &SECONDARY_SIGNS);
    let mut scored: Vec<(f64, bool)> =
        rows.iter().map(|(features, is_true)| (calibration.secondary.probability(features), *is_true)).collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0));
    let (mut hits, mut best) = (0.0, (0.0, DEFAULT_SECONDARY_LEVEL));
    for (rank, row) in scored.iter().enumerate() {
        hits += f64::from(u8::from(row.1));
        let f1 = 2.0 * hits / (rank as f64 + 1.0 + n_true);
        if f1 > best.0 {
            best = (f1, row.0);
        }
    }
    // Under an even chance of one in ten the list would be mostly wrong.
    calibration.secondary_level = best.1.max(MIN_SECONDARY_LEVEL);
}

/// Index of the largest value, the first where several are.
pub fn first_max(values: &[f64]) -> usize {
    values.iter().enumerate().fold(0, |best, (idx, value)| if *value > values[best] { idx } else { best })
}
