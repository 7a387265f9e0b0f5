//! What a narrative costs before the encoder: normalising and tokenising, on one thread.
//!
//! Typical texts are the narratives of one part of the training data, taken in turn; the worst are the longest that are accepted.

use std::hint::black_box;
use std::path::Path;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use sluice::text::{Tokenizer, normalize};

const LONGEST_CHARACTERS: usize = 32_000;

fn tokenize(criterion: &mut Criterion) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let tokenizer_json =
        std::fs::read(root.join("models/encoders/minilm-l6-v2/tokenizer.json")).expect("the encoder is checked in");
    let tokenizer = Tokenizer::from_bytes(&tokenizer_json, 256, 16).expect("the shipped tokenizer is sound");
    let part = std::fs::read_to_string(root.join("training-data/narratives/part-1.jsonl")).expect("the narratives are checked in");
    let narratives: Vec<String> = part
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).expect("each line is JSON"))
        .map(|record| record["narrative"].as_str().expect("each record has a narrative").to_owned())
        .collect();
    let n_tokens: usize = narratives.iter().map(|text| tokenizer.tokenize(&normalize(text)).expect("plain text").count.total).sum();
    let typical = format!("typical of {} tokens", n_tokens / narratives.len());

    let mut group = criterion.benchmark_group("tokenize");
    group.throughput(Throughput::Elements(1));
    let mut next = narratives.iter().cycle();
    group.bench_function(format!("normalize/{typical}"), |bencher| {
        bencher.iter_batched(|| next.next().expect("a cycle has no end"), |text| normalize(text), BatchSize::SmallInput);
    });
    let normalized: Vec<_> = narratives.iter().map(|text| normalize(text)).collect();
    let mut next = normalized.iter().cycle();
    group.bench_function(format!("tokenize/{typical}"), |bencher| {
        bencher.iter_batched(|| next.next().expect("a cycle has no end"), |text| tokenizer.tokenize(text), BatchSize::SmallInput);
    });
    group.sample_size(10);
    for (name, shape) in [("words", "short pick of line 2, "), ("ideographs", "数量不足"), ("expanding", "\u{fdfa}")] {
        let narrative: String = shape.chars().cycle().take(LONGEST_CHARACTERS).collect();
        group.bench_function(format!("normalize/longest {name}"), |bencher| bencher.iter(|| normalize(black_box(&narrative))));
        let text = normalize(&narrative);
        group.bench_function(format!("tokenize/longest {name}"), |bencher| bencher.iter(|| tokenizer.tokenize(black_box(&text))));
    }
    group.finish();
}

criterion_group!(benches, tokenize);
criterion_main!(benches);
