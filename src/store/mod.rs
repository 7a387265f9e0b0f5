//! Decisions and their audit chain, durable before anybody hears of them.
//!
//! [`Store`] hides which database stands behind it. [`record`](Store::record) answers after the commit is on disk; the key
//! `(tenant, source, id)` is decided once, and a repeat is answered from the very bytes that were stored. Every decision has a
//! record in a hash chain ([`audit`]), which [`verify_audit`](Store::verify_audit) walks.
//!
//! It refuses to update or delete, to open one file for two writers, and to write what it could not read back.
//! Next: `sqlite/writer.rs`, where a decision becomes durable.

pub mod audit;
mod row;
mod sqlite;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use self::audit::{AuditFault, AuditReport};
use self::row::Row;
use self::sqlite::SqliteStore;
use crate::decision::{AuditReference, Decision};
use crate::event::EventKey;

/// The path that keeps everything in memory: nothing survives, nothing is shared with another process.
pub const IN_MEMORY: &str = ":memory:";

/// Where decisions are kept, and how patiently.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoreConfig {
    /// SQLite file; it and its directory are created where missing. `:memory:` keeps nothing.
    pub path: PathBuf,
    /// Connections that read beside the one writer.
    pub max_readers: u32,
    /// Decisions that may wait for the writer.
    pub queue_capacity: usize,
    /// Most decisions in one commit.
    pub max_commit_rows: usize,
    /// Longest wait for a place in the queue, for a connection, and for a lock that another process holds.
    pub busy_timeout_ms: u64,
}

impl StoreConfig {
    /// The usual sizes, at `path`.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), max_readers: 4, queue_capacity: 1024, max_commit_rows: 64, busy_timeout_ms: 5_000 }
    }

    /// # Errors
    /// [`StoreError::Config`] with the first size out of range.
    pub fn check(&self) -> Result<(), StoreError> {
        let sizes = [
            ("max_readers", u64::from(self.max_readers), 1_000),
            ("queue_capacity", self.queue_capacity as u64, 1_000_000),
            // SQLite takes 32,766 values a statement, and a decision has eight.
            ("max_commit_rows", self.max_commit_rows as u64, 4_000),
            ("busy_timeout_ms", self.busy_timeout_ms, 3_600_000),
        ];
        match sizes.into_iter().find(|(_, size, max)| !(1..=*max).contains(size)) {
            Some((field, _, max)) => Err(StoreError::Config { field, max }),
            None => Ok(()),
        }
    }

    fn is_in_memory(&self) -> bool {
        self.path == Path::new(IN_MEMORY)
    }
}

/// Why the store did not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the event was decided before with another body")]
    Conflict,
    #[error("no such record")]
    NotFound,
    #[error("another decision has this id")]
    DuplicateId,
    #[error("another process writes to `{}`; stop it or give this one its own `store.path`", .path.display())]
    InUse { path: PathBuf },
    #[error("`{}` cannot be opened", .path.display())]
    Open { path: PathBuf, source: std::io::Error },
    #[error("`store.{field}` must lie between 1 and {max}")]
    Config { field: &'static str, max: u64 },
    #[error("the schema of the database does not fit this version")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// Shared, because one failed commit fails every decision in it.
    #[error("the database failed")]
    Database(#[source] Arc<sqlx::Error>),
    #[error("too many decisions wait for the disk")]
    QueueFull,
    #[error("the store was opened for reading")]
    ReadOnly,
    #[error("the store has been closed")]
    Closed,
    #[error("a decision is not readable as it is stored")]
    Corrupt(#[from] serde_json::Error),
    #[error(transparent)]
    Audit(#[from] AuditFault),
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        match error {
            sqlx::Error::PoolClosed => Self::Closed,
            error => Self::Database(Arc::new(error)),
        }
    }
}

/// A decision on its way into the record.
#[derive(Debug, Clone)]
pub struct NewDecision {
    pub key: EventKey,
    /// [`crate::event::Event::input_hash`].
    pub input_hash: String,
    /// Canonical JSON of the validated event, kept for replay.
    pub event: serde_json::Value,
    /// Without its `audit` block, which the store gives.
    pub decision: Decision,
}

/// The record of decisions. Cloning shares it.
#[derive(Debug, Clone)]
pub struct Store {
    backend: Backend,
}

/// One variant a database; each passes the same conformance suite.
#[derive(Debug, Clone)]
enum Backend {
    Sqlite(SqliteStore),
}

impl Store {
    /// Opens the store as its only writer and brings its schema up to date.
    ///
    /// # Errors
    /// [`StoreError::InUse`] where another process writes to the file; [`StoreError::Open`] where it cannot be created.
    pub async fn open(config: &StoreConfig) -> Result<Self, StoreError> {
        Ok(Self { backend: Backend::Sqlite(SqliteStore::open(config).await?) })
    }

    /// Whether the file could be opened for writing, or created, beside whoever writes to it now. Leaves nothing behind.
    ///
    /// # Errors
    /// [`StoreError::Config`], [`StoreError::Open`].
    pub fn check(config: &StoreConfig) -> Result<(), StoreError> {
        config.check()?;
        if config.is_in_memory() { Ok(()) } else { sqlite::check_writable(&config.path) }
    }

    /// Opens an existing store beside its writer, for `audit verify` and the like; [`Self::record`] then refuses.
    ///
    /// # Errors
    /// [`StoreError::Database`] where there is no such store.
    pub async fn open_reader(config: &StoreConfig) -> Result<Self, StoreError> {
        Ok(Self { backend: Backend::Sqlite(SqliteStore::open_reader(config).await?) })
    }

    /// The decision recorded for this event, with `replayed` set.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] where the same key was decided with another `input_hash`.
    pub async fn find(&self, key: &EventKey, input_hash: &str) -> Result<Option<Decision>, StoreError> {
        match &self.backend {
            Backend::Sqlite(store) => store.find(key, input_hash).await,
        }
    }

    /// Records a decision and answers with it, its `audit` block filled in, once it is on disk. Where the key was recorded
    /// meanwhile, the earlier decision comes back with `replayed` set.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] as in [`Self::find`]; nothing is recorded on that, on [`StoreError::QueueFull`],
    /// [`StoreError::Closed`] or [`StoreError::Corrupt`] (a number in it is not finite). After [`StoreError::Database`] the
    /// disk has the last word: sending the event again gives the earlier decision or a new one.
    pub async fn record(&self, new: NewDecision) -> Result<Decision, StoreError> {
        let row = Row::new(new)?;
        match &self.backend {
            Backend::Sqlite(store) => store.record(row).await,
        }
    }

    /// One decision by its id.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub async fn decision(&self, decision_id: &str) -> Result<Decision, StoreError> {
        match &self.backend {
            Backend::Sqlite(store) => store.decision(decision_id).await,
        }
    }

    /// Walks the whole audit chain and recomputes every hash. Records written meanwhile are not looked at.
    ///
    /// The chain cannot know that its end was cut off, or that somebody wrote it anew from the start: give as `expected` the
    /// `audit` block of any decision kept elsewhere (an answer, a log line, a [report](AuditReport)) and both are found.
    ///
    /// # Errors
    /// [`StoreError::Audit`] with the first fault.
    pub async fn verify_audit(&self, expected: Option<&AuditReference>) -> Result<AuditReport, StoreError> {
        match &self.backend {
            Backend::Sqlite(store) => store.verify_audit(expected).await,
        }
    }

    /// Whether decisions can be read and recorded now. Cheap; after a failed commit it tries an empty one.
    ///
    /// # Errors
    /// What [`Self::record`] would answer.
    pub async fn health(&self) -> Result<(), StoreError> {
        match &self.backend {
            Backend::Sqlite(store) => store.health().await,
        }
    }

    /// Lets the decisions that wait reach the disk, then folds the write-ahead log into the file. Later calls answer
    /// [`StoreError::Closed`]. Calling it twice is fine.
    pub async fn close(&self) {
        match &self.backend {
            Backend::Sqlite(store) => store.close().await,
        }
    }
}
