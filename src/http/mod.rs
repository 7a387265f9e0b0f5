//! HTTP: requests in, answers and problems out.
//!
//! One file a resource; [`service`] is where all of them meet the pipeline. [`context`] is the outermost layer and [`problem`] the
//! one place that knows statuses. It refuses business logic: what an answer says is decided elsewhere. Next: `decision.rs`, which
//! every request ends up in.

pub mod admission;
mod batch;
mod body;
pub mod budget;
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
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use tokio_util::task::TaskTracker;
use tower_http::catch_panic::CatchPanicLayer;

pub use batch::{ClassifyBatchAnswer, ClassifyResult, RecommendBatchAnswer, RecommendResult};
pub use service::ClassifyAnswer;

use self::admission::Admission;
use self::budget::BodyBudget;
use self::config::ServerConfig;
use self::context::Enclosure;
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
    pub bodies: BodyBudget,
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
    let enclosure = Enclosure { config: Arc::clone(&state.config), metrics: state.metrics.clone() };
    let resources = Router::new()
        .nest("/v1", decisions.clone())
        .merge(decisions)
        .route("/v1/decisions/{id}", get(decisions::decision))
        .route("/livez", get(health::livez))
        .route("/readyz", get(health::readyz))
        .route("/metrics", get(metrics::metrics))
        .route("/openapi.json", get(docs::openapi))
        .route("/docs", get(docs::index))
        .route("/docs/", get(docs::first_page))
        .route("/docs/{*path}", get(docs::page));
    enclosed(resources, enclosure).with_state(state)
}

/// `resources` with the answers that no resource gives: unknown address, wrong method, panic, oversized head.
fn enclosed<S: Clone + Send + Sync + 'static>(resources: Router<S>, enclosure: Enclosure) -> Router<S> {
    resources
        .method_not_allowed_fallback(async || Problem::from_status(StatusCode::METHOD_NOT_ALLOWED))
        .fallback(async || Problem::from_status(StatusCode::NOT_FOUND))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(axum::middleware::from_fn_with_state(enclosure, context::enclose))
}

/// The panic itself is in the log through the panic hook.
fn panicked(_panic: Box<dyn Any + Send>) -> Response {
    Problem::from_status(StatusCode::INTERNAL_SERVER_ERROR).into_response()
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::http::{Request, header};
    use http_body_util::BodyExt as _;
    use tower::ServiceExt as _;

    use super::*;
    use crate::bundle::BundleIdentity;
    use crate::config::RawConfig;

    fn router() -> Router {
        let identity = BundleIdentity { name: "test".to_owned(), version: "1".to_owned(), hash: "00".to_owned() };
        let config = RawConfig::defaults().check().unwrap().server;
        let resources = Router::new()
            .route("/panic", get(async || -> Response { panic!("with a secret") }))
            .route("/bare", get(async || StatusCode::IM_A_TEAPOT))
            .route("/good", get(async || "good"));
        enclosed(resources, Enclosure { config: Arc::new(config), metrics: Metrics::new(&identity) })
    }

    /// Checks status, code and request id of the answer, and gives its body.
    #[track_caller]
    fn check(request: Request<Body>, expected: (u16, Option<&str>)) -> impl Future<Output = String> {
        let answer = router().oneshot(request);
        async move {
            let response = answer.await.unwrap();
            let (parts, body) = response.into_parts();
            let body = String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
            assert_eq!(parts.status.as_u16(), expected.0, "{body}");
            let request_id = parts.headers["x-request-id"].to_str().unwrap();
            if let Some(code) = expected.1 {
                assert_eq!(parts.headers[header::CONTENT_TYPE], problem::PROBLEM_JSON);
                let problem: Problem = serde_json::from_str(&body).unwrap();
                assert_eq!((problem.status, problem.code.as_str()), (expected.0, code));
                assert_eq!(problem.request_id.as_deref(), Some(request_id));
            }
            body
        }
    }

    fn request(method: &str, uri: &str) -> Request<Body> {
        Request::builder().method(method).uri(uri).body(Body::empty()).unwrap()
    }

    #[tokio::test]
    async fn whatever_goes_wrong_below_is_a_problem() {
        let body = check(request("GET", "/panic"), (500, Some("internal"))).await;
        assert!(!body.contains("secret"), "{body}");
        check(request("GET", "/bare"), (418, Some("invalid_request"))).await;
        check(request("GET", "/nowhere"), (404, Some("not_found"))).await;
        check(request("POST", "/good"), (405, Some("method_not_allowed"))).await;
        check(request("GET", &format!("/good?{}", "a".repeat(9000))), (414, Some("uri_too_long"))).await;
        let mut large = request("GET", "/good");
        large.headers_mut().insert("x-large", "a".repeat(40_000).parse().unwrap());
        check(large, (431, Some("headers_too_large"))).await;
        assert_eq!(check(request("GET", "/good"), (200, None)).await, "good");
    }
}
