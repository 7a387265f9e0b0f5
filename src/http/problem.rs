//! The only place that turns an [`ErrorCode`] into a status and an RFC 9457 body.
//!
//! A handler answers `Err(Problem)`. As a response a problem travels without a body, in the response's extensions, because only
//! the outermost layer ([`super::context`]) knows the request id that belongs in it. It refuses to say why a 5xx happened: the
//! log has the chain, once.

use std::error::Error as _;
use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::error::{Error, ErrorCode};
use crate::event::EventError;

/// Media type of every answer that is not a success.
pub const PROBLEM_JSON: &str = "application/problem+json";

/// Why a request was not answered with what it asked for (RFC 9457).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// A URN that names the kind of problem: `urn:sluice:problem:` and the code.
    pub r#type: String,
    /// The kind in words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What was wrong this time and what is accepted instead; never a value of the caller.
    pub detail: String,
    /// What a program may switch on.
    pub code: String,
    /// Whether the same request may succeed later without a change.
    pub retryable: bool,
    /// The id under which the service logged this request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// Path of the field at fault, as in `order.lines[0].ordered`, or the name of a header or query parameter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// Line of the input file, in bulk runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<u64>,
    #[serde(skip)]
    retry_after: Option<Duration>,
}

impl Problem {
    pub fn new(code: ErrorCode, detail: impl Into<String>) -> Self {
        Self {
            r#type: format!("urn:sluice:problem:{}", code.as_str()),
            title: title(code).to_owned(),
            status: status(code).as_u16(),
            detail: detail.into(),
            code: code.as_str().to_owned(),
            retryable: code.retryable(),
            request_id: None,
            field: None,
            line: None,
            retry_after: None,
        }
    }

    /// A request whose `field` is at fault.
    pub fn invalid(field: &str, detail: impl Into<String>) -> Self {
        Self::new(ErrorCode::InvalidRequest, detail).with_field(field)
    }

    /// An answer that some layer below gave without saying more than a status.
    pub(super) fn from_status(answered: StatusCode) -> Self {
        let code = ErrorCode::ALL.into_iter().find(|code| status(*code) == answered);
        let code = code.unwrap_or(if answered.is_client_error() { ErrorCode::InvalidRequest } else { ErrorCode::Internal });
        Self { status: answered.as_u16(), ..Self::new(code, fixed_detail(code)) }
    }

    pub fn with_field(mut self, field: &str) -> Self {
        self.field = (!field.is_empty()).then(|| field.to_owned());
        self
    }

    pub fn with_line(mut self, line: u64) -> Self {
        self.line = Some(line);
        self
    }

    pub fn with_request_id(mut self, request_id: &str) -> Self {
        self.request_id = Some(request_id.to_owned());
        self
    }

    /// When to come again, where the refusal passes by itself.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// The finished answer, body included.
    pub(super) fn render(&self) -> Response {
        let body = serde_json::to_vec(self).expect("a problem holds strings, integers and bools only");
        let status = StatusCode::from_u16(self.status).expect("a problem is made from a status");
        let mut response = (status, [(header::CONTENT_TYPE, PROBLEM_JSON)], body).into_response();
        if let Some(retry_after) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(whole_seconds(retry_after)));
        }
        response
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = StatusCode::from_u16(self.status).expect("a problem is made from a status").into_response();
        response.extensions_mut().insert(self);
        response
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let code = error.code();
        if status(code).is_server_error() && code != ErrorCode::DeadlineExceeded {
            tracing::error!(error = &error as &dyn std::error::Error, cause = error.source(), "a request failed");
        }
        match error {
            Error::Event(error) => Self::new(code, error.message).with_field(&error.field),
            Error::Overloaded { retry_after } => Self { retry_after: Some(retry_after), ..Self::new(code, fixed_detail(code)) },
            Error::DecisionNotFound => Self::new(code, "no decision has this id"),
            Error::Conflict | Error::DeadlineExceeded | Error::Unavailable { .. } | Error::Store(_) | Error::Internal { .. } => {
                Self::new(code, fixed_detail(code))
            }
        }
    }
}

impl From<EventError> for Problem {
    fn from(error: EventError) -> Self {
        Error::Event(error).into()
    }
}

/// The status of each code.
pub fn status(code: ErrorCode) -> StatusCode {
    match code {
        ErrorCode::InvalidJson => StatusCode::BAD_REQUEST,
        ErrorCode::InvalidRequest => StatusCode::UNPROCESSABLE_ENTITY,
        ErrorCode::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
        ErrorCode::PayloadTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        ErrorCode::UriTooLong => StatusCode::URI_TOO_LONG,
        ErrorCode::HeadersTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        ErrorCode::RequestTimeout => StatusCode::REQUEST_TIMEOUT,
        ErrorCode::NotFound => StatusCode::NOT_FOUND,
        ErrorCode::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
        ErrorCode::Conflict => StatusCode::CONFLICT,
        ErrorCode::Overloaded => StatusCode::TOO_MANY_REQUESTS,
        ErrorCode::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        ErrorCode::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        ErrorCode::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

fn title(code: ErrorCode) -> &'static str {
    match code {
        ErrorCode::InvalidJson => "The body is not JSON",
        ErrorCode::InvalidRequest => "The request is not acceptable",
        ErrorCode::UnsupportedMediaType => "The content type is not accepted",
        ErrorCode::PayloadTooLarge => "The body is too large",
        ErrorCode::UriTooLong => "The address is too long",
        ErrorCode::HeadersTooLarge => "The headers are too large",
        ErrorCode::RequestTimeout => "The request arrived too slowly",
        ErrorCode::NotFound => "Nothing is here",
        ErrorCode::MethodNotAllowed => "The method is not allowed here",
        ErrorCode::Conflict => "The event was decided before with another body",
        ErrorCode::Overloaded => "Too many requests are waiting",
        ErrorCode::DeadlineExceeded => "The deadline passed",
        ErrorCode::Unavailable => "The service is not ready",
        ErrorCode::Internal => "The service failed",
    }
}

/// What a problem says where the occasion adds nothing, and what the documentation says of each code.
fn fixed_detail(code: ErrorCode) -> &'static str {
    match code {
        ErrorCode::InvalidJson => "the bytes of the body do not parse as JSON",
        ErrorCode::InvalidRequest => "a field, header or query parameter has the wrong type or value; `field` names it",
        ErrorCode::UnsupportedMediaType => "send `application/json` in UTF-8, without a content encoding",
        ErrorCode::PayloadTooLarge => "the body or one line of it is over the limit of the service",
        ErrorCode::UriTooLong => "path and query are over the limit of the service",
        ErrorCode::HeadersTooLarge => "the header fields together are over the limit of the service",
        ErrorCode::RequestTimeout => "the body did not arrive in time",
        ErrorCode::NotFound => "no resource has this address",
        ErrorCode::MethodNotAllowed => "`Allow` lists the methods of this resource",
        ErrorCode::Conflict => "this tenant, source and id were decided with another body; a changed event needs a new id",
        ErrorCode::Overloaded => "the service works at its limit; send the request again after `Retry-After` seconds",
        ErrorCode::DeadlineExceeded => {
            "the answer was not ready in time; a decision may still have been recorded, and sending the event again gives it"
        }
        ErrorCode::Unavailable => "a part of the service gives no answer at the moment",
        ErrorCode::Internal => "the log of the service has the cause under the request id",
    }
}

/// `docs/errors.md`: every code with its status and meaning.
pub fn documentation() -> String {
    let mut page = String::from(
        "# Errors\n\n\
         Every answer that is not a success is `application/problem+json` (RFC 9457) with `type`, `title`, `status`, `detail`, `code`,\n\
         `retryable`, `request_id` and, where one is at fault, `field`. Programs switch on `code`; `detail` is for people and may change.\n\
         The service itself never sees a request that is not HTTP: it is answered by the transport with a bare 400 or 431.\n\n\
         | code | status | retryable | meaning |\n|---|---|---|---|\n",
    );
    for code in ErrorCode::ALL {
        let retryable = if code.retryable() { "yes" } else { "no" };
        let row = format!("| `{}` | {} | {retryable} | {} |\n", code.as_str(), status(code).as_u16(), fixed_detail(code));
        page.push_str(&row);
    }
    page
}

/// `Retry-After` counts whole seconds; less than one would read as "at once".
fn whole_seconds(duration: Duration) -> u64 {
    duration.as_millis().div_ceil(1000).max(1).try_into().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_a_status_of_its_own() {
        let statuses: std::collections::BTreeSet<u16> = ErrorCode::ALL.into_iter().map(|code| status(code).as_u16()).collect();
        assert_eq!(statuses.len(), ErrorCode::ALL.len());
    }

    #[test]
    fn retry_after_rounds_up_to_whole_seconds() {
        #[track_caller]
        fn check(millis: u64, expected: u64) {
            assert_eq!(whole_seconds(Duration::from_millis(millis)), expected);
        }

        check(0, 1);
        check(1, 1);
        check(1000, 1);
        check(1001, 2);
    }

    #[test]
    fn a_server_error_hides_its_cause() {
        let problem = Problem::from(Error::Internal { invariant: "the secret invariant" });
        let body = serde_json::to_string(&problem).unwrap();
        assert!(!body.contains("secret"), "{body}");
    }
}
