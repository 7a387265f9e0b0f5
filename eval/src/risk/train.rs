//! From a table to served trees: split, schema, boosting, ONNX.
//!
//! The table is cut into training, validation (early stopping), calibration and test parts, in the order of time where there is
//! one; the schema's categories and ranges are learned on the training part alone. The trained trees are written as ONNX and read
//! back with the engine that serves, which must agree with the trainer on every row.

use std::collections::HashMap;

use anyhow::{Context, Result, bail, ensure};
use forust_ml::gradientbooster::{GradientBooster, ImportanceMethod};
use forust_ml::objective::ObjectiveType;
use forust_ml::{Matrix, metric::Metric};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_pcg::Pcg64;
use sluice::risk::sources::{FactKind, Source};
use sluice::risk::{Feature, FeatureKind, FeatureSchema, FeatureVector, TreeEnsemble};

use super::onnx_writer::{self, Ensemble, TrainedNode, TrainedSplit};
use super::table::{Cell, Column, Table};

/// Categories with fewer training rows than this are treated as missing.
const MIN_CATEGORY_ROWS: usize = 10;
/// Most categories of a feature; rarer ones are treated as missing.
const MAX_CATEGORIES: usize = 64;
/// Rows of prior that pull a category's mean target to the overall mean when categories are put in order.
const CATEGORY_PRIOR_ROWS: f64 = 20.0;
/// Share of the total gain that the features marked important hold together.
const IMPORTANT_GAIN: f64 = 0.8;
/// The served trees must score every row as the trainer does, to this difference.
const PARITY: f64 = 1e-5;

/// What is learned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Task {
    /// The probability of a target of 0 or 1.
    Binary,
    /// The mean of a number.
    Regression,
}

/// How trees are boosted.
#[derive(Debug, Clone, Copy)]
pub struct BoostingParams {
    pub learning_rate: f32,
    pub max_depth: usize,
    pub max_trees: usize,
    /// Trees without progress on the validation part before boosting stops.
    pub early_stopping: usize,
    pub seed: u64,
}

impl BoostingParams {
    pub fn new(seed: u64) -> Self {
        Self { learning_rate: 0.1, max_depth: 4, max_trees: 1_000, early_stopping: 30, seed }
    }
}

/// Row indices of the four parts.
#[derive(Debug, Clone)]
pub struct Split {
    pub train: Vec<usize>,
    pub validation: Vec<usize>,
    pub calibration: Vec<usize>,
    pub test: Vec<usize>,
}

/// Rows of numbers, ready to train on.
#[derive(Debug, Clone)]
pub struct Rows {
    pub schema: FeatureSchema,
    /// Row-major, NaN where missing.
    pub values: Vec<f32>,
}

/// A trained model in the form that serves.
#[derive(Debug)]
pub struct Trained {
    pub onnx: Vec<u8>,
    pub ensemble: TreeEnsemble,
    /// Share of the total gain, by feature.
    pub importances: Vec<f64>,
}

impl Split {
    /// 60, 10, 15 and 15 in a hundred rows, the oldest first; shuffled by `seed` where there is no time.
    ///
    /// # Errors
    /// Where there are too few rows for four parts.
    pub fn new(n_rows: usize, moments: Option<&[f64]>, seed: u64) -> Result<Self> {
        ensure!(n_rows >= 200, "{n_rows} rows are too few to train, calibrate and test on; 200 are the least");
        let mut order: Vec<usize> = (0..n_rows).collect();
        match moments {
            Some(moments) => order.sort_by(|&a, &b| moments[a].total_cmp(&moments[b])),
            None => order.shuffle(&mut Pcg64::seed_from_u64(seed)),
        }
        let at = |percent: usize| n_rows * percent / 100;
        Ok(Self {
            train: order[..at(60)].to_vec(),
            validation: order[at(60)..at(70)].to_vec(),
            calibration: order[at(70)..at(85)].to_vec(),
            test: order[at(85)..].to_vec(),
        })
    }
}

impl Rows {
    /// Learns the schema of the named columns on the training rows and makes every row with it. Categories are put in the order
    /// of their mean target, so that one split separates risky from safe ones. Constant columns are left out.
    ///
    /// # Errors
    /// Where no column varies, or a value does not fit its feature.
    pub fn learn(table: &Table, columns: &[&str], target: &[f64], train: &[usize]) -> Result<Self> {
        let mut features = Vec::new();
        let mut used: Vec<&Column> = Vec::new();
        for name in columns {
            let column = table.column(name)?;
            if let Some(feature) = learn_feature(column, target, train) {
                features.push(feature);
                used.push(column);
            }
        }
        ensure!(!features.is_empty(), "no column varies on the training rows");
        let schema = FeatureSchema::new(features)?;
        let mut values = Vec::with_capacity(table.n_rows * used.len());
        for row in 0..table.n_rows {
            let cells = used.iter().map(|column| column.cells[row].value());
            let vector = FeatureVector::from_values(&schema, cells).with_context(|| format!("row {}", row + 1))?;
            values.extend(vector.values);
        }
        Ok(Self { schema, values })
    }

    pub fn row(&self, row: usize) -> &[f32] {
        let width = self.schema.n_features();
        &self.values[row * width..(row + 1) * width]
    }

    /// The given rows one after another, row-major.
    pub fn gather(&self, rows: &[usize]) -> Vec<f32> {
        rows.iter().flat_map(|&row| self.row(row)).copied().collect()
    }

    /// The same rows with the important features marked.
    pub fn mark_important(&mut self, importances: &[&[f64]]) -> Result<()> {
        let mut features = self.schema.features().to_vec();
        for shares in importances {
            let mut order: Vec<usize> = (0..shares.len()).collect();
            order.sort_by(|&a, &b| shares[b].total_cmp(&shares[a]));
            let mut held = 0.0;
            for idx in order {
                if held >= IMPORTANT_GAIN {
                    break;
                }
                held += shares[idx];
                features[idx].important = true;
            }
        }
        self.schema = FeatureSchema::new(features)?;
        Ok(())
    }
}

/// The target column as numbers.
///
/// # Errors
/// Where a row has none, or a binary target is neither 0 nor 1.
pub fn target(table: &Table, name: &str, task: Task) -> Result<Vec<f64>> {
    let target = table.column(name)?.numbers()?;
    if task == Task::Binary
        && let Some(row) = target.iter().position(|value| *value != 0.0 && *value != 1.0)
    {
        bail!("row {} of `{name}` is {}; a binary target is 0 or 1, true or false", row + 1, target[row]);
    }
    let first = target.first().copied();
    ensure!(target.iter().any(|value| Some(*value) != first), "`{name}` is the same in every row");
    Ok(target)
}

/// Boosts trees on the training part, stops early on the validation part, and brings them into the form that serves.
///
/// # Errors
/// Where boosting fails or the served trees disagree with the trainer.
pub fn boost(rows: &Rows, target: &[f64], split: &Split, task: Task, params: &BoostingParams) -> Result<Trained> {
    let n_features = rows.schema.n_features();
    let part = |part: &[usize]| (column_major(rows, part), part.iter().map(|&row| target[row]).collect::<Vec<f64>>());
    let (train, train_target) = part(&split.train);
    let (validation, validation_target) = part(&split.validation);
    let weights = |n: usize| vec![1.0; n];
    let (train_weights, validation_weights) = (weights(train_target.len()), weights(validation_target.len()));
    let (objective, metric, min_leaf_weight) = match task {
        // The weight of a row is p(1 − p) for the logistic loss and 1 for the squared loss: both ask for some 20 to 50 rows a leaf.
        Task::Binary => (ObjectiveType::LogLoss, Metric::LogLoss, 5.0),
        Task::Regression => (ObjectiveType::SquaredLoss, Metric::RootMeanSquaredError, 40.0),
    };
    let mut booster = GradientBooster::default()
        .set_objective_type(objective)
        .set_evaluation_metric(Some(metric))
        .set_learning_rate(params.learning_rate)
        .set_max_depth(params.max_depth)
        .set_max_leaves(1 << params.max_depth)
        .set_iterations(params.max_trees)
        .set_early_stopping_rounds(Some(params.early_stopping))
        .set_min_leaf_weight(min_leaf_weight)
        .set_l2(1.0)
        .set_initialize_base_score(true)
        .set_missing(f64::NAN)
        .set_create_missing_branch(false)
        .set_seed(params.seed);
    let evaluation =
        vec![(Matrix::new(&validation, validation_target.len(), n_features), &validation_target[..], &validation_weights[..])];
    booster.fit(&Matrix::new(&train, train_target.len(), n_features), &train_target, &train_weights, Some(evaluation))?;

    let ensemble = ensemble_of(&booster, n_features);
    ensure!(!ensemble.trees.is_empty(), "boosting found no tree that helps on the validation part");
    let onnx = onnx_writer::write(&ensemble, task == Task::Binary);
    let served = TreeEnsemble::parse(&onnx).context("the written model cannot be served")?;
    let all: Vec<usize> = (0..target.len()).collect();
    let expected = booster.predict(&Matrix::new(&column_major(rows, &all), all.len(), n_features), true);
    let margins = served.margins(&rows.values)?;
    for (row, (expected, got)) in expected.iter().zip(&margins).enumerate() {
        ensure!((expected - got).abs() <= PARITY, "row {row} scores {got} served and {expected} by the trainer");
    }
    Ok(Trained { onnx, ensemble: served, importances: importances(&booster, n_features) })
}

fn learn_feature(column: &Column, target: &[f64], train: &[usize]) -> Option<Feature> {
    let (name, unit, fact_kind) = match Source::by_name(&column.name) {
        Some(Source::Fact(fact)) => (column.name.clone(), fact.unit.to_owned(), Some(fact.kind)),
        Some(Source::Attribute(_)) => (column.name.clone(), String::new(), None),
        // A column of a distributor's own table reaches the service as an attribute of the event.
        None => (format!("attributes.{}", column.name), String::new(), None),
    };
    let given = || train.iter().map(|&row| &column.cells[row]).filter(|cell| **cell != Cell::Missing);
    let first = given().next()?;
    if given().all(|cell| cell == first) && given().count() == train.len() {
        return None;
    }
    let kind = match (fact_kind, first) {
        (Some(FactKind::Number), _) | (None, Cell::Number(_)) => FeatureKind::Numeric,
        (Some(FactKind::Flag), _) | (None, Cell::Flag(_)) => FeatureKind::Boolean,
        (Some(FactKind::Text), _) | (None, _) => FeatureKind::Categorical,
    };
    let mut feature = Feature { name, kind, unit, important: false, min: None, max: None, categories: Vec::new() };
    match kind {
        FeatureKind::Numeric => {
            let numbers = || given().filter_map(|cell| if let Cell::Number(number) = cell { Some(*number as f32) } else { None });
            feature.min = numbers().min_by(f32::total_cmp);
            feature.max = numbers().max_by(f32::total_cmp);
        }
        FeatureKind::Boolean => {}
        FeatureKind::Categorical => {
            feature.categories = learn_categories(column, target, train);
            if feature.categories.is_empty() {
                return None;
            }
        }
    }
    Some(feature)
}

fn learn_categories(column: &Column, target: &[f64], train: &[usize]) -> Vec<String> {
    let overall = train.iter().map(|&row| target[row]).sum::<f64>() / train.len() as f64;
    let mut sums: HashMap<String, (usize, f64)> = HashMap::new();
    for &row in train {
        if let Cell::Text(text) = &column.cells[row] {
            let sum = sums.entry(text.trim().to_lowercase()).or_default();
            sum.0 += 1;
            sum.1 += target[row];
        }
    }
    let mut common: Vec<(String, usize, f64)> = sums
        .into_iter()
        .filter(|(_, (count, _))| *count >= MIN_CATEGORY_ROWS)
        .map(|(name, (count, sum))| (name, count, sum))
        .collect();
    common.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    common.truncate(MAX_CATEGORIES);
    let mean = |count: usize, sum: f64| (sum + overall * CATEGORY_PRIOR_ROWS) / (count as f64 + CATEGORY_PRIOR_ROWS);
    common.sort_by(|a, b| mean(a.1, a.2).total_cmp(&mean(b.1, b.2)).then_with(|| a.0.cmp(&b.0)));
    common.into_iter().map(|(name, _, _)| name).collect()
}

fn column_major(rows: &Rows, part: &[usize]) -> Vec<f64> {
    let n_features = rows.schema.n_features();
    (0..n_features).flat_map(|feature| part.iter().map(move |&row| f64::from(rows.row(row)[feature]))).collect()
}

fn ensemble_of(booster: &GradientBooster, n_features: usize) -> Ensemble {
    let kept = booster.prediction_iteration.unwrap_or(booster.trees.len());
    let trees = booster.trees[..kept].iter().map(|tree| {
        let nodes = tree.nodes.iter().map(|node| TrainedNode {
            split: (!node.is_leaf).then_some(TrainedSplit {
                feature: node.split_feature,
                threshold: node.split_value,
                left: node.left_child,
                right: node.right_child,
                missing_left: node.missing_node == node.left_child,
            }),
            value: node.weight_value,
            cover: node.hessian_sum,
        });
        nodes.collect()
    });
    Ensemble { base: booster.base_score, n_features, trees: trees.collect() }
}

fn importances(booster: &GradientBooster, n_features: usize) -> Vec<f64> {
    let gains = booster.calculate_feature_importance(ImportanceMethod::TotalGain, true);
    (0..n_features).map(|feature| f64::from(gains.get(&feature).copied().unwrap_or(0.0))).collect()
}
