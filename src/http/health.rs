//! Liveness and readiness.
//!
//! `/livez` says that the process answers. `/readyz` says that it can decide: the newest real inference is recent, the golden
//! case still gets its golden answer, and the store takes decisions. A background probe infers when nobody else does, so a dead
//! device shows within [`Readiness::window`], and a busy service proves itself by its work.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::AppState;
use super::context::NoQuery;
use super::docs::Problems;
use super::problem::Problem;
use crate::bundle::BundleIdentity;
use crate::error::ErrorCode;

/// What the service knows about its own fitness. Cloning shares it.
#[derive(Debug, Clone)]
pub struct Readiness {
    inner: Arc<Mutex<Fitness>>,
    window: Duration,
}

#[derive(Debug)]
struct Fitness {
    newest_success: Option<Instant>,
    /// Set while the golden case gets another answer than its own, or shutdown has begun: no success outweighs that.
    refusal: Option<&'static str>,
    draining: bool,
}

impl Readiness {
    /// `window` is how old the newest success may be.
    pub fn new(window: Duration) -> Self {
        let fitness = Fitness { newest_success: None, refusal: None, draining: false };
        Self { inner: Arc::new(Mutex::new(fitness)), window }
    }

    pub fn window(&self) -> Duration {
        self.window
    }

    /// A caller's event went through the models.
    pub fn served(&self) {
        self.lock().newest_success = Some(Instant::now());
    }

    /// The golden case got its golden answer.
    pub fn confirmed(&self) {
        let mut fitness = self.lock();
        fitness.newest_success = Some(Instant::now());
        fitness.refusal = None;
    }

    /// The golden case got another answer.
    pub fn refuse(&self, reason: &'static str) {
        self.lock().refusal = Some(reason);
    }

    /// Shutdown has begun: no new work.
    pub fn drain(&self) {
        self.lock().draining = true;
    }

    /// The age of the newest success.
    ///
    /// # Errors
    /// Why no work should be sent here.
    pub fn check(&self) -> Result<Duration, &'static str> {
        let fitness = self.lock();
        if fitness.draining {
            return Err("the service is shutting down");
        }
        if let Some(reason) = fitness.refusal {
            return Err(reason);
        }
        let age = fitness.newest_success.ok_or("no inference has succeeded yet")?.elapsed();
        if age > self.window { Err("the newest successful inference is too long ago") } else { Ok(age) }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Fitness> {
        // Every update is one assignment, so a panic between two of them leaves nothing half-done.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The process is alive.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Alive {
    pub status: String,
}

/// The service can decide.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Ready {
    pub status: String,
    pub bundle: BundleIdentity,
    /// The encoder's engine.
    pub engine: String,
    /// Age of the newest successful inference.
    pub last_inference_ms: u64,
}

/// Whether the process answers
#[utoipa::path(get, path = "/livez", tag = "operations", responses((status = 200, description = "It does", body = Alive), Problems))]
pub(super) async fn livez(_: NoQuery) -> Json<Alive> {
    Json(Alive { status: "alive".to_owned() })
}

/// Whether the service can decide
///
/// A recent real inference, the golden case's own answer, and a store that takes decisions; 503 otherwise.
#[utoipa::path(get, path = "/readyz", tag = "operations", responses((status = 200, description = "It can", body = Ready), Problems))]
pub(super) async fn readyz(State(state): State<AppState>, _: NoQuery) -> Result<Json<Ready>, Problem> {
    let not_ready = |reason: &str| Problem::new(ErrorCode::Unavailable, reason);
    let age = state.readiness.check().map_err(not_ready)?;
    state.pipeline.store.health().await.map_err(|error| {
        tracing::warn!(error = &error as &dyn std::error::Error, "the store is not ready");
        not_ready("the store takes no decisions")
    })?;
    Ok(Json(Ready {
        status: "ready".to_owned(),
        bundle: state.pipeline.models.identity.clone(),
        engine: state.engine.to_string(),
        last_inference_ms: u64::try_from(age.as_millis()).unwrap_or(u64::MAX),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_means_a_recent_success_and_no_refusal() {
        let readiness = Readiness::new(Duration::from_secs(3600));
        assert!(readiness.check().is_err());
        readiness.served();
        assert!(readiness.check().is_ok());
        readiness.refuse("the golden case got another answer");
        readiness.served();
        assert_eq!(readiness.check(), Err("the golden case got another answer"));
        readiness.confirmed();
        assert!(readiness.check().is_ok());
        readiness.drain();
        assert!(readiness.check().is_err());
    }

    #[test]
    fn an_old_success_is_none() {
        let readiness = Readiness::new(Duration::ZERO);
        readiness.served();
        let served = Instant::now();
        while served.elapsed() < Duration::from_millis(2) {
            std::hint::spin_loop();
        }
        assert!(readiness.check().is_err());
    }
}
