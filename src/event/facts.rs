//! The structured facts of an event, with the names of the contract. `None` means *not known*, which is a value of its own to
//! the risk model and never a zero.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;

use super::{EventError, EventLimits, json};

/// Everything an event says apart from its free text.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Facts {
    #[serde(with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
    pub occurred_at: Option<OffsetDateTime>,
    pub tenant: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub business_unit: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub site: Option<String>,
    /// The type the source system believes it is; a hint to people, never trusted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub declared_type: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub order: Option<Order>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub customer: Option<Customer>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shipment: Option<Shipment>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub attributes: BTreeMap<String, Attribute>,
}

/// The order the exception blocks. Money is in `currency`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Order {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Order value, at least 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<f64>,
    /// Gross margin as a fraction of value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub margin: Option<f64>,
    /// ISO 4217 code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub currency: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<String>,
    #[serde(default, with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
    pub promised_ship_at: Option<OffsetDateTime>,
    #[serde(default, with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
    pub requested_delivery_at: Option<OffsetDateTime>,
    #[serde(default, with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
    pub carrier_cutoff_at: Option<OffsetDateTime>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partial_allowed: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub regulated: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub export_controlled: Option<bool>,
    #[serde(default, deserialize_with = "json::objects", skip_serializing_if = "Vec::is_empty")]
    pub lines: Vec<OrderLine>,
}

/// One order line; quantities are in the line's unit of measure, at least 0.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct OrderLine {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sku: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ordered: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub available: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit_price: Option<f64>,
    #[serde(default, deserialize_with = "json::objects", skip_serializing_if = "Vec::is_empty")]
    pub substitutes: Vec<Substitute>,
    #[serde(default, with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
    pub replenishment_at: Option<OffsetDateTime>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replenishment_confirmed: Option<bool>,
}

/// An item that could stand in for an order line's own.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Substitute {
    pub sku: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub available: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approved: Option<bool>,
}

/// The customer whose order is blocked.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Customer {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sla_tier: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credit_limit: Option<f64>,
    /// May be negative: a customer in credit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credit_exposure: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub days_overdue: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requires_authorization: Option<bool>,
    /// Share of orders delivered on time in full over 90 days, 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_time_in_full_90d: Option<f64>,
}

/// The outbound shipment, where there is one.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Shipment {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub carrier: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_level: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status_code: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub freight_cost: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alternate_carriers: Option<u32>,
}

/// A further fact that a distributor's own model uses.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(untagged)]
pub enum Attribute {
    Bool(bool),
    Number(f64),
    Text(String),
}

const MAX_TEXT_CHARS: usize = 256;

impl Facts {
    /// Checks what the types cannot hold: finite numbers, no negative quantity or money, sizes.
    ///
    /// # Errors
    /// The first field at fault, by its path in the contract.
    pub(super) fn validate(&self, limits: &EventLimits) -> Result<(), EventError> {
        short_text("tenant", Some(&self.tenant))?;
        short_text("business_unit", self.business_unit.as_deref())?;
        short_text("site", self.site.as_deref())?;
        short_text("declared_type", self.declared_type.as_deref())?;
        if let Some(order) = &self.order {
            order.validate(limits)?;
        }
        if let Some(customer) = &self.customer {
            customer.validate()?;
        }
        if let Some(shipment) = &self.shipment {
            shipment.validate()?;
        }
        if self.attributes.len() > limits.max_attributes {
            return Err(EventError::invalid("attributes", format!("at most {} entries are accepted", limits.max_attributes)));
        }
        for (name, value) in &self.attributes {
            short_text("attributes", Some(name))?;
            let field = format!("attributes.{}", json::path_segment(name));
            match value {
                Attribute::Bool(_) => {}
                Attribute::Number(number) => finite(&field, Some(*number))?,
                Attribute::Text(text) => short_text(&field, Some(text))?,
            }
        }
        Ok(())
    }
}

impl Order {
    /// What the order is worth in its currency: the stated value, or what its lines add up to where that is more, because a value
    /// typed too low must not slip under a limit. `None` where no value is stated or no finite number holds the sum.
    pub fn worth(&self) -> Option<f64> {
        let value = self.value?;
        let lines = self.lines.iter().filter_map(|line| Some(line.ordered? * line.unit_price?)).sum::<f64>();
        // `max` would quietly prefer the other number to one that is not a number.
        (value + lines).is_finite().then(|| value.max(lines))
    }

    fn validate(&self, limits: &EventLimits) -> Result<(), EventError> {
        short_text("order.id", self.id.as_deref())?;
        not_negative("order.value", self.value)?;
        finite("order.margin", self.margin)?;
        short_text("order.priority", self.priority.as_deref())?;
        if let Some(currency) = &self.currency
            && !(currency.len() == 3 && currency.bytes().all(|b| b.is_ascii_uppercase()))
        {
            return Err(EventError::invalid("order.currency", "must be a three-letter ISO 4217 code such as `USD`"));
        }
        if self.lines.len() > limits.max_lines {
            return Err(EventError::invalid("order.lines", format!("at most {} lines are accepted", limits.max_lines)));
        }
        for (line_idx, line) in self.lines.iter().enumerate() {
            line.validate(&format!("order.lines[{line_idx}]"))?;
        }
        Ok(())
    }
}

impl OrderLine {
    fn validate(&self, path: &str) -> Result<(), EventError> {
        short_text(&format!("{path}.sku"), self.sku.as_deref())?;
        not_negative(&format!("{path}.ordered"), self.ordered)?;
        not_negative(&format!("{path}.available"), self.available)?;
        not_negative(&format!("{path}.unit_price"), self.unit_price)?;
        if self.substitutes.len() > 100 {
            return Err(EventError::invalid(format!("{path}.substitutes"), "at most 100 substitutes are accepted"));
        }
        for (substitute_idx, substitute) in self.substitutes.iter().enumerate() {
            let path = format!("{path}.substitutes[{substitute_idx}]");
            short_text(&format!("{path}.sku"), Some(&substitute.sku))?;
            not_negative(&format!("{path}.available"), substitute.available)?;
        }
        Ok(())
    }
}

impl Customer {
    fn validate(&self) -> Result<(), EventError> {
        short_text("customer.id", self.id.as_deref())?;
        short_text("customer.sla_tier", self.sla_tier.as_deref())?;
        not_negative("customer.credit_limit", self.credit_limit)?;
        finite("customer.credit_exposure", self.credit_exposure)?;
        not_negative("customer.days_overdue", self.days_overdue)?;
        if self.on_time_in_full_90d.is_some_and(|share| !(0.0..=1.0).contains(&share)) {
            return Err(EventError::invalid("customer.on_time_in_full_90d", "must lie between 0 and 1"));
        }
        Ok(())
    }
}

impl Shipment {
    fn validate(&self) -> Result<(), EventError> {
        short_text("shipment.carrier", self.carrier.as_deref())?;
        short_text("shipment.service_level", self.service_level.as_deref())?;
        short_text("shipment.mode", self.mode.as_deref())?;
        short_text("shipment.status_code", self.status_code.as_deref())?;
        not_negative("shipment.freight_cost", self.freight_cost)
    }
}

/// Models compute in `f32`, so a number that none holds could only become infinite or be dropped there.
fn finite(field: &str, value: Option<f64>) -> Result<(), EventError> {
    match value {
        Some(number) if !number.is_finite() => Err(EventError::invalid(field, "must be a finite number")),
        Some(number) if !(number as f32).is_finite() => {
            Err(EventError::invalid(field, "must be a number between -3.4e38 and 3.4e38"))
        }
        _ => Ok(()),
    }
}

fn not_negative(field: &str, value: Option<f64>) -> Result<(), EventError> {
    finite(field, value)?;
    match value {
        Some(number) if number < 0.0 => Err(EventError::invalid(field, "must not be negative")),
        _ => Ok(()),
    }
}

pub(super) fn short_text(field: &str, text: Option<&str>) -> Result<(), EventError> {
    match text {
        Some(text) if text.chars().count() > MAX_TEXT_CHARS => {
            Err(EventError::invalid(field, format!("at most {MAX_TEXT_CHARS} characters are accepted")))
        }
        _ => Ok(()),
    }
}
