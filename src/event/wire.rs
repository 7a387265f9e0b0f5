//! What a caller sends. Parsing gives the path of the field at fault; [`EventWire::into_event`] turns it into the checked form.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;

use super::{Attribute, Content, Customer, Event, EventError, EventKey, EventLimits, Facts, Order, Shipment};

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
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<Order>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub customer: Option<Customer>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shipment: Option<Shipment>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub attributes: BTreeMap<String, Attribute>,
}

impl EventWire {
    /// Reads one event from JSON.
    ///
    /// # Errors
    /// `malformed` where the bytes are not JSON; otherwise the path of the first field that does not fit. The caller's values
    /// are never repeated in the message.
    pub fn from_json(bytes: &[u8]) -> Result<Self, EventError> {
        let mut deserializer = serde_json::Deserializer::from_slice(bytes);
        let event = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| json_error(&error))?;
        deserializer.end().map_err(|error| EventError {
            field: String::new(),
            message: format!("trailing characters after the event, at line {} column {}", error.line(), error.column()),
            malformed: true,
        })?;
        Ok(event)
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
            if text.as_deref().is_some_and(|text| text.trim().is_empty()) {
                return Err(EventError::invalid(field, "must not be blank"));
            }
        }
        if self.narrative.trim().is_empty() {
            return Err(EventError::invalid("narrative", "must not be empty"));
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
    match text {
        None => Err(EventError::invalid(field, "is required")),
        Some(text) if text.chars().count() > 256 => Err(EventError::invalid(field, "at most 256 characters are accepted")),
        Some(text) => Ok(text.to_owned()),
    }
}

pub(super) fn json_error(error: &serde_path_to_error::Error<serde_json::Error>) -> EventError {
    let inner = error.inner();
    let position = format!("at line {} column {}", inner.line(), inner.column());
    let path = error.path().to_string();
    let field = if path == "." { String::new() } else { path };
    match inner.classify() {
        serde_json::error::Category::Data => EventError { message: data_message(&inner.to_string()), field, malformed: false },
        _ => EventError { message: format!("not valid JSON, {position}"), field: String::new(), malformed: true },
    }
}

/// serde's message without the caller's value: `invalid type: string "x", expected f64` keeps only what was expected.
fn data_message(message: &str) -> String {
    let message = message.split(" at line ").next().unwrap_or(message);
    if message.starts_with("unknown field") || message.starts_with("missing field") || message.starts_with("duplicate field") {
        return message.to_owned();
    }
    match message.split_once(", expected ") {
        Some((_, expected)) => format!("wrong type or value, expected {expected}"),
        None => "wrong type or value".to_owned(),
    }
}
