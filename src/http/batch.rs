//! The `/batch` resources: many events in, as many results out, in order.
//!
//! Each item has a result of its own, so one that is malformed, too long or refused never fails its neighbours. The items of a
//! batch are in work together and meet in the encoder's batches, but for those that share an idempotency key: they take turns, so
//! that the earlier one is decided and the later one repeats it or conflicts. Admission counts each item. A batch as one JSON document is
//! admitted whole or not at all; `application/x-ndjson` is streamed both ways by [`super::ndjson`].

use std::collections::HashMap;

use axum::Json;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use futures_util::future::Either;
use futures_util::future::{join_all, ready};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio_util::sync::{CancellationToken, DropGuard};
use utoipa::ToSchema;

use super::AppState;
use super::admission::Permit;
use super::body::{self, MediaType};
use super::context::{Deadline, NoQuery, RequestContext, SERVER_TIMING, server_timing};
use super::docs::{BatchRequest, Problems};
use super::ndjson;
use super::problem::Problem;
use super::service::{Ask, ClassifyAnswer};
use crate::decision::{Decision, Timings};
use crate::error::{Error, ErrorCode};
use crate::event::{Content, Event, EventError, EventKey, EventLimits, EventWire, cloudevents, split_array, split_events};

/// The answer to a batch of `classify`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ClassifyBatchAnswer {
    pub results: Vec<ClassifyResult>,
}

/// The answer to a batch of `recommend`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RecommendBatchAnswer {
    pub results: Vec<RecommendResult>,
}

/// One item of [`ClassifyBatchAnswer`]: `body` where `status` is 200, `problem` elsewhere.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ClassifyResult {
    pub status: u16,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<ClassifyAnswer>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<Problem>,
}

/// One item of [`RecommendBatchAnswer`]: `body` where `status` is 200, `problem` elsewhere.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RecommendResult {
    pub status: u16,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<Decision>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<Problem>,
}

/// Classify many exceptions
///
/// Results stand in the order of the events. `Server-Timing` has the longest time that any event spent in each room, and the total.
/// `application/x-ndjson` in gives one result a line, streamed, of any length, without `Server-Timing`: the head of the answer
/// leaves before the work begins.
#[utoipa::path(
    post,
    path = "/v1/classify/batch",
    operation_id = "classify_batch",
    tag = "decisions",
    request_body(content((BatchRequest = "application/json"), (String = "application/x-ndjson"))),
    params(("X-Request-Id" = Option<String>, Header), ("X-Deadline-Ms" = Option<u64>, Header)),
    responses((status = 200, description = "One result for each event, in order", body = ClassifyBatchAnswer), Problems)
)]
pub(super) async fn classify(
    State(state): State<AppState>,
    context: RequestContext,
    _: NoQuery,
    deadline: Deadline,
    request: Request,
) -> Result<Response, Problem> {
    batch(state, context, deadline, request, Task::Classify).await
}

/// Decide many exceptions
///
/// Results stand in the order of the events, each decision as durable as one asked for alone. Where events share an idempotency key,
/// the earlier one is decided and the later one repeats its decision or gets a 409. `Server-Timing` has the longest time that any
/// event spent in each room, and the total. `application/x-ndjson` in gives one result a line, streamed, of any length, without
/// `Server-Timing`: the head of the answer leaves before the work begins.
#[utoipa::path(
    post,
    path = "/v1/recommend/batch",
    operation_id = "recommend_batch",
    tag = "decisions",
    request_body(content((BatchRequest = "application/json"), (String = "application/x-ndjson"))),
    params(("X-Request-Id" = Option<String>, Header), ("X-Deadline-Ms" = Option<u64>, Header)),
    responses((status = 200, description = "One result for each event, in order", body = RecommendBatchAnswer), Problems)
)]
pub(super) async fn recommend(
    State(state): State<AppState>,
    context: RequestContext,
    _: NoQuery,
    deadline: Deadline,
    request: Request,
) -> Result<Response, Problem> {
    batch(state, context, deadline, request, Task::Recommend).await
}

/// What is asked for each item.
#[derive(Debug, Clone, Copy)]
pub(super) enum Task {
    Classify,
    Recommend,
}

/// An item that may be worked on.
#[derive(Debug)]
pub(super) enum Work {
    Classify(Option<String>, Content),
    Recommend(Event),
}

impl Task {
    /// Checks one item.
    pub(super) fn check(self, event: EventWire, limits: &EventLimits) -> Result<Work, EventError> {
        match self {
            Self::Classify => Ok(Work::Classify(event.id.clone(), event.into_content(limits)?)),
            Self::Recommend => Ok(Work::Recommend(event.into_event(limits)?)),
        }
    }
}

impl Work {
    /// Does it; the answer is a result object of the batch as JSON text.
    pub(super) async fn run(
        &self,
        state: &AppState,
        deadline: Deadline,
        permit: Permit,
    ) -> Result<(Box<RawValue>, Timings), Problem> {
        match self {
            Self::Classify(event_id, content) => {
                let (answer, timings) = state.classify(event_id.clone(), content, Ask::plain(deadline), permit).await?;
                Ok((raw(&ClassifyResult { status: 200, body: Some(answer), problem: None })?, timings))
            }
            Self::Recommend(event) => {
                let decided = state.decide(event.clone(), Ask::plain(deadline), permit).await?;
                Ok((raw(&RecommendResult { status: 200, body: Some(decided.decision), problem: None })?, decided.timings))
            }
        }
    }

    /// What the store decides once; classifying records nothing.
    fn key(&self) -> Option<&EventKey> {
        match self {
            Self::Classify(..) => None,
            Self::Recommend(event) => Some(&event.key),
        }
    }
}

/// Who waits for whom among the items of one batch: each for the item before it with the same key.
#[derive(Debug, Default)]
pub(super) struct Turns(HashMap<EventKey, CancellationToken>);

/// The turn of one item. The next item with its key begins when this is dropped.
#[derive(Debug, Default)]
pub(super) struct Turn {
    /// Cancelled when the item before has ended.
    before: Option<CancellationToken>,
    _ends: Option<DropGuard>,
}

impl Turns {
    /// Keys that are kept, at least, before those that have ended are forgotten: a stream may be endless.
    const KEPT: usize = 1_024;

    /// The turn of the next item; call it in the order of the items.
    pub(super) fn next(&mut self, work: &Work) -> Turn {
        let Some(key) = work.key() else { return Turn::default() };
        if self.0.len() >= Self::KEPT {
            self.0.retain(|_, ended| !ended.is_cancelled());
        }
        let ended = CancellationToken::new();
        let before = self.0.insert(key.clone(), ended.clone());
        Turn { before, _ends: Some(ended.drop_guard()) }
    }
}

impl Turn {
    pub(super) async fn wait(&self) {
        if let Some(before) = &self.before {
            before.cancelled().await;
        }
    }
}

/// The result object of an item that failed.
pub(super) fn failed(problem: Problem, context: &RequestContext) -> Box<RawValue> {
    #[derive(Serialize)]
    struct Failed {
        status: u16,
        problem: Problem,
    }

    let failed = Failed { status: problem.status, problem: problem.with_request_id(&context.request_id) };
    raw(&failed).expect("a problem holds strings, integers and bools only")
}

fn raw(result: &impl Serialize) -> Result<Box<RawValue>, Problem> {
    serde_json::value::to_raw_value(result).map_err(|error| {
        tracing::error!(error = &error as &dyn std::error::Error, "an answer is no JSON");
        Error::Internal { invariant: "an answer is JSON" }.into()
    })
}

async fn batch(
    state: AppState,
    context: RequestContext,
    deadline: Deadline,
    request: Request,
    task: Task,
) -> Result<Response, Problem> {
    match MediaType::of(request.headers())? {
        MediaType::Ndjson => ndjson::answer(state, context, deadline.budget, request.into_body(), task),
        MediaType::Json => json(&state, &context, deadline, request.into_body(), task, Envelope::Events).await,
        MediaType::CloudEventBatch => json(&state, &context, deadline, request.into_body(), task, Envelope::CloudEvents).await,
        MediaType::CloudEvent => Err(Problem::new(
            ErrorCode::UnsupportedMediaType,
            "send several CloudEvents as `application/cloudevents-batch+json`, one to the resource without `/batch`",
        )
        .with_field("content-type")),
    }
}

/// How the events of one JSON document are wrapped.
#[derive(Debug, Clone, Copy)]
enum Envelope {
    Events,
    CloudEvents,
}

impl Envelope {
    fn split(self, bytes: &[u8], max_items: usize) -> Result<Vec<&[u8]>, EventError> {
        match self {
            Self::Events => split_events(bytes, max_items),
            Self::CloudEvents => split_array(bytes, max_items),
        }
    }

    fn read(self, item: &[u8]) -> Result<EventWire, EventError> {
        match self {
            Self::Events => EventWire::from_json(item),
            Self::CloudEvents => cloudevents::from_structured(item),
        }
    }
}

async fn json(
    state: &AppState,
    context: &RequestContext,
    deadline: Deadline,
    body: Body,
    task: Task,
    envelope: Envelope,
) -> Result<Response, Problem> {
    #[derive(Serialize)]
    struct Answer {
        results: Vec<Box<RawValue>>,
    }

    let (limits, max_items) = (state.limits, state.config.max_batch_items);
    let check = move |item: &[u8]| task.check(envelope.read(item)?, &limits);
    // An item too many is found before the first one is parsed.
    let parse = move |bytes: &[u8]| Ok(envelope.split(bytes, max_items)?.into_iter().map(check).collect::<Vec<_>>());
    let (checked, held) = body::read(body, state).await?.parse(parse).await;
    let checked: Vec<Result<Work, EventError>> = checked.map_err(|error: EventError| Problem::from(error))?;
    let n_admitted = checked.iter().filter(|item| item.is_ok()).count();
    let mut permits = state.admit(n_admitted, held)?;
    let mut turns = Turns::default();
    let running = checked.into_iter().map(|item| match item {
        Ok(work) => {
            let permit = permits.split_one().expect("one permit was taken for each good item");
            let turn = turns.next(&work);
            Either::Left(async move {
                turn.wait().await;
                let result = work.run(state, deadline, permit).await;
                drop(turn);
                result
            })
        }
        Err(error) => Either::Right(ready(Err(error.into()))),
    });
    let mut longest = Timings::default();
    let results = join_all(running).await.into_iter().map(|result| match result {
        Ok((answer, timings)) => {
            longest = longest.longest(timings);
            answer
        }
        Err(problem) => failed(problem, context),
    });
    let answer = Answer { results: results.collect() };
    Ok(([(SERVER_TIMING, server_timing(&longest, context.arrived.elapsed()))], Json(answer)).into_response())
}
