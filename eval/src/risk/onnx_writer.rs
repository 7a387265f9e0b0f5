//! Boosted trees to ONNX: one `TreeEnsembleClassifier` or `TreeEnsembleRegressor` of `ai.onnx.ml` 3.
//!
//! The trainer splits on `f64` with `v < t`; the smallest `f32` not under `t` splits every `f32` input the same way, so
//! `BRANCH_LT` with it is exact. The base score is folded into the first tree's leaves, because runtimes differ on
//! `base_values`; leaves name class 0, because ONNX Runtime gives a proper pair of probabilities only then. Covers go into
//! `nodes_hitrates` for exact contributions.

use prost::Message;
use sluice::risk::onnx::{AttributeProto, FLOAT, GraphProto, INT64, ModelProto, NodeProto, OperatorSetIdProto, ValueInfoProto};

/// Trees in the order of addition, with the constant that is added to their sum.
#[derive(Debug, Clone, Default)]
pub struct Ensemble {
    pub base: f64,
    pub n_features: usize,
    pub trees: Vec<Vec<TrainedNode>>,
}

/// One node; children are positions within the tree, whose root is at 0.
#[derive(Debug, Clone, Copy)]
pub struct TrainedNode {
    /// `None` for a leaf.
    pub split: Option<TrainedSplit>,
    /// Of a leaf.
    pub value: f32,
    pub cover: f32,
}

/// `value of feature < threshold` goes left.
#[derive(Debug, Clone, Copy)]
pub struct TrainedSplit {
    pub feature: usize,
    pub threshold: f64,
    pub left: usize,
    pub right: usize,
    pub missing_left: bool,
}

/// The smallest `f32` that is not under `threshold`.
pub fn f32_threshold(threshold: f64) -> f32 {
    let nearest = threshold as f32;
    if f64::from(nearest) < threshold { nearest.next_up() } else { nearest }
}

/// The bytes of an ONNX model with an input `features` (batch × n_features) and, for `logistic`, outputs `label` and
/// `probabilities` (batch × 2), else `value` (batch × 1).
pub fn write(ensemble: &Ensemble, logistic: bool) -> Vec<u8> {
    let mut ids = NodeColumns::default();
    let (mut leaf_trees, mut leaf_nodes, mut leaf_weights) = (Vec::new(), Vec::new(), Vec::new());
    for (tree_idx, tree) in ensemble.trees.iter().enumerate() {
        for (node_idx, node) in tree.iter().enumerate() {
            ids.push(tree_idx as i64, node_idx as i64, node);
            if node.split.is_none() {
                let base = if tree_idx == 0 { ensemble.base } else { 0.0 };
                leaf_trees.push(tree_idx as i64);
                leaf_nodes.push(node_idx as i64);
                leaf_weights.push((f64::from(node.value) + base) as f32);
            }
        }
    }
    let prefix = if logistic { "class" } else { "target" };
    let n_leaves = leaf_weights.len();
    let mut attribute = ids.into_attributes();
    attribute.extend([
        AttributeProto::ints(&format!("{prefix}_treeids"), leaf_trees),
        AttributeProto::ints(&format!("{prefix}_nodeids"), leaf_nodes),
        AttributeProto::ints(&format!("{prefix}_ids"), vec![0; n_leaves]),
        AttributeProto::floats(&format!("{prefix}_weights"), leaf_weights),
        AttributeProto::string("post_transform", if logistic { "LOGISTIC" } else { "NONE" }),
    ]);
    let (op_type, output) = if logistic {
        attribute.push(AttributeProto::ints("classlabels_int64s", vec![0, 1]));
        let label = ValueInfoProto::tensor("label", INT64, &[None]);
        ("TreeEnsembleClassifier", vec![label, ValueInfoProto::tensor("probabilities", FLOAT, &[None, Some(2)])])
    } else {
        attribute.push(AttributeProto::int("n_targets", 1));
        ("TreeEnsembleRegressor", vec![ValueInfoProto::tensor("value", FLOAT, &[None, Some(1)])])
    };
    let node = NodeProto {
        input: vec!["features".to_owned()],
        output: output.iter().map(|value| value.name.clone()).collect(),
        name: "trees".to_owned(),
        op_type: op_type.to_owned(),
        attribute,
        domain: "ai.onnx.ml".to_owned(),
    };
    let graph = GraphProto {
        node: vec![node],
        name: "risk".to_owned(),
        initializer: Vec::new(),
        input: vec![ValueInfoProto::tensor("features", FLOAT, &[None, Some(ensemble.n_features as i64)])],
        output,
    };
    let opset = |domain: &str, version| OperatorSetIdProto { domain: domain.to_owned(), version };
    let model = ModelProto {
        ir_version: 8,
        producer_name: "sluice-eval".to_owned(),
        producer_version: env!("CARGO_PKG_VERSION").to_owned(),
        graph: Some(graph),
        opset_import: vec![opset("", 15), opset("ai.onnx.ml", 3)],
    };
    model.encode_to_vec()
}

#[derive(Default)]
struct NodeColumns {
    trees: Vec<i64>,
    nodes: Vec<i64>,
    features: Vec<i64>,
    thresholds: Vec<f32>,
    modes: Vec<&'static str>,
    on_true: Vec<i64>,
    on_false: Vec<i64>,
    missing_true: Vec<i64>,
    covers: Vec<f32>,
}

impl NodeColumns {
    fn push(&mut self, tree: i64, node_id: i64, node: &TrainedNode) {
        let split = node.split.as_ref();
        self.trees.push(tree);
        self.nodes.push(node_id);
        self.features.push(split.map_or(0, |split| split.feature as i64));
        self.thresholds.push(split.map_or(0.0, |split| f32_threshold(split.threshold)));
        self.modes.push(if split.is_some() { "BRANCH_LT" } else { "LEAF" });
        self.on_true.push(split.map_or(0, |split| split.left as i64));
        self.on_false.push(split.map_or(0, |split| split.right as i64));
        self.missing_true.push(split.map_or(0, |split| i64::from(split.missing_left)));
        self.covers.push(node.cover);
    }

    fn into_attributes(self) -> Vec<AttributeProto> {
        vec![
            AttributeProto::ints("nodes_treeids", self.trees),
            AttributeProto::ints("nodes_nodeids", self.nodes),
            AttributeProto::ints("nodes_featureids", self.features),
            AttributeProto::floats("nodes_values", self.thresholds),
            AttributeProto::strings("nodes_modes", &self.modes),
            AttributeProto::ints("nodes_truenodeids", self.on_true),
            AttributeProto::ints("nodes_falsenodeids", self.on_false),
            AttributeProto::ints("nodes_missing_value_tracks_true", self.missing_true),
            AttributeProto::floats("nodes_hitrates", self.covers),
        ]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use sluice::risk::TreeEnsemble;

    use super::*;

    proptest! {
        /// For every `f32` input, the written comparison is the trainer's.
        #[test]
        fn a_threshold_in_f32_splits_every_f32_as_its_f64_does(threshold in -1e6_f64..1e6, near in -3_i32..=3) {
            let written = f32_threshold(threshold);
            let value = if near < 0 { (0..-near).fold(written, |v, _| v.next_down()) } else { (0..near).fold(written, |v, _| v.next_up()) };
            prop_assert_eq!(value < written, f64::from(value) < threshold);
        }
    }

    #[test]
    fn a_written_model_scores_its_leaves_and_base() {
        let leaf = |value| TrainedNode { split: None, value, cover: 5.0 };
        let split = TrainedSplit { feature: 1, threshold: 0.1, left: 1, right: 2, missing_left: true };
        let tree = vec![TrainedNode { split: Some(split), value: 0.0, cover: 10.0 }, leaf(1.0), leaf(-2.0)];
        let ensemble = Ensemble { base: 0.25, n_features: 2, trees: vec![tree.clone(), tree] };
        let served = TreeEnsemble::parse(&write(&ensemble, false)).unwrap();
        let rows = [0.0, 0.0, 0.0, 0.1, 0.0, 0.2, 0.0, f32::NAN];
        // 0.1 as `f32` is over 0.1 as `f64`, so it goes right.
        assert_eq!(served.margins(&rows).unwrap(), [2.25, -3.75, -3.75, 2.25]);
        assert!(served.contributions(&rows[..2]).is_ok());
    }
}
