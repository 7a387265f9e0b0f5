//! Reading a request body: its type is checked before, its size and its pace while it is read.

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, header};
use futures_util::StreamExt as _;

use super::AppState;
use super::problem::Problem;
use crate::error::ErrorCode;
use crate::event::{EventWire, cloudevents};

/// How much of an oversized body is read and thrown away, in multiples of the limit. A caller who is still sending when the
/// connection closes would see a reset instead of the 413.
const DISCARD_FACTOR: usize = 16;

/// What the caller says the body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MediaType {
    Json,
    Ndjson,
    CloudEvent,
    CloudEventBatch,
}

impl MediaType {
    /// # Errors
    /// 415 where the body is of no accepted type, not UTF-8, or encoded.
    pub(super) fn of(headers: &HeaderMap) -> Result<Self, Problem> {
        let refusal = |detail: &str| Problem::new(ErrorCode::UnsupportedMediaType, detail).with_field("content-type");
        if headers.get(header::CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity") {
            return Err(Problem::new(
                ErrorCode::UnsupportedMediaType,
                "content encodings are not accepted; send the body as it is",
            )
            .with_field("content-encoding"));
        }
        let value = headers.get(header::CONTENT_TYPE).ok_or_else(|| refusal("is required: `application/json`"))?;
        let value = value.to_str().map_err(|_| refusal("must be `application/json`"))?;
        let mut parts = value.split(';').map(str::trim);
        let essence = parts.next().unwrap_or_default().to_ascii_lowercase();
        let foreign_charset = parts.filter_map(|parameter| parameter.split_once('=')).any(|(name, charset)| {
            name.eq_ignore_ascii_case("charset") && !charset.trim_matches('"').eq_ignore_ascii_case("utf-8")
        });
        if foreign_charset {
            return Err(refusal("JSON is UTF-8; no other charset is accepted"));
        }
        match essence.as_str() {
            "application/json" => Ok(Self::Json),
            "application/x-ndjson" => Ok(Self::Ndjson),
            "application/cloudevents+json" => Ok(Self::CloudEvent),
            "application/cloudevents-batch+json" => Ok(Self::CloudEventBatch),
            _ => Err(refusal(
                "must be `application/json`, or where the resource takes it `application/x-ndjson` or `application/cloudevents+json`",
            )),
        }
    }
}

/// One event in a request body: plain JSON or a CloudEvent in structured or binary mode.
#[derive(Debug)]
pub(super) struct EventBody(pub EventWire);

impl FromRequest<AppState> for EventBody {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, Problem> {
        let media_type = MediaType::of(request.headers())?;
        let attributes = cloudevents::binary_attributes(
            request.headers().iter().filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?))),
        );
        if matches!(media_type, MediaType::Ndjson | MediaType::CloudEventBatch) {
            return Err(Problem::new(
                ErrorCode::UnsupportedMediaType,
                "this resource takes one event; send several to its `/batch`",
            )
            .with_field("content-type"));
        }
        let bytes = read(request.into_body(), state).await?;
        let event = match (media_type, attributes) {
            (MediaType::CloudEvent, _) => cloudevents::from_structured(&bytes)?,
            (_, Some(attributes)) => cloudevents::from_binary(attributes, &bytes)?,
            (_, None) => EventWire::from_json(&bytes)?,
        };
        Ok(Self(event))
    }
}

/// Reads a whole body.
///
/// # Errors
/// 413 over the limit, 408 where it does not arrive in time, 422 where the caller breaks it off.
pub(super) async fn read(body: Body, state: &AppState) -> Result<Bytes, Problem> {
    let timeout = state.config.body_read_timeout;
    let reading = read_all(body, state.config.max_body_bytes);
    tokio::time::timeout(timeout, reading).await.map_err(|_| too_slow())?
}

pub(super) fn too_slow() -> Problem {
    Problem::new(ErrorCode::RequestTimeout, "the body did not arrive in time")
}

pub(super) fn broken_off() -> Problem {
    Problem::new(ErrorCode::InvalidRequest, "the body broke off before its end")
}

pub(super) fn too_large(max_bytes: usize) -> Problem {
    Problem::new(ErrorCode::PayloadTooLarge, format!("at most {max_bytes} bytes are accepted"))
}

async fn read_all(body: Body, max_bytes: usize) -> Result<Bytes, Problem> {
    let mut chunks = body.into_data_stream();
    let mut whole = Vec::new();
    let mut n_bytes = 0_usize;
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|_| broken_off())?;
        n_bytes += chunk.len();
        if n_bytes <= max_bytes {
            whole.extend_from_slice(&chunk);
        } else if n_bytes > max_bytes.saturating_mul(DISCARD_FACTOR) {
            break;
        } else {
            // Nothing of it will be used, so its memory goes at once.
            whole = Vec::new();
        }
    }
    if n_bytes > max_bytes { Err(too_large(max_bytes)) } else { Ok(Bytes::from(whole)) }
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderName, HeaderValue};

    use super::*;

    #[test]
    fn the_content_type_decides_how_a_body_is_read() {
        #[track_caller]
        fn check(headers: &[(HeaderName, &str)], expected: Option<MediaType>) {
            let headers = headers.iter().map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap())).collect();
            assert_eq!(MediaType::of(&headers).ok(), expected, "{headers:?}");
        }

        let content_type = header::CONTENT_TYPE;
        check(&[(content_type.clone(), "application/json")], Some(MediaType::Json));
        check(&[(content_type.clone(), "Application/JSON; charset=UTF-8")], Some(MediaType::Json));
        check(&[(content_type.clone(), "application/json;charset=\"utf-8\"")], Some(MediaType::Json));
        check(&[(content_type.clone(), "application/json; charset=latin1")], None);
        check(&[(content_type.clone(), "application/x-ndjson")], Some(MediaType::Ndjson));
        check(&[(content_type.clone(), "application/cloudevents+json; charset=utf-8")], Some(MediaType::CloudEvent));
        check(&[(content_type.clone(), "text/plain")], None);
        check(&[(content_type.clone(), "application/x-www-form-urlencoded")], None);
        check(&[], None);
        check(&[(content_type, "application/json"), (header::CONTENT_ENCODING, "gzip")], None);
    }

    #[tokio::test]
    async fn a_body_is_bounded() {
        #[track_caller]
        fn check(read: Result<Bytes, Problem>, expected: Result<usize, u16>) {
            assert_eq!(read.map(|bytes| bytes.len()).map_err(|problem| problem.status), expected);
        }

        check(read_all(Body::from(vec![b' '; 10]), 10).await, Ok(10));
        check(read_all(Body::from(vec![b' '; 11]), 10).await, Err(413));
        let endless = futures_util::stream::repeat_with(|| Ok::<_, std::io::Error>(Bytes::from_static(b"0123456789")));
        check(read_all(Body::from_stream(endless), 10).await, Err(413));
        let broken = futures_util::stream::iter([Ok(Bytes::from_static(b"01")), Err(std::io::Error::other("gone"))]);
        check(read_all(Body::from_stream(broken), 10).await, Err(422));
    }
}
