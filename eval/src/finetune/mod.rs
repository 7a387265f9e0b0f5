//! Fine-tuning: the encoder learns what blocks an order, not only what a text is about.
//!
//! [`fine_tune`] trains low-rank changes of every linear layer ([`sluice::encoder::Adapter`]) together with a head on the pooled
//! embedding, through the very graph that serves. [`cache`] keeps what the untrained blocks make of a text, [`batches`] decides what a
//! step sees, [`optimizer`] moves the variables, [`trainer`] is the loop with its checkpoints. A step's gradient is summed over micro-batches in a fixed order, so the same
//! texts, parameters and seed give the same bytes on any number of threads of one kind of processor. CPU only.

mod batches;
mod cache;
mod checkpoint;
mod model;
mod optimizer;
mod trainer;

use std::path::PathBuf;

use anyhow::{Result, ensure};
pub use trainer::{Progress, fine_tune};

use sluice::classifier::DenseHead;
use sluice::encoder::Adapter;

use crate::classifier::heads::Label;

/// How an encoder is fine-tuned. The defaults were chosen in trials with four authors of the default narratives held out.
#[derive(Debug, Clone, Copy, PartialEq, clap::Args, serde::Serialize)]
pub struct FineTuneParams {
    /// Columns of the low-rank factors.
    #[arg(long, default_value_t = Self::DEFAULT.rank)]
    pub rank: usize,
    /// Blocks of the encoder that are trained, counted from the last. What the others make of a text is computed once.
    #[arg(long, default_value_t = Self::DEFAULT.trained_layers)]
    pub trained_layers: usize,
    /// Passes over the texts.
    #[arg(long, default_value_t = Self::DEFAULT.epochs)]
    pub epochs: usize,
    /// Texts a step.
    #[arg(long, default_value_t = Self::DEFAULT.batch_size)]
    pub batch_size: usize,
    /// Tokens of a text that training sees; serving sees more.
    #[arg(long, default_value_t = Self::DEFAULT.training_tokens)]
    pub training_tokens: usize,
    /// Largest learning rate of the low-rank factors.
    #[arg(long, default_value_t = Self::DEFAULT.adapter_learning_rate)]
    pub adapter_learning_rate: f64,
    /// Largest learning rate of the head.
    #[arg(long, default_value_t = Self::DEFAULT.head_learning_rate)]
    pub head_learning_rate: f64,
    #[arg(long, default_value_t = Self::DEFAULT.weight_decay)]
    pub weight_decay: f64,
    /// Share of a text's tokens that a step leaves out at random.
    #[arg(long, default_value_t = Self::DEFAULT.token_dropout)]
    pub token_dropout: f64,
    /// Share of the embedding's numbers that a step leaves out at random.
    #[arg(long, default_value_t = Self::DEFAULT.embedding_dropout)]
    pub embedding_dropout: f64,
    /// Probability that the target gives to all types alike.
    #[arg(long, default_value_t = Self::DEFAULT.label_smoothing)]
    pub label_smoothing: f64,
}

impl FineTuneParams {
    pub const DEFAULT: Self = Self {
        rank: 16,
        trained_layers: 3,
        epochs: 4,
        batch_size: 32,
        training_tokens: 96,
        adapter_learning_rate: 2e-3,
        head_learning_rate: 4e-3,
        weight_decay: 0.01,
        token_dropout: 0.1,
        embedding_dropout: 0.1,
        label_smoothing: 0.05,
    };

    /// # Errors
    /// The first parameter with which nothing can be trained.
    pub fn check(&self) -> Result<()> {
        for (name, value) in
            [("rank", self.rank), ("trained-layers", self.trained_layers), ("epochs", self.epochs), ("batch-size", self.batch_size)]
        {
            ensure!(value >= 1, "`--{name}` is at least 1");
        }
        ensure!(self.training_tokens >= 3, "`--training-tokens` is at least 3");
        for (name, value) in [
            ("token-dropout", self.token_dropout),
            ("embedding-dropout", self.embedding_dropout),
            ("label-smoothing", self.label_smoothing),
        ] {
            ensure!((0.0..1.0).contains(&value), "`--{name}` lies between 0 and 1");
        }
        for (name, value) in [
            ("adapter-learning-rate", self.adapter_learning_rate),
            ("head-learning-rate", self.head_learning_rate),
            ("weight-decay", self.weight_decay),
        ] {
            ensure!(value.is_finite() && value >= 0.0, "`--{name}` is a number that is not negative");
        }
        Ok(())
    }
}

/// One text as training sees it.
#[derive(Debug, Clone, Copy)]
pub struct TrainingText<'a> {
    /// With special tokens, cut to what serving sees.
    pub input_ids: &'a [u32],
    pub label: &'a Label,
}

/// One run of [`fine_tune`].
#[derive(Debug, Clone)]
pub struct Run {
    pub params: FineTuneParams,
    pub n_types: usize,
    /// Weight of a text that fits no type among the types' outputs, which learn to be undecided about it.
    pub outlier_weight: f32,
    pub seed: u64,
    pub checkpoint: Option<CheckpointFile>,
}

/// Where a run keeps its state after every epoch. A run that finds its own goes on from there, or has nothing left to do.
#[derive(Debug, Clone)]
pub struct CheckpointFile {
    pub path: PathBuf,
    /// Names the encoder: one that differs makes it another run.
    pub encoder: String,
}

/// What came out.
#[derive(Debug, Clone)]
pub struct FineTuned {
    pub adapter: Adapter,
    /// On the L2-normalised embedding of the adapted encoder.
    pub head: DenseHead,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_that_train_nothing_are_refused() {
        #[track_caller]
        fn check(change: impl FnOnce(&mut FineTuneParams), expected: &str) {
            let mut params = FineTuneParams::DEFAULT;
            change(&mut params);
            assert!(params.check().unwrap_err().to_string().contains(expected));
        }

        assert!(FineTuneParams::DEFAULT.check().is_ok());
        check(|params| params.rank = 0, "--rank");
        check(|params| params.batch_size = 0, "--batch-size");
        check(|params| params.training_tokens = 2, "--training-tokens");
        check(|params| params.token_dropout = 1.0, "--token-dropout");
        check(|params| params.label_smoothing = -0.1, "--label-smoothing");
        check(|params| params.adapter_learning_rate = f64::NAN, "--adapter-learning-rate");
    }
}
