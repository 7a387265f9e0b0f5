//! The policy room: what the default policy says, what a policy file may not say, and what no case may ever do.

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use sluice::classifier::{Candidate, Classification};
use sluice::event::{Customer, Facts, Order, OrderLine};
use sluice::policy::{self, DEFAULT_POLICY, Disposition, Policy, PolicyInput, Reason, ReasonCode, Thresholds, Verdict};
use sluice::risk::{Band, Priority, RevenueAtRisk, Risk, SlaBreach};
use sluice::taxonomy::{Taxonomy, UNRECOGNIZED};
use sluice::text::TokenCount;

/// Every type is certified, so that nothing but the case itself holds it.
const THRESHOLD: f64 = 0.9;

fn taxonomy() -> Taxonomy {
    Taxonomy::from_toml(include_str!("../../models/bundles/default/taxonomy.toml")).expect("the default taxonomy is sound")
}

fn default_policy() -> Policy {
    Policy::from_toml(DEFAULT_POLICY, &taxonomy()).expect("the default policy is sound")
}

/// The policy of a house whose systems send a fact only where it applies.
fn lenient_policy() -> Policy {
    let text = DEFAULT_POLICY.replace("unknown = \"review\"", "unknown = \"ignore\"");
    Policy::from_toml(&text, &taxonomy()).expect("the lenient variant is sound")
}

fn thresholds() -> Thresholds {
    let rows: Vec<String> = taxonomy()
        .types
        .iter()
        .map(|definition| format!("[[threshold]]\ntype = \"{}\"\nthreshold = {THRESHOLD}\nn = 400\nerrors = 3\n", definition.code))
        .collect();
    let head = "max_error = 0.02\nconfidence = 0.95\nmethod = \"fixed_sequence\"\nsplit = \"held_out\"\n";
    Thresholds::from_toml(&format!("{head}{}", rows.join("")), &taxonomy()).expect("the thresholds are sound")
}

/// What a verdict is about, owned.
#[derive(Debug, Clone)]
struct Case {
    facts: Facts,
    classification: Option<Classification>,
    risk: Option<Risk>,
    action: String,
}

impl Case {
    /// One that the default policy automates.
    fn harmless() -> Self {
        let order = Order {
            value: Some(900.0),
            currency: Some("USD".to_owned()),
            regulated: Some(false),
            export_controlled: Some(false),
            ..Order::default()
        };
        let customer = Customer {
            id: Some("C-1".to_owned()),
            credit_limit: Some(50_000.0),
            credit_exposure: Some(9_000.0),
            days_overdue: Some(0.0),
            requires_authorization: Some(false),
            ..Customer::default()
        };
        let facts = Facts { tenant: "default".to_owned(), order: Some(order), customer: Some(customer), ..Facts::default() };
        Self {
            facts,
            classification: Some(classification("integration_failure", 0.97)),
            risk: Some(risk(Band::Low, Some(50.0))),
            action: "retry_integration".to_owned(),
        }
    }

    fn verdict(&self, policy: &Policy, taxonomy: &Taxonomy, thresholds: &Thresholds) -> Verdict {
        policy.evaluate(&PolicyInput {
            facts: &self.facts,
            classification: self.classification.as_ref(),
            risk: self.risk.as_ref(),
            action: taxonomy.action_by_code(&self.action),
            thresholds,
        })
    }

    fn order(&mut self) -> &mut Order {
        self.facts.order.get_or_insert_default()
    }

    fn customer(&mut self) -> &mut Customer {
        self.facts.customer.get_or_insert_default()
    }
}

fn classification(r#type: &str, acceptance: f64) -> Classification {
    Classification {
        r#type: r#type.to_owned(),
        score: acceptance,
        acceptance,
        abstained: r#type == UNRECOGNIZED,
        candidates: Vec::new(),
        secondary_types: Vec::new(),
        novelty: 0.1,
        owner: shared().1.type_by_code(r#type).map(|definition| definition.owner.clone()),
        tokens: TokenCount { total: 20, used: 20 },
        explanation: None,
    }
}

fn risk(band: Band, expected: Option<f64>) -> Risk {
    Risk {
        sla_breach: SlaBreach { score: 0.2, band },
        revenue_at_risk: expected.map(|expected| RevenueAtRisk { expected, p90: expected, currency: Some("USD".to_owned()) }),
        priority: Priority::Normal,
        missing_features: Vec::new(),
        out_of_range: Vec::new(),
    }
}

// ------------------------------------------------------------------------------------------------------------ policy files

#[test]
fn the_default_policy_decides_its_own_cases_as_it_says() {
    let report = policy::check(DEFAULT_POLICY, &taxonomy()).unwrap();
    assert_eq!(report.failures, []);
    assert!(report.n_cases >= 25, "{} cases", report.n_cases);
    assert_eq!(default_policy().version(), report.version);
}

#[test]
fn the_policy_of_the_guide_fits_any_taxonomy() {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/guides/hand-over.toml")).unwrap();
    let own = r#"
        version = "1"
        type = [{ code = "K01", name = "One", definition = "The first.", owner = "operations" }]
        action = [{ code = "manual_review", name = "Hand over", reversible = true }]
        owner = [{ code = "operations" }]
    "#;
    for taxonomy in [Taxonomy::from_toml(own).unwrap(), taxonomy()] {
        let report = policy::check(&text, &taxonomy).unwrap();
        assert_eq!((report.failures, report.n_cases), (Vec::new(), 1));
    }
}

#[test]
fn a_case_that_is_decided_otherwise_is_reported() {
    let text = DEFAULT_POLICY.replace("max_days_overdue = 30", "max_days_overdue = 60");
    let report = policy::check(&text, &taxonomy()).unwrap();
    assert_eq!(report.failures.len(), 1);
    assert_eq!(report.failures[0].case, "old receivables go to finance");
    assert!(report.failures[0].detail.starts_with("expected Propose, came AutoResolve"), "{}", report.failures[0].detail);
}

#[test]
fn a_policy_file_that_could_mislead_is_refused() {
    let check = |from: &str, to: &str, expected: &str| {
        assert!(DEFAULT_POLICY.contains(from), "`{from}` is not in the default policy");
        let error = Policy::from_toml(&DEFAULT_POLICY.replacen(from, to, 1), &taxonomy()).unwrap_err();
        let message = match std::error::Error::source(&error) {
            Some(cause) => format!("{error}: {cause}"),
            None => error.to_string(),
        };
        assert!(message.contains(expected), "`{to}` gave: {message}");
    };
    check("version =", "vers1on =", "unknown field `vers1on`");
    check("version = \"2026-11-25.2\"", "version = \" \"", "`version` is empty");
    check("currency = \"USD\"", "currency = \"dollar\"", "`dollar` is not a known currency");
    check("EUR = 1.10", "EUR = 0", "`exchange_rates.EUR` must be");
    check("EUR = 1.10", "EUR = nan", "`exchange_rates.EUR` must be");
    check("below = 25000", "below = 2000", "`value_band.below` must be");
    check("name = \"medium\"", "name = \"small\"", "`small` is defined twice");
    check("maximum_novelty = 0.9", "maximum_novelty = 9", "`gate.maximum_novelty` must be a number between 0 and 1");
    check("propose_acceptance = 0.5", "propose_acceptance = 0.7", "at most `gate.minimum_acceptance`");
    check("limit = 25000", "limit = -1", "`guardrails.order_value.limit` must be");
    check("limit = 25000", "limit = inf", "`guardrails.order_value.limit` must be");
    check("limit = 25000\ndisposition = \"propose\"", "limit = 25000\ndisposition = \"auto_resolve\"", "would hold nothing");
    check("[guardrails.credit]", "[guardrails.kredit]", "unknown field `kredit`");
    check("facts = [\"customer.id\"]", "facts = [\"customer.shoe_size\"]", "unknown variant `customer.shoe_size`");
    check("approver_role = \"finance\"", "approver_role = \"nobody\"", "`nobody` is not a known role");
    check("default_role = \"customer_service\"", "default_role = \"nobody\"", "`nobody` is not a known role");
    check("sla_tiers = [\"gold\", \"platinum\"]", "sla_tiers = [\"golden\"]", "`golden` is not a known SLA tier");
    check("types = [\"credit_hold\"]", "types = [\"credit_hald\"]", "`credit_hald` is not a known type");
    check("actions = [\"retry_integration\"]", "actions = [\"retry\"]", "`retry` is not a known action");
    check("types = [\"credit_hold\"]", "types = []", "is empty and would never match");
    check("types = [\"credit_hold\"]", "types = [\"compliance_hold\"]", "rule row `credit` can never be reached");
    check("id = \"pricing\"", "id = \"credit\"", "`credit` is defined twice among the rule rows");
    check("id = \"otherwise\"\n", "id = \"otherwise\"\nwhen = { sites = [\"DC-1\"] }\n", "the last rule row must have no `when`");
    check(
        "disposition = \"propose\"\ndetail = \"no rule",
        "disposition = \"auto_resolve\"\ndetail = \"no rule",
        "frees what nobody thought of",
    );
    check(
        "actions = [\"retry_integration\"], value_bands = [\"small\", \"medium\"]",
        "actions = [\"retry_integration\"], value_bands = [\"medium\"]",
        "would move from rule row `otherwise` to the freer `integration`",
    );
    check(
        "value_bands = [\"small\", \"medium\"] }\napprover_role = \"none\"",
        "value_bands = [\"medium\"] }\napprover_role = \"none\"",
        "would move from approval row `otherwise` to the freer `routine`",
    );
    check("touches = [\"nothing\"], ", "", "approval row `routine` asks for no approval");
    check("when = { reversible = false }", "when = { types = [\"credit_hold\"] }", "names a type");
    check(
        "name = \"low acceptance",
        "name = \"acceptance under the threshold is proposed\" #",
        "is defined twice among the case rows",
    );
    check("action = \"backorder_line\"", "action = \"backorder\"", "`backorder` is not a known action");
}

#[test]
fn a_threshold_file_that_could_mislead_is_refused() {
    let check = |rows: &str, expected: &str| {
        let text = format!("max_error = 0.02\nconfidence = 0.95\nmethod = \"m\"\nsplit = \"s\"\n{rows}");
        let error = Thresholds::from_toml(&text, &taxonomy()).unwrap_err();
        let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        assert!(format!("{error}: {cause}").contains(expected), "{error}: {cause}");
    };
    let row = |fields: &str| format!("[[threshold]]\ntype = \"credit_hold\"\n{fields}\n");
    check(&row("threshold = 0.9\nn = 4\nerrors = 0").replace("credit_hold", "flood"), "`flood` is not a known type");
    check(&row("threshold = 0.9\nn = 4\nerrors = 0").repeat(2), "`credit_hold` is defined twice");
    check(&row("threshold = nan\nn = 4\nerrors = 0"), "must be a finite number");
    check(&row("threshold = 0.9\nn = 4\nerrors = 5"), "must be at most `n`");
    check(&row("n = 4\nerrors = 0"), "must be either a number or `insufficient_evidence = true`");
    check(&row("threshold = 0.9\nn = 4\nerrors = 0\ninsufficient_evidence = true"), "must be either");
    check(&row("threshold = 0.9\nn = 4\nerrors = 0\nmargin = 1"), "unknown field `margin`");
}

#[test]
fn a_type_without_evidence_says_how_much_is_needed() {
    let text = "max_error = 0.02\nconfidence = 0.95\nmethod = \"m\"\nsplit = \"s\"\n[[threshold]]\ntype = \"integration_failure\"\n\
                n = 40\nerrors = 0\ninsufficient_evidence = true\nneeded = 109\n";
    let thresholds = Thresholds::from_toml(text, &taxonomy()).unwrap();
    let verdict = Case::harmless().verdict(&default_policy(), &taxonomy(), &thresholds);
    assert_eq!(verdict.disposition, Disposition::Propose);
    assert_eq!(verdict.reasons[0].code, ReasonCode::InsufficientEvidence);
    assert!(verdict.reasons[0].detail.contains("about 109 more judged cases"));
    assert_eq!((verdict.gate.threshold, verdict.gate.guarantee), (None, None));
}

#[test]
fn a_promise_weaker_than_the_policy_asks_for_automates_nothing() {
    let check = |max_error: &str, confidence: &str, expected: Disposition| {
        let text = format!(
            "max_error = {max_error}\nconfidence = {confidence}\nmethod = \"m\"\nsplit = \"s\"\n[[threshold]]\n\
             type = \"integration_failure\"\nthreshold = 0.9\nn = 400\nerrors = 3\n"
        );
        let thresholds = Thresholds::from_toml(&text, &taxonomy()).unwrap();
        let verdict = Case::harmless().verdict(&default_policy(), &taxonomy(), &thresholds);
        assert_eq!(verdict.disposition, expected, "{max_error} {confidence}");
        assert_eq!(verdict.gate.guarantee.is_some(), expected == Disposition::AutoResolve);
    };
    check("0.05", "0.95", Disposition::AutoResolve);
    check("0.02", "0.99", Disposition::AutoResolve);
    check("0.10", "0.95", Disposition::Propose);
    check("0.05", "0.90", Disposition::Propose);
}

#[test]
fn a_floor_over_the_certified_threshold_shows_no_guarantee() {
    let text = DEFAULT_POLICY.replace("minimum_acceptance = 0.5", "minimum_acceptance = 0.95");
    let policy = Policy::from_toml(&text, &taxonomy()).unwrap();
    let verdict = Case::harmless().verdict(&policy, &taxonomy(), &thresholds());
    assert_eq!(verdict.disposition, Disposition::AutoResolve);
    assert_eq!((verdict.gate.threshold, verdict.gate.guarantee), (Some(0.95), None));
}

// ---------------------------------------------------------------------------------------------------------------- verdicts

#[test]
fn the_harmless_case_is_automated_with_its_guarantee() {
    let verdict = Case::harmless().verdict(&default_policy(), &taxonomy(), &thresholds());
    assert_eq!(verdict.disposition, Disposition::AutoResolve, "{:?}", verdict.reasons);
    assert_eq!(verdict.reasons[0].code, ReasonCode::WithinPolicy);
    assert_eq!(verdict.rule, "integration");
    assert!(verdict.approvers.is_empty());
    assert_eq!(verdict.gate.threshold, Some(THRESHOLD));
    assert_eq!(verdict.gate.guarantee.map(|guarantee| (guarantee.n, guarantee.errors)), Some((400, 3)));
}

#[test]
fn a_later_doubt_takes_automation_away_and_names_a_queue() {
    let mut verdict = Case::harmless().verdict(&default_policy(), &taxonomy(), &thresholds());
    verdict.require_person(Reason { code: ReasonCode::AuditUnavailable, detail: "not recorded".to_owned() });
    assert_eq!(verdict.disposition, Disposition::Review);
    assert_eq!(verdict.approvers, ["it_integration"]);
    let codes: Vec<ReasonCode> = verdict.reasons.iter().map(|reason| reason.code).collect();
    assert_eq!(codes, [ReasonCode::AuditUnavailable]);
}

#[test]
fn a_later_doubt_does_not_soften_an_escalation() {
    let mut case = Case::harmless();
    case.classification = Some(classification("compliance_hold", 0.99));
    let mut verdict = case.verdict(&default_policy(), &taxonomy(), &thresholds());
    verdict.require_person(Reason { code: ReasonCode::AuditUnavailable, detail: "not recorded".to_owned() });
    assert_eq!(verdict.disposition, Disposition::Escalate);
    assert_eq!(verdict.approvers, ["compliance"]);
    assert_eq!(verdict.reasons[0].code, ReasonCode::PolicyRule);
    assert_eq!(verdict.reasons[1].code, ReasonCode::AuditUnavailable);
}

#[test]
fn a_score_that_is_not_a_number_is_held() {
    let check = |spoil: fn(&mut Case)| {
        let mut case = Case::harmless();
        spoil(&mut case);
        let verdict = case.verdict(&default_policy(), &taxonomy(), &thresholds());
        assert_ne!(verdict.disposition, Disposition::AutoResolve, "{:?}", verdict.reasons);
    };
    check(|case| case.classification = Some(classification("integration_failure", f64::NAN)));
    check(|case| case.classification.as_mut().unwrap().novelty = f64::NAN);
    check(|case| case.risk = Some(risk(Band::Low, Some(f64::NAN))));
    check(|case| case.order().value = Some(f64::NAN));
}

#[test]
fn a_text_that_speaks_of_a_second_problem_is_not_settled_by_one_action() {
    let mut case = Case::harmless();
    assert_eq!(case.verdict(&default_policy(), &taxonomy(), &thresholds()).disposition, Disposition::AutoResolve);
    let second = Candidate { r#type: "compliance_hold".to_owned(), score: 0.4 };
    case.classification.as_mut().unwrap().secondary_types = vec![second];
    let verdict = case.verdict(&default_policy(), &taxonomy(), &thresholds());
    assert_eq!(verdict.disposition, Disposition::Propose);
    assert_eq!(verdict.reasons[0].code, ReasonCode::SecondProblem);
    assert!(verdict.reasons[0].detail.contains("compliance_hold"));
}

/// Facts whose absence a house may declare harmless.
const FACTS_TO_IGNORE: [fn(&mut Case); 6] = [
    |case| case.order().regulated = None,
    |case| case.order().export_controlled = None,
    |case| case.customer().requires_authorization = None,
    |case| case.customer().credit_limit = None,
    |case| case.customer().credit_exposure = None,
    |case| case.customer().days_overdue = None,
];

#[test]
fn silence_about_what_forbids_automation_asks_for_a_person() {
    for (fact_idx, forget) in FACTS_TO_IGNORE.into_iter().enumerate() {
        let mut case = Case::harmless();
        forget(&mut case);
        let verdict = case.verdict(&default_policy(), &taxonomy(), &thresholds());
        assert_eq!(verdict.disposition, Disposition::Review, "fact {fact_idx}");
        // A house that knows its systems may say otherwise, and then means it.
        let verdict = case.verdict(&lenient_policy(), &taxonomy(), &thresholds());
        assert_eq!(verdict.disposition, Disposition::AutoResolve, "fact {fact_idx}: {:?}", verdict.reasons);
    }
}

#[test]
fn a_declared_type_is_compared_whatever_its_spelling() {
    #[track_caller]
    fn check(policy: &Policy, declared: &str, expected: Disposition) {
        let mut case = Case::harmless();
        case.facts.declared_type = Some(declared.to_owned());
        let verdict = case.verdict(policy, &taxonomy(), &thresholds());
        assert_eq!(verdict.disposition, expected, "{declared:?}: {:?}", verdict.reasons);
        let differs = verdict.reasons.iter().any(|reason| reason.code == ReasonCode::DeclaredTypeDiffers);
        assert_eq!(differs, expected == Disposition::Review, "{declared:?}");
    }

    let policy = default_policy();
    for same in ["integration_failure", " Integration_Failure ", "INTEGRATION_FAILURE", "", "  "] {
        check(&policy, same, Disposition::AutoResolve);
    }
    for other in ["credit_hold", "Credit_Hold", " compliance_hold", "credit hold", "X12-214-AM", "unrecognized"] {
        check(&policy, other, Disposition::Review);
    }
    check(&lenient_policy(), "X12-214-AM", Disposition::AutoResolve);
    check(&lenient_policy(), "Credit_Hold", Disposition::Review);
}

#[test]
fn a_rule_on_the_declared_type_sees_it_whatever_its_spelling() {
    let first_rule = "[[rule]]\nid = \"compliance\"";
    let rule = "[[rule]]\nid = \"declared\"\nwhen = { declared_types = [\"integration_failure\"] }\ndisposition = \"escalate\"\n\
                detail = \"declared\"\n\n";
    let text = DEFAULT_POLICY.replacen(first_rule, &format!("{rule}{first_rule}"), 1);
    let policy = Policy::from_toml(&text, &taxonomy()).unwrap();
    let mut case = Case::harmless();
    case.facts.declared_type = Some(" Integration_Failure ".to_owned());
    assert_eq!(case.verdict(&policy, &taxonomy(), &thresholds()).disposition, Disposition::Escalate);
}

#[test]
fn the_approver_depends_on_value_reversibility_and_what_is_touched() {
    let (policy, taxonomy) = (default_policy(), taxonomy());
    let check = |action: &str, value: Option<f64>, expected: Option<&str>| {
        let mut case = Case::harmless();
        case.order().value = value;
        let action = taxonomy.action_by_code(action).unwrap();
        assert_eq!(policy.approver_role(action, &case.facts, None).as_deref(), expected, "{} {value:?}", action.code);
    };
    check("backorder_line", Some(900.0), None);
    check("backorder_line", Some(24_999.0), None);
    check("backorder_line", Some(25_000.0), Some("operations_manager"));
    check("backorder_line", None, Some("operations_manager"));
    check("expedite_supply", Some(900.0), Some("order_desk_lead"));
    check("expedite_supply", Some(9_000.0), Some("operations_manager"));
    check("cancel_line", Some(900.0), Some("order_desk_lead"));
    check("release_credit_hold", Some(900.0), Some("finance"));
    check("release_credit_hold", Some(90_000.0), Some("finance"));
}

#[test]
fn no_reason_repeats_what_the_event_says() {
    let mut case = Case::harmless();
    case.facts.site = Some("SECRET-SITE".to_owned());
    case.facts.declared_type = Some("credit_hold".to_owned());
    *case.customer() = Customer {
        id: Some("SECRET-CUSTOMER".to_owned()),
        sla_tier: Some("gold".to_owned()),
        credit_limit: Some(11_111.0),
        credit_exposure: Some(22_222.0),
        days_overdue: Some(333.0),
        requires_authorization: Some(true),
        on_time_in_full_90d: None,
    };
    *case.order() = Order {
        id: Some("SECRET-ORDER".to_owned()),
        value: Some(444_444.0),
        currency: Some("USD".to_owned()),
        regulated: Some(true),
        export_controlled: Some(true),
        ..Order::default()
    };
    case.risk = Some(risk(Band::High, Some(55_555.0)));
    case.action = "release_credit_hold".to_owned();
    let verdict = case.verdict(&default_policy(), &taxonomy(), &thresholds());
    assert!(verdict.reasons.len() >= 11, "{:?}", verdict.reasons);
    for reason in &verdict.reasons {
        for secret in ["SECRET", "11111", "22222", "333", "444444", "55555"] {
            assert!(!reason.detail.contains(secret), "{}", reason.detail);
        }
    }
}

// -------------------------------------------------------------------------------------------------------------- properties

fn amount() -> impl Strategy<Value = f64> {
    prop_oneof![0.0..3_000.0, 0.0..60_000.0, 0.0..1e7]
}

fn band() -> impl Strategy<Value = Band> {
    proptest::sample::select(vec![Band::Low, Band::Medium, Band::High])
}

fn arbitrary_order() -> impl Strategy<Value = Order> {
    let word =
        |words: &'static [&'static str]| proptest::option::weighted(0.8, proptest::sample::select(words).prop_map(str::to_owned));
    let flag = || proptest::option::weighted(0.6, proptest::bool::weighted(0.15));
    let line = (amount(), 0.0..200.0).prop_map(|(ordered, price)| OrderLine {
        ordered: Some(ordered / 100.0),
        unit_price: Some(price),
        ..OrderLine::default()
    });
    (
        proptest::option::weighted(0.9, amount()),
        word(&["USD", "USD", "USD", "EUR", "XAU"]),
        word(&["standard", "Urgent", "critical", "no such word"]),
        flag(),
        flag(),
        proptest::collection::vec(line, 0..3),
    )
        .prop_map(|(value, currency, priority, regulated, export_controlled, lines)| Order {
            value,
            currency,
            priority,
            regulated,
            export_controlled,
            lines,
            ..Order::default()
        })
}

fn arbitrary_customer() -> impl Strategy<Value = Customer> {
    let tier = proptest::sample::select(vec!["gold", "PLATINUM", "silver", "no such tier"]).prop_map(str::to_owned);
    (
        proptest::option::weighted(0.9, Just("C-1".to_owned())),
        proptest::option::weighted(0.8, tier),
        proptest::option::of(amount()),
        proptest::option::of(-1_000.0..20_000.0),
        proptest::option::of(0.0..90.0),
        proptest::option::weighted(0.6, proptest::bool::weighted(0.15)),
    )
        .prop_map(|(id, sla_tier, credit_limit, credit_exposure, days_overdue, requires_authorization)| Customer {
            id,
            sla_tier,
            credit_limit,
            credit_exposure,
            days_overdue,
            requires_authorization,
            on_time_in_full_90d: None,
        })
}

fn arbitrary_classification() -> impl Strategy<Value = Option<Classification>> {
    let (_, taxonomy, _) = shared();
    let types: Vec<String> =
        taxonomy.types.iter().map(|definition| definition.code.clone()).chain([UNRECOGNIZED.to_owned()]).collect();
    let acceptance = prop_oneof![0.0..=1.0, Just(1.0), Just(0.97), THRESHOLD..1.0];
    let novelty = prop_oneof![3 => 0.0..0.5, 1 => 0.0..=1.0];
    let some = (proptest::sample::select(types), acceptance, novelty, prop_oneof![9 => Just(0_usize), 1 => 1_usize..500]);
    proptest::option::weighted(0.95, some).prop_map(|some| {
        some.map(|(r#type, acceptance, novelty, lost)| Classification {
            novelty,
            tokens: TokenCount { total: 20 + lost, used: 20 },
            explanation: None,
            ..classification(&r#type, acceptance)
        })
    })
}

fn arbitrary_case() -> impl Strategy<Value = Case> {
    let actions: Vec<String> = taxonomy().actions.iter().map(|definition| definition.code.clone()).collect();
    let declared = proptest::sample::select(vec!["credit_hold", "X12-AM"]).prop_map(str::to_owned);
    let risk = (band(), proptest::option::weighted(0.9, 0.0..12_000.0)).prop_map(|(band, expected)| risk(band, expected));
    // Half of the cases start from the one that is automated, so that releases are not too rare to mean something.
    let pairs = vec![
        ("integration_failure", "retry_integration"),
        ("order_data_error", "correct_data"),
        ("slotting_conflict", "replan_wave"),
    ];
    let routine = (proptest::sample::select(pairs), prop_oneof![0.0..=1.0, THRESHOLD..1.0]);
    prop_oneof![
        (
            proptest::option::weighted(0.95, arbitrary_order()),
            proptest::option::weighted(0.95, arbitrary_customer()),
            proptest::option::weighted(0.1, declared),
            arbitrary_classification(),
            proptest::option::weighted(0.95, risk),
            proptest::sample::select(actions),
        )
            .prop_map(|(order, customer, declared_type, classification, risk, action)| Case {
                facts: Facts { tenant: "default".to_owned(), declared_type, order, customer, ..Facts::default() },
                classification,
                risk,
                action,
            }),
        routine.prop_map(|((r#type, action), acceptance)| Case {
            classification: Some(classification(r#type, acceptance)),
            action: action.to_owned(),
            ..Case::harmless()
        }),
    ]
}

/// One way in which facts forbid automation.
fn forbid(case: &mut Case, way: usize) {
    match way {
        0 => case.order().regulated = Some(true),
        1 => case.order().export_controlled = Some(true),
        2 => case.customer().requires_authorization = Some(true),
        3 => (case.customer().credit_limit, case.customer().credit_exposure) = (Some(100.0), Some(100.1)),
        4 => case.customer().days_overdue = Some(31.0),
        5 => (case.order().value, case.order().currency) = (Some(25_000.5), Some("USD".to_owned())),
        6 => case.order().value = None,
        7 => case.order().currency = None,
        8 => case.facts.customer = None,
        9 => case.risk = None,
        10 => case.risk = Some(risk(Band::High, Some(1.0))),
        11 => case.risk = Some(risk(Band::Low, Some(5_000.5))),
        12 => case.risk = Some(risk(Band::Low, None)),
        13 => case.action = "split_shipment".to_owned(),
        14 => case.action = "upgrade_service".to_owned(),
        15 => case.action = "release_credit_hold".to_owned(),
        16 => case.action = "manual_review".to_owned(),
        17 => case.action = "no such action".to_owned(),
        _ => case.order().lines = vec![OrderLine { ordered: Some(1_000.0), unit_price: Some(26.0), ..OrderLine::default() }],
    }
}

const WAYS_TO_FORBID: usize = 19;

/// Takes one fact away that a guardrail or a table asks for.
fn forget(case: &mut Case, fact: usize) {
    match fact {
        0 => case.order().value = None,
        1 => case.order().currency = None,
        2 => case.order().priority = None,
        3 => case.order().regulated = None,
        4 => case.order().export_controlled = None,
        5 => case.customer().id = None,
        6 => case.customer().sla_tier = None,
        7 => case.customer().credit_limit = None,
        8 => case.customer().credit_exposure = None,
        9 => case.customer().days_overdue = None,
        10 => case.customer().requires_authorization = None,
        11 => case.facts.customer = None,
        12 => case.facts.order = None,
        13 => case.risk = None,
        14 => case.classification = None,
        _ => case.action = "no such action".to_owned(),
    }
}

const FACTS_TO_FORGET: usize = 16;

/// Makes a case graver or less sure.
fn worsen(case: &mut Case, way: usize, by: f64) {
    match way {
        0 => case.facts.order.iter_mut().for_each(|order| order.value = order.value.map(|value| value + by)),
        1 => case.risk.iter_mut().for_each(|risk| {
            risk.sla_breach.band = if risk.sla_breach.band == Band::Low { Band::Medium } else { Band::High };
        }),
        2 => case.risk.iter_mut().flat_map(|risk| &mut risk.revenue_at_risk).for_each(|revenue| revenue.expected += by),
        3 => case.classification.iter_mut().for_each(|known| known.acceptance -= by / 1e5),
        4 => case.classification.iter_mut().for_each(|known| known.novelty += by / 1e5),
        _ => case.classification.iter_mut().for_each(|known| known.tokens.total += 1),
    }
}

#[test]
fn the_cases_of_the_properties_meet_every_disposition_often() {
    let (policy, taxonomy, thresholds) = shared();
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut counts = std::collections::BTreeMap::new();
    for _ in 0..2_000 {
        let case = arbitrary_case().new_tree(&mut runner).unwrap().current();
        *counts.entry(case.verdict(policy, taxonomy, thresholds).disposition).or_insert(0) += 1;
    }
    assert_eq!(counts.len(), 4, "{counts:?}");
    assert!(counts.values().all(|count| *count >= 50), "{counts:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    #[test]
    fn what_facts_forbid_no_classification_frees(
        case in arbitrary_case(),
        way in 0..WAYS_TO_FORBID,
        other in arbitrary_classification(),
    ) {
        let (policy, taxonomy, thresholds) = shared();
        let mut case = case;
        forbid(&mut case, way);
        for classification in [case.classification.clone(), other] {
            case.classification = classification;
            let verdict = case.verdict(policy, taxonomy, thresholds);
            prop_assert_ne!(verdict.disposition, Disposition::AutoResolve, "way {}", way);
        }
    }

    #[test]
    fn a_graver_or_less_sure_case_is_never_freer(case in arbitrary_case(), way in 0_usize..6, by in 0.0..60_000.0) {
        let (policy, taxonomy, thresholds) = shared();
        let before = case.verdict(policy, taxonomy, thresholds);
        let mut worse = case.clone();
        worsen(&mut worse, way, by);
        let after = worse.verdict(policy, taxonomy, thresholds);
        prop_assert!(after.disposition >= before.disposition, "way {}: {:?} to {:?}", way, before, after);
        let action = taxonomy.action_by_code(&case.action).unwrap();
        let role = |case: &Case| policy.approver_role(action, &case.facts, case.risk.as_ref());
        prop_assert!(role(&worse).is_some() || role(&case).is_none());
    }

    #[test]
    fn a_forgotten_fact_frees_nothing(case in arbitrary_case(), fact in 0..FACTS_TO_FORGET) {
        let (policy, taxonomy, thresholds) = shared();
        let before = case.verdict(policy, taxonomy, thresholds);
        let mut forgetful = case;
        forget(&mut forgetful, fact);
        let after = forgetful.verdict(policy, taxonomy, thresholds);
        let freed = after.disposition == Disposition::AutoResolve && before.disposition != Disposition::AutoResolve;
        prop_assert!(!freed, "fact {}: {:?}", fact, before);
    }

    #[test]
    fn every_verdict_gives_its_reasons_and_who_may_decide(case in arbitrary_case()) {
        let (policy, taxonomy, thresholds) = shared();
        let verdict = case.verdict(policy, taxonomy, thresholds);
        prop_assert_eq!(&verdict, &case.verdict(policy, taxonomy, thresholds));
        prop_assert!(!verdict.reasons.is_empty());
        prop_assert!(verdict.reasons.iter().all(|reason| !reason.detail.is_empty()));
        let automated = verdict.disposition == Disposition::AutoResolve;
        prop_assert_eq!(automated, verdict.approvers.is_empty());
        prop_assert_eq!(automated, verdict.trace.is_empty());
        prop_assert_eq!(automated, verdict.reasons[0].code == ReasonCode::WithinPolicy);
        prop_assert_eq!(verdict.trace.iter().map(|entry| entry.floor).max().unwrap_or(Disposition::AutoResolve), verdict.disposition);
        prop_assert!(verdict.trace.is_sorted_by_key(|entry| std::cmp::Reverse(entry.floor)));
    }

    #[test]
    fn with_automation_off_nothing_is_automated(case in arbitrary_case()) {
        let (_, taxonomy, thresholds) = shared();
        let verdict = case.verdict(shared_off(), taxonomy, thresholds);
        prop_assert_ne!(verdict.disposition, Disposition::AutoResolve);
        prop_assert!(verdict.reasons.iter().any(|reason| reason.code == ReasonCode::AutomationDisabled));
    }
}

/// Parsed once: ten thousand cases would otherwise parse ten thousand files.
fn shared() -> (&'static Policy, &'static Taxonomy, &'static Thresholds) {
    static SHARED: std::sync::LazyLock<(Policy, Taxonomy, Thresholds)> =
        std::sync::LazyLock::new(|| (default_policy(), taxonomy(), thresholds()));
    let (policy, taxonomy, thresholds) = &*SHARED;
    (policy, taxonomy, thresholds)
}

fn shared_off() -> &'static Policy {
    static OFF: std::sync::LazyLock<Policy> = std::sync::LazyLock::new(|| default_policy().with_automation(false));
    &OFF
}
