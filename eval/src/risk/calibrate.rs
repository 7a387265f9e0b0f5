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
    let target = |outcome: f64| if outcome > 0.5 { target_1 } else { target_0 };
    // −t·ln p − (1−t)·ln(1−p) with p = logistic(z) is ln(1 + e^z) − t·z, written so that it does not overflow.
    let loss = |slope: f64, intercept: f64| -> f64 {
        let of_row = |(logit, outcome): (&f64, &f64)| {
            let z = slope * logit + intercept;
            z.max(0.0) + (-z.abs()).exp().ln_1p() - target(*outcome) * z
        };
        logits.iter().zip(outcomes).map(of_row).sum()
    };
    // From the constant prediction, as Lin, Lin and Weng start, every Newton step halved until it helps.
    let (mut slope, mut intercept) = (0.0, ((positives + 1.0) / (negatives + 1.0)).ln());
    let mut current = loss(slope, intercept);
    for _ in 0..NEWTON_STEPS {
        // Gradient and Hessian of the loss; the ridge keeps the system solvable where all scores are equal.
        let (mut g_slope, mut g_intercept, mut h_ss, mut h_si, mut h_ii) = (0.0, 0.0, 1e-9, 0.0, 1e-9);
        for (logit, outcome) in logits.iter().zip(outcomes) {
            let p = 1.0 / (1.0 + (-(slope * logit + intercept)).exp());
            let (error, weight) = (p - target(*outcome), p * (1.0 - p));
            g_slope += error * logit;
            g_intercept += error;
            h_ss += weight * logit * logit;
            h_si += weight * logit;
            h_ii += weight;
        }
        let determinant: f64 = h_ss * h_ii - h_si * h_si;
        let step_slope = (h_ii * g_slope - h_si * g_intercept) / determinant;
        let step_intercept = (h_ss * g_intercept - h_si * g_slope) / determinant;
        let shares = std::iter::successors(Some(1.0), |share| Some(share / 2.0)).take(30);
        let better = shares.map(|share| (slope - share * step_slope, intercept - share * step_intercept)).find_map(|(s, i)| {
            let next = loss(s, i);
            (next < current).then_some((s, i, next))
        });
        let Some((next_slope, next_intercept, next)) = better else { break };
        (slope, intercept, current) = (next_slope, next_intercept, next);
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

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};
    use rand_pcg::Pcg64;

    use super::*;

    fn logistic(x: f64) -> f64 {
        1.0 / (1.0 + (-x).exp())
    }

    /// Raw scores whose logit is twice the true one less 1, with outcomes.
    fn overconfident(n: usize) -> (Vec<f64>, Vec<f64>) {
        let mut rng = Pcg64::seed_from_u64(1);
        let draw = |_| {
            let logit: f64 = rng.random_range(-3.0..3.0);
            (logistic(2.0 * logit - 1.0), f64::from(u8::from(rng.random_bool(logistic(logit)))))
        };
        (0..n).map(draw).unzip()
    }

    #[test]
    fn platt_undoes_overconfidence() {
        let (raw, outcomes) = overconfident(20_000);
        let Some(Calibrator::Platt { slope, intercept }) = platt(&raw, &outcomes) else { panic!("no calibrator") };
        assert!((slope - 0.5).abs() < 0.03, "slope {slope}");
        assert!((intercept - 0.5).abs() < 0.05, "intercept {intercept}");
    }

    #[test]
    fn platt_gives_nothing_for_scores_that_rank_backwards() {
        let (raw, outcomes) = overconfident(2_000);
        let backwards: Vec<f64> = raw.iter().map(|score| 1.0 - score).collect();
        assert_eq!(platt(&backwards, &outcomes), None);
    }

    #[test]
    fn isotonic_pools_violators_and_ascends() {
        let calibrator = isotonic(&[0.1, 0.2, 0.3, 0.4, 0.4], &[0.0, 1.0, 0.0, 1.0, 1.0]);
        let Calibrator::Isotonic { raw_scores, probabilities } = &calibrator else { panic!("no table") };
        assert_eq!(probabilities, &[0.0, 0.5, 1.0]);
        assert_eq!(raw_scores.len(), 3);
        for (raw, expected) in [(0.0, 0.0), (0.1, 0.0), (0.25, 0.5), (0.325, 0.75), (0.9, 1.0)] {
            assert!((calibrator.probability(raw) - expected).abs() < 1e-12, "{raw}");
        }
    }

    #[test]
    fn the_90_percent_limit_covers_nine_in_ten_in_every_bin() {
        let mut rng = Pcg64::seed_from_u64(2);
        let mut draw = || {
            let predicted: f64 = rng.random_range(0.0..1.0);
            // The spread grows with the prediction, so one offset for all would miss.
            (predicted, predicted + predicted * rng.random_range(-1.0..1.0))
        };
        let (predicted, actual): (Vec<f64>, Vec<f64>) = (0..20_000).map(|_| draw()).unzip();
        let limits = limits(&predicted, &actual, 10);
        let fresh: Vec<(f64, f64)> = (0..20_000).map(|_| draw()).collect();
        for bin in 0..10 {
            let (low, high) = (f64::from(bin) / 10.0, f64::from(bin + 1) / 10.0);
            let inside: Vec<&(f64, f64)> = fresh.iter().filter(|(p, _)| (low..high).contains(p)).collect();
            let covered = inside.iter().filter(|(p, y)| *y <= p + limits.offset(*p)).count() as f64 / inside.len() as f64;
            assert!((covered - 0.9).abs() < 0.03, "bin {bin}: {covered}");
        }
    }
}
