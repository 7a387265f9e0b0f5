//! `GET /metrics`: what operators watch, in the OpenMetrics text format.
//!
//! Labels are routes, statuses, rooms, dispositions and reasons: sets that are closed before the first request arrives. It refuses
//! tenants, customers, ids and anything else that grows.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use serde::Serialize;

use super::AppState;
use super::context::NoQuery;
use super::docs::Problems;
use super::problem::Problem;
use crate::bundle::BundleIdentity;
use crate::decision::{Decided, Timings};
use crate::error::Error;

/// From a tenth of a millisecond, where policy lives, to ten seconds, where patience ends.
const SECONDS: [f64; 16] = [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.035, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];

/// The counters of the service. Cloning shares them.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    requests: Family<RequestLabels, Counter>,
    request_duration: Family<RouteLabels, Histogram>,
    stage_duration: Family<StageLabels, Histogram>,
    decisions: Family<DispositionLabels, Counter>,
    reasons: Family<ReasonLabels, Counter>,
    replayed: Counter,
    in_flight: Gauge,
    queue_depth: Gauge,
    ready: Gauge,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    route: String,
    method: &'static str,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabels {
    route: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StageLabels {
    stage: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DispositionLabels {
    disposition: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    code: String,
}

impl Metrics {
    pub fn new(bundle: &BundleIdentity) -> Self {
        let mut registry = Registry::with_prefix("sluice");
        let requests = Family::<RequestLabels, Counter>::default();
        registry.register("http_requests", "Requests answered", requests.clone());
        let request_duration = Family::<RouteLabels, Histogram>::new_with_constructor(histogram);
        let help = "Time from a request's head to the head of its answer";
        registry.register_with_unit("http_request_duration", help, Unit::Seconds, request_duration.clone());
        let stage_duration = Family::<StageLabels, Histogram>::new_with_constructor(histogram);
        registry.register_with_unit("stage_duration", "Time an event spent in each room", Unit::Seconds, stage_duration.clone());
        let decisions = Family::<DispositionLabels, Counter>::default();
        registry.register("decisions", "New decisions by disposition", decisions.clone());
        let reasons = Family::<ReasonLabels, Counter>::default();
        registry.register("decision_reasons", "Reasons given in new decisions", reasons.clone());
        let replayed = Counter::default();
        registry.register("decisions_repeated", "Events that were decided before", replayed.clone());
        let in_flight = Gauge::default();
        registry.register("events_in_flight", "Events in work", in_flight.clone());
        let queue_depth = Gauge::default();
        registry.register("encoder_queue_depth", "Texts that wait for the encoder", queue_depth.clone());
        let ready = Gauge::default();
        registry.register("ready", "Whether work should be sent here", ready.clone());
        let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "The running version", build);
        let BundleIdentity { name, version, hash } = bundle.clone();
        registry.register("bundle", "The bundle that decides", Info::new([("name", name), ("version", version), ("hash", hash)]));
        let registry = Arc::new(registry);
        Self { registry, requests, request_duration, stage_duration, decisions, reasons, replayed, in_flight, queue_depth, ready }
    }

    pub(super) fn request(&self, route: &str, method: &Method, status: StatusCode, elapsed: Duration) {
        let labels = RequestLabels { route: route.to_owned(), method: method_label(method), status: status.as_u16() };
        self.requests.get_or_create(&labels).inc();
        self.request_duration.get_or_create(&RouteLabels { route: route.to_owned() }).observe(elapsed.as_secs_f64());
    }

    /// Notes the rooms of the classification and risk.
    pub(super) fn stages(&self, timings: &Timings) {
        self.observe("tokenize", timings.tokenize);
        self.observe("queue", timings.queue);
        self.observe("encode", timings.encode);
        self.observe("risk", timings.risk);
    }

    pub(super) fn decision(&self, decided: &Decided) {
        if decided.decision.replayed {
            self.replayed.inc();
            return;
        }
        self.stages(&decided.timings);
        self.observe("policy", decided.timings.policy);
        self.observe("commit", decided.timings.commit);
        let disposition = name_of(&decided.decision.disposition);
        self.decisions.get_or_create(&DispositionLabels { disposition }).inc();
        for reason in &decided.decision.reason_codes {
            self.reasons.get_or_create(&ReasonLabels { code: name_of(&reason.code) }).inc();
        }
    }

    fn observe(&self, stage: &'static str, elapsed: Duration) {
        self.stage_duration.get_or_create(&StageLabels { stage }).observe(elapsed.as_secs_f64());
    }
}

/// Counters and latencies for Prometheus
#[utoipa::path(
    get,
    path = "/metrics",
    tag = "operations",
    responses((status = 200, description = "OpenMetrics text", body = String, content_type = "application/openmetrics-text"), Problems)
)]
pub(super) async fn metrics(State(state): State<AppState>, _: NoQuery) -> Result<Response, Problem> {
    let metrics = &state.metrics;
    metrics.in_flight.set(saturating(state.admission.in_flight()));
    metrics.queue_depth.set(saturating(state.pipeline.encoder.depth()));
    metrics.ready.set(i64::from(state.readiness.check().is_ok()));
    let mut page = String::new();
    encode(&mut page, &metrics.registry).map_err(|_| Error::Internal { invariant: "metrics are text" })?;
    Ok(([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], page).into_response())
}

fn histogram() -> Histogram {
    Histogram::new(SECONDS)
}

fn saturating(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// The caller chooses the method, so only known ones become a label.
fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}

/// The name of a unit variant as it stands in answers.
fn name_of(variant: &impl Serialize) -> String {
    match serde_json::to_value(variant) {
        Ok(serde_json::Value::String(name)) => name,
        other => unreachable!("a unit variant is a JSON string, not {other:?}"),
    }
}
