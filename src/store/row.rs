//! A decision as it stands in the database: the bytes that are stored, hashed and answered from.

use crate::decision::{AuditReference, Decision};
use crate::event::EventKey;

use super::audit::{AuditFault, AuditFaultKind, Hash, Payload};
use super::{NewDecision, StoreError};

/// A decision ready to be written.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) key: EventKey,
    pub(super) input_hash: String,
    pub(super) decision_id: String,
    pub(super) decided_at_us: i64,
    pub(super) event: String,
    /// Without the `audit` block.
    pub(super) decision: String,
    pub(super) payload_hash: Hash,
    /// `decision`, read back.
    parsed: Decision,
}

impl Row {
    /// Serialises once. The answer is read back from the bytes, so that the first answer and every repeat are one and the same,
    /// and what cannot be read back (JSON has no NaN) is refused before it is written.
    pub(super) fn new(new: NewDecision) -> Result<Self, StoreError> {
        let decided_at_us = unix_micros(new.decision.decided_at);
        let decision = serde_json::to_string(&Decision { audit: None, replayed: false, ..new.decision })?;
        let parsed: Decision = serde_json::from_str(&decision)?;
        let event = serde_json::to_string(&new.event)?;
        let payload_hash = Payload {
            decision_id: parsed.decision_id.as_bytes(),
            tenant: new.key.tenant.as_bytes(),
            source: new.key.source.as_bytes(),
            event_id: new.key.id.as_bytes(),
            input_hash: new.input_hash.as_bytes(),
            decided_at_us,
            event: event.as_bytes(),
            decision: decision.as_bytes(),
        }
        .hash();
        let decision_id = parsed.decision_id.clone();
        Ok(Self { key: new.key, input_hash: new.input_hash, decision_id, decided_at_us, event, decision, payload_hash, parsed })
    }

    /// The answer to whoever asked for this row to be written.
    pub(super) fn answer(&self, sequence: u64, hash: &Hash) -> Decision {
        let audit = Some(AuditReference { sequence, hash: hex::encode(hash) });
        Decision { audit, ..self.parsed.clone() }
    }
}

/// A decision as it was read.
#[derive(Debug, sqlx::FromRow)]
pub(super) struct StoredDecision {
    pub(super) input_hash: String,
    decision: String,
    /// Absent where the decision has no record.
    sequence: Option<i64>,
    hash: Option<Vec<u8>>,
}

impl StoredDecision {
    pub(super) fn into_decision(self, replayed: bool) -> Result<Decision, StoreError> {
        let decision: Decision = serde_json::from_str(&self.decision)?;
        let (Some(sequence), Some(hash)) = (self.sequence, self.hash) else {
            let kind = AuditFaultKind::DecisionUnrecorded { decision_id: decision.decision_id };
            return Err(AuditFault { sequence: 0, kind }.into());
        };
        let audit = Some(AuditReference { sequence: sequence.unsigned_abs(), hash: hex::encode(hash) });
        Ok(Decision { audit, replayed, ..decision })
    }

    /// The answer to an event with `input_hash` whose key this decision has.
    pub(super) fn replay(self, input_hash: &str) -> Result<Decision, StoreError> {
        if self.input_hash != input_hash {
            return Err(StoreError::Conflict);
        }
        self.into_decision(true)
    }
}

/// Microseconds since 1970-01-01 UTC.
pub(super) fn unix_micros(time: time::OffsetDateTime) -> i64 {
    i64::try_from(time.unix_timestamp_nanos() / 1_000).expect("`OffsetDateTime` ends in the year 9999")
}
