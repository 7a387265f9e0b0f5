//! The fused operations of a packed BERT, on candle tensors.
//!
//! On a CPU each is one candle custom operation over contiguous f32, computed on the calling thread alone: `gemm` is called with
//! `Parallelism::None` and nothing else of candle that would use rayon's shared pool is on the way. candle's own `matmul` takes
//! its thread count from `RAYON_NUM_THREADS` at every call, which a library cannot set safely and which would make engine
//! instances fight for the cores. On other devices the same is composed of candle's operations. None has a backward pass;
//! training needs a graph of its own.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, D, Layout, Result, Shape, Tensor};

use super::kernels;

/// What follows a linear layer, computed on its output while that is in the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Activation {
    None,
    Gelu,
}

/// `activation(x W + b)`: `x` is `(n, n_in)`, `weight` `(n_in, n_out)`, `bias` `(n_out,)`; returns `(n, n_out)`.
pub(super) fn linear(x: &Tensor, weight: &Tensor, bias: &Tensor, activation: Activation) -> Result<Tensor> {
    if x.device().is_cpu() {
        x.apply_op3_no_bwd(weight, bias, &Linear { activation })
    } else {
        composed::linear(x, weight, bias, activation)
    }
}

/// Layer normalisation of `x + residual`, both `(n, hidden_size)`.
pub(super) fn add_layer_norm(x: &Tensor, residual: &Tensor, norm: &LayerNorm) -> Result<Tensor> {
    if x.device().is_cpu() { x.apply_op2_no_bwd(residual, norm) } else { composed::add_layer_norm(x, residual, norm) }
}

/// Multi-head self-attention within each sequence.
///
/// `qkv` is `(n_tokens, 3 * hidden_size)`, queries, keys and values side by side; returns `(n_tokens, hidden_size)`. Sequences are
/// as in [`super::PackedBatch::cu_seqlens`].
pub(super) fn attention(qkv: &Tensor, cu_seqlens: &[usize], n_heads: usize) -> Result<Tensor> {
    if qkv.device().is_cpu() {
        qkv.apply_op1_no_bwd(&Attention { cu_seqlens, n_heads })
    } else {
        composed::attention(qkv, cu_seqlens, n_heads)
    }
}

/// Scale, shift and epsilon of a layer normalisation, kept as slices for the CPU and as tensors for the rest.
#[derive(Debug, Clone)]
pub(super) struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    cpu_weight: Vec<f32>,
    cpu_bias: Vec<f32>,
    epsilon: f32,
}

impl LayerNorm {
    /// `weight` and `bias` have shape `(hidden_size,)`.
    pub(super) fn new(weight: Tensor, bias: Tensor, epsilon: f64) -> Result<Self> {
        let (cpu_weight, cpu_bias) = (weight.to_vec1()?, bias.to_vec1()?);
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
        let mut sum = contiguous(x, x_layout)?.to_vec();
        for (sum, residual) in sum.iter_mut().zip(contiguous(residual, residual_layout)?) {
            *sum += residual;
        }
        kernels::layer_norm_rows(&mut sum, &self.cpu_weight, &self.cpu_bias, self.epsilon);
        Ok((CpuStorage::F32(sum), x_layout.shape().clone()))
    }
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
        let x = View { values: contiguous(x, x_layout)?, row_stride: n_in, n_rows: n, n_columns: n_in };
        let weight = View { values: contiguous(weight, weight_layout)?, row_stride: n_out, n_rows: n_in, n_columns: n_out };

        // The bias is what the product is added to.
        let mut out = bias.repeat(n);
        matmul(&mut out, n_out, x, Side::Plain(weight), 1.0, true);
        if self.activation == Activation::Gelu {
            kernels::gelu(&mut out);
        }
        Ok((CpuStorage::F32(out), Shape::from((n, n_out))))
    }
}

struct Attention<'a> {
    cu_seqlens: &'a [usize],
    n_heads: usize,
}

impl CustomOp1 for Attention<'_> {
    fn name(&self) -> &'static str {
        "packed-attention"
    }

    fn cpu_fwd(&self, qkv: &CpuStorage, qkv_layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (n_tokens, width) = qkv_layout.shape().dims2()?;
        let qkv = contiguous(qkv, qkv_layout)?;
        let hidden_size = width / 3;
        let head_size = hidden_size / self.n_heads;
        let scale = 1.0 / (head_size as f32).sqrt();

        let mut out = vec![0.0; n_tokens * hidden_size];
        let max_len = self.cu_seqlens.windows(2).map(|bounds| bounds[1] - bounds[0]).max().unwrap_or(0);
        let mut scores = vec![0.0; max_len * max_len];
        for bounds in self.cu_seqlens.windows(2) {
            let (start, length) = (bounds[0], bounds[1] - bounds[0]);
            let scores = &mut scores[..length * length];
            for head_idx in 0..self.n_heads {
                let head = |part: usize| View {
                    values: &qkv[start * width + part * hidden_size + head_idx * head_size..],
                    row_stride: width,
                    n_rows: length,
                    n_columns: head_size,
                };
                let (query, key, value) = (head(0), head(1), head(2));
                matmul(scores, length, query, Side::Transposed(key), scale, false);
                kernels::softmax_rows(scores, length);
                let probabilities = View { values: scores, row_stride: length, n_rows: length, n_columns: length };
                let head_out = &mut out[start * hidden_size + head_idx * head_size..];
                matmul(head_out, hidden_size, probabilities, Side::Plain(value), 1.0, false);
            }
        }
        Ok((CpuStorage::F32(out), Shape::from((n_tokens, hidden_size))))
    }
}

/// A matrix inside a slice: rows of `n_columns` neighbouring values, `row_stride` apart.
#[derive(Clone, Copy)]
struct View<'a> {
    values: &'a [f32],
    row_stride: usize,
    n_rows: usize,
    n_columns: usize,
}

impl View<'_> {
    /// Values from the first of the first row to the last of the last.
    fn span(&self) -> usize {
        if self.n_rows == 0 { 0 } else { (self.n_rows - 1) * self.row_stride + self.n_columns }
    }
}

/// The right-hand side of a product, as it is or transposed.
#[derive(Clone, Copy)]
enum Side<'a> {
    Plain(View<'a>),
    Transposed(View<'a>),
}

/// `out = scale * left * right`, plus what `out` held where `accumulate`; rows of `out` are `out_stride` apart. One thread.
fn matmul(out: &mut [f32], out_stride: usize, left: View, right: Side, scale: f32, accumulate: bool) {
    let (right, right_rows, n, right_column_stride, right_row_stride) = match right {
        Side::Plain(view) => (view, view.n_rows, view.n_columns, 1, view.row_stride),
        Side::Transposed(view) => (view, view.n_columns, view.n_rows, view.row_stride, 1),
    };
    let (m, k) = (left.n_rows, left.n_columns);
    assert_eq!(k, right_rows, "inner dimensions agree");
    assert!(left.n_columns <= left.row_stride && left.span() <= left.values.len(), "the left view lies inside its slice");
    assert!(right.n_columns <= right.row_stride && right.span() <= right.values.len(), "the right view lies inside its slice");
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
            1,
            left.row_stride as isize,
            right.values.as_ptr(),
            right_column_stride as isize,
            right_row_stride as isize,
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
    use candle_core::{DType, Device};

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
        let qkv = random((40, 3 * 24));
        for cu_seqlens in [&[0, 40][..], &[0, 1, 2, 19, 40], &[0, 39, 40]] {
            check(attention(&qkv, cu_seqlens, 3).unwrap(), composed::attention(&qkv, cu_seqlens, 3).unwrap());
        }
    }

    #[test]
    fn a_fused_operation_refuses_strides_it_would_misread() {
        let transposed = random((6, 4)).t().unwrap();
        assert!(linear(&transposed, &random((6, 2)), &random(2), Activation::None).is_err());
        assert!(linear(&random((3, 6)), &random((5, 2)), &random(2), Activation::None).is_err());
    }
}
