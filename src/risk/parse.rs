//! ONNX tree ensembles to flat trees.
//!
//! Reads `TreeEnsembleClassifier` (two classes) and `TreeEnsembleRegressor` (one target) of `ai.onnx.ml` 1 to 4 with the tails
//! that exporters add (`ZipMap`, `Cast`, `Identity`, a `Mul` by 1). Comparisons become `x < t` exactly: `x <= t` is `x < next_up(t)` for every
//! `f32`, the other two are these with the children swapped, and a missing value fails every comparison unless
//! `nodes_missing_value_tracks_true` says otherwise.
//!
//! It refuses, with the reason, every other operator and whatever two runtimes answer differently: `LOGISTIC` on a regressor
//! (ONNX Runtime ignores it), two base values for two classes (ONNX Runtime 1.32 loses the trees' sum).

use std::collections::HashMap;

use prost::Message;

use super::onnx::{AttributeProto, GraphProto, ModelProto, NodeProto};
use super::trees::{Link, Node, Tree, TreeEnsemble};

/// Longest path from a root to a leaf that is walked.
const MAX_DEPTH: usize = 1024;
/// Covers are `f32` sums over up to millions of rows, so parent and children agree only about.
const COVER_TOLERANCE: f32 = 1e-2;
/// Most nodes of an ensemble: larger files are refused before memory is spent on them.
const MAX_NODES: usize = 20_000_000;

/// Why an ONNX file cannot be served by the native engine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OnnxError {
    #[error("it is not an ONNX model: {reason}")]
    Malformed { reason: String },
    #[error("the graph is no pure tree ensemble: {reason}")]
    Graph { reason: String },
    #[error("attribute `{attribute}` is not acceptable: {reason}")]
    Attribute { attribute: &'static str, reason: String },
    #[error("tree {tree} is no tree: {reason}")]
    Tree { tree: i64, reason: String },
}

impl TreeEnsemble {
    /// Reads the bytes of an ONNX file.
    ///
    /// # Errors
    /// [`OnnxError`], with the reason, for anything but a finite two-class or one-target tree ensemble over one float input.
    pub fn parse(bytes: &[u8]) -> Result<Self, OnnxError> {
        let model = ModelProto::decode(bytes).map_err(|error| OnnxError::Malformed { reason: error.to_string() })?;
        let graph = model.graph.ok_or_else(|| OnnxError::Malformed { reason: "it has no graph".to_owned() })?;
        if let Some(domain) = model.opset_import.iter().find(|import| import.domain == "ai.onnx.ml")
            && !(1..=4).contains(&domain.version)
        {
            return Err(graph_error(format!("ai.onnx.ml {} is not among versions 1 to 4", domain.version)));
        }
        let ensemble = only_ensemble(&graph)?;
        let n_features = input_width(&graph, ensemble)?;
        let attributes = Attributes::of(ensemble)?;
        let (link, base) = link_and_base(ensemble, &attributes)?;
        let (trees, has_covers) = trees(&attributes, n_features)?;
        Ok(Self { n_features, base, link, trees, has_covers })
    }
}

fn graph_error(reason: impl Into<String>) -> OnnxError {
    OnnxError::Graph { reason: reason.into() }
}

fn only_ensemble(graph: &GraphProto) -> Result<&NodeProto, OnnxError> {
    if graph.initializer.iter().any(|tensor| !tensor.external_data.is_empty() || tensor.data_location != 0) {
        return Err(graph_error("it keeps data in another file"));
    }
    let mut ensemble: Option<&NodeProto> = None;
    // Names that carry the label: what becomes of it does not touch the scores.
    let mut labels: Vec<&str> = Vec::new();
    for node in &graph.node {
        let of_label = node.input.first().is_some_and(|input| labels.contains(&input.as_str()));
        match (node.op_type.as_str(), ensemble) {
            ("TreeEnsembleClassifier" | "TreeEnsembleRegressor", None) => {
                ensemble = Some(node);
                if node.op_type == "TreeEnsembleClassifier" {
                    labels.extend(node.output.first().map(String::as_str));
                }
            }
            ("TreeEnsembleClassifier" | "TreeEnsembleRegressor", Some(_)) => {
                return Err(graph_error("it has more than one tree ensemble"));
            }
            // Tails only rename or re-wrap the answer; before the ensemble they could change its input.
            ("Identity" | "Cast", Some(_)) if of_label => labels.extend(node.output.iter().map(String::as_str)),
            ("ZipMap" | "Identity", Some(_)) => {}
            ("Mul", Some(_)) if node.input.iter().any(|input| is_one(graph, input)) => {}
            ("Cast", Some(_)) if casts_to_float(node) => {}
            (operator, _) => return Err(graph_error(format!("operator `{operator}` is not served"))),
        }
    }
    ensemble.ok_or_else(|| graph_error("it has no tree ensemble"))
}

/// A cast of scores to integers would round them.
fn casts_to_float(cast: &NodeProto) -> bool {
    const FLOAT: i64 = 1;
    const DOUBLE: i64 = 11;
    let to = cast.attribute.iter().find(|attribute| attribute.name == "to").map(|attribute| attribute.i);
    matches!(to, Some(FLOAT | DOUBLE))
}

/// Whether an input is the constant 1, by which LightGBM's exporter multiplies probabilities.
fn is_one(graph: &GraphProto, input: &str) -> bool {
    graph
        .initializer
        .iter()
        .filter(|tensor| tensor.name == input && tensor.data_type == super::onnx::FLOAT)
        .any(|tensor| tensor.float_data == [1.0] || (tensor.float_data.is_empty() && tensor.raw_data == 1.0_f32.to_le_bytes()))
}

fn input_width(graph: &GraphProto, ensemble: &NodeProto) -> Result<usize, OnnxError> {
    let [input] = graph.input.as_slice() else {
        return Err(graph_error(format!("it has {} inputs, one is served", graph.input.len())));
    };
    if ensemble.input.as_slice() != std::slice::from_ref(&input.name) {
        return Err(graph_error("the tree ensemble does not read the graph's input"));
    }
    let tensor = input.r#type.as_ref().and_then(|r#type| r#type.tensor_type.as_ref());
    let tensor = tensor.ok_or_else(|| graph_error("its input is no tensor"))?;
    if tensor.elem_type != super::onnx::FLOAT {
        return Err(graph_error(format!("its input has element type {}, float is served", tensor.elem_type)));
    }
    match tensor.shape.as_ref().map(|shape| shape.dim.as_slice()) {
        Some([_, width]) => match width.dim_value.and_then(|width| usize::try_from(width).ok()) {
            Some(width) if width > 0 && width < 1 << 31 => Ok(width),
            _ => Err(graph_error("its input does not say how many features a row has")),
        },
        _ => Err(graph_error("its input is no matrix")),
    }
}

/// The attributes of an ensemble, checked to be as long as one another.
struct Attributes<'a> {
    tree_ids: &'a [i64],
    node_ids: &'a [i64],
    feature_ids: &'a [i64],
    thresholds: &'a [f32],
    modes: &'a [Vec<u8>],
    true_ids: &'a [i64],
    false_ids: &'a [i64],
    missing_tracks_true: &'a [i64],
    hit_rates: &'a [f32],
    leaf_tree_ids: &'a [i64],
    leaf_node_ids: &'a [i64],
    leaf_outputs: &'a [i64],
    leaf_weights: &'a [f32],
    base_values: &'a [f32],
    post_transform: &'a [u8],
    /// The output whose weights count; `None` for all of them.
    output: Option<i64>,
}

impl<'a> Attributes<'a> {
    fn of(node: &'a NodeProto) -> Result<Self, OnnxError> {
        if let Some(attribute) = node.attribute.iter().find(|attribute| attribute.name.ends_with("_as_tensor")) {
            return Err(graph_error(format!("attribute `{}` holds doubles, floats are served", attribute.name)));
        }
        let find = |name: &str| node.attribute.iter().find(|attribute| attribute.name == name);
        let ints = |name: &str| find(name).map(|attribute: &AttributeProto| attribute.ints.as_slice()).unwrap_or_default();
        let floats = |name: &str| find(name).map(|attribute: &AttributeProto| attribute.floats.as_slice()).unwrap_or_default();
        let classifier = node.op_type == "TreeEnsembleClassifier";
        let prefix = if classifier { "class" } else { "target" };
        let mut attributes = Self {
            tree_ids: ints("nodes_treeids"),
            node_ids: ints("nodes_nodeids"),
            feature_ids: ints("nodes_featureids"),
            thresholds: floats("nodes_values"),
            modes: find("nodes_modes").map(|attribute| attribute.strings.as_slice()).unwrap_or_default(),
            true_ids: ints("nodes_truenodeids"),
            false_ids: ints("nodes_falsenodeids"),
            missing_tracks_true: ints("nodes_missing_value_tracks_true"),
            hit_rates: floats("nodes_hitrates"),
            leaf_tree_ids: ints(&format!("{prefix}_treeids")),
            leaf_node_ids: ints(&format!("{prefix}_nodeids")),
            leaf_outputs: ints(&format!("{prefix}_ids")),
            leaf_weights: floats(&format!("{prefix}_weights")),
            base_values: floats("base_values"),
            post_transform: find("post_transform").map_or(b"NONE".as_slice(), |attribute| attribute.s.as_slice()),
            output: None,
        };
        let n_nodes = attributes.node_ids.len();
        if n_nodes == 0 || n_nodes > MAX_NODES {
            return Err(OnnxError::Attribute { attribute: "nodes_nodeids", reason: format!("{n_nodes} nodes") });
        }
        for (attribute, length, optional) in [
            ("nodes_treeids", attributes.tree_ids.len(), false),
            ("nodes_featureids", attributes.feature_ids.len(), false),
            ("nodes_values", attributes.thresholds.len(), false),
            ("nodes_modes", attributes.modes.len(), false),
            ("nodes_truenodeids", attributes.true_ids.len(), false),
            ("nodes_falsenodeids", attributes.false_ids.len(), false),
            ("nodes_missing_value_tracks_true", attributes.missing_tracks_true.len(), true),
            ("nodes_hitrates", attributes.hit_rates.len(), true),
        ] {
            if length != n_nodes && !(optional && length == 0) {
                return Err(OnnxError::Attribute { attribute, reason: format!("{length} entries for {n_nodes} nodes") });
            }
        }
        let n_weights = attributes.leaf_weights.len();
        for length in [attributes.leaf_tree_ids.len(), attributes.leaf_node_ids.len(), attributes.leaf_outputs.len()] {
            if length != n_weights {
                return Err(OnnxError::Attribute {
                    attribute: "leaf weights",
                    reason: format!("{length} leaf places for {n_weights} weights"),
                });
            }
        }
        if classifier {
            let n_classes =
                ints("classlabels_int64s").len() + find("classlabels_strings").map_or(0, |attribute| attribute.strings.len());
            if n_classes != 2 {
                return Err(OnnxError::Attribute {
                    attribute: "classlabels",
                    reason: format!("{n_classes} classes, two are served"),
                });
            }
            // Leaves that name one class only carry the margin of the second class, whichever id they use.
            let both = attributes.leaf_outputs.contains(&0) && attributes.leaf_outputs.contains(&1);
            attributes.output = both.then_some(1);
        } else {
            let n_targets = find("n_targets").map_or(1, |attribute| attribute.i);
            if n_targets != 1 {
                return Err(OnnxError::Attribute { attribute: "n_targets", reason: format!("{n_targets} targets, one is served") });
            }
            let aggregate = find("aggregate_function").map_or(b"SUM".as_slice(), |attribute| attribute.s.as_slice());
            if aggregate != b"SUM" {
                let reason = format!("`{}`, only SUM is served", String::from_utf8_lossy(aggregate));
                return Err(OnnxError::Attribute { attribute: "aggregate_function", reason });
            }
        }
        let highest = if classifier { 1 } else { 0 };
        if let Some(output) = attributes.leaf_outputs.iter().find(|output| !(0..=highest).contains(*output)) {
            return Err(OnnxError::Attribute { attribute: "leaf weights", reason: format!("output {output} does not exist") });
        }
        Ok(attributes)
    }
}

fn link_and_base(node: &NodeProto, attributes: &Attributes<'_>) -> Result<(Link, f64), OnnxError> {
    let classifier = node.op_type == "TreeEnsembleClassifier";
    let refuse = |reason: &str| Err(OnnxError::Attribute { attribute: "post_transform", reason: reason.to_owned() });
    let link = match (attributes.post_transform, classifier) {
        (b"NONE", _) => Link::Identity,
        (b"LOGISTIC", true) if attributes.output.is_some() => {
            return refuse("LOGISTIC on leaves that weigh both classes gives no probability");
        }
        (b"LOGISTIC", true) => Link::Logistic,
        (b"LOGISTIC", false) => return refuse("LOGISTIC on a regressor is ignored by ONNX Runtime; export a classifier"),
        _ => return refuse("only NONE and LOGISTIC are served"),
    };
    let base = match attributes.base_values {
        [] => 0.0,
        [base] if base.is_finite() && !(classifier && attributes.leaf_outputs.contains(&1)) => f64::from(*base),
        _ => {
            return Err(OnnxError::Attribute {
                attribute: "base_values",
                reason: "one finite value is served, for leaves that name class 0 or target 0; runtimes differ on the rest"
                    .to_owned(),
            });
        }
    };
    Ok((link, base))
}

fn trees(attributes: &Attributes<'_>, n_features: usize) -> Result<(Vec<Tree>, bool), OnnxError> {
    // Positions of each tree's nodes, in the order trees first appear.
    let mut tree_order: Vec<i64> = Vec::new();
    let mut positions: HashMap<i64, Vec<usize>> = HashMap::new();
    for (position, &tree_id) in attributes.tree_ids.iter().enumerate() {
        let of_tree = positions.entry(tree_id).or_insert_with(|| {
            tree_order.push(tree_id);
            Vec::new()
        });
        of_tree.push(position);
    }
    let mut weights: HashMap<(i64, i64), f32> = HashMap::new();
    for (leaf_idx, &weight) in attributes.leaf_weights.iter().enumerate() {
        let key = (attributes.leaf_tree_ids[leaf_idx], attributes.leaf_node_ids[leaf_idx]);
        if !weight.is_finite() {
            return Err(OnnxError::Tree { tree: key.0, reason: format!("the value of leaf {} is not finite", key.1) });
        }
        if !positions.contains_key(&key.0) {
            return Err(OnnxError::Tree { tree: key.0, reason: format!("leaf {} belongs to a tree that does not exist", key.1) });
        }
        let counts = attributes.output.is_none_or(|output| attributes.leaf_outputs[leaf_idx] == output);
        *weights.entry(key).or_insert(0.0) += if counts { weight } else { 0.0 };
    }
    let mut n_placed = 0;
    let trees = tree_order
        .iter()
        .map(|tree_id| flat_tree(attributes, n_features, *tree_id, &positions[tree_id], &weights, &mut n_placed))
        .collect::<Result<Vec<_>, _>>()?;
    if n_placed != weights.len() {
        return Err(OnnxError::Attribute { attribute: "leaf weights", reason: "a weight belongs to no leaf".to_owned() });
    }
    let has_covers = !attributes.hit_rates.is_empty() && trees.iter().all(covers_add_up);
    Ok((trees, has_covers))
}

/// Whether every split passes on the cover that reached it. Exporters that know no covers write a constant, which does not.
fn covers_add_up(tree: &Tree) -> bool {
    tree.nodes.iter().zip(&tree.covers).all(|(node, &cover)| {
        let (left, right) = (tree.covers[node.left as usize], tree.covers[node.right as usize]);
        cover.is_finite() && cover >= 0.0 && (node.is_leaf() || (left > 0.0 && right > 0.0 && close(left + right, cover)))
    })
}

fn close(sum: f32, whole: f32) -> bool {
    (sum - whole).abs() <= COVER_TOLERANCE * whole
}

/// One tree with its root first and children behind their parents, checked to be a tree on the way.
fn flat_tree(
    attributes: &Attributes<'_>,
    n_features: usize,
    tree_id: i64,
    positions: &[usize],
    weights: &HashMap<(i64, i64), f32>,
    n_placed: &mut usize,
) -> Result<Tree, OnnxError> {
    let refuse = |reason: String| Err(OnnxError::Tree { tree: tree_id, reason });
    let mut by_id: HashMap<i64, usize> = HashMap::with_capacity(positions.len());
    for &position in positions {
        if by_id.insert(attributes.node_ids[position], position).is_some() {
            return refuse(format!("node {} stands twice", attributes.node_ids[position]));
        }
    }
    let is_leaf = |position: usize| attributes.modes[position] == b"LEAF";
    let mut has_parent: HashMap<i64, ()> = HashMap::new();
    for &position in positions.iter().filter(|&&position| !is_leaf(position)) {
        for child in [attributes.true_ids[position], attributes.false_ids[position]] {
            if !by_id.contains_key(&child) {
                return refuse(format!("child {child} does not exist"));
            }
            if has_parent.insert(child, ()).is_some() {
                return refuse(format!("node {child} has two parents"));
            }
        }
    }
    let mut roots = positions.iter().filter(|&&position| !has_parent.contains_key(&attributes.node_ids[position]));
    let (Some(&root), None) = (roots.next(), roots.next()) else {
        return refuse("it has not exactly one root".to_owned());
    };

    let mut tree = Tree { nodes: Vec::new(), values: Vec::new(), covers: Vec::new(), depth: 0 };
    let mut placed: Vec<(usize, usize)> = vec![(root, 0)];
    let mut next = 0;
    while let Some(&(position, depth)) = placed.get(next) {
        if depth > MAX_DEPTH {
            return refuse(format!("it is deeper than {MAX_DEPTH}"));
        }
        tree.depth = tree.depth.max(depth);
        let cover = attributes.hit_rates.get(position).copied().unwrap_or(0.0);
        tree.covers.push(cover);
        if is_leaf(position) {
            let weight = weights.get(&(tree_id, attributes.node_ids[position]));
            *n_placed += usize::from(weight.is_some());
            tree.values.push(weight.copied().unwrap_or(0.0));
            tree.nodes.push(Node::leaf(next as u32));
        } else {
            let feature = usize::try_from(attributes.feature_ids[position]).ok().filter(|feature| *feature < n_features);
            let Some(feature) = feature else {
                return refuse(format!("feature {} does not exist", attributes.feature_ids[position]));
            };
            let threshold = attributes.thresholds[position];
            if threshold.is_nan() {
                return refuse("a threshold is not a number".to_owned());
            }
            let (threshold, swapped) = match attributes.modes[position].as_slice() {
                b"BRANCH_LT" => (threshold, false),
                b"BRANCH_LEQ" => (threshold.next_up(), false),
                b"BRANCH_GTE" => (threshold, true),
                b"BRANCH_GT" => (threshold.next_up(), true),
                mode => return refuse(format!("mode `{}` is not served", String::from_utf8_lossy(mode))),
            };
            let missing_true = attributes.missing_tracks_true.get(position).is_some_and(|tracks| *tracks != 0);
            let (on_true, on_false) = (by_id[&attributes.true_ids[position]], by_id[&attributes.false_ids[position]]);
            let (left, right) = if swapped { (on_false, on_true) } else { (on_true, on_false) };
            let first = placed.len() as u32;
            placed.extend([(left, depth + 1), (right, depth + 1)]);
            tree.values.push(0.0);
            tree.nodes.push(Node::split(feature as u32, threshold, missing_true != swapped, first, first + 1));
        }
        next += 1;
    }
    if placed.len() != positions.len() {
        return refuse("some nodes are in a cycle".to_owned());
    }
    Ok(tree)
}
