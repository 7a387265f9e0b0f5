//! Acceptance thresholds that carry a promise: at most `max_error` of the cases over the threshold are wrong, with `confidence`.
//!
//! Learn-then-Test (Angelopoulos et al., arXiv 2110.01052) with multi-start fixed sequence testing: the scores of the cases,
//! without their labels, fix a grid of cuts; the grid falls into runs, each with its share of the allowed failure; a run is
//! walked from its strictest cut to looser ones as long as the exact upper bound (Clopper and Pearson) on the error stays under
//! `max_error`. The loosest cut that was certified is the threshold. It refuses to certify by hope: a type whose cases cannot
//! carry the promise has `insufficient_evidence`.

use serde::{Deserialize, Serialize};
use statrs::distribution::{Beta, ContinuousCDF};

/// The promise, and how the grid is cut.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Target {
    pub max_error: f64,
    pub confidence: f64,
    /// Runs of the grid, each tested at its share of `1 - confidence`.
    pub n_starts: usize,
    /// Cuts a run has at most.
    pub n_steps: usize,
}

impl Target {
    pub fn new(max_error: f64, confidence: f64) -> Self {
        Self { max_error, confidence, n_starts: 4, n_steps: 20 }
    }

    /// What one run may spend of the allowed failure.
    fn share(&self) -> f64 {
        (1.0 - self.confidence) / self.n_starts as f64
    }

    /// Cases without a single error that the promise needs.
    fn n_without_error(&self) -> usize {
        (self.share().ln() / (1.0 - self.max_error).ln()).ceil() as usize
    }
}

/// One case that the classifier named a type for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Case {
    pub acceptance: f64,
    /// Whether the named type is wrong, an out-of-scope text included.
    pub wrong: bool,
}

/// `thresholds.toml`, as the policy room reads it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ThresholdsFile {
    pub max_error: f64,
    pub confidence: f64,
    pub method: String,
    /// What data the thresholds were found on.
    pub split: String,
    #[serde(rename = "threshold")]
    pub thresholds: Vec<ThresholdRow>,
}

/// One type of `thresholds.toml`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ThresholdRow {
    pub r#type: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threshold: Option<f64>,
    /// Cases at or over the threshold; without one, all cases of the type.
    pub n: u64,
    /// Wrong ones among them.
    pub errors: u64,
    pub insufficient_evidence: bool,
    /// Roughly how many more cases of the type could carry the promise; absent where the error itself stands in the way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub needed: Option<u64>,
}

/// Upper bound of a one-sided Clopper-Pearson interval at level `1 - alpha` for `errors` in `n`.
pub fn clopper_pearson_upper(errors: u64, n: u64, alpha: f64) -> f64 {
    if errors >= n {
        return 1.0;
    }
    Beta::new(errors as f64 + 1.0, (n - errors) as f64).expect("both shapes are positive").inverse_cdf(1.0 - alpha)
}

/// Finds the threshold of one type.
pub fn certify(r#type: &str, cases: &[Case], target: Target) -> ThresholdRow {
    let mut cases = cases.to_vec();
    cases.sort_by(|a, b| b.acceptance.total_cmp(&a.acceptance));
    let mut best = None;
    for run in grid(&cases, target) {
        for n in run {
            let errors = cases[..n].iter().filter(|case| case.wrong).count();
            if clopper_pearson_upper(errors as u64, n as u64, target.share()) > target.max_error {
                break;
            }
            if best.is_none_or(|(certified, _)| certified < n) {
                best = Some((n, errors));
            }
        }
    }
    match best {
        Some((n, errors)) => ThresholdRow {
            r#type: r#type.to_owned(),
            threshold: Some(cases[n - 1].acceptance),
            n: n as u64,
            errors: errors as u64,
            insufficient_evidence: false,
            needed: None,
        },
        None => ThresholdRow {
            r#type: r#type.to_owned(),
            threshold: None,
            n: cases.len() as u64,
            errors: cases.iter().filter(|case| case.wrong).count() as u64,
            insufficient_evidence: true,
            needed: needed(&cases, target),
        },
    }
}

/// The cuts of each run, as numbers of cases at or over the cut. Looks at scores only, never at labels.
fn grid(cases: &[Case], target: Target) -> Vec<Vec<usize>> {
    let first = target.n_without_error();
    if cases.len() < first {
        return Vec::new();
    }
    let n_cuts = target.n_starts * target.n_steps;
    let mut cuts: Vec<usize> =
        (0..n_cuts).map(|cut| first + (cases.len() - first) * cut / (n_cuts - 1).max(1)).map(|n| through_ties(cases, n)).collect();
    cuts.dedup();
    let length = cuts.len().div_ceil(target.n_starts);
    cuts.chunks(length).map(<[usize]>::to_vec).collect()
}

/// Cases with one score stand or fall together.
fn through_ties(cases: &[Case], n: usize) -> usize {
    n + cases[n..].iter().take_while(|case| case.acceptance == cases[n - 1].acceptance).count()
}

/// How many times the cases would have to grow, at the error they show among the best, until some cut is certified.
fn needed(cases: &[Case], target: Target) -> Option<u64> {
    let n = cases.len();
    if n == 0 {
        return Some(target.n_without_error() as u64);
    }
    (2..=50u64).find_map(|factor| {
        let certified = (1..=n).any(|kept| {
            let errors = cases[..kept].iter().filter(|case| case.wrong).count() as u64;
            clopper_pearson_upper(errors * factor, kept as u64 * factor, target.share()) <= target.max_error
        });
        certified.then_some(n as u64 * (factor - 1))
    })
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};

    use super::*;

    fn cases(n: usize, wrong_every: usize) -> Vec<Case> {
        (0..n).map(|i| Case { acceptance: 1.0 - i as f64 / n as f64, wrong: i % wrong_every == wrong_every - 1 }).collect()
    }

    /// scipy 1.17: `beta.ppf(1 - alpha, k + 1, n - k)`; see `eval/tests/fixtures/oracle.py`.
    #[test]
    fn the_bound_is_that_of_scipy() {
        #[track_caller]
        fn check(errors: u64, n: u64, alpha: f64, expected: f64) {
            let bound = clopper_pearson_upper(errors, n, alpha);
            assert!((bound - expected).abs() < 1e-9, "{bound}");
        }

        check(0, 59, 0.05, 0.04950760988822693);
        check(3, 200, 0.0125, 0.04788211348340191);
        check(10, 10, 0.05, 1.0);
        check(17, 400, 0.05, 0.06306890007654116);
    }

    #[test]
    fn evidence_decides() {
        #[track_caller]
        fn check(cases: &[Case], threshold: bool, n: u64) {
            let row = certify("a", cases, Target::new(0.05, 0.95));
            assert_eq!((row.threshold.is_some(), row.n), (threshold, n), "{row:?}");
            assert_eq!(row.insufficient_evidence, row.threshold.is_none());
        }

        check(&cases(85, 1_000), false, 85);
        check(&cases(86, 1_000), true, 86);
        check(&cases(500, 1_000), true, 500);
        check(&cases(500, 5), false, 500);
        check(&[], false, 0);
    }

    #[test]
    fn ties_are_not_torn_apart() {
        let mut tied = cases(300, 1_000);
        for case in &mut tied[50..250] {
            case.acceptance = 0.5;
        }
        let row = certify("a", &tied, Target::new(0.05, 0.95));
        assert!(row.n >= 250, "{row:?}");
    }

    /// The promise: over many draws the true error over the threshold exceeds the target in at most 5 of 100. The band is three
    /// standard deviations of that count.
    #[test]
    fn the_promise_holds_as_often_as_it_says() {
        let mut rng = rand_pcg::Pcg64::seed_from_u64(7);
        let target = Target::new(0.10, 0.95);
        let error_at = |acceptance: f64| 0.5 * (1.0 - acceptance);
        let n_draws = 300;
        let broken = (0..n_draws)
            .filter(|_| {
                let cases: Vec<Case> = (0..400)
                    .map(|_| {
                        let acceptance = rng.random::<f64>();
                        Case { acceptance, wrong: rng.random::<f64>() < error_at(acceptance) }
                    })
                    .collect();
                // Acceptance is uniform, so the mean error over a threshold t is that at the middle of t..1.
                certify("a", &cases, target).threshold.is_some_and(|threshold| error_at(0.5 * (1.0 + threshold)) > 0.10)
            })
            .count();
        assert!(broken as f64 <= 0.05 * f64::from(n_draws) + 3.0 * (0.05 * 0.95 * f64::from(n_draws)).sqrt(), "{broken}");
    }
}
