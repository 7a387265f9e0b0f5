//! Fitting what `risk.toml` holds, on cases the trees never saw.

use sluice::risk::calibration::{Calibrator, RevenueCalibration};

/// Newton steps; the problem is convex in two numbers and settles within ten.
const NEWTON_STEPS: usize = 50;

/// Fits Platt scaling to raw scores by Newton's method with Platt's smoothed targets (Platt 1999; Lin, Lin, Weng 2007).
/// `None` where the scores do not rank the outcomes better than chance, so that no positive slope exists.
pub fn platt(raw_scores: &[f64], outcomes: &[f64]) -> Option<Calibrator> {
    let positives = outcomes.iter().sum::<f64>();
    let negatives = outcomes.len() as f64 - positives;
    let (target_1, target_0) = ((positives + 1.0) / (positives + 2.0), 1.0 / (negatives + 2.0));
    let logits: Vec<f64> = raw_scores
        .iter()
        .map(|score| {
            let clipped = score.clamp(1e-7, 1.0 - 1e-7);
            (clipped / (1.0 - clipped)).ln()
        })
        .collect();
    let (mut slope, mut intercept) = (1.0, 0.0);
    for _ in 0..NEWTON_STEPS {
        // Gradient and Hessian of the log-loss; the ridge keeps the system solvable where all scores are equal.
        let (mut g_slope, mut g_intercept, mut h_ss, mut h_si, mut h_ii) = (0.0, 0.0, 1e-9, 0.0, 1e-9);
        for (logit, outcome) in logits.iter().zip(outcomes) {
            let target = if *outcome > 0.5 { target_1 } else { target_0 };
            let p = 1.0 / (1.0 + (-(slope * logit + intercept)).exp());
            let (error, weight) = (p - target, p * (1.0 - p));
            g_slope += error * logit;
            g_intercept += error;
            h_ss += weight * logit * logit;
            h_si += weight * logit;
            h_ii += weight;
        }
        let determinant: f64 = h_ss * h_ii - h_si * h_si;
        let step_slope = (h_ii * g_slope - h_si * g_intercept) / determinant;
        let step_intercept = (h_ss * g_intercept - h_si * g_slope) / determinant;
        slope -= step_slope;
        intercept -= step_intercept;
        if step_slope.abs() + step_intercept.abs() < 1e-10 {
            break;
        }
    }
    (slope > 0.0 && slope.is_finite() && intercept.is_finite()).then_some(Calibrator::Platt { slope, intercept })
}

/// Fits isotonic regression by pooling adjacent violators; the points are the pools' mean scores.
pub fn isotonic(raw_scores: &[f64], outcomes: &[f64]) -> Calibrator {
    let mut order: Vec<usize> = (0..raw_scores.len()).collect();
    order.sort_by(|&a, &b| raw_scores[a].total_cmp(&raw_scores[b]));
    // Sums of scores, outcomes and rows; equal scores start in one pool.
    let mut pools: Vec<(f64, f64, f64)> = Vec::new();
    let mut last_score = f64::NAN;
    for idx in order {
        let (score, outcome) = (raw_scores[idx], outcomes[idx]);
        match pools.last_mut() {
            Some(pool) if score == last_score => {
                pool.0 += score;
                pool.1 += outcome;
                pool.2 += 1.0;
            }
            _ => pools.push((score, outcome, 1.0)),
        }
        last_score = score;
    }
    let mut merged: Vec<(f64, f64, f64)> = Vec::new();
    for pool in pools {
        merged.push(pool);
        while let [.., below, above] = merged.as_slice() {
            if below.1 / below.2 < above.1 / above.2 {
                break;
            }
            let sum = (below.0 + above.0, below.1 + above.1, below.2 + above.2);
            merged.truncate(merged.len() - 2);
            merged.push(sum);
        }
    }
    Calibrator::Isotonic {
        raw_scores: merged.iter().map(|pool| pool.0 / pool.2).collect(),
        probabilities: merged.iter().map(|pool| pool.1 / pool.2).collect(),
    }
}

/// Fits the 90 % limits: per bin of the prediction, the split-conformal quantile of `actual − predicted`, which is the
/// ⌈0.9 (n + 1)⌉th smallest residual of its n calibration cases.
pub fn limits(predicted: &[f64], actual: &[f64], n_bins: usize) -> RevenueCalibration {
    let mut ascending = predicted.to_vec();
    ascending.sort_by(f64::total_cmp);
    let mut bin_edges: Vec<f64> = (1..n_bins).map(|bin| ascending[bin * ascending.len() / n_bins]).collect();
    bin_edges.dedup();
    let mut residuals: Vec<Vec<f64>> = vec![Vec::new(); bin_edges.len() + 1];
    for (predicted, actual) in predicted.iter().zip(actual) {
        residuals[bin_edges.partition_point(|edge| edge <= predicted)].push(actual - predicted);
    }
    let offset = |residuals: &mut Vec<f64>| {
        residuals.sort_by(f64::total_cmp);
        let rank = (0.9 * (residuals.len() + 1) as f64).ceil() as usize;
        // Too few cases for the level: their largest residual is the honest bound that is left.
        residuals.get(rank.saturating_sub(1)).or(residuals.last()).copied().unwrap_or(0.0)
    };
    RevenueCalibration { p90_offsets: residuals.iter_mut().map(offset).collect(), bin_edges }
}
