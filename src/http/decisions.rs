//! `GET /v1/decisions/{id}`: one recorded decision.

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};

use super::AppState;
use super::context::NoQuery;
use super::docs::Problems;
use super::problem::Problem;
use crate::decision::Decision;
use crate::error::{Error, ErrorCode};

/// One recorded decision
#[utoipa::path(
    get,
    path = "/v1/decisions/{id}",
    tag = "decisions",
    params(("id" = String, Path, description = "`decision_id` of the answer"), ("X-Request-Id" = Option<String>, Header)),
    responses((status = 200, description = "The decision as it was recorded", body = Decision), Problems)
)]
pub(super) async fn decision(
    State(state): State<AppState>,
    _: NoQuery,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Decision>, Problem> {
    let Path(id) = id.map_err(|_| Problem::new(ErrorCode::InvalidRequest, "the id is not UTF-8").with_field("id"))?;
    let decision = state.pipeline.store.decision(&id).await.map_err(Error::from)?;
    Ok(Json(decision))
}
