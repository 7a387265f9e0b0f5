//! The one task that writes. It takes every job that waits, writes them in one transaction, and answers after the commit: an
//! `fdatasync` costs milliseconds, and 64 decisions can share it.
//!
//! A row that the database refuses fails alone; anything else that goes wrong fails the whole transaction, and each of its callers
//! hears so. The head of the chain is read inside every transaction, so no failure can leave a wrong idea of it behind.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sqlx::error::ErrorKind;
use sqlx::sqlite::{SqliteConnection, SqlitePool};
use time::OffsetDateTime;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::BY_KEY;
use crate::decision::Decision;
use crate::store::StoreError;
use crate::store::audit::{GENESIS, Hash, KIND_DECISION, Record};
use crate::store::row::{Row, StoredDecision, unix_micros};

/// What the writer is asked.
#[derive(Debug)]
pub(super) enum Job {
    Record {
        row: Box<Row>,
        reply: oneshot::Sender<Result<Decision, StoreError>>,
    },
    /// Tries whether a commit reaches the disk.
    Probe {
        reply: oneshot::Sender<Result<(), StoreError>>,
    },
}

#[derive(Debug)]
pub(super) struct Writer {
    pub(super) jobs: mpsc::Receiver<Job>,
    /// Of one connection.
    pub(super) pool: SqlitePool,
    pub(super) max_commit_rows: usize,
    pub(super) failed: Arc<AtomicBool>,
    pub(super) closing: CancellationToken,
}

/// The last record of the chain.
#[derive(Debug)]
struct Head {
    sequence: i64,
    hash: Hash,
}

impl Writer {
    /// Works until the store is closed or forgotten, the jobs that wait then included. Gives the connection back.
    pub(super) async fn run(mut self) -> SqlitePool {
        let mut batch = Vec::with_capacity(self.max_commit_rows);
        loop {
            let received = tokio::select! {
                received = self.jobs.recv_many(&mut batch, self.max_commit_rows) => received,
                () = self.closing.cancelled(), if !self.jobs.is_closed() => {
                    self.jobs.close();
                    continue;
                }
            };
            if received == 0 {
                return self.pool;
            }
            self.commit(&mut batch).await;
        }
    }

    async fn commit(&self, batch: &mut Vec<Job>) {
        let written = self.write(batch).await.map_err(Arc::new);
        self.failed.store(written.is_err(), Ordering::Relaxed);
        if let Err(error) = &written {
            tracing::error!(error = error as &dyn std::error::Error, rows = batch.len(), "a commit failed");
        }
        let mut answers = written.map(Vec::into_iter);
        for job in batch.drain(..) {
            // A caller who no longer waits is no reason to stop: the decision stands and a repeat finds it.
            match job {
                Job::Record { reply, .. } => {
                    let _ = reply.send(match &mut answers {
                        Ok(answers) => answers.next().expect("`write` answers every record of its batch"),
                        Err(error) => Err(StoreError::Database(Arc::clone(error))),
                    });
                }
                Job::Probe { reply } => {
                    let _ = reply.send(match &answers {
                        Ok(_) => Ok(()),
                        Err(error) => Err(StoreError::Database(Arc::clone(error))),
                    });
                }
            }
        }
    }

    /// The answer to each record of the batch, in order, once all of them are on disk.
    async fn write(&self, batch: &[Job]) -> Result<Vec<Result<Decision, StoreError>>, sqlx::Error> {
        let mut transaction = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        let mut head = Head::read(&mut transaction).await?;
        let mut answers = Vec::with_capacity(batch.len());
        for job in batch {
            match job {
                Job::Record { row, .. } => answers.push(write_row(&mut transaction, &mut head, row).await?),
                // Setting it to what it is writes the first page, and so reaches the disk.
                Job::Probe { .. } => drop(sqlx::query("PRAGMA user_version = 0").execute(&mut *transaction).await?),
            }
        }
        transaction.commit().await?;
        Ok(answers)
    }
}

impl Head {
    async fn read(connection: &mut SqliteConnection) -> Result<Self, sqlx::Error> {
        let query = sqlx::query_as::<_, (i64, Vec<u8>)>("SELECT sequence, hash FROM audit ORDER BY sequence DESC LIMIT 1");
        let Some((sequence, hash)) = query.fetch_optional(connection).await? else {
            return Ok(Self { sequence: 0, hash: GENESIS });
        };
        let hash = Hash::try_from(hash).map_err(|_| sqlx::Error::Decode("an audit hash has not 32 bytes".into()))?;
        Ok(Self { sequence, hash })
    }
}

/// Writes one decision and its record. The inner error is the row's own; the outer one spoils the transaction.
async fn write_row(
    connection: &mut SqliteConnection,
    head: &mut Head,
    row: &Row,
) -> Result<Result<Decision, StoreError>, sqlx::Error> {
    let key = &row.key;
    let query = sqlx::query_as::<_, StoredDecision>(BY_KEY).bind(&key.tenant).bind(&key.source).bind(&key.id);
    // Sees rows of this very transaction too: of two repeats in one batch the first is recorded, the second answered with it.
    if let Some(stored) = query.fetch_optional(&mut *connection).await? {
        return Ok(stored.replay(&row.input_hash));
    }
    let inserted = sqlx::query(
        "INSERT INTO decisions (decision_id, tenant, source, event_id, input_hash, event, decision, decided_at_us) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(&row.decision_id)
    .bind(&key.tenant)
    .bind(&key.source)
    .bind(&key.id)
    .bind(&row.input_hash)
    .bind(&row.event)
    .bind(&row.decision)
    .bind(row.decided_at_us)
    .execute(&mut *connection)
    .await;
    match inserted {
        Ok(_) => {}
        // A broken constraint undoes its own statement and leaves the transaction as it was.
        Err(sqlx::Error::Database(error)) if !matches!(error.kind(), ErrorKind::Other) => {
            return Ok(Err(sqlx::Error::Database(error).into()));
        }
        Err(error) => return Err(error),
    }
    let sequence = head.sequence + 1;
    let recorded_at_us = unix_micros(OffsetDateTime::now_utc());
    let hash = Record {
        previous_hash: &head.hash,
        sequence,
        kind: KIND_DECISION.as_bytes(),
        recorded_at_us,
        decision_id: row.decision_id.as_bytes(),
        payload_hash: &row.payload_hash,
    }
    .hash();
    sqlx::query(
        "INSERT INTO audit (sequence, decision_id, kind, payload_hash, previous_hash, hash, recorded_at_us) \
         VALUES (?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(sequence)
    .bind(&row.decision_id)
    .bind(KIND_DECISION)
    .bind(row.payload_hash.as_slice())
    .bind(head.hash.as_slice())
    .bind(hash.as_slice())
    .bind(recorded_at_us)
    .execute(&mut *connection)
    .await?;
    *head = Head { sequence, hash };
    Ok(Ok(row.answer(sequence.unsigned_abs(), &hash)))
}
