//! Figures of the risk report, under scikit-learn's names.

use serde::{Deserialize, Serialize};

/// Bins of the expected calibration error, of equal width.
const CALIBRATION_BINS: usize = 15;

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
    let clipped = || probabilities.iter().map(|p| p.clamp(1e-15, 1.0 - 1e-15)).zip(outcomes);
    let log_loss = clipped().map(|(p, y)| -(y * p.ln() + (1.0 - y) * (1.0 - p).ln())).sum::<f64>() / n;
    let brier_score = probabilities.iter().zip(outcomes).map(|(p, y)| (p - y) * (p - y)).sum::<f64>() / n;
    BinaryMetrics {
        n: outcomes.len(),
        base_rate: outcomes.iter().sum::<f64>() / n,
        roc_auc: roc_auc(probabilities, outcomes),
        log_loss,
        brier_score,
        expected_calibration_error: expected_calibration_error(probabilities, outcomes),
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

/// Probability that a positive scores over a negative, ties counting half (Mann and Whitney). NaN where a class is absent.
pub fn roc_auc(scores: &[f64], outcomes: &[f64]) -> f64 {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]));
    let mut rank_sum = 0.0;
    let mut start = 0;
    while start < order.len() {
        let ties = order[start..].iter().take_while(|&&idx| scores[idx] == scores[order[start]]).count();
        let mean_rank = start as f64 + (ties as f64 + 1.0) / 2.0;
        rank_sum += order[start..start + ties].iter().map(|&idx| outcomes[idx] * mean_rank).sum::<f64>();
        start += ties;
    }
    let positives: f64 = outcomes.iter().sum();
    let negatives = outcomes.len() as f64 - positives;
    (rank_sum - positives * (positives + 1.0) / 2.0) / (positives * negatives)
}

fn expected_calibration_error(probabilities: &[f64], outcomes: &[f64]) -> f64 {
    let mut bins = [(0.0, 0.0); CALIBRATION_BINS];
    for (p, y) in probabilities.iter().zip(outcomes) {
        let bin = ((p * CALIBRATION_BINS as f64) as usize).min(CALIBRATION_BINS - 1);
        bins[bin].0 += p;
        bins[bin].1 += y;
    }
    bins.iter().map(|(p, y)| (p - y).abs()).sum::<f64>() / outcomes.len() as f64
}
