//! Multinomial logistic regression on sparse rows, by L-BFGS (Nocedal and Wright, Numerical Optimization, algorithm 7.5).
//!
//! The objective is scikit-learn's: `Σ cross-entropy + l2 / 2 · |W|²` with a free bias, so `l2` is 1 / C. Targets are
//! distributions with a weight: a row that sums to 0.3 counts as 0.3 of a row.
//!
//! The weights always lie in the span of the rows, `W = Xᵀ A`, so the search runs over `A` with its image `X W`: vectors of
//! thousands of rows instead of a hundred thousand inputs. One pass over the sparse rows gives a gradient, a step along a line
//! costs none. One thread, fixed order: the same rows give the same weights wherever floating point is the same.

use std::collections::VecDeque;

use sluice::classifier::heads::Linear;

/// Pairs of steps that L-BFGS remembers.
const MEMORY: usize = 8;

/// Rows of parameters are padded to a multiple of this, so that the inner loops are whole registers.
const LANES: usize = 8;

/// Sparse rows, one after the other.
#[derive(Debug, Clone)]
pub struct Rows {
    n_inputs: usize,
    starts: Vec<usize>,
    entries: Vec<(u32, f32)>,
}

impl Rows {
    pub fn new(n_inputs: usize) -> Self {
        Self { n_inputs, starts: vec![0], entries: Vec::new() }
    }

    /// Rows of a dense matrix.
    pub fn from_dense<'a>(n_inputs: usize, rows: impl IntoIterator<Item = &'a [f32]>) -> Self {
        let mut sparse = Self::new(n_inputs);
        for row in rows {
            sparse.push(row.iter().enumerate().map(|(input, &value)| (input as u32, value)));
        }
        sparse
    }

    pub fn push(&mut self, row: impl IntoIterator<Item = (u32, f32)>) {
        self.entries.extend(row);
        self.starts.push(self.entries.len());
    }

    pub fn n_rows(&self) -> usize {
        self.starts.len() - 1
    }

    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[(u32, f32)]> {
        self.starts.windows(2).map(|bounds| &self.entries[bounds[0]..bounds[1]])
    }
}

/// How hard to fit.
#[derive(Debug, Clone, Copy)]
pub struct Fit {
    /// Penalty on the squared weights; 1 / C of scikit-learn.
    pub l2: f64,
    pub max_iterations: usize,
    /// Ends where one step lowers the objective by less than this share of it.
    pub tolerance: f64,
}

impl Fit {
    pub fn with_l2(l2: f64) -> Self {
        Self { l2, max_iterations: 200, tolerance: 1e-6 }
    }
}

/// Fits a head whose outputs fall into groups of `sizes`, each with a softmax of its own. `targets` has shape
/// `(n_rows, sizes.sum())`; the sum of a row's targets within a group is the row's weight there.
///
/// Groups share nothing but the pass over the rows, which is what costs.
///
/// # Panics
/// Where `targets` has another shape.
pub fn fit(rows: &Rows, targets: &[f32], sizes: &[usize], fit: Fit) -> Linear {
    let n_outputs: usize = sizes.iter().sum();
    assert_eq!(targets.len(), rows.n_rows() * n_outputs, "one target row for each row");
    let stride = n_outputs.next_multiple_of(LANES);
    let problem = Problem { rows, targets, sizes, n_outputs, stride, l2: fit.l2 };
    let mut at = problem.origin();
    let (mut objective, mut gradient) = problem.evaluate(&at);
    problem.image(&mut gradient);
    let mut memory: VecDeque<Step> = VecDeque::new();
    for _ in 0..fit.max_iterations {
        let direction = direction(&gradient, &memory);
        let slope = gradient.dot(&direction);
        if slope >= 0.0 {
            break;
        }
        let first = if memory.is_empty() { 1.0 / direction.dot(&direction).sqrt().max(1.0) } else { 1.0 };
        let Some((next, next_objective, mut next_gradient)) = problem.search(&at, objective, &direction, slope, first) else {
            break;
        };
        problem.image(&mut next_gradient);
        let settled = objective - next_objective <= fit.tolerance * objective.abs();
        let step = Step::new(next.minus(&at), next_gradient.minus(&gradient));
        if step.curvature > 1e-10 {
            memory.push_back(step);
            if memory.len() > MEMORY {
                memory.pop_front();
            }
        }
        (at, objective, gradient) = (next, next_objective, next_gradient);
        if settled {
            break;
        }
    }
    let weight = problem.weight(&at.shares);
    let weight = weight.chunks_exact(stride).flat_map(|row| &row[..n_outputs]).copied().collect();
    Linear::new("fitted", weight, at.bias[..n_outputs].to_vec()).expect("the objective is finite, so its minimiser is")
}

/// A point or a direction: weights `W = Xᵀ · shares` and a bias. Rows are padded to whole registers; the padding stays 0.
#[derive(Clone)]
struct Vector {
    /// Shape `(n_rows, stride)`.
    shares: Vec<f32>,
    /// `X W`, same shape.
    image: Vec<f32>,
    /// Shape `(stride,)`.
    bias: Vec<f32>,
}

impl Vector {
    /// The inner product of weights and bias: `⟨Xᵀ a, W⟩ = ⟨a, X W⟩`.
    fn dot(&self, other: &Self) -> f64 {
        dot(&self.shares, &other.image) + dot(&self.bias, &other.bias)
    }

    fn add_scaled(&mut self, other: &Self, scale: f64) {
        multiply_add(&mut self.shares, scale as f32, &other.shares);
        multiply_add(&mut self.image, scale as f32, &other.image);
        multiply_add(&mut self.bias, scale as f32, &other.bias);
    }

    fn scale(&mut self, by: f64) {
        for values in [&mut self.shares, &mut self.image, &mut self.bias] {
            values.iter_mut().for_each(|value| *value *= by as f32);
        }
    }

    fn minus(&self, other: &Self) -> Self {
        let mut difference = self.clone();
        difference.add_scaled(other, -1.0);
        difference
    }
}

struct Problem<'a> {
    rows: &'a Rows,
    targets: &'a [f32],
    sizes: &'a [usize],
    n_outputs: usize,
    /// Outputs with the padding that brings them to whole registers.
    stride: usize,
    l2: f64,
}

impl Problem<'_> {
    fn origin(&self) -> Vector {
        let n = self.rows.n_rows() * self.stride;
        Vector { shares: vec![0.0; n], image: vec![0.0; n], bias: vec![0.0; self.stride] }
    }

    /// Objective and gradient at a point; the gradient's image is left for [`Self::image`].
    fn evaluate(&self, at: &Vector) -> (f64, Vector) {
        let mut gradient = Vector { shares: at.image.clone(), image: Vec::new(), bias: vec![0.0; self.stride] };
        let mut objective = 0.5 * self.l2 * dot(&at.shares, &at.image);
        for (logits, target) in gradient.shares.chunks_exact_mut(self.stride).zip(self.targets.chunks_exact(self.n_outputs)) {
            multiply_add(logits, 1.0, &at.bias);
            let mut start = 0;
            for &size in self.sizes {
                objective += residuals(&mut logits[start..start + size], &target[start..start + size]);
                start += size;
            }
            multiply_add(&mut gradient.bias, 1.0, logits);
        }
        multiply_add(&mut gradient.shares, self.l2 as f32, &at.shares);
        (objective, gradient)
    }

    /// `Xᵀ · shares`, shape `(n_inputs, stride)`.
    fn weight(&self, shares: &[f32]) -> Vec<f32> {
        let mut weight = vec![0.0; self.rows.n_inputs * self.stride];
        for (row, shares) in self.rows.iter().zip(shares.chunks_exact(self.stride)) {
            for &(input, value) in row {
                multiply_add(&mut weight[input as usize * self.stride..][..self.stride], value, shares);
            }
        }
        weight
    }

    /// Fills in `X W`: the one pass over the sparse rows, there and back.
    fn image(&self, vector: &mut Vector) {
        let weight = self.weight(&vector.shares);
        vector.image = vec![0.0; vector.shares.len()];
        for (row, image) in self.rows.iter().zip(vector.image.chunks_exact_mut(self.stride)) {
            for &(input, value) in row {
                multiply_add(image, value, &weight[input as usize * self.stride..][..self.stride]);
            }
        }
    }

    /// Halves the step until the objective falls by a ten-thousandth of what the slope promises.
    fn search(&self, from: &Vector, objective: f64, direction: &Vector, slope: f64, first: f64) -> Option<(Vector, f64, Vector)> {
        let mut length = first;
        for _ in 0..30 {
            let mut point = from.clone();
            point.add_scaled(direction, length);
            let (reached, gradient) = self.evaluate(&point);
            if reached <= objective + 1e-4 * length * slope {
                return Some((point, reached, gradient));
            }
            length *= 0.5;
        }
        None
    }
}

/// Turns logits into the gradient of the row's cross-entropy and returns that cross-entropy.
fn residuals(logits: &mut [f32], target: &[f32]) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit - max).exp()).sum();
    let log_sum = sum.ln();
    let row_weight: f64 = target.iter().map(|&share| f64::from(share)).sum();
    let mut loss = 0.0;
    for (logit, &share) in logits.iter_mut().zip(target) {
        let log_probability = f64::from(*logit - max) - log_sum;
        loss -= f64::from(share) * log_probability;
        *logit = (row_weight * log_probability.exp() - f64::from(share)) as f32;
    }
    loss
}

struct Step {
    moved: Vector,
    gradient_change: Vector,
    curvature: f64,
}

impl Step {
    fn new(moved: Vector, gradient_change: Vector) -> Self {
        let curvature = moved.dot(&gradient_change);
        Self { moved, gradient_change, curvature }
    }
}

/// The two-loop recursion: minus the gradient times the remembered inverse curvature.
fn direction(gradient: &Vector, memory: &VecDeque<Step>) -> Vector {
    let mut direction = gradient.clone();
    direction.scale(-1.0);
    let mut shares = Vec::with_capacity(memory.len());
    for step in memory.iter().rev() {
        let share = step.moved.dot(&direction) / step.curvature;
        direction.add_scaled(&step.gradient_change, -share);
        shares.push(share);
    }
    if let Some(last) = memory.back() {
        direction.scale(last.curvature / last.gradient_change.dot(&last.gradient_change));
    }
    for (step, share) in memory.iter().zip(shares.iter().rev()) {
        let correction = step.gradient_change.dot(&direction) / step.curvature;
        direction.add_scaled(&step.moved, share - correction);
    }
    direction
}

/// `target += value · row`, in whole registers; both are multiples of [`LANES`] long.
fn multiply_add(target: &mut [f32], value: f32, row: &[f32]) {
    for (target, row) in target.as_chunks_mut::<LANES>().0.iter_mut().zip(row.as_chunks::<LANES>().0) {
        for lane in 0..LANES {
            target[lane] += value * row[lane];
        }
    }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    // Partial sums, which the compiler keeps in registers; f64 because millions of terms meet here.
    let mut sums = [0.0f64; LANES];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a.iter().zip(b) {
        for lane in 0..LANES {
            sums[lane] += f64::from(a[lane]) * f64::from(b[lane]);
        }
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
    rest + sums.iter().sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// scikit-learn 1.9: `LogisticRegression(C=2.0, tol=1e-10).fit(X, y)` on the rows below; see `eval/tests/fixtures/oracle.py`.
    #[test]
    fn weights_are_those_of_scikit_learn() {
        let x: [[f32; 2]; 6] = [[0.0, 1.0], [1.0, 0.5], [2.0, -1.0], [-1.0, 0.3], [0.5, 2.0], [-2.0, -0.7]];
        let y = [0, 1, 1, 2, 0, 2];
        let mut targets = [0.0; 18];
        for (row, class) in y.into_iter().enumerate() {
            targets[row * 3 + class] = 1.0;
        }
        let rows = Rows::from_dense(2, x.iter().map(<[f32; 2]>::as_slice));
        let head = fit(&rows, &targets, &[3], Fit { l2: 0.5, max_iterations: 500, tolerance: 1e-12 });
        let expected: [f64; 6] = SKLEARN_WEIGHT;
        for (found, expected) in head.weight().iter().zip(expected) {
            assert!((f64::from(*found) - expected).abs() < 2e-3, "{:?}", head.weight());
        }
    }

    const SKLEARN_WEIGHT: [f64; 6] = [0.020960, 1.018179, -1.039138, 1.037432, -0.534959, -0.502472];

    #[test]
    fn groups_of_outputs_do_not_touch_each_other() {
        let rows = Rows::from_dense(2, [[1.0f32, 0.0].as_slice(), &[0.0, 1.0], &[1.0, 1.0], &[-1.0, 0.5]]);
        let tight = Fit { l2: 0.5, max_iterations: 500, tolerance: 1e-12 };
        let left = [1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0];
        let right = [0.0, 1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 0.0];
        let both: Vec<f32> = left.chunks(2).zip(right.chunks(2)).flat_map(|(left, right)| [left, right].concat()).collect();
        let together = fit(&rows, &both, &[2, 2], tight);
        for (targets, offset) in [(left, 0), (right, 2)] {
            let alone = fit(&rows, &targets, &[2], tight);
            for (together, alone) in together.weight().chunks(4).zip(alone.weight().chunks(2)) {
                assert!(alone.iter().zip(&together[offset..]).all(|(a, b)| (a - b).abs() < 1e-3), "{together:?} {alone:?}");
            }
        }
    }

    #[test]
    fn a_row_counts_by_the_sum_of_its_target() {
        let twice = Rows::from_dense(1, [[1.0f32].as_slice(), &[1.0], &[-1.0]]);
        let once = Rows::from_dense(1, [[1.0f32].as_slice(), &[-1.0]]);
        let tight = Fit { l2: 0.5, max_iterations: 500, tolerance: 1e-12 };
        let a = fit(&twice, &[1.0, 0.0, 1.0, 0.0, 0.0, 1.0], &[2], tight);
        let b = fit(&once, &[2.0, 0.0, 0.0, 1.0], &[2], tight);
        for (a, b) in a.weight().iter().zip(b.weight()) {
            assert!((a - b).abs() < 1e-3);
        }
    }
}
