//! Fits a lexicon: which n-grams to keep, and how rare each is.

use std::collections::HashMap;

use anyhow::{Context, Result};
use sluice::classifier::lexical::{Block, Lexicon, Unit, for_each_gram};

/// What the default classifier reads: words and pairs, stems that stand near each other, and pieces of words.
///
/// Chosen by cross-validation over authors on the default narratives: folding digits is worth 1.4 points of accuracy, stems with
/// gaps 0.3; longer n-grams add nothing.
pub fn default_blocks() -> Vec<Block> {
    let words = Block {
        unit: Unit::Words,
        min_n: 1,
        max_n: 2,
        max_gap: 0,
        stem_characters: 0,
        fold_digits: true,
        min_word_characters: 0,
        weight: 0.5f32.sqrt(),
    };
    let stems = Block { max_gap: 2, stem_characters: 5, ..words.clone() };
    let characters = Block { unit: Unit::Characters, min_n: 2, max_n: 5, weight: 1.0, ..words.clone() };
    vec![words, stems, characters]
}

/// What everybody tries first: scikit-learn's `TfidfVectorizer(ngram_range=(1, 2))` beside `(analyzer="char_wb",
/// ngram_range=(2, 5))`, both with `sublinear_tf=True`.
pub fn floor_blocks() -> Vec<Block> {
    let words = Block {
        unit: Unit::Words,
        min_n: 1,
        max_n: 2,
        max_gap: 0,
        stem_characters: 0,
        fold_digits: false,
        min_word_characters: 2,
        weight: 1.0,
    };
    let characters = Block { unit: Unit::Characters, min_n: 2, max_n: 5, ..words.clone() };
    vec![words, characters]
}

/// How many n-grams a lexicon keeps.
#[derive(Debug, Clone, Copy)]
pub struct Selection {
    /// Texts an n-gram occurs in at least.
    pub min_document_frequency: usize,
    /// N-grams over all blocks at most; the rarest go first.
    pub max_features: usize,
}

/// Fits a lexicon on normalised texts. `idf = ln((1 + n) / (1 + df)) + 1`, as in scikit-learn.
pub fn fit_lexicon(texts: &[&str], blocks: Vec<Block>, selection: Selection) -> Result<Lexicon> {
    let mut frequencies: Vec<Vec<(u64, usize)>> = Vec::with_capacity(blocks.len());
    for (block_idx, block) in blocks.iter().enumerate() {
        let mut counts: HashMap<u64, usize> = HashMap::new();
        let mut seen = Vec::new();
        for text in texts {
            seen.clear();
            for_each_gram(block_idx, block, text, |hash, _| seen.push(hash));
            seen.sort_unstable();
            seen.dedup();
            for &hash in &seen {
                *counts.entry(hash).or_default() += 1;
            }
        }
        let mut kept: Vec<_> = counts.into_iter().filter(|&(_, count)| count >= selection.min_document_frequency).collect();
        kept.sort_unstable();
        frequencies.push(kept);
    }
    let cut = cut(&frequencies, selection.max_features);
    let n = texts.len() as f64;
    let features: Vec<Vec<(u64, f32)>> = frequencies
        .into_iter()
        .map(|block| {
            let kept = block.into_iter().filter(|&(_, count)| count >= cut);
            kept.map(|(hash, count)| (hash, (((1.0 + n) / (1.0 + count as f64)).ln() + 1.0) as f32)).collect()
        })
        .collect();
    Lexicon::new(blocks, &features).context("the n-grams make no lexicon")
}

/// The smallest document frequency that leaves at most `max_features`.
fn cut(frequencies: &[Vec<(u64, usize)>], max_features: usize) -> usize {
    let mut counts: Vec<usize> = frequencies.iter().flatten().map(|&(_, count)| count).collect();
    if counts.len() <= max_features {
        return 0;
    }
    counts.sort_unstable_by(|a, b| b.cmp(a));
    counts[max_features] + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rare_n_grams_go_first() {
        #[track_caller]
        fn check(min_document_frequency: usize, max_features: usize, expected: usize) {
            let block = Block { max_n: 1, ..floor_blocks().swap_remove(0) };
            let texts = ["short pick", "short line", "short pick again"];
            let selection = Selection { min_document_frequency, max_features };
            assert_eq!(fit_lexicon(&texts, vec![block], selection).unwrap().n_features(), expected);
        }

        check(1, 100, 4);
        check(2, 100, 2);
        check(1, 2, 2);
        check(1, 1, 1);
        // `line` and `again` occur once each: keeping one of them would be arbitrary.
        check(1, 3, 2);
    }
}
