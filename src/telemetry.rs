//! Logs: where they go and in which form.
//!
//! Standard error, as text or as JSON lines; standard output belongs to the commands' results. It refuses to filter content: that
//! no narrative and no customer data reaches a log is the duty of whoever writes the log line.

use std::io::IsTerminal as _;

use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::util::{SubscriberInitExt as _, TryInitError};

/// The `[log]` section; `config/default.toml` says what each key means.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogConfig {
    pub format: LogFormat,
    pub level: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    Text,
    Json,
}

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    #[error("`log.level` is neither a level nor a filter")]
    Level(#[from] ParseError),
    #[error("a log has been set up before")]
    Twice(#[from] TryInitError),
}

impl LogConfig {
    /// # Errors
    /// [`TelemetryError::Level`].
    pub fn filter(&self) -> Result<EnvFilter, TelemetryError> {
        Ok(EnvFilter::builder().parse(&self.level)?)
    }
}

/// Sends the log of the whole process to standard error.
///
/// # Errors
/// [`TelemetryError::Level`]; [`TelemetryError::Twice`].
pub fn init(config: &LogConfig) -> Result<(), TelemetryError> {
    let builder = tracing_subscriber::fmt().with_env_filter(config.filter()?).with_writer(std::io::stderr);
    // Colours are for eyes; a file or a collector wants none.
    let builder = builder.with_ansi(std::io::stderr().is_terminal());
    match config.format {
        LogFormat::Text => builder.finish().try_init()?,
        LogFormat::Json => builder.json().flatten_event(true).finish().try_init()?,
    }
    Ok(())
}
