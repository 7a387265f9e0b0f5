//! `POST /v1/recommend`: a decision, durable before the answer.

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};

use super::AppState;
use super::body;
use super::context::{Deadline, Explain, RequestContext, SERVER_TIMING, server_timing};
use super::docs::{EventRequest, Problems};
use super::problem::Problem;
use super::service::Ask;
use crate::decision::Decision;
use crate::event::EventWire;

/// Decide one exception
///
/// What it is, what is at stake, what to do next, and whether a machine may do it alone. The decision is on disk before the
/// answer. `(tenant, source, id)` is the idempotency key: the same event again gets the same decision, another body 409. With `explain=true` a new decision says
/// which parts of the narrative carried its classification.
#[utoipa::path(
    post,
    path = "/v1/recommend",
    tag = "decisions",
    request_body = inline(EventRequest),
    params(("explain" = Option<bool>, Query), ("X-Request-Id" = Option<String>, Header), ("X-Deadline-Ms" = Option<u64>, Header)),
    responses((status = 200, description = "The decision, recorded", body = Decision), Problems)
)]
pub(super) async fn recommend(
    State(state): State<AppState>,
    context: RequestContext,
    Explain(explain): Explain,
    deadline: Deadline,
    request: Request,
) -> Result<Response, Problem> {
    let (event, held) = body::read_event(request, &state, EventWire::into_event).await?;
    let ask = Ask { deadline: deadline.at, explain };
    let permit = state.admit(ask.n_texts(), held)?;
    let decided = state.decide(event, ask, permit).await?;
    Ok(([(SERVER_TIMING, server_timing(&decided.timings, context.arrived.elapsed()))], Json(decided.decision)).into_response())
}
