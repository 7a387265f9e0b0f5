//! The encoder threads, each with an engine of its own, around one shared queue.
//!
//! Callers push into the queue under a lock that is held for microseconds and wait on a oneshot channel; a thread sleeps on a
//! condition until there is something to take. It refuses to decide who goes next; see `queue`.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::queue::{Batch, Entry, Queue};
use super::{BatchingConfig, BatchingError, Encoded, SpawnError, encode_batch};
use crate::encoder::{Encoder, EncoderConfig, EncoderError, PackedBatch};

/// What a refused caller is told before any batch has been timed.
const INITIAL_RETRY_AFTER: Duration = Duration::from_secs(1);
/// Sooner than this a caller would meet the same full queue, later than that a recovered service would stand idle.
const RETRY_AFTER_BOUNDS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));
/// Weight of the newest batch in the running average of the time a token takes: about the last ten batches count.
const NEWEST_WEIGHT: f64 = 0.2;
/// Share of the time to its deadline that a text may wait. The rest is for its own batch, and for a rate that wanders.
const MAX_WAIT_SHARE: f64 = 0.8;

/// Loads one engine instance for each of `encoder.workers` and starts its thread.
///
/// `load` is called once a worker now, and again by a worker whose engine has panicked: what a panic leaves behind is not used.
/// The threads end when [`Handle::drain`] is called or the last handle is dropped, in both cases after the queue is empty.
///
/// # Errors
/// [`SpawnError`]; then no thread is left running.
pub fn spawn<F>(load: F, encoder: &EncoderConfig, batching: &BatchingConfig) -> Result<Handle, SpawnError>
where
    F: Fn() -> Result<Box<dyn Encoder>, EncoderError> + Send + Sync + 'static,
{
    batching.check()?;
    let n_workers = encoder.n_workers();
    let engines: Vec<_> = (0..n_workers).map(|_| load()).collect::<Result<_, _>>().map_err(SpawnError::Encoder)?;
    if let Some(engine) = engines.iter().find(|engine| engine.max_sequence_tokens() < encoder.max_tokens) {
        let max_sequence_tokens = engine.max_sequence_tokens();
        return Err(SpawnError::MaxTokensTooLarge { max_tokens: encoder.max_tokens, max_sequence_tokens });
    }

    let state = State {
        queue: Queue::new(batching.max_batch_tokens, batching.queue_capacity),
        is_closed: false,
        n_in_flight: 0,
        n_live_workers: 0,
        rate: Rate::default(),
    };
    let shared = Arc::new(Shared { state: Mutex::new(state), work: Condvar::new(), ended: Condvar::new() });
    let handle = Handle { owner: Arc::new(Owner(Arc::clone(&shared))), shared };
    let load = Arc::new(load);
    for (worker_idx, engine) in engines.into_iter().enumerate() {
        let worker = Worker::new(Arc::clone(&handle.shared), engine, Arc::clone(&load));
        let builder = thread::Builder::new().name(format!("encoder-{worker_idx}"));
        // On an error the dropped handle ends the threads that did start.
        builder.spawn(move || worker.run()).map_err(SpawnError::Thread)?;
    }
    Ok(handle)
}

/// The cloneable end of the encoder queue.
#[derive(Debug, Clone)]
pub struct Handle {
    shared: Arc<Shared>,
    /// Closes the queue when the last handle is dropped; the workers hold `shared` alone.
    #[expect(dead_code, reason = "held for its drop")]
    owner: Arc<Owner>,
}

impl Handle {
    /// Waits for the embedding of one text. Dropping the future takes the text out of the queue. Needs a tokio runtime with time
    /// enabled.
    ///
    /// # Errors
    /// [`BatchingError::QueueFull`] at once where the queue has no room, [`BatchingError::QueueTooSlow`] where at the recent rate what
    /// waits before it leaves too little time, both with an estimate of when half of the queue will have gone;
    /// [`BatchingError::DeadlineExceeded`] no later than the deadline; [`BatchingError::Encoder`] where this very text cannot be
    /// encoded; [`BatchingError::WorkerGone`] after [`Handle::drain`].
    pub async fn encode(&self, input_ids: Vec<u32>, deadline: Option<Instant>) -> Result<Encoded, BatchingError> {
        let (response_tx, response_rx) = oneshot::channel();
        self.shared.push(Waiting { input_ids, response_tx }, deadline)?;
        let response = match deadline {
            // A worker drops the entry when it comes across it, which a long batch before it may delay; the caller need not wait.
            Some(deadline) => {
                tokio::time::timeout_at(deadline.into(), response_rx).await.map_err(|_| BatchingError::DeadlineExceeded)?
            }
            None => response_rx.await,
        };
        response.map_err(|_| BatchingError::WorkerGone)?
    }

    /// Texts that wait.
    pub fn depth(&self) -> usize {
        self.shared.lock().queue.len()
    }

    /// Tokens of the texts that wait.
    pub fn waiting_tokens(&self) -> usize {
        self.shared.lock().queue.n_tokens()
    }

    /// When a caller who is refused now should come again.
    pub fn retry_after(&self) -> Duration {
        self.shared.lock().retry_after()
    }

    /// Texts being encoded at this moment.
    pub fn in_flight(&self) -> usize {
        self.shared.lock().n_in_flight
    }

    /// Worker threads that run.
    pub fn live_workers(&self) -> usize {
        self.shared.lock().n_live_workers
    }

    /// Refuses new texts and waits until the queued ones are answered and every worker has ended.
    pub async fn drain(&self) {
        self.shared.close();
        let shared = Arc::clone(&self.shared);
        let waited = tokio::task::spawn_blocking(move || shared.wait_until_ended()).await;
        // The waiting thread cannot panic and is not cancelled; a runtime that shuts down waits for nothing anyway.
        debug_assert!(waited.is_ok());
    }
}

#[derive(Debug)]
struct Owner(Arc<Shared>);

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// A caller's text, and the caller.
#[derive(Debug)]
struct Waiting {
    input_ids: Vec<u32>,
    /// [`Handle::encode`] waits at the other end; closed where its caller has gone.
    response_tx: oneshot::Sender<Result<Encoded, BatchingError>>,
}

impl Waiting {
    fn is_abandoned(&self) -> bool {
        self.response_tx.is_closed()
    }

    fn answer(self, answer: Result<Encoded, BatchingError>) {
        // A caller who went in the meantime wants no answer.
        let _ = self.response_tx.send(answer);
    }
}

#[derive(Debug)]
struct State {
    queue: Queue<Waiting>,
    is_closed: bool,
    n_in_flight: usize,
    n_live_workers: usize,
    rate: Rate,
}

/// How long a token takes, over the recent batches of all workers. A batch counts by its tokens: single short texts cost more a
/// token, and a full queue is not made of them.
#[derive(Debug, Default)]
struct Rate {
    seconds: f64,
    tokens: f64,
}

impl Rate {
    fn note_batch(&mut self, n_tokens: usize, elapsed: Duration) {
        self.seconds = (1.0 - NEWEST_WEIGHT) * self.seconds + elapsed.as_secs_f64();
        self.tokens = (1.0 - NEWEST_WEIGHT) * self.tokens + n_tokens as f64;
    }

    /// `None` before the first batch.
    fn seconds_per_token(&self) -> Option<f64> {
        (self.tokens > 0.0).then(|| self.seconds / self.tokens)
    }
}

#[derive(Debug)]
struct Shared {
    /// Held for queue operations only, never while encoding and never across an await.
    state: Mutex<State>,
    /// Workers wait here for texts or the end.
    work: Condvar,
    /// [`Handle::drain`] waits here for the last worker.
    ended: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No operation under the lock runs foreign code that could panic half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, waiting: Waiting, deadline: Option<Instant>) -> Result<(), BatchingError> {
        let now = Instant::now();
        if deadline.is_some_and(|deadline| deadline <= now) {
            return Err(BatchingError::DeadlineExceeded);
        }
        let entry = Entry { n_tokens: waiting.input_ids.len(), payload: waiting, deadline, arrived_at: now };
        let mut state = self.lock();
        if state.is_closed {
            return Err(BatchingError::WorkerGone);
        }
        if state.queue.is_full() || state.comes_too_late(&entry) {
            expire(state.queue.sweep(now, Waiting::is_abandoned));
        }
        if state.comes_too_late(&entry) {
            return Err(BatchingError::QueueTooSlow { retry_after: state.retry_after() });
        }
        if state.queue.push(entry).is_err() {
            return Err(BatchingError::QueueFull { retry_after: state.retry_after() });
        }
        drop(state);
        self.work.notify_one();
        Ok(())
    }

    /// Waits for something to do; `None` where the queue is closed and empty.
    fn next_batch(&self) -> Option<Vec<Entry<Waiting>>> {
        let mut state = self.lock();
        loop {
            let Batch { entries, expired, .. } = state.queue.next_batch(Instant::now(), Waiting::is_abandoned);
            expire(expired);
            if !entries.is_empty() {
                state.n_in_flight += entries.len();
                return Some(entries);
            }
            if state.is_closed {
                return None;
            }
            state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn close(&self) {
        self.lock().is_closed = true;
        self.work.notify_all();
    }

    fn wait_until_ended(&self) {
        let state = self.lock();
        drop(self.ended.wait_while(state, |state| state.n_live_workers > 0).unwrap_or_else(PoisonError::into_inner));
    }
}

impl State {
    /// How long the workers take for so many tokens; `None` before the first batch.
    fn wait_behind(&self, n_tokens: usize) -> Option<Duration> {
        let seconds = n_tokens as f64 * self.rate.seconds_per_token()? / self.n_live_workers.max(1) as f64;
        Some(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX))
    }

    /// Whether what stands before the entry takes so long that its deadline would pass meanwhile. To wait for that would only make
    /// the others late too.
    fn comes_too_late(&self, entry: &Entry<Waiting>) -> bool {
        let Some(deadline) = entry.deadline else { return false };
        let patience = deadline.saturating_duration_since(entry.arrived_at).mul_f64(MAX_WAIT_SHARE);
        let exceeds = |n_tokens| self.wait_behind(n_tokens).is_some_and(|wait| wait > patience);
        exceeds(self.queue.n_tokens()) && exceeds(self.queue.n_tokens_before(entry))
    }

    /// When half of what waits now will have been encoded: room for the caller then, and workers that still have work.
    fn retry_after(&self) -> Duration {
        let Some(wait) = self.wait_behind(self.queue.n_tokens()) else { return INITIAL_RETRY_AFTER };
        let (shortest, longest) = RETRY_AFTER_BOUNDS;
        (wait / 2).clamp(shortest, longest)
    }
}

fn expire(entries: Vec<Entry<Waiting>>) {
    for entry in entries {
        entry.payload.answer(Err(BatchingError::DeadlineExceeded));
    }
}

/// A thread with its engine.
struct Worker<F> {
    shared: Arc<Shared>,
    /// `None` after a panic, until the next batch loads another.
    engine: Option<Box<dyn Encoder>>,
    load: Arc<F>,
}

impl<F: Fn() -> Result<Box<dyn Encoder>, EncoderError>> Worker<F> {
    fn new(shared: Arc<Shared>, engine: Box<dyn Encoder>, load: Arc<F>) -> Self {
        shared.lock().n_live_workers += 1;
        Self { shared, engine: Some(engine), load }
    }

    fn run(mut self) {
        while let Some(entries) = self.shared.next_batch() {
            let n_entries = entries.len();
            self.encode(entries);
            self.shared.lock().n_in_flight -= n_entries;
        }
    }

    /// Encodes the entries together; where that fails, each by itself, so that only the one at fault gets the error.
    fn encode(&mut self, entries: Vec<Entry<Waiting>>) {
        let started = Instant::now();
        let sequences = entries.iter().map(|entry| entry.payload.input_ids.as_slice());
        let outcome = PackedBatch::from_sequences(sequences).and_then(|batch| self.try_encode(&batch));
        let elapsed = started.elapsed();
        match outcome {
            Ok(embeddings) => {
                self.shared.lock().rate.note_batch(entries.iter().map(|entry| entry.n_tokens).sum(), elapsed);
                for (entry, embedding) in entries.into_iter().zip(embeddings) {
                    let queue = started.saturating_duration_since(entry.arrived_at);
                    entry.payload.answer(Ok(Encoded { embedding, queue, encode: elapsed }));
                }
            }
            Err(error) => match <[Entry<Waiting>; 1]>::try_from(entries) {
                Ok([entry]) => {
                    tracing::error!(error = &error as &dyn std::error::Error, "a text could not be encoded");
                    entry.payload.answer(Err(BatchingError::Encoder(error)));
                }
                Err(entries) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        n_texts = entries.len(),
                        "encoding a batch text by text"
                    );
                    for entry in entries {
                        if !entry.payload.is_abandoned() {
                            self.encode(vec![entry]);
                        }
                    }
                }
            },
        }
    }

    fn try_encode(&mut self, batch: &PackedBatch) -> Result<Vec<Vec<f32>>, EncoderError> {
        let (engine, load) = (&mut self.engine, &self.load);
        // What a panic leaves half-done is the engine alone, and that is thrown away.
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let engine = match engine {
                Some(engine) => engine,
                None => engine.insert(load()?),
            };
            encode_batch(engine.as_mut(), batch)
        }));
        outcome.unwrap_or_else(|_| {
            self.engine = None;
            Err(EncoderError::Panicked)
        })
    }
}

impl<F> Drop for Worker<F> {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.n_live_workers -= 1;
        if state.n_live_workers == 0 {
            // Nobody is left to answer, so nobody may wait: dropping the entries tells their callers.
            state.is_closed = true;
            state.queue.clear();
            self.shared.ended.notify_all();
        }
    }
}
