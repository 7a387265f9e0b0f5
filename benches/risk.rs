//! What a risk score costs: the feature vector, both default models on 1, 32 and 1,024 rows, the whole answer, an explanation.

#![allow(missing_docs)]

use std::hint::black_box;
use std::path::Path;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use sluice::event::{EventLimits, EventWire, Facts};
use sluice::risk::{FeatureVector, RiskArtefacts, RiskModel};

const EVENT: &str = r#"{"id":"evt-000431","source":"wms/dc-atlanta","occurred_at":"2026-05-18T14:03:22Z","site":"DC-ATL",
 "narrative":"Line 2 short pick","order":{"value":18250.0,"margin":0.21,"currency":"USD","priority":"standard",
 "promised_ship_at":"2026-05-18T22:00:00Z","requested_delivery_at":"2026-05-20T15:00:00Z","carrier_cutoff_at":"2026-05-18T20:30:00Z",
 "partial_allowed":true,"regulated":false,"export_controlled":false,
 "lines":[{"line":2,"sku":"BRG-6204","ordered":40,"available":28,"unit_price":31.5,
  "substitutes":[{"sku":"BRG-6204-2RS","available":60,"approved":true}],
  "replenishment_at":"2026-05-19T10:00:00Z","replenishment_confirmed":true}]},
 "customer":{"id":"C-1009","sla_tier":"gold","credit_limit":50000,"credit_exposure":31200,"days_overdue":0,"on_time_in_full_90d":0.93},
 "shipment":{"carrier":"ACME","service_level":"ground","mode":"ltl","freight_cost":410.0,"alternate_carriers":2}}"#;

fn facts() -> Facts {
    let limits = EventLimits { max_narrative_chars: 8_192, max_lines: 500, max_attributes: 64 };
    let wire = EventWire::from_json(EVENT.as_bytes()).expect("the event is of the contract");
    wire.into_content(&limits).expect("the event is within bounds").facts
}

fn default_model() -> RiskModel {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/bundles/default");
    let read = |name: &str| std::fs::read(folder.join(name)).expect("the default bundle has its risk artefacts");
    RiskModel::load(&RiskArtefacts {
        features: &read("features.toml"),
        sla: &read("risk_sla.onnx"),
        revenue: &read("risk_revenue.onnx"),
        calibration: &read("risk.toml"),
        golden: &read("risk_golden.json"),
    })
    .expect("the default bundle loads")
}

fn risk(c: &mut Criterion) {
    let (model, facts) = (default_model(), facts());
    c.bench_function("risk/feature_vector", |b| {
        b.iter(|| FeatureVector::from_facts(model.schema(), black_box(&facts)).expect("the facts are finite"));
    });
    c.bench_function("risk/score_event", |b| b.iter(|| model.score(black_box(&facts)).expect("the facts are finite")));
    c.bench_function("risk/contributions", |b| b.iter(|| model.contributions(black_box(&facts)).expect("the model has covers")));

    let row = FeatureVector::from_facts(model.schema(), &facts).expect("the facts are finite").values;
    let mut group = c.benchmark_group("risk/both_models");
    for n_rows in [1_usize, 32, 1_024] {
        // Rows differ, so that branches do not learn one path.
        let rows: Vec<f32> = (0..n_rows).flat_map(|idx| row.iter().map(move |value| value + (idx % 97) as f32 * 0.25)).collect();
        group.throughput(Throughput::Elements(n_rows as u64));
        group.bench_with_input(BenchmarkId::from_parameter(n_rows), &rows, |b, rows| {
            b.iter(|| model.raw_scores(black_box(rows)).expect("the rows are finite"));
        });
    }
    group.finish();
}

criterion_group!(benches, risk);
criterion_main!(benches);
