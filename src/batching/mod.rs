//! Dynamic batching: a bounded queue as plain data, and the thin thread around it.

use std::time::{Duration, Instant};

use crate::encoder::{Encoder, EncoderError, PackedBatch};
use crate::text::TokenizedText;

/// Why a text was not encoded.
#[derive(Debug, thiserror::Error)]
pub enum BatchingError {
    #[error("the encoder queue is full")]
    QueueFull { retry_after: Duration },
    #[error("the deadline passed in the encoder queue")]
    DeadlineExceeded,
    #[error("the encoder worker has ended")]
    WorkerGone,
    #[error("the encoder failed")]
    Encoder(#[source] EncoderError),
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

#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BatchingConfig {
    pub queue_capacity: usize,
}

pub fn spawn(_engines: Vec<Box<dyn Encoder>>, _config: &BatchingConfig) -> Result<Handle, BatchingError> {
    todo!()
}

/// The cloneable end of the encoder queue.
#[derive(Debug, Clone)]
pub struct Handle {}

impl Handle {
    pub fn depth(&self) -> usize {
        todo!()
    }

    /// Waits for the embedding of one text.
    ///
    /// # Errors
    /// [`BatchingError::QueueFull`] at once where the queue has no room.
    pub async fn encode(&self, _input_ids: Vec<u32>, _deadline: Option<Instant>) -> Result<Encoded, BatchingError> {
        todo!()
    }
}

/// Encodes texts on the calling thread, in batches of at most `max_batch_tokens` (a longer text makes a batch of its own).
///
/// Returns one L2-normalised embedding of shape `(hidden_size,)` a text, in the order of `texts`. The same answer as through a
/// [`Handle`], for bulk work that has no callers to be fair to.
///
/// # Errors
/// The first batch's [`EncoderError`] that occurs; sequence indices in it count within that batch.
pub fn encode_all(
    encoder: &mut dyn Encoder,
    texts: &[TokenizedText],
    max_batch_tokens: usize,
) -> Result<Vec<Vec<f32>>, EncoderError> {
    let mut embeddings = Vec::with_capacity(texts.len());
    let mut rest = texts;
    while !rest.is_empty() {
        let mut batch = PackedBatch::new();
        let fitting = |text: &&TokenizedText, batch: &PackedBatch| {
            batch.is_empty() || batch.n_tokens() + text.input_ids.len() <= max_batch_tokens
        };
        while let Some(text) = rest.first().filter(|text| fitting(text, &batch)) {
            batch.push(&text.input_ids)?;
            rest = &rest[1..];
        }
        let rows = encoder.encode(&batch)?;
        if rows.n() != batch.n_sequences() {
            return Err(EncoderError::WrongCount { found: rows.n(), expected: batch.n_sequences() });
        }
        embeddings.extend(rows.rows().map(<[f32]>::to_vec));
    }
    Ok(embeddings)
}
