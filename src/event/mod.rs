//! The canonical event: one form for whatever system an exception came from.
//!
//! [`wire`] is what a caller sends; [`EventWire::into_event`] checks it once and gives an [`Event`], which the rest of the
//! service trusts. The narrative and the structured [`Facts`] are kept apart on purpose: risk and policy are given facts only,
//! so no wording can reach them.
//!
//! It refuses to know HTTP and to guess: a missing fact stays missing.

mod batch;
pub mod cloudevents;
mod facts;
mod json;
mod wire;

pub use batch::{split_array, split_events};
pub use facts::{Attribute, Customer, Facts, Order, OrderLine, Shipment, Substitute};
pub use json::MAX_ENTRIES;
pub use wire::EventWire;

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The idempotency key of an event.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct EventKey {
    pub tenant: String,
    pub source: String,
    pub id: String,
}

/// One exception as it happened: who says so, and what they say.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Event {
    pub key: EventKey,
    pub content: Content,
}

/// What is judged: the text a person or system wrote, and the structured facts beside it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Content {
    /// Never blank, at most [`EventLimits::max_narrative_chars`] characters.
    pub narrative: String,
    pub facts: Facts,
}

impl Event {
    /// SHA-256 over the canonical JSON of the validated event, in lower-case hex. Two bodies that differ only in white space,
    /// key order or explicit nulls have one hash; any other difference gives another.
    pub fn input_hash(&self) -> String {
        let canonical = serde_json::to_vec(self).expect("a validated event holds finite numbers and string keys only");
        hex::encode(Sha256::digest(canonical))
    }
}

/// Bounds on one event, from configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventLimits {
    /// Longest accepted narrative, in characters, as it is sent and after normalising. Longer ones are refused, never cut.
    pub max_narrative_chars: usize,
    /// Most order lines in one event, at most [`MAX_ENTRIES`].
    pub max_lines: usize,
    /// Most entries in `attributes`, at most [`MAX_ENTRIES`].
    pub max_attributes: usize,
}

/// Why an event was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct EventError {
    /// Path of the field at fault, as in `order.lines[0].ordered`; empty for the event as a whole.
    pub field: String,
    /// What is wrong with it and what is accepted instead. Never repeats the caller's value.
    pub message: String,
    /// Whether the bytes were not JSON at all, as opposed to JSON of the wrong shape.
    pub malformed: bool,
}

impl EventError {
    pub fn invalid(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: field.into(), message: message.into(), malformed: false }
    }
}

impl fmt::Display for EventKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.tenant, self.source, self.id)
    }
}
