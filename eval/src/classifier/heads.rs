//! Fits the two heads on examples: the types, and "fits no type" beside them.

use anyhow::Result;
use sluice::classifier::Heads;
use sluice::classifier::heads::Linear;
use sluice::classifier::lexical::Lexicon;

use super::lexicon::{Selection, default_blocks, fit_lexicon};
use super::solver::{Fit, Rows, fit};

/// How the heads are fitted.
#[derive(Debug, Clone, Copy, clap::Args, serde::Serialize)]
pub struct HeadParams {
    /// Penalty of the lexical head (1 / C of scikit-learn).
    #[arg(long, default_value_t = Self::DEFAULT.lexical_l2)]
    pub lexical_l2: f64,
    /// Penalty of the head on the embedding.
    #[arg(long, default_value_t = Self::DEFAULT.dense_l2)]
    pub dense_l2: f64,
    /// Weight of a text that fits no type, against 1: the type outputs learn to be undecided about it.
    #[arg(long, default_value_t = Self::DEFAULT.outlier_weight)]
    pub outlier_weight: f64,
    /// Texts an n-gram occurs in at least.
    #[arg(long, default_value_t = Self::DEFAULT.min_document_frequency)]
    pub min_document_frequency: usize,
    /// N-grams at most.
    #[arg(long, default_value_t = Self::DEFAULT.max_features)]
    pub max_features: usize,
}

impl HeadParams {
    /// Chosen by cross-validation over the authors of the default narratives.
    pub const DEFAULT: Self = Self {
        lexical_l2: 0.05,
        dense_l2: 0.08,
        outlier_weight: 0.3,
        min_document_frequency: 2,
        max_features: 120_000,
    };
}

/// One example as the heads see it.
#[derive(Debug, Clone, Copy)]
pub struct Sample<'a> {
    /// Normalised.
    pub text: &'a str,
    pub embedding: &'a [f32],
    /// `None` where the text fits no type.
    pub class: Option<usize>,
}

/// Fits lexicon and heads for `n_types` types.
///
/// # Errors
/// Where the examples make no lexicon.
pub fn fit_heads(samples: &[Sample<'_>], n_types: usize, params: &HeadParams) -> Result<Heads> {
    let texts: Vec<&str> = samples.iter().map(|sample| sample.text).collect();
    let selection = Selection { min_document_frequency: params.min_document_frequency, max_features: params.max_features };
    let lexicon = fit_lexicon(&texts, default_blocks(), selection)?;
    let lexical = lexical_rows(&lexicon, &texts);
    let hidden_size = samples.first().map_or(0, |sample| sample.embedding.len());
    let dense = Rows::from_dense(hidden_size, samples.iter().map(|sample| sample.embedding));

    let types = type_targets(samples, n_types, params.outlier_weight as f32);
    let novelty: Option<Vec<f32>> = samples
        .iter()
        .any(|sample| sample.class.is_none())
        .then(|| samples.iter().flat_map(|sample| if sample.class.is_some() { [1.0, 0.0] } else { [0.0, 1.0] }).collect());
    let head = |rows: &Rows, l2: f64| {
        let types = fit(rows, &types, n_types, Fit::with_l2(l2));
        let novelty = novelty.as_ref().map(|targets| fit(rows, targets, 2, Fit::with_l2(l2)));
        beside(&types, novelty.as_ref())
    };
    Ok(Heads::new(lexicon.clone(), head(&lexical, params.lexical_l2)?, head(&dense, params.dense_l2)?)?)
}

/// The lexicon's view of texts, as rows for the solver.
pub fn lexical_rows(lexicon: &Lexicon, texts: &[&str]) -> Rows {
    let mut rows = Rows::new(lexicon.n_features());
    for text in texts {
        rows.push(lexicon.vectorize(text).entries);
    }
    rows
}

/// The true type for a text that has one; a little of every type for one that has none (outlier exposure, Hendrycks et al.,
/// arXiv 1812.04606). Such texts are no class: they only teach the outputs to stay level.
pub fn type_targets(samples: &[Sample<'_>], n_types: usize, outlier_weight: f32) -> Vec<f32> {
    let mut targets = vec![0.0; samples.len() * n_types];
    for (target, sample) in targets.chunks_exact_mut(n_types).zip(samples) {
        match sample.class {
            Some(class) => target[class] = 1.0,
            None => target.fill(outlier_weight / n_types as f32),
        }
    }
    targets
}

/// One head with the novelty logit as its last output, 0 where there is none.
fn beside(types: &Linear, novelty: Option<&Linear>) -> Result<Linear> {
    let n_types = types.n_outputs();
    let logit = |pair: &[f32]| pair[1] - pair[0];
    let novelty_weight: Vec<f32> =
        novelty.map_or_else(|| vec![0.0; types.n_inputs()], |head| head.weight().chunks_exact(2).map(logit).collect());
    let rows = types.weight().chunks_exact(n_types).zip(novelty_weight);
    let weight = rows.flat_map(|(row, novelty)| row.iter().copied().chain([novelty])).collect();
    let mut bias = types.bias().to_vec();
    bias.push(novelty.map_or(0.0, |head| logit(head.bias())));
    Ok(Linear::new("fitted", weight, bias)?)
}
