//! The service on a free port, with the committed bundle.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use reqwest::{Client, RequestBuilder, StatusCode};
use serde_json::{Value, json};
use sluice::application::Application;
use sluice::config::{Config, RawConfig};
use sluice::http::problem::Problem;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// No step of a test takes this long; one that does has hung.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// The defaults on a free port, in memory, with one small engine.
pub(crate) fn raw_config() -> RawConfig {
    let mut config = RawConfig::defaults();
    config.server.listen = "127.0.0.1:0".parse().unwrap();
    // Builds without optimisation share a few cores with every other test.
    config.server.request_timeout_ms = 60_000;
    config.bundle.path = bundle_path();
    config.encoder.workers = 1;
    config.store.path = ":memory:".into();
    config
}

pub(crate) fn bundle_path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("models/bundles/default")
}

pub(crate) fn config(adjust: impl FnOnce(&mut RawConfig)) -> Config {
    let mut config = raw_config();
    adjust(&mut config);
    config.check().unwrap()
}

/// A service of one test, shut down on request.
pub(crate) struct TestApp {
    pub(crate) api: Api,
    shutdown: oneshot::Sender<()>,
    served: JoinHandle<()>,
}

impl TestApp {
    pub(crate) async fn spawn(adjust: impl FnOnce(&mut RawConfig)) -> Self {
        let application = Application::build(config(adjust)).await.unwrap();
        let api = Api::new(application.address());
        let (shutdown, begun) = oneshot::channel();
        let served = tokio::spawn(application.run_until(async {
            begun.await.ok();
        }));
        Self { api, shutdown, served }
    }

    /// Begins shutdown and waits for its end.
    pub(crate) async fn stop(self) {
        let stopping = self.begin_stop();
        tokio::time::timeout(PATIENCE, stopping).await.unwrap().unwrap();
    }

    pub(crate) fn begin_stop(self) -> JoinHandle<()> {
        self.shutdown.send(()).unwrap();
        self.served
    }
}

/// The service that tests share which neither fill nor stop it.
pub(crate) fn shared() -> Api {
    static ADDRESS: OnceLock<SocketAddr> = OnceLock::new();
    let address = *ADDRESS.get_or_init(|| {
        let (address_tx, address_rx) = std::sync::mpsc::channel();
        // Each test has a runtime of its own that ends with it; the shared service needs one that stays.
        std::thread::spawn(move || {
            tokio::runtime::Runtime::new().unwrap().block_on(async {
                let application = Application::build(config(|_| {})).await.unwrap();
                address_tx.send(application.address()).unwrap();
                application.run_until(std::future::pending()).await;
            });
        });
        address_rx.recv_timeout(PATIENCE).unwrap()
    });
    Api::new(address)
}

/// A client of one service.
#[derive(Debug, Clone)]
pub(crate) struct Api {
    pub(crate) address: SocketAddr,
    client: Client,
}

/// An answer with everything a test looks at.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    /// The answer as a problem, after checking what every problem has.
    #[track_caller]
    pub(crate) fn problem(&self) -> Problem {
        assert_eq!(self.headers["content-type"], "application/problem+json", "{}", self.text);
        let problem: Problem = serde_json::from_str(&self.text).unwrap();
        assert_eq!(problem.status, self.status);
        assert_eq!(problem.r#type, format!("urn:sluice:problem:{}", problem.code));
        assert_eq!(problem.request_id.as_deref(), Some(self.headers["x-request-id"].as_str()));
        assert!(!problem.title.is_empty() && !problem.detail.is_empty());
        problem
    }
}

impl Api {
    pub(crate) fn new(address: SocketAddr) -> Self {
        Self { address, client: Client::builder().timeout(PATIENCE).build().unwrap() }
    }

    pub(crate) fn request(&self, method: &str, path: &str) -> RequestBuilder {
        self.client.request(method.parse().unwrap(), format!("http://{}{path}", self.address))
    }

    pub(crate) fn json_request(&self, path: &str, body: impl Into<reqwest::Body>) -> RequestBuilder {
        self.request("POST", path).header("content-type", "application/json").body(body)
    }

    pub(crate) async fn send(&self, request: RequestBuilder) -> Answer {
        let response = request.send().await.unwrap();
        let status = response.status().as_u16();
        let text_of = |value: &reqwest::header::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let headers = response.headers().iter().map(|(name, value)| (name.to_string(), text_of(value))).collect();
        Answer { status, headers, text: response.text().await.unwrap() }
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(self.request("GET", path)).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Answer {
        self.send(self.json_request(path, body.to_string())).await
    }

    /// The body of a post that must succeed.
    pub(crate) async fn post_ok(&self, path: &str, body: &Value) -> Value {
        let answer = self.post(path, body).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
        answer.json()
    }

    /// The sum of a metric over the label sets that contain `label`.
    pub(crate) async fn metric(&self, name: &str, label: &str) -> f64 {
        let page = self.get("/metrics").await.text;
        let samples = page.lines().filter(|line| line.contains(label));
        let samples = samples.filter_map(|line| line.strip_prefix(name)).filter(|rest| rest.starts_with(['{', ' ']));
        samples.filter_map(|rest| rest.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    /// Waits until the metric reaches `at_least`.
    pub(crate) async fn until_metric(&self, name: &str, at_least: f64) {
        let reached = async {
            while self.metric(name, "").await < at_least {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(PATIENCE, reached).await.unwrap_or_else(|_| panic!("{name} never reached {at_least}"));
    }
}

/// An id that no other test uses.
pub(crate) fn unique_id() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("evt-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A whole event with an id of its own.
pub(crate) fn event() -> Value {
    json!({
        "id": unique_id(), "source": "wms/dc-atlanta", "occurred_at": "2026-05-18T14:03:22Z",
        "tenant": "default", "business_unit": "industrial", "site": "DC-ATL",
        "narrative": "Line 2 short pick, found 28 of 40 in the bin, nothing in reserve. Replenishment is due tomorrow morning.",
        "order": {
            "id": "SO-45001823", "value": 18250.0, "margin": 0.21, "currency": "USD", "priority": "standard",
            "promised_ship_at": "2026-05-18T22:00:00Z", "requested_delivery_at": "2026-05-20T15:00:00Z",
            "carrier_cutoff_at": "2026-05-18T20:30:00Z", "partial_allowed": true, "regulated": false, "export_controlled": false,
            "lines": [{"line": 2, "sku": "BRG-6204", "ordered": 40, "available": 28, "unit_price": 31.5,
                "substitutes": [{"sku": "BRG-6204-2RS", "available": 60, "approved": true}],
                "replenishment_at": "2026-05-19T10:00:00Z", "replenishment_confirmed": true}]
        },
        "customer": {"id": "C-1009", "sla_tier": "gold", "credit_limit": 50000, "credit_exposure": 31200, "days_overdue": 0,
            "requires_authorization": false, "on_time_in_full_90d": 0.93},
        "shipment": {"carrier": "ACME", "service_level": "ground", "mode": "ltl", "freight_cost": 410.0, "alternate_carriers": 2},
        "attributes": {"lane": "ATL-MIA"}
    })
}

/// `event` with the value at a JSON pointer replaced.
pub(crate) fn event_with(pointer: &str, value: Value) -> Value {
    let mut event = event();
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    event.pointer_mut(parent).unwrap()[name] = value;
    event
}

/// Ten narratives of different kinds and lengths.
pub(crate) const NARRATIVES: [&str; 10] = [
    "Line 2 short pick, found 28 of 40 in the bin, nothing in reserve.",
    "Carrier missed the 16:30 pickup, driver out of hours, trailer still at dock 7.",
    "Price on the PO is 31.50 but the contract says 29.80, customer refuses the invoice.",
    "Order on credit hold, exposure is over the limit since Friday.",
    "Ship-to address does not exist according to the carrier, postcode belongs to another town.",
    "Two pallets arrived with crushed corners, eleven cartons wet, driver noted damage on the POD.",
    "The lot expires in nine days and this customer takes nothing under thirty.",
    "Export licence for the valve kits is still pending with the authority, cannot release.",
    "Same PO keyed twice by the portal within a minute, second order looks like a duplicate.",
    "ok",
];

/// A narrative that keeps the encoder busy for as long as one may.
pub(crate) fn long_narrative() -> String {
    NARRATIVES.join(" ").repeat(3)
}
