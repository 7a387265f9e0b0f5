//! The whole path over HTTP on loopback: classify and recommend at 1, 8 and 32 clients that each send the next request when the
//! last is answered. Requests a second, and the median and 99th percentile of what a client waits.
//!
//! Criterion knows no percentiles under load, so this counts by itself. Service and clients share the machine's cores, and the
//! store lies in `SLUICE_BENCH_STORE` where that is set, else in the temporary directory. `SLUICE_BENCH_SECONDS` is the time of
//! each row.

// A table on standard output is what a bench is for.
#![allow(clippy::print_stdout)]

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use reqwest::Client;
use serde_json::{Value, json};
use sluice::application::Application;
use sluice::config::RawConfig;
use tempfile::TempDir;

/// Between 45 and 60 tokens each, the length of a usual ERP note.
const NARRATIVES: [&str; 4] = [
    "Short pick on line 2, picker found 28 of 40 in bin A-14-03 and nothing in reserve, cycle count requested. Replenishment is \
     booked for tomorrow morning, customer takes partial shipments.",
    "Carrier missed the 16:30 pickup because the driver ran out of hours, the trailer is still at dock 7 with the seal on, next \
     collection is tomorrow at noon and the promised date will not hold.",
    "Customer disputes the price on line 4, the purchase order says 31.50 but the contract in force since March says 29.80, sales \
     was asked which one stands, order waits in billing block.",
    "Two pallets came back with crushed corners and eleven cartons are wet, the driver noted the damage on the delivery receipt, \
     photos are in the file, claim to the carrier is not opened yet.",
];
const CLIENTS: [usize; 3] = [1, 8, 32];

fn main() {
    let seconds = std::env::var("SLUICE_BENCH_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(8.0);
    let time = Duration::from_secs_f64(seconds);
    let (address, _store) = serve();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    println!("{:<10} {:>8} {:>12} {:>10} {:>10} {:>10}", "resource", "clients", "requests/s", "p50 ms", "p99 ms", "refused");
    for resource in ["classify", "recommend"] {
        runtime.block_on(load(address, resource, 2, time / 4));
        for clients in CLIENTS {
            let Load { mut latencies, refused, elapsed } = runtime.block_on(load(address, resource, clients, time));
            latencies.sort_unstable();
            let rate = latencies.len() as f64 / elapsed.as_secs_f64();
            let quantile = |share: f64| {
                let rank = (latencies.len() as f64 * share) as usize;
                latencies.get(rank.min(latencies.len() - 1)).map_or(f64::NAN, |latency| latency.as_secs_f64() * 1e3)
            };
            let (p50, p99) = (quantile(0.5), quantile(0.99));
            println!("{resource:<10} {clients:>8} {rate:>12.1} {p50:>10.2} {p99:>10.2} {refused:>10}");
        }
    }
}

struct Load {
    latencies: Vec<Duration>,
    refused: usize,
    elapsed: Duration,
}

/// Closed loop: `clients` callers for `time`.
async fn load(address: SocketAddr, resource: &'static str, clients: usize, time: Duration) -> Load {
    let client = Client::new();
    let started = Instant::now();
    let callers: Vec<_> = (0..clients)
        .map(|caller| {
            let client = client.clone();
            let url = format!("http://{address}/v1/{resource}");
            tokio::spawn(async move {
                let (mut latencies, mut refused) = (Vec::new(), 0);
                for round in caller.. {
                    if started.elapsed() >= time {
                        break;
                    }
                    let request = client.post(&url).header("content-type", "application/json").body(event(round).to_string());
                    let sent = Instant::now();
                    let response = request.send().await.expect("the service answers");
                    let succeeded = response.status().is_success();
                    let body = response.bytes().await.expect("the answer has an end");
                    assert!(!body.is_empty());
                    if succeeded { latencies.push(sent.elapsed()) } else { refused += 1 }
                }
                (latencies, refused)
            })
        })
        .collect();
    let (mut latencies, mut refused) = (Vec::new(), 0);
    for caller in callers {
        let (own, own_refused) = caller.await.expect("a caller does not panic");
        latencies.extend(own);
        refused += own_refused;
    }
    Load { latencies, refused, elapsed: started.elapsed() }
}

fn event(round: usize) -> Value {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    json!({
        "id": format!("evt-{}", NEXT.fetch_add(1, Ordering::Relaxed)), "source": "bench", "occurred_at": "2026-05-18T14:03:22Z",
        // The number makes each text one of its own, as in life; a cache must not be what is measured.
        "narrative": format!("{} Ref {round}.", NARRATIVES[round % NARRATIVES.len()]), "site": "DC-ATL",
        "order": {"id": "SO-45001823", "value": 18250.0, "margin": 0.21, "currency": "USD", "priority": "standard",
            "promised_ship_at": "2026-05-18T22:00:00Z", "carrier_cutoff_at": "2026-05-18T20:30:00Z", "partial_allowed": true,
            "lines": [{"line": 2, "sku": "BRG-6204", "ordered": 40, "available": 28, "unit_price": 31.5}]},
        "customer": {"id": "C-1009", "sla_tier": "gold", "credit_limit": 50000, "credit_exposure": 31200, "days_overdue": 0},
        "shipment": {"carrier": "ACME", "mode": "ltl", "freight_cost": 410.0}
    })
}

/// The service on a thread and runtime of its own, until the process ends.
fn serve() -> (SocketAddr, TempDir) {
    let directory = match std::env::var_os("SLUICE_BENCH_STORE") {
        Some(parent) => tempfile::tempdir_in(parent),
        None => tempfile::tempdir(),
    };
    let directory = directory.expect("a temporary directory");
    let mut config = RawConfig::defaults();
    config.server.listen = "127.0.0.1:0".parse().expect("an address");
    config.bundle.path = concat!(env!("CARGO_MANIFEST_DIR"), "/models/bundles/default").into();
    config.store.path = directory.path().join("bench.db");
    let config = config.check().expect("the defaults are accepted");
    let (address_tx, address_rx) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        tokio::runtime::Runtime::new().expect("a runtime").block_on(async {
            let application = Application::build(config).await.expect("the committed bundle loads");
            address_tx.send(application.address()).expect("the bench waits");
            application.run_until(std::future::pending()).await;
        });
    });
    (address_rx.recv().expect("the service starts"), directory)
}
