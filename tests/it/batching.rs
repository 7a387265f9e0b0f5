//! The encoder queue and its threads, with an engine whose every step the test controls.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use sluice::batching::{BatchingConfig, BatchingError, Encoded, Handle, SpawnError, encode_all, spawn};
use sluice::encoder::{Embeddings, Encoder, EncoderConfig, EncoderError, PackedBatch};
use tokio::task::JoinHandle;

/// A text that begins with this makes the engine panic.
const PANIC: u32 = 666;
/// A text that begins with this makes the engine fail.
const FAIL: u32 = 667;

/// Embeds a text as `[its first token, its length]`; reports each batch and waits at a gate before it, where it has one.
struct Double {
    batches: Sender<Vec<u32>>,
    gate: Option<Arc<Mutex<Receiver<()>>>>,
}

impl Encoder for Double {
    fn encode(&mut self, batch: &PackedBatch) -> Result<Embeddings, EncoderError> {
        let firsts: Vec<u32> = batch.sequences().map(|sequence| sequence[0]).collect();
        // The test may have stopped listening.
        let _ = self.batches.send(firsts.clone());
        if let Some(gate) = &self.gate {
            let _ = gate.lock().unwrap().recv();
        }
        assert!(!firsts.contains(&PANIC), "the double panics as it was told");
        if let Some(sequence_idx) = firsts.iter().position(|&first| first == FAIL) {
            return Err(EncoderError::NonFinite { sequence_idx });
        }
        let rows = batch.sequences().flat_map(|sequence| [sequence[0] as f32, sequence.len() as f32]).collect();
        Ok(Embeddings::from_rows(rows, 2))
    }

    fn hidden_size(&self) -> usize {
        2
    }

    fn max_sequence_tokens(&self) -> usize {
        64
    }
}

/// A running queue with its doubles.
struct House {
    handle: Handle,
    batches: Receiver<Vec<u32>>,
    gate: Sender<()>,
    n_loaded: Arc<AtomicUsize>,
}

fn encoder_config(workers: usize) -> EncoderConfig {
    EncoderConfig { workers, max_tokens: 64, ..EncoderConfig::default() }
}

fn house(workers: usize, is_gated: bool, max_batch_tokens: usize, queue_capacity: usize) -> House {
    let (batches_tx, batches) = channel();
    let (gate, gate_rx) = channel();
    let gate_rx = is_gated.then(|| Arc::new(Mutex::new(gate_rx)));
    let n_loaded = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&n_loaded);
    let batches_tx = Mutex::new(batches_tx);
    let load = move || -> Result<Box<dyn Encoder>, EncoderError> {
        count.fetch_add(1, Ordering::Relaxed);
        Ok(Box::new(Double { batches: batches_tx.lock().unwrap().clone(), gate: gate_rx.clone() }))
    };
    let handle = spawn(load, &encoder_config(workers), &BatchingConfig { max_batch_tokens, queue_capacity }).unwrap();
    House { handle, batches, gate, n_loaded }
}

type Call = JoinHandle<Result<Encoded, BatchingError>>;

impl House {
    /// Pushes a text of `length` tokens and returns once it stands in the queue (or was refused).
    async fn call(&self, first: u32, length: usize, deadline: Option<Instant>) -> Call {
        let mut input_ids = vec![1; length];
        input_ids[0] = first;
        let handle = self.handle.clone();
        let call = tokio::spawn(async move { handle.encode(input_ids, deadline).await });
        // The runtime of a test has one thread: the spawned call runs until it waits for its answer.
        tokio::task::yield_now().await;
        call
    }

    /// Occupies the only worker until the gate opens once.
    async fn occupy(&self) -> Call {
        let call = self.call(0, 1, None).await;
        assert_eq!(self.batches.recv().unwrap(), [0]);
        call
    }

    fn open_gate(&self, times: usize) {
        for _ in 0..times {
            self.gate.send(()).unwrap();
        }
    }
}

async fn embedding(call: Call) -> Vec<f32> {
    call.await.unwrap().unwrap().embedding
}

#[tokio::test]
async fn everybody_gets_the_answer_to_the_own_text() {
    let house = house(2, false, 16, 1_000);
    let mut calls = Vec::new();
    for idx in 1..=300_u32 {
        let length = 1 + idx as usize % 9;
        calls.push((idx, length, house.call(idx, length, None).await));
    }
    for (idx, length, call) in calls {
        assert_eq!(embedding(call).await, [idx as f32, length as f32]);
    }
    assert_eq!((house.handle.depth(), house.handle.waiting_tokens(), house.handle.live_workers()), (0, 0, 2));
}

#[tokio::test]
async fn what_waits_together_leaves_together_most_urgent_first() {
    let house = house(1, true, 10, 100);
    let first = house.occupy().await;
    let soon = Instant::now() + Duration::from_secs(3_600);
    let (a, b) = (house.call(1, 4, None).await, house.call(2, 4, None).await);
    let (c, d) = (house.call(3, 4, None).await, house.call(4, 40, Some(soon)).await);
    assert_eq!((house.handle.depth(), house.handle.waiting_tokens(), house.handle.in_flight()), (4, 52, 1));
    house.open_gate(4);
    for call in [first, a, b, c, d] {
        let encoded = call.await.unwrap().unwrap();
        assert!(encoded.embedding.len() == 2);
    }
    assert_eq!(house.batches.try_iter().collect::<Vec<_>>(), [vec![1, 2], vec![3], vec![4]]);
}

#[tokio::test]
async fn an_engine_that_panics_or_fails_harms_only_the_text_at_fault() {
    for (poison, is_panic) in [(PANIC, true), (FAIL, false)] {
        let house = house(1, true, 100, 100);
        let first = house.occupy().await;
        let (before, at_fault, after) =
            (house.call(1, 2, None).await, house.call(poison, 2, None).await, house.call(2, 2, None).await);
        house.open_gate(10);
        assert_eq!(
            (embedding(first).await, embedding(before).await, embedding(after).await),
            (vec![0., 1.], vec![1., 2.], vec![2., 2.])
        );
        match at_fault.await.unwrap() {
            Err(BatchingError::Encoder(EncoderError::Panicked)) => assert!(is_panic),
            Err(BatchingError::Encoder(EncoderError::NonFinite { sequence_idx: 0 })) => assert!(!is_panic),
            other => panic!("{other:?}"),
        }
        assert_eq!(embedding(house.call(7, 3, None).await).await, [7.0, 3.0]);
        // After a panic, in the batch and alone, the worker does not trust its engine any more.
        assert_eq!(house.n_loaded.load(Ordering::Relaxed), if is_panic { 3 } else { 1 });
        assert_eq!(house.handle.live_workers(), 1);
    }
}

#[tokio::test]
async fn a_full_queue_answers_at_once_when_to_come_again() {
    let house = house(1, true, 10, 2);
    let first = house.occupy().await;
    let waiting = [house.call(1, 1, None).await, house.call(2, 1, None).await];
    match house.handle.encode(vec![3], None).await {
        Err(BatchingError::QueueFull { retry_after }) => {
            assert!(retry_after >= Duration::from_millis(100) && retry_after <= Duration::from_secs(30));
        }
        other => panic!("{other:?}"),
    }
    house.open_gate(2);
    for call in waiting.into_iter().chain([first]) {
        assert!(call.await.unwrap().is_ok());
    }
}

#[tokio::test]
async fn a_text_whose_deadline_cannot_be_kept_is_refused_at_once() {
    let house = house(1, true, 100, 1_000);
    let timed = house.occupy().await;
    // At least a fifth of a second for one token: the only rate this queue has seen.
    tokio::time::sleep(Duration::from_millis(200)).await;
    house.open_gate(1);
    assert!(timed.await.unwrap().is_ok());
    let busy = house.call(1, 1, None).await;
    assert_eq!(house.batches.recv().unwrap(), [1]);
    let waiting = house.call(2, 50, None).await;

    // Ten seconds of work stand before it; a deadline in the next hour leaves time for that, one in five seconds does not.
    let soon = Instant::now() + Duration::from_secs(5);
    match house.handle.encode(vec![3], Some(soon)).await {
        Err(BatchingError::QueueTooSlow { retry_after }) => {
            assert!(retry_after >= Duration::from_secs(5) && retry_after <= Duration::from_secs(30), "{retry_after:?}");
            assert!(house.handle.retry_after() == retry_after);
        }
        other => panic!("{other:?}"),
    }
    let patient = house.call(4, 1, Some(Instant::now() + Duration::from_secs(3_600))).await;
    // What waits does not stand before one that is more urgent.
    let urgent = house.call(5, 1, Some(Instant::now() + Duration::from_secs(1))).await;
    house.open_gate(3);
    for call in [busy, waiting, patient, urgent] {
        assert!(call.await.unwrap().is_ok());
    }
}

#[tokio::test]
async fn a_caller_who_has_gone_makes_room_and_costs_nothing() {
    let house = house(1, true, 10, 1);
    let first = house.occupy().await;
    let gone = house.call(1, 1, None).await;
    gone.abort();
    assert!(gone.await.unwrap_err().is_cancelled());
    let last = house.call(2, 1, None).await;
    house.open_gate(2);
    assert_eq!((embedding(first).await, embedding(last).await), (vec![0.0, 1.0], vec![2.0, 1.0]));
    assert_eq!(house.batches.try_iter().collect::<Vec<_>>(), [[2]]);
}

#[tokio::test]
async fn a_passed_deadline_is_answered_while_the_worker_is_busy() {
    let house = house(1, true, 10, 10);
    let first = house.occupy().await;
    let late = house.call(1, 1, Some(Instant::now() + Duration::from_millis(5))).await;
    // The gate is closed: this answer does not come from the worker.
    assert!(matches!(late.await.unwrap(), Err(BatchingError::DeadlineExceeded)));
    let passed = house.handle.encode(vec![2], Some(Instant::now())).await;
    assert!(matches!(passed, Err(BatchingError::DeadlineExceeded)));
    let last = house.call(3, 1, None).await;
    house.open_gate(2);
    assert!(first.await.unwrap().is_ok() && last.await.unwrap().is_ok());
    assert_eq!(house.batches.try_iter().collect::<Vec<_>>(), [[3]]);
}

#[tokio::test]
async fn an_empty_text_is_an_error_of_its_own() {
    let house = house(1, true, 10, 10);
    let first = house.occupy().await;
    let handle = house.handle.clone();
    let empty = tokio::spawn(async move { handle.encode(Vec::new(), None).await });
    let neighbour = house.call(1, 1, None).await;
    house.open_gate(2);
    assert!(matches!(empty.await.unwrap(), Err(BatchingError::Encoder(EncoderError::EmptySequence { .. }))));
    assert_eq!((embedding(first).await, embedding(neighbour).await), (vec![0.0, 1.0], vec![1.0, 1.0]));
}

#[tokio::test]
async fn draining_answers_what_waits_and_refuses_what_comes() {
    let house = house(1, true, 1, 10);
    let mut calls = vec![house.occupy().await];
    for first in 1..=3 {
        calls.push(house.call(first, 1, None).await);
    }
    let handle = house.handle.clone();
    let drain = tokio::spawn(async move { handle.drain().await });
    tokio::task::yield_now().await;
    assert!(matches!(house.handle.encode(vec![9], None).await, Err(BatchingError::WorkerGone)));
    house.open_gate(4);
    drain.await.unwrap();
    for call in calls {
        assert!(call.await.unwrap().is_ok());
    }
    assert_eq!(house.handle.live_workers(), 0);
    house.handle.drain().await;
}

#[test]
fn dropping_the_last_handle_ends_the_workers() {
    let House { handle, batches, gate: _gate, .. } = house(3, false, 10, 10);
    drop(handle);
    // The engines hold the senders; the loop ends when the last worker has dropped its own.
    assert_eq!(batches.iter().count(), 0);
}

#[test]
fn what_cannot_work_is_refused_at_the_start() {
    #[track_caller]
    fn check(max_tokens: usize, max_batch_tokens: usize, queue_capacity: usize, loads: bool, is_expected: fn(&SpawnError) -> bool) {
        let load = move || -> Result<Box<dyn Encoder>, EncoderError> {
            if !loads {
                return Err(EncoderError::EmptyBatch);
            }
            Ok(Box::new(Double { batches: channel().0, gate: None }))
        };
        let encoder = EncoderConfig { max_tokens, ..encoder_config(1) };
        let error = spawn(load, &encoder, &BatchingConfig { max_batch_tokens, queue_capacity }).unwrap_err();
        assert!(is_expected(&error), "{error:?}");
    }

    check(64, 0, 1, true, |error| matches!(error, SpawnError::InvalidConfig { field: "max_batch_tokens" }));
    check(64, 1, 0, true, |error| matches!(error, SpawnError::InvalidConfig { field: "queue_capacity" }));
    check(65, 1, 1, true, |error| matches!(error, SpawnError::MaxTokensTooLarge { max_tokens: 65, max_sequence_tokens: 64 }));
    check(64, 1, 1, false, |error| matches!(error, SpawnError::Encoder(EncoderError::EmptyBatch)));
}

#[test]
fn encode_all_keeps_the_order_and_the_budget() {
    #[track_caller]
    fn check(lengths: &[usize], max_batch_tokens: usize, expected_batches: &[&[u32]]) {
        let sequences: Vec<Vec<u32>> = (0_u32..).zip(lengths).map(|(idx, &length)| vec![idx; length]).collect();
        let sequences: Vec<&[u32]> = sequences.iter().map(Vec::as_slice).collect();
        let (batches_tx, batches) = channel();
        let embeddings = encode_all(&mut Double { batches: batches_tx, gate: None }, &sequences, max_batch_tokens).unwrap();
        let expected: Vec<_> = lengths.iter().enumerate().map(|(idx, &length)| vec![idx as f32, length as f32]).collect();
        assert_eq!(embeddings, expected);
        assert_eq!(batches.try_iter().collect::<Vec<_>>(), expected_batches);
    }

    check(&[], 10, &[]);
    check(&[3, 3, 4, 1], 10, &[&[0, 1, 2], &[3]]);
    check(&[1, 50, 1, 1], 10, &[&[0], &[1], &[2, 3]]);
    check(&[2, 2], 0, &[&[0], &[1]]);
}
