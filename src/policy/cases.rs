//! The cases a policy file carries: facts, a classification and a risk, and what policy must say about them.
//!
//! They are the tests of the policy's author, run when the policy is checked and before it is live. A case needs no model: it
//! states the scores. It refuses a case that names what the taxonomy does not know.

use serde::Deserialize;

use super::gate::Thresholds;
use super::{Disposition, Policy, PolicyError, PolicyInput, ReasonCode, Verdict};
use crate::classifier::{Candidate, Classification};
use crate::event::{Customer, Facts, Order, Shipment};
use crate::risk::{Band, Priority, RevenueAtRisk, Risk, SlaBreach};
use crate::taxonomy::{Taxonomy, UNRECOGNIZED};
use crate::text::TokenCount;

/// One case with its expected verdict. What it leaves out is as harmless as it can be, so that it shows one thing.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Case {
    pub(super) name: String,
    /// A type code or `unrecognized`; left out where the classifier gave no answer.
    #[serde(default)]
    r#type: Option<String>,
    #[serde(default = "one")]
    acceptance: f64,
    #[serde(default)]
    novelty: f64,
    #[serde(default)]
    lost_tokens: usize,
    /// The certified threshold of the type; left out where evidence is insufficient.
    #[serde(default)]
    threshold: Option<f64>,
    /// Left out where the risk models gave no answer.
    #[serde(default)]
    risk: Option<CaseRisk>,
    action: String,
    #[serde(default = "yes")]
    automation: bool,
    #[serde(default = "default_tenant")]
    tenant: String,
    #[serde(default)]
    business_unit: Option<String>,
    #[serde(default)]
    site: Option<String>,
    #[serde(default)]
    declared_type: Option<String>,
    #[serde(default)]
    order: Option<Order>,
    #[serde(default)]
    customer: Option<Customer>,
    #[serde(default)]
    shipment: Option<Shipment>,
    expect: Expectation,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct CaseRisk {
    sla: Band,
    /// In the order's currency.
    revenue: f64,
}

/// What the verdict must be. Reasons must be among the verdict's; the others are compared where they are given.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Expectation {
    disposition: Disposition,
    #[serde(default)]
    reasons: Vec<ReasonCode>,
    #[serde(default)]
    rule: Option<String>,
    #[serde(default)]
    approvers: Option<Vec<String>>,
}

/// What checking a policy file found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckReport {
    pub version: String,
    pub n_rules: usize,
    pub n_approvals: usize,
    pub n_cases: usize,
    pub failures: Vec<CaseFailure>,
}

/// A case that the policy decides otherwise than its author expects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaseFailure {
    pub case: String,
    /// One sentence: what was expected and what came.
    pub detail: String,
}

/// Reads a policy file, checks it against the taxonomy and runs its cases.
///
/// # Errors
/// Where the file is refused. Cases that fail are in the report.
pub fn check(text: &str, taxonomy: &Taxonomy) -> Result<CheckReport, PolicyError> {
    let policy = Policy::from_toml(text, taxonomy)?;
    Ok(CheckReport {
        version: policy.version().to_owned(),
        n_rules: policy.table.len(),
        n_approvals: policy.approvals.len(),
        n_cases: policy.cases.len(),
        failures: policy.run_cases(taxonomy),
    })
}

impl Policy {
    /// Runs the cases of the policy file; empty where all hold.
    pub fn run_cases(&self, taxonomy: &Taxonomy) -> Vec<CaseFailure> {
        self.cases.iter().filter_map(|case| self.run_case(case, taxonomy)).collect()
    }

    fn run_case(&self, case: &Case, taxonomy: &Taxonomy) -> Option<CaseFailure> {
        let facts = case.facts();
        let classification = case.classification(taxonomy);
        let risk = case.risk();
        let thresholds = Thresholds::for_case(case.r#type.as_deref(), case.threshold);
        let verdict = self.evaluate_with(
            case.automation,
            &PolicyInput {
                facts: &facts,
                classification: classification.as_ref(),
                risk: risk.as_ref(),
                action: taxonomy.action_by_code(&case.action),
                thresholds: &thresholds,
            },
        );
        case.expect.compare(&verdict).map(|detail| CaseFailure { case: case.name.clone(), detail })
    }
}

impl Case {
    pub(super) fn check(&self, taxonomy: &Taxonomy) -> Result<(), PolicyError> {
        let unknown = |kind, name: &String| Err(PolicyError::UnknownName { kind, name: name.clone(), at: self.name.clone() });
        if let Some(code) = self.r#type.as_ref().filter(|code| *code != UNRECOGNIZED && taxonomy.type_by_code(code).is_none()) {
            return unknown("type", code);
        }
        if taxonomy.action_by_code(&self.action).is_none() {
            return unknown("action", &self.action);
        }
        Ok(())
    }

    fn facts(&self) -> Facts {
        Facts {
            occurred_at: None,
            tenant: self.tenant.clone(),
            business_unit: self.business_unit.clone(),
            site: self.site.clone(),
            declared_type: self.declared_type.clone(),
            order: self.order.clone(),
            customer: self.customer.clone(),
            shipment: self.shipment.clone(),
            ..Facts::default()
        }
    }

    fn classification(&self, taxonomy: &Taxonomy) -> Option<Classification> {
        let code = self.r#type.as_ref()?;
        let used = 32;
        Some(Classification {
            r#type: code.clone(),
            score: self.acceptance,
            acceptance: self.acceptance,
            abstained: code == UNRECOGNIZED,
            candidates: vec![Candidate { r#type: code.clone(), score: self.acceptance }],
            secondary_types: Vec::new(),
            novelty: self.novelty,
            owner: taxonomy.type_by_code(code).map(|definition| definition.owner.clone()),
            tokens: TokenCount { total: used + self.lost_tokens, used },
            explanation: None,
        })
    }

    fn risk(&self) -> Option<Risk> {
        let risk = self.risk.as_ref()?;
        let currency = self.order.as_ref().and_then(|order| order.currency.clone());
        let score = match risk.sla {
            Band::Low => 0.1,
            Band::Medium => 0.4,
            Band::High => 0.8,
        };
        Some(Risk {
            sla_breach: SlaBreach { score, band: risk.sla },
            revenue_at_risk: Some(RevenueAtRisk { expected: risk.revenue, p90: risk.revenue, currency }),
            priority: Priority::Normal,
            missing_features: Vec::new(),
            out_of_range: Vec::new(),
        })
    }
}

impl Expectation {
    fn compare(&self, verdict: &Verdict) -> Option<String> {
        if verdict.disposition != self.disposition {
            let came: Vec<_> = verdict.reasons.iter().map(|reason| reason.detail.as_str()).collect();
            return Some(format!("expected {:?}, came {:?}: {}", self.disposition, verdict.disposition, came.join("; ")));
        }
        let lacks = |code: &&ReasonCode| !verdict.reasons.iter().any(|reason| reason.code == **code);
        if let Some(code) = self.reasons.iter().find(lacks) {
            return Some(format!("the reason {code:?} is missing"));
        }
        if let Some(rule) = self.rule.as_ref().filter(|rule| **rule != verdict.rule) {
            return Some(format!("expected the rule `{rule}`, came `{}`", verdict.rule));
        }
        if let Some(approvers) = self.approvers.as_ref().filter(|approvers| **approvers != verdict.approvers) {
            return Some(format!("expected the approvers {approvers:?}, came {:?}", verdict.approvers));
        }
        None
    }
}

fn one() -> f64 {
    1.0
}

fn yes() -> bool {
    true
}

fn default_tenant() -> String {
    "default".to_owned()
}
