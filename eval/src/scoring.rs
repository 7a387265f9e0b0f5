//! The serving path without the service: tokenizer, encoder and classifier called in a row.
//!
//! What is measured here is what is served: the same normalisation, the same tokenizer, the same encoder and the same
//! `Classifier::classify` as in `decision.rs`. Embeddings can be kept in a file between runs, keyed by encoder and text.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use sha2::{Digest, Sha256};
use sluice::batching::encode_all;
use sluice::bundle::{
    CLASSIFIER_CONFIG, CLASSIFIER_WEIGHTS, ENCODER_ADAPTER, ENCODER_FILES, EncoderFiles, MANIFEST, Manifest, TAXONOMY,
};
use sluice::classifier::{Classification, Classifier, ClassifierArtefacts};
use sluice::encoder::{CandleEncoder, Encoder};
use sluice::taxonomy::Taxonomy;
use sluice::text::{NormalizedText, TokenCount, TokenizedText, Tokenizer, normalize};

use crate::parallel::in_parallel;

/// Tokens of a window and windows of a text; as served by default.
pub const MAX_TOKENS: usize = 256;
pub const MAX_WINDOWS: usize = 16;

/// The encoder of a bundle that names none.
pub const DEFAULT_ENCODER: &str = "models/encoders/minilm-l6-v2";

/// Tokens a batch holds at most; more gains nothing on a CPU.
const MAX_BATCH_TOKENS: usize = 2_048;

/// Texts between two ticks of the progress bar.
const CHUNK: usize = 64;

/// The encoder in a folder of its own, with no manifest to hold it against.
///
/// # Errors
/// A file that cannot be read.
pub fn read_encoder(folder: &Path) -> Result<EncoderFiles> {
    let [config, weights, tokenizer] = ENCODER_FILES.map(|name| read(folder, name));
    Ok(EncoderFiles { config: config?, weights: weights?, tokenizer: tokenizer?, adapter: None })
}

fn read(folder: &Path, name: &str) -> Result<Vec<u8>> {
    let path = folder.join(name);
    std::fs::read(&path).with_context(|| format!("`{}` cannot be read", path.display()))
}

/// A text as the classifier takes it.
#[derive(Debug, Clone)]
pub struct EncodedText {
    pub text: NormalizedText,
    pub tokens: TokenCount,
    /// Of each window, shape `(hidden_size,)`.
    pub embeddings: Vec<Vec<f32>>,
}

/// Normalises, tokenises and embeds every text, with a progress bar.
///
/// `cache` is a file of embeddings that is read where it exists and written back with the new ones.
///
/// # Errors
/// An encoder that cannot be loaded or fails.
pub fn encode_texts(encoder: &EncoderFiles, texts: &[&str], cache: Option<&Path>) -> Result<Vec<EncodedText>> {
    let engine = CandleEncoder::load_adapted(&encoder.config, &encoder.weights, encoder.adapter.as_deref())?;
    let mut cache = Cache::open(cache, encoder)?;
    let texts = tokenize(encoder, texts)?;
    let windows = texts.iter().flat_map(|text| &text.1.windows).map(Vec::as_slice);
    let missing: Vec<&[u32]> = windows.filter(|window| cache.find(window).is_none()).collect();
    for (window, embedding) in missing.iter().zip(embed(&engine, &missing)?) {
        cache.insert(window, embedding);
    }
    cache.save(engine.hidden_size())?;
    let encoded = texts.into_iter().map(|(text, tokenized)| {
        let found = |window: &Vec<u32>| cache.find(window).expect("every window was found or embedded").clone();
        EncodedText { text, tokens: tokenized.count, embeddings: tokenized.windows.iter().map(found).collect() }
    });
    Ok(encoded.collect())
}

/// Normalises and tokenises every text as the service does.
///
/// # Errors
/// A tokenizer that cannot be loaded or refuses a text.
pub fn tokenize(encoder: &EncoderFiles, texts: &[&str]) -> Result<Vec<(NormalizedText, TokenizedText)>> {
    let tokenizer = Tokenizer::from_bytes(&encoder.tokenizer, MAX_TOKENS, MAX_WINDOWS)?;
    let tokenize = |text: &&str| {
        let text = normalize(text);
        let tokenized = tokenizer.tokenize(&text)?;
        Ok((text, tokenized))
    };
    texts.iter().map(tokenize).collect()
}

/// Embeds every token sequence on every core, with a progress bar; in the order of the sequences.
///
/// # Errors
/// An encoder that fails.
pub fn embed(engine: &CandleEncoder, sequences: &[&[u32]]) -> Result<Vec<Vec<f32>>> {
    let mut order: Vec<usize> = (0..sequences.len()).collect();
    // Sequences of one length share a batch, so all batches cost about the same.
    order.sort_by_key(|&idx| sequences[idx].len());
    let chunks: Vec<&[usize]> = order.chunks(CHUNK).collect();
    let bar = progress(sequences.len(), "embedding");
    let embedded = in_parallel(&chunks, |chunk| {
        let batch: Vec<&[u32]> = chunk.iter().map(|&idx| sequences[idx]).collect();
        let embeddings = encode_all(&mut engine.clone(), &batch, MAX_BATCH_TOKENS)?;
        bar.inc(chunk.len() as u64);
        Ok(embeddings)
    })?;
    bar.finish_and_clear();
    let mut embeddings = vec![Vec::new(); sequences.len()];
    for (&idx, embedding) in order.iter().zip(embedded.into_iter().flatten()) {
        embeddings[idx] = embedding;
    }
    Ok(embeddings)
}

/// A bar that counts texts.
pub fn progress(n: usize, what: &str) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg:12} {bar:40} {pos}/{len} {per_sec} {eta}").expect("the template is valid");
    ProgressBar::new(n as u64).with_style(style).with_message(what.to_owned())
}

/// What scoring texts needs of a bundle's folder.
#[derive(Debug)]
pub struct ClassifierBundle {
    pub taxonomy: Taxonomy,
    pub classifier: Classifier,
    pub encoder: EncoderFiles,
}

impl ClassifierBundle {
    /// Reads a bundle's folder. Where it has a manifest, every hash is checked and the encoder is the one it names; a bundle in the
    /// making has none, and then the default encoder. `encoder` is a folder to take instead of either.
    ///
    /// # Errors
    /// A missing or contradictory file, or one that is not as the manifest says.
    pub fn open(bundle: &Path, encoder: Option<&Path>) -> Result<Self> {
        let manifest = bundle.join(MANIFEST).exists().then(|| Manifest::read(bundle)).transpose()?;
        let manifest = manifest.map(|(manifest, _)| manifest);
        let artefacts = manifest.as_ref().map(|manifest| manifest.read_artefacts(bundle)).transpose()?;
        let artefact = |name: &'static str| match &artefacts {
            Some(artefacts) => Ok(artefacts.bytes(name)?.to_vec()),
            None => read(bundle, name),
        };
        let taxonomy = String::from_utf8(artefact(TAXONOMY)?).context("`taxonomy.toml` is not UTF-8")?;
        let taxonomy = Taxonomy::from_toml(&taxonomy)?;
        let (config, weights) = (artefact(CLASSIFIER_CONFIG)?, artefact(CLASSIFIER_WEIGHTS)?);
        let classifier = Classifier::load(&ClassifierArtefacts { config: &config, weights: &weights }, &taxonomy)?;
        let adapter = bundle.join(ENCODER_ADAPTER);
        let mut encoder = match (encoder, &manifest) {
            (Some(folder), _) => read_encoder(folder)?,
            (None, Some(manifest)) => manifest.read_encoder(bundle, artefacts.as_ref().context("a manifest lists artefacts")?)?,
            (None, None) => read_encoder(Path::new(DEFAULT_ENCODER))?,
        };
        if encoder.adapter.is_none() && adapter.exists() {
            encoder.adapter = Some(artefact(ENCODER_ADAPTER)?);
        }
        Ok(Self { taxonomy, classifier, encoder })
    }

    /// Classifies texts as the service would.
    pub fn classify(&self, texts: &[EncodedText]) -> Result<Vec<Classification>> {
        let hidden_size = self.classifier.hidden_size();
        ensure!(
            texts.iter().flat_map(|text| &text.embeddings).all(|embedding| embedding.len() == hidden_size),
            "the classifier reads embeddings of {hidden_size} numbers; this encoder gives others"
        );
        Ok(texts.iter().map(|text| self.classifier.classify(&text.text, text.tokens, &text.embeddings)).collect())
    }
}

type Key = [u8; 16];

struct Cache {
    path: Option<PathBuf>,
    /// Mixed into every key, so that another encoder finds nothing.
    salt: [u8; 32],
    embeddings: HashMap<Key, Vec<f32>>,
    changed: bool,
}

impl Cache {
    fn open(path: Option<&Path>, encoder: &EncoderFiles) -> Result<Self> {
        let salt = Sha256::new_with_prefix(&encoder.weights).chain_update(encoder.adapter.as_deref().unwrap_or_default());
        let salt = salt.finalize().into();
        let mut embeddings = HashMap::new();
        if let Some(path) = path.filter(|path| path.exists()) {
            let bytes = std::fs::read(path)?;
            let tensors = SafeTensors::deserialize(&bytes).with_context(|| format!("`{}` is no cache", path.display()))?;
            let keys = tensors.tensor("keys")?;
            let values = tensors.tensor("values")?;
            let width = values.shape().get(1).copied().filter(|&width| width > 0).context("the cache has no columns")?;
            let keys = keys.data().as_chunks::<16>().0;
            for (key, row) in keys.iter().zip(values.data().chunks_exact(width * 4)) {
                embeddings.insert(*key, row.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect());
            }
        }
        Ok(Self { path: path.map(Path::to_owned), salt, embeddings, changed: false })
    }

    fn key(&self, window: &[u32]) -> Key {
        let mut hasher = Sha256::new_with_prefix(self.salt);
        for id in window {
            hasher.update(id.to_le_bytes());
        }
        let digest: [u8; 32] = hasher.finalize().into();
        *digest.first_chunk().expect("a digest has 32 bytes")
    }

    fn find(&self, window: &[u32]) -> Option<&Vec<f32>> {
        self.embeddings.get(&self.key(window))
    }

    fn insert(&mut self, window: &[u32], embedding: Vec<f32>) {
        self.embeddings.insert(self.key(window), embedding);
        self.changed = true;
    }

    fn save(&self, width: usize) -> Result<()> {
        let Some(path) = self.path.as_ref().filter(|_| self.changed) else { return Ok(()) };
        let rows: Vec<_> = self.embeddings.iter().filter(|(_, row)| row.len() == width).collect();
        let keys: Vec<u8> = rows.iter().flat_map(|(key, _)| **key).collect();
        let values: Vec<u8> = rows.iter().flat_map(|(_, row)| row.iter().flat_map(|value| value.to_le_bytes())).collect();
        let tensors = [
            ("keys", TensorView::new(Dtype::U8, vec![rows.len(), 16], &keys)?),
            ("values", TensorView::new(Dtype::F32, vec![rows.len(), width], &values)?),
        ];
        std::fs::write(path, safetensors::serialize(tensors, None)?)?;
        Ok(())
    }
}
