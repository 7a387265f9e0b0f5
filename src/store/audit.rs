//! The audit chain: every record's hash covers the record and the hash before it, so that one edited, removed, added or moved
//! record breaks the chain from there on.
//!
//! Two hashes a record: [`Payload`] covers what the record is about (the stored bytes of event and decision, and the columns
//! beside them), [`Record`] covers its place. Fields are length-prefixed under a domain of their own, so no two different records
//! have one encoding. [`ChainVerifier`] walks stored records in order; it is plain data and knows no database.
//!
//! It refuses to be a signature: who can write the file can write all of it anew. A head kept elsewhere shows that.

use serde::Serialize;
use sha2::{Digest, Sha256};
use utoipa::ToSchema;

use crate::decision::AuditReference;

/// A SHA-256.
pub(super) type Hash = [u8; 32];

/// What the first record has as `previous_hash`.
pub(super) const GENESIS: Hash = [0; 32];

/// The kind of record that every decision has.
pub(super) const KIND_DECISION: &str = "decision";

const PAYLOAD_DOMAIN: &[u8] = b"sluice.audit.payload.v1";
const RECORD_DOMAIN: &[u8] = b"sluice.audit.record.v1";

/// An intact chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct AuditReport {
    pub records: u64,
    /// 0 in an empty chain.
    pub head_sequence: u64,
    /// Lower-case hex. Keep it elsewhere: given to the next verification, it shows a chain that was cut or written anew.
    pub head_hash: String,
}

/// The first place where the chain does not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("audit record {sequence}: {kind}")]
pub struct AuditFault {
    /// The record at fault; the last one of the chain where a decision has none.
    pub sequence: u64,
    pub kind: AuditFaultKind,
}

/// What does not hold there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuditFaultKind {
    #[error("is missing")]
    Missing,
    #[error("stands before the first record")]
    OutOfPlace,
    #[error("is not readable")]
    Unreadable,
    #[error("does not follow the record before it")]
    BrokenLink,
    #[error("was altered")]
    RecordAltered,
    #[error("has a kind this version does not know")]
    UnknownKind,
    #[error("its decision is missing")]
    DecisionMissing,
    #[error("its decision or event was altered")]
    PayloadAltered,
    #[error("the decision `{decision_id}` has no record")]
    DecisionUnrecorded { decision_id: String },
    #[error("has another hash than the expected head: the chain was written anew")]
    Rewritten,
    #[error("is missing, although a later one is the expected head: the chain was cut")]
    Truncated,
}

/// What a record of kind `decision` is about.
#[derive(Debug, Clone, Copy)]
pub(super) struct Payload<'a> {
    pub(super) decision_id: &'a [u8],
    pub(super) tenant: &'a [u8],
    pub(super) source: &'a [u8],
    pub(super) event_id: &'a [u8],
    pub(super) input_hash: &'a [u8],
    pub(super) decided_at_us: i64,
    pub(super) event: &'a [u8],
    pub(super) decision: &'a [u8],
}

impl Payload<'_> {
    pub(super) fn hash(&self) -> Hash {
        Encoding::new(PAYLOAD_DOMAIN)
            .field(self.decision_id)
            .field(self.tenant)
            .field(self.source)
            .field(self.event_id)
            .field(self.input_hash)
            .field(&self.decided_at_us.to_le_bytes())
            .field(&Sha256::digest(self.decision))
            .field(&Sha256::digest(self.event))
            .finish()
    }
}

/// A record without its own hash.
#[derive(Debug, Clone, Copy)]
pub(super) struct Record<'a> {
    pub(super) previous_hash: &'a [u8],
    pub(super) sequence: i64,
    pub(super) kind: &'a [u8],
    pub(super) recorded_at_us: i64,
    pub(super) decision_id: &'a [u8],
    pub(super) payload_hash: &'a [u8],
}

impl Record<'_> {
    pub(super) fn hash(&self) -> Hash {
        Encoding::new(RECORD_DOMAIN)
            .field(self.previous_hash)
            .field(&self.sequence.to_le_bytes())
            .field(self.kind)
            .field(&self.recorded_at_us.to_le_bytes())
            .field(self.decision_id)
            .field(self.payload_hash)
            .finish()
    }
}

/// A record as it was read, with the decision it is about, where that exists.
#[derive(Debug, Clone, Copy)]
pub(super) struct StoredRecord<'a> {
    pub(super) record: Record<'a>,
    pub(super) hash: &'a [u8],
    pub(super) payload: Option<Payload<'a>>,
}

/// Walks a chain from its first record.
#[derive(Debug)]
pub(super) struct ChainVerifier {
    records: u64,
    head_hash: Hash,
    expected: Option<AuditReference>,
}

impl ChainVerifier {
    pub(super) fn new(expected: Option<&AuditReference>) -> Self {
        Self { records: 0, head_hash: GENESIS, expected: expected.cloned() }
    }

    /// Checks the next record in ascending order of `sequence`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn push(&mut self, stored: &StoredRecord<'_>) -> Result<(), AuditFault> {
        let StoredRecord { record, hash, payload } = stored;
        let next = self.records + 1;
        let fault = |kind| Err(AuditFault { sequence: next, kind });
        match u64::try_from(record.sequence) {
            Ok(sequence) if sequence == next => {}
            Ok(sequence) if sequence > next => return fault(AuditFaultKind::Missing),
            Ok(sequence) => return Err(AuditFault { sequence, kind: AuditFaultKind::OutOfPlace }),
            Err(_) => return Err(AuditFault { sequence: 0, kind: AuditFaultKind::OutOfPlace }),
        }
        if record.previous_hash != self.head_hash {
            return fault(AuditFaultKind::BrokenLink);
        }
        let computed = record.hash();
        if *hash != computed {
            return fault(AuditFaultKind::RecordAltered);
        }
        if record.kind != KIND_DECISION.as_bytes() {
            return fault(AuditFaultKind::UnknownKind);
        }
        match payload {
            None => return fault(AuditFaultKind::DecisionMissing),
            Some(payload) if payload.hash() != record.payload_hash => return fault(AuditFaultKind::PayloadAltered),
            Some(_) => {}
        }
        if let Some(expected) = &self.expected
            && expected.sequence == next
            && !expected.hash.eq_ignore_ascii_case(&hex::encode(computed))
        {
            return fault(AuditFaultKind::Rewritten);
        }
        self.records = next;
        self.head_hash = computed;
        Ok(())
    }

    /// The record that follows is not readable.
    pub(super) fn unreadable(&self) -> AuditFault {
        AuditFault { sequence: self.records + 1, kind: AuditFaultKind::Unreadable }
    }

    /// A decision was found that no record is about.
    pub(super) fn unrecorded(&self, decision_id: String) -> AuditFault {
        AuditFault { sequence: self.records, kind: AuditFaultKind::DecisionUnrecorded { decision_id } }
    }

    /// # Errors
    /// [`AuditFaultKind::Truncated`] where the chain ends before the expected head.
    pub(super) fn finish(&self) -> Result<AuditReport, AuditFault> {
        if self.expected.as_ref().is_some_and(|expected| expected.sequence > self.records) {
            return Err(AuditFault { sequence: self.records + 1, kind: AuditFaultKind::Truncated });
        }
        Ok(AuditReport { records: self.records, head_sequence: self.records, head_hash: hex::encode(self.head_hash) })
    }
}

/// A hash over length-prefixed fields: without the lengths, `ab` + `c` and `a` + `bc` would be one.
struct Encoding(Sha256);

impl Encoding {
    fn new(domain: &[u8]) -> Self {
        Self(Sha256::new()).field(domain)
    }

    fn field(mut self, bytes: &[u8]) -> Self {
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
        self
    }

    fn finish(self) -> Hash {
        self.0.finalize().into()
    }
}
