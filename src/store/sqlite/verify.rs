//! Walks the stored chain: reads pages of records with the decisions they are about, and hashes each page on a blocking thread
//! while the next is read.
//!
//! No transaction spans the walk, because it would keep the write-ahead log from being folded for as long; records are
//! append-only, so those up to the head seen at the start stay what they are.

use sqlx::Row as _;
use sqlx::sqlite::SqliteRow;
use tokio::task::JoinHandle;

use super::SqliteStore;
use crate::decision::AuditReference;
use crate::store::StoreError;
use crate::store::audit::{AuditFault, AuditReport, ChainVerifier, Payload, Record, StoredRecord};

/// Some megabytes of JSON a page, and few enough round trips.
pub(super) const PAGE_ROWS: usize = 512;

const PAGE: &str = "SELECT a.sequence, a.kind, a.recorded_at_us, a.payload_hash, a.previous_hash, a.hash, a.decision_id, \
        d.decision_id, d.tenant, d.source, d.event_id, d.input_hash, d.decided_at_us, d.event, d.decision \
    FROM audit a LEFT JOIN decisions d ON d.decision_id = a.decision_id \
    WHERE a.sequence > ? AND a.sequence <= ? ORDER BY a.sequence LIMIT ?";
const UNRECORDED: &str = "SELECT CAST(d.decision_id AS BLOB) FROM decisions d \
    LEFT JOIN audit a ON a.decision_id = d.decision_id AND a.kind = 'decision' WHERE a.sequence IS NULL LIMIT 1";

type Walked = Result<ChainVerifier, AuditFault>;

impl SqliteStore {
    pub(in crate::store) async fn verify_audit(&self, expected: Option<&AuditReference>) -> Result<AuditReport, StoreError> {
        let head: Option<i64> = sqlx::query_scalar("SELECT max(sequence) FROM audit").fetch_one(&self.readers).await?;
        let mut walking: JoinHandle<Walked> = walk(ChainVerifier::new(expected), Vec::new());
        // Below every possible sequence, so that a record slipped in before the first is seen.
        let mut last = i64::MIN;
        loop {
            let page = sqlx::query(PAGE).bind(last).bind(head.unwrap_or(0)).bind(PAGE_ROWS as i64).fetch_all(&self.readers).await?;
            let verifier = finished(walking).await?;
            let Some(row) = page.last() else {
                let unrecorded: Option<Vec<u8>> = sqlx::query_scalar(UNRECORDED).fetch_optional(&self.readers).await?;
                if let Some(decision_id) = unrecorded {
                    return Err(verifier.unrecorded(String::from_utf8_lossy(&decision_id).into_owned()).into());
                }
                return Ok(verifier.finish()?);
            };
            last = row.try_get(0)?;
            walking = walk(verifier, page);
        }
    }
}

fn walk(mut verifier: ChainVerifier, page: Vec<SqliteRow>) -> JoinHandle<Walked> {
    tokio::task::spawn_blocking(move || {
        for row in &page {
            let stored = stored_record(row).map_err(|_| verifier.unreadable())?;
            verifier.push(&stored)?;
        }
        Ok(verifier)
    })
}

async fn finished(walking: JoinHandle<Walked>) -> Result<ChainVerifier, StoreError> {
    // The task cannot panic on any row; it is cancelled where the runtime shuts down.
    Ok(walking.await.map_err(|_| StoreError::Closed)??)
}

/// Reads by position: looking fifteen names up for every record would cost more than the hashes.
fn stored_record(row: &SqliteRow) -> Result<StoredRecord<'_>, sqlx::Error> {
    let payload = match row.try_get::<Option<&[u8]>, _>(7)? {
        None => None,
        Some(decision_id) => Some(Payload {
            decision_id,
            tenant: row.try_get(8)?,
            source: row.try_get(9)?,
            event_id: row.try_get(10)?,
            input_hash: row.try_get(11)?,
            decided_at_us: row.try_get(12)?,
            event: row.try_get(13)?,
            decision: row.try_get(14)?,
        }),
    };
    Ok(StoredRecord {
        record: Record {
            sequence: row.try_get(0)?,
            kind: row.try_get(1)?,
            recorded_at_us: row.try_get(2)?,
            payload_hash: row.try_get(3)?,
            previous_hash: row.try_get(4)?,
            decision_id: row.try_get(6)?,
        },
        hash: row.try_get(5)?,
        payload,
    })
}
