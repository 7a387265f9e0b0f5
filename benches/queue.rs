//! What batching itself costs a text: the queue as plain data, and the whole way through the threads around an engine that does
//! nothing.

use std::time::{Duration, Instant};

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use sluice::batching::{BatchingConfig, Entry, Queue, spawn};
use sluice::encoder::{Embeddings, Encoder, EncoderConfig, EncoderError, PackedBatch};

const TEXT_TOKENS: usize = 50;

fn entry(payload: usize, arrived_at: Instant) -> Entry<usize> {
    // Every third text has a deadline, in mixed order.
    let deadline = payload.is_multiple_of(3).then(|| arrived_at + Duration::from_millis(100 + (payload * 37 % 101) as u64));
    Entry { payload, n_tokens: TEXT_TOKENS, deadline, arrived_at }
}

fn queue(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("queue");
    let now = Instant::now();
    for depth in [8, 512] {
        group.throughput(Throughput::Elements(depth as u64));
        group.bench_function(BenchmarkId::new("fill and empty", depth), |bencher| {
            bencher.iter_batched(
                || Queue::new(256, depth),
                |mut queue| {
                    for payload in 0..depth {
                        queue.push(entry(payload, now)).expect("the queue has room for all");
                    }
                    while !queue.next_batch(now, |_| false).entries.is_empty() {}
                },
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

/// Answers at once.
struct Idle;

impl Encoder for Idle {
    fn encode(&mut self, batch: &PackedBatch) -> Result<Embeddings, EncoderError> {
        Ok(Embeddings::from_rows(vec![1.0; batch.n_sequences()], 1))
    }

    fn hidden_size(&self) -> usize {
        1
    }

    fn max_sequence_tokens(&self) -> usize {
        512
    }
}

fn handle(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime starts");
    let config = EncoderConfig { workers: 1, ..EncoderConfig::default() };
    let handle = spawn(|| Ok(Box::new(Idle)), &config, &BatchingConfig::default()).expect("the worker starts");

    let mut group = criterion.benchmark_group("queue");
    for n_callers in [1, 64] {
        group.throughput(Throughput::Elements(n_callers as u64));
        group.bench_function(BenchmarkId::new("through the handle", n_callers), |bencher| {
            bencher.to_async(&runtime).iter(|| async {
                let calls = (0..n_callers).map(|_| handle.encode(vec![1; TEXT_TOKENS], None));
                for answer in futures_util::future::join_all(calls).await {
                    answer.expect("the idle engine never fails");
                }
            });
        });
    }
    group.finish();
}

criterion_group!(benches, queue, handle);
criterion_main!(benches);
