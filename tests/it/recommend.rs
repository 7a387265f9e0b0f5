//! The recommend room: what the facts rule out, how actions rank, and a summary that invents nothing.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use proptest::prelude::*;
use sluice::classifier::{Candidate, Classification};
use sluice::event::{Content, Customer, EventWire, Facts, Order, OrderLine, Shipment, Substitute};
use sluice::recommend::{RecommendInput, Recommendation, Recommender};
use sluice::risk::{Band, Priority, RevenueAtRisk, Risk, SlaBreach};
use sluice::taxonomy::{MANUAL_REVIEW, Taxonomy, UNRECOGNIZED};
use sluice::text::TokenCount;

const ACTIONS: &str = include_str!("../../models/bundles/default/actions.toml");

const EXAMPLE: &str = r#"{
    "id": "evt-000431", "source": "wms/dc-atlanta", "occurred_at": "2026-05-18T14:03:22Z", "site": "DC-ATL",
    "narrative": "Hi team,\nLine 2 short pick, found 28 of 40 in A-14-03. Truck leaves at 20:30, customer wants it this week. Pls advise.",
    "order": {"id": "SO-45001823", "value": 18250.0, "currency": "USD", "priority": "standard",
        "promised_ship_at": "2026-05-18T22:00:00Z", "carrier_cutoff_at": "2026-05-18T20:30:00Z",
        "requested_delivery_at": "2026-05-20T15:00:00Z", "partial_allowed": true,
        "lines": [{"line": 2, "sku": "BRG-6204", "ordered": 40, "available": 28, "unit_price": 31.5,
            "substitutes": [{"sku": "BRG-6204-2RS", "available": 60, "approved": true}],
            "replenishment_at": "2026-05-19T10:00:00Z", "replenishment_confirmed": true}]},
    "customer": {"id": "C-1009", "sla_tier": "gold", "credit_limit": 50000, "credit_exposure": 31200, "days_overdue": 0},
    "shipment": {"carrier": "ACME", "alternate_carriers": 2}
}"#;

fn taxonomy() -> Taxonomy {
    Taxonomy::from_toml(include_str!("../../models/bundles/default/taxonomy.toml")).expect("the default taxonomy is sound")
}

/// Parsed once: a property would otherwise parse it thousands of times.
fn shared() -> (&'static Taxonomy, &'static Recommender) {
    static SHARED: LazyLock<(Taxonomy, Recommender)> = LazyLock::new(|| {
        let taxonomy = taxonomy();
        let recommender = Recommender::from_toml(ACTIONS, &taxonomy).expect("the default action model is sound");
        (taxonomy, recommender)
    });
    (&SHARED.0, &SHARED.1)
}

fn recommender() -> &'static Recommender {
    shared().1
}

fn example() -> Content {
    let wire = EventWire::from_json(EXAMPLE.as_bytes()).expect("the example is JSON");
    let facts = Facts {
        occurred_at: wire.occurred_at,
        tenant: "default".to_owned(),
        site: wire.site,
        order: wire.order,
        customer: wire.customer,
        shipment: wire.shipment,
        ..Facts::default()
    };
    Content { narrative: wire.narrative, facts }
}

fn classification(candidates: &[(&str, f64)]) -> Classification {
    let (best, score) = candidates[0];
    Classification {
        r#type: best.to_owned(),
        score,
        acceptance: score,
        abstained: false,
        candidates: candidates.iter().map(|(code, score)| Candidate { r#type: (*code).to_owned(), score: *score }).collect(),
        secondary_types: Vec::new(),
        novelty: 0.0,
        owner: None,
        tokens: TokenCount { total: 20, used: 20 },
        explanation: None,
    }
}

fn risk(expected: Option<f64>) -> Risk {
    let currency = Some("USD".to_owned());
    Risk {
        sla_breach: SlaBreach { score: 0.6234, band: Band::High },
        revenue_at_risk: expected.map(|expected| RevenueAtRisk { expected, p90: expected * 2.0, currency }),
        priority: Priority::High,
        missing_features: Vec::new(),
        out_of_range: Vec::new(),
    }
}

fn rank(facts: &Facts, classification: Option<&Classification>, risk: Option<&Risk>) -> Vec<Recommendation> {
    recommender().recommend(&RecommendInput { taxonomy: shared().0, classification, facts, risk })
}

fn row<'a>(rows: &'a [Recommendation], action: &str) -> &'a Recommendation {
    rows.iter().find(|row| row.action == action).unwrap_or_else(|| panic!("`{action}` is not in {rows:?}"))
}

// ------------------------------------------------------------------------------------------------------------- the model

#[test]
fn an_action_model_that_could_mislead_is_refused() {
    let check = |from: &str, to: &str, expected: &str| {
        assert!(ACTIONS.contains(from), "`{from}` is not in the action model");
        let error = Recommender::from_toml(&ACTIONS.replacen(from, to, 1), &taxonomy()).unwrap_err();
        let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        assert!(format!("{error}: {cause}").contains(expected), "`{to}` gave: {error}: {cause}");
    };
    check("code = \"split_shipment\"", "code = \"split\"", "`split` is no action of the taxonomy");
    check("code = \"hold_for_complete\"", "code = \"split_shipment\"", "`split_shipment` stands twice");
    check("code = \"credit_hold\"", "code = \"credit\"", "`credit` is no type of the taxonomy");
    check("effectiveness = 0.65", "effectiveness = 1.65", "must be a number between 0 and 1");
    check("cost = 85", "cost = -85", "must be a finite number");
    check("requires = [\"replenishment\"]", "requires = [\"luck\"]", "unknown variant `luck`");
    check("value_weight = 0.15", "value_weight = nan", "must be a number between 0 and 1");
    check("EUR = 1.10", "EUR = 0.0", "must be a finite number over 0");
    check("acceptable = { ", "acceptable = { pray = 0.5, ", "`pray` is no action");
    check(
        "code = \"manual_review\"",
        "code = \"manual_review\"\nrequires = [\"replenishment\"]",
        "`manual_review` must require nothing",
    );
}

#[test]
fn doubt_about_the_type_spreads_to_the_actions() {
    let facts = Facts::default();
    let score = |candidates: &[(&str, f64)], action: &str| {
        let rows = rank(&facts, Some(&classification(candidates)), None);
        row(&rows, action).score
    };
    let sure = score(&[("compliance_hold", 1.0)], "compliance_review");
    let torn = score(&[("compliance_hold", 0.5), ("integration_failure", 0.5)], "compliance_review");
    let retry = score(&[("compliance_hold", 0.5), ("integration_failure", 0.5)], "retry_integration");
    assert!((torn - sure / 2.0).abs() < 0.01, "{sure} {torn}");
    assert!((0.4..0.6).contains(&retry), "{retry}");
}

#[test]
fn a_person_comes_last_among_the_feasible_but_first_where_no_type_is_known() {
    let facts = example().facts;
    let rows = rank(&facts, Some(&classification(&[("inventory_shortfall", 1.0)])), None);
    let position = rows.iter().position(|row| row.action == MANUAL_REVIEW).unwrap();
    assert!(
        position > 0 && rows[..position].iter().all(|row| row.feasible) && rows[position + 1..].iter().all(|row| !row.feasible)
    );
    let mut abstained = classification(&[("inventory_shortfall", 0.3), ("credit_hold", 0.3)]);
    abstained.abstained = true;
    abstained.r#type = UNRECOGNIZED.to_owned();
    assert_eq!(rank(&facts, Some(&abstained), None)[0].action, MANUAL_REVIEW);
    assert_eq!(rank(&facts, None, None)[0].action, MANUAL_REVIEW);
}

#[test]
fn expected_value_is_what_is_saved_less_what_it_costs() {
    let facts = example().facts;
    let shortfall = classification(&[("inventory_shortfall", 1.0)]);
    let rows = rank(&facts, Some(&shortfall), Some(&risk(Some(1_000.0))));
    let split = row(&rows, "split_shipment");
    assert_eq!(split.expected_value, Some(1_000.0 * 0.65 - 85.0));
    assert_eq!(split.currency.as_deref(), Some("USD"));
    let mut euros = risk(Some(1_000.0));
    euros.revenue_at_risk.as_mut().unwrap().currency = Some("EUR".to_owned());
    let split = row(&rank(&facts, Some(&shortfall), Some(&euros)), "split_shipment").clone();
    assert!((split.expected_value.unwrap() - (650.0 - 85.0 / 1.1)).abs() < 1e-9);
    assert_eq!(split.currency.as_deref(), Some("EUR"));
    for unknown in [None, Some(&risk(None))] {
        let split = row(&rank(&facts, Some(&shortfall), unknown), "split_shipment").clone();
        assert_eq!((split.expected_value, split.currency), (None, None));
    }
}

// ------------------------------------------------------------------------------------------------------------ feasibility

#[test]
fn facts_rule_actions_out_and_say_why() {
    let check = |r#type: &str, action: &str, spoil: fn(&mut Facts), because: Option<&str>| {
        let mut facts = example().facts;
        spoil(&mut facts);
        let rows = rank(&facts, Some(&classification(&[(r#type, 1.0)])), None);
        assert_eq!(row(&rows, action).infeasible_because.as_deref(), because, "{action}");
        assert_eq!(row(&rows, action).feasible, because.is_none());
    };
    fn order(facts: &mut Facts) -> &mut Order {
        facts.order.as_mut().expect("the example has an order")
    }
    fn line(facts: &mut Facts) -> &mut OrderLine {
        &mut order(facts).lines[0]
    }
    fn customer(facts: &mut Facts) -> &mut Customer {
        facts.customer.as_mut().expect("the example has a customer")
    }
    let shortfall = "inventory_shortfall";
    check(shortfall, "split_shipment", |_| {}, None);
    check(shortfall, "split_shipment", |facts| order(facts).partial_allowed = None, None);
    let because = "the order does not allow partial deliveries";
    check(shortfall, "split_shipment", |facts| order(facts).partial_allowed = Some(false), Some(because));
    check(shortfall, "split_shipment", |facts| line(facts).available = Some(0.0), Some("nothing of the order is available"));
    check(shortfall, "split_shipment", |facts| *facts = Facts::default(), None);
    let because = "no replenishment is planned for what is missing";
    check(shortfall, "backorder_line", |_| {}, None);
    let unplanned = |facts: &mut Facts| (line(facts).replenishment_at, line(facts).replenishment_confirmed) = (None, Some(false));
    check(shortfall, "backorder_line", unplanned, Some(because));
    check("delivery_constraint", "hold_for_complete", unplanned, Some(because));
    check(shortfall, "backorder_line", |facts| line(facts).replenishment_confirmed = Some(false), None);
    let substitution = "backorder_substitution";
    check(substitution, "substitute_item", |_| {}, None);
    check(substitution, "substitute_item", |facts| line(facts).substitutes.clear(), None);
    let because = "no substitute is approved";
    check(substitution, "substitute_item", |facts| line(facts).substitutes[0].approved = Some(false), Some(because));
    let because = "no approved substitute has enough stock for what is missing";
    check(substitution, "substitute_item", |facts| line(facts).substitutes[0].available = Some(11.0), Some(because));
    check(substitution, "substitute_item", |facts| line(facts).substitutes[0].available = Some(12.0), None);
    check(substitution, "substitute_item", |facts| line(facts).substitutes[0].approved = None, None);
    let because = "no alternate carrier can take the shipment";
    let no_carrier = |facts: &mut Facts| facts.shipment.as_mut().expect("a shipment").alternate_carriers = Some(0);
    check("carrier_service_failure", "switch_carrier", no_carrier, Some(because));
    check("carrier_service_failure", "switch_carrier", |facts| facts.shipment = None, None);
    check("credit_hold", "release_credit_hold", |_| {}, None);
    let because = "the customer's exposure is over the credit limit";
    check("credit_hold", "release_credit_hold", |facts| customer(facts).credit_exposure = Some(50_001.0), Some(because));
    let because = "the customer has overdue receivables";
    check("credit_hold", "release_credit_hold", |facts| customer(facts).days_overdue = Some(1.0), Some(because));
}

#[test]
fn an_action_that_facts_speak_for_scores_over_the_same_one_without_facts() {
    let check = |r#type: &str, action: &str| {
        let known = classification(&[(r#type, 1.0)]);
        let supported = row(&rank(&example().facts, Some(&known), None), action).score;
        let unsupported = row(&rank(&Facts::default(), Some(&known), None), action).score;
        assert!((unsupported - 0.8 * supported).abs() < 1e-12, "{action}: {supported} {unsupported}");
    };
    check("inventory_shortfall", "split_shipment");
    check("inventory_shortfall", "backorder_line");
    check("backorder_substitution", "substitute_item");
    check("carrier_service_failure", "switch_carrier");
    check("carrier_service_failure", "trace_shipment");
    check("credit_hold", "release_credit_hold");
    check("damaged_stock", "replace_goods");
}

#[test]
fn a_replenishment_after_the_requested_delivery_speaks_for_nothing() {
    let shortfall = classification(&[("inventory_shortfall", 1.0)]);
    let mut late = example().facts;
    let order = late.order.as_mut().unwrap();
    order.lines[0].replenishment_at = order.requested_delivery_at.map(|at| at + time::Duration::days(1));
    let in_time = row(&rank(&example().facts, Some(&shortfall), None), "backorder_line").score;
    let too_late = row(&rank(&late, Some(&shortfall), None), "backorder_line").clone();
    assert!(too_late.feasible && too_late.score < in_time);
}

// ---------------------------------------------------------------------------------------------------------------- summary

#[test]
fn the_summary_of_the_example_says_what_is_at_stake() {
    let known = classification(&[("inventory_shortfall", 0.9312)]);
    let summary = recommender().summary(&example(), Some(&known), Some(&risk(Some(1_234.5))));
    let expected = [
        "The text reads as Inventory shortfall / partial fill (0.93).",
        r#"The text says: "Line 2 short pick, found 28 of 40 in A-14-03. Truck leaves at 20:30, customer wants it this week. Pls advise.""#,
        "Order SO-45001823 is worth 18250 USD, has priority standard, is promised to ship at 2026-05-18T22:00:00Z, \
         has the carrier's cut-off at 2026-05-18T20:30:00Z, is to be delivered by 2026-05-20T15:00:00Z, may ship in part; \
         customer C-1009 has the tier gold, has used 31200 of a credit limit of 50000.",
        "Line 2 (BRG-6204) has 28 of 40 available, approved substitute BRG-6204-2RS with 60, \
         replenishment at 2026-05-19T10:00:00Z (confirmed).",
        "The risk of missing the promise is 0.62 (high), with 1234.50 USD of revenue expected to be at risk.",
    ];
    assert_eq!(summary, expected.join(" "));
}

#[test]
fn the_summary_says_what_is_not_known_by_saying_nothing() {
    let content = Content { narrative: "see attachment".to_owned(), facts: Facts::default() };
    let check = |classification: Option<&Classification>, expected: &str| {
        assert_eq!(recommender().summary(&content, classification, None), expected);
    };
    check(None, "The text was not classified. The text says: \"see attachment\".");
    let mut abstained = classification(&[("credit_hold", 0.31)]);
    abstained.abstained = true;
    let nearest = "No known type fits the text; the nearest is Credit or payment hold (0.31).";
    check(Some(&abstained), &format!("{nearest} The text says: \"see attachment\"."));
}

#[test]
fn the_quotation_is_short_and_starts_where_the_matter_does() {
    let check = |narrative: &str, expected: &str| {
        let content = Content { narrative: narrative.to_owned(), facts: Facts::default() };
        let summary = recommender().summary(&content, None, None);
        let quote = summary.strip_prefix("The text was not classified. The text says: ").unwrap();
        assert_eq!(quote, expected);
    };
    check("Dear Ms. Okafor,\n\nthe pallet fell over.  Three drums leak", r#""the pallet fell over. Three drums leak"."#);
    check("Hey!\nCount is off by 3.5 kg in bin 4.2, e.g. lot 7", r#""Count is off by 3.5 kg in bin 4.2, e.g. lot 7"."#);
    check("stk?", r#""stk?""#);
    check("line\u{7}one\tis   short of stock", r#""lineone is short of stock"."#);
    let long = format!("The {}end", "crate ".repeat(60));
    let cut = format!("\"The {}crate…\"", "crate ".repeat(38));
    check(&long, &cut);
    let second_does_not_fit = format!("The first sentence says it all. {}", "and ".repeat(70));
    check(&second_does_not_fit, r#""The first sentence says it all.""#);
    assert!(cut.chars().count() <= 243);
}

/// Every number in `text`, as a number, so that `18250` is `18250.0`.
fn numbers(text: &str) -> BTreeSet<String> {
    let pieces = text.split(|c: char| !(c.is_ascii_digit() || c == '.')).map(|piece| piece.trim_matches('.'));
    pieces.filter(|piece| !piece.is_empty()).map(|piece| piece.parse::<f64>().map_or(piece.to_owned(), |n| n.to_string())).collect()
}

fn arbitrary_facts() -> impl Strategy<Value = Facts> {
    let quantity = || proptest::option::of((0_u32..50_000).prop_map(|cents| f64::from(cents) / 100.0));
    let moment = || {
        let seconds = proptest::option::of(1_700_000_000_i64..1_900_000_000);
        seconds.prop_map(|seconds| seconds.map(|seconds| time::OffsetDateTime::from_unix_timestamp(seconds).expect("in range")))
    };
    let substitute = (quantity(), proptest::option::of(any::<bool>())).prop_map(|(available, approved)| Substitute {
        sku: "SUB-77".to_owned(),
        available,
        approved,
    });
    let line = (proptest::option::of(0_u32..9_999), quantity(), quantity(), proptest::collection::vec(substitute, 0..3), moment())
        .prop_map(|(line, ordered, available, substitutes, replenishment_at)| OrderLine {
            line,
            sku: Some("SKU-31".to_owned()),
            ordered,
            available,
            substitutes,
            replenishment_at,
            replenishment_confirmed: Some(true),
            ..OrderLine::default()
        });
    let order = (quantity(), moment(), moment(), proptest::option::of(any::<bool>()), proptest::collection::vec(line, 0..6))
        .prop_map(|(value, promised_ship_at, carrier_cutoff_at, partial_allowed, lines)| Order {
            id: Some("SO-9".to_owned()),
            value,
            currency: Some("USD".to_owned()),
            promised_ship_at,
            carrier_cutoff_at,
            partial_allowed,
            lines,
            ..Order::default()
        });
    let customer = (quantity(), quantity(), quantity()).prop_map(|(credit_limit, credit_exposure, days_overdue)| Customer {
        id: Some("C-5".to_owned()),
        credit_limit,
        credit_exposure,
        days_overdue,
        ..Customer::default()
    });
    (proptest::option::of(order), proptest::option::of(customer), proptest::option::of(0_u32..3)).prop_map(
        |(order, customer, alternate_carriers)| {
            let shipment = Some(Shipment { alternate_carriers, ..Shipment::default() });
            Facts { tenant: "default".to_owned(), order, customer, shipment, ..Facts::default() }
        },
    )
}

fn arbitrary_candidates() -> impl Strategy<Value = Vec<Candidate>> {
    let types: Vec<String> = taxonomy().types.iter().map(|definition| definition.code.clone()).collect();
    proptest::collection::vec(0.0..1.0, types.len())
        .prop_map(move |scores| types.iter().zip(scores).map(|(code, score)| Candidate { r#type: code.clone(), score }).collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn every_number_in_a_summary_stands_in_the_event_or_the_scores(
        facts in arbitrary_facts(),
        narrative in "[A-Za-z]{3,9}( [a-z]{1,8}| [0-9]{1,6}|\\. | [0-9]{1,4}\\.[0-9]{1,2}|, ){0,80}",
        candidates in arbitrary_candidates(),
        abstained: bool,
        expected in proptest::option::of(0.0..10_000.0),
    ) {
        let mut known = classification(&[("credit_hold", candidates[0].score)]);
        (known.candidates, known.abstained) = (candidates, abstained);
        let risk = risk(expected);
        let content = Content { narrative, facts };
        let summary = recommender().summary(&content, Some(&known), Some(&risk));
        let scores = [known.score, known.candidates[0].score, risk.sla_breach.score, expected.unwrap_or_default()];
        let given = scores.map(|score| format!(" {score:.2}")).concat();
        let stated = serde_json::to_string(&content).unwrap();
        let allowed: BTreeSet<String> = numbers(&stated).union(&numbers(&given)).cloned().collect();
        let invented: Vec<_> = numbers(&summary).difference(&allowed).cloned().collect();
        prop_assert!(invented.is_empty(), "{:?} in: {}", invented, summary);
    }

    #[test]
    fn a_ranking_is_whole_ordered_and_the_same_again(
        facts in arbitrary_facts(),
        candidates in arbitrary_candidates(),
        expected in proptest::option::of(0.0..10_000.0),
    ) {
        let mut known = classification(&[("credit_hold", 0.5)]);
        known.candidates = candidates;
        let risk = risk(expected);
        let rows = rank(&facts, Some(&known), Some(&risk));
        prop_assert_eq!(&rows, &rank(&facts, Some(&known), Some(&risk)));
        prop_assert!(rows.iter().map(|row| row.rank).eq(1..=rows.len()));
        prop_assert!(rows.is_sorted_by_key(|row| !row.feasible));
        prop_assert!(rows.iter().all(|row| (0.0..=1.0).contains(&row.score)));
        prop_assert!(rows.iter().all(|row| row.feasible == row.infeasible_because.is_none()));
        prop_assert_eq!(rows.iter().filter(|row| row.action == MANUAL_REVIEW && row.feasible).count(), 1);
        let codes: BTreeSet<&str> = rows.iter().map(|row| row.action.as_str()).collect();
        prop_assert_eq!(codes.len(), rows.len());
    }
}
