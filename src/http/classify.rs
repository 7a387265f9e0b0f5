//! `POST /v1/classify`: what an exception is and what is at stake, nothing recorded.

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};

use super::AppState;
use super::body;
use super::context::{Deadline, NoQuery, RequestContext, SERVER_TIMING, server_timing};
use super::docs::{EventRequest, Problems};
use super::problem::Problem;
use super::service::ClassifyAnswer;
use crate::event::{EventLimits, EventWire};

/// Classify one exception
///
/// Names what blocks the order and scores what is at stake. Nothing is recorded; `id`, `source` and `occurred_at` may be missing.
#[utoipa::path(
    post,
    path = "/v1/classify",
    tag = "decisions",
    request_body = inline(EventRequest),
    params(("X-Request-Id" = Option<String>, Header), ("X-Deadline-Ms" = Option<u64>, Header)),
    responses((status = 200, description = "The classification and what is at stake", body = ClassifyAnswer), Problems)
)]
pub(super) async fn classify(
    State(state): State<AppState>,
    context: RequestContext,
    _: NoQuery,
    deadline: Deadline,
    request: Request,
) -> Result<Response, Problem> {
    let check = |event: EventWire, limits: &EventLimits| Ok((event.id.clone(), event.into_content(limits)?));
    let ((event_id, content), held) = body::read_event(request, &state, check).await?;
    let permit = state.admit(1, held)?;
    let (answer, timings) = state.classify(event_id, &content, deadline.at, permit).await?;
    Ok(([(SERVER_TIMING, server_timing(&timings, context.arrived.elapsed()))], Json(answer)).into_response())
}
