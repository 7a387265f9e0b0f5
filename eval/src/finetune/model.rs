//! The trained variables and the loss of a micro-batch.

use std::sync::Arc;

use anyhow::Result;
use candle_core::backprop::GradStore;
use candle_core::{D, DType, Device, Tensor, Var};
use rand::{Rng, SeedableRng};
use rand_distr::{Distribution, Normal};
use rand_pcg::Pcg64;
use sluice::classifier::DenseHead;
use sluice::classifier::heads::Linear;
use sluice::encoder::{AdaptedWeights, Adapter, CandleEncoder, LAYER_PARTS, LowRank};

use super::{FineTuneParams, FineTuned};
use crate::classifier::heads::{Label, map_outputs, targets_of};

/// The head sees the embedding times this, so that its inputs have about unit size.
const EMBEDDING_SCALE: f64 = 20.0;

/// Weight of "fits a type or none" against the types.
const NOVELTY_WEIGHT: f64 = 0.5;

/// Weight of "speaks of this type or not", of each type, against the types.
const PRESENCE_WEIGHT: f64 = 0.3;

/// Variables of an adapter and a head.
pub(super) struct Model<'a> {
    encoder: &'a CandleEncoder,
    adapter: Adapter,
    /// `a` and `b` of every linear layer, then weight `(hidden_size, 2 * n_types + 2)` and bias of the head,
    /// whose outputs are the types, "fits a type", "fits none", and of each type whether the text speaks of it.
    variables: Vec<Var>,
    n_types: usize,
    outlier_weight: f32,
}

impl<'a> Model<'a> {
    /// `A` random, `B` zero: training starts from the encoder as it is.
    pub(super) fn new(
        encoder: &'a CandleEncoder,
        n_types: usize,
        params: &FineTuneParams,
        outlier_weight: f32,
        seed: u64,
    ) -> Result<Self> {
        let mut rng = Pcg64::seed_from_u64(seed);
        let shapes = encoder.layer_shapes();
        let config = encoder.config();
        let first_layer = config.num_hidden_layers - params.trained_layers.clamp(1, config.num_hidden_layers);
        let mut variables = Vec::new();
        for _ in first_layer..config.num_hidden_layers {
            for (n_in, n_out) in shapes {
                variables.push(normal((n_in, params.rank), 1.0 / (n_in as f64).sqrt(), &mut rng)?);
                variables.push(Var::zeros((params.rank, n_out), DType::F32, &Device::Cpu)?);
            }
        }
        variables.push(normal((config.hidden_size, 2 * n_types + 2), 0.01, &mut rng)?);
        variables.push(Var::zeros(2 * n_types + 2, DType::F32, &Device::Cpu)?);
        let adapter = adapter(first_layer, &variables);
        Ok(Self { encoder, adapter, variables, n_types, outlier_weight })
    }

    /// The first block that is trained.
    pub(super) fn first_layer(&self) -> usize {
        self.adapter.first_layer()
    }

    pub(super) fn variables(&self) -> &[Var] {
        &self.variables
    }

    /// Whether variable `idx` belongs to the head.
    pub(super) fn is_head(&self, idx: usize) -> bool {
        idx + 2 >= self.variables.len()
    }

    /// The encoder's weights as the factors are now; to be made anew after each step.
    pub(super) fn weights(&self) -> Result<AdaptedWeights> {
        Ok(self.encoder.adapted_weights(&self.adapter)?)
    }

    /// Loss of a micro-batch summed over its texts, and the gradients of every variable.
    pub(super) fn gradients(
        &self,
        hidden_states: &Tensor,
        cu_seqlens: &Arc<[usize]>,
        labels: &[&Label],
        weights: &AdaptedWeights,
        (params, seed): (&FineTuneParams, u64),
    ) -> Result<(f64, GradStore)> {
        let embeddings = self.encoder.embed_adapted(hidden_states, cu_seqlens, &self.adapter, weights)?;
        let embeddings = dropout(&embeddings, params.embedding_dropout, seed)?;
        let loss = self.loss(&embeddings, labels, params.label_smoothing as f32)?;
        Ok((f64::from(loss.to_scalar::<f32>()?), loss.backward()?))
    }

    fn loss(&self, embeddings: &Tensor, labels: &[&Label], smoothing: f32) -> Result<Tensor> {
        let [.., weight, bias] = self.variables.as_slice() else { unreachable!("the head is two variables") };
        let logits = ((embeddings * EMBEDDING_SCALE)?.matmul(weight)?).broadcast_add(bias)?;
        let mut targets = targets_of(labels.iter().map(|label| label.class), self.n_types, self.outlier_weight);
        for (target, label) in targets.chunks_exact_mut(self.n_types + 2).zip(labels) {
            if label.class.is_some() {
                for value in &mut target[..self.n_types] {
                    *value = *value * (1.0 - smoothing) + smoothing / self.n_types as f32;
                }
            }
        }
        let targets = Tensor::from_vec(targets, (labels.len(), self.n_types + 2), &Device::Cpu)?;
        let group = |start: usize, length: usize| -> Result<Tensor> {
            let log_probabilities = log_softmax(&logits.narrow(1, start, length)?)?;
            Ok((log_probabilities * targets.narrow(1, start, length)?)?.sum_all()?.neg()?)
        };
        let presence = labels.iter().flat_map(|label| (0..self.n_types).map(|class| f32::from(u8::from(label.speaks_of(class)))));
        let presence = Tensor::from_vec(presence.collect(), (labels.len(), self.n_types), &Device::Cpu)?;
        let presence = binary_cross_entropy(&logits.narrow(1, self.n_types + 2, self.n_types)?, &presence)?;
        let novelty = group(self.n_types, 2)?;
        Ok(((group(0, self.n_types)? + (novelty * NOVELTY_WEIGHT)?)? + (presence * PRESENCE_WEIGHT)?)?)
    }

    /// Sentence embeddings as the factors are now, shape `(n_texts, hidden_size)`, row by row.
    pub(super) fn embed(&self, hidden_states: &Tensor, cu_seqlens: &Arc<[usize]>, weights: &AdaptedWeights) -> Result<Vec<f32>> {
        let embeddings = self.encoder.embed_adapted(hidden_states, cu_seqlens, &self.adapter, weights)?;
        Ok(embeddings.detach().flatten_all()?.to_vec1()?)
    }

    /// The trained factors and the head on the plain embedding.
    pub(super) fn into_fine_tuned(self, centres: Vec<f32>) -> Result<FineTuned> {
        let [.., weight, bias] = self.variables.as_slice() else { unreachable!("the head is two variables") };
        let weight = (weight.as_detached_tensor() * EMBEDDING_SCALE)?.flatten_all()?.to_vec1()?;
        let linear = map_outputs(&Linear::new("fine-tuned", weight, bias.to_vec1()?)?, |row| {
            let (types, rest) = row.split_at(self.n_types);
            [types, &[rest[1] - rest[0]], &rest[2..]].concat()
        })?;
        Ok(FineTuned { adapter: self.adapter, head: DenseHead { linear, centres } })
    }
}

fn adapter(first_layer: usize, variables: &[Var]) -> Adapter {
    let factors = &variables[..variables.len() - 2];
    let low_rank = |pair: &[Var]| LowRank { a: pair[0].as_tensor().clone(), b: pair[1].as_tensor().clone() };
    let layer = |layer: &[Var]| std::array::from_fn(|part| low_rank(&layer[2 * part..2 * part + 2]));
    Adapter::new(first_layer, factors.chunks_exact(2 * LAYER_PARTS.len()).map(layer).collect())
}

fn normal(shape: (usize, usize), deviation: f64, rng: &mut Pcg64) -> Result<Var> {
    let distribution = Normal::new(0.0, deviation)?;
    let values: Vec<f32> = (0..shape.0 * shape.1).map(|_| distribution.sample(rng) as f32).collect();
    Ok(Var::from_vec(values, shape, &Device::Cpu)?)
}

/// Leaves out a share of the numbers and scales the rest up.
fn dropout(embeddings: &Tensor, share: f64, seed: u64) -> Result<Tensor> {
    if share == 0.0 {
        return Ok(embeddings.clone());
    }
    let mut rng = Pcg64::seed_from_u64(seed);
    let kept = (1.0 / (1.0 - share)) as f32;
    let mask: Vec<f32> = (0..embeddings.elem_count()).map(|_| if rng.random_bool(share) { 0.0 } else { kept }).collect();
    Ok((embeddings * Tensor::from_vec(mask, embeddings.shape(), &Device::Cpu)?)?)
}

/// Summed over all elements: `ln(1 + e^z) - t z`, in a form that does not overflow.
fn binary_cross_entropy(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    let softplus = (logits.relu()? + (logits.abs()?.neg()?.exp()? + 1.0)?.log()?)?;
    Ok((softplus - (logits * targets)?)?.sum_all()?)
}

/// Composed of operations that candle can differentiate.
fn log_softmax(logits: &Tensor) -> Result<Tensor> {
    let shifted = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?.detach())?;
    Ok(shifted.broadcast_sub(&shifted.exp()?.sum_keepdim(D::Minus1)?.log()?)?)
}
