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
    pub max_batch_items: usize,
    pub max_in_flight: usize,
    pub stream_concurrency: usize,
    pub header_read_timeout_ms: u64,
    pub body_read_timeout_ms: u64,
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
    pub max_batch_items: usize,
    pub max_in_flight: usize,
    pub stream_concurrency: usize,
    pub header_read_timeout: Duration,
    pub body_read_timeout: Duration,
    pub request_timeout: Duration,
    pub drain_timeout: Duration,
    pub readiness_interval: Duration,
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
            ("max_batch_items", self.max_batch_items),
            ("max_in_flight", self.max_in_flight),
            ("stream_concurrency", self.stream_concurrency),
        ];
        if let Some((key, _)) = counts.into_iter().find(|(_, value)| *value == 0) {
            return Err(ServerConfigError::Zero { key });
        }
        let times = [
            ("header_read_timeout_ms", self.header_read_timeout_ms),
            ("body_read_timeout_ms", self.body_read_timeout_ms),
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
        Ok(ServerConfig {
            listen: self.listen,
            max_connections: self.max_connections,
            max_uri_bytes: self.max_uri_bytes,
            max_header_bytes: self.max_header_bytes,
            max_body_bytes: self.max_body_bytes,
            max_line_bytes: self.max_line_bytes,
            max_batch_items: self.max_batch_items,
            max_in_flight: self.max_in_flight,
            stream_concurrency: self.stream_concurrency,
            header_read_timeout: Duration::from_millis(self.header_read_timeout_ms),
            body_read_timeout: Duration::from_millis(self.body_read_timeout_ms),
            request_timeout: Duration::from_millis(self.request_timeout_ms),
            drain_timeout: Duration::from_millis(self.drain_timeout_ms),
            readiness_interval: Duration::from_millis(self.readiness_interval_ms),
        })
    }
}
