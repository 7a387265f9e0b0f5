//! **Read this first.** The way of one exception, top to bottom: [`Pipeline::decide`] and, inside it, [`Pipeline::classify`].
//!
//! Everything else in the crate serves these two functions. They refuse metrics code (callers time what [`Timings`] carries) and
//! branching by model kind (rooms hide that). From here go to the room that interests you, in the order of the calls.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::batching;
use crate::bundle::{BundleIdentity, Models};
use crate::classifier::{Classification, Explanation, explain};
use crate::error::Error;
use crate::event::{Content, Event};
use crate::policy::{Disposition, Gate, Policy, PolicyInput, Reason, ReasonCode, Verdict};
use crate::recommend::{Precedent, RecommendInput, Recommendation};
use crate::risk::Risk;
use crate::store::{NewDecision, Store, StoreError};
use crate::taxonomy::MANUAL_REVIEW;
use crate::text::{self, NormalizedText, ReadText, TokenCount};

/// Bytes of a text up to which its lexical features cost well under half a millisecond; the features of a longer one are computed on
/// a blocking thread.
const LONG_TEXT_BYTES: usize = 1_024;

/// The rooms an exception passes through. Cheap to share behind an `Arc`; every method takes `&self`.
#[derive(Debug)]
pub struct Pipeline {
    pub models: Arc<Models>,
    pub tokenizer: text::Handle,
    pub encoder: batching::Handle,
    pub policy: Policy,
    pub store: Store,
}

impl Pipeline {
    /// Decides one event and records the decision before answering. The same event again gives the same decision.
    ///
    /// Only overload, a passed deadline and a text that unfolds past every bound refuse the event; any other failure is answered with a
    /// disposition for a person and the reason, because an exception that nobody sees is worse than one decided by hand.
    ///
    /// # Errors
    /// [`Error::Conflict`] where the key was decided with another body, [`Error::Overloaded`], [`Error::DeadlineExceeded`],
    /// [`Error::Event`] for the narrative.
    pub async fn decide(&self, event: Event, deadline: Option<Instant>, explain: bool) -> Result<Decided, Error> {
        let input_hash = event.input_hash();
        let store_reason = match self.store.find(&event.key, &input_hash).await {
            Ok(Some(earlier)) => return Ok(Decided { decision: earlier, timings: Timings::default() }),
            Ok(None) => None,
            Err(StoreError::Conflict) => return Err(Error::Conflict),
            Err(error) => Some(unrecorded(&error)),
        };

        let facts = &event.content.facts;
        let (classification, mut timings) = match self.classify(&event.content, deadline, explain).await {
            Ok(classified) => (Some(classified.classification), classified.timings),
            Err(refusal @ (Error::Overloaded { .. } | Error::DeadlineExceeded | Error::Event(_))) => return Err(refusal),
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "the classifier gave no answer; a person decides");
                (None, Timings::default())
            }
        };
        let risk = timings.risk(|| self.assess_risk(&event.content));

        let started = Instant::now();
        let mut recommendations = self.models.recommender.recommend(&RecommendInput {
            taxonomy: &self.models.taxonomy,
            classification: classification.as_ref(),
            facts,
            risk: risk.as_ref(),
        });
        for recommendation in &mut recommendations {
            let action = self.models.taxonomy.action_by_code(&recommendation.action);
            recommendation.approver_role = action.and_then(|action| self.policy.approver_role(action, facts, risk.as_ref()));
        }
        let action = recommendations.iter().find(|recommendation| recommendation.feasible).map(|best| best.action.clone());
        let action = action.unwrap_or_else(|| MANUAL_REVIEW.to_owned());
        let mut verdict = self.policy.evaluate(&PolicyInput {
            facts,
            classification: classification.as_ref(),
            risk: risk.as_ref(),
            action: self.models.taxonomy.action_by_code(&action),
            thresholds: &self.models.thresholds,
        });
        if let Some(reason) = store_reason {
            verdict.require_person(reason);
        }
        let summary = self.models.recommender.summary(&event.content, classification.as_ref(), risk.as_ref());
        timings.policy = started.elapsed();

        let decision = Decision {
            decision_id: Uuid::now_v7().to_string(),
            event_id: event.key.id.clone(),
            tenant: event.key.tenant.clone(),
            source: event.key.source.clone(),
            decided_at: OffsetDateTime::now_utc(),
            disposition: verdict.disposition,
            action,
            recommendations,
            gate: verdict.gate.clone(),
            reason_codes: verdict.reasons.clone(),
            approvers: verdict.approvers.clone(),
            summary,
            precedents: Vec::new(),
            classification,
            risk,
            policy: PolicyIdentity { version: self.policy.version().to_owned(), rule: verdict.rule.clone() },
            bundle: self.models.identity.clone(),
            audit: None,
            replayed: false,
        };
        let started = Instant::now();
        let decision = self.record(event, input_hash, decision, verdict).await?;
        timings.commit = started.elapsed();
        Ok(Decided { decision, timings })
    }

    /// Names what blocks the order, from the narrative alone; where `explain` asks for it, with the parts of the narrative that
    /// carried the answer, at the cost of [`explain::MAX_SEGMENTS`] further texts.
    ///
    /// # Errors
    /// [`Error::Overloaded`] where the encoder has no room or no time for it, [`Error::DeadlineExceeded`], [`Error::Unavailable`],
    /// [`Error::Event`] where the narrative has too many characters after normalising.
    pub async fn classify(&self, content: &Content, deadline: Option<Instant>, explain: bool) -> Result<Classified, Error> {
        let mut classified = self.read(content.narrative.clone(), deadline).await?;
        if explain {
            let classification = &classified.classification;
            let parts = explain::segments(&classified.text);
            let without = parts.iter().map(|part| self.read(explain::without(&classified.text, part), deadline));
            let without = try_join_all(without).await?.into_iter().map(|shortened| shortened.classification);
            let explanation = Explanation::of(classification, &classified.text, &parts, &without.collect::<Vec<_>>());
            classified.classification.explanation = explanation;
        }
        Ok(classified)
    }

    /// One narrative through tokenizer, encoder and classifier.
    async fn read(&self, narrative: String, deadline: Option<Instant>) -> Result<Classified, Error> {
        let started = Instant::now();
        let ReadText { text, tokens } = self.tokenizer.tokenize(narrative, deadline).await?;
        let tokenize = started.elapsed();
        let windows = tokens.windows.into_iter().map(|window| self.encoder.encode(window, deadline));
        let encoded = try_join_all(windows).await?;
        // The windows of a long text are in work together, so the slowest of them is what the caller waited for.
        let queue = encoded.iter().map(|window| window.queue).max().unwrap_or_default();
        let encode = encoded.iter().map(|window| window.encode).max().unwrap_or_default();
        let embeddings = encoded.into_iter().map(|window| window.embedding).collect();
        let classification = self.score(text.clone(), tokens.count, embeddings).await?;
        let timings = Timings { tokenize, queue, encode, ..Timings::default() };
        Ok(Classified { classification, text, timings })
    }

    async fn score(&self, text: NormalizedText, tokens: TokenCount, embeddings: Vec<Vec<f32>>) -> Result<Classification, Error> {
        if text.as_str().len() <= LONG_TEXT_BYTES {
            return Ok(self.models.classifier.classify(&text, tokens, &embeddings));
        }
        let models = Arc::clone(&self.models);
        let scored = tokio::task::spawn_blocking(move || models.classifier.classify(&text, tokens, &embeddings)).await;
        scored.map_err(|_| Error::Internal { invariant: "the classifier does not panic" })
    }

    /// What the exception is and what is at stake, undecided and unrecorded.
    ///
    /// # Errors
    /// As [`Pipeline::classify`].
    pub async fn assess(&self, content: &Content, deadline: Option<Instant>, explain: bool) -> Result<Assessed, Error> {
        let Classified { classification, mut timings, .. } = self.classify(content, deadline, explain).await?;
        let risk = timings.risk(|| self.assess_risk(content));
        Ok(Assessed { classification, risk, timings })
    }

    /// What is at stake, from the facts alone; `None` where no risk model answers.
    fn assess_risk(&self, content: &Content) -> Option<Risk> {
        let model = self.models.risk.as_ref()?;
        model
            .score(&content.facts)
            .inspect_err(|error| tracing::error!(error = error as &dyn std::error::Error, "the risk model gave no answer"))
            .ok()
    }

    /// Records a decision. One that cannot be recorded is answered all the same, but only ever to a person.
    async fn record(&self, event: Event, input_hash: String, decision: Decision, mut verdict: Verdict) -> Result<Decision, Error> {
        let new = NewDecision {
            event: serde_json::to_value(&event).map_err(|_| Error::Internal { invariant: "a validated event is JSON" })?,
            key: event.key,
            input_hash,
            decision: decision.clone(),
        };
        match self.store.record(new).await {
            Ok(recorded) => Ok(recorded),
            Err(StoreError::Conflict) => Err(Error::Conflict),
            Err(error) => {
                verdict.require_person(unrecorded(&error));
                let Verdict { disposition, reasons: reason_codes, approvers, .. } = verdict;
                Ok(Decision { disposition, reason_codes, approvers, ..decision })
            }
        }
    }
}

fn unrecorded(error: &StoreError) -> Reason {
    tracing::error!(error = error as &dyn std::error::Error, "the store failed; a person decides");
    Reason {
        code: ReasonCode::AuditUnavailable,
        detail: "the decision could not be recorded, so a person decides; sending the event again decides it anew".to_owned(),
    }
}

/// A classification with where its time went.
#[derive(Debug, Clone)]
pub struct Classified {
    pub classification: Classification,
    /// The narrative as the models saw it.
    pub text: NormalizedText,
    pub timings: Timings,
}

/// A classification and what is at stake, with where their time went.
#[derive(Debug, Clone)]
pub struct Assessed {
    pub classification: Classification,
    pub risk: Option<Risk>,
    pub timings: Timings,
}

/// A decision with where its time went.
#[derive(Debug, Clone)]
pub struct Decided {
    pub decision: Decision,
    pub timings: Timings,
}

/// Time spent in each room, for `Server-Timing` and the metrics. A replayed decision spent none.
#[derive(Debug, Clone, Copy, Default)]
pub struct Timings {
    pub tokenize: Duration,
    pub queue: Duration,
    pub encode: Duration,
    pub risk: Duration,
    pub policy: Duration,
    pub commit: Duration,
}

impl Timings {
    /// The longest time in each room, for things done side by side.
    #[must_use]
    pub fn longest(self, other: Self) -> Self {
        Self {
            tokenize: self.tokenize.max(other.tokenize),
            queue: self.queue.max(other.queue),
            encode: self.encode.max(other.encode),
            risk: self.risk.max(other.risk),
            policy: self.policy.max(other.policy),
            commit: self.commit.max(other.commit),
        }
    }

    /// Runs the risk model and notes how long it took.
    fn risk<T>(&mut self, score: impl FnOnce() -> T) -> T {
        let started = Instant::now();
        let value = score();
        self.risk = started.elapsed();
        value
    }
}

/// The recorded whole.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Decision {
    pub decision_id: String,
    pub event_id: String,
    pub tenant: String,
    pub source: String,
    #[serde(with = "time::serde::rfc3339")]
    pub decided_at: OffsetDateTime,
    pub disposition: Disposition,
    /// The best feasible action.
    pub action: String,
    pub recommendations: Vec<Recommendation>,
    pub gate: Gate,
    /// Most restrictive first.
    pub reason_codes: Vec<Reason>,
    /// Roles that may decide or approve the case.
    pub approvers: Vec<String>,
    /// The facts a reviewer needs, in sentences; nothing that the event does not say.
    pub summary: String,
    /// Resolved cases like this one.
    pub precedents: Vec<Precedent>,
    /// `null` where the classifier gave no answer; the reason codes say so.
    pub classification: Option<Classification>,
    /// `null` where no risk model gave an answer; the reason codes say so.
    pub risk: Option<Risk>,
    pub policy: PolicyIdentity,
    pub bundle: BundleIdentity,
    /// The decision's place in the audit chain; `null` only where it could not be recorded.
    pub audit: Option<AuditReference>,
    /// Whether this answer repeats an earlier decision on the same event.
    pub replayed: bool,
}

/// Which policy and which of its rules decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PolicyIdentity {
    pub version: String,
    pub rule: String,
}

/// A place in the audit chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuditReference {
    /// From 1, without gaps.
    pub sequence: u64,
    /// SHA-256 of the record and everything before it, in lower-case hex.
    pub hash: String,
}
