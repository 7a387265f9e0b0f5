//! Guardrails: what the facts forbid, whatever the text says.
//!
//! Each guardrail looks at facts, risk or action alone and gives a [`Finding`] with the freest disposition it allows. Where a fact
//! it needs is missing it either holds the case (value, revenue, whatever policy lists as required) or does what the policy file
//! says for the unknown (flags, credit, a declared type that the taxonomy does not know). It refuses to free anything: findings can only make a disposition stricter.

use serde::Deserialize;

use super::evaluate::Finding;
use super::view::{Vocabulary, band_code, declared_type, word};
use super::{Disposition, PolicyError, PolicyInput, ReasonCode};
use crate::event::{Customer, Facts, Order};
use crate::risk::{Band, Risk};
use crate::taxonomy::{ActionDefinition, MANUAL_REVIEW, Touch};

/// The guardrail section of a policy. Nothing in it has a hidden default: a policy says what it holds.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Guardrails {
    pub(super) required_facts: RequiredFacts,
    pub(super) regulated: Flag,
    pub(super) export_controlled: Flag,
    pub(super) requires_authorization: Flag,
    pub(super) credit: Credit,
    /// Over the limit (in the policy's currency) a person decides.
    pub(super) order_value: Limit,
    pub(super) revenue_at_risk: Limit,
    pub(super) sla_risk: SlaRisk,
    pub(super) urgent: Urgent,
    pub(super) declared_type_differs: DeclaredType,
    /// Roles for an action that cannot be undone, or that moves money or grants credit, come from the approval matrix.
    pub(super) irreversible: Hold,
    pub(super) touches_money_or_credit: Hold,
}

/// How strictly a guardrail holds a case, and who may let it pass.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Hold {
    pub(super) disposition: Disposition,
    #[serde(default)]
    pub(super) approver_role: Option<String>,
}

/// Facts without which nothing is automated. The order's value and currency always are, because limits need them.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RequiredFacts {
    pub(super) facts: Vec<FactPath>,
    pub(super) disposition: Disposition,
    #[serde(default)]
    pub(super) approver_role: Option<String>,
}

/// A yes-or-no fact that forbids automation.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Flag {
    pub(super) unknown: Unknown,
    pub(super) disposition: Disposition,
    #[serde(default)]
    pub(super) approver_role: Option<String>,
}

/// What a guardrail does when the event does not state its fact.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Unknown {
    /// As if the fact were harmless: for houses whose systems send it wherever it applies.
    Ignore,
    /// A person decides.
    Review,
}

/// The type that the source system declares, against the one read from the text.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DeclaredType {
    /// What a declared type says that the taxonomy does not know.
    pub(super) unknown: Unknown,
    pub(super) disposition: Disposition,
    #[serde(default)]
    pub(super) approver_role: Option<String>,
}

/// Credit exposure and overdue receivables.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Credit {
    /// Exposure over this share of the limit holds.
    pub(super) max_utilization: f64,
    /// Receivables overdue for longer hold.
    pub(super) max_days_overdue: f64,
    pub(super) unknown: Unknown,
    pub(super) disposition: Disposition,
    #[serde(default)]
    pub(super) approver_role: Option<String>,
}

/// An amount of money over which a person decides.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Limit {
    pub(super) limit: f64,
    pub(super) disposition: Disposition,
    #[serde(default)]
    pub(super) approver_role: Option<String>,
}

/// The band of SLA-breach risk from which a person decides.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SlaRisk {
    pub(super) from: Band,
    pub(super) disposition: Disposition,
    #[serde(default)]
    pub(super) approver_role: Option<String>,
}

/// Which cases want a person at once: a high risk for a customer or an order that matters. Urgency is claimed only from facts
/// that are stated; a case that lacks them is held by the other guardrails, at ordinary speed.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Urgent {
    pub(super) sla_risk_from: Band,
    pub(super) sla_tiers: Vec<String>,
    pub(super) priorities: Vec<String>,
    pub(super) approver_role: String,
}

/// A fact that policy can require, by its path in the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(super) enum FactPath {
    #[serde(rename = "business_unit")]
    BusinessUnit,
    #[serde(rename = "site")]
    Site,
    #[serde(rename = "order")]
    Order,
    #[serde(rename = "order.value")]
    OrderValue,
    #[serde(rename = "order.currency")]
    OrderCurrency,
    #[serde(rename = "order.priority")]
    OrderPriority,
    #[serde(rename = "order.promised_ship_at")]
    OrderPromisedShipAt,
    #[serde(rename = "order.requested_delivery_at")]
    OrderRequestedDeliveryAt,
    #[serde(rename = "order.carrier_cutoff_at")]
    OrderCarrierCutoffAt,
    #[serde(rename = "order.partial_allowed")]
    OrderPartialAllowed,
    #[serde(rename = "order.regulated")]
    OrderRegulated,
    #[serde(rename = "order.export_controlled")]
    OrderExportControlled,
    #[serde(rename = "order.lines")]
    OrderLines,
    #[serde(rename = "customer.id")]
    CustomerId,
    #[serde(rename = "customer.sla_tier")]
    CustomerSlaTier,
    #[serde(rename = "customer.credit_limit")]
    CustomerCreditLimit,
    #[serde(rename = "customer.credit_exposure")]
    CustomerCreditExposure,
    #[serde(rename = "customer.days_overdue")]
    CustomerDaysOverdue,
    #[serde(rename = "customer.requires_authorization")]
    CustomerRequiresAuthorization,
}

impl Guardrails {
    /// # Errors
    /// A guardrail that would hold nothing, a limit that is not a number, an urgent word that the vocabulary lacks.
    pub(super) fn check(&self, vocabulary: &Vocabulary) -> Result<(), PolicyError> {
        let dispositions = [
            ("required_facts", self.required_facts.disposition),
            ("regulated", self.regulated.disposition),
            ("export_controlled", self.export_controlled.disposition),
            ("requires_authorization", self.requires_authorization.disposition),
            ("credit", self.credit.disposition),
            ("order_value", self.order_value.disposition),
            ("revenue_at_risk", self.revenue_at_risk.disposition),
            ("sla_risk", self.sla_risk.disposition),
            ("declared_type_differs", self.declared_type_differs.disposition),
            ("irreversible", self.irreversible.disposition),
            ("touches_money_or_credit", self.touches_money_or_credit.disposition),
        ];
        if let Some((name, _)) = dispositions.into_iter().find(|(_, disposition)| *disposition == Disposition::AutoResolve) {
            return Err(PolicyError::HoldsNothing { guardrail: name });
        }
        super::load::not_negative("guardrails.order_value.limit", self.order_value.limit)?;
        super::load::not_negative("guardrails.revenue_at_risk.limit", self.revenue_at_risk.limit)?;
        super::load::not_negative("guardrails.credit.max_utilization", self.credit.max_utilization)?;
        super::load::not_negative("guardrails.credit.max_days_overdue", self.credit.max_days_overdue)?;
        super::load::known("SLA tier", &self.urgent.sla_tiers, &vocabulary.sla_tiers, "guardrails.urgent")?;
        super::load::known("priority", &self.urgent.priorities, &vocabulary.priorities, "guardrails.urgent")
    }

    /// Every role that a guardrail names.
    pub(super) fn roles(&self) -> impl Iterator<Item = &String> {
        let optional = [
            &self.required_facts.approver_role,
            &self.regulated.approver_role,
            &self.export_controlled.approver_role,
            &self.requires_authorization.approver_role,
            &self.credit.approver_role,
            &self.order_value.approver_role,
            &self.revenue_at_risk.approver_role,
            &self.sla_risk.approver_role,
            &self.declared_type_differs.approver_role,
            &self.irreversible.approver_role,
            &self.touches_money_or_credit.approver_role,
        ];
        optional.into_iter().flatten().chain([&self.urgent.approver_role])
    }

    /// Runs every guardrail; `type_codes` are those of the taxonomy.
    pub(super) fn judge(
        &self,
        vocabulary: &Vocabulary,
        type_codes: &[String],
        input: &PolicyInput<'_>,
        findings: &mut Vec<Finding>,
    ) {
        let order = input.facts.order.as_ref();
        let customer = input.facts.customer.as_ref();
        self.missing_facts(input.facts, findings);
        let regulated = order.and_then(|order| order.regulated);
        self.regulated.judge("guardrail.regulated", regulated, ReasonCode::Regulated, "the order holds regulated goods", findings);
        let export_controlled = order.and_then(|order| order.export_controlled);
        let sentence = "the order holds export-controlled goods";
        self.export_controlled.judge(
            "guardrail.export_controlled",
            export_controlled,
            ReasonCode::ExportControlled,
            sentence,
            findings,
        );
        let authorization = customer.and_then(|customer| customer.requires_authorization);
        let sentence = "orders of this customer need an authorisation";
        let code = ReasonCode::RequiresAuthorization;
        self.requires_authorization.judge("guardrail.requires_authorization", authorization, code, sentence, findings);
        self.credit.judge(customer, findings);
        self.order_value(vocabulary, order, findings);
        self.risk(vocabulary, input.facts, input.risk, findings);
        self.declared_type(type_codes, input, findings);
        self.action(input.action, findings);
    }

    fn missing_facts(&self, facts: &Facts, findings: &mut Vec<Finding>) {
        let mut missing = Vec::new();
        for path in [FactPath::OrderValue, FactPath::OrderCurrency].iter().chain(&self.required_facts.facts) {
            if !path.is_stated(facts) && !missing.contains(&path.name()) {
                missing.push(path.name());
            }
        }
        if !missing.is_empty() {
            let detail = format!("facts that policy needs are missing: {}", missing.join(", "));
            let hold = &self.required_facts;
            let finding = Finding::new("guardrail.required_facts", hold.disposition, ReasonCode::MissingFacts, detail);
            findings.push(finding.with_role(hold.approver_role.as_ref()));
        }
    }

    fn order_value(&self, vocabulary: &Vocabulary, order: Option<&Order>, findings: &mut Vec<Finding>) {
        let (id, limit) = ("guardrail.order_value", &self.order_value);
        let currency = &vocabulary.money.currency;
        match vocabulary.order_value(order) {
            Some(value) if value <= limit.limit => {}
            Some(_) => {
                let detail = format!("the order is worth more than the {} {currency} that automation may touch", limit.limit);
                findings.push(limit.finding(id, ReasonCode::OrderValueLimit, detail));
            }
            // Without a value or a currency the required facts hold the case already, and say so.
            None if order.is_none_or(|order| order.value.is_none() || order.currency.is_none()) => {}
            None => {
                let detail = format!("the order's value cannot be told in {currency}; the policy may lack an exchange rate");
                findings.push(limit.finding(id, ReasonCode::MissingFacts, detail));
            }
        }
    }

    fn risk(&self, vocabulary: &Vocabulary, facts: &Facts, risk: Option<&Risk>, findings: &mut Vec<Finding>) {
        let Some(risk) = risk else {
            let detail = "the risk models gave no answer";
            findings.push(Finding::new("guardrail.risk", Disposition::Review, ReasonCode::RiskUnavailable, detail));
            return;
        };
        let limit = &self.revenue_at_risk;
        let stated = facts.order.as_ref().and_then(|order| order.currency.as_deref());
        let expected = risk
            .revenue_at_risk
            .as_ref()
            .and_then(|revenue| vocabulary.money.convert(revenue.expected, revenue.currency.as_deref().or(stated)));
        match expected {
            Some(expected) if expected <= limit.limit => {}
            Some(_) => {
                let detail = format!("more than {} {} is expected to be at risk", limit.limit, vocabulary.money.currency);
                findings.push(limit.finding("guardrail.revenue_at_risk", ReasonCode::RevenueLimit, detail));
            }
            None => {
                let detail = "the money at risk could not be scored in the policy's currency";
                findings.push(limit.finding("guardrail.revenue_at_risk", ReasonCode::RiskUnavailable, detail.to_owned()));
            }
        }
        let band = risk.sla_breach.band;
        if band >= self.sla_risk.from {
            let detail = format!("the risk that the promise to the customer breaks is {}", band_code(band));
            let finding = Finding::new("guardrail.sla_risk", self.sla_risk.disposition, ReasonCode::HighSlaRisk, detail);
            findings.push(finding.with_role(self.sla_risk.approver_role.as_ref()));
        }
        if self.urgent.applies(band, facts) {
            let detail = "the customer's tier or the order's priority, with this risk, asks for a person at once";
            let finding = Finding::new("guardrail.urgent", Disposition::Escalate, ReasonCode::Urgent, detail);
            findings.push(finding.with_role(Some(&self.urgent.approver_role)));
        }
    }

    /// The declared type is a hint that is never trusted, but where the text reads as another, one of the two is wrong. Whether a code
    /// that the taxonomy does not know contradicts the text nobody can tell.
    fn declared_type(&self, type_codes: &[String], input: &PolicyInput<'_>, findings: &mut Vec<Finding>) {
        let (Some(declared), Some(classification)) = (declared_type(input.facts), input.classification) else { return };
        let hold = &self.declared_type_differs;
        let (floor, detail) = match type_codes.iter().find(|code| code.eq_ignore_ascii_case(declared)) {
            Some(code) if *code == classification.r#type => return,
            Some(_) => (hold.disposition, "the type declared by the source system and the one read from the text differ"),
            None if hold.unknown == Unknown::Ignore => return,
            None => (Disposition::Review, "the source system declares a type that is not known here"),
        };
        let finding = Finding::new("guardrail.declared_type", floor, ReasonCode::DeclaredTypeDiffers, detail);
        findings.push(finding.with_role(hold.approver_role.as_ref()));
    }

    fn action(&self, action: Option<&ActionDefinition>, findings: &mut Vec<Finding>) {
        let Some(action) = action.filter(|action| action.code != MANUAL_REVIEW) else {
            let detail = "no action but a manual review is feasible";
            findings.push(Finding::new("guardrail.action", Disposition::Review, ReasonCode::NoFeasibleAction, detail));
            return;
        };
        if !action.reversible {
            let hold = &self.irreversible;
            let detail = format!("the action `{}` cannot be undone", action.code);
            let finding = Finding::new("guardrail.irreversible", hold.disposition, ReasonCode::Irreversible, detail);
            findings.push(finding.with_role(hold.approver_role.as_ref()));
        }
        if !action.touches.is_empty() {
            let what = if action.touches.contains(&Touch::Credit) { "grants credit" } else { "moves money" };
            let hold = &self.touches_money_or_credit;
            let detail = format!("the action `{}` {what}", action.code);
            let finding = Finding::new("guardrail.touches", hold.disposition, ReasonCode::TouchesMoneyOrCredit, detail);
            findings.push(finding.with_role(hold.approver_role.as_ref()));
        }
    }
}

impl Flag {
    fn judge(&self, id: &'static str, stated: Option<bool>, code: ReasonCode, sentence: &str, findings: &mut Vec<Finding>) {
        let finding = match stated {
            Some(false) => return,
            Some(true) => Finding::new(id, self.disposition, code, sentence),
            None if self.unknown == Unknown::Ignore => return,
            None => Finding::new(id, Disposition::Review, code, format!("it is not stated whether {sentence}")),
        };
        findings.push(finding.with_role(self.approver_role.as_ref()));
    }
}

impl Credit {
    fn judge(&self, customer: Option<&Customer>, findings: &mut Vec<Finding>) {
        let exposure = customer.and_then(|customer| customer.credit_exposure);
        let limit = customer.and_then(|customer| customer.credit_limit);
        let days_overdue = customer.and_then(|customer| customer.days_overdue);
        let mut hold = |disposition: Disposition, detail: &str| {
            let finding = Finding::new("guardrail.credit", disposition, ReasonCode::Credit, detail);
            findings.push(finding.with_role(self.approver_role.as_ref()));
        };
        if exposure.zip(limit).is_some_and(|(exposure, limit)| exposure > self.max_utilization * limit) {
            hold(self.disposition, "the customer's credit exposure is over the share of the limit that policy allows");
        }
        if days_overdue.is_some_and(|days| days > self.max_days_overdue) {
            hold(self.disposition, "the customer has receivables overdue for longer than policy allows");
        }
        if self.unknown == Unknown::Review && (exposure.is_none() || limit.is_none() || days_overdue.is_none()) {
            hold(Disposition::Review, "the customer's credit is not fully known");
        }
    }
}

impl Limit {
    fn finding(&self, id: &'static str, code: ReasonCode, detail: String) -> Finding {
        Finding::new(id, self.disposition, code, detail).with_role(self.approver_role.as_ref())
    }
}

impl Urgent {
    fn applies(&self, band: Band, facts: &Facts) -> bool {
        let tier = facts.customer.as_ref().and_then(|customer| customer.sla_tier.as_deref());
        let priority = facts.order.as_ref().and_then(|order| order.priority.as_deref());
        band >= self.sla_risk_from && (word(&self.sla_tiers, tier).is_some() || word(&self.priorities, priority).is_some())
    }
}

impl FactPath {
    fn name(self) -> &'static str {
        match self {
            Self::BusinessUnit => "business_unit",
            Self::Site => "site",
            Self::Order => "order",
            Self::OrderValue => "order.value",
            Self::OrderCurrency => "order.currency",
            Self::OrderPriority => "order.priority",
            Self::OrderPromisedShipAt => "order.promised_ship_at",
            Self::OrderRequestedDeliveryAt => "order.requested_delivery_at",
            Self::OrderCarrierCutoffAt => "order.carrier_cutoff_at",
            Self::OrderPartialAllowed => "order.partial_allowed",
            Self::OrderRegulated => "order.regulated",
            Self::OrderExportControlled => "order.export_controlled",
            Self::OrderLines => "order.lines",
            Self::CustomerId => "customer.id",
            Self::CustomerSlaTier => "customer.sla_tier",
            Self::CustomerCreditLimit => "customer.credit_limit",
            Self::CustomerCreditExposure => "customer.credit_exposure",
            Self::CustomerDaysOverdue => "customer.days_overdue",
            Self::CustomerRequiresAuthorization => "customer.requires_authorization",
        }
    }

    fn is_stated(self, facts: &Facts) -> bool {
        let of_order = |stated: fn(&Order) -> bool| facts.order.as_ref().is_some_and(stated);
        let of_customer = |stated: fn(&Customer) -> bool| facts.customer.as_ref().is_some_and(stated);
        match self {
            Self::BusinessUnit => facts.business_unit.is_some(),
            Self::Site => facts.site.is_some(),
            Self::Order => facts.order.is_some(),
            Self::OrderValue => of_order(|order| order.value.is_some()),
            Self::OrderCurrency => of_order(|order| order.currency.is_some()),
            Self::OrderPriority => of_order(|order| order.priority.is_some()),
            Self::OrderPromisedShipAt => of_order(|order| order.promised_ship_at.is_some()),
            Self::OrderRequestedDeliveryAt => of_order(|order| order.requested_delivery_at.is_some()),
            Self::OrderCarrierCutoffAt => of_order(|order| order.carrier_cutoff_at.is_some()),
            Self::OrderPartialAllowed => of_order(|order| order.partial_allowed.is_some()),
            Self::OrderRegulated => of_order(|order| order.regulated.is_some()),
            Self::OrderExportControlled => of_order(|order| order.export_controlled.is_some()),
            Self::OrderLines => of_order(|order| !order.lines.is_empty()),
            Self::CustomerId => of_customer(|customer| customer.id.is_some()),
            Self::CustomerSlaTier => of_customer(|customer| customer.sla_tier.is_some()),
            Self::CustomerCreditLimit => of_customer(|customer| customer.credit_limit.is_some()),
            Self::CustomerCreditExposure => of_customer(|customer| customer.credit_exposure.is_some()),
            Self::CustomerDaysOverdue => of_customer(|customer| customer.days_overdue.is_some()),
            Self::CustomerRequiresAuthorization => of_customer(|customer| customer.requires_authorization.is_some()),
        }
    }
}
