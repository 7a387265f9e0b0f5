//! The `/batch` resources: many events in, as many results out, in order.
//!
//! Each item has a result of its own, so one that is malformed, too long or refused never fails its neighbours. The items of a
//! batch are in work together and meet in the encoder's batches; admission counts each of them. A batch as one JSON document is
//! admitted whole or not at all; `application/x-ndjson` is streamed both ways by [`super::ndjson`].

use axum::Json;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use futures_util::future::Either;
use futures_util::future::{join_all, ready};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::AppState;
use super::admission::Permit;
use super::body::{self, MediaType};
use super::context::{Deadline, NoQuery, RequestContext};
use super::docs::{BatchRequest, Problems};
use super::ndjson;
use super::problem::Problem;
use super::service::ClassifyAnswer;
use crate::decision::Decision;
use crate::error::{Error, ErrorCode};
use crate::event::{Content, Event, EventError, EventWire, cloudevents, split_events};

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
/// Results stand in the order of the events. `application/x-ndjson` in gives one result a line, streamed, of any length.
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
/// Results stand in the order of the events, each decision as durable as one asked for alone. `application/x-ndjson` in gives one
/// result a line, streamed, of any length.
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
    pub(super) fn check(self, event: Result<EventWire, EventError>, state: &AppState) -> Result<Work, Problem> {
        let event = event?;
        match self {
            Self::Classify => Ok(Work::Classify(event.id.clone(), event.into_content(&state.limits)?)),
            Self::Recommend => Ok(Work::Recommend(event.into_event(&state.limits)?)),
        }
    }
}

impl Work {
    /// Does it; the answer is a result object of the batch as JSON text.
    pub(super) async fn run(self, state: &AppState, deadline: Deadline, permit: Permit) -> Result<Box<RawValue>, Problem> {
        match self {
            Self::Classify(event_id, content) => {
                let (answer, _) = state.classify(event_id, content, deadline.at, permit).await?;
                raw(&ClassifyResult { status: 200, body: Some(answer), problem: None })
            }
            Self::Recommend(event) => {
                let decided = state.decide(event, deadline.at, permit).await?;
                raw(&RecommendResult { status: 200, body: Some(decided.decision), problem: None })
            }
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
        MediaType::Ndjson => Ok(ndjson::answer(state, context, deadline.budget, request.into_body(), task)),
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

    let bytes = body::read(body, state).await?;
    let events: Vec<Result<EventWire, EventError>> = match envelope {
        Envelope::Events => split_events(&bytes)?.into_iter().map(EventWire::from_json).collect(),
        Envelope::CloudEvents => {
            let items: Vec<&RawValue> = serde_json::from_slice(&bytes)
                .map_err(|_| Problem::new(ErrorCode::InvalidJson, "a batch of CloudEvents is a JSON array"))?;
            items.into_iter().map(|item| cloudevents::from_structured(item.get().as_bytes())).collect()
        }
    };
    let most = state.config.max_batch_items;
    if events.len() > most {
        let detail = format!("at most {most} events are accepted; `application/x-ndjson` streams any number");
        return Err(Problem::invalid("events", detail));
    }
    let checked: Vec<Result<Work, Problem>> = events.into_iter().map(|event| task.check(event, state)).collect();
    let n_admitted = checked.iter().filter(|item| item.is_ok()).count();
    let mut permits = state.admission.try_admit(n_admitted)?;
    let running = checked.into_iter().map(|item| match item {
        Ok(work) => {
            let permit = permits.split(1).expect("one permit was taken for each good item");
            Either::Left(work.run(state, deadline, permit))
        }
        Err(problem) => Either::Right(ready(Err(problem))),
    });
    let results = join_all(running).await.into_iter().map(|result| result.unwrap_or_else(|problem| failed(problem, context)));
    Ok(Json(Answer { results: results.collect() }).into_response())
}
