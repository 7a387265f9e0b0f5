//! The store: what durability costs one by one and shared, what a repeat costs, and how fast the chain is walked.
//!
//! The files lie in `SLUICE_BENCH_STORE` where that is set (a directory on the disk to be measured), else in the temporary
//! directory; where that is in memory, the figures say nothing about a disk.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sluice::store::{Store, StoreConfig};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

#[path = "../tests/fixtures/decision.rs"]
#[allow(dead_code, reason = "shared with the tests")]
mod fixture;

use fixture::new_decision;

const VERIFIED_ROWS: usize = 10_000;

fn unique_decision() -> sluice::store::NewDecision {
    new_decision(&uuid::Uuid::now_v7().to_string())
}

fn open(runtime: &Runtime) -> (TempDir, Store) {
    let directory = match std::env::var_os("SLUICE_BENCH_STORE") {
        Some(parent) => tempfile::tempdir_in(parent),
        None => tempfile::tempdir(),
    };
    let directory = directory.expect("a temporary directory");
    let store = runtime.block_on(Store::open(&StoreConfig::at(directory.path().join("bench.db"))));
    (directory, store.expect("an empty directory holds no other writer"))
}

async fn record_together(store: &Store, callers: usize) {
    let mut recording = JoinSet::new();
    for _ in 0..callers {
        let store = store.clone();
        recording.spawn(async move { store.record(unique_decision()).await.expect("the disk takes it") });
    }
    black_box(recording.join_all().await);
}

fn store(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    let (_directory, store) = open(&runtime);
    let mut group = criterion.benchmark_group("store");

    for callers in [1, 64, 256] {
        group.throughput(Throughput::Elements(callers as u64));
        group.bench_function(format!("record/{callers}_callers"), |bencher| {
            bencher.to_async(&runtime).iter(|| record_together(&store, callers));
        });
    }

    let recorded = unique_decision();
    runtime.block_on(store.record(recorded.clone())).expect("the disk takes it");
    group.throughput(Throughput::Elements(1));
    group.bench_function("find", |bencher| {
        bencher.to_async(&runtime).iter(|| async { store.find(&recorded.key, &recorded.input_hash).await.expect("it is there") });
    });
    group.bench_function("decision", |bencher| {
        bencher.to_async(&runtime).iter(|| async { store.decision(&recorded.decision.decision_id).await.expect("it is there") });
    });
    group.finish();
}

fn verify(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    let (_directory, store) = open(&runtime);
    for _ in 0..VERIFIED_ROWS / 500 {
        runtime.block_on(record_together(&store, 500));
    }
    let mut group = criterion.benchmark_group("store");
    group.sample_size(10).throughput(Throughput::Elements(VERIFIED_ROWS as u64));
    group.bench_function("verify_audit", |bencher| {
        bencher.to_async(&runtime).iter(|| async { store.verify_audit(None).await.expect("nobody tampered") });
    });
    group.finish();
}

criterion_group!(benches, store, verify);
criterion_main!(benches);
