//! The forward pass by batch and length, one engine on one thread.
//!
//! The throughput is in texts: `thrpt` of `64 tokens × 32` is what one core embeds a second.

use std::path::Path;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use sluice::encoder::{CandleEncoder, Encoder, PackedBatch};

fn encode(criterion: &mut Criterion) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/encoders/minilm-l6-v2");
    let [config, weights] =
        ["config.json", "model.safetensors"].map(|name| std::fs::read(folder.join(name)).expect("the encoder is checked in"));
    let mut encoder = CandleEncoder::load(&config, &weights).expect("the shipped encoder is sound");

    let mut group = criterion.benchmark_group("encoder");
    group.sample_size(10);
    for n_tokens in [16, 32, 64, 128, 256] {
        for batch_size in [1, 4, 32] {
            // Ids spread over the vocabulary, so that the word table is not served from the cache.
            let ids = |text_idx: usize| (0..n_tokens).map(move |idx| ((text_idx * 7_919 + idx * 104_729) % 30_522) as u32);
            let sequences: Vec<Vec<u32>> = (0..batch_size).map(|text_idx| ids(text_idx).collect()).collect();
            let batch = PackedBatch::from_sequences(sequences.iter().map(Vec::as_slice)).expect("no sequence is empty");
            group.throughput(Throughput::Elements(batch_size as u64));
            group.bench_function(BenchmarkId::new(format!("{n_tokens} tokens"), batch_size), |bencher| {
                bencher.iter(|| encoder.encode(&batch).expect("the ids are in the vocabulary"));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, encode);
criterion_main!(benches);
