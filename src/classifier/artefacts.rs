//! The classifier as files: `classifier.toml` (what it is, the fitted numbers) and `classifier.safetensors` (lexicon and heads).
//!
//! Reading and writing stand side by side so that they cannot drift apart. Weights are stored as float16: the heads are coarser
//! than its rounding. Reading refuses what does not fit: another format or type list, wrong shapes, numbers that are not finite.

use half::f16;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};

use super::ClassifierError;
use super::calibration::Calibration;
use super::heads::{DenseHead, Heads, Linear};
use super::lexical::{Block, Lexicon};

/// Changes when older code could misread a file.
const FORMAT: u32 = 2;

const HASHES: &str = "lexicon.hashes";
const IDF: &str = "lexicon.idf";
const LEXICAL: [&str; 2] = ["lexical.weight", "lexical.bias"];
const DENSE: [&str; 2] = ["dense.weight", "dense.bias"];
const CENTRES: &str = "dense.centres";

/// The bytes of the two files.
#[derive(Debug, Clone, Copy)]
pub struct ClassifierArtefacts<'a> {
    /// `classifier.toml`
    pub config: &'a [u8],
    /// `classifier.safetensors`
    pub weights: &'a [u8],
}

/// A classifier apart from its taxonomy's names and owners.
#[derive(Debug, Clone)]
pub struct ClassifierParts {
    /// Type codes, in the order of the heads' outputs.
    pub types: Vec<String>,
    pub heads: Heads,
    pub calibration: Calibration,
}

/// `classifier.toml`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    format: u32,
    types: Vec<String>,
    /// Length of the embedding that the dense head reads.
    hidden_size: usize,
    calibration: Calibration,
    #[serde(rename = "block")]
    blocks: Vec<SizedBlock>,
}

#[derive(Debug, Serialize, Deserialize)]
struct SizedBlock {
    n_features: usize,
    #[serde(flatten)]
    block: Block,
}

impl ClassifierParts {
    /// Reads the two files.
    ///
    /// # Errors
    /// The first contradiction, as a [`ClassifierError`].
    pub fn read(artefacts: &ClassifierArtefacts<'_>) -> Result<Self, ClassifierError> {
        let config: Config = toml::from_slice(artefacts.config)?;
        if config.format != FORMAT {
            return Err(ClassifierError::UnsupportedFormat { found: config.format, supported: FORMAT });
        }
        if !config.calibration.is_sound() {
            return Err(ClassifierError::UnsoundCalibration);
        }
        let tensors = SafeTensors::deserialize(artefacts.weights)?;
        let n_features = config.blocks.iter().map(|block| block.n_features).sum();
        let n_types = config.types.len();

        let hashes = unsigned(&tensors, HASHES, &[n_features])?;
        let idf = floats(&tensors, IDF, &[n_features])?;
        let mut pairs = hashes.into_iter().zip(idf);
        let features: Vec<Vec<_>> = config.blocks.iter().map(|block| pairs.by_ref().take(block.n_features).collect()).collect();
        let lexicon = Lexicon::new(config.blocks.into_iter().map(|block| block.block).collect(), &features)?;

        let linear = |[weight, bias]: [&'static str; 2], n_inputs, n_outputs| {
            Linear::new(weight, floats(&tensors, weight, &[n_inputs, n_outputs])?, floats(&tensors, bias, &[n_outputs])?)
        };
        let dense = DenseHead {
            linear: linear(DENSE, config.hidden_size, 2 * n_types + 1)?,
            centres: floats(&tensors, CENTRES, &[n_types, config.hidden_size])?,
        };
        let heads = Heads::new(lexicon, linear(LEXICAL, n_features, n_types + 1)?, dense)?;
        Ok(Self { types: config.types, heads, calibration: config.calibration })
    }

    /// Writes the two files: `(classifier.toml, classifier.safetensors)`. The same parts give the same bytes.
    ///
    /// # Errors
    /// [`ClassifierError::NonFinite`] where a number does not fit a float16.
    pub fn write(&self) -> Result<(String, Vec<u8>), ClassifierError> {
        let heads = &self.heads;
        let lexicon = heads.lexicon();
        let blocks = lexicon.blocks().iter().zip(lexicon.block_sizes());
        let config = Config {
            format: FORMAT,
            types: self.types.clone(),
            hidden_size: heads.hidden_size(),
            calibration: self.calibration.clone(),
            blocks: blocks.map(|(block, n_features)| SizedBlock { n_features, block: block.clone() }).collect(),
        };
        let hashes: Vec<u8> = lexicon.hashes().iter().flat_map(|hash| hash.to_le_bytes()).collect();
        let n_features = lexicon.n_features();
        let mut stored = vec![
            (HASHES, Dtype::U64, vec![n_features], hashes),
            (IDF, Dtype::F16, vec![n_features], half_bytes(IDF, lexicon.idf())?),
        ];
        for ([weight, bias], head) in [(LEXICAL, heads.lexical()), (DENSE, &heads.dense().linear)] {
            stored.push((weight, Dtype::F16, vec![head.n_inputs(), head.n_outputs()], half_bytes(weight, head.weight())?));
            stored.push((bias, Dtype::F16, vec![head.n_outputs()], half_bytes(bias, head.bias())?));
        }
        let shape = vec![heads.n_types(), heads.hidden_size()];
        stored.push((CENTRES, Dtype::F16, shape, half_bytes(CENTRES, &heads.dense().centres)?));
        let views = stored.iter().map(|(name, dtype, shape, bytes)| Ok((*name, TensorView::new(*dtype, shape.clone(), bytes)?)));
        let views = views.collect::<Result<Vec<_>, safetensors::SafeTensorError>>()?;
        let weights = safetensors::serialize(views, None)?;
        let config = toml::to_string(&config).map_err(ClassifierError::Write)?;
        Ok((config, weights))
    }
}

fn half_bytes(name: &str, values: &[f32]) -> Result<Vec<u8>, ClassifierError> {
    let halves: Vec<f16> = values.iter().map(|&value| f16::from_f32(value)).collect();
    if !halves.iter().all(|half| half.is_finite()) {
        return Err(ClassifierError::NonFinite { name: name.to_owned() });
    }
    Ok(halves.iter().flat_map(|half| half.to_le_bytes()).collect())
}

fn tensor<'a>(
    tensors: &'a SafeTensors<'_>,
    name: &str,
    shape: &[usize],
    dtypes: &[Dtype],
) -> Result<TensorView<'a>, ClassifierError> {
    let tensor = tensors.tensor(name)?;
    if tensor.shape() != shape {
        let found = tensor.shape().to_vec();
        return Err(ClassifierError::WrongShape { name: name.to_owned(), found, expected: format!("{shape:?}") });
    }
    if !dtypes.contains(&tensor.dtype()) {
        return Err(ClassifierError::WrongDtype { name: name.to_owned(), found: format!("{:?}", tensor.dtype()) });
    }
    Ok(tensor)
}

fn floats(tensors: &SafeTensors<'_>, name: &str, shape: &[usize]) -> Result<Vec<f32>, ClassifierError> {
    let tensor = tensor(tensors, name, shape, &[Dtype::F16, Dtype::F32])?;
    let values: Vec<f32> = match tensor.dtype() {
        Dtype::F16 => tensor.data().as_chunks().0.iter().map(|&bytes| f16::from_le_bytes(bytes).to_f32()).collect(),
        _ => tensor.data().as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect(),
    };
    if values.iter().all(|value| value.is_finite()) {
        Ok(values)
    } else {
        Err(ClassifierError::NonFinite { name: name.to_owned() })
    }
}

fn unsigned(tensors: &SafeTensors<'_>, name: &str, shape: &[usize]) -> Result<Vec<u64>, ClassifierError> {
    let tensor = tensor(tensors, name, shape, &[Dtype::U64])?;
    Ok(tensor.data().as_chunks().0.iter().map(|&bytes| u64::from_le_bytes(bytes)).collect())
}
