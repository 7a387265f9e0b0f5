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
    pub const DEFAULT: Self =
        Self { lexical_l2: 0.05, dense_l2: 0.08, outlier_weight: 0.3, min_document_frequency: 2, max_features: 120_000 };
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

    let targets = targets(samples, n_types, params.outlier_weight as f32);
    let head = |rows: &Rows, l2: f64| with_novelty_logit(&fit(rows, &targets, &[n_types, 2], Fit::with_l2(l2)));
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

/// Shape `(n_samples, n_types + 2)`: the types, then "fits a type" and "fits none".
///
/// Among the types, the true one for a text that has one; a little of every type for one that has none (outlier exposure,
/// Hendrycks et al., arXiv 1812.04606). Such texts are no class: they only teach the outputs to stay level.
fn targets(samples: &[Sample<'_>], n_types: usize, outlier_weight: f32) -> Vec<f32> {
    let mut targets = vec![0.0; samples.len() * (n_types + 2)];
    for (target, sample) in targets.chunks_exact_mut(n_types + 2).zip(samples) {
        let (types, fits) = target.split_at_mut(n_types);
        match sample.class {
            Some(class) => types[class] = 1.0,
            None => types.fill(outlier_weight / n_types as f32),
        }
        fits[usize::from(sample.class.is_none())] = 1.0;
    }
    targets
}

/// The last two outputs as one logit of "fits none".
fn with_novelty_logit(fitted: &Linear) -> Result<Linear> {
    let join = |row: &[f32]| {
        let (types, fits) = row.split_at(row.len() - 2);
        [types, &[fits[1] - fits[0]]].concat()
    };
    let weight = fitted.weight().chunks_exact(fitted.n_outputs()).flat_map(join).collect();
    Ok(Linear::new("fitted", weight, join(fitted.bias()))?)
}
