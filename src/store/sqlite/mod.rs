//! The store on SQLite: write-ahead log, `synchronous=FULL`, one writer task with group commit, and a pool that only reads.

mod lock;
mod verify;
mod writer;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sqlx::migrate::Migrator;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

pub(super) use self::lock::check_writable;

use self::lock::WriterLock;
use self::writer::{Job, Writer};
use super::row::{Row, StoredDecision};
use super::{IN_MEMORY, StoreConfig, StoreError};
use crate::decision::Decision;
use crate::event::EventKey;

/// Embedded at build time.
static MIGRATIONS: Migrator = sqlx::migrate!("migrations/sqlite");

#[derive(Debug, Clone)]
pub(super) struct SqliteStore {
    readers: SqlitePool,
    /// `None` where the store was opened for reading.
    writer: Option<Arc<WriterHandle>>,
}

/// The callers' end of the writer task.
#[derive(Debug)]
struct WriterHandle {
    jobs: mpsc::Sender<Job>,
    queue_timeout: Duration,
    /// Set by the writer: whether its last commit failed.
    failed: Arc<AtomicBool>,
    /// Tells the writer to take no more jobs.
    closing: CancellationToken,
    /// Tells that the writer has ended.
    closed: CancellationToken,
}

const BY_KEY: &str = "SELECT d.input_hash, d.decision, a.sequence, a.hash \
    FROM decisions d LEFT JOIN audit a ON a.decision_id = d.decision_id AND a.kind = 'decision' \
    WHERE d.tenant = ? AND d.source = ? AND d.event_id = ?";
const BY_ID: &str = "SELECT d.input_hash, d.decision, a.sequence, a.hash \
    FROM decisions d LEFT JOIN audit a ON a.decision_id = d.decision_id AND a.kind = 'decision' \
    WHERE d.decision_id = ?";

impl SqliteStore {
    pub(super) async fn open(config: &StoreConfig) -> Result<Self, StoreError> {
        config.check()?;
        let (lock, options) = if config.is_in_memory() {
            (None, options(config).filename(IN_MEMORY))
        } else {
            let (lock, path) = WriterLock::acquire(&config.path)?;
            (Some(lock), options(config).filename(path).journal_mode(SqliteJournalMode::Wal))
        };
        // One connection, kept for good: in memory it *is* the database.
        let pool = SqlitePoolOptions::new()
            .max_connections(1)
            .min_connections(1)
            .idle_timeout(None)
            .max_lifetime(None)
            .test_before_acquire(false)
            .acquire_timeout(busy_timeout(config))
            .connect_with(writer_options(options.clone()))
            .await?;
        MIGRATIONS.run(&pool).await?;
        let readers = if config.is_in_memory() { pool.clone() } else { readers(config, options).await? };
        let writer = WriterHandle::spawn(config, pool, readers.clone(), lock);
        Ok(Self { readers, writer: Some(Arc::new(writer)) })
    }

    pub(super) async fn open_reader(config: &StoreConfig) -> Result<Self, StoreError> {
        config.check()?;
        let readers = readers(config, options(config).filename(&config.path)).await?;
        Ok(Self { readers, writer: None })
    }

    pub(super) async fn find(&self, key: &EventKey, input_hash: &str) -> Result<Option<Decision>, StoreError> {
        let query = sqlx::query_as::<_, StoredDecision>(BY_KEY).bind(&key.tenant).bind(&key.source).bind(&key.id);
        let stored = query.fetch_optional(&self.readers).await?;
        stored.map(|stored| stored.replay(input_hash)).transpose()
    }

    pub(super) async fn decision(&self, decision_id: &str) -> Result<Decision, StoreError> {
        let query = sqlx::query_as::<_, StoredDecision>(BY_ID).bind(decision_id);
        let stored = query.fetch_optional(&self.readers).await?.ok_or(StoreError::NotFound)?;
        stored.into_decision(false)
    }

    pub(super) async fn record(&self, row: Row) -> Result<Decision, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.writer()?.send(Job::Record { row: Box::new(row), reply }).await?;
        // The writer drops the reply only when it ends by a panic.
        answer.await.map_err(|_| StoreError::Closed)?
    }

    pub(super) async fn health(&self) -> Result<(), StoreError> {
        sqlx::query("SELECT 1 FROM audit LIMIT 1").execute(&self.readers).await?;
        let Some(writer) = &self.writer else { return Ok(()) };
        if writer.jobs.is_closed() {
            return Err(StoreError::Closed);
        }
        if !writer.failed.load(Ordering::Relaxed) {
            return Ok(());
        }
        let (reply, answer) = oneshot::channel();
        writer.send(Job::Probe { reply }).await?;
        answer.await.map_err(|_| StoreError::Closed)?
    }

    pub(super) async fn close(&self) {
        match &self.writer {
            Some(writer) => {
                writer.closing.cancel();
                writer.closed.cancelled().await;
            }
            None => self.readers.close().await,
        }
    }

    fn writer(&self) -> Result<&WriterHandle, StoreError> {
        self.writer.as_deref().ok_or(StoreError::ReadOnly)
    }
}

impl WriterHandle {
    fn spawn(config: &StoreConfig, pool: SqlitePool, readers: SqlitePool, lock: Option<WriterLock>) -> Self {
        // Bounded so that a slow disk pushes back on callers; the writer task holds the other end.
        let (jobs, receiver) = mpsc::channel(config.queue_capacity);
        let handle = Self {
            jobs,
            queue_timeout: busy_timeout(config),
            failed: Arc::default(),
            closing: CancellationToken::new(),
            closed: CancellationToken::new(),
        };
        let writer = Writer {
            jobs: receiver,
            pool,
            max_commit_rows: config.max_commit_rows,
            failed: Arc::clone(&handle.failed),
            closing: handle.closing.clone(),
        };
        let closed = handle.closed.clone();
        tokio::spawn(async move {
            // Also on a panic, so that nobody waits for a writer that is gone.
            let _closed = closed.drop_guard();
            let pool = writer.run().await;
            readers.close().await;
            if lock.is_some()
                && let Err(error) = sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").execute(&pool).await
            {
                tracing::warn!(error = &error as &dyn std::error::Error, "the log was not folded into the file; nothing is lost");
            }
            pool.close().await;
            drop(lock);
        });
        handle
    }

    async fn send(&self, job: Job) -> Result<(), StoreError> {
        self.jobs.send_timeout(job, self.queue_timeout).await.map_err(|error| match error {
            mpsc::error::SendTimeoutError::Timeout(_) => StoreError::QueueFull,
            mpsc::error::SendTimeoutError::Closed(_) => StoreError::Closed,
        })
    }
}

fn options(config: &StoreConfig) -> SqliteConnectOptions {
    SqliteConnectOptions::new().foreign_keys(true).busy_timeout(busy_timeout(config))
}

fn busy_timeout(config: &StoreConfig) -> Duration {
    Duration::from_millis(config.busy_timeout_ms)
}

fn writer_options(options: SqliteConnectOptions) -> SqliteConnectOptions {
    options
        // The log is on disk before a commit returns; with `NORMAL` it is not.
        .synchronous(SqliteSynchronous::Full)
        // Without it `INSERT OR REPLACE` would delete a row past the trigger that refuses deletion.
        .pragma("recursive_triggers", "ON")
        // A burst may grow the log; it is cut back to this many bytes once folded into the file.
        .pragma("journal_size_limit", "67108864")
        // Three statements for each size of batch.
        .statement_cache_capacity(256)
}

async fn readers(config: &StoreConfig, options: SqliteConnectOptions) -> Result<SqlitePool, sqlx::Error> {
    let pool = SqlitePoolOptions::new().max_connections(config.max_readers).test_before_acquire(false);
    let pool = pool.acquire_timeout(busy_timeout(config));
    // A page of the chain fits between the connection's thread and its reader, so neither waits for the other row by row.
    pool.connect_with(options.pragma("query_only", "ON").row_buffer_size(verify::PAGE_ROWS)).await
}

#[cfg(test)]
mod tests {
    use sqlx::{ConnectOptions, Row as _};

    use super::*;

    #[tokio::test]
    async fn the_writer_waits_for_the_disk_and_readers_cannot_write() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let config = StoreConfig::at(directory.path().join("sluice.db"));
        let store = SqliteStore::open(&config).await.expect("a new file");
        let mut writer = writer_options(options(&config).filename(&config.path)).connect().await.expect("a connection");
        for (pragma, expected) in [
            ("PRAGMA synchronous", "2"),
            ("PRAGMA journal_mode", "wal"),
            ("PRAGMA foreign_keys", "1"),
            ("PRAGMA recursive_triggers", "1"),
        ] {
            let row = sqlx::query(pragma).fetch_one(&mut writer).await.expect("a known pragma");
            let value = row.try_get_unchecked::<String, _>(0).expect("one value");
            assert_eq!(value, expected, "{pragma}");
        }
        let refused = sqlx::query("CREATE TABLE t (x)").execute(&store.readers).await;
        assert!(refused.is_err_and(|error| error.to_string().contains("readonly")));
        store.close().await;
    }
}
