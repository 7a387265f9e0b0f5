//! Two linear heads: one on the words of a text, one on its embedding.
//!
//! They err differently, so both speak and `calibration` weighs them. Each has one output a type and one more for "fits no type";
//! the one on the embedding also says of each type whether the text speaks of it at all, and how far the text lies from the
//! centres of the types. It refuses to normalise text and to know the taxonomy.

use super::ClassifierError;
use super::calibration::RawScores;
use super::lexical::Lexicon;

/// A linear map with a bias.
#[derive(Debug, Clone, PartialEq)]
pub struct Linear {
    n_outputs: usize,
    /// Shape `(n_inputs, n_outputs)`, row by row, so that the outputs of one input lie together.
    weight: Vec<f32>,
    /// Shape `(n_outputs,)`.
    bias: Vec<f32>,
}

impl Linear {
    /// # Errors
    /// [`ClassifierError::WrongShape`] where `weight` is not whole rows of the bias's length, [`ClassifierError::NonFinite`].
    pub fn new(name: &'static str, weight: Vec<f32>, bias: Vec<f32>) -> Result<Self, ClassifierError> {
        let n_outputs = bias.len();
        if n_outputs == 0 || !weight.len().is_multiple_of(n_outputs) {
            let expected = format!("rows of {n_outputs}");
            return Err(ClassifierError::WrongShape { name: name.to_owned(), found: vec![weight.len()], expected });
        }
        if !weight.iter().chain(&bias).all(|value| value.is_finite()) {
            return Err(ClassifierError::NonFinite { name: name.to_owned() });
        }
        Ok(Self { n_outputs, weight, bias })
    }

    pub fn n_inputs(&self) -> usize {
        self.weight.len() / self.n_outputs
    }

    pub fn n_outputs(&self) -> usize {
        self.n_outputs
    }

    pub fn weight(&self) -> &[f32] {
        &self.weight
    }

    pub fn bias(&self) -> &[f32] {
        &self.bias
    }

    /// Outputs for a sparse input of `(input, value)` pairs.
    ///
    /// # Panics
    /// Where an input's number is not under `n_inputs`.
    pub fn forward(&self, entries: impl IntoIterator<Item = (usize, f32)>) -> Vec<f32> {
        let mut outputs = self.bias.clone();
        for (input, value) in entries {
            let row = &self.weight[input * self.n_outputs..][..self.n_outputs];
            for (output, weight) in outputs.iter_mut().zip(row) {
                *output += value * weight;
            }
        }
        outputs
    }
}

/// The head on the embedding.
#[derive(Debug, Clone)]
pub struct DenseHead {
    /// Outputs: the types, "fits no type", then for each type whether the text speaks of it.
    pub linear: Linear,
    /// Centres of the types' training texts, shape `(n_types, hidden_size)`, each L2-normalised.
    pub centres: Vec<f32>,
}

/// The trained heads with the lexicon they read.
#[derive(Debug, Clone)]
pub struct Heads {
    lexicon: Lexicon,
    lexical: Linear,
    dense: DenseHead,
}

impl Heads {
    /// # Errors
    /// [`ClassifierError::WrongShape`] where heads and lexicon do not fit each other.
    pub fn new(lexicon: Lexicon, lexical: Linear, dense: DenseHead) -> Result<Self, ClassifierError> {
        let wrong = |name: &str, found, expected: usize| {
            Err(ClassifierError::WrongShape { name: name.to_owned(), found: vec![found], expected: expected.to_string() })
        };
        if lexical.n_inputs() != lexicon.n_features() {
            return wrong("lexical.weight", lexical.n_inputs(), lexicon.n_features());
        }
        if lexical.n_outputs() < 2 {
            return wrong("lexical.bias", lexical.n_outputs(), 2);
        }
        let n_types = lexical.n_outputs() - 1;
        if dense.linear.n_outputs() != 2 * n_types + 1 {
            return wrong("dense.bias", dense.linear.n_outputs(), 2 * n_types + 1);
        }
        if dense.centres.len() != n_types * dense.linear.n_inputs() {
            return wrong("dense.centres", dense.centres.len(), n_types * dense.linear.n_inputs());
        }
        if !dense.centres.iter().all(|value| value.is_finite()) {
            return Err(ClassifierError::NonFinite { name: "dense.centres".to_owned() });
        }
        Ok(Self { lexicon, lexical, dense })
    }

    /// Number of types; the lexical head has one output more.
    pub fn n_types(&self) -> usize {
        self.lexical.n_outputs() - 1
    }

    pub fn hidden_size(&self) -> usize {
        self.dense.linear.n_inputs()
    }

    pub fn lexicon(&self) -> &Lexicon {
        &self.lexicon
    }

    pub fn lexical(&self) -> &Linear {
        &self.lexical
    }

    pub fn dense(&self) -> &DenseHead {
        &self.dense
    }

    /// Scores one normalised text with its embedding of shape `(hidden_size,)`.
    ///
    /// # Panics
    /// Where the embedding has another length: the bundle checks at load that encoder and classifier fit.
    pub fn raw_scores(&self, text: &str, embedding: &[f32]) -> RawScores {
        assert_eq!(embedding.len(), self.hidden_size(), "the embedding fits the classifier");
        let features = self.lexicon.vectorize(text);
        let mut lexical = self.lexical.forward(features.entries.iter().map(|&(feature, value)| (feature as usize, value)));
        let lexical_novelty = lexical.pop().expect("a head has at least two outputs");
        let mut dense = self.dense.linear.forward(embedding.iter().copied().enumerate());
        let presence = dense.split_off(self.n_types() + 1);
        let dense_novelty = dense.pop().expect("`new` counted the outputs");
        let cosine = |centre: &[f32]| centre.iter().zip(embedding).map(|(centre, value)| centre * value).sum::<f32>();
        let nearest = self.dense.centres.chunks_exact(embedding.len()).map(cosine).fold(-1.0, f32::max);
        let class_distance = 1.0 - nearest;
        RawScores { lexical, dense, lexical_novelty, dense_novelty, presence, class_distance, health: features.health }
    }
}
