//! Tokenizer threads behind a cloneable handle.
//!
//! Each thread owns a tokenizer and takes narratives from one bounded channel, normalises and tokenises them. A caller who has gone
//! or whose deadline has passed is skipped, a text that makes the tokenizer panic is answered with an error and the thread goes on. The threads end when the last [`Handle`] is dropped.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use tokio::sync::{mpsc, oneshot};

use super::{NormalizedText, ReadText, TextConfig, TextError, TokenizedText, Tokenizer, normalize_within};

/// Starts `config.workers` threads, each with its own copy of the tokenizer. They refuse a narrative that has more than `max_chars`
/// characters after normalising.
///
/// # Errors
/// [`TextError::InvalidConfig`] for a zero, [`TextError::Spawn`] where the system has no thread to give.
pub fn spawn(tokenizer: Tokenizer, config: &TextConfig, max_chars: usize) -> Result<Handle, TextError> {
    spawn_with(move |text| tokenizer.tokenize(text), config, max_chars)
}

/// As [`spawn`], for any function in the tokenizer's place.
fn spawn_with<F>(tokenize: F, config: &TextConfig, max_chars: usize) -> Result<Handle, TextError>
where
    F: Fn(&NormalizedText) -> Result<TokenizedText, TextError> + Clone + Send + 'static,
{
    config.check()?;
    let (request_tx, request_rx) = mpsc::channel(config.queue_capacity);
    let request_rx = Arc::new(Mutex::new(request_rx));
    for worker_idx in 0..config.workers {
        let worker = Worker { request_rx: Arc::clone(&request_rx), tokenize: tokenize.clone(), max_chars };
        let builder = thread::Builder::new().name(format!("tokenizer-{worker_idx}"));
        builder.spawn(move || worker.run()).map_err(TextError::Spawn)?;
    }
    Ok(Handle { request_tx })
}

/// The cloneable end of the tokenizer threads.
#[derive(Debug, Clone)]
pub struct Handle {
    /// The workers hold the receiving end; its capacity is `text.queue_capacity`.
    request_tx: mpsc::Sender<Request>,
}

impl Handle {
    /// Normalises and tokenises one narrative off the async threads. Waits for a place where the channel is full. Needs a tokio
    /// runtime with time enabled.
    ///
    /// # Errors
    /// [`TextError::TooLong`], [`TextError::Tokenize`], [`TextError::Panicked`]; [`TextError::DeadlineExceeded`] no later than the
    /// deadline; [`TextError::WorkerGone`] where no thread is left.
    pub async fn tokenize(&self, narrative: String, deadline: Option<Instant>) -> Result<ReadText, TextError> {
        let (response_tx, response_rx) = oneshot::channel();
        let answer = async {
            let request = Request { narrative, deadline, response_tx };
            self.request_tx.send(request).await.map_err(|_| TextError::WorkerGone)?;
            response_rx.await.map_err(|_| TextError::WorkerGone)?
        };
        match deadline {
            Some(deadline) => tokio::time::timeout_at(deadline.into(), answer).await.map_err(|_| TextError::DeadlineExceeded)?,
            None => answer.await,
        }
    }
}

#[derive(Debug)]
struct Request {
    narrative: String,
    /// After this moment nobody wants the answer.
    deadline: Option<Instant>,
    /// [`Handle::tokenize`] waits at the other end; closed where its caller has gone.
    response_tx: oneshot::Sender<Result<ReadText, TextError>>,
}

struct Worker<F> {
    /// Held only while waiting for the next request, so one idle worker waits here and the others behind it.
    request_rx: Arc<Mutex<mpsc::Receiver<Request>>>,
    tokenize: F,
    max_chars: usize,
}

impl<F: Fn(&NormalizedText) -> Result<TokenizedText, TextError>> Worker<F> {
    fn run(self) {
        while let Some(Request { narrative, deadline, response_tx }) = self.next_request() {
            if response_tx.is_closed() {
                continue;
            }
            if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                let _ = response_tx.send(Err(TextError::DeadlineExceeded));
                continue;
            }
            // The tokenizer is never changed by a call, so nothing half-done survives a panic in it.
            let answer = catch_unwind(AssertUnwindSafe(|| self.read(&narrative))).unwrap_or(Err(TextError::Panicked));
            // A caller who went in the meantime wants no answer.
            let _ = response_tx.send(answer);
        }
    }

    fn read(&self, narrative: &str) -> Result<ReadText, TextError> {
        let max_chars = self.max_chars;
        let text = normalize_within(narrative, max_chars).ok_or(TextError::TooLong { max_chars })?;
        let tokens = (self.tokenize)(&text)?;
        Ok(ReadText { text, tokens })
    }

    fn next_request(&self) -> Option<Request> {
        // Receiving leaves the channel whole at every point, so the lock of a thread that died is as good as any.
        self.request_rx.lock().unwrap_or_else(PoisonError::into_inner).blocking_recv()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;
    use crate::text::TokenCount;

    const MAX_CHARS: usize = 100;

    fn one_token_a_byte(text: &NormalizedText) -> Result<TokenizedText, TextError> {
        let ids: Vec<u32> = text.as_str().bytes().map(u32::from).collect();
        let n_tokens = ids.len();
        Ok(TokenizedText { windows: vec![ids], count: TokenCount { total: n_tokens, used: n_tokens } })
    }

    fn config(workers: usize, queue_capacity: usize) -> TextConfig {
        TextConfig { workers, queue_capacity }
    }

    #[tokio::test]
    async fn a_panic_is_answered_and_the_worker_goes_on() {
        let tokenize = |text: &NormalizedText| {
            assert_ne!(text.as_str(), "poison");
            one_token_a_byte(text)
        };
        let handle = spawn_with(tokenize, &config(1, 1), MAX_CHARS).unwrap();
        for _ in 0..3 {
            assert!(matches!(handle.tokenize("poison".to_owned(), None).await, Err(TextError::Panicked)));
            assert_eq!(handle.tokenize("ab".to_owned(), None).await.unwrap().tokens.windows, [[97, 98]]);
        }
    }

    /// A tokenizer that reports each text it starts on and then waits to be let go.
    fn gated() -> (impl Fn(&NormalizedText) -> Result<TokenizedText, TextError> + Clone + Send, Receiver<String>, Sender<()>) {
        let (started_tx, started_rx) = channel();
        let (gate_tx, gate_rx) = channel::<()>();
        let gate_rx = Arc::new(Mutex::new(gate_rx));
        let tokenize = move |text: &NormalizedText| {
            started_tx.send(text.as_str().to_owned()).unwrap();
            gate_rx.lock().unwrap().recv().unwrap();
            one_token_a_byte(text)
        };
        (tokenize, started_rx, gate_tx)
    }

    #[tokio::test]
    async fn a_full_channel_makes_callers_wait() {
        let (tokenize, _started_rx, gate_tx) = gated();
        let handle = spawn_with(tokenize, &config(1, 1), MAX_CHARS).unwrap();
        let texts: Vec<String> = (0..20).map(|idx| format!("text {idx}")).collect();
        let calls: Vec<_> = texts
            .iter()
            .map(|text| {
                let (handle, text) = (handle.clone(), text.to_string());
                tokio::spawn(async move { handle.tokenize(text, None).await })
            })
            .collect();
        for _ in &texts {
            gate_tx.send(()).unwrap();
        }
        for (call, text) in calls.into_iter().zip(&texts) {
            let ids: Vec<u32> = text.bytes().map(u32::from).collect();
            assert_eq!(call.await.unwrap().unwrap().tokens.windows, [ids]);
        }
    }

    #[tokio::test]
    async fn a_caller_who_has_gone_costs_nothing() {
        let (tokenize, started_rx, gate_tx) = gated();
        let handle = spawn_with(tokenize, &config(1, 8), MAX_CHARS).unwrap();
        let call = |text: &str| {
            let (handle, text) = (handle.clone(), text.to_string());
            tokio::spawn(async move { handle.tokenize(text, None).await })
        };
        let first = call("first");
        // Yielding hands the request over; the worker then stands at the gate with it.
        tokio::task::yield_now().await;
        assert_eq!(started_rx.recv().unwrap(), "first");
        let gone = call("gone");
        tokio::task::yield_now().await;
        gone.abort();
        assert!(gone.await.unwrap_err().is_cancelled());
        let last = call("last");
        tokio::task::yield_now().await;
        for _ in 0..2 {
            gate_tx.send(()).unwrap();
        }
        assert!(first.await.unwrap().is_ok() && last.await.unwrap().is_ok());
        assert_eq!(started_rx.try_iter().collect::<Vec<_>>(), ["last"]);
    }

    #[tokio::test]
    async fn a_passed_deadline_costs_nothing_and_is_answered_while_the_worker_is_busy() {
        let (tokenize, started_rx, gate_tx) = gated();
        let handle = spawn_with(tokenize, &config(1, 8), MAX_CHARS).unwrap();
        let call = |text: &str, deadline: Option<Instant>| {
            let (handle, text) = (handle.clone(), text.to_owned());
            tokio::spawn(async move { handle.tokenize(text, deadline).await })
        };
        let first = call("first", None);
        tokio::task::yield_now().await;
        assert_eq!(started_rx.recv().unwrap(), "first");
        // The gate is closed: this answer does not come from the worker.
        let late = call("late", Some(Instant::now() + std::time::Duration::from_millis(1)));
        assert!(matches!(late.await.unwrap(), Err(TextError::DeadlineExceeded)));
        let last = call("last", None);
        tokio::task::yield_now().await;
        for _ in 0..2 {
            gate_tx.send(()).unwrap();
        }
        assert!(first.await.unwrap().is_ok() && last.await.unwrap().is_ok());
        assert_eq!(started_rx.try_iter().collect::<Vec<_>>(), ["last"]);
    }

    #[tokio::test]
    async fn a_text_that_unfolds_past_the_bound_never_reaches_the_tokenizer() {
        let (tokenize, started_rx, _gate_tx) = gated();
        let handle = spawn_with(tokenize, &config(1, 1), MAX_CHARS).unwrap();
        let unfolding = handle.tokenize("\u{fdfa}".repeat(6), None).await;
        assert!(matches!(unfolding, Err(TextError::TooLong { max_chars: MAX_CHARS })), "{unfolding:?}");
        assert_eq!(started_rx.try_iter().count(), 0);
    }

    #[test]
    fn zero_workers_or_places_are_refused() {
        #[track_caller]
        fn check(workers: usize, queue_capacity: usize, expected: &str) {
            let refusal = spawn_with(one_token_a_byte, &config(workers, queue_capacity), MAX_CHARS).unwrap_err();
            assert!(matches!(refusal, TextError::InvalidConfig { field } if field == expected), "{refusal}");
        }

        check(0, 1, "workers");
        check(1, 0, "queue_capacity");
    }
}
