//! What policy, the ranking and the summary cost for one event: the part of a decision that is neither model nor store.

use criterion::{Criterion, criterion_group, criterion_main};
use sluice::classifier::{Candidate, Classification};
use sluice::event::{Content, Customer, Facts, Order, OrderLine, Shipment, Substitute};
use sluice::policy::{DEFAULT_POLICY, Policy, PolicyInput, Thresholds};
use sluice::recommend::{RecommendInput, Recommender};
use sluice::risk::{Band, Priority, RevenueAtRisk, Risk, SlaBreach};
use sluice::taxonomy::Taxonomy;
use sluice::text::TokenCount;

criterion_group!(benches, bench);
criterion_main!(benches);

fn bench(criterion: &mut Criterion) {
    let taxonomy = Taxonomy::from_toml(include_str!("../models/bundles/default/taxonomy.toml")).expect("the taxonomy is sound");
    let policy = Policy::from_toml(DEFAULT_POLICY, &taxonomy).expect("the policy is sound");
    let actions = include_str!("../models/bundles/default/actions.toml");
    let recommender = Recommender::from_toml(actions, &taxonomy).expect("the action model is sound");
    let thresholds = thresholds(&taxonomy);
    let content = content();
    let classification = classification(&taxonomy);
    let risk = risk();
    let action = taxonomy.action_by_code("backorder_line");
    let (facts, classification, risk) = (&content.facts, Some(&classification), Some(&risk));

    let mut group = criterion.benchmark_group("policy");
    let input = PolicyInput { facts, classification, risk, action, thresholds: &thresholds };
    group.bench_function("evaluate", |bencher| bencher.iter(|| policy.evaluate(&input)));
    let input = PolicyInput { classification: None, risk: None, ..input };
    group.bench_function("evaluate_held_by_everything", |bencher| bencher.iter(|| policy.evaluate(&input)));
    group.bench_function("load_and_check", |bencher| bencher.iter(|| Policy::from_toml(DEFAULT_POLICY, &taxonomy)));
    group.finish();

    let mut group = criterion.benchmark_group("recommend");
    let input = RecommendInput { taxonomy: &taxonomy, classification, facts, risk };
    group.bench_function("rank", |bencher| bencher.iter(|| recommender.recommend(&input)));
    group.bench_function("summary", |bencher| bencher.iter(|| recommender.summary(&content, classification, risk)));
    group.finish();
}

fn thresholds(taxonomy: &Taxonomy) -> Thresholds {
    let mut text = String::from("max_error = 0.02\nconfidence = 0.95\nmethod = \"fixed_sequence\"\nsplit = \"held_out\"\n");
    for definition in &taxonomy.types {
        text += &format!("[[threshold]]\ntype = \"{}\"\nthreshold = 0.9\nn = 400\nerrors = 2\n", definition.code);
    }
    Thresholds::from_toml(&text, taxonomy).expect("the thresholds are sound")
}

/// An event with every kind of fact, a short line and a text of usual length.
fn content() -> Content {
    let substitute = Substitute { sku: "BRG-6204-2RS".to_owned(), available: Some(60.0), approved: Some(true) };
    let line = OrderLine {
        line: Some(2),
        sku: Some("BRG-6204".to_owned()),
        ordered: Some(40.0),
        available: Some(28.0),
        unit_price: Some(31.5),
        substitutes: vec![substitute],
        replenishment_at: Some(time::macros::datetime!(2026-05-19 10:00 UTC)),
        replenishment_confirmed: Some(true),
    };
    let order = Order {
        id: Some("SO-45001823".to_owned()),
        value: Some(18_250.0),
        currency: Some("USD".to_owned()),
        priority: Some("standard".to_owned()),
        requested_delivery_at: Some(time::macros::datetime!(2026-05-20 15:00 UTC)),
        partial_allowed: Some(true),
        regulated: Some(false),
        export_controlled: Some(false),
        lines: vec![line],
        ..Order::default()
    };
    let customer = Customer {
        id: Some("C-1009".to_owned()),
        sla_tier: Some("gold".to_owned()),
        credit_limit: Some(50_000.0),
        credit_exposure: Some(31_200.0),
        days_overdue: Some(0.0),
        ..Customer::default()
    };
    let shipment = Shipment { carrier: Some("ACME".to_owned()), alternate_carriers: Some(2), ..Shipment::default() };
    Content {
        narrative: "Line 2 short pick, found 28 of 40 in A-14-03. Truck leaves at 20:30 and the customer wants it this week."
            .to_owned(),
        facts: Facts {
            tenant: "default".to_owned(),
            site: Some("DC-ATL".to_owned()),
            order: Some(order),
            customer: Some(customer),
            shipment: Some(shipment),
            ..Facts::default()
        },
    }
}

fn classification(taxonomy: &Taxonomy) -> Classification {
    let n_types = taxonomy.types.len();
    let score = |type_idx: usize| if type_idx == 0 { 0.94 } else { 0.06 / (n_types - 1) as f64 };
    let candidate = |(type_idx, code): (usize, &String)| Candidate { r#type: code.clone(), score: score(type_idx) };
    Classification {
        r#type: taxonomy.types[0].code.clone(),
        score: 0.94,
        acceptance: 0.96,
        abstained: false,
        candidates: taxonomy.types.iter().map(|definition| &definition.code).enumerate().map(candidate).collect(),
        secondary_types: Vec::new(),
        novelty: 0.1,
        owner: Some(taxonomy.types[0].owner.clone()),
        tokens: TokenCount { total: 30, used: 30 },
        explanation: None,
    }
}

fn risk() -> Risk {
    Risk {
        sla_breach: SlaBreach { score: 0.3, band: Band::Medium },
        revenue_at_risk: Some(RevenueAtRisk { expected: 900.0, p90: 2_600.0, currency: Some("USD".to_owned()) }),
        priority: Priority::Normal,
        missing_features: Vec::new(),
        out_of_range: Vec::new(),
    }
}
