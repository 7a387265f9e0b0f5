//! What the service runs with: embedded defaults, then a file, then the environment.
//!
//! [`RawConfig`] is what stands in `config/default.toml`, which is its documentation; each room owns its section. [`Config`] is
//! the checked form that the rest of the service trusts. It refuses unknown keys and combinations that could not work.

use std::path::Path;

use figment::Figment;
use figment::providers::{Env, Format as _, Toml};
use serde::{Deserialize, Serialize};

use crate::batching::{BatchingConfig, SpawnError};
use crate::bundle::BundleConfig;
use crate::encoder::EncoderConfig;
use crate::event::{EventLimits, MAX_ENTRIES};
use crate::http::config::{RawServerConfig, ServerConfig, ServerConfigError};
use crate::policy::PolicyConfig;
use crate::store::{StoreConfig, StoreError};
use crate::telemetry::{LogConfig, TelemetryError};
use crate::text::{TextConfig, TextError};

/// The defaults, key by key.
pub const DEFAULT: &str = include_str!("../config/default.toml");
/// A tokenizer thread is busy for about a second with a text of this length.
const MAX_NARRATIVE_CHARS: usize = 1_000_000;
const ENV_PREFIX: &str = "SLUICE__";

/// The configuration as it is written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawConfig {
    pub server: RawServerConfig,
    pub event: EventLimits,
    pub bundle: BundleConfig,
    pub text: TextConfig,
    pub encoder: EncoderConfig,
    pub batching: BatchingConfig,
    pub policy: PolicyConfig,
    pub store: StoreConfig,
    pub log: LogConfig,
}

/// The checked configuration.
#[derive(Debug, Clone)]
pub struct Config {
    pub server: ServerConfig,
    pub event: EventLimits,
    pub bundle: BundleConfig,
    pub text: TextConfig,
    pub encoder: EncoderConfig,
    pub batching: BatchingConfig,
    pub policy: PolicyConfig,
    pub store: StoreConfig,
    pub log: LogConfig,
}

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Figment's message names the key and the file or variable it came from.
    #[error("the configuration is not readable")]
    Read(#[source] Box<figment::Error>),
    #[error(transparent)]
    Server(#[from] ServerConfigError),
    #[error("`event.{key}` must lie between 1 and {max}")]
    EventLimit { key: &'static str, max: usize },
    #[error(transparent)]
    Text(#[from] TextError),
    #[error(transparent)]
    Batching(#[from] SpawnError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(
        "`batching.queue_capacity` is {queue_capacity}; it must exceed `server.max_in_flight` ({max_in_flight}), \
         so that an admitted event is never refused by the encoder's queue"
    )]
    QueueTooSmall { queue_capacity: usize, max_in_flight: usize },
    #[error(transparent)]
    Log(#[from] TelemetryError),
}

impl RawConfig {
    /// Reads defaults, `file` where given, and the environment.
    ///
    /// # Errors
    /// [`ConfigError::Read`] with the key at fault and where it was set, also where `file` does not exist.
    pub fn load(file: Option<&Path>) -> Result<Self, ConfigError> {
        Self::extract(Self::layers(file).merge(Env::prefixed(ENV_PREFIX).split("__")))
    }

    /// The defaults alone.
    pub fn defaults() -> Self {
        Self::extract(Self::layers(None)).expect("the embedded defaults are complete and of the right types")
    }

    /// What can be told from the values alone; whether the files they name are there and fit shows when the rooms are built.
    ///
    /// # Errors
    /// The first value that could not work.
    pub fn check(self) -> Result<Config, ConfigError> {
        let limits = [
            ("max_narrative_chars", self.event.max_narrative_chars, MAX_NARRATIVE_CHARS),
            ("max_lines", self.event.max_lines, MAX_ENTRIES),
            ("max_attributes", self.event.max_attributes, MAX_ENTRIES),
        ];
        if let Some((key, _, max)) = limits.into_iter().find(|(_, value, max)| !(1..=*max).contains(value)) {
            return Err(ConfigError::EventLimit { key, max });
        }
        let server = self.server.check()?;
        self.text.check()?;
        self.batching.check()?;
        self.store.check()?;
        // One more than the callers' events, for the readiness probe.
        if self.batching.queue_capacity <= server.max_in_flight {
            let (queue_capacity, max_in_flight) = (self.batching.queue_capacity, server.max_in_flight);
            return Err(ConfigError::QueueTooSmall { queue_capacity, max_in_flight });
        }
        self.log.filter()?;
        Ok(Config {
            server,
            event: self.event,
            bundle: self.bundle,
            text: self.text,
            encoder: self.encoder,
            batching: self.batching,
            policy: self.policy,
            store: self.store,
            log: self.log,
        })
    }

    /// The configuration as TOML, for `sluice config print`.
    pub fn to_toml(&self) -> String {
        toml::to_string_pretty(self).expect("the configuration holds paths, numbers and strings only")
    }

    fn layers(file: Option<&Path>) -> Figment {
        let figment = Figment::from(Toml::string(DEFAULT));
        match file {
            Some(file) => figment.merge(Toml::file_exact(file)),
            None => figment,
        }
    }

    fn extract(figment: Figment) -> Result<Self, ConfigError> {
        figment.extract().map_err(|error| ConfigError::Read(Box::new(error)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(file: &str) -> Result<Config, ConfigError> {
        RawConfig::extract(RawConfig::layers(None).merge(Toml::string(file)))?.check()
    }

    #[test]
    fn the_defaults_are_accepted() {
        let config = RawConfig::defaults().check().unwrap();
        assert_eq!(config.server.listen.port(), 8080);
    }

    #[test]
    fn a_file_overrides_single_keys() {
        let config = load("[server]\nmax_in_flight = 300").unwrap();
        assert_eq!(config.server.max_in_flight, 300);
        assert_eq!(config.server.listen.port(), 8080);
    }

    #[test]
    fn a_bad_value_is_refused_by_its_key() {
        #[track_caller]
        fn check(file: &str, expected: &str) {
            let error = load(file).unwrap_err();
            let message = match &error {
                ConfigError::Read(cause) => cause.to_string(),
                other => other.to_string(),
            };
            assert!(message.contains(expected), "{message}");
        }

        check("[server]\nlisten_on = 1", "listen_on");
        check("[serve]\nlisten = 1", "serve");
        check("[server]\nlisten = \"localhost\"", "server.listen");
        check("[server]\nmax_in_flight = \"many\"", "server.max_in_flight");
        check("[server]\nmax_in_flight = 0", "server.max_in_flight");
        check("[server]\nmax_in_flight = 10", "server.max_batch_items");
        check("[server]\nmax_in_flight = 1000000", "batching.queue_capacity");
        check("[server]\nrequest_timeout_ms = 0", "server.request_timeout_ms");
        check("[server]\nmax_buffered_bytes = 8388608", "server.max_body_bytes");
        check("[server]\nmax_streams = 0", "server.max_streams");
        check("[event]\nmax_lines = 0", "event.max_lines");
        check("[event]\nmax_lines = 10001", "event.max_lines");
        check("[text]\nworkers = 0", "text.workers");
        check("[batching]\nmax_batch_tokens = 0", "batching.max_batch_tokens");
        check("[store]\nmax_readers = 0", "store.max_readers");
        check("[log]\nlevel = \"a=b=c\"", "log.level");
    }

    #[test]
    fn what_is_printed_reads_back_as_the_same() {
        let config = RawConfig::defaults();
        assert_eq!(toml::from_str::<RawConfig>(&config.to_toml()).unwrap(), config);
    }

    #[test]
    fn every_default_has_a_comment() {
        let mut previous = "";
        for line in DEFAULT.lines() {
            if line.contains(" = ") && !line.starts_with('#') {
                assert!(previous.starts_with("# "), "{line} has no comment");
            }
            previous = line;
        }
    }
}
