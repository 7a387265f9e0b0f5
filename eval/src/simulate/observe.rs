//! What a source system says of an exception: the true facts, less what that system does not know.
//!
//! Each source knows each group of facts with its own probability (a warehouse system the lines, an ERP the credit, a mail next
//! to nothing), single facts drop out on top, and one case in twenty is a bare narrative. Facts are missing at random given the
//! source and the type; they never depend on the outcome, which is drawn before.

use rand::Rng;
use rand_pcg::Pcg64;
use sluice::event::{Customer, EventWire, Order, OrderLine, Shipment, Substitute};
use time::OffsetDateTime;

use super::mechanism::{Exception, Line};

/// Share of cases that say nothing but their narrative.
const BARE: f64 = 0.05;
/// Share of single facts lost on top of their group.
const DROPOUT: f64 = 0.07;

/// Probability that a source knows each group of facts.
struct Profile {
    source: &'static str,
    header: f64,
    dates: f64,
    lines: f64,
    substitutes: f64,
    replenishment: f64,
    rules: f64,
    tier: f64,
    credit: f64,
    service_history: f64,
    shipment: f64,
    site: f64,
}

#[rustfmt::skip]
const PROFILES: [Profile; 6] = [
    Profile { source: "erp/central", header: 0.98, dates: 0.95, lines: 0.9, substitutes: 0.6, replenishment: 0.7, rules: 0.9, tier: 0.95, credit: 0.85, service_history: 0.6, shipment: 0.35, site: 0.95 },
    Profile { source: "wms/site", header: 0.7, dates: 0.9, lines: 0.95, substitutes: 0.4, replenishment: 0.5, rules: 0.6, tier: 0.6, credit: 0.05, service_history: 0.2, shipment: 0.5, site: 1.0 },
    Profile { source: "tms/network", header: 0.45, dates: 0.8, lines: 0.1, substitutes: 0.0, replenishment: 0.0, rules: 0.3, tier: 0.4, credit: 0.0, service_history: 0.1, shipment: 0.98, site: 0.6 },
    Profile { source: "edi/gateway", header: 0.85, dates: 0.85, lines: 0.7, substitutes: 0.05, replenishment: 0.1, rules: 0.4, tier: 0.3, credit: 0.05, service_history: 0.05, shipment: 0.3, site: 0.5 },
    Profile { source: "shop/portal", header: 0.65, dates: 0.6, lines: 0.4, substitutes: 0.1, replenishment: 0.05, rules: 0.5, tier: 0.8, credit: 0.1, service_history: 0.1, shipment: 0.2, site: 0.3 },
    Profile { source: "mail/desk", header: 0.25, dates: 0.2, lines: 0.1, substitutes: 0.02, replenishment: 0.02, rules: 0.15, tier: 0.4, credit: 0.03, service_history: 0.02, shipment: 0.1, site: 0.15 },
];

/// Weights of the profiles, in their order.
fn source_weights(case_type: &str) -> [f64; 6] {
    match case_type {
        "inventory_shortfall" | "damaged_stock" | "slotting_conflict" => [0.25, 0.5, 0.02, 0.03, 0.05, 0.15],
        "carrier_service_failure" | "delivery_constraint" => [0.1, 0.1, 0.5, 0.05, 0.05, 0.2],
        "credit_hold" | "pricing_mismatch" | "compliance_hold" => [0.65, 0.02, 0.03, 0.1, 0.05, 0.15],
        "order_data_error" | "integration_failure" => [0.35, 0.1, 0.05, 0.3, 0.1, 0.1],
        _ => [0.4, 0.15, 0.05, 0.1, 0.1, 0.2],
    }
}

/// The event as its source sends it.
pub(super) fn event(exception: &Exception<'_>, number: usize, narrative: String, rng: &mut Pcg64) -> EventWire {
    let profile = draw_profile(exception.case_type, rng);
    let bare = rng.random_bool(BARE);
    let mut observer = Observer { rng, bare };
    let knows_site = observer.knows(profile.site);
    EventWire {
        id: Some(format!("evt-{number:08}")),
        source: Some(profile.source.to_owned()),
        // Networks, gateways and shops stamp in UTC, the others in the site's own time.
        occurred_at: Some(if matches!(profile.source, "tms/network" | "edi/gateway" | "shop/portal") {
            exception.occurred_at.to_offset(time::UtcOffset::UTC)
        } else {
            exception.occurred_at
        }),
        tenant: None,
        business_unit: None,
        site: observer.keep(knows_site, exception.site.code.to_owned()),
        narrative,
        declared_type: None,
        order: order(exception, profile, number, &mut observer),
        customer: customer(exception, profile, &mut observer),
        shipment: shipment(exception, profile, &mut observer),
        attributes: std::collections::BTreeMap::new(),
    }
}

struct Observer<'a> {
    rng: &'a mut Pcg64,
    bare: bool,
}

impl Observer<'_> {
    /// Whether the source knows a group of facts.
    fn knows(&mut self, probability: f64) -> bool {
        // Drawn in any case, so that a bare event consumes as many numbers as another.
        let knows = self.rng.random_bool(probability);
        knows && !self.bare
    }

    /// A fact of a group, unless it drops out.
    fn keep<T>(&mut self, known: bool, value: T) -> Option<T> {
        let kept = !self.rng.random_bool(DROPOUT);
        (known && kept).then_some(value)
    }
}

fn draw_profile(case_type: &str, rng: &mut Pcg64) -> &'static Profile {
    let mut left = rng.random::<f64>();
    for (profile, weight) in PROFILES.iter().zip(source_weights(case_type)) {
        left -= weight;
        if left <= 0.0 {
            return profile;
        }
    }
    &PROFILES[0]
}

fn order(exception: &Exception<'_>, profile: &Profile, number: usize, observer: &mut Observer<'_>) -> Option<Order> {
    let header = observer.knows(profile.header);
    let dates = observer.knows(profile.dates);
    let rules = observer.knows(profile.rules);
    let lines = observer.knows(profile.lines);
    let substitutes = observer.knows(profile.substitutes);
    let replenishment = observer.knows(profile.replenishment);
    let regulated = exception.lines.iter().any(|line| line.item.regulated);
    let export_controlled = exception.lines.iter().any(|line| line.item.export_controlled);
    let rate = exception.site.rate;
    let order = Order {
        id: observer.keep(header, format!("SO-{:08}", 45_000_000 + number)),
        value: observer.keep(header, exception.value),
        margin: observer.keep(header, (exception.margin * 1000.0).round() / 1000.0),
        currency: header.then(|| exception.site.currency.to_owned()),
        priority: observer.keep(header, exception.priority.to_owned()),
        promised_ship_at: observer.keep(dates, whole(exception.promised_ship_at)),
        requested_delivery_at: observer.keep(dates, whole(exception.requested_delivery_at)),
        carrier_cutoff_at: observer.keep(dates, whole(exception.carrier_cutoff_at)),
        partial_allowed: observer.keep(rules, exception.customer.partial_allowed),
        regulated: observer.keep(rules, regulated),
        export_controlled: observer.keep(rules, export_controlled),
        lines: if lines {
            let lines = exception.lines.iter().enumerate();
            lines.map(|(line_idx, line)| order_line(line, line_idx, rate, substitutes, replenishment)).collect()
        } else {
            Vec::new()
        },
    };
    (order != Order::default()).then_some(order)
}

fn order_line(line: &Line<'_>, line_idx: usize, rate: f64, substitutes: bool, replenishment: bool) -> OrderLine {
    let replenished = line.replenishment.filter(|_| replenishment);
    OrderLine {
        line: Some(line_idx as u32 + 1),
        sku: Some(line.item.sku.clone()),
        ordered: Some(line.ordered),
        available: Some(line.available),
        unit_price: Some((line.item.unit_price * rate * 100.0).round() / 100.0),
        substitutes: if substitutes {
            let listed = line.substitutes.iter().enumerate();
            listed
                .map(|(idx, &(available, approved))| Substitute {
                    sku: format!("{}-S{}", line.item.sku, idx + 1),
                    available: Some(available),
                    approved: Some(approved),
                })
                .collect()
        } else {
            Vec::new()
        },
        replenishment_at: replenished.map(|(at, _)| whole(at)),
        replenishment_confirmed: replenished.map(|(_, confirmed)| confirmed),
    }
}

fn customer(exception: &Exception<'_>, profile: &Profile, observer: &mut Observer<'_>) -> Option<Customer> {
    let tier = observer.knows(profile.tier);
    let credit = observer.knows(profile.credit);
    let history = observer.knows(profile.service_history);
    let limit = exception.customer.credit_limit * exception.site.rate;
    let customer = Customer {
        id: observer.keep(tier, exception.customer.id.clone()),
        sla_tier: observer.keep(tier, exception.customer.tier.terms().name.to_owned()),
        credit_limit: credit.then(|| limit.round()),
        credit_exposure: observer.keep(credit, (limit * exception.utilisation).round()),
        days_overdue: observer.keep(credit, exception.days_overdue),
        requires_authorization: observer.keep(credit, exception.customer.requires_authorization),
        on_time_in_full_90d: observer.keep(history, (exception.customer.on_time_in_full * 1000.0).round() / 1000.0),
    };
    (customer != Customer::default()).then_some(customer)
}

fn shipment(exception: &Exception<'_>, profile: &Profile, observer: &mut Observer<'_>) -> Option<Shipment> {
    let known = observer.knows(profile.shipment);
    let shipment = Shipment {
        carrier: observer.keep(known, exception.carrier.code.to_owned()),
        service_level: observer.keep(known, exception.service_level.to_owned()),
        mode: observer.keep(known, exception.carrier.mode.to_owned()),
        status_code: None,
        freight_cost: observer.keep(known, exception.freight_cost),
        alternate_carriers: observer.keep(known, exception.alternate_carriers),
    };
    (shipment != Shipment::default()).then_some(shipment)
}

fn whole(moment: OffsetDateTime) -> OffsetDateTime {
    moment.replace_nanosecond(0).expect("zero is a nanosecond")
}
