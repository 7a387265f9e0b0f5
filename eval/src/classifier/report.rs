//! The figures of a training run: what `classifier.report.json` holds and the terminal shows.

use std::collections::BTreeMap;
use std::fmt::{self, Display};

use serde::Serialize;

use super::calibration::Scored;
use super::dense::EncoderTraining;
use super::heads::HeadParams;
use super::threshold::ThresholdsFile;
use crate::finetune::FineTuneParams;
use crate::metrics;

/// Everything a training run says about itself.
#[derive(Debug, Clone, Serialize)]
pub struct TrainingReport {
    pub seed: u64,
    /// SHA-256 of each data file.
    pub data: BTreeMap<String, String>,
    pub n_in_scope: usize,
    pub n_out_of_scope: usize,
    pub types: Vec<String>,
    /// Whether folds are whole groups (authors, sites).
    pub held_out_by_group: bool,
    pub encoder: EncoderTraining,
    pub n_folds: usize,
    pub params: HeadParams,
    /// `None` where the encoder served as it is.
    pub fine_tune: Option<FineTuneParams>,
    pub lexical_weight: f64,
    pub dense_weight: f64,
    pub novelty_threshold: f64,
    pub secondary_level: f64,
    pub n_features: usize,
    /// Empty where the data has one group.
    pub groups: Vec<GroupReport>,
    /// Over all examples.
    pub held_out: Figures,
    pub floor: FloorFigures,
    pub per_type: Vec<TypeReport>,
    pub thresholds: ThresholdsFile,
}

/// One group by heads that had not seen it, types only: what the best type was, abstention or not.
#[derive(Debug, Clone, Serialize)]
pub struct GroupReport {
    pub group: String,
    pub n: usize,
    pub accuracy: f64,
    pub macro_f1: f64,
    pub floor_accuracy: f64,
    pub floor_macro_f1: f64,
    /// Of novelty, for the texts that fit no type.
    pub novelty_roc_auc: Option<f64>,
}

/// Held-out figures of the classifier.
#[derive(Debug, Clone, Serialize)]
pub struct Figures {
    /// Of the best type on in-scope texts, abstention or not.
    pub accuracy: f64,
    pub macro_f1: f64,
    pub log_loss: f64,
    pub brier_score: f64,
    pub expected_calibration_error: f64,
    pub aurc: f64,
    /// Over all texts, `unrecognized` among the labels.
    pub accuracy_with_abstention: f64,
    pub macro_f1_with_abstention: f64,
    pub in_scope_accuracy: f64,
    /// Share of in-scope texts answered.
    pub in_scope_coverage: f64,
    pub coverage: f64,
    pub selective_risk: f64,
    pub oos_recall: Option<f64>,
    pub oos_precision: Option<f64>,
    /// How each score separates texts that fit no type from the others.
    pub roc_auc_novelty: Option<f64>,
    pub roc_auc_acceptance: Option<f64>,
    pub roc_auc_score: Option<f64>,
    /// How acceptance separates right from wrong, out-of-scope texts being wrong.
    pub roc_auc_acceptance_right: f64,
}

/// Held-out figures of TF-IDF with logistic regression on the same folds.
#[derive(Debug, Clone, Serialize)]
pub struct FloorFigures {
    pub accuracy: f64,
    pub macro_f1: f64,
    pub roc_auc_score: Option<f64>,
}

/// One type, with abstentions.
#[derive(Debug, Clone, Serialize)]
pub struct TypeReport {
    pub r#type: String,
    pub support: usize,
    pub precision: f64,
    pub recall: f64,
    pub f1: f64,
}

impl Figures {
    /// Figures of held-out examples. `n_types` is also the label of an abstention.
    pub fn of(scored: &[&Scored], n_types: usize) -> Self {
        let in_scope: Vec<&Scored> = scored.iter().copied().filter(|row| row.class.is_some()).collect();
        let actual: Vec<usize> = in_scope.iter().filter_map(|row| row.class).collect();
        let best: Vec<usize> = in_scope.iter().map(|row| row.best).collect();
        let probabilities: Vec<Vec<f64>> = in_scope.iter().map(|row| row.probabilities.clone()).collect();
        let right: Vec<bool> = in_scope.iter().map(|row| row.is_right()).collect();
        let scores: Vec<f64> = in_scope.iter().map(|row| row.score()).collect();

        let all_actual: Vec<usize> = scored.iter().map(|row| row.class.unwrap_or(n_types)).collect();
        let all_named: Vec<usize> = scored.iter().map(|row| if row.abstained { n_types } else { row.best }).collect();
        let out: Vec<bool> = scored.iter().map(|row| row.class.is_none()).collect();
        let abstained: Vec<bool> = scored.iter().map(|row| row.abstained).collect();
        let answered: Vec<bool> = abstained.iter().map(|abstained| !abstained).collect();
        let answered_right: Vec<bool> = scored.iter().map(|row| !row.abstained && row.is_right()).collect();
        let separation = |score: &dyn Fn(&Scored) -> f64| {
            let scores: Vec<f64> = scored.iter().map(|row| score(row)).collect();
            defined(metrics::roc_auc(&out, &scores))
        };
        Self {
            accuracy: metrics::accuracy(&actual, &best),
            macro_f1: metrics::macro_f1(&actual, &best),
            log_loss: metrics::log_loss(&actual, &probabilities),
            brier_score: metrics::brier_score(&actual, &probabilities),
            expected_calibration_error: metrics::expected_calibration_error(&right, &scores),
            aurc: metrics::aurc(
                &scored.iter().map(|row| row.is_right()).collect::<Vec<_>>(),
                &scored.iter().map(|row| row.acceptance).collect::<Vec<_>>(),
            ),
            accuracy_with_abstention: metrics::accuracy(&all_actual, &all_named),
            macro_f1_with_abstention: metrics::macro_f1(&all_actual, &all_named),
            in_scope_accuracy: metrics::in_scope_accuracy(&out, &answered_right),
            in_scope_coverage: metrics::in_scope_accuracy(&out, &answered),
            coverage: metrics::coverage(&answered),
            selective_risk: metrics::selective_risk(&answered, &answered_right),
            oos_recall: defined(metrics::oos_recall(&out, &abstained)),
            oos_precision: defined(metrics::oos_precision(&out, &abstained)),
            roc_auc_novelty: separation(&|row| row.novelty),
            roc_auc_acceptance: separation(&|row| -row.acceptance),
            roc_auc_score: separation(&|row| -row.score()),
            roc_auc_acceptance_right: metrics::roc_auc(
                &scored.iter().map(|row| row.is_right()).collect::<Vec<_>>(),
                &scored.iter().map(|row| row.acceptance).collect::<Vec<_>>(),
            ),
        }
    }
}

/// `None` for NaN, so that a report says `null`.
pub fn defined(value: f64) -> Option<f64> {
    (!value.is_nan()).then_some(value)
}

impl Display for TrainingReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<20} {:>5}  {:>9} {:>9}  {:>9} {:>9}  {:>9}",
            "held out", "n", "accuracy", "macro F1", "floor", "macro F1", "AUROC out"
        )?;
        for group in &self.groups {
            write!(f, "{:<20} {:>5}  {:>9.4} {:>9.4}  ", group.group, group.n, group.accuracy, group.macro_f1)?;
            let auc = group.novelty_roc_auc.map_or_else(|| "-".to_owned(), |auc| format!("{auc:.4}"));
            writeln!(f, "{:>9.4} {:>9.4}  {auc:>9}", group.floor_accuracy, group.floor_macro_f1)?;
        }
        let all = &self.held_out;
        writeln!(
            f,
            "{:<20} {:>5}  {:>9.4} {:>9.4}  {:>9.4} {:>9.4}  {:>9}",
            "all",
            self.n_in_scope,
            all.accuracy,
            all.macro_f1,
            self.floor.accuracy,
            self.floor.macro_f1,
            optional(all.roc_auc_novelty)
        )?;
        writeln!(f)?;
        writeln!(
            f,
            "log loss {:.4}  brier {:.4}  ECE {:.4}  AURC {:.4}",
            all.log_loss, all.brier_score, all.expected_calibration_error, all.aurc
        )?;
        writeln!(
            f,
            "out of scope, AUROC: novelty {}  acceptance {}  score {}  (floor's score {})",
            optional(all.roc_auc_novelty),
            optional(all.roc_auc_acceptance),
            optional(all.roc_auc_score),
            optional(self.floor.roc_auc_score)
        )?;
        writeln!(
            f,
            "abstaining over novelty {:.3}: in-scope coverage {:.4}, in-scope accuracy {:.4}, out-of-scope recall {}, precision {}, macro F1 with `unrecognized` {:.4}",
            self.novelty_threshold,
            all.in_scope_coverage,
            all.in_scope_accuracy,
            optional(all.oos_recall),
            optional(all.oos_precision),
            all.macro_f1_with_abstention
        )?;
        writeln!(
            f,
            "lexical weight {:.3}, dense weight {:.3}, {} n-grams",
            self.lexical_weight, self.dense_weight, self.n_features
        )?;
        writeln!(f)?;
        writeln!(
            f,
            "{:<26} {:>7} {:>9} {:>7} {:>7}  {:>9} {:>6} {:>6}",
            "type", "support", "precision", "recall", "F1", "threshold", "n", "errors"
        )?;
        for (row, threshold) in self.per_type.iter().zip(&self.thresholds.thresholds) {
            let cut = match (threshold.threshold, threshold.needed) {
                (Some(cut), _) => format!("{cut:.4}"),
                (None, Some(needed)) => format!("+{needed}"),
                (None, None) => "none".to_owned(),
            };
            write!(f, "{:<26} {:>7} {:>9.3} {:>7.3} {:>7.3}  ", row.r#type, row.support, row.precision, row.recall, row.f1)?;
            writeln!(f, "{cut:>9} {:>6} {:>6}", threshold.n, threshold.errors)?;
        }
        Ok(())
    }
}

fn optional(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.4}"))
}
