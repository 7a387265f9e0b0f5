//! Fits the two heads on examples: the types, and "fits no type" beside them.

use anyhow::Result;
use sluice::classifier::DenseHead;
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

/// What a text is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label {
    /// The type that blocks the order; `None` where the text fits no type.
    pub class: Option<usize>,
    /// Further types that the text speaks of.
    pub secondary: Vec<usize>,
}

impl Label {
    pub fn speaks_of(&self, class: usize) -> bool {
        self.class == Some(class) || self.secondary.contains(&class)
    }
}

/// One example as the lexical head sees it.
#[derive(Debug, Clone, Copy)]
pub struct Sample<'a> {
    /// Normalised.
    pub text: &'a str,
    /// `None` where the text fits no type.
    pub class: Option<usize>,
}

/// A lexicon with the head on it.
#[derive(Debug, Clone)]
pub struct Lexical {
    pub lexicon: Lexicon,
    pub head: Linear,
}

/// Fits lexicon and lexical head for `n_types` types.
///
/// # Errors
/// Where the examples make no lexicon.
pub fn fit_lexical(samples: &[Sample<'_>], n_types: usize, params: &HeadParams) -> Result<Lexical> {
    let texts: Vec<&str> = samples.iter().map(|sample| sample.text).collect();
    let selection = Selection { min_document_frequency: params.min_document_frequency, max_features: params.max_features };
    let lexicon = fit_lexicon(&texts, default_blocks(), selection)?;
    let rows = lexical_rows(&lexicon, &texts);
    let targets = targets_of(samples.iter().map(|sample| sample.class), n_types, params.outlier_weight as f32);
    let head = with_novelty_logit(&fit(&rows, &targets, &[n_types, 2], Fit::with_l2(params.lexical_l2)))?;
    Ok(Lexical { lexicon, head })
}

/// Fits a head on frozen embeddings.
///
/// # Errors
/// Where there is no embedding.
pub fn fit_dense(embeddings: &[&[f32]], labels: &[&Label], n_types: usize, params: &HeadParams) -> Result<DenseHead> {
    let hidden_size = embeddings.first().map_or(0, |embedding| embedding.len());
    let rows = Rows::from_dense(hidden_size, embeddings.iter().copied());
    let first = targets_of(labels.iter().map(|label| label.class), n_types, params.outlier_weight as f32);
    // A softmax over two outputs is a logistic regression, and the solver knows softmax.
    let targets: Vec<f32> = first
        .chunks_exact(n_types + 2)
        .zip(labels)
        .flat_map(|(first, label)| {
            let presence = (0..n_types).flat_map(|class| if label.speaks_of(class) { [0.0, 1.0] } else { [1.0, 0.0] });
            first.iter().copied().chain(presence)
        })
        .collect();
    let sizes: Vec<usize> = [n_types, 2].into_iter().chain(std::iter::repeat_n(2, n_types)).collect();
    let fitted = fit(&rows, &targets, &sizes, Fit::with_l2(params.dense_l2));
    let linear = map_outputs(&fitted, |row| {
        let (types, pairs) = row.split_at(n_types);
        types.iter().copied().chain(pairs.chunks_exact(2).map(|pair| pair[1] - pair[0])).collect()
    })?;
    let centres = centres(embeddings.iter().copied().zip(labels.iter().map(|label| label.class)), hidden_size, n_types);
    Ok(DenseHead { linear, centres })
}

/// Mean direction of each type's embeddings, shape `(n_types, hidden_size)`; zero for a type without any.
pub fn centres<'a>(
    embeddings: impl IntoIterator<Item = (&'a [f32], Option<usize>)>,
    hidden_size: usize,
    n_types: usize,
) -> Vec<f32> {
    let mut centres = vec![0.0; n_types * hidden_size];
    for (embedding, class) in embeddings {
        let Some(class) = class else { continue };
        for (sum, value) in centres[class * hidden_size..][..hidden_size].iter_mut().zip(embedding) {
            *sum += value;
        }
    }
    for centre in centres.chunks_exact_mut(hidden_size) {
        let length = centre.iter().map(|value| value * value).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
        centre.iter_mut().for_each(|value| *value /= length);
    }
    centres
}

/// The lexicon's view of texts, as rows for the solver.
pub fn lexical_rows(lexicon: &Lexicon, texts: &[&str]) -> Rows {
    let mut rows = Rows::new(lexicon.n_features());
    for text in texts {
        rows.push(lexicon.vectorize(text).entries);
    }
    rows
}

/// Targets of shape `(n_samples, n_types + 2)`: the types, then "fits a type" and "fits none".
///
/// Among the types, the true one for a text that has one; a little of every type for one that has none (outlier exposure,
/// Hendrycks et al., arXiv 1812.04606). Such texts are no class: they only teach the outputs to stay level.
pub fn targets_of(classes: impl ExactSizeIterator<Item = Option<usize>>, n_types: usize, outlier_weight: f32) -> Vec<f32> {
    let mut targets = vec![0.0; classes.len() * (n_types + 2)];
    for (target, class) in targets.chunks_exact_mut(n_types + 2).zip(classes) {
        let (types, fits) = target.split_at_mut(n_types);
        match class {
            Some(class) => types[class] = 1.0,
            None => types.fill(outlier_weight / n_types as f32),
        }
        fits[usize::from(class.is_none())] = 1.0;
    }
    targets
}

/// The last two outputs as one logit of "fits none".
fn with_novelty_logit(fitted: &Linear) -> Result<Linear> {
    map_outputs(fitted, |row| {
        let (types, fits) = row.split_at(row.len() - 2);
        [types, &[fits[1] - fits[0]]].concat()
    })
}

/// The linear map whose outputs are a linear function of the fitted ones.
pub fn map_outputs(fitted: &Linear, map: impl Fn(&[f32]) -> Vec<f32>) -> Result<Linear> {
    let weight = fitted.weight().chunks_exact(fitted.n_outputs()).flat_map(&map).collect();
    Ok(Linear::new("fitted", weight, map(fitted.bias()))?)
}
