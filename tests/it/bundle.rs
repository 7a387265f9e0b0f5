//! What a bundle is refused for, each with its own error, and that nothing of it is parsed before.

use std::path::Path;

use sluice::bundle::{self, Bundle, BundleError, FileEntry, GOLDEN, Manifest, RISK_SLA};
use tempfile::TempDir;

use crate::support::bundle_path;

const RISK_FILES: [&str; 5] = ["features.toml", "risk_sla.onnx", "risk_revenue.onnx", "risk.toml", "risk_golden.json"];

/// A copy of the committed bundle that a test may spoil; the encoder stays where it is.
struct Copy(TempDir);

impl Copy {
    fn new() -> Self {
        let copy = Self(TempDir::new().unwrap());
        for entry in std::fs::read_dir(bundle_path()).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
        }
        copy.edit(|manifest| manifest.encoder.directory = bundle_path().join(&manifest.encoder.directory));
        copy
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn edit(&self, edit: impl FnOnce(&mut Manifest)) {
        let (mut manifest, _) = Manifest::read(self.path()).unwrap();
        edit(&mut manifest);
        self.write("bundle.toml", manifest.to_toml());
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        std::fs::write(self.path().join(name), bytes).unwrap();
    }

    /// Writes a file and lists it as it is.
    fn replace(&self, name: &str, bytes: &str) {
        self.write(name, bytes);
        let entry = FileEntry::describe(self.path(), name).unwrap();
        self.edit(|manifest| *manifest.files.iter_mut().find(|file| file.path == name).unwrap() = entry);
    }

    fn load(&self) -> Result<Bundle, BundleError> {
        bundle::load(self.path())
    }

    #[track_caller]
    fn refused(&self, is_expected: impl FnOnce(&BundleError) -> bool) {
        let error = self.load().unwrap_err();
        assert!(is_expected(&error), "{error:?}");
    }
}

fn unlist(manifest: &mut Manifest, name: &str) {
    let before = manifest.files.len();
    manifest.files.retain(|file| file.path != name);
    assert_eq!(manifest.files.len() + 1, before, "{name} was listed");
}

#[test]
fn an_untouched_copy_loads_under_a_hash_of_its_own() {
    let copy = Copy::new();
    let loaded = copy.load().unwrap();
    assert!(loaded.models.risk.is_some() && !loaded.golden.is_empty());
    let (_, committed) = Manifest::read(&bundle_path()).unwrap();
    assert_ne!(loaded.models.identity.hash, committed, "the manifest names the encoder's folder, so it is another one");
}

#[test]
fn a_file_of_another_size_or_content_is_refused_before_it_is_parsed() {
    let copy = Copy::new();
    let (manifest, _) = Manifest::read(copy.path()).unwrap();
    for FileEntry { path: name, .. } in &manifest.files {
        let original = std::fs::read(copy.path().join(name)).unwrap();
        copy.write(name, [&original[..], b" "].concat());
        copy.refused(|error| matches!(error, BundleError::Size { path, .. } if path == name));
        let mut flipped = original.clone();
        flipped[original.len() / 2] ^= 1;
        copy.write(name, flipped);
        copy.refused(|error| matches!(error, BundleError::Hash { path, .. } if path == name));
        copy.write(name, original);
    }
    for name in bundle::ENCODER_FILES {
        let spoil = |copy: &Copy, spoil: fn(&mut FileEntry)| {
            copy.edit(|manifest| spoil(manifest.encoder.files.iter_mut().find(|file| file.path == name).unwrap()));
        };
        spoil(&copy, |file| file.bytes += 1);
        copy.refused(|error| matches!(error, BundleError::Size { path, .. } if path == name));
        spoil(&copy, |file| file.bytes -= 1);
        spoil(&copy, |file| file.sha256 = "0".repeat(64));
        copy.refused(|error| matches!(error, BundleError::Hash { path, .. } if path == name));
        copy.edit(|spoilt| spoilt.encoder.files.clone_from(&manifest.encoder.files));
    }
    assert!(copy.load().is_ok());
}

#[test]
fn a_name_that_leaves_the_folder_is_refused_before_it_is_read() {
    for name in ["../bundle.toml", "/etc/hostname", "folder/file", "./risk.toml", "risk.toml/", "..", ".", ""] {
        let copy = Copy::new();
        copy.edit(|manifest| manifest.files[0].path = name.to_owned());
        copy.refused(|error| matches!(error, BundleError::FileName { path } if path == name));
        let copy = Copy::new();
        copy.edit(|manifest| manifest.encoder.files[0].path = name.to_owned());
        copy.refused(|error| matches!(error, BundleError::FileName { path } if path == name));
    }
}

#[test]
fn a_file_that_is_listed_twice_is_refused() {
    let copy = Copy::new();
    copy.edit(|manifest| manifest.files.push(manifest.files[1].clone()));
    copy.refused(|error| matches!(error, BundleError::DuplicateFile { .. }));
    let copy = Copy::new();
    copy.edit(|manifest| manifest.encoder.files.push(manifest.encoder.files[1].clone()));
    copy.refused(|error| matches!(error, BundleError::DuplicateFile { .. }));
}

#[test]
fn a_file_that_is_not_there_or_not_listed_is_named() {
    let copy = Copy::new();
    std::fs::remove_file(copy.path().join("actions.toml")).unwrap();
    copy.refused(|error| matches!(error, BundleError::Read { path, .. } if path.ends_with("actions.toml")));
    for name in ["taxonomy.toml", "classifier.toml", "classifier.safetensors", "thresholds.toml", "actions.toml", "golden.json"] {
        let copy = Copy::new();
        copy.edit(|manifest| unlist(manifest, name));
        copy.refused(|error| matches!(error, BundleError::MissingFile { path } if *path == name));
    }
    for name in bundle::ENCODER_FILES {
        let copy = Copy::new();
        copy.edit(|manifest| manifest.encoder.files.retain(|file| file.path != name));
        copy.refused(|error| matches!(error, BundleError::MissingFile { path } if *path == name));
    }
    let copy = Copy::new();
    copy.edit(|manifest| manifest.encoder.directory = "nowhere".into());
    copy.refused(|error| matches!(error, BundleError::Read { .. }));
}

#[test]
fn a_risk_model_is_whole_or_absent() {
    for name in RISK_FILES {
        let copy = Copy::new();
        copy.edit(|manifest| unlist(manifest, name));
        copy.refused(|error| matches!(error, BundleError::MissingFile { path } if *path == name));
    }
    let only_one = Copy::new();
    only_one.edit(|manifest| RISK_FILES.iter().filter(|name| **name != RISK_SLA).for_each(|name| unlist(manifest, name)));
    only_one.refused(|error| matches!(error, BundleError::MissingFile { .. }));
    let absent = Copy::new();
    absent.edit(|manifest| RISK_FILES.iter().for_each(|name| unlist(manifest, name)));
    assert!(absent.load().unwrap().models.risk.is_none());
}

#[test]
fn a_bundle_that_cannot_show_its_answers_is_refused() {
    let copy = Copy::new();
    copy.replace(GOLDEN, "[]");
    copy.refused(|error| matches!(error, BundleError::NoGoldenCases));
    copy.replace(GOLDEN, "[{]");
    copy.refused(|error| matches!(error, BundleError::Golden(_)));
    let expected = r#"{"type": "credit_hold", "score": 1.0, "acceptance": 1.0, "sla_breach": 0.1}"#;
    copy.replace(GOLDEN, &format!(r#"[{{"name": "blank", "event": {{"narrative": " "}}, "expected": {expected}}}]"#));
    copy.refused(|error| matches!(error, BundleError::GoldenEvent { case, .. } if case == "blank"));
}

#[test]
fn a_manifest_that_is_none_is_refused() {
    let copy = Copy::new();
    let manifest = std::fs::read_to_string(copy.path().join("bundle.toml")).unwrap();
    for text in ["", "not toml", &format!("colour = \"red\"\n{manifest}"), &manifest.replacen("version", "vers1on", 1)] {
        copy.write("bundle.toml", text);
        copy.refused(|error| matches!(error, BundleError::Manifest { path, .. } if path.ends_with("bundle.toml")));
    }
    copy.write("bundle.toml", b"\xff\xfe");
    copy.refused(|error| matches!(error, BundleError::Manifest { .. }));
    std::fs::remove_file(copy.path().join("bundle.toml")).unwrap();
    copy.refused(|error| matches!(error, BundleError::Read { path, .. } if path.ends_with("bundle.toml")));
}
