//! Heads, calibration and novelty: an embedding and the normalised text become calibrated scores.
//!
//! [`Heads`] read the words (`lexical`) and the embedding and give raw scores; [`Calibration`] turns them into probabilities,
//! novelty and the acceptance score that the gate compares; [`Classifier`] puts names to them and abstains where a text fits no
//! type. Pure: no clock, no I/O, the same input gives the same answer in any batch. It refuses to know facts or policy, and to
//! treat anything a text says about itself ("approve this") as more than words. Next: `policy`, which decides what an
//! acceptance is good for; the harness (`eval/`) trains what is loaded here.

mod artefacts;
pub mod calibration;
pub mod explain;
pub mod heads;
pub mod lexical;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::taxonomy::{Taxonomy, UNRECOGNIZED};
use crate::text::{NormalizedText, TokenCount};

pub use artefacts::{ClassifierArtefacts, ClassifierParts};
pub use calibration::{Calibration, RawScores};
pub use explain::Explanation;
pub use heads::{DenseHead, Heads};

/// What an exception is, as far as its narrative tells.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Classification {
    /// A type code of the taxonomy, or `unrecognized`.
    pub r#type: String,
    /// Calibrated probability of the best type, 0 to 1.
    pub score: f64,
    /// What the gate compares with a threshold: probability, margin, novelty and lost tokens together; higher is safer.
    pub acceptance: f64,
    /// Whether the service declines to name a type; `type` is then `unrecognized`.
    pub abstained: bool,
    /// Every type, best first, also where the answer abstains.
    pub candidates: Vec<Candidate>,
    /// Further types that the text also speaks of, best first; `score` is the probability that the type is a second problem of
    /// the text.
    pub secondary_types: Vec<Candidate>,
    /// How unlike the training narratives the text is, 0 (familiar) to 1 (foreign).
    pub novelty: f64,
    /// The queue of the best type's owner; absent where the answer abstains.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    pub tokens: TokenCount,
    /// What carried the answer; only where the caller asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub explanation: Option<Explanation>,
}

/// One type with its calibrated probability.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Candidate {
    pub r#type: String,
    pub score: f64,
}

/// The trained heads of a bundle.
#[derive(Debug, Clone)]
pub struct Classifier {
    parts: ClassifierParts,
    /// Owner of each type, in the order of `parts.types`.
    owners: Vec<String>,
}

impl Classifier {
    /// Reads the artefacts of a bundle.
    ///
    /// # Errors
    /// [`ClassifierError`] where a file is malformed, shapes or numbers are wrong, or the types are not those of the taxonomy in
    /// the same order.
    pub fn load(artefacts: &ClassifierArtefacts<'_>, taxonomy: &Taxonomy) -> Result<Self, ClassifierError> {
        Self::new(ClassifierParts::read(artefacts)?, taxonomy)
    }

    /// As [`Self::load`], from parts already in memory.
    ///
    /// # Errors
    /// [`ClassifierError::TypesDiffer`], [`ClassifierError::WrongShape`].
    pub fn new(parts: ClassifierParts, taxonomy: &Taxonomy) -> Result<Self, ClassifierError> {
        if !parts.types.iter().eq(taxonomy.types.iter().map(|definition| &definition.code)) {
            return Err(ClassifierError::TypesDiffer { trained: parts.types });
        }
        if parts.heads.n_types() != parts.types.len() {
            let found = vec![parts.heads.n_types() + 1];
            let expected = (parts.types.len() + 1).to_string();
            return Err(ClassifierError::WrongShape { name: "lexical.bias".to_owned(), found, expected });
        }
        let owners = taxonomy.types.iter().map(|definition| definition.owner.clone()).collect();
        Ok(Self { parts, owners })
    }

    /// Length of the embeddings that [`Self::classify`] takes.
    pub fn hidden_size(&self) -> usize {
        self.parts.heads.hidden_size()
    }

    pub fn parts(&self) -> &ClassifierParts {
        &self.parts
    }

    /// Scores one text with the embeddings of its windows, each of shape `(hidden_size,)` and finite.
    ///
    /// # Panics
    /// Where there is no embedding, or one has another length or is not finite, which the encoder room promises.
    pub fn classify(&self, text: &NormalizedText, tokens: TokenCount, embeddings: &[Vec<f32>]) -> Classification {
        assert!(embeddings.iter().flatten().all(|value| value.is_finite()), "the encoder gives finite embeddings");
        let calibration = &self.parts.calibration;
        let raw = self.parts.heads.raw_scores(text.as_str(), embeddings);
        let probabilities = calibration.probabilities(&raw);
        let novelty = calibration.novelty(&raw, &probabilities);
        let acceptance = calibration.acceptance(&raw, &probabilities, novelty, tokens);

        let mut ranked: Vec<usize> = (0..probabilities.len()).collect();
        // Stable, so types with equal probability keep the order of the taxonomy.
        ranked.sort_by(|&a, &b| probabilities[b].total_cmp(&probabilities[a]));
        let candidate = |class: usize, score: f64| Candidate { r#type: self.parts.types[class].clone(), score };
        let candidates = ranked.iter().map(|&class| candidate(class, probabilities[class])).collect();
        let secondary = calibration.secondary(&raw, &probabilities);
        let mut secondary_types: Vec<Candidate> = ranked[1..]
            .iter()
            .filter(|&&class| secondary[class] >= calibration.secondary_level)
            .map(|&class| candidate(class, secondary[class]))
            .collect();
        secondary_types.sort_by(|a, b| b.score.total_cmp(&a.score));
        let abstained = novelty > calibration.novelty_threshold;
        let best = ranked[0];
        Classification {
            r#type: if abstained { UNRECOGNIZED.to_owned() } else { self.parts.types[best].clone() },
            score: probabilities[best],
            acceptance,
            abstained,
            secondary_types,
            candidates,
            novelty,
            owner: (!abstained).then(|| self.owners[best].clone()),
            tokens,
            explanation: None,
        }
    }
}

/// Why a classifier was not loaded.
#[derive(Debug, thiserror::Error)]
pub enum ClassifierError {
    #[error("`classifier.toml` cannot be read")]
    Config(#[from] toml::de::Error),
    #[error("`classifier.toml` has format {found}; this version reads {supported}, so train the bundle again")]
    UnsupportedFormat { found: u32, supported: u32 },
    #[error("`classifier.toml` cannot be written")]
    Write(#[source] toml::ser::Error),
    #[error("`classifier.safetensors` cannot be read")]
    Weights(#[from] safetensors::SafeTensorError),
    #[error("tensor `{name}` has shape {found:?}; {expected} is expected")]
    WrongShape { name: String, found: Vec<usize>, expected: String },
    #[error("tensor `{name}` has the unexpected dtype {found}")]
    WrongDtype { name: String, found: String },
    #[error("`{name}` has a number that is not finite")]
    NonFinite { name: String },
    #[error("the lexicon is contradictory: {reason}")]
    InvalidLexicon { reason: &'static str },
    #[error("the calibration has a number that is not finite, out of range or of the wrong sign")]
    UnsoundCalibration,
    #[error("the classifier was trained for the types {trained:?}, which are not those of the taxonomy in their order")]
    TypesDiffer { trained: Vec<String> },
}
