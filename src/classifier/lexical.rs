//! Words and character sequences of a text as a sparse TF-IDF vector.
//!
//! A [`Block`] says which n-grams to take; a [`Lexicon`] knows which of them mattered in training, with their inverse document
//! frequency. N-grams are kept as 64-bit hashes, so a vocabulary is two short tensors and a look-up allocates nothing. Training
//! and serving call [`Lexicon::vectorize`], so both see the same features. It refuses to know types or weights; see `heads`.

use serde::{Deserialize, Serialize};

use super::ClassifierError;

/// Characters of a text that lexical features look at: about what 16 windows of the encoder hold. The token count tells the caller
/// about the cut.
pub const MAX_CHARACTERS: usize = 16_000;

/// Stands between the two words of a pair with a gap, so that it differs from a pair of neighbours.
const GAP: u8 = 0x1f;

/// Which n-grams a block takes from a text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Block {
    pub unit: Unit,
    /// Shortest n-gram, in units; at least 1.
    pub min_n: usize,
    /// Longest n-gram, in units.
    pub max_n: usize,
    /// Words that may lie between the two words of a pair; 0 for neighbours only. Words only.
    #[serde(default)]
    pub max_gap: usize,
    /// Characters of a word that are kept, against inflection; 0 keeps all. Words only.
    #[serde(default)]
    pub stem_characters: usize,
    /// Whether every digit counts as 0: order numbers tell nothing, their form does.
    #[serde(default)]
    pub fold_digits: bool,
    /// Characters a word has at least. Words only.
    #[serde(default)]
    pub min_word_characters: usize,
    /// Length of the block's vector in the whole.
    pub weight: f32,
}

/// What an n-gram is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    Words,
    /// Characters within one word, a space at either end of it (scikit-learn's `char_wb`).
    Characters,
}

/// A text as weights over the lexicon's features.
#[derive(Debug, Clone, PartialEq)]
pub struct LexicalFeatures {
    /// `(feature, value)`, features ascending. Each block has length `weight`, or 0 where nothing in it is known.
    pub entries: Vec<(u32, f32)>,
    pub health: LexicalHealth,
}

/// How much of a text the lexicon knows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LexicalHealth {
    pub n_words: usize,
    /// Share of the words that occurred in training, 0 to 1; 0 for a text without words.
    pub known_words: f32,
    /// Share of the character n-grams that occurred in training, 0 to 1.
    pub known_characters: f32,
}

/// Calls `visit` with the hash of every n-gram of `text` in block number `block_idx`, and whether it is a single word.
///
/// Looks at the first [`MAX_CHARACTERS`] characters, lower-cased.
pub fn for_each_gram(block_idx: usize, block: &Block, text: &str, mut visit: impl FnMut(u64, bool)) {
    let end = text.char_indices().nth(MAX_CHARACTERS).map_or(text.len(), |(offset, _)| offset);
    let mut lowered = text[..end].to_lowercase();
    if block.fold_digits {
        lowered = lowered.chars().map(|character| if character.is_ascii_digit() { '0' } else { character }).collect();
    }
    let seed = GramHash::new(block_idx);
    match block.unit {
        Unit::Words => word_grams(seed, block, &lowered, &mut visit),
        Unit::Characters => character_grams(seed, block, &lowered, &mut visit),
    }
}

fn word_grams(seed: GramHash, block: &Block, text: &str, visit: &mut impl FnMut(u64, bool)) {
    let words: Vec<&str> = text
        .split(|character: char| !(character.is_alphanumeric() || character == '_'))
        .filter(|word| !word.is_empty() && word.chars().take(block.min_word_characters).count() == block.min_word_characters)
        .map(|word| match block.stem_characters {
            0 => word,
            kept => &word[..word.char_indices().nth(kept).map_or(word.len(), |(offset, _)| offset)],
        })
        .collect();
    for n in block.min_n..=block.max_n {
        for gram in words.windows(n) {
            let mut hash = seed;
            for (position, word) in gram.iter().enumerate() {
                if position > 0 {
                    hash = hash.byte(b' ');
                }
                hash = hash.bytes(word.as_bytes());
            }
            visit(hash.finish(), n == 1);
        }
    }
    for gap in 1..=block.max_gap {
        for pair in words.windows(gap + 2) {
            let hash = seed.bytes(pair[0].as_bytes()).byte(GAP).bytes(pair[gap + 1].as_bytes());
            visit(hash.finish(), false);
        }
    }
}

fn character_grams(seed: GramHash, block: &Block, text: &str, visit: &mut impl FnMut(u64, bool)) {
    let mut padded = String::new();
    let mut bounds = Vec::new();
    for word in text.split_whitespace() {
        padded.clear();
        padded.push(' ');
        padded.push_str(word);
        padded.push(' ');
        bounds.clear();
        bounds.extend(padded.char_indices().map(|(offset, _)| offset));
        bounds.push(padded.len());
        let n_characters = bounds.len() - 1;
        for n in block.min_n..=block.max_n {
            // A word shorter than n counts once, as itself, and not again for a longer n.
            if n_characters <= n {
                visit(seed.bytes(padded.as_bytes()).finish(), false);
                break;
            }
            for start in 0..=n_characters - n {
                visit(seed.bytes(&padded.as_bytes()[bounds[start]..bounds[start + n]]).finish(), false);
            }
        }
    }
}

/// FNV-1a with a final mix, seeded by the block. Written out because a vocabulary outlives any library's choice of hash.
#[derive(Clone, Copy)]
struct GramHash(u64);

impl GramHash {
    fn new(block_idx: usize) -> Self {
        Self(0xcbf2_9ce4_8422_2325).byte(block_idx as u8)
    }

    fn byte(self, byte: u8) -> Self {
        Self((self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
    }

    fn bytes(self, bytes: &[u8]) -> Self {
        bytes.iter().fold(self, |hash, &byte| hash.byte(byte))
    }

    /// The mix of MurmurHash3: low bits of FNV alone are too regular for a table.
    fn finish(self) -> u64 {
        let mut hash = self.0;
        hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        hash ^ (hash >> 33)
    }
}

/// The n-grams that training kept. Feature `i` is the n-gram with hash `hashes[i]`.
#[derive(Debug, Clone)]
pub struct Lexicon {
    blocks: Vec<Block>,
    /// First feature of each block, and the number of features last.
    offsets: Vec<usize>,
    hashes: Vec<u64>,
    idf: Vec<f32>,
    /// Open addressing over `hashes`; `EMPTY` where a slot is free. At most half full.
    slots: Vec<u32>,
}

const EMPTY: u32 = u32::MAX;

impl Lexicon {
    /// Puts a lexicon together. `features[b]` lists block b's n-grams as `(hash, idf)`, hashes ascending.
    ///
    /// # Errors
    /// [`ClassifierError::InvalidLexicon`] where a block takes no n-grams, hashes repeat or an idf is not positive.
    pub fn new(blocks: Vec<Block>, features: &[Vec<(u64, f32)>]) -> Result<Self, ClassifierError> {
        let refuse = |reason| Err(ClassifierError::InvalidLexicon { reason });
        if blocks.is_empty() || blocks.len() != features.len() {
            return refuse("it needs one list of n-grams for each of at least one block");
        }
        if blocks.iter().any(|block| block.min_n == 0 || block.min_n > block.max_n || block.max_n > 16 || block.max_gap > 16) {
            return refuse("a block takes n-grams of 1 to 16 units and gaps of at most 16");
        }
        if blocks.iter().any(|block| !(block.weight.is_finite() && block.weight > 0.0)) {
            return refuse("the weight of a block must be positive and finite");
        }
        let mut offsets = vec![0];
        let (mut hashes, mut idf) = (Vec::new(), Vec::new());
        for block in features {
            if !block.is_sorted_by(|a, b| a.0 < b.0) {
                return refuse("the hashes of a block must ascend");
            }
            hashes.extend(block.iter().map(|feature| feature.0));
            idf.extend(block.iter().map(|feature| feature.1));
            offsets.push(hashes.len());
        }
        if idf.iter().any(|&value: &f32| !(value.is_finite() && value > 0.0)) {
            return refuse("an inverse document frequency must be positive and finite");
        }
        if u32::try_from(hashes.len()).is_err() {
            return refuse("it has more n-grams than 32 bits can number");
        }
        let mut slots = vec![EMPTY; (hashes.len().max(1) * 2).next_power_of_two()];
        for (feature, &hash) in hashes.iter().enumerate() {
            let mut slot = hash as usize & (slots.len() - 1);
            while slots[slot] != EMPTY {
                if hashes[slots[slot] as usize] == hash {
                    return refuse("two blocks share a hash");
                }
                slot = (slot + 1) & (slots.len() - 1);
            }
            slots[slot] = feature as u32;
        }
        Ok(Self { blocks, offsets, hashes, idf, slots })
    }

    pub fn n_features(&self) -> usize {
        self.hashes.len()
    }

    pub fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    /// Number of features of each block.
    pub fn block_sizes(&self) -> Vec<usize> {
        self.offsets.windows(2).map(|bounds| bounds[1] - bounds[0]).collect()
    }

    pub fn hashes(&self) -> &[u64] {
        &self.hashes
    }

    pub fn idf(&self) -> &[f32] {
        &self.idf
    }

    /// Turns a text into its weights: per block `(1 + ln tf) · idf`, scaled to the block's length.
    pub fn vectorize(&self, text: &str) -> LexicalFeatures {
        let mut entries = Vec::new();
        let mut features = Vec::new();
        let mut words = Share::default();
        let mut characters = Share::default();
        for (block_idx, block) in self.blocks.iter().enumerate() {
            features.clear();
            let mut block_words = Share::default();
            for_each_gram(block_idx, block, text, |hash, is_word| {
                let feature = self.feature(hash);
                match block.unit {
                    Unit::Words if is_word => block_words.count(feature.is_some()),
                    Unit::Words => {}
                    Unit::Characters => characters.count(feature.is_some()),
                }
                features.extend(feature);
            });
            // The first block of whole words speaks for the text; stems of a second one would count the same words again.
            if words.total == 0 {
                words = block_words;
            }
            features.sort_unstable();
            let first = entries.len();
            for run in features.chunk_by(|a, b| a == b) {
                let tf = run.len() as f32;
                entries.push((run[0], (1.0 + tf.ln()) * self.idf[run[0] as usize]));
            }
            let norm = entries[first..].iter().map(|entry| entry.1 * entry.1).sum::<f32>().sqrt();
            for entry in &mut entries[first..] {
                entry.1 *= block.weight / norm;
            }
        }
        let health =
            LexicalHealth { n_words: words.total, known_words: words.known_share(), known_characters: characters.known_share() };
        LexicalFeatures { entries, health }
    }

    fn feature(&self, hash: u64) -> Option<u32> {
        let mut slot = hash as usize & (self.slots.len() - 1);
        loop {
            match self.slots[slot] {
                EMPTY => return None,
                feature if self.hashes[feature as usize] == hash => return Some(feature),
                _ => slot = (slot + 1) & (self.slots.len() - 1),
            }
        }
    }
}

#[derive(Default)]
struct Share {
    known: usize,
    total: usize,
}

impl Share {
    fn count(&mut self, known: bool) {
        self.known += usize::from(known);
        self.total += 1;
    }

    fn known_share(&self) -> f32 {
        if self.total == 0 { 0.0 } else { self.known as f32 / self.total as f32 }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn block(unit: Unit, min_n: usize, max_n: usize) -> Block {
        Block { unit, min_n, max_n, max_gap: 0, stem_characters: 0, fold_digits: false, min_word_characters: 0, weight: 1.0 }
    }

    fn hashes(block: &Block, text: &str) -> Vec<u64> {
        let mut hashes = Vec::new();
        for_each_gram(0, block, text, |hash, _| hashes.push(hash));
        hashes
    }

    fn hash_of(gram: &str) -> u64 {
        GramHash::new(0).bytes(gram.as_bytes()).finish()
    }

    #[test]
    fn n_grams_are_those_of_scikit_learn() {
        #[track_caller]
        fn check(block: &Block, text: &str, expected: &[&str]) {
            let expected: Vec<u64> = expected.iter().map(|gram| hash_of(gram)).collect();
            assert_eq!(hashes(block, text), expected, "{text:?}");
        }

        let words = block(Unit::Words, 1, 2);
        check(&words, "Short pick, line-2", &["short", "pick", "line", "2", "short pick", "pick line", "line 2"]);
        check(&Block { min_word_characters: 2, ..words.clone() }, "a short 2", &["short"]);
        check(&Block { fold_digits: true, max_n: 1, ..words.clone() }, "SO 4711", &["so", "0000"]);
        check(&Block { stem_characters: 5, max_n: 1, ..words.clone() }, "damaged größeres", &["damag", "größe"]);
        check(&Block { max_gap: 1, max_n: 1, ..words.clone() }, "not yet here", &["not", "yet", "here", "not\u{1f}here"]);
        check(&words, "", &[]);
        // CountVectorizer(analyzer="char_wb", ngram_range=(2, 3))
        check(&block(Unit::Characters, 2, 3), "ab c", &[" a", "ab", "b ", " ab", "ab ", " c", "c ", " c "]);
        check(&block(Unit::Characters, 2, 5), "x", &[" x", "x ", " x "]);
    }

    #[test]
    fn a_vector_has_the_length_of_its_blocks() {
        let words = Block { weight: 0.5, ..block(Unit::Words, 1, 1) };
        let mut features = vec![(hash_of("pick"), 2.0), (hash_of("short"), 1.0)];
        features.sort_by_key(|feature| feature.0);
        let lexicon = Lexicon::new(vec![words], &[features]).unwrap();
        let vector = lexicon.vectorize("short pick, short of boxes");
        let norm: f32 = vector.entries.iter().map(|entry| entry.1 * entry.1).sum();
        assert!((norm.sqrt() - 0.5).abs() < 1e-6);
        assert_eq!(vector.health.n_words, 5);
        assert!((vector.health.known_words - 0.6).abs() < 1e-6);
        assert!(lexicon.vectorize("nothing known").entries.is_empty());
        assert!(lexicon.vectorize("").entries.is_empty());
    }

    #[test]
    fn a_long_text_costs_no_more_than_its_first_characters() {
        let text = "short pick ".repeat(3_000);
        let n_seen = hashes(&block(Unit::Words, 1, 1), &text).len();
        assert!(n_seen <= MAX_CHARACTERS / 5, "{n_seen}");
    }

    #[test]
    fn blocks_do_not_share_hashes() {
        let words = block(Unit::Words, 1, 1);
        let mut seen = HashSet::new();
        for block_idx in 0..4 {
            for_each_gram(block_idx, &words, "one two three", |hash, _| assert!(seen.insert(hash)));
        }
    }

    #[test]
    fn a_contradictory_lexicon_is_refused() {
        #[track_caller]
        fn check(block: Block, features: &[(u64, f32)]) {
            let refusal = Lexicon::new(vec![block], &[features.to_vec()]).unwrap_err();
            assert!(matches!(refusal, ClassifierError::InvalidLexicon { .. }), "{refusal}");
        }

        let words = block(Unit::Words, 1, 1);
        check(Block { min_n: 0, ..words.clone() }, &[(1, 1.0)]);
        check(Block { max_n: 99, ..words.clone() }, &[(1, 1.0)]);
        check(Block { weight: f32::NAN, ..words.clone() }, &[(1, 1.0)]);
        check(words.clone(), &[(2, 1.0), (1, 1.0)]);
        check(words.clone(), &[(1, 1.0), (1, 1.0)]);
        check(words, &[(1, f32::NAN)]);
    }
}
