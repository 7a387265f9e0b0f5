//! The one error of the service, and the small closed set of codes that callers may rely on.
//!
//! It refuses to know HTTP: `http/problem.rs` maps a code to a status and a body.

use std::time::Duration;

use crate::batching::BatchingError;
use crate::event::EventError;
use crate::store::StoreError;
use crate::text::TextError;

/// Whatever can go wrong between a request and its answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the event is not acceptable: {0}")]
    Event(#[from] EventError),
    #[error("the event `id` was decided before with another body")]
    Conflict,
    #[error("no decision has this id")]
    DecisionNotFound,
    #[error("too many requests are waiting")]
    Overloaded { retry_after: Duration },
    #[error("the deadline passed before the answer was ready")]
    DeadlineExceeded,
    #[error("the service is not ready: {reason}")]
    Unavailable { reason: &'static str },
    #[error("the store failed")]
    Store(#[source] StoreError),
    #[error("an invariant broke: {invariant}")]
    Internal { invariant: &'static str },
}

/// What a caller may switch on. Adding a code is an API change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    InvalidJson,
    InvalidRequest,
    UnsupportedMediaType,
    PayloadTooLarge,
    UriTooLong,
    HeadersTooLarge,
    RequestTimeout,
    NotFound,
    MethodNotAllowed,
    Conflict,
    Overloaded,
    DeadlineExceeded,
    Unavailable,
    Internal,
}

impl Error {
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Event(error) if error.malformed => ErrorCode::InvalidJson,
            Self::Event(_) => ErrorCode::InvalidRequest,
            Self::Conflict => ErrorCode::Conflict,
            Self::DecisionNotFound => ErrorCode::NotFound,
            Self::Overloaded { .. } => ErrorCode::Overloaded,
            Self::DeadlineExceeded => ErrorCode::DeadlineExceeded,
            Self::Unavailable { .. } | Self::Store(_) => ErrorCode::Unavailable,
            Self::Internal { .. } => ErrorCode::Internal,
        }
    }
}

impl ErrorCode {
    /// Every code, in the order of the documentation.
    pub const ALL: [Self; 14] = [
        Self::InvalidJson,
        Self::InvalidRequest,
        Self::UnsupportedMediaType,
        Self::PayloadTooLarge,
        Self::UriTooLong,
        Self::HeadersTooLarge,
        Self::RequestTimeout,
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::Conflict,
        Self::Overloaded,
        Self::DeadlineExceeded,
        Self::Unavailable,
        Self::Internal,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidJson => "invalid_json",
            Self::InvalidRequest => "invalid_request",
            Self::UnsupportedMediaType => "unsupported_media_type",
            Self::PayloadTooLarge => "payload_too_large",
            Self::UriTooLong => "uri_too_long",
            Self::HeadersTooLarge => "headers_too_large",
            Self::RequestTimeout => "request_timeout",
            Self::NotFound => "not_found",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::Conflict => "conflict",
            Self::Overloaded => "overloaded",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::Unavailable => "unavailable",
            Self::Internal => "internal",
        }
    }

    /// Whether the same request may succeed later without a change.
    pub fn retryable(self) -> bool {
        match self {
            Self::RequestTimeout | Self::Overloaded | Self::DeadlineExceeded | Self::Unavailable => true,
            Self::InvalidJson
            | Self::InvalidRequest
            | Self::UnsupportedMediaType
            | Self::PayloadTooLarge
            | Self::UriTooLong
            | Self::HeadersTooLarge
            | Self::NotFound
            | Self::MethodNotAllowed
            | Self::Conflict
            | Self::Internal => false,
        }
    }
}

impl From<BatchingError> for Error {
    fn from(error: BatchingError) -> Self {
        match error {
            BatchingError::QueueFull { retry_after } | BatchingError::QueueTooSlow { retry_after } => {
                Self::Overloaded { retry_after }
            }
            BatchingError::DeadlineExceeded => Self::DeadlineExceeded,
            BatchingError::WorkerGone | BatchingError::Encoder(_) => Self::Unavailable { reason: "the encoder gave no answer" },
        }
    }
}

impl From<TextError> for Error {
    fn from(error: TextError) -> Self {
        match error {
            TextError::TooLong { max_chars } => Self::Event(EventError::invalid(
                "narrative",
                format!("at most {max_chars} characters are accepted, counted after compatibility characters are written out"),
            )),
            TextError::DeadlineExceeded => Self::DeadlineExceeded,
            TextError::InvalidTokenizer(_)
            | TextError::UnsupportedTokenizer { .. }
            | TextError::MaxTokensTooSmall { .. }
            | TextError::NoWindows
            | TextError::InvalidConfig { .. }
            | TextError::Tokenize(_)
            | TextError::Panicked
            | TextError::Spawn(_)
            | TextError::WorkerGone => Self::Unavailable { reason: "the tokenizer gave no answer" },
        }
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Conflict => Self::Conflict,
            StoreError::NotFound => Self::DecisionNotFound,
            other => Self::Store(other),
        }
    }
}
