//! A small logistic regression whose coefficients keep their sign, for the calibration models.
//!
//! Projected gradient descent with acceleration (FISTA with restarts) on standardised features; a dozen coefficients and
//! thousands of rows take milliseconds.

use sluice::classifier::calibration::Logistic;

const ITERATIONS: usize = 4_000;

/// Penalty on the squared standardised coefficients, per row: enough to settle features that say the same.
const L2: f64 = 1e-4;

/// Fits `σ(intercept + coefficients · features)` to rows of features, true or not, each with a weight. A coefficient with sign
/// +1 stays at or over 0, with -1 at or under 0, with 0 goes where it likes.
pub fn fit_logistic<const N: usize>(rows: &[([f64; N], bool)], signs: &[i8; N]) -> Logistic<N> {
    let n = rows.len().max(1) as f64;
    let mut mean = [0.0; N];
    let mut scale = [0.0; N];
    for i in 0..N {
        mean[i] = rows.iter().map(|row| row.0[i]).sum::<f64>() / n;
        let variance = rows.iter().map(|row| (row.0[i] - mean[i]).powi(2)).sum::<f64>() / n;
        // A constant feature says nothing; scale 1 leaves its standardised value at 0.
        scale[i] = if variance > 1e-12 { variance.sqrt() } else { 1.0 };
    }
    let standardised: Vec<([f64; N], f64)> =
        rows.iter().map(|row| (std::array::from_fn(|i| (row.0[i] - mean[i]) / scale[i]), f64::from(u8::from(row.1)))).collect();

    // The curvature of the mean log loss is at most a quarter of the largest eigenvalue, itself at most N + 1.
    let step = 4.0 / (N as f64 + 1.0);
    let mut current = ([0.0; N], 0.0);
    let mut look_ahead = current;
    let mut momentum: f64 = 1.0;
    for _ in 0..ITERATIONS {
        let gradient = gradient(&standardised, &look_ahead);
        let mut next = ([0.0; N], look_ahead.1 - step * gradient.1);
        for (i, &sign) in signs.iter().enumerate() {
            let moved = look_ahead.0[i] - step * gradient.0[i];
            next.0[i] = match sign {
                0 => moved,
                sign => moved.abs() * f64::from(u8::from(moved * f64::from(sign) > 0.0)) * f64::from(sign),
            };
        }
        let ahead = (0..N).map(|i| gradient.0[i] * (next.0[i] - current.0[i])).sum::<f64>() + gradient.1 * (next.1 - current.1);
        // Momentum that climbs is given up.
        let next_momentum = if ahead > 0.0 { 1.0 } else { 0.5 * (1.0 + (1.0 + 4.0 * momentum * momentum).sqrt()) };
        let carry = if ahead > 0.0 { 0.0 } else { (momentum - 1.0) / next_momentum };
        look_ahead.1 = next.1 + carry * (next.1 - current.1);
        for i in 0..N {
            look_ahead.0[i] = next.0[i] + carry * (next.0[i] - current.0[i]);
        }
        current = next;
        momentum = next_momentum;
    }
    let coefficients: [f64; N] = std::array::from_fn(|i| current.0[i] / scale[i]);
    let intercept = current.1 - (0..N).map(|i| coefficients[i] * mean[i]).sum::<f64>();
    Logistic { intercept, coefficients }
}

fn gradient<const N: usize>(rows: &[([f64; N], f64)], at: &([f64; N], f64)) -> ([f64; N], f64) {
    let mut gradient = ([0.0; N], 0.0);
    for (features, target) in rows {
        let logit: f64 = at.1 + features.iter().zip(&at.0).map(|(feature, coefficient)| feature * coefficient).sum::<f64>();
        let residual = 1.0 / (1.0 + (-logit).exp()) - target;
        for (sum, feature) in gradient.0.iter_mut().zip(features) {
            *sum += residual * feature;
        }
        gradient.1 += residual;
    }
    let n = rows.len().max(1) as f64;
    for i in 0..N {
        gradient.0[i] = gradient.0[i] / n + L2 * at.0[i];
    }
    gradient.1 /= n;
    gradient
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows whose first feature speaks for, whose second against, in a fixed pattern without noise generators.
    fn rows() -> Vec<([f64; 2], bool)> {
        (0..400)
            .map(|i| {
                let a = f64::from(i % 20) / 10.0 - 1.0;
                let b = f64::from(i / 20 % 20) / 10.0 - 1.0;
                let doubt = f64::from(i * 7 % 13) / 13.0 - 0.5;
                ([a, b], 2.0 * a - b + doubt > 0.0)
            })
            .collect()
    }

    #[test]
    fn coefficients_keep_their_sign() {
        let free = fit_logistic(&rows(), &[0, 0]);
        assert!(free.coefficients[0] > 1.0 && free.coefficients[1] < -0.5, "{free:?}");
        let bound = fit_logistic(&rows(), &[1, 1]);
        assert!(bound.coefficients[0] > 1.0 && bound.coefficients[1] == 0.0, "{bound:?}");
    }

    #[test]
    fn the_mean_prediction_is_the_base_rate() {
        let model = fit_logistic(&rows(), &[0, 0]);
        let predicted: f64 = rows().iter().map(|row| model.probability(&row.0)).sum();
        let actual = rows().iter().filter(|row| row.1).count() as f64;
        assert!((predicted - actual).abs() < 0.5, "{predicted} {actual}");
    }
}
