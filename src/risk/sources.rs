//! The closed set of facts a risk feature may be made of.
//!
//! [`FACTS`] lists them all, raw ones by their path in the contract (`order.value`) and derived ones by a plain name
//! (`hours_to_cutoff`), each with how it is read from the event. `attributes.NAME` is open: it reads the distributor's own entry.
//! A fact that cannot be computed from what the event gives is `None`, never zero; times count in hours from `occurred_at`.
//!
//! It refuses the narrative (it is not among the facts) and the declared type, which is a hint to people.

use time::OffsetDateTime;

use crate::event::{Attribute, Facts, Order, OrderLine};

/// What kind of value a fact has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FactKind {
    Number,
    Flag,
    Text,
}

/// One fact a feature may be made of.
#[derive(Debug)]
pub struct FactDefinition {
    pub name: &'static str,
    pub kind: FactKind,
    pub unit: &'static str,
    pub meaning: &'static str,
    read: for<'a> fn(&Reader<'a>) -> Option<FactValue<'a>>,
}

/// The value of one fact of one event.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum FactValue<'a> {
    Number(f64),
    Flag(bool),
    Text(&'a str),
}

/// Where a feature comes from.
#[derive(Debug, Clone)]
pub enum Source {
    Fact(&'static FactDefinition),
    Attribute(String),
}

impl Source {
    /// Finds the source by a feature's name; `None` for a name outside the closed set.
    pub fn by_name(name: &str) -> Option<Self> {
        if let Some(attribute) = name.strip_prefix("attributes.") {
            return (!attribute.is_empty()).then(|| Self::Attribute(attribute.to_owned()));
        }
        FACTS.iter().find(|fact| fact.name == name).map(Self::Fact)
    }
}

/// An event's facts with what several derived facts share, computed once.
#[derive(Debug)]
pub struct Reader<'a> {
    facts: &'a Facts,
    lines: LineTotals,
}

impl<'a> Reader<'a> {
    pub fn new(facts: &'a Facts) -> Self {
        Self { facts, lines: facts.order.as_ref().map(|order| LineTotals::of(&order.lines)).unwrap_or_default() }
    }

    /// The value of one source; `None` where the event does not give it.
    pub fn read(&self, source: &Source) -> Option<FactValue<'a>> {
        match source {
            Source::Fact(fact) => (fact.read)(self),
            Source::Attribute(name) => self.facts.attributes.get(name).map(|value| match value {
                Attribute::Bool(flag) => FactValue::Flag(*flag),
                Attribute::Number(number) => FactValue::Number(*number),
                Attribute::Text(text) => FactValue::Text(text),
            }),
        }
    }

    fn order(&self) -> Option<&'a Order> {
        self.facts.order.as_ref()
    }

    fn hours_until(&self, moment: Option<OffsetDateTime>) -> Option<FactValue<'a>> {
        Some(FactValue::Number(hours_between(self.facts.occurred_at?, moment?)))
    }
}

/// Sums over the order lines.
#[derive(Debug, Default)]
struct LineTotals {
    /// Over the lines that give both `ordered` and `available`; `None` where no line does.
    ordered: Option<f64>,
    short: f64,
    n_short: usize,
    /// `None` where a short line gives no price.
    short_value: Option<f64>,
    /// Approved substitutes with stock on lines that are short or may be; `None` where none of these lines lists a substitute.
    substitutes: Option<usize>,
    /// Share of the short quantity that approved substitutes cover.
    substitute_cover: Option<f64>,
    /// Latest replenishment of the lines that are short or may be.
    replenishment_at: Option<OffsetDateTime>,
    /// Whether every replenishment that says so is confirmed.
    replenishment_confirmed: Option<bool>,
}

impl LineTotals {
    fn of(lines: &[OrderLine]) -> Self {
        let mut totals = Self { short_value: Some(0.0), ..Self::default() };
        let mut covered = 0.0;
        for line in lines {
            let short = match (line.ordered, line.available) {
                (Some(ordered), Some(available)) => {
                    totals.ordered = Some(totals.ordered.unwrap_or(0.0) + ordered);
                    Some((ordered - available).max(0.0))
                }
                _ => None,
            };
            if short == Some(0.0) {
                continue;
            }
            if let Some(short) = short {
                totals.short += short;
                totals.n_short += 1;
                totals.short_value = totals.short_value.zip(line.unit_price).map(|(sum, price)| sum + short * price);
            }
            if !line.substitutes.is_empty() {
                let usable = line.substitutes.iter().filter(|substitute| substitute.approved == Some(true));
                let stock: Vec<f64> = usable.filter_map(|substitute| substitute.available).filter(|&stock| stock > 0.0).collect();
                totals.substitutes = Some(totals.substitutes.unwrap_or(0) + stock.len());
                covered += short.unwrap_or(0.0).min(stock.iter().sum());
            }
            totals.replenishment_at = totals.replenishment_at.max(line.replenishment_at);
            if let Some(confirmed) = line.replenishment_confirmed {
                totals.replenishment_confirmed = Some(totals.replenishment_confirmed.unwrap_or(true) && confirmed);
            }
        }
        totals.short_value = totals.short_value.filter(|_| totals.ordered.is_some());
        totals.substitute_cover = (totals.substitutes.is_some() && totals.short > 0.0).then(|| covered / totals.short);
        totals
    }
}

fn hours_between(from: OffsetDateTime, to: OffsetDateTime) -> f64 {
    (to - from).as_seconds_f64() / 3600.0
}

/// A ratio that exists: a zero denominator gives no value, never infinity.
fn ratio(numerator: f64, denominator: f64) -> Option<f64> {
    (denominator != 0.0).then(|| numerator / denominator)
}

/// For a number that is computed: one that no `f32` holds, as a ratio to almost nothing may be, gives no value either.
fn derived<'a>(value: Option<f64>) -> Option<FactValue<'a>> {
    number(value.filter(|value| (*value as f32).is_finite()))
}

fn number<'a>(value: Option<f64>) -> Option<FactValue<'a>> {
    value.map(FactValue::Number)
}

fn flag<'a>(value: Option<bool>) -> Option<FactValue<'a>> {
    value.map(FactValue::Flag)
}

fn text(value: Option<&String>) -> Option<FactValue<'_>> {
    value.map(|text| FactValue::Text(text))
}

const fn fact(
    name: &'static str,
    kind: FactKind,
    unit: &'static str,
    meaning: &'static str,
    read: for<'a> fn(&Reader<'a>) -> Option<FactValue<'a>>,
) -> FactDefinition {
    FactDefinition { name, kind, unit, meaning, read }
}

use FactKind::{Flag, Number, Text};

/// Every fact a feature may name, raw ones first.
pub static FACTS: &[FactDefinition] = &[
    fact("tenant", Text, "", "tenant", |r| Some(FactValue::Text(&r.facts.tenant))),
    fact("business_unit", Text, "", "business unit", |r| text(r.facts.business_unit.as_ref())),
    fact("site", Text, "", "site", |r| text(r.facts.site.as_ref())),
    fact("order.value", Number, "order currency", "order value", |r| number(r.order()?.value)),
    fact("order.margin", Number, "share of value", "gross margin", |r| number(r.order()?.margin)),
    fact("order.currency", Text, "", "currency", |r| text(r.order()?.currency.as_ref())),
    fact("order.priority", Text, "", "order priority", |r| text(r.order()?.priority.as_ref())),
    fact("order.partial_allowed", Flag, "", "part deliveries are allowed", |r| flag(r.order()?.partial_allowed)),
    fact("order.regulated", Flag, "", "regulated goods", |r| flag(r.order()?.regulated)),
    fact("order.export_controlled", Flag, "", "export-controlled goods", |r| flag(r.order()?.export_controlled)),
    fact("customer.id", Text, "", "customer", |r| text(r.facts.customer.as_ref()?.id.as_ref())),
    fact("customer.sla_tier", Text, "", "service tier", |r| text(r.facts.customer.as_ref()?.sla_tier.as_ref())),
    fact("customer.credit_limit", Number, "order currency", "credit limit", |r| number(r.facts.customer.as_ref()?.credit_limit)),
    fact("customer.credit_exposure", Number, "order currency", "open credit", |r| {
        number(r.facts.customer.as_ref()?.credit_exposure)
    }),
    fact("customer.days_overdue", Number, "days", "oldest overdue invoice", |r| number(r.facts.customer.as_ref()?.days_overdue)),
    fact("customer.requires_authorization", Flag, "", "orders need authorisation", |r| {
        flag(r.facts.customer.as_ref()?.requires_authorization)
    }),
    fact("customer.on_time_in_full_90d", Number, "share", "orders on time in full over 90 days", |r| {
        number(r.facts.customer.as_ref()?.on_time_in_full_90d)
    }),
    fact("shipment.carrier", Text, "", "carrier", |r| text(r.facts.shipment.as_ref()?.carrier.as_ref())),
    fact("shipment.service_level", Text, "", "freight service level", |r| text(r.facts.shipment.as_ref()?.service_level.as_ref())),
    fact("shipment.mode", Text, "", "transport mode", |r| text(r.facts.shipment.as_ref()?.mode.as_ref())),
    fact("shipment.status_code", Text, "", "carrier status code", |r| text(r.facts.shipment.as_ref()?.status_code.as_ref())),
    fact("shipment.freight_cost", Number, "order currency", "freight cost", |r| number(r.facts.shipment.as_ref()?.freight_cost)),
    fact("shipment.alternate_carriers", Number, "carriers", "carriers that could take over", |r| {
        number(r.facts.shipment.as_ref()?.alternate_carriers.map(f64::from))
    }),
    fact("hours_to_cutoff", Number, "hours", "until `order.carrier_cutoff_at`", |r| r.hours_until(r.order()?.carrier_cutoff_at)),
    fact("hours_to_promised_ship", Number, "hours", "until `order.promised_ship_at`", |r| {
        r.hours_until(r.order()?.promised_ship_at)
    }),
    fact("hours_to_requested_delivery", Number, "hours", "until `order.requested_delivery_at`", |r| {
        r.hours_until(r.order()?.requested_delivery_at)
    }),
    fact("transit_allowance", Number, "hours", "from `order.promised_ship_at` to `order.requested_delivery_at`", |r| {
        let order = r.order()?;
        Some(FactValue::Number(hours_between(order.promised_ship_at?, order.requested_delivery_at?)))
    }),
    fact("hour_of_day", Number, "hours", "of `occurred_at` in its own offset, 0 to 23", |r| {
        Some(FactValue::Number(f64::from(r.facts.occurred_at?.hour())))
    }),
    fact("day_of_week", Number, "days", "of `occurred_at`, Monday is 0", |r| {
        Some(FactValue::Number(f64::from(r.facts.occurred_at?.weekday().number_days_from_monday())))
    }),
    fact("month", Number, "months", "of `occurred_at`, 1 to 12", |r| {
        Some(FactValue::Number(f64::from(u8::from(r.facts.occurred_at?.month()))))
    }),
    fact("n_lines", Number, "lines", "order lines given; missing where none is", |r| {
        let n_lines = r.order()?.lines.len();
        (n_lines > 0).then_some(FactValue::Number(n_lines as f64))
    }),
    fact("n_short_lines", Number, "lines", "lines with `available` under `ordered`", |r| {
        r.lines.ordered.map(|_| FactValue::Number(r.lines.n_short as f64))
    }),
    fact("short_quantity", Number, "units", "`ordered` minus `available` over short lines", |r| {
        derived(r.lines.ordered.map(|_| r.lines.short))
    }),
    fact("short_share", Number, "share", "short quantity of the quantity ordered", |r| {
        derived(ratio(r.lines.short, r.lines.ordered?))
    }),
    fact(
        "short_value",
        Number,
        "order currency",
        "short quantity at its unit price; missing where a short line has no price",
        |r| derived(r.lines.short_value),
    ),
    fact("short_value_share", Number, "share", "short value of `order.value`", |r| {
        derived(ratio(r.lines.short_value?, r.order()?.value?))
    }),
    fact(
        "substitutes_available",
        Number,
        "items",
        "approved substitutes in stock for short lines; missing where none is listed",
        |r| number(r.lines.substitutes.map(|count| count as f64)),
    ),
    fact("substitute_cover", Number, "share", "short quantity that approved substitutes cover", |r| {
        derived(r.lines.substitute_cover)
    }),
    fact("hours_to_replenishment", Number, "hours", "until the last replenishment of the short lines", |r| {
        r.hours_until(r.lines.replenishment_at)
    }),
    fact(
        "replenishment_slack",
        Number,
        "hours",
        "from that replenishment to `order.promised_ship_at`; negative comes too late",
        |r| Some(FactValue::Number(hours_between(r.lines.replenishment_at?, r.order()?.promised_ship_at?))),
    ),
    fact("replenishment_confirmed", Flag, "", "every replenishment that says so is confirmed", |r| {
        flag(r.lines.replenishment_confirmed)
    }),
    fact("credit_utilisation", Number, "share", "credit exposure of the limit; missing where the limit is 0", |r| {
        let customer = r.facts.customer.as_ref()?;
        derived(ratio(customer.credit_exposure?, customer.credit_limit?))
    }),
    fact("credit_utilisation_with_order", Number, "share", "credit exposure and this order's value of the limit", |r| {
        let customer = r.facts.customer.as_ref()?;
        derived(ratio(customer.credit_exposure? + r.order()?.value?, customer.credit_limit?))
    }),
    fact("freight_share", Number, "share", "freight cost of the order value", |r| {
        derived(ratio(r.facts.shipment.as_ref()?.freight_cost?, r.order()?.value?))
    }),
];
