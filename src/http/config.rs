//! The `[server]` section.

use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The section as it is written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawServerConfig {
    pub listen: SocketAddr,
    pub max_connections: usize,
    pub max_uri_bytes: usize,
    pub max_header_bytes: usize,
    pub max_body_bytes: usize,
    pub max_line_bytes: usize,
    pub max_buffered_bytes: usize,
    pub max_batch_items: usize,
    pub max_in_flight: usize,
    pub max_streams: usize,
    pub stream_concurrency: usize,
    pub header_read_timeout_ms: u64,
    pub body_read_timeout_ms: u64,
    pub write_timeout_ms: u64,
    pub request_timeout_ms: u64,
    pub drain_timeout_ms: u64,
    pub readiness_interval_ms: u64,
}

/// The checked section; `config/default.toml` says what each key means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerConfig {
    pub listen: SocketAddr,
    pub max_connections: usize,
    pub max_uri_bytes: usize,
    pub max_header_bytes: usize,
    pub max_body_bytes: usize,
    pub max_line_bytes: usize,
    pub max_buffered_bytes: usize,
    pub max_batch_items: usize,
    pub max_in_flight: usize,
    pub max_streams: usize,
    pub stream_concurrency: usize,
    pub header_read_timeout: Duration,
    pub body_read_timeout: Duration,
    pub write_timeout: Duration,
    pub request_timeout: Duration,
    pub drain_timeout: Duration,
    pub readiness_interval: Duration,
}

/// What a semaphore counts on every platform.
const MAX_BUFFERED_BYTES: usize = 1 << 28;

/// How `max_buffered_bytes` is divided, so that whoever sends large bodies, or streams, keeps nobody else out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shares {
    /// For the first kibibytes of every body.
    pub(super) small: usize,
    /// For the rest of larger ones.
    pub(super) large: usize,
    /// For the lines of streams.
    pub(super) streamed: usize,
}

impl Shares {
    pub(super) fn of(max_buffered_bytes: usize) -> Self {
        let quarter = max_buffered_bytes / 4;
        Self { small: quarter, large: max_buffered_bytes - 2 * quarter, streamed: quarter }
    }
}

/// Why a section was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ServerConfigError {
    #[error("`server.{key}` must be at least 1")]
    Zero { key: &'static str },
    #[error(
        "`server.{key}` is {value}; it must not exceed `server.max_in_flight` ({max_in_flight}), or it could never be admitted"
    )]
    OverInFlight { key: &'static str, value: usize, max_in_flight: usize },
    #[error(
        "`server.{key}` is {value}; it must not exceed {most}, its part of `server.max_buffered_bytes`, or it could never be admitted"
    )]
    OverBuffered { key: &'static str, value: usize, most: usize },
    #[error("`server.max_buffered_bytes` is {value}; at most {max} can be counted")]
    TooManyBytes { value: usize, max: usize },
}

impl RawServerConfig {
    /// # Errors
    /// A zero where nothing would work, or a batch that could never be admitted.
    pub fn check(self) -> Result<ServerConfig, ServerConfigError> {
        let counts = [
            ("max_connections", self.max_connections),
            ("max_uri_bytes", self.max_uri_bytes),
            ("max_header_bytes", self.max_header_bytes),
            ("max_body_bytes", self.max_body_bytes),
            ("max_line_bytes", self.max_line_bytes),
            ("max_buffered_bytes", self.max_buffered_bytes),
            ("max_batch_items", self.max_batch_items),
            ("max_in_flight", self.max_in_flight),
            ("max_streams", self.max_streams),
            ("stream_concurrency", self.stream_concurrency),
        ];
        if let Some((key, _)) = counts.into_iter().find(|(_, value)| *value == 0) {
            return Err(ServerConfigError::Zero { key });
        }
        let times = [
            ("header_read_timeout_ms", self.header_read_timeout_ms),
            ("body_read_timeout_ms", self.body_read_timeout_ms),
            ("write_timeout_ms", self.write_timeout_ms),
            ("request_timeout_ms", self.request_timeout_ms),
            ("readiness_interval_ms", self.readiness_interval_ms),
        ];
        if let Some((key, _)) = times.into_iter().find(|(_, value)| *value == 0) {
            return Err(ServerConfigError::Zero { key });
        }
        for (key, value) in [("max_batch_items", self.max_batch_items), ("stream_concurrency", self.stream_concurrency)] {
            if value > self.max_in_flight {
                return Err(ServerConfigError::OverInFlight { key, value, max_in_flight: self.max_in_flight });
            }
        }
        if self.max_buffered_bytes > MAX_BUFFERED_BYTES {
            return Err(ServerConfigError::TooManyBytes { value: self.max_buffered_bytes, max: MAX_BUFFERED_BYTES });
        }
        let shares = Shares::of(self.max_buffered_bytes);
        let parts =
            [("max_body_bytes", self.max_body_bytes, shares.large), ("max_line_bytes", self.max_line_bytes, shares.streamed)];
        for (key, value, most) in parts {
            if value > most {
                return Err(ServerConfigError::OverBuffered { key, value, most });
            }
        }
        Ok(ServerConfig {
            listen: self.listen,
            max_connections: self.max_connections,
            max_uri_bytes: self.max_uri_bytes,
            max_header_bytes: self.max_header_bytes,
            max_body_bytes: self.max_body_bytes,
            max_line_bytes: self.max_line_bytes,
            max_buffered_bytes: self.max_buffered_bytes,
            max_batch_items: self.max_batch_items,
            max_in_flight: self.max_in_flight,
            max_streams: self.max_streams,
            stream_concurrency: self.stream_concurrency,
            header_read_timeout: Duration::from_millis(self.header_read_timeout_ms),
            body_read_timeout: Duration::from_millis(self.body_read_timeout_ms),
            write_timeout: Duration::from_millis(self.write_timeout_ms),
            request_timeout: Duration::from_millis(self.request_timeout_ms),
            drain_timeout: Duration::from_millis(self.drain_timeout_ms),
            readiness_interval: Duration::from_millis(self.readiness_interval_ms),
        })
    }
}
