//! Low-rank changes to an encoder: what fine-tuning adds, small enough to keep beside the heads.
//!
//! Every linear layer of every block gets `W + A B` (LoRA, Hu et al., arXiv 2106.09685), with `A` of shape `(n_in, rank)` and `B`
//! of `(rank, n_out)`. Queries, keys and values are one layer here. The factors are stored in f16 and merged into the weights at
//! load, so that serving costs nothing. The harness (`eval/`) trains them.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};

use super::EncoderError;

/// More blocks than any encoder has.
const MAX_LAYERS: usize = 1_000;

/// Names of the linear layers of one block, in their order everywhere.
pub const LAYER_PARTS: [&str; 4] = ["qkv", "attention_output", "intermediate", "output"];

/// The change `A B` of one linear layer.
#[derive(Debug, Clone)]
pub struct LowRank {
    /// Shape `(n_in, rank)`.
    pub a: Tensor,
    /// Shape `(rank, n_out)`.
    pub b: Tensor,
}

/// The changes of an encoder's blocks from one on to the last; those before it stay as they are.
#[derive(Debug, Clone)]
pub struct Adapter {
    first_layer: usize,
    layers: Vec<[LowRank; LAYER_PARTS.len()]>,
}

impl Adapter {
    /// One array a block, from block `first_layer` on, in the order of [`LAYER_PARTS`].
    pub fn new(first_layer: usize, layers: Vec<[LowRank; LAYER_PARTS.len()]>) -> Self {
        Self { first_layer, layers }
    }

    pub fn first_layer(&self) -> usize {
        self.first_layer
    }

    pub fn layers(&self) -> &[[LowRank; LAYER_PARTS.len()]] {
        &self.layers
    }

    /// Reads the safetensors of [`Self::to_safetensors`]. They must have been verified by their hash.
    ///
    /// # Errors
    /// [`EncoderError::InvalidAdapter`] for a missing or malformed tensor, [`EncoderError::NonFiniteWeight`].
    pub fn from_safetensors(bytes: &[u8]) -> Result<Self, EncoderError> {
        let mut tensors = candle_core::safetensors::load_buffer(bytes, &Device::Cpu).map_err(EncoderError::InvalidAdapter)?;
        let n_layers = tensors.len() / (2 * LAYER_PARTS.len());
        let first_layer = (0..MAX_LAYERS).find(|&idx| tensors.contains_key(&name(idx, LAYER_PARTS[0], "a"))).unwrap_or(0);
        let mut take = |layer_idx: usize, part: &str, factor: &str| {
            let name = name(layer_idx, part, factor);
            let missing = || candle_core::Error::CannotFindTensor { path: name.clone() };
            let tensor = tensors.remove(&name).ok_or_else(missing).and_then(|tensor| tensor.to_dtype(DType::F32));
            let tensor = tensor.map_err(EncoderError::InvalidAdapter)?;
            if !tensor.sum_all()?.to_scalar::<f32>()?.is_finite() {
                return Err(EncoderError::NonFiniteWeight { name });
            }
            Ok(tensor)
        };
        let mut layers = Vec::with_capacity(n_layers);
        for layer_idx in first_layer..first_layer + n_layers {
            let mut low_rank =
                |part| Ok::<_, EncoderError>(LowRank { a: take(layer_idx, part, "a")?, b: take(layer_idx, part, "b")? });
            let [qkv, attention_output, intermediate, output] = LAYER_PARTS.map(&mut low_rank);
            layers.push([qkv?, attention_output?, intermediate?, output?]);
        }
        if let Some(path) = tensors.into_keys().next() {
            return Err(EncoderError::InvalidAdapter(candle_core::Error::CannotFindTensor { path }));
        }
        Ok(Self { first_layer, layers })
    }

    /// The factors in f16, as safetensors. The same factors give the same bytes.
    ///
    /// # Errors
    /// [`EncoderError::NonFiniteWeight`] where a factor does not fit f16.
    pub fn to_safetensors(&self) -> Result<Vec<u8>, EncoderError> {
        let mut tensors = HashMap::new();
        for (layer_idx, layer) in (self.first_layer..).zip(&self.layers) {
            for (part, low_rank) in LAYER_PARTS.iter().zip(layer) {
                for (factor, tensor) in [("a", &low_rank.a), ("b", &low_rank.b)] {
                    let (name, tensor) = (name(layer_idx, part, factor), tensor.detach().to_dtype(DType::F16)?);
                    if !tensor.to_dtype(DType::F32)?.sum_all()?.to_scalar::<f32>()?.is_finite() {
                        return Err(EncoderError::NonFiniteWeight { name });
                    }
                    tensors.insert(name, tensor);
                }
            }
        }
        // safetensors sorts by dtype and name.
        safetensors::serialize(tensors, None).map_err(|source| EncoderError::InvalidAdapter(source.into()))
    }

    /// # Errors
    /// [`EncoderError::AdapterMismatch`] unless it was made for `n_layers` blocks of linear layers of these shapes.
    pub(super) fn check(&self, n_layers: usize, shapes: &[(usize, usize); LAYER_PARTS.len()]) -> Result<(), EncoderError> {
        if self.first_layer + self.layers.len() != n_layers {
            let found = format!("blocks {} to {}", self.first_layer, self.first_layer + self.layers.len());
            let expected = format!("{n_layers} blocks");
            return Err(EncoderError::AdapterMismatch { found, expected });
        }
        for low_rank in self.layers.iter().flat_map(|layer| layer.iter().zip(shapes)) {
            let (LowRank { a, b }, &(n_in, n_out)) = low_rank;
            let fits = matches!((a.dims(), b.dims()), (&[a_in, a_rank], &[b_rank, b_out]) if (a_in, b_out) == (n_in, n_out) && a_rank == b_rank);
            if !fits {
                let (found, expected) = (format!("{:?} times {:?}", a.dims(), b.dims()), format!("{n_in} by {n_out}"));
                return Err(EncoderError::AdapterMismatch { found, expected });
            }
        }
        Ok(())
    }
}

fn name(layer_idx: usize, part: &str, factor: &str) -> String {
    format!("layer.{layer_idx}.{part}.{factor}")
}
