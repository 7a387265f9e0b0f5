//! The native engine: trees laid flat and walked eight rows at a time.
//!
//! [`TreeEnsemble::parse`](super::parse) makes one from ONNX. Every split is brought to the single form `x < threshold`, exactly,
//! so the walk has no branch on the mode; leaves point at themselves, so all rows of a block take the same number of steps and
//! the processor overlaps their cache misses. Sums are in `f64`, so a row's score does not depend on its neighbours.
//!
//! It refuses rows of another width and infinite values.

use super::RiskError;

/// Rows walked together. Eight keeps the state in registers and hides most of the latency of the node loads.
const LANES: usize = 8;

/// A sum of decision trees over `f32` rows, with the link from margin to score.
#[derive(Debug, Clone)]
pub struct TreeEnsemble {
    pub(super) n_features: usize,
    pub(super) base: f64,
    pub(super) link: Link,
    pub(super) trees: Vec<Tree>,
    /// Whether the file gives covers (`nodes_hitrates`), which exact contributions need.
    pub(super) has_covers: bool,
}

/// What a margin means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// The margin is the score.
    Identity,
    /// The score is the logistic function of the margin.
    Logistic,
}

/// One tree; its root is node 0.
#[derive(Debug, Clone)]
pub(super) struct Tree {
    pub(super) nodes: Vec<Node>,
    /// Per node, the leaf's value; 0 for splits.
    pub(super) values: Vec<f32>,
    /// Per node, the training weight that passed it; 0 where the file does not say.
    pub(super) covers: Vec<f32>,
    pub(super) depth: usize,
}

/// A split `x[feature] < threshold`, or a leaf, whose children are itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct Node {
    pub(super) threshold: f32,
    /// The highest bit says that a missing value goes left.
    feature_and_default: u32,
    pub(super) left: u32,
    pub(super) right: u32,
}

const DEFAULT_LEFT: u32 = 1 << 31;

impl Node {
    pub(super) fn split(feature: u32, threshold: f32, default_left: bool, left: u32, right: u32) -> Self {
        debug_assert!(feature < DEFAULT_LEFT);
        Self { threshold, feature_and_default: feature | if default_left { DEFAULT_LEFT } else { 0 }, left, right }
    }

    pub(super) fn leaf(node_idx: u32) -> Self {
        Self { threshold: 0.0, feature_and_default: 0, left: node_idx, right: node_idx }
    }

    pub(super) fn feature(self) -> usize {
        (self.feature_and_default & !DEFAULT_LEFT) as usize
    }

    /// A split's children differ: the parser holds that they are a tree.
    pub(super) fn is_leaf(self) -> bool {
        self.left == self.right
    }

    #[inline]
    pub(super) fn next(self, value: f32) -> u32 {
        let left = (value < self.threshold) | (value.is_nan() & (self.feature_and_default & DEFAULT_LEFT != 0));
        if left { self.left } else { self.right }
    }
}

impl TreeEnsemble {
    pub fn n_features(&self) -> usize {
        self.n_features
    }

    pub fn n_trees(&self) -> usize {
        self.trees.len()
    }

    pub fn link(&self) -> Link {
        self.link
    }

    /// The margin of each row: `rows` is row-major, `n_rows × n_features`, NaN where missing. Order is kept.
    ///
    /// # Errors
    /// [`RiskError::Width`] where `rows` is no whole number of rows, [`RiskError::InfiniteRow`] for an infinite value.
    pub fn margins(&self, rows: &[f32]) -> Result<Vec<f64>, RiskError> {
        if !rows.len().is_multiple_of(self.n_features) {
            return Err(RiskError::Width { expected: self.n_features, got: rows.len() });
        }
        if let Some(position) = rows.iter().position(|value| value.is_infinite()) {
            return Err(RiskError::InfiniteRow { row: position / self.n_features });
        }
        let mut margins = vec![self.base; rows.len() / self.n_features];
        let block = LANES * self.n_features;
        let whole = rows.len() / block;
        let (blocks, rest) = rows.split_at(whole * block);
        let (block_margins, rest_margins) = margins.split_at_mut(whole * LANES);
        for (rows, margins) in blocks.chunks_exact(block).zip(block_margins.chunks_exact_mut(LANES)) {
            self.add_block(rows, margins);
        }
        for (row, margin) in rest.chunks_exact(self.n_features).zip(rest_margins) {
            self.add_row(row, margin);
        }
        Ok(margins)
    }

    /// The score of a margin: what the model answers.
    pub fn score_of(&self, margin: f64) -> f64 {
        match self.link {
            Link::Identity => margin,
            Link::Logistic => 1.0 / (1.0 + (-margin).exp()),
        }
    }

    fn add_block(&self, rows: &[f32], margins: &mut [f64]) {
        for tree in &self.trees {
            let mut at = [0_u32; LANES];
            for _ in 0..tree.depth {
                for (lane, at) in at.iter_mut().enumerate() {
                    let node = tree.nodes[*at as usize];
                    *at = node.next(rows[lane * self.n_features + node.feature()]);
                }
            }
            for (margin, at) in margins.iter_mut().zip(at) {
                *margin += f64::from(tree.values[at as usize]);
            }
        }
    }

    /// One row: eight trees together instead of eight rows, in the same order of addition.
    fn add_row(&self, row: &[f32], margin: &mut f64) {
        for trees in self.trees.chunks(LANES) {
            let depth = trees.iter().map(|tree| tree.depth).max().unwrap_or(0);
            let mut at = [0_u32; LANES];
            for _ in 0..depth {
                for (tree, at) in trees.iter().zip(&mut at) {
                    let node = tree.nodes[*at as usize];
                    *at = node.next(row[node.feature()]);
                }
            }
            for (tree, at) in trees.iter().zip(at) {
                *margin += f64::from(tree.values[at as usize]);
            }
        }
    }
}
