//! `sluice-eval train risk`: gradient-boosted risk models from any table, and the default bundle's from a case history.
//!
//! [`table`] reads the data, [`train`] boosts and writes ONNX, [`calibrate`] fits what is read from the raw scores, [`bundle`]
//! makes the five artefacts of a bundle. All figures are taken on the test part with the engine that serves.
//!
//! It refuses a target with holes, and to show a figure of rows that training or calibration saw.

pub mod bundle;
pub mod calibrate;
pub mod metrics;
pub mod onnx_writer;
pub mod table;
pub mod train;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};
use sluice::risk::calibration::{Calibrator, RevenueCalibration};

pub use bundle::{RiskReport, train_default_risk};
use metrics::{BinaryMetrics, RegressionMetrics};
use table::Table;
use train::{BoostingParams, Rows, Split, Task, Trained};

/// Bins of the prediction within which the 90 % limit is taken.
const P90_BINS: usize = 10;

/// What `sluice-eval train risk` is told.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Table to train on: CSV, JSON Lines or Parquet, or a case history, whose columns are then the facts of its events.
    #[arg(long)]
    pub data: PathBuf,
    /// Column to predict; of a case history `outcome.sla_breached` or `outcome.loss_fraction`.
    #[arg(long)]
    pub target: String,
    #[arg(long, value_enum, default_value_t = Task::Binary)]
    pub task: Task,
    /// Columns to leave out.
    #[arg(long, value_delimiter = ',')]
    pub drop: Vec<String>,
    /// Column that orders the rows in time: the newest are tested on. A case history is ordered by itself.
    #[arg(long)]
    pub time: Option<String>,
    /// How raw scores become probabilities; isotonic needs tens of thousands of rows.
    #[arg(long, value_enum, default_value_t = CalibratorKind::Platt)]
    pub calibrator: CalibratorKind,
    #[arg(long, default_value_t = 7)]
    pub seed: u64,
    /// Folder for `model.onnx`, `features.toml`, `calibration.toml`, `golden.json` and `report.json`.
    #[arg(long)]
    pub out: PathBuf,
}

/// A map from raw score to probability.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum CalibratorKind {
    Platt,
    Isotonic,
}

/// The figures of one model, all on the test part.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    pub target: String,
    pub seed: u64,
    pub n_train: usize,
    pub n_validation: usize,
    pub n_calibration: usize,
    pub n_test: usize,
    pub time_ordered: bool,
    pub n_trees: usize,
    /// Of the calibrated scores.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub binary: Option<BinaryMetrics>,
    /// Of the raw scores.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub binary_raw: Option<BinaryMetrics>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub regression: Option<RegressionMetrics>,
    /// Share of the total gain by feature, the largest first.
    pub importances: Vec<(String, f64)>,
}

#[derive(Serialize)]
struct GoldenFile {
    rows: Vec<GoldenScore>,
}

#[derive(Serialize)]
struct GoldenScore {
    values: Vec<Option<f32>>,
    raw_score: f64,
}

#[derive(Serialize)]
#[serde(untagged)]
enum CalibrationFile {
    Binary { calibrator: Calibrator },
    Regression(RevenueCalibration),
}

/// Trains one model and writes its files.
///
/// # Errors
/// Where the data cannot be read or do not fit the task, or a file cannot be written.
pub fn run(args: &Args) -> Result<Report> {
    let bar = spinner();
    bar.set_message(format!("reading {}", args.data.display()));
    let history = table::is_case_history(&args.data)?;
    let table = if history { Table::from_cases(&args.data, &bundle::DEFAULT_FEATURES)? } else { Table::read(&args.data)? };
    let time = args.time.as_deref().or(history.then_some(table::TIME_COLUMN));
    let target = train::target(&table, &args.target, args.task)?;
    for name in args.drop.iter().map(String::as_str).chain(time) {
        table.column(name)?;
    }
    let moments = time.map(|name| moments(&table, name)).transpose()?;
    let is_feature = |name: &str| {
        let withheld = history && (table::OUTCOME_COLUMNS.contains(&name) || name == table::TIME_COLUMN);
        name != args.target && !withheld && Some(name) != time && !args.drop.iter().any(|dropped| dropped == name)
    };
    let columns: Vec<&str> = table.columns.iter().map(|column| column.name.as_str()).filter(|name| is_feature(name)).collect();
    let split = Split::new(table.n_rows, moments.as_deref(), args.seed)?;
    let mut rows = Rows::learn(&table, &columns, &target, &split.train)?;
    bar.set_message(format!("boosting on {} rows × {} features", split.train.len(), rows.schema.n_features()));
    let trained = train::boost(&rows, &target, &split, args.task, &BoostingParams::new(args.seed))?;
    rows.mark_important(&[&trained.importances])?;

    bar.set_message("calibrating and testing");
    let pick = |part: &[usize]| part.iter().map(|&row| target[row]).collect::<Vec<f64>>();
    let (test_raw, test_target) = (raw_scores(&trained, &rows, &split.test)?, pick(&split.test));
    let (calibration_raw, calibration_target) = (raw_scores(&trained, &rows, &split.calibration)?, pick(&split.calibration));
    let mut report = Report {
        target: args.target.clone(),
        seed: args.seed,
        n_train: split.train.len(),
        n_validation: split.validation.len(),
        n_calibration: split.calibration.len(),
        n_test: split.test.len(),
        time_ordered: moments.is_some(),
        n_trees: trained.ensemble.n_trees(),
        binary: None,
        binary_raw: None,
        regression: None,
        importances: ranked_importances(&rows, &trained),
    };
    let calibration = match args.task {
        Task::Binary => {
            let calibrator = fit_calibrator(args.calibrator, &calibration_raw, &calibration_target)?;
            let probabilities: Vec<f64> = test_raw.iter().map(|raw| calibrator.probability(*raw)).collect();
            report.binary = Some(metrics::binary(&probabilities, &test_target));
            report.binary_raw = Some(metrics::binary(&test_raw, &test_target));
            CalibrationFile::Binary { calibrator }
        }
        Task::Regression => {
            let limits = calibrate::limits(&calibration_raw, &calibration_target, P90_BINS);
            let p90: Vec<f64> = test_raw.iter().map(|raw| raw + limits.offset(*raw)).collect();
            report.regression = Some(metrics::regression(&test_raw, &p90, &test_target));
            CalibrationFile::Regression(limits)
        }
    };
    let golden = golden_rows(&rows, &split.test);
    let golden = golden.iter().map(|values| {
        let margin = trained.ensemble.margins(values)?[0];
        Ok(GoldenScore { values: nullable(values), raw_score: trained.ensemble.score_of(margin) })
    });
    let golden = GoldenFile { rows: golden.collect::<Result<_>>()? };

    std::fs::create_dir_all(&args.out).with_context(|| format!("cannot make `{}`", args.out.display()))?;
    write(&args.out, "model.onnx", &trained.onnx)?;
    write(&args.out, "features.toml", rows.schema.to_toml().as_bytes())?;
    write(&args.out, "calibration.toml", toml::to_string(&calibration)?.as_bytes())?;
    write(&args.out, "golden.json", &serde_json::to_vec(&golden)?)?;
    write(&args.out, "report.json", &serde_json::to_vec_pretty(&report)?)?;
    bar.finish_and_clear();
    Ok(report)
}

fn moments(table: &Table, name: &str) -> Result<Vec<f64>> {
    let column = table.column(name)?;
    if let Ok(numbers) = column.numbers() {
        return Ok(numbers);
    }
    let format = &time::format_description::well_known::Rfc3339;
    let moment = |(row, cell): (usize, &table::Cell)| match cell {
        table::Cell::Text(text) => time::OffsetDateTime::parse(text, format)
            .map(|moment| moment.unix_timestamp() as f64)
            .with_context(|| format!("row {} of `{name}` is no RFC 3339 time", row + 1)),
        _ => anyhow::bail!("row {} of `{name}` is neither a number nor an RFC 3339 time", row + 1),
    };
    column.cells.iter().enumerate().map(moment).collect()
}

fn raw_scores(trained: &Trained, rows: &Rows, part: &[usize]) -> Result<Vec<f64>> {
    let margins = trained.ensemble.margins(&rows.gather(part))?;
    Ok(margins.into_iter().map(|margin| trained.ensemble.score_of(margin)).collect())
}

fn fit_calibrator(kind: CalibratorKind, raw_scores: &[f64], outcomes: &[f64]) -> Result<Calibrator> {
    match kind {
        CalibratorKind::Isotonic => Ok(calibrate::isotonic(raw_scores, outcomes)),
        CalibratorKind::Platt => {
            calibrate::platt(raw_scores, outcomes).context("the model ranks the calibration rows no better than chance")
        }
    }
}

fn ranked_importances(rows: &Rows, trained: &Trained) -> Vec<(String, f64)> {
    let mut ranked: Vec<(String, f64)> = rows.schema.feature_names().into_iter().zip(trained.importances.iter().copied()).collect();
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    ranked
}

/// Rows that pin a model down: thirty of the test part, one with nothing given, and one for each category otherwise empty.
fn golden_rows(rows: &Rows, test: &[usize]) -> Vec<Vec<f32>> {
    let n_features = rows.schema.n_features();
    let empty = vec![f32::NAN; n_features];
    let mut golden: Vec<Vec<f32>> = test.iter().step_by((test.len() / 30).max(1)).map(|&row| rows.row(row).to_vec()).collect();
    for (feature_idx, feature) in rows.schema.features().iter().enumerate() {
        for code in 0..feature.categories.len() {
            let mut row = empty.clone();
            row[feature_idx] = code as f32;
            golden.push(row);
        }
    }
    golden.push(empty);
    golden
}

fn nullable(values: &[f32]) -> Vec<Option<f32>> {
    values.iter().map(|value| (!value.is_nan()).then_some(*value)).collect()
}

fn write(folder: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let path = folder.join(name);
    std::fs::write(&path, bytes).with_context(|| format!("cannot write `{}`", path.display()))
}

fn spinner() -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    bar.set_style(ProgressStyle::with_template("{spinner} {elapsed} {msg}").expect("the template is valid"));
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

fn percentile(values: &[f64], share: f64) -> Result<f64> {
    ensure!(!values.is_empty(), "there are no values to take a percentile of");
    let mut ascending = values.to_vec();
    ascending.sort_by(f64::total_cmp);
    Ok(ascending[((share * ascending.len() as f64) as usize).min(ascending.len() - 1)])
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use rand::{Rng, SeedableRng};
    use rand_pcg::Pcg64;
    use sluice::risk::{FeatureKind, FeatureSchema, TreeEnsemble};

    use super::*;

    /// Rows whose delay depends on a number with holes, a category and a flag, with a leak that must be dropped.
    fn csv(n_rows: usize) -> String {
        let mut rng = Pcg64::seed_from_u64(4);
        let mut text = "day,distance,carrier,hazmat,leak,delayed,minutes\n".to_owned();
        for row in 0..n_rows {
            let distance: f64 = rng.random_range(0.0..10.0);
            let carrier = ["slow", "usual", "fast"][rng.random_range(0..3)];
            let hazmat = rng.random_bool(0.3);
            let margin = 0.6 * distance - 3.0 + if carrier == "slow" { 2.0 } else { 0.0 } + f64::from(u8::from(hazmat));
            let delayed = rng.random_bool(1.0 / (1.0 + (-margin).exp()));
            let distance = if rng.random_bool(0.1) { String::new() } else { format!("{distance:.2}") };
            let minutes = margin * 10.0 + rng.random_range(-5.0..5.0);
            writeln!(text, "{row},{distance},{carrier},{hazmat},{delayed},{delayed},{minutes:.3}").unwrap();
        }
        text
    }

    fn args(folder: &Path, target: &str, task: Task) -> Args {
        let data = folder.join("rows.csv");
        std::fs::write(&data, csv(4_000)).unwrap();
        let other = if task == Task::Binary { "minutes" } else { "delayed" };
        Args {
            data,
            target: target.to_owned(),
            task,
            drop: vec!["leak".to_owned(), other.to_owned()],
            time: Some("day".to_owned()),
            calibrator: CalibratorKind::Platt,
            seed: 1,
            out: folder.join("out"),
        }
    }

    #[test]
    fn any_table_trains_a_binary_model_that_serves() {
        let folder = tempfile::tempdir().unwrap();
        let args = args(folder.path(), "delayed", Task::Binary);
        let report = run(&args).unwrap();
        let metrics = report.binary.unwrap();
        assert!(metrics.roc_auc > 0.8 && metrics.expected_calibration_error < 0.08, "{metrics:?}");
        let file = |name: &str| std::fs::read(args.out.join(name)).unwrap();
        let schema = FeatureSchema::parse(std::str::from_utf8(&file("features.toml")).unwrap()).unwrap();
        assert_eq!(schema.feature_names(), ["attributes.distance", "attributes.carrier", "attributes.hazmat"]);
        assert_eq!(schema.features()[1].kind, FeatureKind::Categorical);
        assert_eq!(schema.features()[1].categories.last().unwrap(), "slow");
        assert_eq!(TreeEnsemble::parse(&file("model.onnx")).unwrap().n_features(), 3);
    }

    #[test]
    fn any_table_trains_a_regression_with_an_honest_limit() {
        let folder = tempfile::tempdir().unwrap();
        let report = run(&args(folder.path(), "minutes", Task::Regression)).unwrap();
        let metrics = report.regression.unwrap();
        assert!(metrics.r2 > 0.75, "{metrics:?}");
        assert!((metrics.p90_coverage - 0.9).abs() < 0.05, "{metrics:?}");
    }

    fn check_refused(reason: &str, change: impl FnOnce(&mut Args)) {
        let folder = tempfile::tempdir().unwrap();
        let mut args = args(folder.path(), "delayed", Task::Binary);
        change(&mut args);
        let error = format!("{:#}", run(&args).expect_err(reason));
        assert!(error.contains(reason), "`{error}` does not name `{reason}`");
    }

    #[test]
    fn what_cannot_be_trained_is_refused_with_the_reason() {
        check_refused("there is no column `colour`", |args| args.target = "colour".to_owned());
        check_refused("there is no column `colour`", |args| args.drop.push("colour".to_owned()));
        check_refused("a binary target is 0 or 1", |args| args.target = "minutes".to_owned());
        check_refused("row 1 of `carrier` is no number", |args| args.target = "carrier".to_owned());
        check_refused("too few", |args| std::fs::write(&args.data, csv(100)).unwrap());
    }
}
