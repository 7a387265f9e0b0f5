//! What an action needs from the facts. Each requirement either holds, or is not known, or fails with a sentence that says why.
//!
//! The action model names the requirements of each action, so a distributor's own codes can use them. It refuses to guess: a fact
//! that is absent rules nothing out, and speaks for nothing.

use serde::Deserialize;

use crate::event::{Customer, Facts, OrderLine, Substitute};

/// Something the facts must allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Requirement {
    /// The customer takes partial deliveries.
    PartialAllowed,
    /// Some of the ordered goods are available.
    StockAvailable,
    /// A short line has an approved substitute with enough stock for what is missing.
    ApprovedSubstitute,
    /// Every short line has a replenishment in sight, before the requested delivery where that is known.
    Replenishment,
    /// Another carrier can take the shipment.
    AlternateCarrier,
    /// A carrier is known to ask or to claim from.
    CarrierKnown,
    /// The credit limit covers the exposure.
    CreditWithinLimit,
    /// No receivables are overdue.
    NothingOverdue,
}

/// What the facts say about a requirement.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Finding {
    Holds,
    NotKnown,
    Fails(String),
}

/// What the facts say about an action as a whole.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Support {
    /// Every requirement holds, or there is none.
    Full,
    /// Nothing rules the action out, but facts that would speak for it are not known.
    Partial,
    /// A fact rules the action out.
    Infeasible(String),
}

/// Judges an action by its requirements: the first that fails rules it out.
pub(super) fn support(requires: &[Requirement], facts: &Facts) -> Support {
    let mut support = Support::Full;
    for requirement in requires {
        match requirement.judge(facts) {
            Finding::Holds => {}
            Finding::NotKnown => support = Support::Partial,
            Finding::Fails(because) => return Support::Infeasible(because),
        }
    }
    support
}

impl Requirement {
    fn judge(self, facts: &Facts) -> Finding {
        let order = facts.order.as_ref();
        let lines = order.map_or(&[][..], |order| &order.lines);
        match self {
            Self::PartialAllowed => {
                stated(order.and_then(|order| order.partial_allowed), "the order does not allow partial deliveries")
            }
            Self::StockAvailable => stock_available(lines),
            Self::ApprovedSubstitute => approved_substitute(lines),
            Self::Replenishment => replenishment(facts, lines),
            Self::AlternateCarrier => {
                let carriers = facts.shipment.as_ref().and_then(|shipment| shipment.alternate_carriers);
                stated(carriers.map(|carriers| carriers > 0), "no alternate carrier can take the shipment")
            }
            Self::CarrierKnown => match facts.shipment.as_ref().and_then(|shipment| shipment.carrier.as_ref()) {
                Some(_) => Finding::Holds,
                None => Finding::NotKnown,
            },
            Self::CreditWithinLimit => credit_within_limit(facts.customer.as_ref()),
            Self::NothingOverdue => {
                let days = facts.customer.as_ref().and_then(|customer| customer.days_overdue);
                stated(days.map(|days| days <= 0.0), "the customer has overdue receivables")
            }
        }
    }
}

fn stated(allowed: Option<bool>, otherwise: &str) -> Finding {
    match allowed {
        Some(true) => Finding::Holds,
        Some(false) => Finding::Fails(otherwise.to_owned()),
        None => Finding::NotKnown,
    }
}

/// Quantity that is missing on a line; `None` where it is not known.
pub(super) fn missing_quantity(line: &OrderLine) -> Option<f64> {
    Some((line.ordered? - line.available?).max(0.0))
}

/// Lines on which goods are known to be missing.
pub(super) fn short_lines(lines: &[OrderLine]) -> impl Iterator<Item = &OrderLine> {
    lines.iter().filter(|line| missing_quantity(line).is_some_and(|missing| missing > 0.0))
}

/// An approved substitute of the line with stock for all that is missing.
pub(super) fn usable_substitute(line: &OrderLine) -> Option<&Substitute> {
    let missing = missing_quantity(line)?;
    line.substitutes
        .iter()
        .find(|substitute| substitute.approved == Some(true) && substitute.available.is_some_and(|available| available >= missing))
}

fn stock_available(lines: &[OrderLine]) -> Finding {
    if lines.iter().any(|line| line.available.is_some_and(|available| available > 0.0)) {
        return Finding::Holds;
    }
    if !lines.is_empty() && lines.iter().all(|line| line.available.is_some()) {
        return Finding::Fails("nothing of the order is available".to_owned());
    }
    Finding::NotKnown
}

fn approved_substitute(lines: &[OrderLine]) -> Finding {
    if short_lines(lines).any(|line| usable_substitute(line).is_some()) {
        return Finding::Holds;
    }
    let listed = || lines.iter().flat_map(|line| &line.substitutes);
    if listed().next().is_none() {
        return Finding::NotKnown;
    }
    if listed().all(|substitute| substitute.approved == Some(false)) {
        return Finding::Fails("no substitute is approved".to_owned());
    }
    let short = || short_lines(lines).filter(|line| !line.substitutes.is_empty());
    let too_few = |line: &OrderLine| {
        let missing = missing_quantity(line).unwrap_or_default();
        let rules_out = |substitute: &Substitute| {
            substitute.approved == Some(false) || substitute.available.is_some_and(|available| available < missing)
        };
        line.substitutes.iter().all(rules_out)
    };
    if short().next().is_some() && short().all(too_few) {
        return Finding::Fails("no approved substitute has enough stock for what is missing".to_owned());
    }
    Finding::NotKnown
}

fn replenishment(facts: &Facts, lines: &[OrderLine]) -> Finding {
    let requested = facts.order.as_ref().and_then(|order| order.requested_delivery_at);
    let mut any = false;
    let mut all_in_time = true;
    for line in short_lines(lines) {
        any = true;
        match (line.replenishment_at, line.replenishment_confirmed) {
            (None, Some(false)) => {
                return Finding::Fails("no replenishment is planned for what is missing".to_owned());
            }
            (Some(at), confirmed) if confirmed != Some(false) && requested.is_none_or(|requested| at <= requested) => {}
            _ => all_in_time = false,
        }
    }
    if any && all_in_time { Finding::Holds } else { Finding::NotKnown }
}

fn credit_within_limit(customer: Option<&Customer>) -> Finding {
    let within = customer.and_then(|customer| Some(customer.credit_exposure? <= customer.credit_limit?));
    stated(within, "the customer's exposure is over the credit limit")
}
