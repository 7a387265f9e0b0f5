//! Token ids become sentence embeddings.

/// Why a batch was not encoded.
#[derive(Debug, thiserror::Error)]
pub enum EncoderError {
    #[error("tensor operation failed")]
    Tensor(#[from] candle_core::Error),
}
