//! Dynamic batching: a bounded queue as plain data, and the thin threads around it.
//!
//! [`spawn`] starts one thread for each engine instance. A thread that becomes idle takes at once what is most urgent and fits
//! its token budget: no timer delays a batch in the hope of company. Full is an answer, a deadline that passed or cannot be kept is an
//! answer, and an //! engine that fails or panics is an answer to exactly the texts it failed on. [`encode_all`] is the synchronous way for bulk
//! work. It refuses to know tensors. Next: `queue`, who goes next; `batcher`, the threads.

mod batcher;
mod queue;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::encoder::{Encoder, EncoderError, PackedBatch};

pub use batcher::{Handle, spawn};
pub use queue::{Batch, Entry, Queue};

/// How texts gather in front of the encoder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BatchingConfig {
    /// Tokens that one call of an engine computes at most. About 256 fill a core; more only makes the urgent wait for the rest.
    pub max_batch_tokens: usize,
    /// Texts that may wait; further ones are refused with the time after which to come again.
    pub queue_capacity: usize,
}

impl BatchingConfig {
    /// # Errors
    /// [`SpawnError::InvalidConfig`] for a zero.
    pub fn check(&self) -> Result<(), SpawnError> {
        for (field, value) in [("max_batch_tokens", self.max_batch_tokens), ("queue_capacity", self.queue_capacity)] {
            if value == 0 {
                return Err(SpawnError::InvalidConfig { field });
            }
        }
        Ok(())
    }
}

impl Default for BatchingConfig {
    fn default() -> Self {
        Self { max_batch_tokens: 256, queue_capacity: 1_024 }
    }
}

/// Why a text was not encoded.
#[derive(Debug, thiserror::Error)]
pub enum BatchingError {
    #[error("the encoder queue is full")]
    QueueFull { retry_after: Duration },
    #[error("the texts that wait before this one take longer than its deadline allows")]
    QueueTooSlow { retry_after: Duration },
    #[error("the deadline passed in the encoder queue")]
    DeadlineExceeded,
    #[error("the encoder worker has ended")]
    WorkerGone,
    #[error("the encoder failed")]
    Encoder(#[source] EncoderError),
}

/// Why the encoder threads did not start.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    #[error("`batching.{field}` must be at least 1")]
    InvalidConfig { field: &'static str },
    #[error("`encoder.max_tokens` is {max_tokens}; this encoder takes at most {max_sequence_tokens}")]
    MaxTokensTooLarge { max_tokens: usize, max_sequence_tokens: usize },
    #[error("the encoder cannot be loaded")]
    Encoder(#[source] EncoderError),
    #[error("no encoder thread could be started")]
    Thread(#[source] std::io::Error),
}

/// One text through the encoder, with where its time went.
#[derive(Debug, Clone)]
pub struct Encoded {
    /// Shape `(hidden_size,)`, L2-normalised.
    pub embedding: Vec<f32>,
    /// From push to the start of its batch.
    pub queue: Duration,
    /// The forward pass of its whole batch.
    pub encode: Duration,
}

/// Encodes token sequences on the calling thread, in batches of at most `max_batch_tokens` (a longer one makes a batch of its own).
///
/// Returns one L2-normalised embedding of shape `(hidden_size,)` a sequence, in their order. The same answer as through a
/// [`Handle`], for bulk work that has no callers to be fair to.
///
/// # Errors
/// The first batch's [`EncoderError`] that occurs; sequence indices in it count within that batch.
pub fn encode_all(encoder: &mut dyn Encoder, sequences: &[&[u32]], max_batch_tokens: usize) -> Result<Vec<Vec<f32>>, EncoderError> {
    let mut embeddings = Vec::with_capacity(sequences.len());
    let mut rest = sequences;
    while !rest.is_empty() {
        let mut batch = PackedBatch::new();
        while let Some((sequence, following)) = rest.split_first() {
            if !batch.is_empty() && batch.n_tokens() + sequence.len() > max_batch_tokens {
                break;
            }
            batch.push(sequence)?;
            rest = following;
        }
        embeddings.extend(encode_batch(encoder, &batch)?);
    }
    Ok(embeddings)
}

/// Encodes one batch and makes sure that every sequence has an answer of its own.
fn encode_batch(encoder: &mut dyn Encoder, batch: &PackedBatch) -> Result<Vec<Vec<f32>>, EncoderError> {
    let embeddings = encoder.encode(batch)?;
    if embeddings.n() != batch.n_sequences() {
        return Err(EncoderError::WrongCount { found: embeddings.n(), expected: batch.n_sequences() });
    }
    Ok(embeddings.rows().map(<[f32]>::to_vec).collect())
}
