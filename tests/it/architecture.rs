//! Who may import what. Editing one of these tables is a design decision, and the commit that does it says so.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Each room of `src/` with the rooms it may name, in the order of the request path. A room absent here fails the test.
const ROOMS: [(&str, &[&str]); 20] = [
    ("event", &[]),
    ("taxonomy", &[]),
    ("text", &[]),
    ("encoder", &[]),
    ("batching", &["encoder", "text"]),
    ("classifier", &["taxonomy", "text"]),
    ("risk", &["event"]),
    ("recommend", &["classifier", "event", "risk", "taxonomy", "text"]),
    ("policy", &["classifier", "event", "risk", "taxonomy", "text"]),
    ("bundle", &["classifier", "event", "policy", "recommend", "risk", "taxonomy"]),
    ("store", &["bundle", "classifier", "decision", "event", "policy", "recommend", "risk", "text"]),
    ("error", &["batching", "event", "store", "text"]),
    (
        "decision",
        &["batching", "bundle", "classifier", "error", "event", "policy", "recommend", "risk", "store", "taxonomy", "text"],
    ),
    ("config", &["batching", "bundle", "encoder", "event", "http", "policy", "store", "telemetry", "text"]),
    ("telemetry", &[]),
    ("http", &["bundle", "classifier", "decision", "error", "event", "policy", "recommend", "risk", "store", "text"]),
    (
        "application",
        &[
            "batching",
            "bundle",
            "classifier",
            "config",
            "decision",
            "encoder",
            "error",
            "event",
            "http",
            "policy",
            "risk",
            "store",
            "taxonomy",
            "text",
        ],
    ),
    ("cli", &["application", "bundle", "config", "decision", "error", "event", "http", "policy", "store", "taxonomy", "telemetry"]),
    ("lib", &[]),
    ("main", &["cli"]),
];

/// Crates that only these rooms may name, so that replacing one is a change of one room.
const FENCED: [(&str, &[&str]); 13] = [
    ("axum", &["http"]),
    ("candle_core", &["encoder"]),
    ("candle_nn", &["encoder"]),
    ("clap", &["cli", "main"]),
    ("csv", &["cli"]),
    ("figment", &["config"]),
    ("hyper", &["http"]),
    ("hyper_util", &["http"]),
    ("parquet", &["cli"]),
    ("prometheus_client", &["http"]),
    ("prost", &["risk"]),
    ("sqlx", &["store"]),
    ("tokenizers", &["text"]),
];

/// Rooms that must stay pure: the same input gives the same answer, whatever the time and the runtime.
const PURE: [&str; 6] = ["classifier", "policy", "recommend", "risk", "taxonomy", "event"];

/// What a pure room must not name.
const IMPURE: [&str; 7] = ["tokio", "Instant::now", "SystemTime", "now_utc", "std::fs", "std::net", "std::thread"];

/// What only the harness may depend on: the serving binary stays small.
const HARNESS_ONLY: [&str; 5] = ["forust-ml", "rand", "rand_distr", "statrs", "plotters"];

#[test]
fn rooms_know_each_other_only_downwards() {
    check_files(|room, code| {
        let Some((_, allowed)) = ROOMS.iter().find(|(name, _)| *name == room) else {
            return vec![format!("the room `{room}` is not in the table")];
        };
        let named = after(code, "crate::").into_iter().chain(after(code, "sluice::"));
        let known = named.filter(|name| ROOMS.iter().any(|(room, _)| room == name));
        known.filter(|name| name != room && !allowed.contains(&name.as_str())).map(|name| format!("names `{name}`")).collect()
    });
}

#[test]
fn fenced_crates_stay_in_their_rooms() {
    check_files(|room, code| {
        let outside = FENCED.iter().filter(|(_, rooms)| !rooms.contains(&room));
        outside.filter(|(name, _)| names_crate(code, name)).map(|(name, _)| format!("names the crate `{name}`")).collect()
    });
}

#[test]
fn pure_rooms_know_no_clock_no_runtime_and_no_files() {
    check_files(|room, code| {
        if !PURE.contains(&room) {
            return Vec::new();
        }
        IMPURE.iter().filter(|word| code.contains(**word)).map(|word| format!("names `{word}`")).collect()
    });
}

#[test]
fn policy_and_risk_cannot_see_the_narrative() {
    check_files(|room, code| {
        let sees = ["policy", "risk"].contains(&room) && (code.contains(".narrative") || code.contains("Content"));
        if sees { vec!["reads the narrative".to_owned()] } else { Vec::new() }
    });
}

#[test]
fn what_only_training_needs_is_a_dependency_of_the_harness_alone() {
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).expect("the workspace has a manifest");
    let serving = manifest.split("\n[dependencies]").nth(1).and_then(|rest| rest.split("\n[").next());
    let serving = serving.expect("the service has dependencies");
    let names: BTreeSet<_> = serving.lines().filter_map(|line| line.split([' ', '.', '=']).next()).collect();
    let leaked: Vec<_> = HARNESS_ONLY.iter().filter(|name| names.contains(**name)).collect();
    assert!(leaked.is_empty(), "the service depends on {leaked:?}");
}

#[test]
fn the_architecture_document_names_every_room() {
    let document = std::fs::read_to_string(root().join("ARCHITECTURE.md")).expect("the project has ARCHITECTURE.md");
    let missing: Vec<_> = ROOMS.iter().filter(|(room, _)| *room != "lib" && !document.contains(&format!("`{room}"))).collect();
    assert!(missing.is_empty(), "ARCHITECTURE.md does not mention {missing:?}");
}

/// Runs `check` over the code (without comments and unit tests) of every file in `src/` and reports all findings at once.
fn check_files(check: impl Fn(&str, &str) -> Vec<String>) {
    let sources = root().join("src");
    let mut files = Vec::new();
    collect(&sources, &mut files);
    assert!(files.len() > 30, "only {} files were found", files.len());
    let mut findings = Vec::new();
    for file in files {
        let relative = file.strip_prefix(&sources).expect("files lie under src");
        let first = relative.components().next().expect("a file has a name").as_os_str().to_string_lossy();
        let room = first.trim_end_matches(".rs");
        let text = std::fs::read_to_string(&file).expect("sources are readable");
        findings.extend(check(room, &code(&text)).into_iter().map(|finding| format!("{}: {finding}", relative.display())));
    }
    assert!(findings.is_empty(), "{}", findings.join("\n"));
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).expect("the source folder is readable") {
        let path = entry.expect("the source folder is readable").path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// The text up to its unit tests, without whole-line comments.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// The identifiers that directly follow `prefix`, those of `prefix{a, b::c}` included.
fn after(code: &str, prefix: &str) -> Vec<String> {
    let mut names = Vec::new();
    for (position, _) in code.match_indices(prefix) {
        if code[..position].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':') {
            continue;
        }
        let rest = &code[position + prefix.len()..];
        match rest.strip_prefix('{') {
            Some(group) => names.extend(group.split('}').next().unwrap_or_default().split(',').map(|item| identifier(item.trim()))),
            None => names.push(identifier(rest)),
        }
    }
    names
}

fn identifier(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

fn names_crate(code: &str, name: &str) -> bool {
    let uses = code
        .match_indices(&format!("{name}::"))
        .any(|(position, _)| !code[..position].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':' || c == '.'));
    uses || code.contains(&format!("use {name};"))
}
