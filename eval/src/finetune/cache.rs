//! What the untrained blocks make of each text, computed once and kept in half precision.

use anyhow::Result;
use half::f16;
use half::slice::HalfFloatSliceExt;
use sluice::encoder::{CandleEncoder, PackedBatch};

use super::TrainingText;
use crate::parallel::in_parallel;

/// Tokens a forward pass takes at once.
const BATCH_TOKENS: usize = 1_024;

/// Rows of `hidden_size` numbers, one a token, for every text.
#[derive(Debug)]
pub(super) struct Cache {
    hidden_size: usize,
    texts: Vec<Vec<f16>>,
}

impl Cache {
    /// Runs the blocks before `first_layer` over the first `max_tokens` tokens of every text, the closing one included.
    pub(super) fn new(
        encoder: &CandleEncoder,
        texts: &[TrainingText<'_>],
        first_layer: usize,
        max_tokens: usize,
        done: &(dyn Fn(usize) + Sync),
    ) -> Result<Self> {
        let hidden_size = encoder.config().hidden_size;
        let cut: Vec<Vec<u32>> = texts.iter().map(|text| cut(text.input_ids, max_tokens)).collect();
        let mut batches = vec![Vec::new()];
        let mut n_tokens = 0;
        for (idx, ids) in cut.iter().enumerate() {
            if n_tokens + ids.len() > BATCH_TOKENS && n_tokens > 0 {
                batches.push(Vec::new());
                n_tokens = 0;
            }
            n_tokens += ids.len();
            batches.last_mut().expect("there is a batch").push(idx);
        }
        let rows = in_parallel(&batches, |batch| {
            let packed = PackedBatch::from_sequences(batch.iter().map(|&idx| cut[idx].as_slice()))?;
            let values = encoder.hidden_states(&packed, first_layer)?.flatten_all()?.to_vec1::<f32>()?;
            let mut texts = Vec::with_capacity(batch.len());
            for bounds in packed.cu_seqlens().windows(2) {
                let values = &values[bounds[0] * hidden_size..bounds[1] * hidden_size];
                let mut text = vec![f16::ZERO; values.len()];
                text.convert_from_f32_slice(values);
                texts.push(text);
            }
            done(batch.len());
            Ok(texts)
        })?;
        Ok(Self { hidden_size, texts: rows.into_iter().flatten().collect() })
    }

    #[cfg(test)]
    pub(super) fn of_zeros(hidden_size: usize, n_tokens: &[usize]) -> Self {
        Self { hidden_size, texts: n_tokens.iter().map(|n_tokens| vec![f16::ZERO; n_tokens * hidden_size]).collect() }
    }

    pub(super) fn n_texts(&self) -> usize {
        self.texts.len()
    }

    pub(super) fn hidden_size(&self) -> usize {
        self.hidden_size
    }

    pub(super) fn n_tokens(&self, text: usize) -> usize {
        self.texts[text].len() / self.hidden_size
    }

    /// Appends the rows of these tokens of a text to `out`.
    pub(super) fn append(&self, text: usize, tokens: impl Iterator<Item = usize>, out: &mut Vec<f32>) {
        for token in tokens {
            out.extend(self.texts[text][token * self.hidden_size..][..self.hidden_size].iter().map(|value| value.to_f32()));
        }
    }
}

/// The first tokens and the one that closes the text.
fn cut(input_ids: &[u32], max_tokens: usize) -> Vec<u32> {
    let mut ids = input_ids[..input_ids.len().min(max_tokens)].to_vec();
    if let (Some(last), Some(&closing)) = (ids.last_mut(), input_ids.last()) {
        *last = closing;
    }
    ids
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_is_cut_and_keeps_its_end() {
        assert_eq!(cut(&[1, 2, 3, 4, 5], 3), [1, 2, 5]);
        assert_eq!(cut(&[1, 2], 3), [1, 2]);
    }
}
