//! The two things a request can ask for, whichever way it came: classify one event, decide one event.
//!
//! The pipeline does the work; here it meets the caller's deadline, its permit and the metrics. Deciding runs in a task of its
//! own, so a caller who hangs up neither undoes it nor leaves half of it.

use std::time::Instant;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::AppState;
use super::admission::Permit;
use super::budget::HeldBytes;
use super::context::Deadline;
use super::problem::Problem;
use crate::bundle::BundleIdentity;
use crate::classifier::Classification;
use crate::classifier::explain::MAX_SEGMENTS;
use crate::decision::{Assessed, Decided, Timings};
use crate::error::Error;
use crate::event::{Content, Event};
use crate::policy::{Reason, ReasonCode};
use crate::risk::Risk;

/// What an exception is and what is at stake.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ClassifyAnswer {
    /// `null` where the request named none.
    pub event_id: Option<String>,
    pub classification: Classification,
    /// `null` where no risk model gave an answer; the reason codes say so.
    pub risk: Option<Risk>,
    /// Why a part of the answer is missing; left out where none is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reason_codes: Vec<Reason>,
    pub bundle: BundleIdentity,
}

impl ClassifyAnswer {
    pub fn new(event_id: Option<String>, assessed: Assessed, bundle: BundleIdentity) -> Self {
        let Assessed { classification, risk, .. } = assessed;
        let unscored = || Reason { code: ReasonCode::RiskUnavailable, detail: "the risk models gave no answer".to_owned() };
        let reason_codes = if risk.is_none() { vec![unscored()] } else { Vec::new() };
        Self { event_id, classification, risk, reason_codes, bundle }
    }
}

/// How an event is to be worked on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ask {
    pub(super) deadline: Instant,
    /// Whether the answer says what carried it.
    pub(super) explain: bool,
}

impl Ask {
    /// Without explanation, as the items of a batch are answered.
    pub(super) fn plain(deadline: Deadline) -> Self {
        Self { deadline: deadline.at, explain: false }
    }

    /// Texts that go through the encoder: what the event counts as at admission.
    pub(super) fn n_texts(self) -> usize {
        if self.explain { 1 + MAX_SEGMENTS } else { 1 }
    }
}

impl AppState {
    /// Admits the events of one body.
    ///
    /// # Errors
    /// 429 as a problem, with the time after which to come again.
    pub(super) fn admit(&self, n_events: usize, body: HeldBytes) -> Result<Permit, Problem> {
        self.admission.try_admit(n_events, body).ok_or_else(|| self.overloaded())
    }

    /// The answer to a caller for whom there is no room.
    pub(super) fn overloaded(&self) -> Problem {
        Error::Overloaded { retry_after: self.pipeline.encoder.retry_after() }.into()
    }

    /// Classifies one event. A caller who goes away stops it.
    ///
    /// # Errors
    /// 429, 503 or 504 as a problem.
    pub(super) async fn classify(
        &self,
        event_id: Option<String>,
        content: &Content,
        Ask { deadline, explain }: Ask,
        permit: Permit,
    ) -> Result<(ClassifyAnswer, Timings), Problem> {
        let work = self.pipeline.assess(content, Some(deadline), explain);
        let assessed = tokio::time::timeout_at(deadline.into(), work).await.map_err(|_| Error::DeadlineExceeded)??;
        let timings = assessed.timings;
        drop(permit);
        self.readiness.served();
        self.metrics.stages(&timings);
        Ok((ClassifyAnswer::new(event_id, assessed, self.pipeline.models.identity.clone()), timings))
    }

    /// Decides one event and records the decision. Once begun it runs to its end, whatever becomes of the caller; a caller whose
    /// deadline passes is told so and gets the decision by sending the event again.
    ///
    /// # Errors
    /// 409, 429, 500 or 504 as a problem.
    pub(super) async fn decide(&self, event: Event, ask: Ask, permit: Permit) -> Result<Decided, Problem> {
        let Ask { deadline, explain } = ask;
        let state = self.clone();
        let work = async move {
            let decided = state.pipeline.decide(event, Some(deadline), explain).await;
            drop(permit);
            if let Ok(decided) = &decided {
                state.metrics.decision(decided);
                if decided.decision.classification.is_some() && !decided.decision.replayed {
                    state.readiness.served();
                }
            }
            decided
        };
        let task = self.tasks.spawn(tracing::Instrument::in_current_span(work));
        let joined = tokio::time::timeout_at(deadline.into(), task).await.map_err(|_| Error::DeadlineExceeded)?;
        let decided = joined.map_err(|error| {
            tracing::error!(error = &error as &dyn std::error::Error, "deciding an event panicked");
            Error::Internal { invariant: "the pipeline does not panic" }
        })?;
        Ok(decided?)
    }
}
