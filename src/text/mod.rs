//! From a narrative to token ids: normalise, tokenise off the hot path, cut into windows, say what was left out.
//!
//! [`normalize`] brings a narrative into the one form that tokenizer and lexical features see. [`Tokenizer`] turns it into ids,
//! synchronously; [`spawn`] puts both on threads of their own behind a cloneable [`Handle`], because a long narrative takes
//! milliseconds that no async thread has. It refuses to cut silently: a [`TokenCount`] says how much of a text was seen. Next:
//! `batching`, which takes the ids to the encoder.

mod normalize;
mod tokenizer;
mod worker;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use normalize::{NormalizedText, normalize, normalize_within};
pub use tokenizer::Tokenizer;
pub use worker::{Handle, spawn};

/// How much of a text the encoder saw, in tokens including the two special ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TokenCount {
    pub total: usize,
    pub used: usize,
}

/// A text as the encoder takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenizedText {
    /// The text in windows of at most `max_tokens`, special tokens included; one where the text fits. Neighbours overlap.
    pub windows: Vec<Vec<u32>>,
    pub count: TokenCount,
}

/// A narrative as the models take it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadText {
    pub text: NormalizedText,
    pub tokens: TokenizedText,
}

/// How the tokenizer threads are set up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TextConfig {
    /// Tokenizer threads. One keeps up with several encoder workers: a narrative costs a hundredth of its encoding.
    pub workers: usize,
    /// Texts that may wait for a tokenizer; further callers wait for a place instead of being refused, because the encoder's
    /// queue is where overload is answered.
    pub queue_capacity: usize,
}

impl TextConfig {
    /// # Errors
    /// [`TextError::InvalidConfig`] for a zero.
    pub fn check(&self) -> Result<(), TextError> {
        for (field, value) in [("workers", self.workers), ("queue_capacity", self.queue_capacity)] {
            if value == 0 {
                return Err(TextError::InvalidConfig { field });
            }
        }
        Ok(())
    }
}

impl Default for TextConfig {
    fn default() -> Self {
        Self { workers: 1, queue_capacity: 256 }
    }
}

/// Why a text was not tokenised.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    #[error("`tokenizer.json` cannot be read")]
    InvalidTokenizer(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("`tokenizer.json` does not enclose a text in two special tokens: an empty text gives {n_tokens} tokens")]
    UnsupportedTokenizer { n_tokens: usize },
    #[error("`max_windows` must be at least 1")]
    NoWindows,
    #[error("`max_tokens` is {max_tokens}; it must leave room for at least one token between the two special ones")]
    MaxTokensTooSmall { max_tokens: usize },
    #[error("`text.{field}` must be at least 1")]
    InvalidConfig { field: &'static str },
    #[error("the text has more than {max_chars} characters after normalising")]
    TooLong { max_chars: usize },
    #[error("the deadline passed before the text was tokenised")]
    DeadlineExceeded,
    #[error("the tokenizer refused the text")]
    Tokenize(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the tokenizer panicked on the text")]
    Panicked,
    #[error("no tokenizer thread could be started")]
    Spawn(#[source] std::io::Error),
    #[error("the tokenizer worker has ended")]
    WorkerGone,
}
