//! Admission: how many events may be in work at once.
//!
//! One semaphore counts events, not requests, so a batch cannot slip past the limit. Full is an answer (429), never a wait: the
//! encoder's queue behind it is at least as large, so an admitted event is never refused there. Streams alone wait for a permit,
//! because reading no further is their way of saying "later".

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::Error;

/// What a refused caller is told to wait. A full house of short texts is worked off in about this time on two cores.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Held while its events are in work; dropped with the task that works on them.
pub type Permit = OwnedSemaphorePermit;

/// The count of events in work.
#[derive(Debug, Clone)]
pub struct Admission {
    /// [`Permit`]s are held by the handlers of `classify` and by the tasks that decide.
    permits: Arc<Semaphore>,
    capacity: usize,
}

impl Admission {
    pub fn new(capacity: usize) -> Self {
        Self { permits: Arc::new(Semaphore::new(capacity)), capacity }
    }

    /// Admits `n_events` together, or none of them.
    ///
    /// # Errors
    /// [`Error::Overloaded`] at once where there is no room.
    pub fn try_admit(&self, n_events: usize) -> Result<Permit, Error> {
        let overloaded = Error::Overloaded { retry_after: RETRY_AFTER };
        let Ok(n_permits) = u32::try_from(n_events) else { return Err(overloaded) };
        Arc::clone(&self.permits).try_acquire_many_owned(n_permits).map_err(|_| overloaded)
    }

    /// Waits until one event may be worked on.
    pub async fn admit(&self) -> Permit {
        Arc::clone(&self.permits).acquire_owned().await.expect("the semaphore is never closed")
    }

    pub fn in_flight(&self) -> usize {
        self.capacity - self.permits.available_permits()
    }
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
}
