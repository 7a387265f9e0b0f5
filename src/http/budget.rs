//! How many bytes of request bodies may be in memory at once, from the first byte that is read until the work on it is done.
//!
//! Bodies are read before anybody can know how many events they hold, so admission comes too late to bound them. Full is an answer
//! (429) for a body and a wait for the line of a stream. The bytes are divided three ways (see [`Shares`]), so that a few callers
//! who send large bodies slowly keep neither small ones nor streams out.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::config::Shares;

/// The part of a body that counts as small: more than an event of the usual size, less than would let 4,096 connections hold much.
const SMALL_BYTES: usize = 16 * 1024;

/// The bytes of bodies that may be held. Cloning shares it.
#[derive(Debug, Clone)]
pub struct BodyBudget {
    /// Permits are bytes; [`HeldBytes`] has them.
    small: Arc<Semaphore>,
    large: Arc<Semaphore>,
    streamed: Arc<Semaphore>,
    /// Permits are streams: each may hold one unfinished line that nothing else counts.
    streams: Arc<Semaphore>,
}

/// The right to the bytes of one body or line; dropped with the last work on it.
#[derive(Debug, Default)]
pub(super) struct HeldBytes {
    small: Option<OwnedSemaphorePermit>,
    rest: Option<OwnedSemaphorePermit>,
}

impl BodyBudget {
    pub fn new(max_buffered_bytes: usize, max_streams: usize) -> Self {
        let Shares { small, large, streamed } = Shares::of(max_buffered_bytes);
        let [small, large, streamed, streams] =
            [small, large, streamed, max_streams].map(|permits| Arc::new(Semaphore::new(permits)));
        Self { small, large, streamed, streams }
    }

    /// Lets `held` grow by `n_bytes`; `false` where there is no room, and then it holds what it held.
    pub(super) fn try_grow(&self, held: &mut HeldBytes, n_bytes: usize) -> bool {
        let so_far = held.small.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let n_small = n_bytes.min(SMALL_BYTES - so_far);
        let Some(small) = try_acquire(&self.small, n_small) else { return false };
        let Some(rest) = try_acquire(&self.large, n_bytes - n_small) else { return false };
        merge(&mut held.small, small);
        merge(&mut held.rest, rest);
        true
    }

    /// Waits until a line of a stream may be worked on.
    pub(super) async fn hold_line(&self, n_bytes: usize) -> HeldBytes {
        let n_permits = u32::try_from(n_bytes).expect("a line is no longer than its part of the budget");
        let permit = Arc::clone(&self.streamed).acquire_many_owned(n_permits).await.expect("the semaphores are never closed");
        HeldBytes { small: None, rest: Some(permit) }
    }

    /// Admits one more stream for as long as the permit lives.
    pub(super) fn try_open_stream(&self) -> Option<OwnedSemaphorePermit> {
        try_acquire(&self.streams, 1)
    }
}

fn try_acquire(semaphore: &Arc<Semaphore>, n_permits: usize) -> Option<OwnedSemaphorePermit> {
    Arc::clone(semaphore).try_acquire_many_owned(u32::try_from(n_permits).ok()?).ok()
}

fn merge(held: &mut Option<OwnedSemaphorePermit>, more: OwnedSemaphorePermit) {
    match held {
        Some(held) => held.merge(more),
        None => *held = Some(more),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_bodies_keep_no_small_one_out() {
        let budget = BodyBudget::new(8 * SMALL_BYTES, 1);
        let (mut first, mut second, mut small) = (HeldBytes::default(), HeldBytes::default(), HeldBytes::default());
        // All but a hundred bytes of the half for large bodies.
        assert!(
            budget.try_grow(&mut first, SMALL_BYTES / 2) && budget.try_grow(&mut first, 4 * SMALL_BYTES + SMALL_BYTES / 2 - 100)
        );
        assert!(!budget.try_grow(&mut second, SMALL_BYTES + 101));
        assert!(budget.try_grow(&mut small, SMALL_BYTES));
        drop(first);
        assert!(budget.try_grow(&mut second, SMALL_BYTES + 101));
    }

    #[tokio::test]
    async fn a_line_waits_for_its_bytes_and_a_stream_is_refused() {
        let budget = BodyBudget::new(40, 1);
        let held = budget.hold_line(10).await;
        assert!(tokio::time::timeout(std::time::Duration::from_millis(1), budget.hold_line(1)).await.is_err());
        drop(held);
        budget.hold_line(10).await;
        let stream = budget.try_open_stream();
        assert!(stream.is_some() && budget.try_open_stream().is_none());
    }
}
