//! The distributor: drawn once per history, the same for every case of it.

use rand::Rng;
use rand::seq::IndexedRandom;
use rand_distr::StandardNormal;
use rand_pcg::Pcg64;

/// Everything that outlives one case.
#[derive(Debug)]
pub(super) struct World {
    pub(super) sites: Vec<Site>,
    pub(super) carriers: Vec<Carrier>,
    pub(super) customers: Vec<Customer>,
    pub(super) items: Vec<Item>,
}

#[derive(Debug, Clone)]
pub(super) struct Site {
    pub(super) code: &'static str,
    pub(super) utc_offset_hours: i8,
    pub(super) currency: &'static str,
    /// Units of the currency for one US dollar.
    pub(super) rate: f64,
    /// Local hour at which the carriers leave.
    pub(super) cutoff_hour: u8,
    /// How much longer than elsewhere work takes.
    pub(super) congestion: f64,
}

#[derive(Debug, Clone)]
pub(super) struct Carrier {
    pub(super) code: &'static str,
    pub(super) mode: &'static str,
    /// Probability that a leg fails on an ordinary day.
    pub(super) failure: f64,
}

#[derive(Debug, Clone)]
pub(super) struct Customer {
    pub(super) id: String,
    pub(super) tier: Tier,
    pub(super) site: usize,
    pub(super) credit_limit: f64,
    pub(super) utilisation: f64,
    pub(super) days_overdue: f64,
    pub(super) requires_authorization: bool,
    pub(super) on_time_in_full: f64,
    pub(super) partial_allowed: bool,
}

/// Service tier, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tier {
    Platinum,
    Gold,
    Silver,
    Bronze,
}

#[derive(Debug, Clone)]
pub(super) struct Item {
    pub(super) sku: String,
    /// In US dollars.
    pub(super) unit_price: f64,
    pub(super) usual_quantity: f64,
    pub(super) n_substitutes: usize,
    pub(super) replenishment_days: f64,
    pub(super) regulated: bool,
    pub(super) export_controlled: bool,
}

/// What a tier means for time and money.
#[derive(Debug, Clone, Copy)]
pub(super) struct TierTerms {
    pub(super) name: &'static str,
    /// Factor on the time to a resolution: the better tiers are worked first.
    pub(super) pace: f64,
    /// Hours after the promise that the customer does not count.
    pub(super) grace_hours: f64,
    /// Contract penalty for a breach, as a fraction of order value.
    pub(super) penalty: f64,
    /// Probability that a breach loses the order.
    pub(super) cancels: f64,
}

impl Tier {
    pub(super) fn terms(self) -> TierTerms {
        let (name, pace, grace_hours, penalty, cancels) = match self {
            Self::Platinum => ("platinum", 0.7, 0.0, 0.08, 0.20),
            Self::Gold => ("gold", 0.8, 1.0, 0.05, 0.17),
            Self::Silver => ("silver", 1.0, 4.0, 0.025, 0.14),
            Self::Bronze => ("bronze", 1.15, 8.0, 0.01, 0.12),
        };
        TierTerms { name, pace, grace_hours, penalty, cancels }
    }
}

const N_CUSTOMERS: usize = 1_500;
const N_ITEMS: usize = 2_000;

/// Code, offset from UTC, currency, its rate, cut-off.
const SITES: [(&str, i8, &str, f64, u8); 10] = [
    ("DC-ATL", -5, "USD", 1.0, 16),
    ("DC-CHI", -6, "USD", 1.0, 17),
    ("DC-DAL", -6, "USD", 1.0, 17),
    ("DC-LAX", -8, "USD", 1.0, 15),
    ("DC-EWR", -5, "USD", 1.0, 18),
    ("DC-TOR", -5, "CAD", 1.36, 16),
    ("DC-RTM", 1, "EUR", 0.92, 16),
    ("DC-LEJ", 1, "EUR", 0.92, 17),
    ("DC-BHX", 0, "GBP", 0.79, 16),
    ("DC-GDN", 1, "PLN", 3.95, 15),
];

/// Code, mode, probability of failure.
const CARRIERS: [(&str, &str, f64); 9] = [
    ("NORDLINE", "parcel", 0.03),
    ("QUICKPARCEL", "parcel", 0.06),
    ("REDKITE", "parcel", 0.11),
    ("ACME", "ltl", 0.05),
    ("OVERLAND", "ltl", 0.09),
    ("TRIFREIGHT", "ltl", 0.15),
    ("LINEHAUL", "ftl", 0.04),
    ("BIGRIG", "ftl", 0.10),
    ("SKYBRIDGE", "air", 0.05),
];

impl World {
    pub(super) fn draw(rng: &mut Pcg64) -> Self {
        let sites = SITES
            .iter()
            .map(|&(code, utc_offset_hours, currency, rate, cutoff_hour)| Site {
                code,
                utc_offset_hours,
                currency,
                rate,
                cutoff_hour,
                congestion: lognormal(1.0, 0.2, rng),
            })
            .collect();
        let carriers = CARRIERS.iter().map(|&(code, mode, failure)| Carrier { code, mode, failure }).collect();
        let customers = (0..N_CUSTOMERS).map(|idx| Customer::draw(idx, rng)).collect();
        let items = (0..N_ITEMS).map(|idx| Item::draw(idx, rng)).collect();
        Self { sites, carriers, customers, items }
    }
}

impl Customer {
    fn draw(idx: usize, rng: &mut Pcg64) -> Self {
        let tier = match rng.random::<f64>() {
            u if u < 0.06 => Tier::Platinum,
            u if u < 0.22 => Tier::Gold,
            u if u < 0.52 => Tier::Silver,
            _ => Tier::Bronze,
        };
        let overdue = rng.random_bool(0.18);
        Self {
            id: format!("C-{:04}", 1000 + idx),
            tier,
            site: rng.random_range(0..SITES.len()),
            credit_limit: (lognormal(40_000.0, 0.9, rng) / 500.0).round() * 500.0,
            utilisation: rng.random::<f64>().powf(0.8) * 1.05,
            days_overdue: if overdue { lognormal(12.0, 0.8, rng).round() } else { 0.0 },
            requires_authorization: rng.random_bool(0.04),
            on_time_in_full: (0.94 - 0.06 * rng.sample::<f64, _>(StandardNormal).abs()).clamp(0.6, 1.0),
            partial_allowed: rng.random_bool(if matches!(tier, Tier::Platinum | Tier::Gold) { 0.5 } else { 0.75 }),
        }
    }
}

impl Item {
    fn draw(idx: usize, rng: &mut Pcg64) -> Self {
        const FAMILIES: [&str; 8] = ["BRG", "VLV", "FST", "PMP", "CHM", "MED", "ELC", "PKG"];
        let family = FAMILIES.choose(rng).expect("there are families");
        let unit_price = lognormal(28.0, 1.1, rng);
        Self {
            sku: format!("{family}-{:04}", 1000 + idx),
            usual_quantity: (lognormal(900.0, 0.8, rng) / unit_price).clamp(1.0, 2_000.0),
            unit_price: (unit_price * 100.0).round() / 100.0,
            n_substitutes: [0, 0, 0, 1, 1, 2, 3][rng.random_range(0..7)],
            replenishment_days: lognormal(2.5, 0.8, rng),
            regulated: *family == "MED" || (*family == "CHM" && rng.random_bool(0.4)),
            export_controlled: *family == "ELC" && rng.random_bool(0.15),
        }
    }
}

/// A positive number with this median; `sigma` is the standard deviation of its logarithm.
pub(super) fn lognormal(median: f64, sigma: f64, rng: &mut Pcg64) -> f64 {
    median * (sigma * rng.sample::<f64, _>(StandardNormal)).exp()
}
