//! From raw scores to what a caller sees: probabilities, novelty, acceptance.
//!
//! Everything here is fitted on predictions for texts of authors the heads had not seen, because a head is always surer of its
//! own training texts. Features and formulas are shared with the harness, which fits the numbers of a [`Calibration`]. Every
//! coefficient that stands for evidence has one sign, so more doubt can never raise an acceptance.

use serde::{Deserialize, Serialize};

use super::lexical::LexicalHealth;
use crate::text::TokenCount;

/// What the heads say about one text, before calibration.
#[derive(Debug, Clone, PartialEq)]
pub struct RawScores {
    /// Logits of the lexical head, one a type.
    pub lexical: Vec<f32>,
    /// Logits of the head on the embedding, one a type.
    pub dense: Vec<f32>,
    /// Logit of "fits no type" by the words; 0 where the heads were trained without such texts.
    pub lexical_novelty: f32,
    /// Logit of "fits no type" by the embedding.
    pub dense_novelty: f32,
    /// Logits of "speaks of this type, first or not" by the embedding, one a type.
    pub presence: Vec<f32>,
    /// Cosine distance of the embedding to the nearest centre of a type's training texts, 0 to 2.
    pub class_distance: f32,
    pub health: LexicalHealth,
}

/// The fitted numbers of a bundle.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// Weight of the lexical logits. Both weights together are also the temperature.
    pub lexical_weight: f64,
    /// Weight of the dense logits.
    pub dense_weight: f64,
    /// Share of the probability that belongs to all types alike: no text is so clear that its label could not be another.
    pub uniform_share: f64,
    /// Tokens of the longest text that this was fitted on. Of a longer one nothing was certified, so its acceptance falls with what
    /// goes beyond.
    pub longest_text: usize,
    /// Share of known words under which a text is foreign, whatever its type looks like: another language, or no language.
    pub least_known_words: f64,
    /// Novelty over which the service abstains.
    pub novelty_threshold: f64,
    /// Probability of being secondary from which a type is shown as such.
    pub secondary_level: f64,
    pub secondary: Logistic<N_SECONDARY_FEATURES>,
    pub novelty: Logistic<N_NOVELTY_FEATURES>,
    pub acceptance: Logistic<N_ACCEPTANCE_FEATURES>,
}

/// A logistic model: `σ(intercept + coefficients · features)`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Logistic<const N: usize> {
    pub intercept: f64,
    #[serde(with = "array")]
    pub coefficients: [f64; N],
}

pub const N_NOVELTY_FEATURES: usize = 8;
/// The sign each novelty coefficient may have: +1, -1, or 0 for either.
pub const NOVELTY_SIGNS: [i8; N_NOVELTY_FEATURES] = [1, 1, -1, -1, 1, 1, 1, 0];
/// What [`novelty_features`] returns, in its order.
pub const NOVELTY_FEATURES: [&str; N_NOVELTY_FEATURES] = [
    "lexical_novelty",
    "dense_novelty",
    "score_logit",
    "margin",
    "class_distance",
    "unknown_words",
    "unknown_characters",
    "log_words",
];

pub const N_SECONDARY_FEATURES: usize = 3;
/// As [`NOVELTY_SIGNS`].
pub const SECONDARY_SIGNS: [i8; N_SECONDARY_FEATURES] = [1, 1, 1];
/// What [`secondary_features`] returns, in its order.
pub const SECONDARY_FEATURES: [&str; N_SECONDARY_FEATURES] = ["log_ratio_to_best", "presence", "lexical_log_probability"];

pub const N_ACCEPTANCE_FEATURES: usize = 5;
/// As [`NOVELTY_SIGNS`].
pub const ACCEPTANCE_SIGNS: [i8; N_ACCEPTANCE_FEATURES] = [1, 1, 1, 1, -1];
/// What [`acceptance_features`] returns, in its order.
pub const ACCEPTANCE_FEATURES: [&str; N_ACCEPTANCE_FEATURES] =
    ["score_logit", "margin", "lexical_log_probability", "dense_log_probability", "novelty_logit"];

/// Logits end here: beyond it a probability says nothing that held-out cases could bear out.
const MAX_LOGIT: f64 = 12.0;

impl Calibration {
    /// Probabilities of the types, in their order; they sum to 1.
    pub fn probabilities(&self, raw: &RawScores) -> Vec<f64> {
        let logits = raw.lexical.iter().zip(&raw.dense);
        let logits =
            logits.map(|(&lexical, &dense)| self.lexical_weight * f64::from(lexical) + self.dense_weight * f64::from(dense));
        let mut probabilities = softmax(logits.collect());
        let share = self.uniform_share / probabilities.len() as f64;
        probabilities.iter_mut().for_each(|probability| *probability = (1.0 - self.uniform_share) * *probability + share);
        probabilities
    }

    /// Probability that each type is a secondary one, 0 for the best.
    pub fn secondary(&self, raw: &RawScores, probabilities: &[f64]) -> Vec<f64> {
        let (best, ..) = top_two(probabilities);
        let features = secondary_features(raw, probabilities);
        let score = |(class, features)| if class == best { 0.0 } else { self.secondary.probability(&features) };
        features.into_iter().enumerate().map(score).collect()
    }

    /// How unlike the training texts the text is, 0 (familiar) to 1 (foreign).
    pub fn novelty(&self, raw: &RawScores, probabilities: &[f64]) -> f64 {
        if f64::from(raw.health.known_words) < self.least_known_words {
            return 1.0;
        }
        self.novelty.probability(&novelty_features(raw, probabilities))
    }

    /// What the gate compares, 0 to 1. A text counts only as far as the encoder saw it and held-out texts reached.
    pub fn acceptance(&self, raw: &RawScores, probabilities: &[f64], novelty: f64, tokens: TokenCount) -> f64 {
        let used = tokens.used.min(tokens.total).min(self.longest_text);
        let seen = if tokens.total == 0 { 1.0 } else { used as f64 / tokens.total as f64 };
        self.acceptance.probability(&acceptance_features(raw, probabilities, novelty)) * seen
    }

    /// Whether every number is finite, every weight in its range and every coefficient of its sign.
    pub fn is_sound(&self) -> bool {
        let unit = |value: f64| (0.0..=1.0).contains(&value);
        let weight = |value: f64| value.is_finite() && value >= 0.0;
        weight(self.lexical_weight)
            && weight(self.dense_weight)
            && (0.0..1.0).contains(&self.uniform_share)
            && unit(self.least_known_words)
            && unit(self.novelty_threshold)
            && unit(self.secondary_level)
            && self.secondary.is_sound(&SECONDARY_SIGNS)
            && self.novelty.is_sound(&NOVELTY_SIGNS)
            && self.acceptance.is_sound(&ACCEPTANCE_SIGNS)
    }
}

impl<const N: usize> Logistic<N> {
    pub fn probability(&self, features: &[f64; N]) -> f64 {
        let logit: f64 = self.coefficients.iter().zip(features).map(|(coefficient, feature)| coefficient * feature).sum();
        1.0 / (1.0 + (-(self.intercept + logit)).exp())
    }

    fn is_sound(&self, signs: &[i8; N]) -> bool {
        let signed = |(&coefficient, &sign): (&f64, &i8)| coefficient.is_finite() && coefficient * f64::from(sign) >= 0.0;
        self.intercept.is_finite() && self.coefficients.iter().zip(signs).all(signed)
    }
}

/// The evidence for novelty, see [`NOVELTY_FEATURES`].
pub fn novelty_features(raw: &RawScores, probabilities: &[f64]) -> [f64; N_NOVELTY_FEATURES] {
    let (_, first, second) = top_two(probabilities);
    [
        f64::from(raw.lexical_novelty),
        f64::from(raw.dense_novelty),
        logit(first),
        margin(first, second),
        f64::from(raw.class_distance),
        1.0 - f64::from(raw.health.known_words),
        1.0 - f64::from(raw.health.known_characters),
        (1.0 + raw.health.n_words as f64).ln(),
    ]
}

/// The evidence that a type is secondary, of each type in turn, see [`SECONDARY_FEATURES`].
pub fn secondary_features(raw: &RawScores, probabilities: &[f64]) -> Vec<[f64; N_SECONDARY_FEATURES]> {
    let (_, first, _) = top_two(probabilities);
    let lexical = softmax(raw.lexical.iter().map(|&logit| f64::from(logit)).collect());
    let features = probabilities.iter().zip(&raw.presence).zip(lexical).map(|((&probability, &presence), lexical)| {
        [(probability / first).ln().max(-MAX_LOGIT), f64::from(presence), lexical.ln().max(-MAX_LOGIT)]
    });
    features.collect()
}

/// The evidence for a right answer, see [`ACCEPTANCE_FEATURES`].
pub fn acceptance_features(raw: &RawScores, probabilities: &[f64], novelty: f64) -> [f64; N_ACCEPTANCE_FEATURES] {
    let (best, first, second) = top_two(probabilities);
    let head = |logits: &[f32]| {
        let probabilities = softmax(logits.iter().map(|&logit| f64::from(logit)).collect());
        probabilities.get(best).map_or(-MAX_LOGIT, |probability| probability.ln().max(-MAX_LOGIT))
    };
    [logit(first), margin(first, second), head(&raw.lexical), head(&raw.dense), logit(novelty)]
}

/// `ln(p / (1 - p))`, within ±12.
pub fn logit(probability: f64) -> f64 {
    (probability / (1.0 - probability)).ln().clamp(-MAX_LOGIT, MAX_LOGIT)
}

fn margin(first: f64, second: f64) -> f64 {
    (first / second).ln().clamp(0.0, MAX_LOGIT)
}

/// Index and value of the largest probability (the earlier one where two are equal) and the value of the second.
fn top_two(probabilities: &[f64]) -> (usize, f64, f64) {
    let (mut best, mut first, mut second) = (0, 0.0, 0.0);
    for (class, &probability) in probabilities.iter().enumerate() {
        if probability > first {
            (best, first, second) = (class, probability, first);
        } else if probability > second {
            second = probability;
        }
    }
    (best, first, second)
}

fn softmax(mut logits: Vec<f64>) -> Vec<f64> {
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mut sum = 0.0;
    for logit in &mut logits {
        *logit = (*logit - max).exp();
        sum += *logit;
    }
    for logit in &mut logits {
        *logit /= sum;
    }
    logits
}

/// serde knows arrays of a const length only as sequences.
mod array {
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer, const N: usize>(values: &[f64; N], serializer: S) -> Result<S::Ok, S::Error> {
        values.as_slice().serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>, const N: usize>(deserializer: D) -> Result<[f64; N], D::Error> {
        let values = Vec::<f64>::deserialize(deserializer)?;
        let found = values.len();
        values.try_into().map_err(|_| D::Error::custom(format_args!("{found} coefficients where {N} are expected")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn calibration() -> Calibration {
        Calibration {
            lexical_weight: 2.0,
            dense_weight: 0.5,
            uniform_share: 0.0,
            longest_text: 300,
            least_known_words: 0.1,
            novelty_threshold: 0.5,
            secondary_level: 0.2,
            secondary: Logistic { intercept: 0.0, coefficients: [1.0, 1.0, 0.0] },
            novelty: Logistic { intercept: -1.0, coefficients: [1.0, 0.5, -0.5, -0.1, 0.5, 2.0, 2.0, 0.1] },
            acceptance: Logistic { intercept: 0.0, coefficients: [0.5, 0.2, 0.3, 0.1, -0.4] },
        }
    }

    fn raw(lexical_novelty: f32, known_words: f32) -> RawScores {
        RawScores {
            lexical: vec![2.0, 0.5, -1.0],
            dense: vec![1.0, 1.0, 0.0],
            lexical_novelty,
            dense_novelty: 0.0,
            presence: vec![0.0; 3],
            class_distance: 0.4,
            health: LexicalHealth { n_words: 8, known_words, known_characters: 1.0 },
        }
    }

    fn acceptance(raw: &RawScores, tokens: TokenCount) -> f64 {
        let calibration = calibration();
        let probabilities = calibration.probabilities(raw);
        let novelty = calibration.novelty(raw, &probabilities);
        calibration.acceptance(raw, &probabilities, novelty, tokens)
    }

    #[test]
    fn probabilities_sum_to_one_and_survive_huge_logits() {
        let mut raw = raw(0.0, 1.0);
        assert!((calibration().probabilities(&raw).iter().sum::<f64>() - 1.0).abs() < 1e-12);
        raw.lexical = vec![1e30, -1e30, 0.0];
        assert_eq!(calibration().probabilities(&raw), [1.0, 0.0, 0.0]);
        assert!(acceptance(&raw, TokenCount { total: 5, used: 5 }).is_finite());
    }

    #[test]
    fn a_uniform_share_bounds_every_probability() {
        let mut raw = raw(0.0, 1.0);
        raw.lexical = vec![1e30, -1e30, 0.0];
        let bounded = Calibration { uniform_share: 0.03, ..calibration() };
        let probabilities = bounded.probabilities(&raw);
        assert!((probabilities.iter().sum::<f64>() - 1.0).abs() < 1e-12);
        assert!((probabilities[0] - 0.98).abs() < 1e-12 && (probabilities[1] - 0.01).abs() < 1e-12);
    }

    #[test]
    fn a_text_of_unknown_words_is_foreign_however_sure_its_type() {
        let calibration = calibration();
        let raw = raw(-9.0, 0.09);
        let probabilities = calibration.probabilities(&raw);
        assert_eq!(calibration.novelty(&raw, &probabilities), 1.0);
    }

    #[test]
    fn the_best_type_is_never_secondary() {
        let mut raw = raw(0.0, 1.0);
        raw.presence = vec![9.0, 2.0, -5.0];
        let calibration = calibration();
        let probabilities = calibration.probabilities(&raw);
        let secondary = calibration.secondary(&raw, &probabilities);
        let best = (0..3).max_by(|&a, &b| probabilities[a].total_cmp(&probabilities[b])).unwrap();
        assert_eq!(secondary[best], 0.0);
        raw.presence[(best + 1) % 3] += 1.0;
        assert!(calibration.secondary(&raw, &probabilities)[(best + 1) % 3] > secondary[(best + 1) % 3]);
    }

    #[test]
    fn doubt_lowers_acceptance() {
        #[track_caller]
        fn check(doubtful: f64, sure: f64) {
            assert!(doubtful < sure, "{doubtful} is not under {sure}");
        }

        let whole = TokenCount { total: 100, used: 100 };
        let sure = acceptance(&raw(-1.0, 1.0), whole);
        check(acceptance(&raw(3.0, 1.0), whole), sure);
        check(acceptance(&raw(-1.0, 0.2), whole), sure);
        check(acceptance(&raw(-1.0, 1.0), TokenCount { total: 280, used: 256 }), sure);
        // Longer than any held-out text, though seen whole.
        check(acceptance(&raw(-1.0, 1.0), TokenCount { total: 301, used: 301 }), sure);
        assert_eq!(acceptance(&raw(-1.0, 1.0), TokenCount { total: 300, used: 300 }), sure);
    }

    #[test]
    fn a_coefficient_of_the_wrong_sign_is_unsound() {
        assert!(calibration().is_sound());
        let mut wrong = calibration();
        wrong.acceptance.coefficients[0] = -0.1;
        assert!(!wrong.is_sound());
        let mut infinite = calibration();
        infinite.novelty.intercept = f64::INFINITY;
        assert!(!infinite.is_sound());
    }
}
