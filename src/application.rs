//! Builds every room from the configuration, warms up, and runs until shutdown: the only place that knows all of them.
//!
//! [`pipeline`] alone is what commands without HTTP use; [`Application`] puts the HTTP service around it. Nothing is served before
//! a golden case has been through every model.

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use tokio::net::TcpListener;
use tokio_util::task::TaskTracker;

use crate::batching::{self, SpawnError};
use crate::bundle::{self, Bundle, BundleError, BundleIdentity, GoldenCase, Models};
use crate::config::Config;
use crate::decision::{Assessed, Pipeline};
use crate::encoder::{CandleEncoder, Encoder, EncoderError, Engine};
use crate::error::Error;
use crate::http::admission::Admission;
use crate::http::budget::BodyBudget;
use crate::http::config::ServerConfig;
use crate::http::health::Readiness;
use crate::http::metrics::Metrics;
use crate::http::{self, AppState};
use crate::policy::{CaseFailure, DEFAULT_POLICY, Policy, PolicyConfig, PolicyError};
use crate::store::{IN_MEMORY, Store, StoreError};
use crate::taxonomy::Taxonomy;
use crate::text::{self, TextError, Tokenizer};

/// The newest success may be this many probe intervals old: one probe may fail and one may be late.
const READINESS_WINDOW_INTERVALS: u32 = 3;

/// Why the service did not start.
#[derive(Debug, thiserror::Error)]
pub enum ApplicationError {
    #[error("the bundle was not loaded")]
    Bundle(#[from] BundleError),
    #[error("the encoder did not start")]
    Encoder(#[from] SpawnError),
    #[error("the encoder gives embeddings of {found} numbers; the classifier reads {expected}")]
    EmbeddingLength { found: usize, expected: usize },
    #[error("the tokenizer was not loaded")]
    Text(#[from] TextError),
    #[error("`{}` is not readable", .path.display())]
    PolicyFile { path: PathBuf, source: std::io::Error },
    #[error("the policy was refused")]
    Policy(#[from] PolicyError),
    #[error("the policy does not decide its own case `{}` as expected: {}", .0.case, .0.detail)]
    PolicyCase(CaseFailure),
    #[error("the store was not opened")]
    Store(#[from] StoreError),
    #[error("the bundle's golden case gave no answer")]
    Warmup(#[source] Error),
    #[error("the bundle's golden case `{case}` {difference}")]
    Golden { case: String, difference: String },
    #[error("`{address}` is not free")]
    Listen { address: SocketAddr, source: std::io::Error },
}

/// Builds the rooms an exception passes through, without HTTP, and runs the bundle's golden cases.
///
/// # Errors
/// The first room that could not be built, or the first golden case that differs.
pub async fn pipeline(config: &Config) -> Result<Pipeline, ApplicationError> {
    let (pipeline, golden) = build(config).await?;
    check_golden(&pipeline, &golden).await?;
    Ok(pipeline)
}

/// The policy of the configuration, checked against `taxonomy` and its own cases.
///
/// # Errors
/// [`ApplicationError::PolicyFile`], [`ApplicationError::Policy`], [`ApplicationError::PolicyCase`].
pub fn policy(config: &PolicyConfig, taxonomy: &Taxonomy) -> Result<Policy, ApplicationError> {
    let text = match &config.path {
        None => DEFAULT_POLICY.to_owned(),
        Some(path) => {
            std::fs::read_to_string(path).map_err(|source| ApplicationError::PolicyFile { path: path.clone(), source })?
        }
    };
    let policy = Policy::from_toml(&text, taxonomy)?;
    match policy.run_cases(taxonomy).into_iter().next() {
        Some(failure) => Err(ApplicationError::PolicyCase(failure)),
        None => Ok(policy.with_automation(config.automation_enabled)),
    }
}

/// The HTTP service, built and warm, not yet serving.
#[derive(Debug)]
pub struct Application {
    listener: TcpListener,
    address: SocketAddr,
    state: AppState,
    golden: Vec<GoldenCase>,
}

impl Application {
    /// Builds every room, runs the bundle's golden cases and takes the port.
    ///
    /// # Errors
    /// The first thing that kept the service from being ready.
    pub async fn build(config: Config) -> Result<Self, ApplicationError> {
        let address = config.server.listen;
        // Before the models, because a port that is taken shows at once and loading takes seconds.
        let listener = TcpListener::bind(address).await.map_err(|source| ApplicationError::Listen { address, source })?;
        let address = listener.local_addr().map_err(|source| ApplicationError::Listen { address, source })?;
        let (pipeline, golden) = build(&config).await?;
        let pipeline = Arc::new(pipeline);
        check_golden(&pipeline, &golden).await?;

        let ServerConfig { max_in_flight, max_streams, max_buffered_bytes, readiness_interval, .. } = config.server;
        let readiness = Readiness::new(readiness_interval * READINESS_WINDOW_INTERVALS);
        readiness.confirmed();
        let identity = &pipeline.models.identity;
        tracing::info!(%address, bundle = identity.name, version = identity.version, hash = identity.hash, "ready");
        let state = AppState {
            limits: config.event,
            admission: Admission::new(max_in_flight),
            bodies: BodyBudget::new(max_buffered_bytes, max_streams),
            metrics: Metrics::new(identity),
            readiness,
            engine: engine_name(config.encoder.engine).into(),
            tasks: TaskTracker::new(),
            config: Arc::new(config.server),
            pipeline,
        };
        Ok(Self { listener, address, state, golden })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Serves until `shutdown` resolves, then drains for at most `server.drain_timeout_ms` and closes the store.
    pub async fn run_until(self, shutdown: impl Future<Output = ()>) {
        let Self { listener, state, golden, .. } = self;
        let probe = tokio::spawn(probe(state.clone(), golden));
        let readiness = state.readiness.clone();
        let shutdown = async {
            shutdown.await;
            readiness.drain();
        };
        http::server::serve(listener, http::router(state.clone()), &state.config, &state.tasks, shutdown).await;
        probe.abort();
        state.pipeline.store.close().await;
    }
}

/// Infers a golden case every interval, so that a dead engine shows although nobody asks it anything.
async fn probe(state: AppState, golden: Vec<GoldenCase>) {
    let interval = state.config.readiness_interval;
    for case in golden.iter().cycle() {
        tokio::time::sleep(interval).await;
        let deadline = Instant::now() + state.readiness.window();
        match golden_difference(&state.pipeline, case, Some(deadline)).await {
            Ok(None) => state.readiness.confirmed(),
            Ok(Some(difference)) => {
                tracing::error!(case = case.name, difference, "a golden case gets another answer than its own");
                state.readiness.refuse("a golden case gets another answer than its own");
            }
            // A busy queue proves nothing about the engine; events that are served do.
            Err(error) => tracing::warn!(error = &error as &dyn std::error::Error, "the readiness probe got no answer"),
        }
    }
}

/// Every golden case through every model: the warm-up, and the proof that this machine computes what the bundle's author saw.
///
/// # Errors
/// [`ApplicationError::Warmup`], [`ApplicationError::Golden`] with the first case that differs.
pub async fn check_golden(pipeline: &Pipeline, golden: &[GoldenCase]) -> Result<(), ApplicationError> {
    for case in golden {
        if let Some(difference) = golden_difference(pipeline, case, None).await.map_err(ApplicationError::Warmup)? {
            return Err(ApplicationError::Golden { case: case.name.clone(), difference });
        }
    }
    Ok(())
}

/// What [`verify`] found to hold.
#[derive(Debug, Clone)]
pub struct Verified {
    pub identity: BundleIdentity,
    pub n_golden: usize,
}

/// Loads the bundle, which checks every hash, and runs its golden cases.
///
/// # Errors
/// The first thing that does not hold.
pub async fn verify(config: &Config) -> Result<Verified, ApplicationError> {
    let (pipeline, golden) = build(config).await?;
    check_golden(&pipeline, &golden).await?;
    Ok(Verified { identity: pipeline.models.identity.clone(), n_golden: golden.len() })
}

/// Whether the service would start with `config`: builds every room as [`Application::build`] does, but for the port and the store.
/// A running service may hold those two, so of the store only its folder is looked at.
///
/// # Errors
/// The first thing that would keep the service from starting.
pub async fn check(config: &Config) -> Result<(), ApplicationError> {
    Store::check(&config.store)?;
    let mut config = config.clone();
    config.store.path = IN_MEMORY.into();
    verify(&config).await.map(|_| ())
}

/// How the case's answer differs from the one its author saw; `None` where it does not.
async fn golden_difference(pipeline: &Pipeline, case: &GoldenCase, deadline: Option<Instant>) -> Result<Option<String>, Error> {
    let Assessed { classification, risk, .. } = pipeline.assess(&case.content, deadline, false).await?;
    Ok(case.difference(&classification, risk.as_ref()))
}

async fn build(config: &Config) -> Result<(Pipeline, Vec<GoldenCase>), ApplicationError> {
    let started = Instant::now();
    let loading = {
        let config = config.clone();
        // Hashing, parsing and loading take seconds, which no async thread has.
        tokio::task::spawn_blocking(move || load(&config))
    };
    let Rooms { models, tokenizer, encoder, policy, golden } = loading.await.expect("loading does not panic")?;
    let store = Store::open(&config.store).await?;
    let elapsed_ms = started.elapsed().as_secs_f64() * 1e3;
    tracing::info!(elapsed_ms, engines = encoder.live_workers(), "loaded");
    Ok((Pipeline { models: Arc::new(models), tokenizer, encoder, policy, store }, golden))
}

/// The rooms that need no async runtime to be built.
struct Rooms {
    models: Models,
    tokenizer: text::Handle,
    encoder: batching::Handle,
    policy: Policy,
    golden: Vec<GoldenCase>,
}

fn load(config: &Config) -> Result<Rooms, ApplicationError> {
    let Bundle { models, encoder: files, golden, .. } = bundle::load(&config.bundle.path)?;
    let policy = policy(&config.policy, &models.taxonomy)?;
    let tokenizer = Tokenizer::from_bytes(&files.tokenizer, config.encoder.max_tokens, config.encoder.max_windows)?;
    let tokenizer = text::spawn(tokenizer, &config.text, config.event.max_narrative_chars)?;
    let prototype = match config.encoder.engine {
        Engine::Candle => CandleEncoder::load_adapted(&files.config, &files.weights, files.adapter.as_deref()),
    };
    let prototype = prototype.map_err(SpawnError::Encoder)?;
    let (found, expected) = (prototype.hidden_size(), models.classifier.hidden_size());
    if found != expected {
        return Err(ApplicationError::EmbeddingLength { found, expected });
    }
    // The weights are never written, so all workers share them, and one whose engine has panicked starts from a clean copy.
    let load = move || -> Result<Box<dyn Encoder>, EncoderError> { Ok(Box::new(prototype.clone())) };
    let encoder = batching::spawn(load, &config.encoder, &config.batching)?;
    Ok(Rooms { models, tokenizer, encoder, policy, golden })
}

fn engine_name(engine: Engine) -> &'static str {
    match engine {
        Engine::Candle => "candle",
    }
}
