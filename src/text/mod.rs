//! From a narrative to token ids: normalise, tokenise off the hot path, truncate and say so.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How much of a text the encoder saw, in tokens including the two special ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TokenCount {
    pub total: usize,
    pub used: usize,
}

/// A narrative in the one form that tokenizer and lexical features see: NFKC, no zero-width or bidi controls, single spaces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NormalizedText(std::sync::Arc<str>);

impl NormalizedText {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Normalises a narrative.
pub fn normalize(_narrative: &str) -> NormalizedText {
    todo!()
}

/// A text as the encoder takes it.
#[derive(Debug, Clone)]
pub struct TokenizedText {
    /// At most `max_tokens`, special tokens included.
    pub input_ids: Vec<u32>,
    pub count: TokenCount,
}

/// Why a text was not tokenised.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    #[error("the tokenizer worker has ended")]
    WorkerGone,
}

/// The cloneable end of the tokenizer threads.
#[derive(Debug, Clone)]
pub struct Handle {}

impl Handle {
    /// Tokenises one text off the async threads.
    pub async fn tokenize(&self, _text: NormalizedText) -> Result<TokenizedText, TextError> {
        todo!()
    }
}
