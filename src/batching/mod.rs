//! Dynamic batching: a bounded queue as plain data, and the thin thread around it.

use std::time::{Duration, Instant};

use crate::encoder::EncoderError;

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
