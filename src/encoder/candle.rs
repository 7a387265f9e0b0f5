//! The reference engine: a BERT forward pass over packed tokens on candle tensors, in f32.
//!
//! Architecture and names follow `transformers/models/bert/modeling_bert.py` (v4.8.2, which saved the checkpoint), pooling follows
//! sentence-transformers: mean over all tokens of a text, special ones included, then L2 normalisation. Linear layers run over
//! `(n_tokens, hidden_size)` of the whole batch, attention over each sequence by itself. The same graph serves and, with an
//! [`Adapter`] whose factors are variables, is trained. Next: `ops`, the operations; `kernels`, their inner loops.

use std::sync::Arc;

use candle_core::{DType, Device, Result as TensorResult, Tensor};
use candle_nn::VarBuilder;
use serde::Deserialize;

use super::adapter::{Adapter, LAYER_PARTS, LowRank};
use super::ops::{self, Activation, LayerNorm, add_layer_norm, attention, linear};
use super::{Embeddings, Encoder, EncoderError, PackedBatch};

/// The fields of a BERT `config.json` that the forward pass depends on. Files carry more; those do not matter here.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct BertConfig {
    pub model_type: String,
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub intermediate_size: usize,
    pub hidden_act: String,
    pub max_position_embeddings: usize,
    pub type_vocab_size: usize,
    pub layer_norm_eps: f64,
    #[serde(default = "absolute")]
    pub position_embedding_type: String,
}

fn absolute() -> String {
    "absolute".to_owned()
}

impl BertConfig {
    /// Reads a `config.json`.
    ///
    /// # Errors
    /// [`EncoderError::InvalidConfig`]; [`EncoderError::UnsupportedConfig`] where the forward pass of this engine would differ from
    /// what the file asks for.
    pub fn from_json(config_json: &[u8]) -> Result<Self, EncoderError> {
        let config: Self = serde_json::from_slice(config_json).map_err(EncoderError::InvalidConfig)?;
        for (field, found, supported) in [
            ("model_type", &config.model_type, "bert"),
            ("hidden_act", &config.hidden_act, "gelu"),
            ("position_embedding_type", &config.position_embedding_type, "absolute"),
        ] {
            if found != supported {
                return Err(EncoderError::UnsupportedConfig { field, found: found.clone(), supported });
            }
        }
        for (field, found) in [
            ("vocab_size", config.vocab_size),
            ("hidden_size", config.hidden_size),
            ("num_attention_heads", config.num_attention_heads),
            ("max_position_embeddings", config.max_position_embeddings),
            ("type_vocab_size", config.type_vocab_size),
        ] {
            if found == 0 {
                return Err(EncoderError::UnsupportedConfig { field, found: found.to_string(), supported: "a positive number" });
            }
        }
        if !config.hidden_size.is_multiple_of(config.num_attention_heads) {
            return Err(EncoderError::UnsupportedConfig {
                field: "num_attention_heads",
                found: config.num_attention_heads.to_string(),
                supported: "a divisor of `hidden_size`",
            });
        }
        Ok(config)
    }
}

/// A loaded encoder. Clones share the weights, so one for each worker costs no memory.
#[derive(Debug, Clone)]
pub struct CandleEncoder {
    config: BertConfig,
    device: Device,
    word_embeddings: Tensor,
    /// Position embeddings with the embedding of token type 0 added: every token of a single text is of that type.
    position_embeddings: Tensor,
    embeddings_norm: LayerNorm,
    layers: Vec<Layer>,
}

impl CandleEncoder {
    /// Loads `config.json` and safetensors weights of any float type, widened to f32. Both must have been verified by their hash.
    ///
    /// Computes on the GPU where a GPU feature is built in, otherwise on the CPU on the calling thread alone, whatever
    /// `RAYON_NUM_THREADS` says.
    ///
    /// # Errors
    /// As [`BertConfig::from_json`]; [`EncoderError::InvalidWeights`] for a missing tensor or a wrong shape;
    /// [`EncoderError::NonFiniteWeight`].
    pub fn load(config_json: &[u8], weights: &[u8]) -> Result<Self, EncoderError> {
        let config = BertConfig::from_json(config_json)?;
        let device = default_device().map_err(EncoderError::InvalidWeights)?;
        let vb = VarBuilder::from_slice_safetensors(weights, DType::F32, &device).map_err(EncoderError::InvalidWeights)?;
        let loader = Loader { config, vb };
        let config = &loader.config;
        let vb = loader.vb.pp("embeddings");
        let word_embeddings = loader.tensor(&vb, "word_embeddings.weight", &[config.vocab_size, config.hidden_size])?;
        let positions = loader.tensor(&vb, "position_embeddings.weight", &[config.max_position_embeddings, config.hidden_size])?;
        let types = loader.tensor(&vb, "token_type_embeddings.weight", &[config.type_vocab_size, config.hidden_size])?;
        let position_embeddings = types.get(0).and_then(|first_type| positions.broadcast_add(&first_type))?;
        let embeddings_norm = loader.layer_norm(&vb.pp("LayerNorm"))?;
        let layers = (0..config.num_hidden_layers).map(|layer_idx| loader.layer(layer_idx)).collect::<Result<_, _>>()?;
        Ok(Self { device, word_embeddings, position_embeddings, embeddings_norm, layers, config: loader.config })
    }

    /// As [`Self::load`], with the adapter of [`Adapter::to_safetensors`] merged in where there is one.
    ///
    /// # Errors
    /// As [`Self::load`], [`Adapter::from_safetensors`] and [`Self::merge`].
    pub fn load_adapted(config_json: &[u8], weights: &[u8], adapter: Option<&[u8]>) -> Result<Self, EncoderError> {
        let mut encoder = Self::load(config_json, weights)?;
        if let Some(adapter) = adapter {
            encoder.merge(&Adapter::from_safetensors(adapter)?)?;
        }
        Ok(encoder)
    }

    pub fn config(&self) -> &BertConfig {
        &self.config
    }

    fn check(&self, batch: &PackedBatch) -> Result<(), EncoderError> {
        if batch.is_empty() {
            return Err(EncoderError::EmptyBatch);
        }
        let (vocab_size, max_tokens) = (self.config.vocab_size, self.config.max_position_embeddings);
        for (sequence_idx, sequence) in batch.sequences().enumerate() {
            if sequence.len() > max_tokens {
                return Err(EncoderError::SequenceTooLong { sequence_idx, n_tokens: sequence.len(), max_tokens });
            }
            if let Some(&token_id) = sequence.iter().find(|&&token_id| token_id as usize >= vocab_size) {
                return Err(EncoderError::UnknownToken { token_id, vocab_size });
            }
        }
        Ok(())
    }

    /// Merges an adapter into the weights, for good. The next one is merged on top of it.
    ///
    /// # Errors
    /// [`EncoderError::AdapterMismatch`] where it was made for an encoder of another shape.
    pub fn merge(&mut self, adapter: &Adapter) -> Result<(), EncoderError> {
        let merged = self.merged_weights(adapter)?;
        for (layer, merged) in self.layers[adapter.first_layer()..].iter_mut().zip(merged) {
            for (linear, weight) in layer.linears_mut().into_iter().zip(merged) {
                linear.weight = weight.to_device(&self.device)?;
            }
        }
        Ok(())
    }

    /// What goes into block `layer_idx`, shape `(n_tokens, hidden_size)`: what training of the blocks from there on needs of a text,
    /// once.
    ///
    /// # Errors
    /// As [`Encoder::encode`].
    pub fn hidden_states(&self, batch: &PackedBatch, layer_idx: usize) -> Result<Tensor, EncoderError> {
        self.check(batch)?;
        let cu_seqlens: Arc<[usize]> = batch.cu_seqlens().into();
        let mut hidden_states = self.embedded(batch)?;
        for layer in &self.layers[..layer_idx.min(self.layers.len())] {
            hidden_states = layer.forward(&hidden_states, &cu_seqlens, None)?;
        }
        Ok(hidden_states)
    }

    /// Sentence embeddings of the encoder as `adapter` changes it, shape `(n_sequences, hidden_size)`, from what goes into the first
    /// block that it changes; with gradients of the adapter's factors where those are variables. CPU only. Make the
    /// [`AdaptedWeights`] anew after each change of the factors. A row that has no direction comes back as NaN.
    ///
    /// # Errors
    /// [`EncoderError::Tensor`] for shapes that do not fit.
    pub fn embed_adapted(
        &self,
        hidden_states: &Tensor,
        cu_seqlens: &Arc<[usize]>,
        adapter: &Adapter,
        weights: &AdaptedWeights,
    ) -> Result<Tensor, EncoderError> {
        let mut hidden_states = hidden_states.clone();
        let adapted = adapter.layers().iter().zip(&weights.0);
        for (layer, adapted) in self.layers[adapter.first_layer()..].iter().zip(adapted) {
            hidden_states = layer.forward(&hidden_states, cu_seqlens, Some(adapted))?;
        }
        Ok(ops::pool(&hidden_states, cu_seqlens)?)
    }

    /// `W + A B` of every linear layer. Nothing is recorded for a backward pass.
    ///
    /// # Errors
    /// [`EncoderError::AdapterMismatch`].
    pub fn adapted_weights(&self, adapter: &Adapter) -> Result<AdaptedWeights, EncoderError> {
        Ok(AdaptedWeights(self.merged_weights(adapter)?))
    }

    /// Inputs and outputs of the linear layers of one block, in the order of [`LAYER_PARTS`].
    pub fn layer_shapes(&self) -> [(usize, usize); LAYER_PARTS.len()] {
        let (hidden_size, intermediate_size) = (self.config.hidden_size, self.config.intermediate_size);
        [
            (hidden_size, 3 * hidden_size),
            (hidden_size, hidden_size),
            (hidden_size, intermediate_size),
            (intermediate_size, hidden_size),
        ]
    }

    fn merged_weights(&self, adapter: &Adapter) -> Result<Vec<[Tensor; LAYER_PARTS.len()]>, EncoderError> {
        adapter.check(self.layers.len(), &self.layer_shapes())?;
        let merge = |(layer, adapted): (&Layer, &[LowRank; LAYER_PARTS.len()])| {
            let linears = layer.linears();
            let merge = |part: usize| {
                let LowRank { a, b } = &adapted[part];
                linears[part].weight.to_device(&Device::Cpu)? + ops::product(&a.detach(), &b.detach())?
            };
            Ok([merge(0)?, merge(1)?, merge(2)?, merge(3)?])
        };
        self.layers[adapter.first_layer()..].iter().zip(adapter.layers()).map(merge).collect()
    }

    /// Words with their positions, shape `(n_tokens, hidden_size)`: what goes into the first block.
    fn embedded(&self, batch: &PackedBatch) -> TensorResult<Tensor> {
        let input_ids = Tensor::new(batch.input_ids(), &self.device)?;
        let position_ids: Vec<u32> = batch.sequences().flat_map(|sequence| 0..sequence.len() as u32).collect();
        let position_ids = Tensor::new(position_ids, &self.device)?;
        let words = self.word_embeddings.index_select(&input_ids, 0)?;
        let positions = self.position_embeddings.index_select(&position_ids, 0)?;
        add_layer_norm(&words, &positions, &self.embeddings_norm)
    }
}

/// The weights of an encoder with an adapter merged in, for the steps until the adapter changes.
#[derive(Debug)]
pub struct AdaptedWeights(Vec<[Tensor; LAYER_PARTS.len()]>);

impl Encoder for CandleEncoder {
    fn encode(&mut self, batch: &PackedBatch) -> Result<Embeddings, EncoderError> {
        let hidden_states = self.hidden_states(batch, self.layers.len())?;
        let pooled_output = ops::pool(&hidden_states, &batch.cu_seqlens().into())?.flatten_all()?.to_vec1::<f32>()?;
        let hidden_size = self.config.hidden_size;
        for (sequence_idx, row) in pooled_output.chunks_exact(hidden_size).enumerate() {
            if !row.iter().all(|value| value.is_finite()) {
                return Err(EncoderError::NonFinite { sequence_idx });
            }
        }
        Ok(Embeddings::from_rows(pooled_output, hidden_size))
    }

    fn hidden_size(&self) -> usize {
        self.config.hidden_size
    }

    fn max_sequence_tokens(&self) -> usize {
        self.config.max_position_embeddings
    }
}

/// One transformer block, normalised after each half as BERT is.
#[derive(Debug, Clone)]
struct Layer {
    /// Queries, keys and values in one product: `(hidden_size, 3 * hidden_size)`.
    qkv: Linear,
    attention_output: Linear,
    attention_norm: LayerNorm,
    intermediate: Linear,
    output: Linear,
    output_norm: LayerNorm,
    num_attention_heads: usize,
}

/// The low-rank changes of one block and its weights with them.
type AdaptedLayer<'a> = (&'a [LowRank; LAYER_PARTS.len()], &'a [Tensor; LAYER_PARTS.len()]);

impl Layer {
    fn forward(&self, hidden_states: &Tensor, cu_seqlens: &Arc<[usize]>, adapted: Option<AdaptedLayer>) -> TensorResult<Tensor> {
        let linear = |part: usize, x: &Tensor, activation: Activation| {
            let linear = self.linears()[part];
            match adapted {
                Some((factors, weights)) => linear.forward_adapted(x, &factors[part], &weights[part], activation),
                None => linear.forward(x, activation),
            }
        };
        let qkv = linear(0, hidden_states, Activation::None)?;
        let context = attention(&qkv, cu_seqlens, self.num_attention_heads)?;
        let attended = linear(1, &context, Activation::None)?;
        let attended = add_layer_norm(&attended, hidden_states, &self.attention_norm)?;
        let intermediate = linear(2, &attended, Activation::Gelu)?;
        let output = linear(3, &intermediate, Activation::None)?;
        add_layer_norm(&output, &attended, &self.output_norm)
    }

    /// In the order of [`LAYER_PARTS`].
    fn linears(&self) -> [&Linear; LAYER_PARTS.len()] {
        [&self.qkv, &self.attention_output, &self.intermediate, &self.output]
    }

    fn linears_mut(&mut self) -> [&mut Linear; LAYER_PARTS.len()] {
        [&mut self.qkv, &mut self.attention_output, &mut self.intermediate, &mut self.output]
    }
}

#[derive(Debug, Clone)]
struct Linear {
    /// `(n_in, n_out)`: transposed once at load, because the product then reads it without packing.
    weight: Tensor,
    bias: Tensor,
}

impl Linear {
    fn forward(&self, x: &Tensor, activation: Activation) -> TensorResult<Tensor> {
        linear(x, &self.weight, &self.bias, activation)
    }

    fn forward_adapted(&self, x: &Tensor, factors: &LowRank, weight: &Tensor, activation: Activation) -> TensorResult<Tensor> {
        let out = ops::adapted_linear(x, &factors.a, &factors.b, weight, &self.bias)?;
        if activation == Activation::Gelu { ops::gelu(&out) } else { Ok(out) }
    }
}

/// Takes tensors out of a checkpoint by the checkpoint's own names.
struct Loader<'a> {
    config: BertConfig,
    vb: VarBuilder<'a>,
}

impl Loader<'_> {
    fn layer(&self, layer_idx: usize) -> Result<Layer, EncoderError> {
        let (hidden_size, intermediate_size) = (self.config.hidden_size, self.config.intermediate_size);
        let vb = self.vb.pp("encoder.layer").pp(layer_idx);
        let attention = vb.pp("attention.self");
        let parts = ["query", "key", "value"].map(|name| self.linear(&attention.pp(name), hidden_size, hidden_size));
        let [query, key, value] = parts;
        let (query, key, value) = (query?, key?, value?);
        let qkv = Linear {
            weight: Tensor::cat(&[query.weight, key.weight, value.weight], 1)?,
            bias: Tensor::cat(&[query.bias, key.bias, value.bias], 0)?,
        };
        Ok(Layer {
            qkv,
            attention_output: self.linear(&vb.pp("attention.output.dense"), hidden_size, hidden_size)?,
            attention_norm: self.layer_norm(&vb.pp("attention.output.LayerNorm"))?,
            intermediate: self.linear(&vb.pp("intermediate.dense"), hidden_size, intermediate_size)?,
            output: self.linear(&vb.pp("output.dense"), intermediate_size, hidden_size)?,
            output_norm: self.layer_norm(&vb.pp("output.LayerNorm"))?,
            num_attention_heads: self.config.num_attention_heads,
        })
    }

    fn linear(&self, vb: &VarBuilder, n_in: usize, n_out: usize) -> Result<Linear, EncoderError> {
        let weight = self.tensor(vb, "weight", &[n_out, n_in])?.t()?.contiguous()?;
        Ok(Linear { weight, bias: self.tensor(vb, "bias", &[n_out])? })
    }

    fn layer_norm(&self, vb: &VarBuilder) -> Result<LayerNorm, EncoderError> {
        let [weight, bias] = ["weight", "bias"].map(|name| self.tensor(vb, name, &[self.config.hidden_size]));
        Ok(LayerNorm::new(weight?, bias?, self.config.layer_norm_eps)?)
    }

    /// A tensor of the given shape. Weights that are not finite are refused here, where the name is known.
    fn tensor(&self, vb: &VarBuilder, name: &str, shape: &[usize]) -> Result<Tensor, EncoderError> {
        let tensor = vb.get(shape, name).map_err(EncoderError::InvalidWeights)?;
        // A sum is finite only where every summand is; the weights of a trained model do not overflow it.
        let sum = tensor.sum_all()?.to_scalar::<f32>()?;
        if !sum.is_finite() {
            return Err(EncoderError::NonFiniteWeight { name: format!("{}.{name}", vb.prefix()) });
        }
        Ok(tensor)
    }
}

fn default_device() -> TensorResult<Device> {
    if cfg!(feature = "cuda") {
        Device::new_cuda(0)
    } else if cfg!(feature = "metal") {
        Device::new_metal(0)
    } else {
        Ok(Device::Cpu)
    }
}
