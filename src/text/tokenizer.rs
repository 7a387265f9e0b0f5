//! The synchronous tokenizer: one normalised text in, token ids and an honest count out.
//!
//! A thin owner of the `tokenizers` crate that sets what a shipped `tokenizer.json` should not decide: no padding, no truncation
//! (long texts come in windows), and no way for a text to spell a special token. It refuses to know threads; see `worker`.

use super::{NormalizedText, TextError, TokenCount, TokenizedText};

/// What one text costs besides its own tokens: `[CLS]` before it and `[SEP]` after it.
const N_SPECIAL_TOKENS: usize = 2;

/// Tokens that two neighbouring windows share, so that a sentence at the border is whole in one of them.
const WINDOW_OVERLAP: usize = 32;

/// A tokenizer with the truncation that Sluice wants.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    max_tokens: usize,
    max_windows: usize,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`. `max_tokens` bounds the tokens of a window, special tokens included, `max_windows` the windows of a
    /// text.
    ///
    /// A malformed file can abort the process inside the `tokenizers` crate, so check its hash before calling.
    ///
    /// # Errors
    /// [`TextError::InvalidTokenizer`], [`TextError::UnsupportedTokenizer`] where an empty text does not give exactly the two
    /// special tokens, [`TextError::MaxTokensTooSmall`], [`TextError::NoWindows`].
    pub fn from_bytes(tokenizer_json: &[u8], max_tokens: usize, max_windows: usize) -> Result<Self, TextError> {
        if max_windows == 0 {
            return Err(TextError::NoWindows);
        }
        if max_tokens <= N_SPECIAL_TOKENS {
            return Err(TextError::MaxTokensTooSmall { max_tokens });
        }
        let mut inner = tokenizers::Tokenizer::from_bytes(tokenizer_json).map_err(TextError::InvalidTokenizer)?;
        // Shipped files carry the padding and truncation of whoever saved them; MiniLM's pads every text to 128.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(TextError::InvalidTokenizer)?;
        // `[SEP]` typed by a person is text; read as a special token it would let a narrative end itself early.
        inner.set_encode_special_tokens(true);

        let tokenizer = Self { inner, max_tokens, max_windows };
        let n_tokens = tokenizer.encode("")?.len();
        if n_tokens != N_SPECIAL_TOKENS {
            return Err(TextError::UnsupportedTokenizer { n_tokens });
        }
        Ok(tokenizer)
    }

    /// Most tokens a window has, special tokens included.
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// Tokenises one text. One that does not fit into `max_tokens` comes in windows that overlap, each between its own two special
    /// tokens; what lies beyond the last window is lost, and `count` tells.
    ///
    /// # Errors
    /// [`TextError::Tokenize`] where the model of the file has no token for a piece of the text.
    pub fn tokenize(&self, text: &NormalizedText) -> Result<TokenizedText, TextError> {
        let ids = self.encode(text.as_str())?;
        let total = ids.len();
        if total <= self.max_tokens {
            return Ok(TokenizedText { windows: vec![ids], count: TokenCount { total, used: total } });
        }
        let (opening, closing) = (ids[0], ids[total - 1]);
        let inner = &ids[1..total - 1];
        let width = self.max_tokens - N_SPECIAL_TOKENS;
        // Small windows cannot spare more than a quarter.
        let step = width - WINDOW_OVERLAP.min(width / 4);
        let mut windows = Vec::new();
        let mut end = 0;
        while end < inner.len() && windows.len() < self.max_windows {
            let start = windows.len() * step;
            end = (start + width).min(inner.len());
            let mut window = Vec::with_capacity(end - start + N_SPECIAL_TOKENS);
            window.push(opening);
            window.extend_from_slice(&inner[start..end]);
            window.push(closing);
            windows.push(window);
        }
        Ok(TokenizedText { windows, count: TokenCount { total, used: end + N_SPECIAL_TOKENS } })
    }

    fn encode(&self, text: &str) -> Result<Vec<u32>, TextError> {
        let encoding = self.inner.encode_fast(text, true).map_err(TextError::Tokenize)?;
        Ok(encoding.get_ids().to_vec())
    }
}
