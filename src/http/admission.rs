//! Admission: how many events may be in work at once.
//!
//! One semaphore counts events, not requests, so a batch cannot slip past the limit. Full is an answer (429), never a wait: the
//! encoder's queue behind it is larger, so an admitted event is never refused there. Streams alone wait, because reading no
//! further is their way of saying "later"; they share half of the house, so the other half stays for callers who do not wait.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::Error;

/// What a refused caller is told to wait. A full house of short texts is worked off in seconds, its first places are free sooner.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Held while its events are in work; dropped with the task that works on them.
#[derive(Debug)]
pub struct Permit {
    events: OwnedSemaphorePermit,
    /// Held beside `events` by the line of a stream, for its drop.
    _stream: Option<OwnedSemaphorePermit>,
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

    /// Admits `n_events` together, or none of them.
    ///
    /// # Errors
    /// [`Error::Overloaded`] at once where there is no room.
    pub fn try_admit(&self, n_events: usize) -> Result<Permit, Error> {
        let overloaded = Error::Overloaded { retry_after: RETRY_AFTER };
        let Ok(n_permits) = u32::try_from(n_events) else { return Err(overloaded) };
        let events = Arc::clone(&self.events).try_acquire_many_owned(n_permits).map_err(|_| overloaded)?;
        Ok(Permit { events, _stream: None })
    }

    /// Waits until one event of a stream may be worked on.
    pub async fn admit_streamed(&self) -> Permit {
        let stream = acquire(&self.stream_events).await;
        Permit { events: acquire(&self.events).await, _stream: Some(stream) }
    }

    pub fn in_flight(&self) -> usize {
        self.capacity - self.events.available_permits()
    }
}

impl Permit {
    /// Takes one event out of a permit for several; `None` where none is left.
    pub fn split_one(&mut self) -> Option<Self> {
        Some(Self { events: self.events.split(1)?, _stream: None })
    }
}

async fn acquire(semaphore: &Arc<Semaphore>) -> OwnedSemaphorePermit {
    Arc::clone(semaphore).acquire_owned().await.expect("the semaphores are never closed")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_counts_as_many_as_it_holds() {
        let admission = Admission::new(4);
        let batch = admission.try_admit(3).unwrap();
        assert!(matches!(admission.try_admit(2), Err(Error::Overloaded { .. })));
        let one = admission.try_admit(1).unwrap();
        assert_eq!(admission.in_flight(), 4);
        drop((batch, one));
        assert_eq!(admission.in_flight(), 0);
        assert!(admission.try_admit(4).is_ok());
    }

    #[tokio::test]
    async fn streams_leave_half_of_the_house_to_others() {
        let admission = Admission::new(4);
        let _lines = [admission.admit_streamed().await, admission.admit_streamed().await];
        let third = tokio::time::timeout(Duration::from_millis(1), admission.admit_streamed()).await;
        assert!(third.is_err());
        assert!(admission.try_admit(2).is_ok());
    }

    #[test]
    fn a_permit_is_split_into_as_many_as_it_counts() {
        let admission = Admission::new(2);
        let mut batch = admission.try_admit(2).unwrap();
        let parts = [batch.split_one(), batch.split_one(), batch.split_one()];
        assert_eq!(parts.each_ref().map(Option::is_some), [true, true, false]);
        drop(parts);
        assert_eq!(admission.in_flight(), 0);
    }
}
