//! Two linear heads: one on the words of a text, one on its embedding.
//!
//! They err differently, so both speak and `calibration` weighs them. Each has one output a type and one more for "fits no type";
//! the one on the embedding also says of each type whether the text speaks of it at all, and how far the text lies from the
//! centres of the types. It refuses to normalise text and to know the taxonomy.

use super::ClassifierError;
use super::calibration::RawScores;
use super::lexical::Lexicon;

/// Weight of a window that seems to fit no type, beside one that surely fits one with 1.
const MIN_WINDOW_WEIGHT: f32 = 0.05;

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

    /// Scores one normalised text with the embeddings of its windows, each of shape `(hidden_size,)`.
    ///
    /// # Panics
    /// Where there is no embedding, or one has another length: the service checks at load that encoder and classifier fit.
    pub fn raw_scores(&self, text: &str, embeddings: &[Vec<f32>]) -> RawScores {
        let features = self.lexicon.vectorize(text);
        let mut lexical = self.lexical.forward(features.entries.iter().map(|&(feature, value)| (feature as usize, value)));
        let lexical_novelty = lexical.pop().expect("a head has at least two outputs");
        let windows: Vec<DenseScores> = embeddings.iter().map(|embedding| self.dense.scores(embedding)).collect();
        let DenseScores { types: dense, novelty: dense_novelty, presence, class_distance } = pool(windows);
        RawScores { lexical, dense, lexical_novelty, dense_novelty, presence, class_distance, health: features.health }
    }
}

/// What the head on the embedding says of one window.
struct DenseScores {
    types: Vec<f32>,
    novelty: f32,
    presence: Vec<f32>,
    class_distance: f32,
}

impl DenseHead {
    fn scores(&self, embedding: &[f32]) -> DenseScores {
        let hidden_size = self.linear.n_inputs();
        assert_eq!(embedding.len(), hidden_size, "the embedding fits the classifier");
        let mut types = self.linear.forward(embedding.iter().copied().enumerate());
        let presence = types.split_off(types.len() / 2 + 1);
        let novelty = types.pop().expect("`Heads::new` counted the outputs");
        let cosine = |centre: &[f32]| centre.iter().zip(embedding).map(|(centre, value)| centre * value).sum::<f32>();
        let nearest = self.centres.chunks_exact(hidden_size).map(cosine).fold(-1.0, f32::max);
        DenseScores { types, novelty, presence, class_distance: 1.0 - nearest }
    }
}

/// The evidence of all windows of a text: types by how much each window fits any type, so that pages of history do not drown the
/// paragraph that says what blocks; of the rest, the strongest.
fn pool(windows: Vec<DenseScores>) -> DenseScores {
    let weights: Vec<f32> = windows.iter().map(|window| 1.0 / (1.0 + window.novelty.exp()) + MIN_WINDOW_WEIGHT).collect();
    let total: f32 = weights.iter().sum();
    let mut windows = windows.into_iter().zip(weights).map(|(window, weight)| (window, weight / total));
    let (mut pooled, weight) = windows.next().expect("a text has a window");
    pooled.types.iter_mut().for_each(|logit| *logit *= weight);
    for (window, weight) in windows {
        for (sum, logit) in pooled.types.iter_mut().zip(&window.types) {
            *sum += weight * logit;
        }
        for (strongest, logit) in pooled.presence.iter_mut().zip(&window.presence) {
            *strongest = strongest.max(*logit);
        }
        pooled.novelty = pooled.novelty.min(window.novelty);
        pooled.class_distance = pooled.class_distance.min(window.class_distance);
    }
    pooled
}
