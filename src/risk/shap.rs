//! Exact contributions of features to a margin: path-dependent TreeSHAP from the same flat trees that score.
//!
//! Lundberg et al. 2018 (arXiv 1802.03888), algorithm 2. A split's two branches are weighed by the training cover that passed
//! them, so the contributions and the base sum to the margin. It refuses files whose covers are absent or do not add up, as
//! exporters that write a constant leave them. See [`super::model`] for the contributions of an event.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::trees::{Tree, TreeEnsemble};
use super::{FeatureVector, RiskError, RiskModel};
use crate::event::Facts;

/// Why an SLA score is what it is, in log-odds before calibration: `base` and all contributions sum to `margin`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Contributions {
    /// Mean margin over the training cases.
    pub base: f64,
    pub margin: f64,
    /// Every feature, the largest effect first.
    pub features: Vec<Contribution>,
}

/// What one feature adds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Contribution {
    pub feature: String,
    /// As the model saw it, a category by its code; absent where missing. That a fact is missing can itself move the score.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<f64>,
    pub contribution: f64,
}

impl RiskModel {
    /// What each feature of an event adds to its SLA margin. About half a millisecond.
    ///
    /// # Errors
    /// As [`RiskModel::score`]; [`RiskError::NoCovers`] where the model's file does not say how its training rows split.
    pub fn contributions(&self, facts: &Facts) -> Result<Contributions, RiskError> {
        let vector = FeatureVector::from_facts(self.schema(), facts)?;
        let (base, contributions) = self.sla.contributions(&vector.values)?;
        let margin = self.sla.margins(&vector.values)?[0];
        let names = self.schema().feature_names().into_iter();
        let mut features: Vec<Contribution> = names
            .zip(&vector.values)
            .zip(contributions)
            .map(|((feature, value), contribution)| Contribution {
                feature,
                value: (!value.is_nan()).then_some(f64::from(*value)),
                contribution,
            })
            .collect();
        features.sort_by(|a, b| b.contribution.abs().total_cmp(&a.contribution.abs()));
        Ok(Contributions { base, margin, features })
    }
}

impl TreeEnsemble {
    /// The mean margin over the training rows and what each feature of `row` adds to it; together they sum to the margin.
    ///
    /// # Errors
    /// [`RiskError::NoCovers`], [`RiskError::Width`].
    pub fn contributions(&self, row: &[f32]) -> Result<(f64, Vec<f64>), RiskError> {
        if !self.has_covers {
            return Err(RiskError::NoCovers);
        }
        if row.len() != self.n_features {
            return Err(RiskError::Width { expected: self.n_features, got: row.len() });
        }
        let mut base = self.base;
        let mut contributions = vec![0.0; self.n_features];
        let mut path = Vec::new();
        for tree in &self.trees {
            base += expected_value(tree, 0);
            let mut walk = Walk { tree, row, contributions: &mut contributions };
            path.clear();
            walk.visit(0, &path, Step { feature: None, zero_fraction: 1.0, one_fraction: 1.0 });
        }
        Ok((base, contributions))
    }
}

/// Mean of a subtree's leaves by cover.
fn expected_value(tree: &Tree, node_idx: usize) -> f64 {
    let node = tree.nodes[node_idx];
    if node.is_leaf() {
        return f64::from(tree.values[node_idx]);
    }
    let (left, right) = (node.left as usize, node.right as usize);
    let share = left_share(tree, node_idx);
    share * expected_value(tree, left) + (1.0 - share) * expected_value(tree, right)
}

/// Share of a split's training weight that went left.
fn left_share(tree: &Tree, node_idx: usize) -> f64 {
    let node = tree.nodes[node_idx];
    let (left, right) = (f64::from(tree.covers[node.left as usize]), f64::from(tree.covers[node.right as usize]));
    left / (left + right)
}

/// One feature on the path from the root, with the share of paths that pass where it is unknown and where it is known, and the
/// weight of feature sets of each size.
#[derive(Debug, Clone, Copy)]
struct PathElement {
    feature: Option<usize>,
    zero_fraction: f64,
    one_fraction: f64,
    weight: f64,
}

/// What a node adds to the path of its parent.
#[derive(Debug, Clone, Copy)]
struct Step {
    feature: Option<usize>,
    zero_fraction: f64,
    one_fraction: f64,
}

struct Walk<'a> {
    tree: &'a Tree,
    row: &'a [f32],
    contributions: &'a mut [f64],
}

impl Walk<'_> {
    fn visit(&mut self, node_idx: usize, parent_path: &[PathElement], step: Step) {
        let mut path = Vec::with_capacity(parent_path.len() + 2);
        path.extend_from_slice(parent_path);
        extend(&mut path, step);
        let node = self.tree.nodes[node_idx];
        if node.is_leaf() {
            let value = f64::from(self.tree.values[node_idx]);
            for element_idx in 1..path.len() {
                let element = path[element_idx];
                let feature = element.feature.expect("only the root's element has no feature");
                let weight = unwound_sum(&path, element_idx);
                self.contributions[feature] += weight * (element.one_fraction - element.zero_fraction) * value;
            }
            return;
        }
        let feature = node.feature();
        let hot = node.next(self.row[feature]);
        let share = left_share(self.tree, node_idx);
        let mut incoming = (1.0, 1.0);
        // A feature met again on a path is one element: its earlier fractions move down with it.
        if let Some(earlier) = path.iter().position(|element| element.feature == Some(feature)) {
            incoming = (path[earlier].zero_fraction, path[earlier].one_fraction);
            unwind(&mut path, earlier);
        }
        for (child, share) in [(node.left, share), (node.right, 1.0 - share)] {
            let one_fraction = if child == hot { incoming.1 } else { 0.0 };
            self.visit(child as usize, &path, Step { feature: Some(feature), zero_fraction: incoming.0 * share, one_fraction });
        }
    }
}

fn extend(path: &mut Vec<PathElement>, step: Step) {
    let depth = path.len();
    let weight = if depth == 0 { 1.0 } else { 0.0 };
    path.push(PathElement { feature: step.feature, zero_fraction: step.zero_fraction, one_fraction: step.one_fraction, weight });
    for idx in (0..depth).rev() {
        path[idx + 1].weight += step.one_fraction * path[idx].weight * (idx + 1) as f64 / (depth + 1) as f64;
        path[idx].weight *= step.zero_fraction * (depth - idx) as f64 / (depth + 1) as f64;
    }
}

/// Takes an element out of the path, as if it had never been extended by it.
fn unwind(path: &mut Vec<PathElement>, element_idx: usize) {
    let depth = path.len() - 1;
    let PathElement { zero_fraction, one_fraction, .. } = path[element_idx];
    let mut next = path[depth].weight;
    for idx in (0..depth).rev() {
        if one_fraction != 0.0 {
            let kept = path[idx].weight;
            path[idx].weight = next * (depth + 1) as f64 / ((idx + 1) as f64 * one_fraction);
            next = kept - path[idx].weight * zero_fraction * (depth - idx) as f64 / (depth + 1) as f64;
        } else {
            path[idx].weight *= (depth + 1) as f64 / (zero_fraction * (depth - idx) as f64);
        }
    }
    for idx in element_idx..depth {
        let PathElement { feature, zero_fraction, one_fraction, .. } = path[idx + 1];
        path[idx] = PathElement { feature, zero_fraction, one_fraction, weight: path[idx].weight };
    }
    path.pop();
}

/// Sum of the weights that [`unwind`] would leave.
fn unwound_sum(path: &[PathElement], element_idx: usize) -> f64 {
    let depth = path.len() - 1;
    let PathElement { zero_fraction, one_fraction, .. } = path[element_idx];
    let mut next = path[depth].weight;
    let mut total = 0.0;
    for idx in (0..depth).rev() {
        if one_fraction != 0.0 {
            let weight = next * (depth + 1) as f64 / ((idx + 1) as f64 * one_fraction);
            total += weight;
            next = path[idx].weight - weight * zero_fraction * (depth - idx) as f64 / (depth + 1) as f64;
        } else if zero_fraction != 0.0 {
            total += path[idx].weight * (depth + 1) as f64 / (zero_fraction * (depth - idx) as f64);
        }
    }
    total
}
