//! `sluice bundle`, `sluice audit` and `sluice policy`: looking without changing.

use std::path::PathBuf;

use anyhow::Context as _;
use sluice::bundle::{MANIFEST, Manifest};
use sluice::config::Config;
use sluice::decision::AuditReference;
use sluice::policy::{self, DEFAULT_POLICY};
use sluice::store::{IN_MEMORY, Store, StoreError};
use sluice::{application, bundle};

use super::{Outcome, print};

/// Loads a bundle, which checks every hash, and runs its golden cases.
pub(super) async fn verify_bundle(config: &Config, path: Option<PathBuf>) -> anyhow::Result<Outcome> {
    let mut config = config.clone();
    config.bundle.path = path.unwrap_or(config.bundle.path);
    config.store.path = IN_MEMORY.into();
    match application::verify(&config).await {
        Ok(report) => {
            let bundle::BundleIdentity { name, version, hash } = report.identity;
            print(&format!("{name} {version} {hash}: every hash holds, {} golden cases answered as expected", report.n_golden))?;
            Ok(Outcome::Success)
        }
        Err(error) => {
            print(&format!("{}: {:#}", config.bundle.path.display(), anyhow::Error::new(error)))?;
            Ok(Outcome::Failure)
        }
    }
}

/// What a bundle says of itself, without loading its models.
pub(super) fn show_bundle(config: &Config, path: Option<PathBuf>) -> anyhow::Result<Outcome> {
    let path = path.unwrap_or_else(|| config.bundle.path.clone());
    let (manifest, hash) = Manifest::read(&path)?;
    print(&format!("# {hash}\n{}", manifest.to_toml().trim_end()))?;
    Ok(Outcome::Success)
}

/// Every folder beside the configured bundle that holds a manifest.
pub(super) fn list_bundles(config: &Config) -> anyhow::Result<Outcome> {
    let active = config.bundle.path.canonicalize().with_context(|| format!("`{}`", config.bundle.path.display()))?;
    let folder = active.parent().context("the bundle has no folder around it")?;
    let entries = std::fs::read_dir(folder).with_context(|| format!("`{}`", folder.display()))?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<PathBuf>>>()?;
    paths.retain(|path| path.join(MANIFEST).is_file());
    paths.sort();
    let mut outcome = Outcome::Success;
    for path in paths {
        let mark = if path == active { '*' } else { ' ' };
        let folder = path.file_name().unwrap_or_default().display();
        let line = match Manifest::read(&path) {
            Ok((manifest, hash)) => format!("{mark} {folder}: {} {} {hash}", manifest.name, manifest.version),
            Err(error) => {
                outcome = Outcome::Failure;
                format!("{mark} {folder}: {:#}", anyhow::Error::new(error))
            }
        };
        print(&line)?;
    }
    Ok(outcome)
}

/// Walks the audit chain of the configured store.
pub(super) async fn verify_audit(config: &Config, expect_head: Option<&str>) -> anyhow::Result<Outcome> {
    let expected = expect_head.map(parse_head).transpose()?;
    let store = Store::open_reader(&config.store).await.with_context(|| format!("`{}`", config.store.path.display()))?;
    match store.verify_audit(expected.as_ref()).await {
        Ok(report) => {
            print(&format!("{} records hold; head {}:{}", report.records, report.head_sequence, report.head_hash))?;
            Ok(Outcome::Success)
        }
        Err(StoreError::Audit(fault)) => {
            print(&format!("the audit chain is broken: {fault}"))?;
            Ok(Outcome::Failure)
        }
        Err(error) => Err(error.into()),
    }
}

/// Checks a policy file against the taxonomy of the configured bundle and runs its cases.
pub(super) fn check_policy(config: &Config, file: Option<PathBuf>) -> anyhow::Result<Outcome> {
    let file = file.or_else(|| config.policy.path.clone());
    let (name, text) = match &file {
        Some(path) => (path.display().to_string(), std::fs::read_to_string(path).with_context(|| format!("`{}`", path.display()))?),
        None => ("the embedded policy".to_owned(), DEFAULT_POLICY.to_owned()),
    };
    let taxonomy = bundle::taxonomy(&config.bundle.path)?;
    let report = match policy::check(&text, &taxonomy) {
        Ok(report) => report,
        Err(error) => {
            print(&format!("{name}: refused: {:#}", anyhow::Error::new(error)))?;
            return Ok(Outcome::Failure);
        }
    };
    let policy::CheckReport { version, n_rules, n_approvals, n_cases, failures } = report;
    for failure in &failures {
        print(&format!("{name}: case `{}`: {}", failure.case, failure.detail))?;
    }
    print(&format!(
        "{name}: version {version}, {n_rules} rules, {n_approvals} approval rows, {} of {n_cases} cases hold",
        n_cases - failures.len()
    ))?;
    Ok(if failures.is_empty() { Outcome::Success } else { Outcome::Failure })
}

fn parse_head(text: &str) -> anyhow::Result<AuditReference> {
    let reference = text.split_once(':').and_then(|(sequence, hash)| {
        let is_hash = hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
        let sequence = sequence.parse().ok().filter(|_| is_hash)?;
        Some(AuditReference { sequence, hash: hash.to_ascii_lowercase() })
    });
    reference.with_context(|| format!("`{text}` is not SEQ:HASH, as in the `audit` block of an answer"))
}
