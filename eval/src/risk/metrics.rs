//! Figures of the risk report, under scikit-learn's names.

use serde::{Deserialize, Serialize};

use crate::metrics::{expected_calibration_error, roc_auc};

/// How good probabilities are.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct BinaryMetrics {
    pub n: usize,
    pub base_rate: f64,
    pub roc_auc: f64,
    pub log_loss: f64,
    pub brier_score: f64,
    pub expected_calibration_error: f64,
}

/// How good predicted amounts are.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct RegressionMetrics {
    pub n: usize,
    pub mean: f64,
    pub mean_predicted: f64,
    pub mean_absolute_error: f64,
    pub root_mean_squared_error: f64,
    pub r2: f64,
    /// Share of rows whose actual value is at most the 90 % limit.
    pub p90_coverage: f64,
}

/// Metrics of probabilities against outcomes of 0 and 1.
pub fn binary(probabilities: &[f64], outcomes: &[f64]) -> BinaryMetrics {
    let n = outcomes.len() as f64;
    let positive: Vec<bool> = outcomes.iter().map(|&y| y > 0.5).collect();
    let clipped = || probabilities.iter().map(|p| p.clamp(1e-15, 1.0 - 1e-15)).zip(outcomes);
    let log_loss = clipped().map(|(p, y)| -(y * p.ln() + (1.0 - y) * (1.0 - p).ln())).sum::<f64>() / n;
    let brier_score = probabilities.iter().zip(outcomes).map(|(p, y)| (p - y) * (p - y)).sum::<f64>() / n;
    BinaryMetrics {
        n: outcomes.len(),
        base_rate: outcomes.iter().sum::<f64>() / n,
        roc_auc: roc_auc(&positive, probabilities),
        log_loss,
        brier_score,
        expected_calibration_error: expected_calibration_error(&positive, probabilities),
    }
}

/// Metrics of predicted amounts and their 90 % limits.
pub fn regression(predicted: &[f64], p90: &[f64], actual: &[f64]) -> RegressionMetrics {
    let n = actual.len() as f64;
    let mean = actual.iter().sum::<f64>() / n;
    let errors = || predicted.iter().zip(actual).map(|(p, y)| p - y);
    let squared: f64 = errors().map(|error| error * error).sum();
    let spread: f64 = actual.iter().map(|y| (y - mean) * (y - mean)).sum();
    RegressionMetrics {
        n: actual.len(),
        mean,
        mean_predicted: predicted.iter().sum::<f64>() / n,
        mean_absolute_error: errors().map(f64::abs).sum::<f64>() / n,
        root_mean_squared_error: (squared / n).sqrt(),
        r2: 1.0 - squared / spread,
        p90_coverage: p90.iter().zip(actual).filter(|(limit, y)| y <= limit).count() as f64 / n,
    }
}
