//! Every figure against scikit-learn; `fixtures/oracle.py` made the expected values.

use serde::Deserialize;
use sluice_eval::metrics;

/// Both sides sum a few hundred f64.
const TOLERANCE: f64 = 1e-9;

#[derive(Deserialize)]
struct Case {
    actual: Vec<usize>,
    probabilities: Vec<Vec<f64>>,
    scores: Vec<f64>,
    positive: Vec<bool>,
    abstained: Vec<bool>,
    expected: std::collections::BTreeMap<String, f64>,
}

#[test]
fn figures_are_those_of_scikit_learn() {
    #[track_caller]
    fn check(case: &Case, name: &str, found: f64) {
        let expected = case.expected[name];
        assert!((found - expected).abs() < TOLERANCE, "{name}: {found} is not {expected}");
    }

    let cases: Vec<Case> = serde_json::from_str(include_str!("fixtures/metrics.json")).unwrap();
    for case in &cases {
        let first_max = |row: &Vec<f64>| (0..row.len()).fold(0, |best, class| if row[class] > row[best] { class } else { best });
        let best: Vec<usize> = case.probabilities.iter().map(first_max).collect();
        let confidence: Vec<f64> = case.probabilities.iter().zip(&best).map(|(row, &best)| row[best]).collect();
        let right: Vec<bool> = case.actual.iter().zip(&best).map(|(actual, best)| actual == best).collect();
        let answered: Vec<bool> = case.abstained.iter().map(|abstained| !abstained).collect();
        let answered_right: Vec<bool> = right.iter().zip(&answered).map(|(&right, &answered)| right && answered).collect();

        check(case, "accuracy", metrics::accuracy(&case.actual, &best));
        check(case, "macro_f1", metrics::macro_f1(&case.actual, &best));
        check(case, "log_loss", metrics::log_loss(&case.actual, &case.probabilities));
        check(case, "brier_score", metrics::brier_score(&case.actual, &case.probabilities));
        check(case, "roc_auc", metrics::roc_auc(&case.positive, &case.scores));
        check(case, "average_precision", metrics::average_precision(&case.positive, &case.scores));
        check(case, "expected_calibration_error", metrics::expected_calibration_error(&right, &confidence));
        check(case, "aurc", metrics::aurc(&right, &case.scores));
        check(case, "coverage", metrics::coverage(&answered));
        check(case, "selective_risk", metrics::selective_risk(&answered, &answered_right));
        check(case, "oos_recall", metrics::oos_recall(&case.positive, &case.abstained));
        check(case, "oos_precision", metrics::oos_precision(&case.positive, &case.abstained));
        check(case, "in_scope_accuracy", metrics::in_scope_accuracy(&case.positive, &answered_right));
        assert_eq!(case.expected.len(), 13);
    }
}

#[test]
fn an_undefined_figure_is_not_a_number() {
    #[track_caller]
    fn check(figure: f64) {
        assert!(figure.is_nan(), "{figure}");
    }

    check(metrics::accuracy(&[], &[]));
    check(metrics::roc_auc(&[true, true], &[0.1, 0.2]));
    check(metrics::average_precision(&[false], &[0.1]));
    check(metrics::oos_recall(&[false], &[true]));
    check(metrics::selective_risk(&[false], &[true]));
}
