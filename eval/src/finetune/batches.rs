//! What a step sees: shuffled texts in micro-batches, with some of their tokens left out.

use std::sync::Arc;

use anyhow::Result;
use candle_core::{Device, Tensor};
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64;

use super::FineTuneParams;
use super::cache::Cache;

/// Parts of a batch whose gradients are computed by themselves; fixed, so that the sum does not depend on the cores.
pub(super) const N_MICRO_BATCHES: usize = 4;

/// Texts of a part where nothing is trained.
const WHOLE_TEXTS: usize = 16;

/// Part of a batch: which texts, and which of their tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct MicroBatch {
    pub texts: Vec<usize>,
    /// Tokens that stay of each text.
    kept: Vec<Vec<usize>>,
    /// Seed of the embedding's dropout.
    pub seed: u64,
}

impl MicroBatch {
    /// Shape `(n_tokens, hidden_size)`, and where each text begins and the last one ends.
    pub(super) fn hidden_states(&self, cache: &Cache) -> Result<(Tensor, Arc<[usize]>)> {
        let mut values = Vec::new();
        let mut cu_seqlens = vec![0];
        for (&text, kept) in self.texts.iter().zip(&self.kept) {
            cache.append(text, kept.iter().copied(), &mut values);
            cu_seqlens.push(values.len() / cache.hidden_size());
        }
        let shape = (values.len() / cache.hidden_size(), cache.hidden_size());
        Ok((Tensor::from_vec(values, shape, &Device::Cpu)?, cu_seqlens.into()))
    }
}

/// The batches of one epoch, in their order. An epoch's randomness depends on seed and epoch alone, so training can stop between
/// two and go on.
pub(super) fn batches(cache: &Cache, params: &FineTuneParams, seed: u64, epoch: usize) -> Vec<Vec<MicroBatch>> {
    let mut rng = Pcg64::seed_from_u64(seed.wrapping_mul(1_000_003).wrapping_add(epoch as u64));
    let mut order: Vec<usize> = (0..cache.n_texts()).collect();
    order.shuffle(&mut rng);
    order.chunks(params.batch_size).map(|batch| micro_batches(cache, batch, params, &mut rng)).collect()
}

/// Every text once, whole, in order.
pub(super) fn whole_texts(cache: &Cache) -> Vec<MicroBatch> {
    let texts: Vec<usize> = (0..cache.n_texts()).collect();
    let part = |texts: &[usize]| {
        let kept = texts.iter().map(|&text| (0..cache.n_tokens(text)).collect()).collect();
        MicroBatch { texts: texts.to_vec(), kept, seed: 0 }
    };
    texts.chunks(WHOLE_TEXTS).map(part).collect()
}

fn micro_batches(cache: &Cache, batch: &[usize], params: &FineTuneParams, rng: &mut Pcg64) -> Vec<MicroBatch> {
    let mut batch = batch.to_vec();
    // Dealt out from the longest to the shortest, so that the parts cost about the same.
    batch.sort_by_key(|&text| std::cmp::Reverse(cache.n_tokens(text)));
    let n_parts = batch.len().min(N_MICRO_BATCHES);
    let part = |part: usize| {
        let texts: Vec<usize> = batch.iter().skip(part).step_by(n_parts).copied().collect();
        let kept = texts.iter().map(|&text| kept(cache.n_tokens(text), params.token_dropout, rng)).collect();
        MicroBatch { texts, kept, seed: rng.random() }
    };
    (0..n_parts).map(part).collect()
}

/// All tokens but a random share; the first and the last, which mark the ends of a text, stay.
fn kept(n_tokens: usize, dropout: f64, rng: &mut Pcg64) -> Vec<usize> {
    (0..n_tokens).filter(|&token| token == 0 || token + 1 == n_tokens || !rng.random_bool(dropout)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_is_seen_once_an_epoch_and_epochs_differ() {
        let cache = Cache::of_zeros(4, &(0..70).map(|text| 2 + text % 5).collect::<Vec<_>>());
        let params = FineTuneParams { batch_size: 16, ..FineTuneParams::DEFAULT };
        let texts = |epoch| -> Vec<usize> {
            let batches = batches(&cache, &params, 7, epoch);
            assert_eq!(batches.len(), 5);
            batches.iter().flatten().flat_map(|micro| micro.texts.iter().copied()).collect()
        };
        let (first, second) = (texts(0), texts(1));
        assert_ne!(first, second);
        assert_eq!(first, texts(0));
        for mut seen in [first, second] {
            seen.sort_unstable();
            assert_eq!(seen, (0..70).collect::<Vec<_>>());
        }
    }

    #[test]
    fn the_ends_of_a_text_stay() {
        let kept = kept(200, 0.3, &mut Pcg64::seed_from_u64(1));
        assert!((110..170).contains(&kept.len()), "{}", kept.len());
        assert_eq!((kept[0], kept[kept.len() - 1]), (0, 199));
    }
}
