//! The one task that writes. It takes every job that waits, writes them in one transaction, and answers after the commit: an
//! `fdatasync` costs milliseconds, and 64 decisions can share it.
//!
//! A row at fault fails alone; anything that goes wrong in the database fails the whole transaction, and each of its callers
//! hears so. The head of the chain is read inside every transaction, so no failure can leave a wrong idea of it behind.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sqlx::sqlite::{SqliteConnection, SqlitePool};
use sqlx::{FromRow as _, QueryBuilder, Row as _, Sqlite};
use time::OffsetDateTime;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::decision::Decision;
use crate::event::EventKey;
use crate::store::StoreError;
use crate::store::audit::{GENESIS, Hash, KIND_DECISION, Record};
use crate::store::row::{Row, StoredDecision, unix_micros};

type Answer = Result<Decision, StoreError>;

/// What the writer is asked.
#[derive(Debug)]
pub(super) enum Job {
    Record {
        row: Box<Row>,
        reply: oneshot::Sender<Answer>,
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
    ///
    /// The number of statements does not depend on the number of rows: each is a trip to the connection's thread and back, and
    /// on a busy machine 64 such trips cost more than the disk.
    async fn write(&self, batch: &[Job]) -> Result<Vec<Answer>, sqlx::Error> {
        let rows: Vec<&Row> = batch.iter().filter_map(Job::row).collect();
        let mut transaction = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        let mut answers = Vec::new();
        if !rows.is_empty() {
            let earlier = look_up(&mut transaction, &rows).await?;
            let head = Head::read(&mut transaction).await?;
            let plan = Plan::new(&rows, earlier, head);
            if !plan.records.is_empty() {
                insert(&mut transaction, &plan.records).await?;
            }
            answers = plan.answers;
        }
        if rows.len() < batch.len() {
            // A probe. Setting it to what it is writes the first page, and so reaches the disk.
            sqlx::query("PRAGMA user_version = 0").execute(&mut *transaction).await?;
        }
        transaction.commit().await?;
        Ok(answers)
    }
}

impl Job {
    fn row(&self) -> Option<&Row> {
        match self {
            Self::Record { row, .. } => Some(row),
            Self::Probe { .. } => None,
        }
    }
}

/// What the database holds that concerns one row of a batch.
#[derive(Debug)]
struct Earlier {
    /// The decision on the same key.
    decision: Option<StoredDecision>,
    /// Whether another decision has its id.
    id_taken: bool,
}

/// A decision that is new, with its place in the chain.
#[derive(Debug)]
struct NewRecord<'a> {
    row: &'a Row,
    sequence: i64,
    recorded_at_us: i64,
    previous_hash: Hash,
    hash: Hash,
}

/// What becomes of each row of a batch: worked out before anything is written, so that a row at fault never reaches the
/// database and cannot spoil the transaction for its neighbours.
#[derive(Debug)]
struct Plan<'a> {
    answers: Vec<Answer>,
    records: Vec<NewRecord<'a>>,
}

impl<'a> Plan<'a> {
    fn new(rows: &[&'a Row], earlier: Vec<Earlier>, mut head: Head) -> Self {
        let recorded_at_us = unix_micros(OffsetDateTime::now_utc());
        let mut plan = Self { answers: Vec::with_capacity(rows.len()), records: Vec::new() };
        let mut by_key: HashMap<&EventKey, usize> = HashMap::new();
        let mut ids: HashSet<&str> = HashSet::new();
        for (row, earlier) in rows.iter().copied().zip(earlier) {
            let answer = if let Some(decision) = earlier.decision {
                decision.replay(&row.input_hash)
            } else if let Some(first) = by_key.get(&row.key) {
                plan.records[*first].replay(&row.input_hash)
            } else if earlier.id_taken || !ids.insert(&row.decision_id) {
                Err(StoreError::DuplicateId)
            } else {
                let record = NewRecord::after(&mut head, row, recorded_at_us);
                by_key.insert(&row.key, plan.records.len());
                let answer = record.answer();
                plan.records.push(record);
                Ok(answer)
            };
            plan.answers.push(answer);
        }
        plan
    }
}

impl<'a> NewRecord<'a> {
    fn after(head: &mut Head, row: &'a Row, recorded_at_us: i64) -> Self {
        let sequence = head.sequence + 1;
        let previous_hash = head.hash;
        let hash = Record {
            previous_hash: &previous_hash,
            sequence,
            kind: KIND_DECISION.as_bytes(),
            recorded_at_us,
            decision_id: row.decision_id.as_bytes(),
            payload_hash: &row.payload_hash,
        }
        .hash();
        *head = Head { sequence, hash };
        Self { row, sequence, recorded_at_us, previous_hash, hash }
    }

    fn answer(&self) -> Decision {
        self.row.answer(self.sequence.unsigned_abs(), &self.hash)
    }

    /// The answer to a repeat in the same batch.
    fn replay(&self, input_hash: &str) -> Answer {
        if self.row.input_hash != input_hash {
            return Err(StoreError::Conflict);
        }
        Ok(Decision { replayed: true, ..self.answer() })
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

/// What concerns each row, in order.
async fn look_up(connection: &mut SqliteConnection, rows: &[&Row]) -> Result<Vec<Earlier>, sqlx::Error> {
    let mut query = QueryBuilder::<Sqlite>::new("WITH new (idx, decision_id, tenant, source, event_id) AS (");
    query.push_values(rows.iter().enumerate(), |mut values, (row_idx, row)| {
        let row_idx = i64::try_from(row_idx).expect("a batch is small");
        values.push_bind(row_idx).push_bind(&row.decision_id);
        values.push_bind(&row.key.tenant).push_bind(&row.key.source).push_bind(&row.key.id);
    });
    query.push(
        ") SELECT EXISTS (SELECT 1 FROM decisions o WHERE o.decision_id = new.decision_id), \
             d.decision_id IS NOT NULL, d.input_hash, d.decision, a.sequence, a.hash \
         FROM new LEFT JOIN decisions d ON d.tenant = new.tenant AND d.source = new.source AND d.event_id = new.event_id \
         LEFT JOIN audit a ON a.decision_id = d.decision_id AND a.kind = 'decision' ORDER BY new.idx",
    );
    let found = query.build().fetch_all(connection).await?;
    let earlier = found.iter().map(|row| {
        let is_decided: bool = row.try_get(1)?;
        let decision = is_decided.then(|| StoredDecision::from_row(row)).transpose()?;
        Ok(Earlier { decision, id_taken: row.try_get(0)? })
    });
    earlier.collect()
}

async fn insert(connection: &mut SqliteConnection, records: &[NewRecord<'_>]) -> Result<(), sqlx::Error> {
    let mut decisions = QueryBuilder::<Sqlite>::new(
        "INSERT INTO decisions (decision_id, tenant, source, event_id, input_hash, event, decision, decided_at_us) ",
    );
    decisions.push_values(records, |mut values, NewRecord { row, .. }| {
        values.push_bind(&row.decision_id).push_bind(&row.key.tenant).push_bind(&row.key.source).push_bind(&row.key.id);
        values.push_bind(&row.input_hash).push_bind(&row.event).push_bind(&row.decision).push_bind(row.decided_at_us);
    });
    decisions.build().execute(&mut *connection).await?;
    let mut audit = QueryBuilder::<Sqlite>::new(
        "INSERT INTO audit (sequence, decision_id, kind, payload_hash, previous_hash, hash, recorded_at_us) ",
    );
    audit.push_values(records, |mut values, record| {
        values.push_bind(record.sequence).push_bind(&record.row.decision_id).push_bind(KIND_DECISION);
        values.push_bind(record.row.payload_hash.as_slice()).push_bind(record.previous_hash.as_slice());
        values.push_bind(record.hash.as_slice()).push_bind(record.recorded_at_us);
    });
    audit.build().execute(&mut *connection).await?;
    Ok(())
}
