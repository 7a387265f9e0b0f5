//! One exception: its true facts, the options an operator has, the choice, and what comes of it.
//!
//! Time decides. Each option has a median time to resolution, stretched by the site, the night and weekend, the season, the
//! customer's history, and shortened by the tier; the promise holds with the lognormal probability that the work ends before the
//! deadline, if neither the option itself nor the carrier's leg fails. A breach loses the order with a probability that grows
//! with tier, shortage and lateness, or costs the contract penalty; a kept promise may still cost its handling.

use rand::Rng;
use rand_distr::StandardNormal;
use rand_pcg::Pcg64;
use statrs::function::erf::erf;
use time::{Duration, OffsetDateTime, UtcOffset};

use super::world::{Carrier, Customer, Item, Site, World, lognormal};
use super::{CaseOutcome, ChosenAction, Truth};

/// The types that happen, with their share of all cases.
pub const TYPES: [(&str, f64); 13] = [
    ("inventory_shortfall", 0.17),
    ("backorder_substitution", 0.08),
    ("supplier_delay", 0.09),
    ("carrier_service_failure", 0.13),
    ("delivery_constraint", 0.08),
    ("pricing_mismatch", 0.08),
    ("credit_hold", 0.08),
    ("damaged_stock", 0.06),
    ("slotting_conflict", 0.06),
    ("order_data_error", 0.07),
    ("compliance_hold", 0.03),
    ("integration_failure", 0.04),
    ("customer_change", 0.03),
];

/// A promise breaks, or holds, for reasons outside this mechanism in this share of cases.
const UNEXPLAINED: f64 = 0.02;
/// Factor on every time to a resolution: with it about three in ten cases break their promise.
const PACE: f64 = 0.7;
/// How strictly the operator prefers the option with the better chances: log-odds per unit of breach probability.
const OPERATOR_ACUITY: f64 = 5.0;

/// The true facts of one exception.
#[derive(Debug)]
pub(super) struct Exception<'w> {
    pub(super) case_type: &'static str,
    pub(super) occurred_at: OffsetDateTime,
    pub(super) site: &'w Site,
    pub(super) customer: &'w Customer,
    pub(super) carrier: &'w Carrier,
    pub(super) service_level: &'static str,
    pub(super) priority: &'static str,
    pub(super) alternate_carriers: u32,
    pub(super) promised_ship_at: OffsetDateTime,
    pub(super) carrier_cutoff_at: OffsetDateTime,
    pub(super) requested_delivery_at: OffsetDateTime,
    pub(super) lines: Vec<Line<'w>>,
    /// In the site's currency.
    pub(super) value: f64,
    pub(super) margin: f64,
    pub(super) freight_cost: f64,
    /// Of the customer, with the case type's effect.
    pub(super) utilisation: f64,
    pub(super) days_overdue: f64,
    /// Whether another site has the missing goods. No source system says.
    other_site_has_stock: bool,
}

/// One order line.
#[derive(Debug)]
pub(super) struct Line<'w> {
    pub(super) item: &'w Item,
    pub(super) ordered: f64,
    pub(super) available: f64,
    /// Stock and approval of each substitute.
    pub(super) substitutes: Vec<(f64, bool)>,
    pub(super) replenishment: Option<(OffsetDateTime, bool)>,
}

/// What was done and what came of it.
#[derive(Debug)]
pub(super) struct Resolution {
    pub(super) action: ChosenAction,
    pub(super) outcome: CaseOutcome,
    pub(super) truth: Truth,
}

/// One thing the operator could do.
#[derive(Debug, Clone, Copy)]
struct Choice {
    action: &'static str,
    median_hours: f64,
    sigma: f64,
    /// Probability that it fails even in time, as when the customer refuses a substitute.
    failure: f64,
    /// Cost as a fraction of order value.
    cost: f64,
}

impl<'w> Exception<'w> {
    pub(super) fn draw(world: &'w World, moment: OffsetDateTime, rng: &mut Pcg64) -> Self {
        let case_type = draw_type(moment, rng);
        let customer = &world.customers[rng.random_range(0..world.customers.len())];
        // Nine orders in ten ship from the customer's own site.
        let site_idx = if rng.random_bool(0.9) { customer.site } else { rng.random_range(0..world.sites.len()) };
        let site = &world.sites[site_idx];
        let offset = UtcOffset::from_hms(site.utc_offset_hours, 0, 0).expect("sites lie in real offsets");
        let occurred_at = moment.to_offset(offset);
        let carrier = &world.carriers[rng.random_range(0..world.carriers.len())];
        let priority = ["standard", "standard", "standard", "high", "rush"][rng.random_range(0..5)];
        let urgency = match priority {
            "rush" => 0.35,
            "high" => 0.7,
            _ => 1.0,
        };
        // One in twelve is noticed when the promise is already gone.
        let hours_to_ship = if rng.random_bool(0.08) { -lognormal(5.0, 0.8, rng) } else { lognormal(26.0, 0.8, rng) * urgency };
        let promised_ship_at = occurred_at + hours(hours_to_ship);
        let cutoff_hour = time::Time::from_hms(site.cutoff_hour, 0, 0).expect("cut-offs are hours of the day");
        let cutoff_that_day = promised_ship_at.replace_time(cutoff_hour);
        let carrier_cutoff_at = if cutoff_that_day > promised_ship_at { promised_ship_at - hours(1.0) } else { cutoff_that_day };
        let (service_level, transit_days) = match (priority, carrier.mode) {
            ("rush", _) => ("express", 1.0),
            (_, "air") => ("air", 2.0),
            (_, "parcel") => ("ground", 2.0),
            _ => ("standard", 3.0),
        };
        let transit_slack = lognormal(14.0, 0.9, rng);
        let requested_delivery_at = promised_ship_at + hours(transit_days * 24.0 + transit_slack);

        let n_lines = 1 + lognormal(1.4, 0.8, rng).min(18.0) as usize;
        let short_type = matches!(case_type, "inventory_shortfall" | "backorder_substitution" | "supplier_delay" | "damaged_stock");
        let short_line = rng.random_range(0..n_lines);
        let lines: Vec<Line<'w>> = (0..n_lines)
            .map(|line_idx| {
                let short = short_type && (line_idx == short_line || rng.random_bool(0.15));
                Line::draw(&world.items[rng.random_range(0..world.items.len())], short, occurred_at, rng)
            })
            .collect();
        let dollars: f64 = lines.iter().map(|line| line.ordered * line.item.unit_price).sum();
        let on_hold = case_type == "credit_hold";
        Self {
            case_type,
            occurred_at,
            site,
            customer,
            carrier,
            service_level,
            priority,
            alternate_carriers: rng.random_range(0..4),
            promised_ship_at,
            carrier_cutoff_at,
            requested_delivery_at,
            value: cents(dollars * site.rate),
            margin: (0.24 + 0.08 * rng.sample::<f64, _>(StandardNormal)).clamp(0.02, 0.6),
            freight_cost: cents((18.0 + 0.025 * dollars * lognormal(1.0, 0.4, rng)) * site.rate),
            utilisation: if on_hold {
                customer.utilisation.max(0.7) * lognormal(1.1, 0.15, rng)
            } else {
                customer.utilisation * 0.85
            },
            days_overdue: if on_hold && rng.random_bool(0.5) { lognormal(20.0, 0.7, rng).round() } else { customer.days_overdue },
            other_site_has_stock: rng.random_bool(0.5),
            lines,
        }
    }

    /// Lets an operator choose, then draws the outcome.
    pub(super) fn resolve(&self, rng: &mut Pcg64) -> Resolution {
        let choices = self.choices();
        let breach: Vec<f64> = choices.iter().map(|choice| self.breach_probability(choice)).collect();
        let weights: Vec<f64> =
            breach.iter().zip(&choices).map(|(p, choice)| (-OPERATOR_ACUITY * (p + choice.cost)).exp()).collect();
        let total: f64 = weights.iter().sum();
        let mut left = rng.random::<f64>() * total;
        let chosen = weights
            .iter()
            .position(|weight| {
                left -= weight;
                left <= 0.0
            })
            .unwrap_or(choices.len() - 1);
        let choice = choices[chosen];
        let breach_probability = breach[chosen];
        let sla_breached = rng.random_bool(breach_probability);

        let terms = self.customer.tier.terms();
        let cancels = self.cancel_probability();
        let lost_if_cancelled = self.lost_share(choice.action);
        let concession = if self.case_type == "pricing_mismatch" { 0.03 } else { 0.0 };
        let (loss_fraction, loss_cause) = if sla_breached && rng.random_bool(cancels) {
            (lost_if_cancelled, "cancelled")
        } else if sla_breached {
            (terms.penalty * mean_one(0.5, rng) + concession * mean_one(0.6, rng), "penalty")
        } else if choice.cost + concession > 0.0 {
            ((choice.cost + concession) * mean_one(0.4, rng), "handling")
        } else {
            (0.0, "none")
        };
        let loss_fraction = loss_fraction.min(1.0);
        let expected_loss_fraction = breach_probability
            * (cancels * lost_if_cancelled + (1.0 - cancels) * (terms.penalty + concession))
            + (1.0 - breach_probability) * (choice.cost + concession);
        Resolution {
            action: ChosenAction { code: choice.action.to_owned(), propensity: weights[chosen] / total },
            outcome: CaseOutcome {
                sla_breached,
                revenue_loss: cents(loss_fraction * self.value),
                loss_fraction,
                loss_cause: loss_cause.to_owned(),
            },
            truth: Truth {
                breach_probability,
                expected_loss_fraction,
                best_breach_probability: breach.iter().copied().fold(1.0, f64::min),
            },
        }
    }

    fn short_share(&self) -> f64 {
        let ordered: f64 = self.lines.iter().map(|line| line.ordered).sum();
        self.lines.iter().map(|line| line.ordered - line.available).sum::<f64>() / ordered
    }

    fn short_value_share(&self) -> f64 {
        let value =
            |quantity: fn(&Line<'_>) -> f64| -> f64 { self.lines.iter().map(|line| quantity(line) * line.item.unit_price).sum() };
        value(|line| line.ordered - line.available) / value(|line| line.ordered)
    }

    /// Share of the short quantity that approved substitutes cover, on the line where they cover least.
    fn substitute_cover(&self) -> f64 {
        self.lines
            .iter()
            .filter(|line| line.available < line.ordered)
            .map(|line| {
                let stock: f64 = line.substitutes.iter().filter(|(_, approved)| *approved).map(|(stock, _)| stock).sum();
                stock / (line.ordered - line.available)
            })
            .fold(f64::INFINITY, f64::min)
            .min(1.0)
    }

    fn hours_to_replenishment(&self) -> Option<(f64, bool)> {
        self.lines
            .iter()
            .filter_map(|line| line.replenishment)
            .map(|(at, confirmed)| ((at - self.occurred_at).as_seconds_f64() / 3600.0, confirmed))
            .reduce(|a, b| (a.0.max(b.0), a.1 && b.1))
    }

    /// Hours until the customer counts it as broken, and whether the transit still lies ahead.
    fn deadline_hours(&self) -> (f64, bool) {
        let grace = self.customer.tier.terms().grace_hours;
        let until = |moment: OffsetDateTime| (moment - self.occurred_at).as_seconds_f64() / 3600.0;
        match self.case_type {
            "carrier_service_failure" | "delivery_constraint" => {
                let on_the_road = 0.5 * (self.requested_delivery_at - self.promised_ship_at).as_seconds_f64() / 3600.0;
                (until(self.requested_delivery_at) - on_the_road + grace, false)
            }
            _ => (until(self.promised_ship_at).min(until(self.carrier_cutoff_at) + 1.0) + grace, true),
        }
    }

    fn breach_probability(&self, choice: &Choice) -> f64 {
        let (deadline, transit_ahead) = self.deadline_hours();
        let local_hour = self.occurred_at.hour();
        let off_hours = self.occurred_at.weekday().number_days_from_monday() >= 5 || !(6..18).contains(&local_hour);
        let peak = u8::from(self.occurred_at.month()) >= 11;
        let difficulty = 1.0 + 2.0 * (0.94 - self.customer.on_time_in_full).max(0.0);
        let median = PACE
            * choice.median_hours
            * self.site.congestion
            * self.customer.tier.terms().pace
            * difficulty
            * if off_hours { 1.5 } else { 1.0 }
            * if peak { 1.25 } else { 1.0 };
        let in_time = normal_cdf((deadline.max(1e-3) / median).ln() / choice.sigma);
        let winter = matches!(u8::from(self.occurred_at.month()), 12 | 1 | 2);
        let leg_failure = if transit_ahead { self.carrier.failure * if peak || winter { 1.6 } else { 1.0 } } else { 0.02 };
        let kept = in_time * (1.0 - choice.failure) * (1.0 - leg_failure);
        UNEXPLAINED / 2.0 + (1.0 - UNEXPLAINED) * (1.0 - kept)
    }

    fn cancel_probability(&self) -> f64 {
        let late = self.promised_ship_at < self.occurred_at;
        let unhappy = 1.0 + 3.0 * (0.94 - self.customer.on_time_in_full).max(0.0);
        (self.customer.tier.terms().cancels * (1.0 + 1.5 * self.short_share()) * unhappy * if late { 1.5 } else { 1.0 }).min(0.75)
    }

    /// What a cancellation loses: the short goods where the customer takes part deliveries, else everything.
    fn lost_share(&self, action: &str) -> f64 {
        let short = self.short_value_share();
        match action {
            "cancel_line" => short.max(0.1),
            _ if self.customer.partial_allowed && short > 0.0 => short,
            _ => 1.0,
        }
    }

    fn choices(&self) -> Vec<Choice> {
        let mut choices = Vec::with_capacity(6);
        let mut add = |action, median_hours: f64, sigma, failure: f64, cost| {
            choices.push(Choice { action, median_hours, sigma, failure: failure.min(0.95), cost });
        };
        let cover = self.substitute_cover();
        let replenishment = self.hours_to_replenishment();
        let freight_share = (self.freight_cost / self.value).min(0.3);
        let short = self.short_share();
        // Shared by the shortage-like types.
        let mut fill = |substitute_refused: f64| {
            if cover >= 1.0 {
                add("substitute_item", 6.0, 0.6, substitute_refused, 0.01);
            }
            if self.other_site_has_stock {
                add("transfer_stock", 20.0, 0.5, 0.04, 0.5 * freight_share);
            }
            if let Some((until, confirmed)) = replenishment {
                let (sigma, failure) = if confirmed { (0.2, 0.03) } else { (0.5, 0.2) };
                add("backorder_line", until.max(0.5) + 3.0, sigma, failure, 0.0);
            }
            if self.customer.partial_allowed {
                let late_rest = replenishment.is_none_or(|(until, _)| self.occurred_at + hours(until) > self.promised_ship_at);
                add("split_shipment", 4.0, 0.6, short * if late_rest { 0.8 } else { 0.15 }, 0.6 * freight_share);
            }
            add("contact_customer", 14.0, 0.8, 0.1, 0.0);
        };
        match self.case_type {
            "inventory_shortfall" => fill(0.10),
            "backorder_substitution" => fill(0.25),
            "supplier_delay" => {
                fill(0.12);
                let until = replenishment.map_or(72.0, |(until, _)| until);
                add("expedite_supply", (0.5 * until).max(6.0), 0.5, 0.08, 0.04);
            }
            "damaged_stock" => {
                fill(0.12);
                if short < 0.5 {
                    add("replace_goods", 8.0, 0.6, 0.03, 0.02);
                }
            }
            "carrier_service_failure" => {
                if self.alternate_carriers > 0 {
                    add(
                        "switch_carrier",
                        8.0 / f64::from(self.alternate_carriers).sqrt(),
                        0.6,
                        self.carrier.failure,
                        0.3 * freight_share,
                    );
                    add("upgrade_service", 6.0, 0.5, 0.03, 0.9 * freight_share);
                }
                add("trace_shipment", 26.0, 0.8, 2.0 * self.carrier.failure, 0.0);
            }
            "delivery_constraint" => {
                add("reschedule_delivery", 10.0, 0.8, 0.2, 0.0);
                add("meet_constraint", 12.0, 0.6, 0.05, 0.015);
            }
            "pricing_mismatch" => {
                add("apply_contract_price", 5.0, 0.9, 0.02, 0.0);
                add("request_price_approval", 13.0, 0.8, 0.02, 0.0);
            }
            "credit_hold" => {
                let overdue = 1.0 + (self.days_overdue / 10.0).sqrt();
                add("request_payment", 16.0 * overdue, 0.8, 0.08, 0.0);
                if self.utilisation < 1.1 {
                    add("release_credit_hold", 6.0 * overdue, 0.7, 0.02, 0.01);
                }
            }
            "slotting_conflict" => {
                add("replenish_or_reslot", 5.0, 0.7, 0.04, 0.0);
                add("replan_wave", 9.0, 0.6, 0.03, 0.0);
            }
            "order_data_error" => {
                add("correct_data", 6.0, 0.8, 0.04, 0.0);
                add("contact_customer", 13.0, 0.8, 0.02, 0.0);
            }
            "compliance_hold" => {
                let strict = self.lines.iter().any(|line| line.item.export_controlled);
                add("compliance_review", if strict { 60.0 } else { 28.0 }, 0.7, 0.05, 0.0);
            }
            "integration_failure" => {
                add("retry_integration", 3.0, 1.0, 0.12, 0.0);
                add("correct_data", 9.0, 0.7, 0.03, 0.0);
            }
            _ => {
                add("amend_order", 7.0, 0.8, 0.06, 0.005);
                add("contact_customer", 12.0, 0.8, 0.03, 0.0);
            }
        }
        choices
    }
}

impl<'w> Line<'w> {
    fn draw(item: &'w Item, short: bool, now: OffsetDateTime, rng: &mut Pcg64) -> Self {
        let ordered = lognormal(item.usual_quantity, 0.5, rng).ceil();
        if !short {
            return Self { item, ordered, available: ordered, substitutes: Vec::new(), replenishment: None };
        }
        let available = (ordered * rng.random::<f64>().powf(1.3)).floor().min(ordered - 1.0);
        let substitutes =
            (0..item.n_substitutes).map(|_| (lognormal(0.9 * ordered, 1.0, rng).floor(), rng.random_bool(0.6))).collect();
        let replenishment = rng
            .random_bool(0.85)
            .then(|| (now + hours(lognormal(item.replenishment_days * 24.0 * 0.7, 0.7, rng)), rng.random_bool(0.6)));
        Self { item, ordered, available, substitutes, replenishment }
    }
}

/// Shortages and late suppliers are commoner in the fourth quarter, carriers fail more in winter.
fn draw_type(moment: OffsetDateTime, rng: &mut Pcg64) -> &'static str {
    let month = u8::from(moment.month());
    let weight = |(code, share): &(&'static str, f64)| {
        let season = match *code {
            "inventory_shortfall" | "supplier_delay" | "slotting_conflict" if month >= 10 => 1.4,
            "carrier_service_failure" if matches!(month, 12 | 1 | 2) => 1.5,
            _ => 1.0,
        };
        share * season
    };
    let mut left = rng.random::<f64>() * TYPES.iter().map(weight).sum::<f64>();
    for entry in &TYPES {
        left -= weight(entry);
        if left <= 0.0 {
            return entry.0;
        }
    }
    TYPES[TYPES.len() - 1].0
}

fn hours(hours: f64) -> Duration {
    Duration::seconds((hours * 3600.0) as i64)
}

fn cents(amount: f64) -> f64 {
    (amount * 100.0).round() / 100.0
}

/// Lognormal noise whose mean is 1.
fn mean_one(sigma: f64, rng: &mut Pcg64) -> f64 {
    lognormal((-0.5 * sigma * sigma).exp(), sigma, rng)
}

fn normal_cdf(z: f64) -> f64 {
    0.5 * (1.0 + erf(z * std::f64::consts::FRAC_1_SQRT_2))
}
