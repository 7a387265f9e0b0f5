//! The figures of `metrics.json`.

use serde::Serialize;

use super::Prediction;
use crate::classifier::report::defined;
use crate::metrics;

/// Names as in scikit-learn where it has one. `null` where a figure is not defined.
#[derive(Debug, Clone, Serialize)]
pub struct Metrics {
    pub n: usize,
    pub n_in_scope: usize,
    pub n_out_of_scope: usize,
    /// Over all texts; an abstention is the right answer for a text that fits no type and wrong for any other.
    pub accuracy: Option<f64>,
    /// As `accuracy`, the abstention being one label more.
    pub macro_f1: Option<f64>,
    /// Of the best type on in-scope texts, whether the service abstained or not.
    pub type_accuracy: Option<f64>,
    pub type_macro_f1: Option<f64>,
    /// Of the candidates' probabilities on in-scope texts.
    pub log_loss: Option<f64>,
    /// Mean summed squared distance of the candidates' probabilities from the truth, 0 to 2, on in-scope texts.
    pub brier_score: Option<f64>,
    /// Of `score` against whether the best type is right, on in-scope texts.
    pub expected_calibration_error: Option<f64>,
    /// Of `novelty`, texts that fit no type being positive.
    pub roc_auc: Option<f64>,
    pub average_precision: Option<f64>,
    /// Of `1 - acceptance`, texts that fit no type being positive.
    pub acceptance_roc_auc: Option<f64>,
    /// Mean error over all coverages when cases are answered by falling `acceptance`.
    pub aurc: Option<f64>,
    pub coverage: Option<f64>,
    pub selective_risk: Option<f64>,
    pub oos_recall: Option<f64>,
    pub oos_precision: Option<f64>,
    pub in_scope_accuracy: Option<f64>,
}

impl Metrics {
    pub fn of(predictions: &[Prediction], types: &[String]) -> Self {
        let truths = Truths::of(predictions, types);
        let (out, abstained) = (&truths.out_of_scope, &truths.abstained);
        let answered: Vec<bool> = abstained.iter().map(|abstained| !abstained).collect();
        let answered_right: Vec<bool> = truths.right.iter().zip(&answered).map(|(&right, &answered)| right && answered).collect();
        let column = |score: &dyn Fn(&Prediction) -> f64| predictions.iter().map(score).collect::<Vec<f64>>();
        let novelty = column(&|row| row.classification.novelty);
        let acceptance = column(&|row| row.classification.acceptance);
        let doubt = column(&|row| 1.0 - row.classification.acceptance);
        let in_scope = truths.in_scope(predictions);
        Self {
            n: predictions.len(),
            n_in_scope: in_scope.actual.len(),
            n_out_of_scope: predictions.len() - in_scope.actual.len(),
            accuracy: defined(metrics::accuracy(&truths.actual, &truths.named)),
            macro_f1: defined(metrics::macro_f1(&truths.actual, &truths.named)),
            type_accuracy: defined(metrics::accuracy(&in_scope.actual, &in_scope.best)),
            type_macro_f1: defined(metrics::macro_f1(&in_scope.actual, &in_scope.best)),
            log_loss: defined(metrics::log_loss(&in_scope.actual, &in_scope.probabilities)),
            brier_score: defined(metrics::brier_score(&in_scope.actual, &in_scope.probabilities)),
            expected_calibration_error: defined(metrics::expected_calibration_error(&in_scope.right, &in_scope.scores)),
            roc_auc: defined(metrics::roc_auc(out, &novelty)),
            average_precision: defined(metrics::average_precision(out, &novelty)),
            acceptance_roc_auc: defined(metrics::roc_auc(out, &doubt)),
            aurc: defined(metrics::aurc(&truths.right, &acceptance)),
            coverage: defined(metrics::coverage(&answered)),
            selective_risk: defined(metrics::selective_risk(&answered, &answered_right)),
            oos_recall: defined(metrics::oos_recall(out, abstained)),
            oos_precision: defined(metrics::oos_precision(out, abstained)),
            in_scope_accuracy: defined(metrics::in_scope_accuracy(out, &answered_right)),
        }
    }
}

/// Truth and answers as label numbers; the number of types stands for "no type".
#[derive(Debug, Clone)]
pub struct Truths {
    pub actual: Vec<usize>,
    /// What the service answers, abstentions included.
    pub named: Vec<usize>,
    /// The best candidate, abstention or not.
    pub best: Vec<usize>,
    /// Whether the best candidate is the label.
    pub right: Vec<bool>,
    pub out_of_scope: Vec<bool>,
    pub abstained: Vec<bool>,
    probabilities: Vec<Vec<f64>>,
}

/// The rows of texts that have a type.
#[derive(Debug, Clone)]
pub struct InScope {
    pub actual: Vec<usize>,
    pub best: Vec<usize>,
    pub right: Vec<bool>,
    pub scores: Vec<f64>,
    pub probabilities: Vec<Vec<f64>>,
}

impl Truths {
    pub fn of(predictions: &[Prediction], types: &[String]) -> Self {
        let none = types.len();
        let class = |code: &str| types.iter().position(|known| known == code).expect("candidates are types of the bundle");
        let probabilities: Vec<Vec<f64>> = predictions
            .iter()
            .map(|row| {
                let mut probabilities = vec![0.0; none];
                for candidate in &row.classification.candidates {
                    probabilities[class(&candidate.r#type)] = candidate.score;
                }
                probabilities
            })
            .collect();
        let best: Vec<usize> = predictions.iter().map(|row| class(&row.classification.candidates[0].r#type)).collect();
        let abstained: Vec<bool> = predictions.iter().map(|row| row.classification.abstained).collect();
        Self {
            actual: predictions.iter().map(|row| row.class.unwrap_or(none)).collect(),
            named: best.iter().zip(&abstained).map(|(&best, &abstained)| if abstained { none } else { best }).collect(),
            right: predictions.iter().zip(&best).map(|(row, &best)| row.class == Some(best)).collect(),
            out_of_scope: predictions.iter().map(|row| row.class.is_none()).collect(),
            best,
            abstained,
            probabilities,
        }
    }

    pub fn in_scope(&self, predictions: &[Prediction]) -> InScope {
        let rows: Vec<usize> = (0..predictions.len()).filter(|&row| !self.out_of_scope[row]).collect();
        InScope {
            actual: rows.iter().map(|&row| self.actual[row]).collect(),
            best: rows.iter().map(|&row| self.best[row]).collect(),
            right: rows.iter().map(|&row| self.right[row]).collect(),
            scores: rows.iter().map(|&row| predictions[row].classification.score).collect(),
            probabilities: rows.iter().map(|&row| self.probabilities[row].clone()).collect(),
        }
    }
}
