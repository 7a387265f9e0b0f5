//! A case as the tables see it: one value for each dimension, or the knowledge that it is missing.
//!
//! It refuses to guess: a fact that is absent, or a tier that the policy's vocabulary does not know, is missing.

use std::collections::BTreeMap;

use crate::event::{Facts, Order};
use crate::policy::PolicyInput;
use crate::risk::{Band, Risk};
use crate::taxonomy::{ActionDefinition, Touch};

/// What a row can ask about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dimension {
    Type,
    DeclaredType,
    Action,
    Tenant,
    BusinessUnit,
    Site,
    SlaTier,
    Priority,
    ValueBand,
    SlaRisk,
    Reversible,
    Touches,
}

impl Dimension {
    pub(super) const COUNT: usize = 12;

    pub(super) const ALL: [Self; Self::COUNT] = [
        Self::Type,
        Self::DeclaredType,
        Self::Action,
        Self::Tenant,
        Self::BusinessUnit,
        Self::Site,
        Self::SlaTier,
        Self::Priority,
        Self::ValueBand,
        Self::SlaRisk,
        Self::Reversible,
        Self::Touches,
    ];

    /// Whether one case can have several values of it.
    pub(super) fn is_multiple(self) -> bool {
        self == Self::Touches
    }
}

/// What a case is along one dimension.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Value<'a> {
    Missing,
    One(&'a str),
    Two(&'a str, &'a str),
}

impl<'a> Value<'a> {
    pub(super) fn iter(self) -> impl Iterator<Item = &'a str> {
        let (first, second) = match self {
            Self::Missing => (None, None),
            Self::One(value) => (Some(value), None),
            Self::Two(first, second) => (Some(first), Some(second)),
        };
        first.into_iter().chain(second)
    }

    fn known(value: Option<&'a str>) -> Self {
        value.map_or(Self::Missing, Self::One)
    }
}

/// Words of the policy that give facts their meaning.
#[derive(Debug)]
pub(super) struct Vocabulary {
    pub(super) sla_tiers: Vec<String>,
    pub(super) priorities: Vec<String>,
    /// Names of the value bands, rising.
    pub(super) value_bands: Vec<String>,
    /// `upper_bounds[i]` is the exclusive upper bound of band `i`, in the policy's currency; the last band has none.
    pub(super) upper_bounds: Vec<f64>,
    pub(super) money: Money,
}

/// The currency that the policy's limits are in, and what others are worth in it.
#[derive(Debug)]
pub(super) struct Money {
    pub(super) currency: String,
    /// Value of one unit, in `currency`.
    pub(super) exchange_rates: BTreeMap<String, f64>,
}

impl Money {
    /// `amount` in the policy's currency; `None` where its currency is unnamed or has no rate.
    pub(super) fn convert(&self, amount: f64, currency: Option<&str>) -> Option<f64> {
        let currency = currency?;
        if currency == self.currency {
            return Some(amount);
        }
        self.exchange_rates.get(currency).map(|rate| amount * rate)
    }
}

/// One case, ready to be looked up.
#[derive(Debug)]
pub(super) struct CaseView<'a> {
    values: [Value<'a>; Dimension::COUNT],
}

impl<'a> CaseView<'a> {
    pub(super) fn new(vocabulary: &'a Vocabulary, input: &PolicyInput<'a>) -> Self {
        let mut view = Self::of_action(vocabulary, input.action, input.facts, input.risk);
        view.set(Dimension::Type, Value::known(input.classification.map(|classification| classification.r#type.as_str())));
        view.set(Dimension::DeclaredType, Value::known(declared_type(input.facts)));
        view
    }

    /// The view without the types, for a table that does not ask about them.
    pub(super) fn of_action(
        vocabulary: &'a Vocabulary,
        action: Option<&'a ActionDefinition>,
        facts: &'a Facts,
        risk: Option<&Risk>,
    ) -> Self {
        let order = facts.order.as_ref();
        let tier = facts.customer.as_ref().and_then(|customer| customer.sla_tier.as_deref());
        let priority = order.and_then(|order| order.priority.as_deref());
        let mut view = Self { values: [Value::Missing; Dimension::COUNT] };
        view.set(Dimension::Action, Value::known(action.map(|action| action.code.as_str())));
        view.set(Dimension::Tenant, Value::One(&facts.tenant));
        view.set(Dimension::BusinessUnit, Value::known(facts.business_unit.as_deref()));
        view.set(Dimension::Site, Value::known(facts.site.as_deref()));
        view.set(Dimension::SlaTier, Value::known(word(&vocabulary.sla_tiers, tier)));
        view.set(Dimension::Priority, Value::known(word(&vocabulary.priorities, priority)));
        view.set(Dimension::ValueBand, Value::known(vocabulary.value_band(order)));
        view.set(Dimension::SlaRisk, Value::known(risk.map(|risk| band_code(risk.sla_breach.band))));
        view.set(Dimension::Reversible, Value::known(action.map(|action| if action.reversible { "true" } else { "false" })));
        view.set(Dimension::Touches, action.map_or(Value::Missing, touches));
        view
    }

    /// A view with every value missing but the given ones.
    #[cfg(test)]
    pub(super) fn of_values(values: impl IntoIterator<Item = (Dimension, Value<'a>)>) -> Self {
        let mut view = Self { values: [Value::Missing; Dimension::COUNT] };
        for (dimension, value) in values {
            view.set(dimension, value);
        }
        view
    }

    pub(super) fn value(&self, dimension: Dimension) -> Value<'a> {
        self.values[dimension as usize]
    }

    fn set(&mut self, dimension: Dimension, value: Value<'a>) {
        self.values[dimension as usize] = value;
    }
}

impl Vocabulary {
    /// [`Order::worth`] in the policy's currency. `None` where it cannot be told or its currency cannot be compared.
    pub(super) fn order_value(&self, order: Option<&Order>) -> Option<f64> {
        let order = order?;
        self.money.convert(order.worth()?, order.currency.as_deref())
    }

    fn value_band(&self, order: Option<&Order>) -> Option<&str> {
        let value = self.order_value(order)?;
        let band_idx = self.upper_bounds.iter().take_while(|bound| value >= **bound).count();
        self.value_bands.get(band_idx).map(String::as_str)
    }
}

/// The type that the source system declares, without the spaces around it; a blank one declares nothing. Compare it without regard
/// to case.
pub(super) fn declared_type(facts: &Facts) -> Option<&str> {
    facts.declared_type.as_deref().map(str::trim).filter(|declared| !declared.is_empty())
}

pub(super) fn band_code(band: Band) -> &'static str {
    match band {
        Band::Low => "low",
        Band::Medium => "medium",
        Band::High => "high",
    }
}

/// The word of the vocabulary that the fact states; a word that the policy does not know says nothing.
pub(super) fn word<'a>(vocabulary: &[String], fact: Option<&'a str>) -> Option<&'a str> {
    fact.map(str::trim).filter(|fact| vocabulary.iter().any(|known| known.eq_ignore_ascii_case(fact)))
}

fn touches(action: &ActionDefinition) -> Value<'static> {
    match (action.touches.contains(&Touch::Money), action.touches.contains(&Touch::Credit)) {
        (false, false) => Value::One("nothing"),
        (true, false) => Value::One("money"),
        (false, true) => Value::One("credit"),
        (true, true) => Value::Two("money", "credit"),
    }
}
