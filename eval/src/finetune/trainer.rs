//! The loop: epochs over batches, gradients on several threads, a checkpoint after every epoch.

use anyhow::Result;
use candle_core::{Device, Tensor};
use sha2::{Digest, Sha256};
use sluice::encoder::CandleEncoder;

use super::batches::{MicroBatch, batches, whole_texts};
use super::cache::Cache;
use super::checkpoint::Checkpoint;
use super::model::Model;
use super::optimizer::{AdamW, clip, schedule};
use super::{FineTuneParams, FineTuned, Run, TrainingText};
use crate::classifier::heads::{Label, centres};
use crate::parallel::in_parallel;

const WARM_UP: f64 = 0.1;
const MAX_GRADIENT_NORM: f64 = 1.0;

/// Told of each step.
pub trait Progress: Sync {
    /// The untrained blocks have seen `n_texts` more.
    fn prepared(&self, n_texts: usize);

    /// `loss` is the mean over the epoch's texts so far.
    fn step(&self, epoch: usize, n_texts: usize, loss: f64);
}

/// Fine-tunes an encoder on these texts.
///
/// # Errors
/// Parameters out of range, a text that the encoder refuses, a checkpoint that cannot be read or written.
pub fn fine_tune(encoder: &CandleEncoder, texts: &[TrainingText<'_>], run: &Run, progress: &dyn Progress) -> Result<FineTuned> {
    let params = &run.params;
    params.check()?;
    let model = Model::new(encoder, run.n_types, params, run.outlier_weight, run.seed)?;
    let mut optimizer = AdamW::new(model.variables(), params.weight_decay);
    let mut first_epoch = 0;
    let checkpoint = run.checkpoint.as_ref().map(|file| (&file.path, fingerprint(texts, run, &file.encoder)));
    if let Some((path, fingerprint)) = &checkpoint {
        let lengths: Vec<usize> = model.variables().iter().map(|variable| variable.elem_count()).collect();
        if let Some(found) = Checkpoint::read(path, fingerprint, &lengths)? {
            first_epoch = restore(found, &model, &mut optimizer)?;
        }
    }
    let cache = Cache::new(encoder, texts, model.first_layer(), params.training_tokens, &|n_texts| progress.prepared(n_texts))?;
    let labels: Vec<&Label> = texts.iter().map(|text| text.label).collect();
    let n_steps = texts.len().div_ceil(params.batch_size) * params.epochs;
    for epoch in first_epoch..params.epochs {
        let (mut loss, mut n_seen) = (0.0, 0);
        for batch in batches(&cache, params, run.seed, epoch) {
            let n_texts: usize = batch.iter().map(|micro| micro.texts.len()).sum();
            let (batch_loss, mut gradients) = gradients(&model, &cache, &labels, &batch, params)?;
            let scale = 1.0 / n_texts as f32;
            gradients.iter_mut().flatten().for_each(|value| *value *= scale);
            clip(&mut gradients, MAX_GRADIENT_NORM);
            let rate = schedule(optimizer.step as usize, n_steps, WARM_UP);
            optimizer.update(model.variables(), &gradients, |idx| {
                rate * if model.is_head(idx) { params.head_learning_rate } else { params.adapter_learning_rate }
            })?;
            (loss, n_seen) = (loss + batch_loss, n_seen + n_texts);
            progress.step(epoch, n_texts, loss / n_seen as f64);
        }
        if let Some((path, fingerprint)) = &checkpoint {
            save(fingerprint, epoch + 1, &model, &optimizer)?.write(path)?;
        }
    }
    let centres = type_centres(&model, &cache, &labels, run.n_types)?;
    model.into_fine_tuned(centres)
}

/// Centres of the types' texts as the trained encoder sees them.
fn type_centres(model: &Model<'_>, cache: &Cache, labels: &[&Label], n_types: usize) -> Result<Vec<f32>> {
    let weights = model.weights()?;
    let parts = whole_texts(cache);
    let embedded = in_parallel(&parts, |part| {
        let (hidden_states, cu_seqlens) = part.hidden_states(cache)?;
        model.embed(&hidden_states, &cu_seqlens, &weights)
    })?;
    let rows = parts.iter().zip(&embedded).flat_map(|(part, rows)| {
        part.texts
            .iter()
            .map(|&text| labels[text].class)
            .zip(rows.chunks_exact(cache.hidden_size()))
            .map(|(class, row)| (row, class))
    });
    Ok(centres(rows, cache.hidden_size(), n_types))
}

/// Loss and gradients of a batch, summed over its texts.
fn gradients(
    model: &Model<'_>,
    cache: &Cache,
    labels: &[&Label],
    batch: &[MicroBatch],
    params: &FineTuneParams,
) -> Result<(f64, Vec<Vec<f32>>)> {
    let weights = model.weights()?;
    let parts = in_parallel(batch, |micro| {
        let (hidden_states, cu_seqlens) = micro.hidden_states(cache)?;
        let labels: Vec<&Label> = micro.texts.iter().map(|&text| labels[text]).collect();
        let (loss, store) = model.gradients(&hidden_states, &cu_seqlens, &labels, &weights, (params, micro.seed))?;
        let gradient = |variable: &candle_core::Var| match store.get(variable) {
            Some(gradient) => gradient.flatten_all()?.to_vec1::<f32>(),
            None => candle_core::bail!("a variable has no gradient"),
        };
        let gradients = model.variables().iter().map(gradient).collect::<Result<Vec<_>, _>>()?;
        Ok((loss, gradients))
    })?;
    // In the order of the parts, whichever was ready first.
    let mut parts = parts.into_iter();
    let (mut loss, mut sum) = parts.next().expect("a batch has a part");
    for (part_loss, part) in parts {
        loss += part_loss;
        for (sum, part) in sum.iter_mut().zip(part) {
            for (sum, part) in sum.iter_mut().zip(part) {
                *sum += part;
            }
        }
    }
    Ok((loss, sum))
}

/// Everything that the outcome depends on.
fn fingerprint(texts: &[TrainingText<'_>], run: &Run, encoder: &str) -> String {
    let mut hasher = Sha256::new();
    for text in texts {
        hasher.update((text.input_ids.len() as u64).to_le_bytes());
        for id in text.input_ids {
            hasher.update(id.to_le_bytes());
        }
        hasher.update(format!("{:?}", text.label));
    }
    hasher.update(format!("{encoder} {} {:?} {} {}", run.n_types, run.params, run.outlier_weight, run.seed));
    hex::encode(hasher.finalize())
}

fn save(run: &str, epoch: usize, model: &Model<'_>, optimizer: &AdamW) -> Result<Checkpoint> {
    let mut state = Vec::with_capacity(model.variables().len());
    for (variable, (first, second)) in model.variables().iter().zip(&optimizer.moments) {
        state.push([variable.flatten_all()?.to_vec1()?, first.clone(), second.clone()]);
    }
    Ok(Checkpoint { run: run.to_owned(), epoch: epoch as u64, step: optimizer.step, state })
}

fn restore(checkpoint: Checkpoint, model: &Model<'_>, optimizer: &mut AdamW) -> Result<usize> {
    optimizer.step = checkpoint.step;
    for ((variable, moments), [values, first, second]) in model.variables().iter().zip(&mut optimizer.moments).zip(checkpoint.state)
    {
        variable.set(&Tensor::from_vec(values, variable.shape(), &Device::Cpu)?)?;
        *moments = (first, second);
    }
    Ok(checkpoint.epoch as usize)
}
