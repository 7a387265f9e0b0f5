//! The risk room against other programs' answers, hostile files, and the default bundle's models.

use std::path::{Path, PathBuf};

use prost::Message;
use serde::Deserialize;
use sluice::event::{Attribute, EventLimits, EventWire, Facts, OrderLine};
use sluice::risk::onnx::{AttributeProto, ModelProto, NodeProto, StringStringEntryProto, TensorProto};
use sluice::risk::{
    Band, Feature, FeatureKind, FeatureSchema, FeatureVector, GoldenRows, Priority, RiskArtefacts, RiskError, RiskModel,
    TreeEnsemble,
};

/// `f32` sums of a hundred leaves in another order.
const RUNTIME_TOLERANCE: f64 = 2e-6;
/// Our `f64` sums of a hundred leaves against shap's.
const CONTRIBUTION_TOLERANCE: f64 = 1e-6;

#[derive(Deserialize)]
struct Reference {
    rows: Vec<Vec<Option<f32>>>,
    scores: Vec<f64>,
    #[serde(default)]
    explained_rows: Vec<Vec<f32>>,
    #[serde(default)]
    contributions: Vec<Vec<f64>>,
    #[serde(default)]
    base: f64,
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/risk").join(name)
}

fn read(path: impl AsRef<Path>) -> Vec<u8> {
    std::fs::read(path.as_ref()).expect("the file is in the repository")
}

fn reference(name: &str) -> (TreeEnsemble, Reference) {
    let ensemble = TreeEnsemble::parse(&read(fixture(&format!("{name}.onnx")))).expect(name);
    let reference: Reference = serde_json::from_slice(&read(fixture(&format!("{name}.json")))).expect(name);
    (ensemble, reference)
}

fn flat(rows: &[Vec<Option<f32>>]) -> Vec<f32> {
    rows.iter().flatten().map(|value| value.unwrap_or(f32::NAN)).collect()
}

#[test]
fn models_of_every_exporter_score_as_onnx_runtime_does() {
    for name in [
        "own",
        "lightgbm_zipmap",
        "lightgbm_plain",
        "lightgbm_regressor",
        "sklearn_gradient_boosting",
        "sklearn_forest",
        "every_mode",
    ] {
        let (ensemble, reference) = reference(name);
        let margins = ensemble.margins(&flat(&reference.rows)).unwrap();
        assert_eq!(margins.len(), reference.scores.len(), "{name}");
        for (row, (margin, expected)) in margins.iter().zip(&reference.scores).enumerate() {
            let got = ensemble.score_of(*margin);
            assert!(
                (got - expected).abs() <= RUNTIME_TOLERANCE * expected.abs().max(1.0),
                "{name} row {row}: {got} is not {expected}"
            );
        }
    }
}

#[test]
fn a_row_scores_the_same_alone_and_in_any_batch() {
    let (ensemble, reference) = reference("own");
    let rows = flat(&reference.rows);
    let together = ensemble.margins(&rows).unwrap();
    for n_rows in [1, 2, 7, 8, 9, 17] {
        let parts = rows.chunks(n_rows * ensemble.n_features()).flat_map(|part| ensemble.margins(part).unwrap());
        assert_eq!(parts.collect::<Vec<f64>>(), together, "in batches of {n_rows}");
    }
}

#[test]
fn contributions_are_those_of_python_shap_and_sum_to_the_margin() {
    let (ensemble, reference) = reference("own");
    assert_eq!(reference.explained_rows.len(), reference.contributions.len());
    for (row, expected) in reference.explained_rows.iter().zip(&reference.contributions) {
        let (base, contributions) = ensemble.contributions(row).unwrap();
        assert!((base - reference.base).abs() < CONTRIBUTION_TOLERANCE, "base {base} is not {}", reference.base);
        for (got, expected) in contributions.iter().zip(expected) {
            assert!((got - expected).abs() < CONTRIBUTION_TOLERANCE, "{got} is not {expected}");
        }
    }
    // Rows with missing values, which shap's generic trees do not take: additivity still holds.
    for row in &reference.rows {
        let row: Vec<f32> = row.iter().map(|value| value.unwrap_or(f32::NAN)).collect();
        let (base, contributions) = ensemble.contributions(&row).unwrap();
        let margin = ensemble.margins(&row).unwrap()[0];
        assert!((base + contributions.iter().sum::<f64>() - margin).abs() < 1e-9);
    }
}

#[test]
fn a_file_without_covers_scores_but_does_not_explain() {
    let (ensemble, _) = reference("lightgbm_zipmap");
    assert!(matches!(ensemble.contributions(&[0.0; 6]), Err(RiskError::NoCovers)));
}

#[test]
fn rows_of_another_width_and_infinite_values_are_refused() {
    let (ensemble, _) = reference("lightgbm_zipmap");
    assert!(matches!(ensemble.margins(&[0.0; 7]), Err(RiskError::Width { expected: 6, got: 7 })));
    let mut rows = [0.0; 12];
    rows[8] = f32::INFINITY;
    assert!(matches!(ensemble.margins(&rows), Err(RiskError::InfiniteRow { row: 1 })));
}

/// Parses the small own model after `change` and expects a refusal that names `reason`.
fn check_refused(reason: &str, change: impl FnOnce(&mut ModelProto)) {
    let mut model = ModelProto::decode(&*read(fixture("own.onnx"))).expect("the fixture is ONNX");
    change(&mut model);
    let error = TreeEnsemble::parse(&model.encode_to_vec()).expect_err(reason);
    assert!(error.to_string().contains(reason), "`{error}` does not name `{reason}`");
}

fn ensemble_node(model: &mut ModelProto) -> &mut NodeProto {
    &mut model.graph.as_mut().expect("the fixture has a graph").node[0]
}

fn attribute<'a>(model: &'a mut ModelProto, name: &str) -> &'a mut AttributeProto {
    ensemble_node(model).attribute.iter_mut().find(|attribute| attribute.name == name).expect(name)
}

#[test]
fn hostile_and_foreign_files_are_refused_with_the_reason() {
    check_refused("operator `MatMul` is not served", |model| {
        let graph = model.graph.as_mut().unwrap();
        graph.node.push(NodeProto { op_type: "MatMul".to_owned(), ..NodeProto::default() });
    });
    check_refused("operator `Cast` is not served", |model| {
        let graph = model.graph.as_mut().unwrap();
        graph.node.insert(0, NodeProto { op_type: "Cast".to_owned(), ..NodeProto::default() });
    });
    check_refused("more than one tree ensemble", |model| {
        let graph = model.graph.as_mut().unwrap();
        graph.node.push(graph.node[0].clone());
    });
    check_refused("no tree ensemble", |model| model.graph.as_mut().unwrap().node.clear());
    check_refused("data in another file", |model| {
        let entry = StringStringEntryProto { key: "location".to_owned(), value: "../secret".to_owned() };
        let tensor = TensorProto { external_data: vec![entry], data_location: 1, ..TensorProto::default() };
        model.graph.as_mut().unwrap().initializer.push(tensor);
    });
    check_refused("2 inputs", |model| {
        let graph = model.graph.as_mut().unwrap();
        graph.input.push(graph.input[0].clone());
    });
    check_refused("does not read the graph's input", |model| ensemble_node(model).input[0] = "other".to_owned());
    check_refused("how many features", |model| {
        let input = &mut model.graph.as_mut().unwrap().input[0];
        let shape = input.r#type.as_mut().unwrap().tensor_type.as_mut().unwrap().shape.as_mut().unwrap();
        shape.dim[1].dim_value = None;
    });
    check_refused("does not exist", |model| attribute(model, "nodes_featureids").ints[0] = 4_000);
    check_refused("does not exist", |model| attribute(model, "nodes_truenodeids").ints[0] = 4_000);
    check_refused("two parents", |model| {
        let right = attribute(model, "nodes_falsenodeids").ints[0];
        attribute(model, "nodes_truenodeids").ints[0] = right;
    });
    check_refused("exactly one root", |model| attribute(model, "nodes_modes").strings[0] = b"LEAF".to_vec());
    check_refused("in a cycle", |model| {
        // The root becomes its own grandchild.
        let child = attribute(model, "nodes_truenodeids").ints[0] as usize;
        attribute(model, "nodes_truenodeids").ints[child] = 0;
    });
    check_refused("stands twice", |model| attribute(model, "nodes_nodeids").ints[1] = 0);
    check_refused("is not finite", |model| attribute(model, "class_weights").floats[0] = f32::NAN);
    check_refused("not a number", |model| attribute(model, "nodes_values").floats[0] = f32::NAN);
    check_refused("mode `BRANCH_EQ` is not served", |model| attribute(model, "nodes_modes").strings[0] = b"BRANCH_EQ".to_vec());
    check_refused("entries for", |model| {
        attribute(model, "nodes_values").floats.pop();
    });
    check_refused("leaf places for", |model| {
        attribute(model, "class_nodeids").ints.pop();
    });
    check_refused("belongs to no leaf", |model| attribute(model, "class_nodeids").ints[0] = 0);
    check_refused("belongs to a tree that does not exist", |model| attribute(model, "class_treeids").ints[0] = 9_999);
    check_refused("only NONE and LOGISTIC", |model| attribute(model, "post_transform").s = b"SOFTMAX".to_vec());
    check_refused("3 classes", |model| attribute(model, "classlabels_int64s").ints.push(2));
    check_refused("runtimes differ", |model| {
        ensemble_node(model).attribute.push(AttributeProto::floats("base_values", vec![0.5, 0.5]));
    });
    check_refused("holds doubles", |model| {
        ensemble_node(model).attribute.push(AttributeProto::floats("nodes_values_as_tensor", Vec::new()));
    });
    check_refused("ai.onnx.ml 5", |model| model.opset_import.iter_mut().for_each(|import| import.version = 5));
}

#[test]
fn a_logistic_regressor_is_refused_because_onnx_runtime_ignores_it() {
    let mut model = ModelProto::decode(&*read(fixture("lightgbm_regressor.onnx"))).unwrap();
    attribute(&mut model, "post_transform").s = b"LOGISTIC".to_vec();
    let error = TreeEnsemble::parse(&model.encode_to_vec()).unwrap_err();
    assert!(error.to_string().contains("ignored by ONNX Runtime"), "{error}");
}

#[test]
fn truncated_and_bit_flipped_files_never_panic() {
    let bytes = read(fixture("lightgbm_zipmap.onnx"));
    for cut in (0..bytes.len()).step_by(997) {
        let _ = TreeEnsemble::parse(&bytes[..cut]);
    }
    for position in (0..bytes.len()).step_by(101) {
        let mut flipped = bytes.clone();
        flipped[position] ^= 1 << (position % 8);
        if let Ok(ensemble) = TreeEnsemble::parse(&flipped) {
            let _ = ensemble.margins(&vec![0.5; ensemble.n_features().min(1 << 16)]);
        }
    }
    assert!(TreeEnsemble::parse(b"").is_err());
    assert!(TreeEnsemble::parse(b"not onnx at all").is_err());
}

fn limits() -> EventLimits {
    EventLimits { max_narrative_chars: 8_192, max_lines: 500, max_attributes: 64 }
}

fn facts(json: &str) -> Facts {
    EventWire::from_json(json.as_bytes())
        .expect("the event is JSON")
        .into_content(&limits())
        .expect("the event is acceptable")
        .facts
}

const CONTRACT_EVENT: &str = r#"{"id":"evt-000431","source":"wms/dc-atlanta","occurred_at":"2026-05-18T14:03:22Z","site":"DC-ATL",
 "narrative":"Line 2 short pick","order":{"id":"SO-45001823","value":18250.0,"margin":0.21,"currency":"USD","priority":"standard",
 "promised_ship_at":"2026-05-18T22:03:22Z","requested_delivery_at":"2026-05-20T15:00:00Z","carrier_cutoff_at":"2026-05-18T20:33:22Z",
 "partial_allowed":true,"regulated":false,"export_controlled":false,
 "lines":[{"line":1,"ordered":10,"available":10},
  {"line":2,"sku":"BRG-6204","ordered":40,"available":28,"unit_price":31.5,
  "substitutes":[{"sku":"BRG-6204-2RS","available":6,"approved":true},{"sku":"X","available":99,"approved":false}],
  "replenishment_at":"2026-05-19T10:03:22Z","replenishment_confirmed":true}]},
 "customer":{"id":"C-1009","sla_tier":"Gold ","credit_limit":50000,"credit_exposure":31200,"days_overdue":0,"on_time_in_full_90d":0.93},
 "shipment":{"carrier":"ACME","service_level":"ground","mode":"ltl","freight_cost":365.0,"alternate_carriers":2},
 "attributes":{"cold_chain":true,"pallets":3,"lane":"ATL-MIA"}}"#;

fn numeric(name: &str) -> Feature {
    let kind = FeatureKind::Numeric;
    Feature { name: name.to_owned(), kind, unit: String::new(), important: false, min: None, max: None, categories: Vec::new() }
}

fn check_fact(event: &str, name: &str, expected: Option<f32>) {
    let boolean = ["replenishment_confirmed", "order.partial_allowed", "attributes.cold_chain"].contains(&name);
    let kind = if boolean { FeatureKind::Boolean } else { FeatureKind::Numeric };
    let schema = FeatureSchema::new(vec![Feature { kind, ..numeric(name) }]).expect(name);
    let vector = FeatureVector::from_facts(&schema, &facts(event)).expect(name);
    let got = vector.values[0];
    match expected {
        Some(expected) => assert!((got - expected).abs() < 1e-4, "{name} is {got}, not {expected}"),
        None => assert!(got.is_nan() && vector.missing == [0], "{name} is {got}, not missing"),
    }
}

#[test]
fn derived_facts_are_computed_from_what_the_event_gives() {
    for (name, expected) in [
        ("order.value", 18250.0),
        ("hours_to_cutoff", 6.5),
        ("hours_to_promised_ship", 8.0),
        ("hour_of_day", 14.0),
        ("day_of_week", 0.0),
        ("month", 5.0),
        ("n_lines", 2.0),
        ("n_short_lines", 1.0),
        ("short_quantity", 12.0),
        ("short_share", 0.24),
        ("short_value", 378.0),
        ("short_value_share", 378.0 / 18250.0),
        ("substitutes_available", 1.0),
        ("substitute_cover", 0.5),
        ("hours_to_replenishment", 20.0),
        ("replenishment_slack", -12.0),
        ("replenishment_confirmed", 1.0),
        ("credit_utilisation", 0.624),
        ("credit_utilisation_with_order", 0.989),
        ("freight_share", 0.02),
        ("order.partial_allowed", 1.0),
        ("shipment.alternate_carriers", 2.0),
        ("attributes.pallets", 3.0),
        ("attributes.cold_chain", 1.0),
    ] {
        check_fact(CONTRACT_EVENT, name, Some(expected));
    }
}

#[test]
fn a_derived_fact_that_no_f32_holds_is_missing_and_never_infinite() {
    let absurd = r#"{"narrative":"x","order":{"value":1e-300,"lines":[{"ordered":3e38,"available":0,"unit_price":3e38}]},
        "customer":{"credit_limit":1e-300,"credit_exposure":3e38},"shipment":{"freight_cost":3e38}}"#;
    for name in ["short_value", "short_value_share", "credit_utilisation", "credit_utilisation_with_order", "freight_share"] {
        check_fact(absurd, name, None);
    }
}

#[test]
fn what_an_event_does_not_give_is_missing_and_never_zero() {
    let bare = r#"{"narrative":"something is wrong"}"#;
    let schema: Vec<&str> = sluice::risk::sources::FACTS
        .iter()
        .filter(|fact| fact.kind == sluice::risk::sources::FactKind::Number)
        .map(|fact| fact.name)
        .collect();
    assert!(schema.len() > 20);
    for name in schema {
        check_fact(bare, name, None);
    }
    // Half a fact is no fact.
    let half = r#"{"narrative":"x","occurred_at":"2026-05-18T14:03:22Z","order":{"value":0,"lines":[{"ordered":5}]},
      "customer":{"credit_limit":0,"credit_exposure":10},"shipment":{"freight_cost":5}}"#;
    for name in ["short_quantity", "short_share", "short_value", "substitutes_available", "credit_utilisation", "freight_share"] {
        check_fact(half, name, None);
    }
    // A short line without a price makes the value of the shortage unknown; a price on another line does not replace it.
    let unpriced =
        r#"{"narrative":"x","order":{"lines":[{"ordered":5,"available":1},{"ordered":5,"available":1,"unit_price":2}]}}"#;
    check_fact(unpriced, "short_value", None);
    check_fact(unpriced, "short_quantity", Some(8.0));
}

#[test]
fn categories_match_without_case_and_unknown_ones_are_reported() {
    let tier = Feature {
        kind: FeatureKind::Categorical,
        categories: vec!["bronze".to_owned(), "gold".to_owned()],
        ..numeric("customer.sla_tier")
    };
    let lane = Feature { categories: vec!["A".to_owned()], name: "attributes.lane".to_owned(), ..tier.clone() };
    let value = Feature { max: Some(1_000.0), ..numeric("order.value") };
    let schema = FeatureSchema::new(vec![tier, lane, value]).unwrap();
    let vector = FeatureVector::from_facts(&schema, &facts(CONTRACT_EVENT)).unwrap();
    assert_eq!(vector.values[0], 1.0);
    assert!(vector.values[1].is_nan());
    assert_eq!(vector.values[2], 18_250.0);
    assert_eq!(vector.out_of_range, [1, 2]);
    assert!(vector.missing.is_empty());
}

#[test]
fn values_a_feature_cannot_hold_are_refused() {
    let mut huge = facts(r#"{"narrative":"x","attributes":{"t":"text"}}"#);
    // No event comes this far with it; a table of the harness may.
    huge.attributes.insert("n".to_owned(), Attribute::Number(1e200));
    let vector = |name: &str| FeatureVector::from_facts(&FeatureSchema::new(vec![numeric(name)]).unwrap(), &huge);
    assert!(matches!(vector("attributes.n"), Err(RiskError::NotFinite { feature }) if feature == "attributes.n"));
    assert!(matches!(vector("attributes.t"), Err(RiskError::WrongKind { feature, .. }) if feature == "attributes.t"));
}

fn check_schema_refused(reason: &str, toml: &str) {
    let error = FeatureSchema::parse(toml).expect_err(reason).to_string();
    assert!(error.contains(reason), "`{error}` does not name `{reason}`");
}

#[test]
fn schemas_outside_the_closed_set_are_refused() {
    let feature = |body: &str| format!("version = 1\n[[feature]]\n{body}\n");
    check_schema_refused("no fact of an event", &feature("name = \"order.colour\"\nkind = \"numeric\""));
    check_schema_refused("no fact of an event", &feature("name = \"narrative\"\nkind = \"categorical\"\ncategories = [\"a\"]"));
    check_schema_refused("no fact of an event", &feature("name = \"declared_type\"\nkind = \"categorical\"\ncategories = [\"a\"]"));
    check_schema_refused("which is not a Boolean feature", &feature("name = \"order.value\"\nkind = \"boolean\""));
    check_schema_refused("must list categories", &feature("name = \"site\"\nkind = \"categorical\""));
    check_schema_refused("stands twice", &feature("name = \"site\"\nkind = \"categorical\"\ncategories = [\"A\", \" a\"]"));
    check_schema_refused("no finite range", &feature("name = \"order.value\"\nkind = \"numeric\"\nmin = 2.0\nmax = 1.0"));
    check_schema_refused("unknown field", &feature("name = \"order.value\"\nkind = \"numeric\"\ncolour = 1"));
    check_schema_refused("version 2", "version = 2\nfeature = []\n");
    check_schema_refused("no feature", "version = 1\nfeature = []\n");
}

struct Files {
    features: Vec<u8>,
    sla: Vec<u8>,
    revenue: Vec<u8>,
    calibration: Vec<u8>,
    golden: Vec<u8>,
}

impl Files {
    fn default_bundle() -> Self {
        let file = |name: &str| read(Path::new(env!("CARGO_MANIFEST_DIR")).join("models/bundles/default").join(name));
        Self {
            features: file("features.toml"),
            sla: file("risk_sla.onnx"),
            revenue: file("risk_revenue.onnx"),
            calibration: file("risk.toml"),
            golden: file("risk_golden.json"),
        }
    }

    fn load(&self) -> Result<RiskModel, RiskError> {
        RiskModel::load(&RiskArtefacts {
            features: &self.features,
            sla: &self.sla,
            revenue: &self.revenue,
            calibration: &self.calibration,
            golden: &self.golden,
        })
    }
}

#[test]
fn a_model_that_scores_otherwise_than_its_trainer_is_refused() {
    let mut files = Files::default_bundle();
    let mut golden: GoldenRows = serde_json::from_slice(&files.golden).unwrap();
    golden.rows[3].revenue += 3e-5;
    files.golden = serde_json::to_vec(&golden).unwrap();
    assert!(matches!(files.load(), Err(RiskError::Golden { model: "revenue", row: 3, .. })));
    files.golden = br#"{"rows":[]}"#.to_vec();
    assert!(matches!(files.load(), Err(RiskError::NoGoldenRows)));
    files.golden = b"{}".to_vec();
    assert!(matches!(files.load(), Err(RiskError::GoldenForm { .. })));
}

#[test]
fn models_that_do_not_belong_together_are_refused() {
    let mut files = Files::default_bundle();
    files.sla = read(fixture("lightgbm_zipmap.onnx"));
    assert!(matches!(files.load(), Err(RiskError::Width { .. })));
    let mut files = Files::default_bundle();
    files.revenue = files.sla.clone();
    assert!(matches!(files.load(), Err(RiskError::RevenueIsProbability)));
    let mut files = Files::default_bundle();
    files.calibration = String::from_utf8(files.calibration).unwrap().replace("medium = 0.2", "medium = 0.9").into_bytes();
    assert!(matches!(files.load(), Err(RiskError::Calibration { .. })));
}

#[test]
fn the_default_models_answer_in_the_currency_of_the_order() {
    let model = Files::default_bundle().load().unwrap();
    let dollars = model.score(&facts(CONTRACT_EVENT)).unwrap();
    let revenue = dollars.revenue_at_risk.unwrap();
    assert!((0.0..=1.0).contains(&dollars.sla_breach.score));
    assert!(revenue.expected > 0.0 && revenue.p90 >= revenue.expected && revenue.p90 <= 2.0 * 18_250.0);
    assert_eq!(revenue.currency.as_deref(), Some("USD"));
    // The same order in a currency worth a tenth: every amount tenfold, the same risk.
    let mut tenfold = facts(CONTRACT_EVENT);
    let order = tenfold.order.as_mut().unwrap();
    order.value = order.value.map(|value| value * 10.0);
    order.lines.iter_mut().for_each(|line| line.unit_price = line.unit_price.map(|price| price * 10.0));
    let shipment = tenfold.shipment.as_mut().unwrap();
    shipment.freight_cost = shipment.freight_cost.map(|cost| cost * 10.0);
    let customer = tenfold.customer.as_mut().unwrap();
    customer.credit_limit = customer.credit_limit.map(|limit| limit * 10.0);
    customer.credit_exposure = customer.credit_exposure.map(|exposure| exposure * 10.0);
    let tenfold = model.score(&tenfold).unwrap();
    assert!((tenfold.sla_breach.score - dollars.sla_breach.score).abs() < 1e-6);
    assert!((tenfold.revenue_at_risk.unwrap().expected - 10.0 * revenue.expected).abs() < 1e-6 * revenue.expected);
}

#[test]
fn a_value_typed_too_low_lowers_no_amount_at_risk() {
    let model = Files::default_bundle().load().unwrap();
    let expected = |value: f64| {
        let mut facts = facts(CONTRACT_EVENT);
        let order = facts.order.as_mut().unwrap();
        order.value = Some(value);
        let line = order.lines[0].clone();
        order.lines.push(OrderLine { ordered: Some(1_000.0), available: Some(1_000.0), unit_price: Some(90.0), ..line });
        let worth = order.worth().unwrap();
        (worth, model.score(&facts).unwrap().revenue_at_risk.unwrap())
    };
    let (worth, low) = expected(100.0);
    assert_eq!(worth, 40.0 * 31.5 + 90_000.0);
    // The shares differ, because a model sees the stated value; both are shares of what the order is worth.
    assert!(low.expected > 0.001 * worth, "{low:?}");
    assert_eq!(expected(100_000.0).0, 100_000.0);
}

#[test]
fn a_bare_narrative_gets_a_middling_risk_and_no_amount() {
    let model = Files::default_bundle().load().unwrap();
    let risk = model.score(&facts(r#"{"narrative":"something is wrong"}"#)).unwrap();
    assert_eq!(risk.revenue_at_risk, None);
    assert_eq!(risk.missing_features[0], "order.value");
    assert_eq!(risk.missing_features.len(), model.schema().n_features() + 1);
    assert!((0.15..0.6).contains(&risk.sla_breach.score), "{}", risk.sla_breach.score);
    assert!(risk.priority < Priority::Critical);
    assert!(risk.out_of_range.is_empty());
}

#[test]
fn a_late_order_of_a_better_tier_is_riskier_and_comes_first() {
    let model = Files::default_bundle().load().unwrap();
    let mut late = facts(CONTRACT_EVENT);
    let order = late.order.as_mut().unwrap();
    order.promised_ship_at = order.promised_ship_at.map(|moment| moment - time::Duration::hours(12));
    order.carrier_cutoff_at = order.carrier_cutoff_at.map(|moment| moment - time::Duration::hours(12));
    let mut early = facts(CONTRACT_EVENT);
    let order = early.order.as_mut().unwrap();
    order.promised_ship_at = order.promised_ship_at.map(|moment| moment + time::Duration::hours(60));
    order.carrier_cutoff_at = order.carrier_cutoff_at.map(|moment| moment + time::Duration::hours(60));
    let (late, early) = (model.score(&late).unwrap(), model.score(&early).unwrap());
    assert!(late.sla_breach.score > early.sla_breach.score + 0.2, "{} and {}", late.sla_breach.score, early.sla_breach.score);
    assert_eq!(late.sla_breach.band, Band::High);
    assert!(late.priority > early.priority);
}

#[test]
fn an_explanation_of_the_default_model_sums_to_its_margin() {
    let model = Files::default_bundle().load().unwrap();
    for event in [CONTRACT_EVENT, r#"{"narrative":"something is wrong"}"#] {
        let explained = model.contributions(&facts(event)).unwrap();
        let sum: f64 = explained.features.iter().map(|feature| feature.contribution).sum();
        assert!((explained.base + sum - explained.margin).abs() < 1e-4);
        assert_eq!(explained.features.len(), model.schema().n_features());
        assert!(explained.features.windows(2).all(|pair| pair[0].contribution.abs() >= pair[1].contribution.abs()));
    }
}

#[test]
fn priority_grows_with_probability_tier_and_money_and_an_unknown_amount_is_neutral() {
    let calibration = Files::default_bundle().load().unwrap().calibration().clone();
    let rule = &calibration.priority;
    let reference = rule.reference_loss["USD"];
    let index = |probability: f64, tier: Option<&str>, loss: Option<f64>, currency: Option<&str>| {
        rule.index(probability, tier, loss, currency)
    };
    let usual = index(0.4, Some("silver"), Some(reference), Some("USD"));
    assert!(index(0.5, Some("silver"), Some(reference), Some("USD")) > usual);
    assert!(index(0.4, Some("PLATINUM "), Some(reference), Some("USD")) > usual);
    assert!(index(0.4, Some("silver"), Some(4.0 * reference), Some("USD")) > usual);
    for (loss, currency) in [(None, Some("USD")), (Some(1e9), None), (Some(1e9), Some("XXX"))] {
        assert!((index(0.4, Some("silver"), loss, currency) - usual).abs() < 1e-12);
    }
    // Money alone at most doubles.
    assert!(index(0.4, Some("silver"), Some(1e12), Some("USD")) <= 2.0 * usual + 1e-12);
    assert_eq!(rule.priority(0.01, Some("bronze"), None, None), Priority::Low);
    assert_eq!(rule.priority(0.99, Some("platinum"), Some(4.0 * reference), Some("USD")), Priority::Critical);
}

#[test]
fn the_loss_limit_is_never_under_the_mean_and_neither_is_negative() {
    let calibration = Files::default_bundle().load().unwrap().calibration().clone();
    for step in -20..120 {
        let predicted = f64::from(step) / 100.0;
        let (mean, p90) = calibration.revenue.mean_and_p90(predicted);
        assert!(mean >= 0.0 && p90 >= mean && p90.is_finite(), "{predicted}: {mean} and {p90}");
    }
}
