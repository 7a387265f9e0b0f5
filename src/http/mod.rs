//! HTTP: requests in, answers and problems out.
//!
//! One file a resource; [`service`] is where all of them meet the pipeline. [`context`] is the outermost layer and [`problem`] the
//! one place that knows statuses. It refuses business logic: what an answer says is decided elsewhere. Next: `decision.rs`, which
//! every request ends up in.

pub mod admission;
mod batch;
mod body;
mod classify;
pub mod config;
mod context;
mod decisions;
pub mod docs;
pub mod health;
pub mod metrics;
mod ndjson;
pub mod problem;
mod recommend;
pub mod server;
mod service;

use std::any::Any;
use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use tokio_util::task::TaskTracker;
use tower_http::catch_panic::CatchPanicLayer;

pub use batch::{ClassifyBatchAnswer, ClassifyResult, RecommendBatchAnswer, RecommendResult};
pub use service::ClassifyAnswer;

use self::admission::Admission;
use self::config::ServerConfig;
use self::health::Readiness;
use self::metrics::Metrics;
use self::problem::Problem;
use crate::decision::Pipeline;
use crate::event::EventLimits;

/// What handlers share. Cloning shares it.
#[derive(Debug, Clone)]
pub struct AppState {
    pub pipeline: Arc<Pipeline>,
    pub limits: EventLimits,
    pub config: Arc<ServerConfig>,
    pub admission: Admission,
    pub metrics: Metrics,
    pub readiness: Readiness,
    /// The encoder's engine, for `/readyz`.
    pub engine: Arc<str>,
    /// Decisions in work, which outlive their callers; shutdown waits for them.
    pub tasks: TaskTracker,
}

/// Every resource of the service.
pub fn router(state: AppState) -> Router {
    let decisions = Router::new()
        .route("/classify", post(classify::classify))
        .route("/recommend", post(recommend::recommend))
        .route("/classify/batch", post(batch::classify))
        .route("/recommend/batch", post(batch::recommend));
    Router::new()
        .nest("/v1", decisions.clone())
        .merge(decisions)
        .route("/v1/decisions/{id}", get(decisions::decision))
        .route("/livez", get(health::livez))
        .route("/readyz", get(health::readyz))
        .route("/metrics", get(metrics::metrics))
        .route("/openapi.json", get(docs::openapi))
        .route("/docs", get(docs::index))
        .route("/docs/", get(docs::page))
        .route("/docs/{*path}", get(docs::page))
        .method_not_allowed_fallback(async || Problem::from_status(StatusCode::METHOD_NOT_ALLOWED))
        .fallback(async || Problem::from_status(StatusCode::NOT_FOUND))
        .layer(CatchPanicLayer::custom(panicked))
        // `body::read` has the limit that counts, with an answer of its own.
        .layer(DefaultBodyLimit::disable())
        .layer(axum::middleware::from_fn_with_state(state.clone(), context::enclose))
        .with_state(state)
}

/// The panic itself is in the log through the panic hook.
fn panicked(_panic: Box<dyn Any + Send>) -> Response {
    Problem::from_status(StatusCode::INTERNAL_SERVER_ERROR).into_response()
}
