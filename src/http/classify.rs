//! `POST /v1/classify`: what an exception is and what is at stake, nothing recorded.

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};

use super::AppState;
use super::body;
use super::context::{Deadline, Explain, RequestContext, SERVER_TIMING, server_timing};
use super::docs::{EventRequest, Problems};
use super::problem::Problem;
use super::service::{Ask, ClassifyAnswer};
use crate::event::{EventLimits, EventWire};

/// Classify one exception
///
/// Names what blocks the order and scores what is at stake. Nothing is recorded; `id`, `source` and `occurred_at` may be missing. With `explain=true` the
/// answer says which parts of the narrative carried it.
#[utoipa::path(
    post,
    path = "/v1/classify",
    tag = "decisions",
    request_body = inline(EventRequest),
    params(("explain" = Option<bool>, Query), ("X-Request-Id" = Option<String>, Header), ("X-Deadline-Ms" = Option<u64>, Header)),
    responses((status = 200, description = "The classification and what is at stake", body = ClassifyAnswer), Problems)
)]
pub(super) async fn classify(
    State(state): State<AppState>,
    context: RequestContext,
    Explain(explain): Explain,
    deadline: Deadline,
    request: Request,
) -> Result<Response, Problem> {
    let check = |event: EventWire, limits: &EventLimits| Ok((event.id.clone(), event.into_content(limits)?));
    let ((event_id, content), held) = body::read_event(request, &state, check).await?;
    let ask = Ask { deadline: deadline.at, explain };
    let permit = state.admit(ask.n_texts(), held)?;
    let (answer, timings) = state.classify(event_id, &content, ask, permit).await?;
    Ok(([(SERVER_TIMING, server_timing(&timings, context.arrived.elapsed()))], Json(answer)).into_response())
}
