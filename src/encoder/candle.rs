//! The reference engine: a BERT forward pass over packed tokens on candle tensors, in f32.
//!
//! Architecture and names follow `transformers/models/bert/modeling_bert.py` (v4.8.2, which saved the checkpoint), pooling follows
//! sentence-transformers: mean over all tokens of a text, special ones included, then L2 normalisation. Linear layers run over
//! `(n_tokens, hidden_size)` of the whole batch, attention over each sequence by itself. Inference only: the fused operations
//! have no backward pass. Next: `ops`, the operations; `kernels`, their inner loops.

use candle_core::{DType, Device, Result as TensorResult, Tensor};
use candle_nn::VarBuilder;
use serde::Deserialize;

use super::ops::{Activation, LayerNorm, add_layer_norm, attention, linear};
use super::{Embeddings, Encoder, EncoderError, PackedBatch, kernels};

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

    /// Hidden states of the last layer, shape `(n_tokens, hidden_size)`.
    fn forward(&self, batch: &PackedBatch) -> TensorResult<Tensor> {
        let input_ids = Tensor::new(batch.input_ids(), &self.device)?;
        let position_ids: Vec<u32> = batch.sequences().flat_map(|sequence| 0..sequence.len() as u32).collect();
        let position_ids = Tensor::new(position_ids, &self.device)?;
        let words = self.word_embeddings.index_select(&input_ids, 0)?;
        let positions = self.position_embeddings.index_select(&position_ids, 0)?;
        let mut hidden_states = add_layer_norm(&words, &positions, &self.embeddings_norm)?;
        for layer in &self.layers {
            hidden_states = layer.forward(&hidden_states, batch.cu_seqlens())?;
        }
        Ok(hidden_states)
    }
}

impl Encoder for CandleEncoder {
    fn encode(&mut self, batch: &PackedBatch) -> Result<Embeddings, EncoderError> {
        self.check(batch)?;
        let hidden_states = self.forward(batch)?.flatten_all()?.to_vec1::<f32>()?;
        let hidden_size = self.config.hidden_size;
        let mut pooled_output = vec![0.0; batch.n_sequences() * hidden_size];
        let rows = pooled_output.chunks_exact_mut(hidden_size).zip(batch.cu_seqlens().windows(2));
        for (sequence_idx, (row, bounds)) in rows.enumerate() {
            // The sum has the direction of the mean, and only the direction survives normalisation.
            kernels::sum_rows(&hidden_states[bounds[0] * hidden_size..bounds[1] * hidden_size], row);
            let norm = row.iter().map(|value| value * value).sum::<f32>().sqrt();
            if !norm.is_finite() || norm == 0.0 {
                return Err(EncoderError::NonFinite { sequence_idx });
            }
            row.iter_mut().for_each(|value| *value /= norm);
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

impl Layer {
    fn forward(&self, hidden_states: &Tensor, cu_seqlens: &[usize]) -> TensorResult<Tensor> {
        let qkv = self.qkv.forward(hidden_states, Activation::None)?;
        let context = attention(&qkv, cu_seqlens, self.num_attention_heads)?;
        let attended = self.attention_output.forward(&context, Activation::None)?;
        let attended = add_layer_norm(&attended, hidden_states, &self.attention_norm)?;
        let intermediate = self.intermediate.forward(&attended, Activation::Gelu)?;
        let output = self.output.forward(&intermediate, Activation::None)?;
        add_layer_norm(&output, &attended, &self.output_norm)
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
