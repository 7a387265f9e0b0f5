//! Decisions and their audit chain, durable before anybody hears of them.

use crate::decision::Decision;
use crate::event::EventKey;

/// Why the store did not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the event was decided before with another body")]
    Conflict,
    #[error("no such record")]
    NotFound,
    #[error("the database failed")]
    Database(#[from] sqlx::Error),
    #[error("the store has been closed")]
    Closed,
    #[error("a stored record is not readable")]
    Corrupt(#[from] serde_json::Error),
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
pub struct Store {}

impl Store {
    /// The decision recorded for this event, with `replayed` set.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] where the same key was decided with another `input_hash`.
    pub async fn find(&self, _key: &EventKey, _input_hash: &str) -> Result<Option<Decision>, StoreError> {
        todo!()
    }

    /// Records a decision and answers with it, its `audit` block filled in, once it is on disk. Where the key was recorded
    /// meanwhile, the earlier decision comes back with `replayed` set.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] as in [`Self::find`]; nothing is recorded on any error.
    pub async fn record(&self, _new: NewDecision) -> Result<Decision, StoreError> {
        todo!()
    }

    /// One decision by its id.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub async fn decision(&self, _decision_id: &str) -> Result<Decision, StoreError> {
        todo!()
    }
}
