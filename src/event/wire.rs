//! What a caller sends. Parsing gives the path of the field at fault; [`EventWire::into_event`] turns it into the checked form.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;

use super::facts::short_text;
use super::{Attribute, Content, Customer, Event, EventError, EventKey, EventLimits, Facts, Order, Shipment, json};

/// The tenant of an event that names none.
const DEFAULT_TENANT: &str = "default";

/// The canonical exception event as it stands in a request body or a file.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Event)]
pub struct EventWire {
    /// The event's id in its source system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The system it came from, such as `wms/dc-atlanta`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// RFC 3339 with offset.
    #[serde(default, with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
    pub occurred_at: Option<OffsetDateTime>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub business_unit: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub site: Option<String>,
    /// What happened, in a person's or a system's words.
    pub narrative: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub declared_type: Option<String>,
    #[serde(default, deserialize_with = "json::object", skip_serializing_if = "Option::is_none")]
    pub order: Option<Order>,
    #[serde(default, deserialize_with = "json::object", skip_serializing_if = "Option::is_none")]
    pub customer: Option<Customer>,
    #[serde(default, deserialize_with = "json::object", skip_serializing_if = "Option::is_none")]
    pub shipment: Option<Shipment>,
    #[serde(default, deserialize_with = "json::attributes", skip_serializing_if = "BTreeMap::is_empty")]
    pub attributes: BTreeMap<String, Attribute>,
}

impl EventWire {
    /// Reads one event from JSON.
    ///
    /// # Errors
    /// `malformed` where the bytes are not JSON; otherwise the path of the first field that does not fit. The caller's values
    /// are never repeated in the message.
    pub fn from_json(bytes: &[u8]) -> Result<Self, EventError> {
        json::read(bytes)
    }

    /// The event of a `/recommend`: `id`, `source` and `occurred_at` are required.
    ///
    /// # Errors
    /// The first field that is missing or out of bounds.
    pub fn into_event(self, limits: &EventLimits) -> Result<Event, EventError> {
        let id = required("id", self.id.as_deref())?;
        let source = required("source", self.source.as_deref())?;
        if self.occurred_at.is_none() {
            return Err(EventError::invalid("occurred_at", "is required: an RFC 3339 time with offset"));
        }
        let content = self.into_content(limits)?;
        let tenant = content.facts.tenant.clone();
        Ok(Event { key: EventKey { tenant, source, id }, content })
    }

    /// The content of a `/classify`: everything but the narrative may be missing.
    ///
    /// # Errors
    /// The first field that is out of bounds.
    pub fn into_content(self, limits: &EventLimits) -> Result<Content, EventError> {
        for (field, text) in [("id", &self.id), ("source", &self.source), ("tenant", &self.tenant)] {
            let Some(text) = text else { continue };
            if is_blank(text) {
                return Err(EventError::invalid(field, "must not be blank"));
            }
            if text.chars().any(char::is_control) {
                return Err(EventError::invalid(field, "must not contain control characters"));
            }
            short_text(field, Some(text))?;
        }
        if is_blank(&self.narrative) {
            return Err(EventError::invalid("narrative", "must not be blank"));
        }
        // Bytes bound characters from above, so the usual short text is never counted.
        if self.narrative.len() > limits.max_narrative_chars && self.narrative.chars().count() > limits.max_narrative_chars {
            return Err(EventError::invalid(
                "narrative",
                format!(
                    "at most {} characters are accepted; send the part that describes the exception",
                    limits.max_narrative_chars
                ),
            ));
        }
        let facts = Facts {
            occurred_at: self.occurred_at,
            tenant: self.tenant.unwrap_or_else(|| DEFAULT_TENANT.to_owned()),
            business_unit: self.business_unit,
            site: self.site,
            declared_type: self.declared_type,
            order: self.order,
            customer: self.customer,
            shipment: self.shipment,
            attributes: self.attributes,
        };
        facts.validate(limits)?;
        Ok(Content { narrative: self.narrative, facts })
    }
}

fn required(field: &str, text: Option<&str>) -> Result<String, EventError> {
    text.map(str::to_owned).ok_or_else(|| EventError::invalid(field, "is required"))
}

/// Whether a reader would see nothing: white space, controls, and the characters Unicode calls default ignorable (zero-width
/// spaces and joiners, bidi controls, variation selectors, fillers).
fn is_blank(text: &str) -> bool {
    text.chars().all(|c| {
        c.is_whitespace()
            || c.is_control()
            || matches!(c,
                '\u{AD}' | '\u{34F}' | '\u{61C}' | '\u{115F}'..='\u{1160}' | '\u{17B4}'..='\u{17B5}' | '\u{180B}'..='\u{180F}'
                | '\u{200B}'..='\u{200F}' | '\u{202A}'..='\u{202E}' | '\u{2060}'..='\u{206F}' | '\u{3164}'
                | '\u{FE00}'..='\u{FE0F}' | '\u{FEFF}' | '\u{FFA0}' | '\u{FFF0}'..='\u{FFF8}'
                | '\u{1BCA0}'..='\u{1BCA3}' | '\u{1D173}'..='\u{1D17A}' | '\u{E0000}'..='\u{E0FFF}')
    })
}
