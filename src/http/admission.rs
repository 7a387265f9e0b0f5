//! Admission: how many events may be in work at once.
//!
//! One semaphore counts events, not requests, so a batch cannot slip past the limit. Full is an answer (429), never a wait: the
//! encoder's queue behind it is larger, so an admitted event always finds a place there. Whether it is also reached in time the
//! queue itself says, which knows what waits and how fast it goes. Streams alone wait, because reading no
//! further is their way of saying "later"; they share half of the house, so the other half stays for callers who do not wait.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::budget::HeldBytes;

/// Held while its events are in work; dropped with the task that works on them.
#[derive(Debug)]
pub struct Permit {
    events: OwnedSemaphorePermit,
    /// Held beside `events` by the line of a stream, for its drop.
    _stream: Option<OwnedSemaphorePermit>,
    /// The bytes that the events were read from, shared by those of one body.
    body: Arc<HeldBytes>,
}

/// The count of events in work.
#[derive(Debug, Clone)]
pub struct Admission {
    /// [`Permit`]s are held by the handlers of `classify` and by the tasks that decide.
    events: Arc<Semaphore>,
    /// Of these, how many may be lines of streams.
    stream_events: Arc<Semaphore>,
    capacity: usize,
}

impl Admission {
    pub fn new(capacity: usize) -> Self {
        let stream_capacity = capacity.div_ceil(2);
        Self { events: Arc::new(Semaphore::new(capacity)), stream_events: Arc::new(Semaphore::new(stream_capacity)), capacity }
    }

    /// Admits the `n_events` of one body together, or none of them: `None` at once where there is no room.
    pub(super) fn try_admit(&self, n_events: usize, body: HeldBytes) -> Option<Permit> {
        let n_permits = u32::try_from(n_events).ok()?;
        let events = Arc::clone(&self.events).try_acquire_many_owned(n_permits).ok()?;
        Some(Permit { events, _stream: None, body: Arc::new(body) })
    }

    /// Waits until one event of a stream may be worked on.
    pub(super) async fn admit_streamed(&self, line: Arc<HeldBytes>) -> Permit {
        let stream = acquire(&self.stream_events).await;
        Permit { events: acquire(&self.events).await, _stream: Some(stream), body: line }
    }

    pub fn in_flight(&self) -> usize {
        self.capacity - self.events.available_permits()
    }
}

impl Permit {
    /// Takes one event out of a permit for several; `None` where none is left.
    pub fn split_one(&mut self) -> Option<Self> {
        Some(Self { events: self.events.split(1)?, _stream: None, body: Arc::clone(&self.body) })
    }
}

async fn acquire(semaphore: &Arc<Semaphore>) -> OwnedSemaphorePermit {
    Arc::clone(semaphore).acquire_owned().await.expect("the semaphores are never closed")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn try_admit(admission: &Admission, n_events: usize) -> Option<Permit> {
        admission.try_admit(n_events, HeldBytes::default())
    }

    async fn admit_streamed(admission: &Admission) -> Permit {
        admission.admit_streamed(Arc::default()).await
    }

    #[test]
    fn a_batch_counts_as_many_as_it_holds() {
        let admission = Admission::new(4);
        let batch = try_admit(&admission, 3).unwrap();
        assert!(try_admit(&admission, 2).is_none());
        let one = try_admit(&admission, 1).unwrap();
        assert_eq!(admission.in_flight(), 4);
        drop((batch, one));
        assert_eq!(admission.in_flight(), 0);
        assert!(try_admit(&admission, 4).is_some());
    }

    #[tokio::test]
    async fn streams_leave_half_of_the_house_to_others() {
        let admission = Admission::new(4);
        let _lines = [admit_streamed(&admission).await, admit_streamed(&admission).await];
        let third = tokio::time::timeout(Duration::from_millis(1), admit_streamed(&admission)).await;
        assert!(third.is_err());
        assert!(try_admit(&admission, 2).is_some());
    }

    #[test]
    fn a_permit_is_split_into_as_many_as_it_counts() {
        let admission = Admission::new(2);
        let mut batch = try_admit(&admission, 2).unwrap();
        let parts = [batch.split_one(), batch.split_one(), batch.split_one()];
        assert_eq!(parts.each_ref().map(Option::is_some), [true, true, false]);
        drop(parts);
        assert_eq!(admission.in_flight(), 0);
    }
}
