//! The encoder's side of training: frozen embeddings under a fitted head, or an encoder that learns with its head.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::ValueEnum;
use serde::Serialize;
use sha2::{Digest, Sha256};
use sluice::bundle::EncoderFiles;
use sluice::classifier::DenseHead;
use sluice::encoder::{Adapter, CandleEncoder};
use sluice::text::{NormalizedText, TokenCount, TokenizedText};

use super::heads::{HeadParams, Label, fit_dense};
use super::train::Args;
use crate::finetune::{CheckpointFile, FineTuneParams, FineTuned, Progress, Run, TrainingText, fine_tune};
use crate::scoring::{embed, encode_texts, progress, tokenize};

/// Whether the encoder learns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EncoderTraining {
    /// Low-rank changes of the encoder are trained together with the head.
    FineTuned,
    /// The encoder stays as it is; a head is fitted on its embeddings.
    Frozen,
}

impl EncoderTraining {
    pub(super) fn default_folds(self) -> usize {
        match self {
            Self::FineTuned => 3,
            Self::Frozen => 10,
        }
    }
}

/// A head on embeddings, and what its encoder learnt.
#[derive(Debug, Clone)]
pub struct Dense {
    pub head: DenseHead,
    /// `adapter.safetensors`; `None` where the encoder is frozen.
    pub adapter: Option<Vec<u8>>,
}

/// Fits [`Dense`] on any part of the examples and embeds any other.
pub struct DenseTrainer {
    encoder: EncoderFiles,
    /// As loaded; every fit starts from it.
    engine: CandleEncoder,
    texts: Vec<(NormalizedText, TokenizedText)>,
    labels: Vec<Label>,
    n_types: usize,
    /// Embeddings of every text's windows by the encoder as it is, where it stays frozen.
    frozen: Option<Vec<Vec<Vec<f32>>>>,
    params: HeadParams,
    fine_tune: FineTuneParams,
    seed: u64,
    work: Option<PathBuf>,
}

impl DenseTrainer {
    pub(super) fn new(args: &Args, encoder: EncoderFiles, texts: &[&str], labels: Vec<Label>, n_types: usize) -> Result<Self> {
        let engine = CandleEncoder::load(&encoder.config, &encoder.weights)?;
        let frozen = match args.encoder {
            EncoderTraining::FineTuned => None,
            EncoderTraining::Frozen => {
                let cache = args.work.as_ref().map(|work| work.join("embeddings.safetensors"));
                let encoded = encode_texts(&encoder, texts, cache.as_deref())?;
                Some(encoded.into_iter().map(|text| text.embeddings).collect())
            }
        };
        let texts = tokenize(&encoder, texts)?;
        let (params, fine_tune, seed, work) = (args.params, args.fine_tune, args.seed, args.work.clone());
        Ok(Self { encoder, engine, texts, labels, n_types, frozen, params, fine_tune, seed, work })
    }

    /// The normalised text of an example.
    pub fn text(&self, example: usize) -> &str {
        self.texts[example].0.as_str()
    }

    pub fn label(&self, example: usize) -> &Label {
        &self.labels[example]
    }

    pub fn tokens(&self, example: usize) -> TokenCount {
        self.texts[example].1.count
    }

    /// Fits on these examples. `name` is shown and names the checkpoint.
    ///
    /// # Errors
    /// As [`fine_tune`].
    pub fn fit(&self, name: &str, examples: &[usize]) -> Result<Dense> {
        if let Some(embeddings) = &self.frozen {
            let rows: Vec<&[f32]> = examples.iter().map(|&idx| embeddings[idx][0].as_slice()).collect();
            let labels: Vec<&Label> = examples.iter().map(|&idx| &self.labels[idx]).collect();
            return Ok(Dense { head: fit_dense(&rows, &labels, self.n_types, &self.params)?, adapter: None });
        }
        // A long text is trained on by its first window; its label speaks of no other in particular.
        let training = |&idx: &usize| TrainingText { input_ids: &self.texts[idx].1.windows[0], label: &self.labels[idx] };
        let texts: Vec<TrainingText> = examples.iter().map(training).collect();
        let checkpoint = self.work.as_ref().map(|work| CheckpointFile {
            path: work.join(format!("{}.checkpoint", name.replace(' ', "-"))),
            encoder: hex::encode(Sha256::digest(&self.encoder.weights)),
        });
        let run = Run {
            params: self.fine_tune,
            n_types: self.n_types,
            outlier_weight: self.params.outlier_weight as f32,
            seed: self.seed,
            checkpoint,
        };
        let bar = Bar(progress(texts.len() * self.fine_tune.epochs, name));
        let FineTuned { adapter, head } = fine_tune(&self.engine, &texts, &run, &bar)?;
        bar.0.finish_and_clear();
        Ok(Dense { head, adapter: Some(adapter.to_safetensors()?) })
    }

    /// Embeddings of the windows of these examples by the encoder of `dense`, as it will serve: with its factors rounded to half precision.
    ///
    /// # Errors
    /// An encoder that fails.
    pub fn embed(&self, dense: &Dense, examples: &[usize]) -> Result<Vec<Vec<Vec<f32>>>> {
        if let Some(embeddings) = &self.frozen {
            return Ok(examples.iter().map(|&idx| embeddings[idx].clone()).collect());
        }
        let adapter = dense.adapter.as_deref().context("an encoder that learnt has an adapter")?;
        let mut engine = CandleEncoder::load(&self.encoder.config, &self.encoder.weights)?;
        engine.merge(&Adapter::from_safetensors(adapter)?)?;
        let windows: Vec<&[u32]> = examples.iter().flat_map(|&idx| &self.texts[idx].1.windows).map(Vec::as_slice).collect();
        let mut embeddings = embed(&engine, &windows)?.into_iter();
        Ok(examples.iter().map(|&idx| embeddings.by_ref().take(self.texts[idx].1.windows.len()).collect()).collect())
    }
}

struct Bar(indicatif::ProgressBar);

impl Progress for Bar {
    fn prepared(&self, _: usize) {
        self.0.tick();
    }

    fn step(&self, _: usize, n_texts: usize, _: f64) {
        self.0.inc(n_texts as u64);
    }
}
