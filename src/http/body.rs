//! Reading a request body: its type is checked before, its size and its pace while it is read, and a large one is parsed where it
//! keeps nobody waiting.

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::{HeaderMap, header};
use futures_util::StreamExt as _;

use super::AppState;
use super::budget::{BodyBudget, HeldBytes};
use super::problem::Problem;
use crate::error::ErrorCode;
use crate::event::{EventError, EventLimits, EventWire, cloudevents};

/// Bytes that are parsed and checked in well under half a millisecond. More are parsed on a blocking thread.
const INLINE_BYTES: usize = 16 * 1024;

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

/// A whole body, with the right to hold its bytes.
#[derive(Debug)]
pub(super) struct Buffered {
    pub(super) bytes: Bytes,
    pub(super) held: HeldBytes,
}

impl Buffered {
    /// Parses the body, off the async threads where it is large.
    pub(super) async fn parse<T: Send + 'static>(self, parse: impl FnOnce(&[u8]) -> T + Send + 'static) -> (T, HeldBytes) {
        let Self { bytes, held } = self;
        if bytes.len() <= INLINE_BYTES {
            return (parse(&bytes), held);
        }
        // The right to the bytes goes with them, because a caller who hangs up does not stop the thread.
        let parsing = tokio::task::spawn_blocking(move || (parse(&bytes), held));
        parsing.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
    }
}

/// Reads the one event of a request, plain JSON or a CloudEvent in structured or binary mode, and checks it with `check`.
///
/// # Errors
/// As [`read`]; 400, 415 or 422 for what the body is.
pub(super) async fn read_event<T: Send + 'static>(
    request: Request,
    state: &AppState,
    check: fn(EventWire, &EventLimits) -> Result<T, EventError>,
) -> Result<(T, HeldBytes), Problem> {
    let media_type = MediaType::of(request.headers())?;
    let attributes = cloudevents::binary_attributes(
        request.headers().iter().filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?))),
    );
    if matches!(media_type, MediaType::Ndjson | MediaType::CloudEventBatch) {
        return Err(Problem::new(ErrorCode::UnsupportedMediaType, "this resource takes one event; send several to its `/batch`")
            .with_field("content-type"));
    }
    let limits = state.limits;
    let parse = move |bytes: &[u8]| {
        let event = match (media_type, attributes) {
            (MediaType::CloudEvent, _) => cloudevents::from_structured(bytes)?,
            (_, Some(attributes)) => cloudevents::from_binary(attributes, bytes)?,
            (_, None) => EventWire::from_json(bytes)?,
        };
        check(event, &limits)
    };
    let (checked, held) = read(request.into_body(), state).await?.parse(parse).await;
    Ok((checked?, held))
}

/// Reads a whole body.
///
/// # Errors
/// 413 over the limit, 408 where it does not arrive in time, 422 where the caller breaks it off, 429 where too many bytes are held.
pub(super) async fn read(body: Body, state: &AppState) -> Result<Buffered, Problem> {
    let timeout = state.config.body_read_timeout;
    let reading = read_all(body, state.config.max_body_bytes, &state.bodies);
    match tokio::time::timeout(timeout, reading).await {
        Err(_) => Err(too_slow()),
        Ok(Err(Unread::NoRoom)) => Err(state.overloaded()),
        Ok(Err(Unread::Refused(problem))) => Err(problem),
        Ok(Ok(buffered)) => Ok(buffered),
    }
}

/// Why a body was not read.
#[derive(Debug)]
enum Unread {
    Refused(Problem),
    NoRoom,
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

async fn read_all(body: Body, max_bytes: usize, budget: &BodyBudget) -> Result<Buffered, Unread> {
    let mut chunks = body.into_data_stream();
    let mut whole = Vec::new();
    let mut held = HeldBytes::default();
    let mut n_bytes = 0_usize;
    let mut is_unread = false;
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|_| Unread::Refused(broken_off()))?;
        n_bytes += chunk.len();
        if n_bytes > max_bytes.saturating_mul(DISCARD_FACTOR) {
            break;
        }
        is_unread = is_unread || n_bytes > max_bytes || !budget.try_grow(&mut held, chunk.len());
        if is_unread {
            // Nothing of it will be used, so its memory goes at once.
            whole = Vec::new();
            held = HeldBytes::default();
        } else {
            whole.extend_from_slice(&chunk);
        }
    }
    if n_bytes > max_bytes {
        return Err(Unread::Refused(too_large(max_bytes)));
    }
    if is_unread { Err(Unread::NoRoom) } else { Ok(Buffered { bytes: Bytes::from(whole), held }) }
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
        fn check(read: Result<Buffered, Unread>, expected: Result<usize, u16>) {
            let status = |unread| match unread {
                Unread::Refused(problem) => problem.status,
                Unread::NoRoom => 429,
            };
            assert_eq!(read.map(|buffered| buffered.bytes.len()).map_err(status), expected);
        }

        let budget = BodyBudget::new(40, 1);
        let read_all = |body, max_bytes| read_all(body, max_bytes, &budget);
        check(read_all(Body::from(vec![b' '; 10]), 10).await, Ok(10));
        check(read_all(Body::from(vec![b' '; 11]), 10).await, Err(413));
        // A quarter of the budget is for the small part of a body, and what is held by one is not there for another.
        check(read_all(Body::from(vec![b' '; 11]), 20).await, Err(429));
        let first = read_all(Body::from(vec![b' '; 6]), 10).await.unwrap();
        check(read_all(Body::from(vec![b' '; 6]), 10).await, Err(429));
        drop(first);
        check(read_all(Body::from(vec![b' '; 6]), 10).await, Ok(6));
        let endless = futures_util::stream::repeat_with(|| Ok::<_, std::io::Error>(Bytes::from_static(b"0123456789")));
        check(read_all(Body::from_stream(endless), 10).await, Err(413));
        let broken = futures_util::stream::iter([Ok(Bytes::from_static(b"01")), Err(std::io::Error::other("gone"))]);
        check(read_all(Body::from_stream(broken), 10).await, Err(422));
    }
}
