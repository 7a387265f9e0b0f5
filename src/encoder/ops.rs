//! The fused operations of a packed BERT, on candle tensors.
//!
//! On a CPU each is one candle custom operation over contiguous f32, computed on the calling thread alone: `gemm` is called with
//! `Parallelism::None` and nothing else of candle that would use rayon's shared pool is on the way. candle's own `matmul` takes
//! its thread count from `RAYON_NUM_THREADS` at every call, which a library cannot set safely and which would make engine
//! instances fight for the cores. On other devices the same is composed of candle's operations.
//!
//! Every operation but [`linear`], whose weights are frozen, has a backward pass on the CPU, so the graph that serves is the one
//! that is trained. Nothing is recorded where no input is a variable.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, D, Device, Layout, Result, Shape, Storage, Tensor};

use super::kernels;

/// Reads contiguous f32 tensors of the CPU as slices of the same names, which live as long as the scope.
macro_rules! values {
    ($($tensor:ident),*) => {$(
        let $tensor = $tensor.contiguous()?;
        let (storage, layout) = $tensor.storage_and_layout();
        let Storage::Cpu(storage) = &*storage else {
            candle_core::bail!("a backward pass needs tensors of the CPU");
        };
        let $tensor = contiguous(storage, layout)?;
    )*};
}

/// What follows a linear layer, computed on its output while that is in the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Activation {
    None,
    Gelu,
}

/// `activation(x W + b)`: `x` is `(n, n_in)`, `weight` `(n_in, n_out)`, `bias` `(n_out,)`; returns `(n, n_out)`. Frozen: no gradient
/// goes through it.
pub(super) fn linear(x: &Tensor, weight: &Tensor, bias: &Tensor, activation: Activation) -> Result<Tensor> {
    if x.device().is_cpu() {
        x.apply_op3_no_bwd(weight, bias, &Linear { activation })
    } else {
        composed::linear(x, weight, bias, activation)
    }
}

/// `x (W + A B) + b` for `merged = W + A B`, with gradients of `x`, `a` `(n_in, rank)` and `b` `(rank, n_out)`. CPU only.
///
/// The gradient of the whole weight is never formed, so a step costs two large products instead of three.
pub(super) fn adapted_linear(x: &Tensor, a: &Tensor, b: &Tensor, merged: &Tensor, bias: &Tensor) -> Result<Tensor> {
    x.apply_op3(a, b, AdaptedLinear { merged: merged.clone(), bias: bias.clone() })
}

/// GELU with the exact error function. CPU only; where nothing is trained, [`linear`] applies it on the way.
pub(super) fn gelu(x: &Tensor) -> Result<Tensor> {
    x.apply_op1(Gelu)
}

/// Layer normalisation of `x + residual`, both `(n, hidden_size)`.
pub(super) fn add_layer_norm(x: &Tensor, residual: &Tensor, norm: &LayerNorm) -> Result<Tensor> {
    if x.device().is_cpu() { x.apply_op2(residual, norm.clone()) } else { composed::add_layer_norm(x, residual, norm) }
}

/// Multi-head self-attention within each sequence.
///
/// `qkv` is `(n_tokens, 3 * hidden_size)`, queries, keys and values side by side; returns `(n_tokens, hidden_size)`. Sequences are
/// as in [`super::PackedBatch::cu_seqlens`].
pub(super) fn attention(qkv: &Tensor, cu_seqlens: &Arc<[usize]>, n_heads: usize) -> Result<Tensor> {
    if qkv.device().is_cpu() {
        qkv.apply_op1(Attention { cu_seqlens: Arc::clone(cu_seqlens), n_heads })
    } else {
        composed::attention(qkv, cu_seqlens, n_heads)
    }
}

/// The L2-normalised mean of each sequence's rows: `hidden_states` is `(n_tokens, hidden_size)`, the result
/// `(n_sequences, hidden_size)`. A row that has no direction comes out as NaN.
pub(super) fn pool(hidden_states: &Tensor, cu_seqlens: &Arc<[usize]>) -> Result<Tensor> {
    if hidden_states.device().is_cpu() {
        hidden_states.apply_op1(Pool { cu_seqlens: Arc::clone(cu_seqlens) })
    } else {
        composed::pool(hidden_states, cu_seqlens)
    }
}

/// `left right` of two matrices on the CPU, on the calling thread alone.
pub(super) fn product(left: &Tensor, right: &Tensor) -> Result<Tensor> {
    let ((m, k), (_, n)) = (left.dims2()?, right.dims2()?);
    values!(left, right);
    let mut out = vec![0.0; m * n];
    matmul(&mut out, n, View::rows(left, k), View::rows(right, n), 1.0, false);
    Tensor::from_vec(out, (m, n), &Device::Cpu)
}

/// Scale, shift and epsilon of a layer normalisation, kept as slices for the CPU and as tensors for the rest.
#[derive(Debug, Clone)]
pub(super) struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    cpu_weight: Arc<[f32]>,
    cpu_bias: Arc<[f32]>,
    epsilon: f32,
}

impl LayerNorm {
    /// `weight` and `bias` have shape `(hidden_size,)`.
    pub(super) fn new(weight: Tensor, bias: Tensor, epsilon: f64) -> Result<Self> {
        let (cpu_weight, cpu_bias) = (weight.to_vec1()?.into(), bias.to_vec1()?.into());
        Ok(Self { weight, bias, cpu_weight, cpu_bias, epsilon: epsilon as f32 })
    }
}

impl CustomOp2 for LayerNorm {
    fn name(&self) -> &'static str {
        "add-layer-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        residual: &CpuStorage,
        residual_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let mut sum = add(contiguous(x, x_layout)?, contiguous(residual, residual_layout)?);
        kernels::layer_norm_rows(&mut sum, &self.cpu_weight, &self.cpu_bias, self.epsilon);
        Ok((CpuStorage::F32(sum), x_layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, residual: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let shape = x.shape();
        values!(x, residual, gradient);
        let mut gradient = gradient.to_vec();
        kernels::layer_norm_rows_backward(&add(x, residual), &self.cpu_weight, self.epsilon, &mut gradient);
        let gradient = Tensor::from_vec(gradient, shape, &Device::Cpu)?;
        Ok((Some(gradient.clone()), Some(gradient)))
    }
}

fn add(left: &[f32], right: &[f32]) -> Vec<f32> {
    left.iter().zip(right).map(|(left, right)| left + right).collect()
}

struct Linear {
    activation: Activation,
}

impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (n, n_in) = x_layout.shape().dims2()?;
        let (weight_in, n_out) = weight_layout.shape().dims2()?;
        let bias = contiguous(bias, bias_layout)?;
        if weight_in != n_in || bias.len() != n_out {
            candle_core::bail!("linear: {n_in} inputs, weight {weight_in}x{n_out}, bias {}", bias.len());
        }
        let (x, weight) = (contiguous(x, x_layout)?, contiguous(weight, weight_layout)?);
        // The bias is what the product is added to.
        let mut out = bias.repeat(n);
        matmul(&mut out, n_out, View::rows(x, n_in), View::rows(weight, n_out), 1.0, true);
        if self.activation == Activation::Gelu {
            kernels::gelu(&mut out);
        }
        Ok((CpuStorage::F32(out), Shape::from((n, n_out))))
    }
}

struct AdaptedLinear {
    merged: Tensor,
    bias: Tensor,
}

impl CustomOp3 for AdaptedLinear {
    fn name(&self) -> &'static str {
        "adapted-linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (n, n_in) = x_layout.shape().dims2()?;
        let (_, n_out) = self.merged.dims2()?;
        let (merged, bias) = (&self.merged, &self.bias);
        values!(merged, bias);
        let mut out = bias.repeat(n);
        matmul(&mut out, n_out, View::rows(contiguous(x, x_layout)?, n_in), View::rows(merged, n_out), 1.0, true);
        Ok((CpuStorage::F32(out), Shape::from((n, n_out))))
    }

    fn bwd(
        &self,
        x: &Tensor,
        a: &Tensor,
        b: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let ((n, n_in), (rank, n_out), needs_input) = (x.dims2()?, b.dims2()?, x.track_op());
        let merged = &self.merged;
        values!(x, a, b, gradient, merged);
        let (x, a, b) = (View::rows(x, n_in), View::rows(a, rank), View::rows(b, n_out));
        let (gradient, merged) = (View::rows(gradient, n_out), View::rows(merged, n_out));

        let (mut inner, mut inner_gradient) = (vec![0.0; n * rank], vec![0.0; n * rank]);
        matmul(&mut inner, rank, x, a, 1.0, false);
        matmul(&mut inner_gradient, rank, gradient, b.t(), 1.0, false);
        let (mut a_gradient, mut b_gradient) = (vec![0.0; n_in * rank], vec![0.0; rank * n_out]);
        matmul(&mut a_gradient, rank, x.t(), View::rows(&inner_gradient, rank), 1.0, false);
        matmul(&mut b_gradient, n_out, View::rows(&inner, rank).t(), gradient, 1.0, false);
        let x_gradient = needs_input.then(|| {
            let mut x_gradient = vec![0.0; n * n_in];
            matmul(&mut x_gradient, n_in, gradient, merged.t(), 1.0, false);
            Tensor::from_vec(x_gradient, (n, n_in), &Device::Cpu)
        });
        Ok((
            x_gradient.transpose()?,
            Some(Tensor::from_vec(a_gradient, (n_in, rank), &Device::Cpu)?),
            Some(Tensor::from_vec(b_gradient, (rank, n_out), &Device::Cpu)?),
        ))
    }
}

struct Gelu;

impl CustomOp1 for Gelu {
    fn name(&self) -> &'static str {
        "gelu"
    }

    fn cpu_fwd(&self, x: &CpuStorage, x_layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let mut out = contiguous(x, x_layout)?.to_vec();
        kernels::gelu(&mut out);
        Ok((CpuStorage::F32(out), x_layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let shape = x.shape();
        values!(x, gradient);
        let mut gradient = gradient.to_vec();
        kernels::gelu_backward(x, &mut gradient);
        Ok(Some(Tensor::from_vec(gradient, shape, &Device::Cpu)?))
    }
}

struct Attention {
    cu_seqlens: Arc<[usize]>,
    n_heads: usize,
}

impl Attention {
    /// One head of one sequence: queries, keys and values as views into `qkv`.
    fn head<'a>(&self, qkv: &'a [f32], width: usize, bounds: &[usize], head_idx: usize) -> [View<'a>; 3] {
        let (hidden_size, n_rows) = (width / 3, bounds[1] - bounds[0]);
        let n_columns = hidden_size / self.n_heads;
        [0, 1, 2].map(|part| View {
            values: &qkv[bounds[0] * width + part * hidden_size + head_idx * n_columns..],
            row_stride: width,
            column_stride: 1,
            n_rows,
            n_columns,
        })
    }

    fn scale(&self, width: usize) -> f32 {
        1.0 / ((width / 3 / self.n_heads) as f32).sqrt()
    }

    fn longest(&self) -> usize {
        self.cu_seqlens.windows(2).map(|bounds| bounds[1] - bounds[0]).max().unwrap_or(0)
    }
}

impl CustomOp1 for Attention {
    fn name(&self) -> &'static str {
        "packed-attention"
    }

    fn cpu_fwd(&self, qkv: &CpuStorage, qkv_layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (n_tokens, width) = qkv_layout.shape().dims2()?;
        let qkv = contiguous(qkv, qkv_layout)?;
        let hidden_size = width / 3;
        let mut out = vec![0.0; n_tokens * hidden_size];
        let mut scores = vec![0.0; self.longest() * self.longest()];
        for bounds in self.cu_seqlens.windows(2) {
            let length = bounds[1] - bounds[0];
            let scores = &mut scores[..length * length];
            for head_idx in 0..self.n_heads {
                let [query, key, value] = self.head(qkv, width, bounds, head_idx);
                matmul(scores, length, query, key.t(), self.scale(width), false);
                kernels::softmax_rows(scores, length);
                let head_out = &mut out[bounds[0] * hidden_size + head_idx * value.n_columns..];
                matmul(head_out, hidden_size, View::rows(scores, length), value, 1.0, false);
            }
        }
        Ok((CpuStorage::F32(out), Shape::from((n_tokens, hidden_size))))
    }

    /// The probabilities are computed again rather than kept: they would be the largest thing in memory.
    fn bwd(&self, qkv: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let (n_tokens, width) = qkv.dims2()?;
        let (hidden_size, scale) = (width / 3, self.scale(width));
        values!(qkv, gradient);
        let mut out = vec![0.0; n_tokens * width];
        let area = self.longest() * self.longest();
        let (mut probabilities, mut scores_gradient) = (vec![0.0; area], vec![0.0; area]);
        for bounds in self.cu_seqlens.windows(2) {
            let length = bounds[1] - bounds[0];
            let (probabilities, scores_gradient) = (&mut probabilities[..length * length], &mut scores_gradient[..length * length]);
            for head_idx in 0..self.n_heads {
                let [query, key, value] = self.head(qkv, width, bounds, head_idx);
                matmul(probabilities, length, query, key.t(), scale, false);
                kernels::softmax_rows(probabilities, length);
                let offset = head_idx * value.n_columns;
                let head_gradient =
                    View { values: &gradient[bounds[0] * hidden_size + offset..], row_stride: hidden_size, ..value };
                matmul(scores_gradient, length, head_gradient, value.t(), 1.0, false);
                kernels::softmax_rows_backward(probabilities, scores_gradient, length);

                let (probabilities, scores_gradient) = (View::rows(probabilities, length), View::rows(scores_gradient, length));
                let mut write = |part: usize, left: View, right: View, scale: f32| {
                    let part = &mut out[bounds[0] * width + part * hidden_size + offset..];
                    matmul(part, width, left, right, scale, false);
                };
                write(0, scores_gradient, key, scale);
                write(1, scores_gradient.t(), query, scale);
                write(2, probabilities.t(), head_gradient, 1.0);
            }
        }
        Ok(Some(Tensor::from_vec(out, (n_tokens, width), &Device::Cpu)?))
    }
}

struct Pool {
    cu_seqlens: Arc<[usize]>,
}

impl CustomOp1 for Pool {
    fn name(&self) -> &'static str {
        "pool"
    }

    fn cpu_fwd(&self, hidden_states: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (_, hidden_size) = layout.shape().dims2()?;
        let hidden_states = contiguous(hidden_states, layout)?;
        let n_sequences = self.cu_seqlens.len() - 1;
        let mut out = vec![0.0; n_sequences * hidden_size];
        for (row, bounds) in out.chunks_exact_mut(hidden_size).zip(self.cu_seqlens.windows(2)) {
            // The sum has the direction of the mean, and only the direction survives normalisation.
            kernels::sum_rows(&hidden_states[bounds[0] * hidden_size..bounds[1] * hidden_size], row);
            let norm = length(row);
            row.iter_mut().for_each(|value| *value /= norm);
        }
        Ok((CpuStorage::F32(out), Shape::from((n_sequences, hidden_size))))
    }

    fn bwd(&self, hidden_states: &Tensor, pooled: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let (n_tokens, hidden_size) = hidden_states.dims2()?;
        values!(hidden_states, pooled, gradient);
        let mut out = vec![0.0; n_tokens * hidden_size];
        let rows = pooled.chunks_exact(hidden_size).zip(gradient.chunks_exact(hidden_size));
        for ((pooled, gradient), bounds) in rows.zip(self.cu_seqlens.windows(2)) {
            let span = bounds[0] * hidden_size..bounds[1] * hidden_size;
            let mut sum = vec![0.0; hidden_size];
            kernels::sum_rows(&hidden_states[span.clone()], &mut sum);
            let norm = length(&sum);
            let along: f32 = pooled.iter().zip(gradient).map(|(pooled, gradient)| pooled * gradient).sum();
            for row in out[span].chunks_exact_mut(hidden_size) {
                for ((value, pooled), gradient) in row.iter_mut().zip(pooled).zip(gradient) {
                    *value = (gradient - along * pooled) / norm;
                }
            }
        }
        Ok(Some(Tensor::from_vec(out, (n_tokens, hidden_size), &Device::Cpu)?))
    }
}

fn length(row: &[f32]) -> f32 {
    row.iter().map(|value| value * value).sum::<f32>().sqrt()
}

/// A matrix inside a slice.
#[derive(Clone, Copy)]
struct View<'a> {
    values: &'a [f32],
    row_stride: usize,
    column_stride: usize,
    n_rows: usize,
    n_columns: usize,
}

impl<'a> View<'a> {
    /// A whole slice as rows of `n_columns` neighbouring values.
    fn rows(values: &'a [f32], n_columns: usize) -> Self {
        Self { values, row_stride: n_columns, column_stride: 1, n_rows: values.len() / n_columns, n_columns }
    }

    /// The transpose, of the same values.
    fn t(self) -> Self {
        Self {
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            n_rows: self.n_columns,
            n_columns: self.n_rows,
            ..self
        }
    }

    /// Values from the first element to the last.
    fn span(&self) -> usize {
        if self.n_rows == 0 || self.n_columns == 0 {
            0
        } else {
            (self.n_rows - 1) * self.row_stride + (self.n_columns - 1) * self.column_stride + 1
        }
    }
}

/// `out = scale * left * right`, plus what `out` held where `accumulate`; rows of `out` are `out_stride` apart. One thread.
fn matmul(out: &mut [f32], out_stride: usize, left: View, right: View, scale: f32, accumulate: bool) {
    let (m, k, n) = (left.n_rows, left.n_columns, right.n_columns);
    assert_eq!(k, right.n_rows, "inner dimensions agree");
    assert!(left.span() <= left.values.len(), "the left view lies inside its slice");
    assert!(right.span() <= right.values.len(), "the right view lies inside its slice");
    assert!(n <= out_stride && (m == 0 || (m - 1) * out_stride + n <= out.len()), "the result lies inside its slice");
    let alpha = if accumulate { 1.0 } else { 0.0 };
    // SAFETY: the three assertions above keep every element that the strides reach inside its slice, rows of `out` do not overlap,
    // and `out` is borrowed exclusively, so it aliases neither operand.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            out_stride as isize,
            accumulate,
            left.values.as_ptr(),
            left.column_stride as isize,
            left.row_stride as isize,
            right.values.as_ptr(),
            right.column_stride as isize,
            right.row_stride as isize,
            alpha,
            scale,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

fn contiguous<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        candle_core::bail!("a fused operation needs contiguous tensors, not strides {:?}", layout.stride());
    };
    Ok(&storage.as_slice::<f32>()?[start..end])
}

/// The same operations from candle's own, for devices other than the CPU.
mod composed {
    use super::*;

    pub(super) fn linear(x: &Tensor, weight: &Tensor, bias: &Tensor, activation: Activation) -> Result<Tensor> {
        let out = x.matmul(weight)?.broadcast_add(bias)?;
        match activation {
            Activation::None => Ok(out),
            Activation::Gelu => out.gelu_erf(),
        }
    }

    pub(super) fn add_layer_norm(x: &Tensor, residual: &Tensor, norm: &LayerNorm) -> Result<Tensor> {
        candle_nn::ops::layer_norm(&(x + residual)?.contiguous()?, &norm.weight, &norm.bias, norm.epsilon)
    }

    pub(super) fn pool(hidden_states: &Tensor, cu_seqlens: &[usize]) -> Result<Tensor> {
        let sum = |bounds: &[usize]| hidden_states.narrow(0, bounds[0], bounds[1] - bounds[0])?.sum_keepdim(0);
        let sums = Tensor::cat(&cu_seqlens.windows(2).map(sum).collect::<Result<Vec<_>>>()?, 0)?;
        sums.broadcast_div(&sums.sqr()?.sum_keepdim(1)?.sqrt()?)
    }

    pub(super) fn attention(qkv: &Tensor, cu_seqlens: &[usize], n_heads: usize) -> Result<Tensor> {
        let (_, width) = qkv.dims2()?;
        let head_size = width / 3 / n_heads;
        let scale = 1.0 / (head_size as f64).sqrt();
        let mut outs = Vec::with_capacity(cu_seqlens.len());
        for bounds in cu_seqlens.windows(2) {
            let length = bounds[1] - bounds[0];
            // (3, n_heads, length, head_size)
            let heads = qkv.narrow(0, bounds[0], length)?.reshape((length, 3, n_heads, head_size))?.permute((1, 2, 0, 3))?;
            let (query, key, value) = (heads.get(0)?.contiguous()?, heads.get(1)?.contiguous()?, heads.get(2)?.contiguous()?);
            let scores = (query.matmul(&key.transpose(D::Minus1, D::Minus2)?)? * scale)?;
            let probabilities = candle_nn::ops::softmax_last_dim(&scores)?;
            outs.push(probabilities.matmul(&value)?.transpose(0, 1)?.reshape((length, width / 3))?);
        }
        Tensor::cat(&outs, 0)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Var};

    use super::*;

    /// Both ways sum the same few hundred f32 products in different orders.
    const TOLERANCE: f32 = 2e-5;

    fn random(shape: impl Into<Shape>) -> Tensor {
        Tensor::randn(0.0_f32, 1.0, shape, &Device::Cpu).unwrap()
    }

    #[track_caller]
    fn check(fused: Tensor, composed: Tensor) {
        assert_eq!(fused.dims(), composed.dims());
        let difference = (fused - composed).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap();
        let difference = difference.to_dtype(DType::F32).unwrap().to_scalar::<f32>().unwrap();
        assert!(difference <= TOLERANCE, "differs by {difference}");
    }

    #[test]
    fn the_fused_operations_agree_with_the_composed_ones() {
        for n in [1, 2, 7, 65] {
            let (x, weight, bias) = (random((n, 48)), (random((48, 30)) * 0.2).unwrap(), random(30));
            for activation in [Activation::None, Activation::Gelu] {
                check(linear(&x, &weight, &bias, activation).unwrap(), composed::linear(&x, &weight, &bias, activation).unwrap());
            }
            let norm = LayerNorm::new(random(48), random(48), 1e-12).unwrap();
            let residual = random((n, 48));
            check(add_layer_norm(&x, &residual, &norm).unwrap(), composed::add_layer_norm(&x, &residual, &norm).unwrap());
        }
        let (qkv, hidden_states) = (random((40, 3 * 24)), random((40, 24)));
        for cu_seqlens in [&[0, 40][..], &[0, 1, 2, 19, 40], &[0, 39, 40]] {
            let cu_seqlens = cu_seqlens.into();
            check(attention(&qkv, &cu_seqlens, 3).unwrap(), composed::attention(&qkv, &cu_seqlens, 3).unwrap());
            check(pool(&hidden_states, &cu_seqlens).unwrap(), composed::pool(&hidden_states, &cu_seqlens).unwrap());
        }
    }

    /// Gradients through the fused operations against candle's own through the composed ones.
    #[test]
    fn the_backward_passes_agree_with_the_composed_ones() {
        #[track_caller]
        fn check_gradients(inputs: &[&Var], fused: Tensor, composed: Tensor) {
            // A fixed direction, so that every element of the result matters.
            let direction = random(fused.shape());
            let gradients = [fused, composed].map(|out| (out * &direction).unwrap().sum_all().unwrap().backward().unwrap());
            for input in inputs {
                let [fused, composed] = [0, 1].map(|way| gradients[way].get(input).expect("the input has a gradient").clone());
                check(fused, composed);
            }
        }
        fn variable(shape: impl Into<Shape>) -> Var {
            Var::from_tensor(&random(shape)).unwrap()
        }

        let (x, residual) = (variable((9, 48)), variable((9, 48)));
        let (a, b, weight, bias) = (variable((48, 4)), variable((4, 30)), random((48, 30)), random(30));
        let merged = (&weight + product(&a, &b).unwrap()).unwrap();
        let composed = (x.matmul(&weight).unwrap() + x.matmul(&a).unwrap().matmul(&b).unwrap()).unwrap();
        let composed = composed.broadcast_add(&bias).unwrap();
        check_gradients(&[&x, &a, &b], adapted_linear(&x, &a, &b, &merged, &bias).unwrap(), composed);
        check_gradients(&[&x], gelu(&x).unwrap(), x.gelu_erf().unwrap());

        let norm = LayerNorm::new(random(48), random(48), 1e-6).unwrap();
        let sum = (x.as_tensor() + residual.as_tensor()).unwrap();
        let centred = sum.broadcast_sub(&sum.mean_keepdim(1).unwrap()).unwrap();
        let variance = (centred.sqr().unwrap().mean_keepdim(1).unwrap() + 1e-6).unwrap();
        let composed = centred.broadcast_div(&variance.sqrt().unwrap()).unwrap();
        let composed = composed.broadcast_mul(&norm.weight).unwrap().broadcast_add(&norm.bias).unwrap();
        check_gradients(&[&x, &residual], add_layer_norm(&x, &residual, &norm).unwrap(), composed);

        let (qkv, hidden_states) = (variable((9, 3 * 24)), variable((9, 24)));
        for cu_seqlens in [&[0, 9][..], &[0, 1, 7, 9]] {
            let cu_seqlens: Arc<[usize]> = cu_seqlens.into();
            let slow = slow_attention(&qkv, &cu_seqlens, 3);
            check_gradients(&[&qkv], attention(&qkv, &cu_seqlens, 3).unwrap(), slow);
            let composed = composed::pool(&hidden_states, &cu_seqlens).unwrap();
            check_gradients(&[&hidden_states], pool(&hidden_states, &cu_seqlens).unwrap(), composed);
        }
    }

    /// As `composed::attention`, with a softmax that candle can differentiate.
    fn slow_attention(qkv: &Tensor, cu_seqlens: &[usize], n_heads: usize) -> Tensor {
        let (_, width) = qkv.dims2().unwrap();
        let head_size = width / 3 / n_heads;
        let outs = cu_seqlens.windows(2).map(|bounds| {
            let length = bounds[1] - bounds[0];
            let heads = qkv.narrow(0, bounds[0], length).unwrap().reshape((length, 3, n_heads, head_size)).unwrap();
            let part =
                |idx: usize| heads.narrow(1, idx, 1).unwrap().squeeze(1).unwrap().transpose(0, 1).unwrap().contiguous().unwrap();
            let scores = part(0).matmul(&part(1).t().unwrap().contiguous().unwrap()).unwrap();
            let scores = (scores / (head_size as f64).sqrt()).unwrap().exp().unwrap();
            let probabilities = scores.broadcast_div(&scores.sum_keepdim(2).unwrap()).unwrap();
            probabilities.matmul(&part(2)).unwrap().transpose(0, 1).unwrap().reshape((length, width / 3)).unwrap()
        });
        Tensor::cat(&outs.collect::<Vec<_>>(), 0).unwrap()
    }

    #[test]
    fn a_fused_operation_refuses_strides_it_would_misread() {
        let transposed = random((6, 4)).t().unwrap();
        assert!(linear(&transposed, &random((6, 2)), &random(2), Activation::None).is_err());
        assert!(linear(&random((3, 6)), &random((5, 2)), &random(2), Activation::None).is_err());
    }
}
