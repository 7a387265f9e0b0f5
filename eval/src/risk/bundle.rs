//! The five risk artefacts of a bundle from one case history, by one call.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use sluice::risk::calibration::{BandLimits, PriorityRule, RiskCalibration, SlaCalibration};
use sluice::risk::{GoldenRow, GoldenRows, RiskArtefacts, RiskModel};

use crate::metrics::roc_auc;

use super::metrics::{self, BinaryMetrics, RegressionMetrics};
use super::table::{Cell, Table};
use super::train::{BoostingParams, Rows, Split, Task};
use super::{P90_BINS, calibrate, golden_rows, nullable, percentile, ranked_importances, raw_scores, spinner, train, write};

/// What the default models look at. There is no amount of money among them, so the currency does not matter, and no code that
/// only one distributor knows (site, carrier, customer, item).
pub const DEFAULT_FEATURES: [&str; 30] = [
    "hours_to_cutoff",
    "hours_to_promised_ship",
    "hours_to_requested_delivery",
    "transit_allowance",
    "hour_of_day",
    "day_of_week",
    "month",
    "n_lines",
    "n_short_lines",
    "short_share",
    "short_value_share",
    "substitutes_available",
    "substitute_cover",
    "hours_to_replenishment",
    "replenishment_slack",
    "replenishment_confirmed",
    "credit_utilisation",
    "freight_share",
    "order.margin",
    "order.priority",
    "order.partial_allowed",
    "order.regulated",
    "order.export_controlled",
    "customer.sla_tier",
    "customer.days_overdue",
    "customer.on_time_in_full_90d",
    "customer.requires_authorization",
    "shipment.service_level",
    "shipment.mode",
    "shipment.alternate_carriers",
];

/// Facts that the priority needs beside the features.
const MONEY_FACTS: [&str; 2] = ["order.value", "order.currency"];
/// A breach is more likely than not in the upper band, and four times in five kept in the lower one.
const BANDS: BandLimits = BandLimits { medium: 0.2, high: 0.5 };
/// Weights of service tiers in the priority.
const TIER_WEIGHTS: [(&str, f64); 5] = [("platinum", 1.5), ("gold", 1.3), ("silver", 1.0), ("standard", 1.0), ("bronze", 0.8)];
/// Shares of calibration cases under each priority above low: one case in thirty is critical, so that the word keeps meaning.
const PRIORITY_SHARES: [f64; 3] = [0.5, 0.85, 0.97];

/// The figures of both models, all on the test part.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RiskReport {
    pub seed: u64,
    pub n_train: usize,
    pub n_validation: usize,
    pub n_calibration: usize,
    pub n_test: usize,
    pub sla: SlaReport,
    pub revenue: RevenueReport,
}

/// The SLA model.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SlaReport {
    pub n_trees: usize,
    pub calibrated: BinaryMetrics,
    pub raw: BinaryMetrics,
    /// Area of the simulator's own breach probabilities, which see every hidden fact: no model can pass it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub best_possible_roc_auc: Option<f64>,
    /// Of parts of the test cases, of at least a hundred each: `well_described` gives a deadline and twelve or more features,
    /// `nearly_bare` gives at most three beside the time.
    pub slices: BTreeMap<String, BinaryMetrics>,
    pub importances: Vec<(String, f64)>,
}

/// The revenue model, in fractions of order value.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RevenueReport {
    pub n_trees: usize,
    pub loss_fraction: RegressionMetrics,
    pub importances: Vec<(String, f64)>,
}

/// Trains the SLA and the revenue model on a case history and writes `features.toml`, `risk_sla.onnx`, `risk_revenue.onnx`,
/// `risk.toml`, `risk_golden.json` and `risk_report.json` into `out_dir`. Equal arguments give equal files.
///
/// # Errors
/// Where the history cannot be read or is too small, or the written artefacts do not load as the service loads them.
pub fn train_default_risk(cases_path: &Path, out_dir: &Path, seed: u64) -> Result<RiskReport> {
    let bar = spinner();
    bar.set_message(format!("reading {}", cases_path.display()));
    let facts: Vec<&str> = DEFAULT_FEATURES.into_iter().chain(MONEY_FACTS).collect();
    let table = Table::from_cases(cases_path, &facts)?;
    let breached = train::target(&table, "outcome.sla_breached", Task::Binary)?;
    let lost = train::target(&table, "outcome.loss_fraction", Task::Regression)?;
    let moments = table.column(super::table::TIME_COLUMN)?.numbers()?;
    let split = Split::new(table.n_rows, Some(&moments), seed)?;
    let mut rows = Rows::learn(&table, &DEFAULT_FEATURES, &breached, &split.train)?;
    let params = BoostingParams::new(seed);
    bar.set_message(format!("boosting the SLA model on {} cases", split.train.len()));
    let sla = train::boost(&rows, &breached, &split, Task::Binary, &params)?;
    bar.set_message(format!("boosting the revenue model on {} cases", split.train.len()));
    let revenue = train::boost(&rows, &lost, &split, Task::Regression, &params)?;
    rows.mark_important(&[&sla.importances, &revenue.importances])?;

    bar.set_message("calibrating and testing");
    let pick = |values: &[f64], part: &[usize]| part.iter().map(|&row| values[row]).collect::<Vec<f64>>();
    let calibration_sla = raw_scores(&sla, &rows, &split.calibration)?;
    let calibration_revenue = raw_scores(&revenue, &rows, &split.calibration)?;
    let calibrator = calibrate::platt(&calibration_sla, &pick(&breached, &split.calibration))
        .context("the SLA model ranks the calibration cases no better than chance")?;
    let limits = calibrate::limits(&calibration_revenue, &pick(&lost, &split.calibration), P90_BINS);
    let probabilities: Vec<f64> = calibration_sla.iter().map(|raw| calibrator.probability(*raw)).collect();
    let expected: Vec<f64> = calibration_revenue.iter().map(|raw| limits.mean_and_p90(*raw).0).collect();
    let calibration = RiskCalibration {
        version: 1,
        sla: SlaCalibration { bands: BANDS, calibrator },
        revenue: limits,
        priority: learn_priority(&table, &split.calibration, &probabilities, &expected)?,
    };

    let golden = golden_rows(&rows, &split.test);
    let score =
        |trained: &train::Trained, row: &[f32]| -> Result<f64> { Ok(trained.ensemble.score_of(trained.ensemble.margins(row)?[0])) };
    let golden =
        golden.iter().map(|row| Ok(GoldenRow { values: nullable(row), sla: score(&sla, row)?, revenue: score(&revenue, row)? }));
    let golden = serde_json::to_vec(&GoldenRows { rows: golden.collect::<Result<_>>()? })?;

    let test_sla = raw_scores(&sla, &rows, &split.test)?;
    let calibrated: Vec<f64> = test_sla.iter().map(|raw| calibration.sla.calibrator.probability(*raw)).collect();
    let test_breached = pick(&breached, &split.test);
    let (mean, p90): (Vec<f64>, Vec<f64>) =
        raw_scores(&revenue, &rows, &split.test)?.iter().map(|raw| calibration.revenue.mean_and_p90(*raw)).unzip();
    let report = RiskReport {
        seed,
        n_train: split.train.len(),
        n_validation: split.validation.len(),
        n_calibration: split.calibration.len(),
        n_test: split.test.len(),
        sla: SlaReport {
            n_trees: sla.ensemble.n_trees(),
            calibrated: metrics::binary(&calibrated, &test_breached),
            raw: metrics::binary(&test_sla, &test_breached),
            best_possible_roc_auc: best_possible_roc_auc(&table, &split.test, &test_breached),
            slices: slices(&rows, &split.test, &calibrated, &test_breached),
            importances: ranked_importances(&rows, &sla),
        },
        revenue: RevenueReport {
            n_trees: revenue.ensemble.n_trees(),
            loss_fraction: metrics::regression(&mean, &p90, &pick(&lost, &split.test)),
            importances: ranked_importances(&rows, &revenue),
        },
    };

    let (features, calibration) = (rows.schema.to_toml(), calibration.to_toml());
    RiskModel::load(&RiskArtefacts {
        features: features.as_bytes(),
        sla: &sla.onnx,
        revenue: &revenue.onnx,
        calibration: calibration.as_bytes(),
        golden: &golden,
    })
    .context("the trained artefacts do not load")?;
    std::fs::create_dir_all(out_dir).with_context(|| format!("cannot make `{}`", out_dir.display()))?;
    write(out_dir, "features.toml", features.as_bytes())?;
    write(out_dir, "risk_sla.onnx", &sla.onnx)?;
    write(out_dir, "risk_revenue.onnx", &revenue.onnx)?;
    write(out_dir, "risk.toml", calibration.as_bytes())?;
    write(out_dir, "risk_golden.json", &golden)?;
    write(out_dir, "risk_report.json", &serde_json::to_vec_pretty(&report)?)?;
    bar.finish_and_clear();
    Ok(report)
}

/// Reference losses are each currency's median expected loss; limits are quantiles of the index they give.
fn learn_priority(table: &Table, part: &[usize], probabilities: &[f64], expected: &[f64]) -> Result<PriorityRule> {
    let (values, currencies) = (table.column("order.value")?, table.column("order.currency")?);
    let tiers = table.column("customer.sla_tier")?;
    let text = |cell: &Cell| if let Cell::Text(text) = cell { Some(text.clone()) } else { None };
    let loss = |position: usize| match &values.cells[part[position]] {
        Cell::Number(value) => Some(value * expected[position]),
        _ => None,
    };
    let mut losses: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for (position, &row) in part.iter().enumerate() {
        if let (Some(currency), Some(loss)) = (text(&currencies.cells[row]), loss(position)) {
            losses.entry(currency).or_default().push(loss);
        }
    }
    let median = |(currency, losses): (String, Vec<f64>)| Ok((currency, percentile(&losses, 0.5)?.max(0.01)));
    let mut rule = PriorityRule {
        tier_weights: TIER_WEIGHTS.into_iter().map(|(tier, weight)| (tier.to_owned(), weight)).collect(),
        other_tier_weight: 1.0,
        reference_loss: losses.into_iter().map(median).collect::<Result<_>>()?,
        normal: 1.0,
        high: 2.0,
        critical: 3.0,
    };
    let index = |position: usize| {
        let (tier, currency) = (text(&tiers.cells[part[position]]), text(&currencies.cells[part[position]]));
        rule.index(probabilities[position], tier.as_deref(), loss(position), currency.as_deref())
    };
    let indices: Vec<f64> = (0..part.len()).map(index).collect();
    let [normal, high, critical] = PRIORITY_SHARES.map(|share| percentile(&indices, share));
    (rule.normal, rule.high, rule.critical) = (normal?, high?, critical?);
    ensure!(rule.normal < rule.high && rule.high < rule.critical, "the calibration cases do not differ enough for priorities");
    Ok(rule)
}

fn best_possible_roc_auc(table: &Table, test: &[usize], breached: &[f64]) -> Option<f64> {
    let truth = table.column("truth.breach_probability").ok()?;
    let truth: Option<Vec<f64>> =
        test.iter().map(|&row| if let Cell::Number(p) = truth.cells[row] { Some(p) } else { None }).collect();
    let breached: Vec<bool> = breached.iter().map(|&y| y > 0.5).collect();
    Some(roc_auc(&breached, &truth?))
}

fn slices(rows: &Rows, test: &[usize], probabilities: &[f64], breached: &[f64]) -> BTreeMap<String, BinaryMetrics> {
    const MIN_CASES: usize = 100;
    // Hour, weekday and month are always known.
    const TIME_FEATURES: usize = 3;
    let names = rows.schema.feature_names();
    let known = |row: &[f32]| row.iter().filter(|value| !value.is_nan()).count() - TIME_FEATURES;
    let gives = |row: &[f32], name: &str| names.iter().zip(row).any(|(known, value)| known == name && !value.is_nan());
    let well_described = |row: &[f32]| gives(row, "hours_to_promised_ship") && known(row) >= 12;
    let nearly_bare = |row: &[f32]| known(row) <= 3;
    let mut slices = BTreeMap::new();
    for (name, belongs) in [("well_described", &well_described as &dyn Fn(&[f32]) -> bool), ("nearly_bare", &nearly_bare)] {
        let positions: Vec<usize> = (0..test.len()).filter(|&position| belongs(rows.row(test[position]))).collect();
        let pick = |values: &[f64]| positions.iter().map(|&position| values[position]).collect::<Vec<f64>>();
        if positions.len() >= MIN_CASES {
            slices.insert(name.to_owned(), metrics::binary(&pick(probabilities), &pick(breached)));
        }
    }
    slices
}

#[cfg(test)]
mod tests {
    use std::io::BufRead;

    use sluice::event::EventLimits;
    use sluice::risk::FeatureVector;

    use super::*;
    use crate::simulate::{self, Case};

    const ARTEFACTS: [&str; 6] =
        ["features.toml", "risk_sla.onnx", "risk_revenue.onnx", "risk.toml", "risk_golden.json", "risk_report.json"];

    fn simulate(folder: &Path, cases: usize) -> std::path::PathBuf {
        let out = folder.join("cases.jsonl");
        simulate::run(&simulate::Args { cases, seed: 3, out: out.clone(), narratives: None }).unwrap();
        out
    }

    #[test]
    fn equal_cases_and_seeds_make_equal_artefacts_that_beat_chance() {
        let folder = tempfile::tempdir().unwrap();
        let cases = simulate(folder.path(), 3_000);
        let [first, second] = ["a", "b"].map(|name| folder.path().join(name));
        let report = train_default_risk(&cases, &first, 7).unwrap();
        train_default_risk(&cases, &second, 7).unwrap();
        for artefact in ARTEFACTS {
            assert_eq!(std::fs::read(first.join(artefact)).unwrap(), std::fs::read(second.join(artefact)).unwrap(), "{artefact}");
        }
        assert_eq!(report.n_train + report.n_validation + report.n_calibration + report.n_test, 3_000);
        assert!(report.sla.calibrated.roc_auc > 0.58, "{:?}", report.sla.calibrated);
        assert!(report.sla.best_possible_roc_auc.unwrap() > report.sla.calibrated.roc_auc);
        assert!(report.sla.calibrated.expected_calibration_error < 0.15);
        assert!((0.8..=0.98).contains(&report.revenue.loss_fraction.p90_coverage));
    }

    #[test]
    fn training_sees_the_row_that_serving_computes() {
        let folder = tempfile::tempdir().unwrap();
        let path = simulate(folder.path(), 400);
        let table = Table::from_cases(&path, &DEFAULT_FEATURES).unwrap();
        let target = train::target(&table, "outcome.sla_breached", Task::Binary).unwrap();
        let rows = Rows::learn(&table, &DEFAULT_FEATURES, &target, &(0..400).collect::<Vec<_>>()).unwrap();
        let limits = EventLimits { max_narrative_chars: 1_000, max_lines: 100, max_attributes: 10 };
        for (row, line) in std::io::BufReader::new(std::fs::File::open(&path).unwrap()).lines().enumerate() {
            let case: Case = serde_json::from_str(&line.unwrap()).unwrap();
            let facts = case.event.into_content(&limits).unwrap().facts;
            let served = FeatureVector::from_facts(&rows.schema, &facts).unwrap();
            let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<u32>>();
            assert_eq!(bits(&served.values), bits(rows.row(row)), "case {}", row + 1);
        }
    }
}
