//! What every request carries and every answer shows: the request id, the moment of arrival, and problems with their bodies.
//!
//! [`enclose`] is the outermost layer. It is the one place where an answer leaves the service, so whatever went wrong below,
//! down to a panic or an error of a library, becomes a problem with the request id here.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Extension;
use axum::extract::{FromRequestParts, MatchedPath, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tracing::Instrument as _;
use uuid::Uuid;

use super::AppState;
use super::config::ServerConfig;
use super::metrics::Metrics;
use super::problem::Problem;
use crate::decision::Timings;
use crate::error::ErrorCode;

pub(super) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
pub(super) const X_DEADLINE_MS: HeaderName = HeaderName::from_static("x-deadline-ms");
pub(super) const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// A caller's id longer than this is replaced: ids go into every log line.
const MAX_REQUEST_ID_BYTES: usize = 128;

/// The id of a request and when its head had arrived.
#[derive(Debug, Clone)]
pub(super) struct RequestContext {
    pub request_id: Arc<str>,
    pub arrived: Instant,
}

impl RequestContext {
    fn from_headers(headers: &HeaderMap) -> Self {
        let given = headers.get(X_REQUEST_ID).and_then(|value| value.to_str().ok()).filter(|id| is_sane(id));
        let request_id = given.map_or_else(|| Arc::from(Uuid::now_v7().to_string()), Arc::from);
        Self { request_id, arrived: Instant::now() }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for RequestContext {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Extension(context) =
            Extension::<Self>::from_request_parts(parts, state).await.expect("the outermost layer gives every request a context");
        Ok(context)
    }
}

/// When the caller wants the answer by: `X-Deadline-Ms` from arrival, never later than the service's own request timeout.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadline {
    /// From the arrival of the request, or of each line in a stream.
    pub budget: Duration,
    pub at: Instant,
}

impl FromRequestParts<AppState> for Deadline {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, Problem> {
        let context = RequestContext::from_request_parts(parts, state).await?;
        let longest = state.config.request_timeout;
        let budget = match parts.headers.get(X_DEADLINE_MS) {
            None => longest,
            Some(value) => {
                let millis = value.to_str().ok().and_then(|text| text.trim().parse::<u64>().ok());
                let millis = millis.ok_or_else(|| {
                    Problem::invalid(X_DEADLINE_MS.as_str(), "must be a whole number of milliseconds, at least 0")
                })?;
                Duration::from_millis(millis).min(longest)
            }
        };
        if budget.is_zero() {
            return Err(crate::error::Error::DeadlineExceeded.into());
        }
        Ok(Self { budget, at: context.arrived + budget })
    }
}

/// Refuses query parameters, so that a misspelt or not yet supported one is never ignored in silence.
#[derive(Debug, Clone, Copy)]
pub(super) struct NoQuery;

impl<S: Send + Sync> FromRequestParts<S> for NoQuery {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Problem> {
        match parts.uri.query() {
            None | Some("") => Ok(Self),
            Some(_) => Err(Problem::new(ErrorCode::InvalidRequest, "this resource takes no query parameters").with_field("query")),
        }
    }
}

/// Whether the caller asked for the explanation: `?explain=true`. Any other parameter is refused.
#[derive(Debug, Clone, Copy)]
pub(super) struct Explain(pub(super) bool);

impl<S: Send + Sync> FromRequestParts<S> for Explain {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Problem> {
        match parts.uri.query() {
            None | Some("" | "explain=false") => Ok(Self(false)),
            Some("explain=true") => Ok(Self(true)),
            Some(_) => {
                let detail = "the only query parameter is `explain`, which is `true` or `false`";
                Err(Problem::new(ErrorCode::InvalidRequest, detail).with_field("query"))
            }
        }
    }
}

/// What the outermost layer needs of the service.
#[derive(Debug, Clone)]
pub(super) struct Enclosure {
    pub(super) config: Arc<ServerConfig>,
    pub(super) metrics: Metrics,
}

/// The outermost layer: see the module.
pub(super) async fn enclose(State(enclosure): State<Enclosure>, mut request: Request, next: Next) -> Response {
    let context = RequestContext::from_headers(request.headers());
    let route = request.extensions().get::<MatchedPath>().map_or_else(|| "unmatched".to_owned(), |path| path.as_str().to_owned());
    let method = request.method().clone();
    let span = tracing::info_span!("request", request_id = %context.request_id, %method, route);
    let response = match oversized_head(&request, &enclosure.config) {
        Some(problem) => problem.into_response(),
        None => {
            request.extensions_mut().insert(context.clone());
            next.run(request).instrument(span.clone()).await
        }
    };
    let response = finish(response, &context.request_id);
    let elapsed = context.arrived.elapsed();
    enclosure.metrics.request(&route, &method, response.status(), elapsed);
    let _entered = span.enter();
    tracing::debug!(status = response.status().as_u16(), elapsed_ms = elapsed.as_secs_f64() * 1e3, "answered");
    response
}

/// The value of `Server-Timing`, in milliseconds.
pub(super) fn server_timing(timings: &Timings, total: Duration) -> HeaderValue {
    let rooms = [
        ("tokenize", timings.tokenize),
        ("queue", timings.queue),
        ("encode", timings.encode),
        ("risk", timings.risk),
        ("policy", timings.policy),
        ("commit", timings.commit),
        ("total", total),
    ];
    let entries: Vec<String> = rooms.iter().map(|(room, time)| format!("{room};dur={:.3}", time.as_secs_f64() * 1e3)).collect();
    HeaderValue::from_str(&entries.join(", ")).expect("names and decimals are visible ASCII")
}

fn oversized_head(request: &Request, config: &ServerConfig) -> Option<Problem> {
    let uri_bytes = request.uri().path_and_query().map_or(0, |target| target.as_str().len());
    if uri_bytes > config.max_uri_bytes {
        return Some(Problem::from_status(StatusCode::URI_TOO_LONG));
    }
    let header_bytes: usize = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    (header_bytes > config.max_header_bytes).then(|| Problem::from_status(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE))
}

fn finish(mut response: Response, request_id: &str) -> Response {
    let problem = response.extensions_mut().remove::<Problem>();
    let status = response.status();
    let failed = status.is_client_error() || status.is_server_error();
    if let Some(problem) = problem.or_else(|| failed.then(|| Problem::from_status(status))) {
        let mut rendered = problem.with_request_id(request_id).render();
        // A 405 keeps its `Allow`; body headers belong to the body that was replaced.
        for (name, value) in response.headers() {
            if !name.as_str().starts_with("content-") {
                rendered.headers_mut().entry(name).or_insert_with(|| value.clone());
            }
        }
        response = rendered;
    }
    let value = HeaderValue::from_str(request_id).expect("a request id is visible ASCII");
    response.headers_mut().insert(X_REQUEST_ID, value);
    response
}

/// Only what a log line, a header and a shell can carry unchanged.
fn is_sane(id: &str) -> bool {
    (1..=MAX_REQUEST_ID_BYTES).contains(&id.len())
        && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:/+=@".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_id_is_kept_only_where_a_log_line_can_carry_it() {
        #[track_caller]
        fn check(id: &str, expected: bool) {
            assert_eq!(is_sane(id), expected, "{id:?}");
        }

        check("7f1c-abc_1.2:3/4+5=@", true);
        check(&"a".repeat(MAX_REQUEST_ID_BYTES), true);
        check(&"a".repeat(MAX_REQUEST_ID_BYTES + 1), false);
        check("", false);
        check("two words", false);
        check("a\"b", false);
        check("naïve", false);
    }
}
