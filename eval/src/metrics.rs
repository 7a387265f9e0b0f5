//! Figures of merit, named as scikit-learn names them where it has them.
//!
//! Each function takes plain slices and refuses nothing quietly: where a figure is not defined (no positive case, no case at
//! all) it is NaN, which `metrics.json` shows as `null`. Checked against scikit-learn in `eval/tests/metrics.rs`.

/// Bins of [`expected_calibration_error`], of equal width.
pub const N_BINS: usize = 15;

/// Share of equal labels.
pub fn accuracy(actual: &[usize], predicted: &[usize]) -> f64 {
    mean(actual.iter().zip(predicted).map(|(actual, predicted)| f64::from(u8::from(actual == predicted))))
}

/// Mean F1 over the labels that occur in `actual` or `predicted`; a label without a hit has F1 0.
pub fn macro_f1(actual: &[usize], predicted: &[usize]) -> f64 {
    let reports = class_reports(actual, predicted);
    mean(reports.iter().filter(|report| report.support + report.predicted > 0).map(|report| report.f1))
}

/// Precision, recall and F1 of one label; 0 where undefined.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ClassReport {
    pub support: usize,
    /// Cases given this label.
    pub predicted: usize,
    pub precision: f64,
    pub recall: f64,
    pub f1: f64,
}

/// One report a label, from 0 to the largest that occurs.
pub fn class_reports(actual: &[usize], predicted: &[usize]) -> Vec<ClassReport> {
    let n_labels = actual.iter().chain(predicted).max().map_or(0, |&largest| largest + 1);
    (0..n_labels)
        .map(|label| {
            let pairs = || actual.iter().zip(predicted);
            let hits = pairs().filter(|pair| *pair.0 == label && *pair.1 == label).count();
            let support = actual.iter().filter(|&&other| other == label).count();
            let named = predicted.iter().filter(|&&other| other == label).count();
            let ratio = |n: usize, of: usize| if of == 0 { 0.0 } else { n as f64 / of as f64 };
            let f1 = ratio(2 * hits, support + named);
            ClassReport { support, predicted: named, precision: ratio(hits, named), recall: ratio(hits, support), f1 }
        })
        .collect()
}

/// Mean negative log probability of the true class. Probabilities are clipped to the smallest positive step of f64, and rows are
/// taken to sum to 1, as in scikit-learn.
pub fn log_loss(actual: &[usize], probabilities: &[Vec<f64>]) -> f64 {
    let clipped = |probability: f64| probability.clamp(f64::EPSILON, 1.0 - f64::EPSILON);
    mean(actual.iter().zip(probabilities).map(|(&class, row)| -clipped(row[class]).ln()))
}

/// Mean over cases of the summed squared distance between probabilities and the truth, 0 to 2: what
/// `brier_score_loss(y, P, labels=…, scale_by_half=False)` gives for several classes.
pub fn brier_score(actual: &[usize], probabilities: &[Vec<f64>]) -> f64 {
    mean(actual.iter().zip(probabilities).map(|(&actual, row)| {
        row.iter().enumerate().map(|(class, probability)| (probability - f64::from(u8::from(class == actual))).powi(2)).sum()
    }))
}

/// Area under the ROC curve of `scores` for the cases that are `positive`; ties count half.
pub fn roc_auc(positive: &[bool], scores: &[f64]) -> f64 {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]));
    let n_positive = positive.iter().filter(|&&positive| positive).count() as f64;
    let n_negative = positive.len() as f64 - n_positive;
    let mut below = 0.0;
    let mut wins = 0.0;
    for tied in order.chunk_by(|&a, &b| scores[a] == scores[b]) {
        let hits = tied.iter().filter(|&&case| positive[case]).count() as f64;
        let misses = tied.len() as f64 - hits;
        wins += hits * (below + 0.5 * misses);
        below += misses;
    }
    wins / (n_positive * n_negative)
}

/// Precision at each recall step, weighted by the step.
pub fn average_precision(positive: &[bool], scores: &[f64]) -> f64 {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    let n_positive = positive.iter().filter(|&&positive| positive).count() as f64;
    let (mut seen, mut hits, mut area) = (0.0, 0.0, 0.0);
    for tied in order.chunk_by(|&a, &b| scores[a] == scores[b]) {
        let new = tied.iter().filter(|&&case| positive[case]).count() as f64;
        seen += tied.len() as f64;
        hits += new;
        area += new / n_positive * (hits / seen);
    }
    area
}

/// One bin of a reliability diagram.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ReliabilityBin {
    pub n: usize,
    /// Mean confidence of the bin's cases; 0 where there are none.
    pub confidence: f64,
    /// Share of right ones among them.
    pub accuracy: f64,
}

/// [`N_BINS`] bins of equal width over (0, 1], each closed above.
pub fn reliability(correct: &[bool], confidences: &[f64]) -> Vec<ReliabilityBin> {
    let mut bins = vec![(0usize, 0.0, 0.0); N_BINS];
    for (&correct, &confidence) in correct.iter().zip(confidences) {
        let bin = ((confidence * N_BINS as f64).ceil() as usize).clamp(1, N_BINS) - 1;
        bins[bin].0 += 1;
        bins[bin].1 += confidence;
        bins[bin].2 += f64::from(u8::from(correct));
    }
    let filled = |(n, confidence, hits): (usize, f64, f64)| {
        let n_or_one = n.max(1) as f64;
        ReliabilityBin { n, confidence: confidence / n_or_one, accuracy: hits / n_or_one }
    };
    bins.into_iter().map(filled).collect()
}

/// Mean distance between confidence and accuracy over the bins of [`reliability`], weighted by their cases.
pub fn expected_calibration_error(correct: &[bool], confidences: &[f64]) -> f64 {
    let n = correct.len() as f64;
    let bins = reliability(correct, confidences);
    bins.iter().map(|bin| bin.n as f64 / n * (bin.accuracy - bin.confidence).abs()).sum()
}

/// Error among the `k` cases with the highest confidence, for every `k` from 1: `(coverage, selective risk)`. Cases with equal
/// confidence stand in their given order.
pub fn risk_coverage_curve(correct: &[bool], confidences: &[f64]) -> Vec<(f64, f64)> {
    let mut order: Vec<usize> = (0..correct.len()).collect();
    order.sort_by(|&a, &b| confidences[b].total_cmp(&confidences[a]));
    let mut errors = 0.0;
    order
        .iter()
        .enumerate()
        .map(|(rank, &case)| {
            errors += f64::from(u8::from(!correct[case]));
            let kept = rank as f64 + 1.0;
            (kept / correct.len() as f64, errors / kept)
        })
        .collect()
}

/// Area under the risk-coverage curve: the mean selective risk over all coverages (Geifman and El-Yaniv, arXiv 1805.08206).
pub fn aurc(correct: &[bool], confidences: &[f64]) -> f64 {
    mean(risk_coverage_curve(correct, confidences).iter().map(|point| point.1))
}

/// Share of the cases that are answered.
pub fn coverage(answered: &[bool]) -> f64 {
    mean(answered.iter().map(|&answered| f64::from(u8::from(answered))))
}

/// Share of wrong answers among those given.
pub fn selective_risk(answered: &[bool], correct: &[bool]) -> f64 {
    let given = answered.iter().zip(correct).filter(|pair| *pair.0);
    mean(given.map(|(_, &correct)| f64::from(u8::from(!correct))))
}

/// Share of the out-of-scope texts on which the service abstained.
pub fn oos_recall(out_of_scope: &[bool], abstained: &[bool]) -> f64 {
    share(abstained, out_of_scope)
}

/// Share of out-of-scope texts among the abstentions.
pub fn oos_precision(out_of_scope: &[bool], abstained: &[bool]) -> f64 {
    share(out_of_scope, abstained)
}

/// Share of right answers among the in-scope texts; an abstention is not right.
pub fn in_scope_accuracy(out_of_scope: &[bool], correct: &[bool]) -> f64 {
    let in_scope: Vec<bool> = out_of_scope.iter().map(|out| !out).collect();
    share(correct, &in_scope)
}

/// Share of `what` among the cases where `within` holds.
fn share(what: &[bool], within: &[bool]) -> f64 {
    mean(what.iter().zip(within).filter(|pair| *pair.1).map(|(&what, _)| f64::from(u8::from(what))))
}

/// NaN for nothing.
fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (n, sum) = values.fold((0.0, 0.0), |(n, sum), value| (n + 1.0, sum + value));
    sum / n
}
