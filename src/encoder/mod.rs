//! Token ids become sentence embeddings.
//!
//! The trait [`Encoder`] takes a [`PackedBatch`]: the tokens of all texts one after the other, `cu_seqlens` saying where each
//! begins. No padding exists, so none is computed and no text can see its neighbours: an embedding is the same alone and in any
//! batch. One engine instance belongs to one thread and computes on that thread alone; several instances serve several cores,
//! which for short texts beats several cores on one instance. This room is the only one that knows candle, and it refuses to
//! know HTTP and policy. Next: `batching`, which feeds the engines; `candle`, the engine.

mod adapter;
mod candle;
mod kernels;
mod ops;

use serde::{Deserialize, Serialize};

pub use adapter::{Adapter, LAYER_PARTS, LowRank};
pub use candle::{AdaptedWeights, BertConfig, CandleEncoder};

/// A transformer that turns token sequences into sentence embeddings.
pub trait Encoder: Send {
    /// Encodes every sequence of the batch.
    ///
    /// Returns one L2-normalised row a sequence, in the order of the batch.
    ///
    /// # Errors
    /// [`EncoderError`]; then no sequence of the batch has an answer.
    fn encode(&mut self, batch: &PackedBatch) -> Result<Embeddings, EncoderError>;

    /// Length of an embedding.
    fn hidden_size(&self) -> usize;

    /// Tokens that one sequence may have at most.
    fn max_sequence_tokens(&self) -> usize;
}

/// Token sequences, packed: sequence `i` is `input_ids[cu_seqlens[i]..cu_seqlens[i + 1]]`. No sequence is empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackedBatch {
    input_ids: Vec<u32>,
    /// Cumulative lengths, from 0 to the number of tokens; one more than there are sequences.
    cu_seqlens: Vec<usize>,
}

impl PackedBatch {
    pub fn new() -> Self {
        Self { input_ids: Vec::new(), cu_seqlens: vec![0] }
    }

    /// Packs sequences in their order.
    ///
    /// # Errors
    /// [`EncoderError::EmptySequence`].
    pub fn from_sequences<'a>(sequences: impl IntoIterator<Item = &'a [u32]>) -> Result<Self, EncoderError> {
        let mut batch = Self::new();
        for sequence in sequences {
            batch.push(sequence)?;
        }
        Ok(batch)
    }

    /// Appends one sequence.
    ///
    /// # Errors
    /// [`EncoderError::EmptySequence`].
    pub fn push(&mut self, sequence: &[u32]) -> Result<(), EncoderError> {
        if sequence.is_empty() {
            return Err(EncoderError::EmptySequence { sequence_idx: self.n_sequences() });
        }
        self.input_ids.extend_from_slice(sequence);
        self.cu_seqlens.push(self.input_ids.len());
        Ok(())
    }

    /// All tokens, shape `(n_tokens,)`.
    pub fn input_ids(&self) -> &[u32] {
        &self.input_ids
    }

    /// Where each sequence begins and the last one ends, shape `(n_sequences + 1,)`.
    pub fn cu_seqlens(&self) -> &[usize] {
        &self.cu_seqlens
    }

    pub fn n_tokens(&self) -> usize {
        self.input_ids.len()
    }

    pub fn n_sequences(&self) -> usize {
        self.cu_seqlens.len() - 1
    }

    pub fn is_empty(&self) -> bool {
        self.input_ids.is_empty()
    }

    /// The sequences in their order.
    pub fn sequences(&self) -> impl ExactSizeIterator<Item = &[u32]> {
        self.cu_seqlens.windows(2).map(|bounds| &self.input_ids[bounds[0]..bounds[1]])
    }
}

impl Default for PackedBatch {
    fn default() -> Self {
        Self::new()
    }
}

/// Sentence embeddings, shape `(n, hidden_size)`, each row finite and L2-normalised.
#[derive(Debug, Clone, PartialEq)]
pub struct Embeddings {
    values: Vec<f32>,
    hidden_size: usize,
}

impl Embeddings {
    /// Takes over rows that follow each other in `values`.
    ///
    /// # Panics
    /// Where `values` is not a whole number of rows.
    pub fn from_rows(values: Vec<f32>, hidden_size: usize) -> Self {
        assert!(hidden_size > 0 && values.len().is_multiple_of(hidden_size), "values are whole rows");
        Self { values, hidden_size }
    }

    /// Number of rows.
    pub fn n(&self) -> usize {
        self.values.len() / self.hidden_size
    }

    pub fn hidden_size(&self) -> usize {
        self.hidden_size
    }

    pub fn row(&self, row_idx: usize) -> &[f32] {
        &self.values[row_idx * self.hidden_size..][..self.hidden_size]
    }

    pub fn rows(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        self.values.chunks_exact(self.hidden_size)
    }
}

/// Which engine encodes, how often, and how much of a text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EncoderConfig {
    pub engine: Engine,
    /// Engine instances, each on a thread of its own. 0 stands for one a core.
    pub workers: usize,
    /// Tokens that the encoder sees at once, special tokens included; MiniLM was trained on 256.
    pub max_tokens: usize,
    /// Overlapping windows of `max_tokens` that a longer text is read in; what lies beyond them is not seen, and the answer says so.
    pub max_windows: usize,
}

impl EncoderConfig {
    /// The number of engine instances, with 0 resolved to the cores this process may use.
    pub fn n_workers(&self) -> usize {
        match self.workers {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            workers => workers,
        }
    }
}

impl Default for EncoderConfig {
    fn default() -> Self {
        Self { engine: Engine::Candle, workers: 0, max_tokens: 256, max_windows: 16 }
    }
}

/// The code that runs an encoder model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Engine {
    /// f32 on candle tensors: the reference, and the way to a GPU.
    Candle,
}

/// Why an encoder was not loaded or a batch was not encoded.
#[derive(Debug, thiserror::Error)]
pub enum EncoderError {
    #[error("`config.json` of the encoder cannot be read")]
    InvalidConfig(#[source] serde_json::Error),
    #[error("the encoder's `{field}` is {found}; {supported} is supported")]
    UnsupportedConfig { field: &'static str, found: String, supported: &'static str },
    #[error("the encoder's weights do not fit its `config.json`")]
    InvalidWeights(#[source] candle_core::Error),
    #[error("the encoder's weight `{name}` is not finite")]
    NonFiniteWeight { name: String },
    #[error("the adapter cannot be read")]
    InvalidAdapter(#[source] candle_core::Error),
    #[error("the adapter changes {found}; this encoder has {expected}")]
    AdapterMismatch { found: String, expected: String },
    #[error("the batch has no sequence")]
    EmptyBatch,
    #[error("sequence {sequence_idx} has no token")]
    EmptySequence { sequence_idx: usize },
    #[error("sequence {sequence_idx} has {n_tokens} tokens; at most {max_tokens} fit")]
    SequenceTooLong { sequence_idx: usize, n_tokens: usize, max_tokens: usize },
    #[error("token {token_id} is not in the vocabulary of {vocab_size}")]
    UnknownToken { token_id: u32, vocab_size: usize },
    #[error("the embedding of sequence {sequence_idx} is not a finite direction")]
    NonFinite { sequence_idx: usize },
    #[error("the encoder panicked")]
    Panicked,
    #[error("the encoder gave {found} embeddings for {expected} sequences")]
    WrongCount { found: usize, expected: usize },
    #[error("tensor operation failed")]
    Tensor(#[from] candle_core::Error),
}
