//! The synchronous tokenizer: one normalised text in, token ids and an honest count out.
//!
//! A thin owner of the `tokenizers` crate that sets what a shipped `tokenizer.json` should not decide: no padding, no truncation
//! of its own, and no way for a text to spell a special token. It refuses to know threads; see `worker`.

use super::{NormalizedText, TextError, TokenCount, TokenizedText};

/// What one text costs besides its own tokens: `[CLS]` before it and `[SEP]` after it.
const N_SPECIAL_TOKENS: usize = 2;

/// A tokenizer with the truncation that Sluice wants.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    max_tokens: usize,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`. `max_tokens` bounds a text's tokens, special tokens included.
    ///
    /// A malformed file can abort the process inside the `tokenizers` crate, so check its hash before calling.
    ///
    /// # Errors
    /// [`TextError::InvalidTokenizer`], [`TextError::UnsupportedTokenizer`] where an empty text does not give exactly the two
    /// special tokens, [`TextError::MaxTokensTooSmall`].
    pub fn from_bytes(tokenizer_json: &[u8], max_tokens: usize) -> Result<Self, TextError> {
        if max_tokens <= N_SPECIAL_TOKENS {
            return Err(TextError::MaxTokensTooSmall { max_tokens });
        }
        let mut inner = tokenizers::Tokenizer::from_bytes(tokenizer_json).map_err(TextError::InvalidTokenizer)?;
        // Shipped files carry the padding and truncation of whoever saved them; MiniLM's pads every text to 128.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(TextError::InvalidTokenizer)?;
        // `[SEP]` typed by a person is text; read as a special token it would let a narrative end itself early.
        inner.set_encode_special_tokens(true);

        let tokenizer = Self { inner, max_tokens };
        let n_tokens = tokenizer.encode("")?.len();
        if n_tokens != N_SPECIAL_TOKENS {
            return Err(TextError::UnsupportedTokenizer { n_tokens });
        }
        Ok(tokenizer)
    }

    /// Most tokens a tokenised text has, special tokens included.
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// Tokenises one text. A text of more than `max_tokens` loses its end but keeps the closing special token; `count` tells.
    ///
    /// # Errors
    /// [`TextError::Tokenize`] where the model of the file has no token for a piece of the text.
    pub fn tokenize(&self, text: &NormalizedText) -> Result<TokenizedText, TextError> {
        let mut input_ids = self.encode(text.as_str())?;
        let total = input_ids.len();
        if total > self.max_tokens {
            let closing = input_ids[total - 1];
            input_ids.truncate(self.max_tokens - 1);
            input_ids.push(closing);
        }
        let count = TokenCount { total, used: input_ids.len() };
        Ok(TokenizedText { input_ids, count })
    }

    fn encode(&self, text: &str) -> Result<Vec<u32>, TextError> {
        let encoding = self.inner.encode_fast(text, true).map_err(TextError::Tokenize)?;
        Ok(encoding.get_ids().to_vec())
    }
}
