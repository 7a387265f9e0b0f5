//! `bundle.toml`: which files decide together, with the size and SHA-256 of each.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{BundleError, ENCODER_ADAPTER, EncoderFiles, MANIFEST};

/// The files of an encoder: configuration, weights, tokenizer.
pub const ENCODER_FILES: [&str; 3] = ["config.json", "model.safetensors", "tokenizer.json"];

/// The manifest of a bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    pub name: String,
    pub version: String,
    pub training: Training,
    pub encoder: EncoderEntry,
    /// Every artefact in the folder, by path.
    #[serde(rename = "file")]
    pub files: Vec<FileEntry>,
}

/// How the artefacts came about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Training {
    /// The command that rebuilds them.
    pub command: String,
    pub seed: u64,
    /// SHA-256 over the names and contents of the training files.
    pub data_sha256: String,
}

/// The encoder that the bundle was trained with; several bundles may share its folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EncoderEntry {
    pub name: String,
    /// Relative to the bundle's folder.
    pub directory: PathBuf,
    #[serde(rename = "file")]
    pub files: Vec<FileEntry>,
}

/// One file as it must be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// A plain file name: no folder, no `..`.
    pub path: String,
    pub bytes: u64,
    /// In lower-case hex.
    pub sha256: String,
}

/// The contents of a bundle's files, each equal to its entry in the manifest.
#[derive(Debug)]
pub struct Artefacts(BTreeMap<String, Vec<u8>>);

impl Manifest {
    /// Reads `bundle.toml` in `directory` and gives it with its own SHA-256, which names the bundle.
    ///
    /// # Errors
    /// [`BundleError::Read`], [`BundleError::Manifest`], and names that leave the folder or come twice.
    pub fn read(directory: &Path) -> Result<(Self, String), BundleError> {
        let path = directory.join(MANIFEST);
        let bytes = read(&path)?;
        let text = String::from_utf8_lossy(&bytes);
        let manifest: Self = toml::from_str(&text).map_err(|source| BundleError::Manifest { path, source })?;
        check_names(&manifest.files)?;
        check_names(&manifest.encoder.files)?;
        Ok((manifest, hex::encode(Sha256::digest(&bytes))))
    }

    /// Reads and checks every artefact.
    ///
    /// # Errors
    /// [`BundleError::Read`], [`BundleError::Size`], [`BundleError::Hash`].
    pub fn read_artefacts(&self, directory: &Path) -> Result<Artefacts, BundleError> {
        let files = self.files.iter().map(|entry| Ok((entry.path.clone(), entry.read(directory)?)));
        files.collect::<Result<_, _>>().map(Artefacts)
    }

    /// Reads and checks the encoder's files; its adapter is an artefact of the bundle.
    ///
    /// # Errors
    /// As [`Self::read_artefacts`], and [`BundleError::MissingFile`] where the manifest does not list one of the three.
    pub fn read_encoder(&self, directory: &Path, artefacts: &Artefacts) -> Result<EncoderFiles, BundleError> {
        let directory = directory.join(&self.encoder.directory);
        let [config, weights, tokenizer] = ENCODER_FILES.map(|path| {
            let entry = self.encoder.files.iter().find(|entry| entry.path == path);
            entry.ok_or(BundleError::MissingFile { path })?.read(&directory)
        });
        let adapter = artefacts.0.get(ENCODER_ADAPTER).cloned();
        Ok(EncoderFiles { config: config?, weights: weights?, tokenizer: tokenizer?, adapter })
    }

    /// The manifest as it stands in the file.
    pub fn to_toml(&self) -> String {
        toml::to_string_pretty(self).expect("a manifest is tables of text and integers")
    }
}

impl EncoderEntry {
    /// Describes the encoder folder `directory` of the bundle in `bundle_directory` as it is now.
    ///
    /// # Errors
    /// [`BundleError::Read`].
    pub fn describe(name: &str, bundle_directory: &Path, directory: &Path) -> Result<Self, BundleError> {
        let files = ENCODER_FILES.map(|path| FileEntry::describe(&bundle_directory.join(directory), path));
        let files = files.into_iter().collect::<Result<_, _>>()?;
        Ok(Self { name: name.to_owned(), directory: directory.to_owned(), files })
    }
}

impl FileEntry {
    /// Describes the file `path` in `directory` as it is now.
    ///
    /// # Errors
    /// [`BundleError::Read`].
    pub fn describe(directory: &Path, path: &str) -> Result<Self, BundleError> {
        let bytes = read(&directory.join(path))?;
        Ok(Self { path: path.to_owned(), bytes: bytes.len() as u64, sha256: hex::encode(Sha256::digest(&bytes)) })
    }

    /// Reads the file and compares it with this entry; nothing has parsed the bytes before.
    fn read(&self, directory: &Path) -> Result<Vec<u8>, BundleError> {
        let bytes = read(&directory.join(&self.path))?;
        let got = bytes.len() as u64;
        if got != self.bytes {
            return Err(BundleError::Size { path: self.path.clone(), expected: self.bytes, got });
        }
        let got = hex::encode(Sha256::digest(&bytes));
        if got != self.sha256 {
            return Err(BundleError::Hash { path: self.path.clone(), expected: self.sha256.clone(), got });
        }
        Ok(bytes)
    }
}

impl Artefacts {
    pub fn has(&self, path: &str) -> bool {
        self.0.contains_key(path)
    }

    /// The bytes of one artefact.
    ///
    /// # Errors
    /// [`BundleError::MissingFile`] where the manifest does not list it.
    pub fn bytes(&self, path: &'static str) -> Result<&[u8], BundleError> {
        self.0.get(path).map(Vec::as_slice).ok_or(BundleError::MissingFile { path })
    }

    /// One artefact as text.
    ///
    /// # Errors
    /// [`BundleError::MissingFile`], [`BundleError::Text`].
    pub fn text(&self, path: &'static str) -> Result<&str, BundleError> {
        std::str::from_utf8(self.bytes(path)?).map_err(|_| BundleError::Text { path })
    }
}

fn read(path: &Path) -> Result<Vec<u8>, BundleError> {
    std::fs::read(path).map_err(|source| BundleError::Read { path: path.to_owned(), source })
}

/// A manifest must not reach out of its folder, whoever wrote it.
fn check_names(files: &[FileEntry]) -> Result<(), BundleError> {
    let mut seen = HashSet::new();
    for FileEntry { path, .. } in files {
        let is_plain = Path::new(path).file_name().is_some_and(|name| name == path.as_str());
        if !is_plain {
            return Err(BundleError::FileName { path: path.clone() });
        }
        if !seen.insert(path) {
            return Err(BundleError::DuplicateFile { path: path.clone() });
        }
    }
    Ok(())
}
