use std::time::Duration;

use serde_json::{Value, json};
use sluice::error::ErrorCode;
use sluice::http::docs;
use sluice::http::problem::{self, Problem};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::{Api, NARRATIVES, PATIENCE, TestApp, event, event_with, long_narrative, shared, unique_id};

/// Scores of one text alone and among others may differ by this much (`design` principle 5: packed batches change only the
/// order of floating-point sums).
const SCORE_TOLERANCE: f64 = 1e-4;

const EVENT_ROUTES: [&str; 4] = ["/v1/classify", "/classify", "/v1/recommend", "/recommend"];
const BATCH_ROUTES: [&str; 4] = ["/v1/classify/batch", "/classify/batch", "/v1/recommend/batch", "/recommend/batch"];

/// What a bad body must be answered with.
struct Bad {
    body: String,
    content_type: Option<&'static str>,
    status: u16,
    code: &'static str,
    field: Option<&'static str>,
}

impl Bad {
    fn json(body: impl ToString, field: &'static str) -> Self {
        let content_type = Some("application/json");
        Self { body: body.to_string(), content_type, status: 422, code: "invalid_request", field: Some(field) }
    }

    fn malformed(body: impl ToString) -> Self {
        let content_type = Some("application/json");
        Self { body: body.to_string(), content_type, status: 400, code: "invalid_json", field: None }
    }

    fn typed(content_type: Option<&'static str>) -> Self {
        let field = Some("content-type");
        Self { body: event().to_string(), content_type, status: 415, code: "unsupported_media_type", field }
    }
}

async fn check_bad(api: &Api, path: &str, bad: &Bad) {
    let mut request = api.request("POST", path).body(bad.body.clone());
    if let Some(content_type) = bad.content_type {
        request = request.header("content-type", content_type);
    }
    let answer = api.send(request).await;
    let shown = &bad.body[..bad.body.len().min(120)];
    assert_eq!(answer.status, bad.status, "{path} {shown}: {}", answer.text);
    let problem = answer.problem();
    assert_eq!((problem.code.as_str(), problem.field.as_deref()), (bad.code, bad.field), "{path} {shown}: {problem:?}");
}

fn without(name: &str) -> Value {
    let mut event = event();
    event.as_object_mut().unwrap().remove(name);
    event
}

#[tokio::test]
async fn an_explanation_names_what_carried_the_answer_and_is_asked_for() {
    let api = shared();
    let mut event = event();
    event["narrative"] = json!(
        "Good morning from the dock. The customer's credit limit is exceeded and finance has blocked the order. Have a nice day."
    );
    let plain = api.post_ok("/v1/classify", &event).await;
    assert_eq!(plain["classification"].get("explanation"), None);

    let explained = api.post_ok("/v1/classify?explain=true", &event).await;
    assert_eq!(explained["classification"]["candidates"], plain["classification"]["candidates"]);
    let explanation = &explained["classification"]["explanation"];
    assert_eq!(explanation["type"], plain["classification"]["candidates"][0]["type"]);
    let segments = explanation["segments"].as_array().unwrap();
    let texts: Vec<&str> = segments.iter().map(|segment| segment["text"].as_str().unwrap()).collect();
    assert_eq!(texts.join(" "), event["narrative"].as_str().unwrap());
    let weight = |idx: usize| segments[idx]["weight"].as_f64().unwrap();
    assert!(weight(1) > weight(0) && weight(1) > weight(2), "{explanation}");

    event["id"] = json!(unique_id());
    let decided = api.post_ok("/v1/recommend?explain=true", &event).await;
    assert_eq!(decided["classification"]["explanation"]["segments"].as_array().map(Vec::len), Some(3));
    for query in ["explain=maybe", "explain", "explain=true&explain=true", "expl=true"] {
        let answer = api.post(&format!("/v1/classify?{query}"), &event).await;
        assert_eq!((answer.status, answer.problem().field.as_deref()), (422, Some("query")), "{query}");
    }
}

#[tokio::test]
async fn bad_input_is_a_problem_that_names_the_field() {
    let api = shared();
    let rows = [
        Bad::malformed(""),
        Bad::malformed("{"),
        Bad::malformed("not json"),
        Bad::malformed(format!("{} {{}}", event())),
        Bad::malformed(r#"{"narrative": NaN}"#),
        Bad::malformed(r#"{"narrative": "x", "order": {"value": Infinity}}"#),
        Bad::malformed("{\"narrative\": \"\u{1}\"}"),
        Bad { field: None, ..Bad::json("[]", "") },
        Bad { field: None, ..Bad::json("null", "") },
        Bad { field: None, ..Bad::json("\"text\"", "") },
        Bad::json(without("narrative"), "narrative"),
        Bad::json(r#"{"narrative": "a", "narrative": "b"}"#, "narrative"),
        Bad::json(r#"{"narrative": "a", "attributes": {"x": 1, "x": 2}}"#, "attributes.x"),
        Bad::json(r#"{"narrative": "a", "order": {"value": 1e999}}"#, "order.value"),
        Bad::json(event_with("/order", json!([1])), "order"),
        Bad::json(event_with("/narrative", json!("")), "narrative"),
        Bad::json(event_with("/narrative", json!(" \n\t ")), "narrative"),
        Bad::json(event_with("/narrative", json!(42)), "narrative"),
        Bad::json(event_with("/narrative", Value::Null), "narrative"),
        Bad::json(event_with("/narrative", json!("x".repeat(50_000))), "narrative"),
        Bad::json(event_with("/narrative", json!("\u{fdfa}".repeat(31_900))), "narrative"),
        Bad::json(event_with("/order/margin", json!(1e308)), "order.margin"),
        Bad::json(
            r#"{"narrative": "x", "order": {"lines": [LINES]}}"#.replace("LINES", &vec!["{}"; 20_000].join(",")),
            "order.lines",
        ),
        Bad::json(event_with("/colour", json!("red")), "colour"),
        Bad::json(event_with("/order/colour", json!("red")), "order.colour"),
        Bad::json(event_with("/order/lines/0/colour", json!("red")), "order.lines[0].colour"),
        Bad::json(event_with("/occurred_at", json!("yesterday")), "occurred_at"),
        Bad::json(event_with("/occurred_at", json!("2026-05-18T14:03:22")), "occurred_at"),
        Bad::json(event_with("/occurred_at", json!(1_779_113_002)), "occurred_at"),
        Bad::json(event_with("/order/carrier_cutoff_at", json!("2026-02-30T00:00:00Z")), "order.carrier_cutoff_at"),
        Bad::json(event_with("/order/value", json!("18250")), "order.value"),
        Bad::json(event_with("/order/value", json!(-1.0)), "order.value"),
        Bad::json(event_with("/order/currency", json!("dollars")), "order.currency"),
        Bad::json(event_with("/order/lines/0/ordered", json!(-40)), "order.lines[0].ordered"),
        Bad::json(event_with("/order/lines/0/available", json!(-1)), "order.lines[0].available"),
        Bad::json(event_with("/order/lines/0/line", json!(1.5)), "order.lines[0].line"),
        Bad::json(event_with("/order/lines/0/substitutes/0/available", json!(-1)), "order.lines[0].substitutes[0].available"),
        Bad::json(event_with("/order/regulated", json!("yes")), "order.regulated"),
        Bad::json(event_with("/customer/on_time_in_full_90d", json!(93)), "customer.on_time_in_full_90d"),
        Bad::json(event_with("/shipment/alternate_carriers", json!(-2)), "shipment.alternate_carriers"),
        Bad::json(event_with("/attributes/nested", json!({"a": 1})), "attributes.nested"),
        Bad::json(event_with("/id", json!("")), "id"),
        Bad::json(event_with("/id", json!("x".repeat(300))), "id"),
        Bad::json(event_with("/source", json!("  ")), "source"),
        Bad::json(event_with("/tenant", json!("")), "tenant"),
        Bad::typed(None),
        Bad::typed(Some("text/plain")),
        Bad::typed(Some("application/x-www-form-urlencoded")),
        Bad::typed(Some("application/json; charset=utf-16")),
        Bad::typed(Some("application/x-ndjson")),
        Bad {
            status: 413,
            code: "payload_too_large",
            ..Bad { field: None, ..Bad::json(format!("{{\"narrative\":\"{}\"}}", "x".repeat(9 << 20)), "") }
        },
    ];
    for bad in &rows {
        for path in EVENT_ROUTES {
            check_bad(&api, path, bad).await;
        }
    }
    for path in ["/v1/recommend", "/recommend"] {
        for name in ["id", "source", "occurred_at"] {
            check_bad(&api, path, &Bad::json(without(name), name)).await;
        }
    }
}

#[tokio::test]
async fn a_bad_batch_is_a_problem_as_a_whole() {
    let api = shared();
    let many: Vec<Value> = (0..257).map(|_| json!({"narrative": "x"})).collect();
    let rows = [
        Bad::malformed(""),
        Bad::malformed("{"),
        Bad { field: None, ..Bad::json("[]", "") },
        Bad::json(json!({"events": {}}), "events"),
        Bad::json(json!({"events": many}), "events"),
        // What follows the event too many is not looked at.
        Bad::json(format!("{{\"events\":[{}oops", "1,".repeat(100_000)), "events"),
        Bad::typed(Some("text/plain")),
        Bad::typed(Some("application/cloudevents+json")),
    ];
    for bad in &rows {
        for path in BATCH_ROUTES {
            check_bad(&api, path, bad).await;
        }
    }
    assert_eq!(api.post("/v1/classify/batch", &json!({})).await.status, 422);
    assert_eq!(api.post("/v1/classify/batch", &json!({"events": [], "colour": 1})).await.status, 422);
    assert_eq!(api.post_ok("/v1/classify/batch", &json!({"events": []})).await, json!({"results": []}));
}

#[tokio::test]
async fn a_wrong_address_or_method_is_a_problem() {
    async fn check(method: &str, path: &str, expected: (u16, &str), allow: Option<&str>) {
        let api = shared();
        let answer = api.send(api.request(method, path)).await;
        assert_eq!(answer.status, expected.0, "{method} {path}: {}", answer.text);
        assert_eq!(answer.problem().code, expected.1, "{method} {path}");
        assert_eq!(answer.headers.get("allow").map(String::as_str), allow, "{method} {path}");
    }

    for path in ["/", "/v1", "/v2/classify", "/v1/classify/", "/v1/decisions", "/livez/x", "/docs/nothing.js"] {
        check("GET", path, (404, "not_found"), None).await;
    }
    for path in EVENT_ROUTES.iter().chain(&BATCH_ROUTES) {
        for method in ["GET", "PUT", "DELETE", "OPTIONS"] {
            check(method, path, (405, "method_not_allowed"), Some("POST")).await;
        }
    }
    for path in ["/livez", "/readyz", "/metrics", "/openapi.json", "/docs/", "/v1/decisions/x"] {
        check("POST", path, (405, "method_not_allowed"), Some("GET,HEAD")).await;
    }
    check("GET", "/v1/decisions/nobody", (404, "not_found"), None).await;
    check("GET", "/docs/%ff", (404, "not_found"), None).await;
    check("GET", "/v1/decisions/%ff", (422, "invalid_request"), None).await;
    check("GET", "/livez?verbose=1", (422, "invalid_request"), None).await;
    check("POST", "/v1/classify?colour=red", (422, "invalid_request"), None).await;
    check("GET", &format!("/livez?{}", "a".repeat(9_000)), (414, "uri_too_long"), None).await;
    let head = shared().send(shared().request("HEAD", "/livez")).await;
    assert_eq!((head.status, head.text.as_str()), (200, ""));
}

#[tokio::test]
async fn an_encoded_body_and_huge_headers_are_refused() {
    let api = shared();
    let encoded = api.json_request("/v1/classify", event().to_string()).header("content-encoding", "gzip");
    let answer = api.send(encoded).await;
    assert_eq!((answer.status, answer.problem().field.as_deref()), (415, Some("content-encoding")));
    let huge = api.json_request("/v1/classify", event().to_string()).header("x-huge", "a".repeat(40_000));
    assert_eq!(api.send(huge).await.problem().code, "headers_too_large");
}

#[tokio::test]
async fn classify_says_what_it_is_and_what_is_at_stake() {
    let api = shared();
    for path in ["/v1/classify", "/classify"] {
        let answer = api.post(path, &event()).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        let body = answer.json();
        let classification = &body["classification"];
        let candidates = classification["candidates"].as_array().unwrap();
        assert!(candidates.len() > 1);
        let scores: Vec<f64> = candidates.iter().map(|candidate| candidate["score"].as_f64().unwrap()).collect();
        assert!(scores.is_sorted_by(|a, b| a >= b) && scores.iter().all(|score| (0.0..=1.0).contains(score)), "{scores:?}");
        assert!(classification["tokens"]["used"].as_u64().unwrap() <= classification["tokens"]["total"].as_u64().unwrap());
        assert!(body["risk"]["sla_breach"]["score"].as_f64().unwrap() > 0.0);
        assert_eq!(body["bundle"]["hash"].as_str().unwrap().len(), 64);
        let timing = &answer.headers["server-timing"];
        for room in ["tokenize", "queue", "encode", "risk", "policy", "commit", "total"] {
            assert!(timing.contains(&format!("{room};dur=")), "{timing}");
        }
    }
    let bare = api.post_ok("/v1/classify", &json!({"narrative": NARRATIVES[1]})).await;
    assert_eq!(bare["event_id"], Value::Null);
}

#[tokio::test]
async fn the_same_event_gets_the_same_decision_and_another_body_conflicts() {
    let api = shared();
    let event = event();
    let first = api.post_ok("/v1/recommend", &event).await;
    assert_eq!(first["replayed"], false);
    assert_eq!(first["event_id"], event["id"]);
    assert!(first["recommendations"].as_array().unwrap().iter().any(|row| row["action"] == first["action"]));
    assert!(!first["reason_codes"].as_array().unwrap().is_empty());
    assert!(!first["summary"].as_str().unwrap().is_empty());
    assert_eq!(first["audit"]["hash"].as_str().unwrap().len(), 64);

    let mut repeated = api.post_ok("/recommend", &event).await;
    assert_eq!(repeated["replayed"], true);
    let mut stored = api.get(&format!("/v1/decisions/{}", first["decision_id"].as_str().unwrap())).await.json();
    for other in [&mut repeated, &mut stored] {
        other["replayed"] = false.into();
        assert_eq!(*other, first);
    }

    let mut changed = event.clone();
    changed["order"]["value"] = 18_251.into();
    let conflict = api.post("/v1/recommend", &changed).await;
    assert_eq!((conflict.status, conflict.problem().code.as_str()), (409, "conflict"));
    // Another tenant or source is another event.
    for (name, value) in [("tenant", "another"), ("source", "wms/elsewhere")] {
        let mut other = event.clone();
        other[name] = value.into();
        assert_eq!(api.post_ok("/v1/recommend", &other).await["replayed"], false);
    }
}

#[tokio::test]
async fn a_batch_with_four_bad_items_answers_the_others_as_if_alone() {
    let api = shared();
    for path in ["/v1/classify", "/v1/recommend"] {
        let mut items: Vec<String> = (0..32).map(|idx| event_with("/narrative", json!(NARRATIVES[idx % 10])).to_string()).collect();
        let events = items.clone();
        let bad = [(3, 400, "invalid_json"), (11, 422, "invalid_request"), (19, 422, "invalid_request"), (27, 400, "invalid_json")];
        items[3] = r#"{"id": "x", "narrative": nonsense}"#.to_owned();
        items[11] = event_with("/narrative", json!("")).to_string();
        items[19] = event_with("/narrative", json!("x".repeat(50_000))).to_string();
        items[27] = event_with("/order/value", json!(0.5)).to_string().replace("0.5", "NaN");
        let body = format!("{{\"events\":[{}]}}", items.join(","));
        let answer = api.send(api.json_request(&format!("{path}/batch"), body)).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        let results = answer.json()["results"].as_array().unwrap().clone();
        assert_eq!(results.len(), 32);
        for (idx, result) in results.iter().enumerate() {
            if let Some((_, status, code)) = bad.iter().find(|(bad_idx, ..)| *bad_idx == idx) {
                assert_eq!((&result["status"], &result["problem"]["code"]), (&json!(status), &json!(code)), "{result}");
                assert!(result.get("body").is_none());
                continue;
            }
            assert_eq!(result["status"], 200, "{result}");
            let event: Value = serde_json::from_str(&events[idx]).unwrap();
            assert_eq!(result["body"]["event_id"], event["id"]);
            // Under another id, or the decision would be a repeat.
            let mut alone = event.clone();
            alone["id"] = unique_id().into();
            check_same_answer(&result["body"], &api.post_ok(path, &alone).await);
        }
    }
}

#[tokio::test]
async fn within_a_batch_the_earlier_of_two_events_with_one_key_wins() {
    let api = shared();
    for round in 0..4 {
        // Of each key: an event, another body, the event again, and yet another body.
        let keys: Vec<Value> = (0..4).map(|_| event()).collect();
        let mut events = Vec::new();
        for copy in 0..4 {
            for event in &keys {
                let mut event = event.clone();
                if copy % 2 == 1 {
                    event["order"]["value"] = (20_000 + copy).into();
                }
                events.push(event);
            }
        }
        let results = if round % 2 == 0 {
            api.post_ok("/v1/recommend/batch", &json!({"events": events})).await["results"].as_array().unwrap().clone()
        } else {
            let lines: Vec<String> = events.iter().map(Value::to_string).collect();
            let request = api.request("POST", "/v1/recommend/batch").header("content-type", "application/x-ndjson");
            let text = api.send(request.body(lines.join("\n"))).await.text;
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
        };
        for (idx, result) in results.iter().enumerate() {
            let first = &results[idx % 4]["body"];
            assert_eq!(first["replayed"], false);
            match idx / 4 {
                0 => assert_eq!(result["status"], 200),
                2 => {
                    assert_eq!((&result["body"]["decision_id"], &result["body"]["replayed"]), (&first["decision_id"], &json!(true)))
                }
                _ => assert_eq!((&result["status"], &result["problem"]["code"]), (&json!(409), &json!("conflict"))),
            }
        }
    }
}

#[tokio::test]
async fn a_json_batch_says_where_its_time_went_and_a_stream_cannot() {
    let api = shared();
    for path in ["/v1/classify/batch", "/v1/recommend/batch"] {
        let events: Vec<Value> = (0..3).map(|_| event()).collect();
        let answer = api.post(path, &json!({"events": events})).await;
        let timing = &answer.headers["server-timing"];
        let milliseconds = |room: &str| -> f64 {
            let entry = timing.split(", ").find_map(|entry| entry.strip_prefix(&format!("{room};dur="))).unwrap();
            entry.parse().unwrap()
        };
        assert!(milliseconds("encode") > 0.0 && milliseconds("total") >= milliseconds("encode"), "{timing}");
        assert_eq!(milliseconds("commit") > 0.0, path.contains("recommend"), "{timing}");
    }
    let request = api.request("POST", "/v1/classify/batch").header("content-type", "application/x-ndjson");
    let streamed = api.send(request.body(json!({"narrative": NARRATIVES[0]}).to_string())).await;
    assert_eq!((streamed.status, streamed.headers.get("server-timing")), (200, None));
}

#[tokio::test]
async fn one_bad_cloud_event_fails_no_neighbour() {
    let api = shared();
    let envelope = |id: &str| {
        json!({"specversion": "1.0", "type": "t", "id": id, "source": "s", "data": {"narrative": NARRATIVES[0]}}).to_string()
    };
    let nan = envelope("b").replace(r#"{"narrative""#, r#"{"order":{"value":NaN},"narrative""#);
    let body = format!("[{},{nan},{{oops}},{}]", envelope("a"), envelope("c"));
    let request = api.request("POST", "/v1/classify/batch").header("content-type", "application/cloudevents-batch+json");
    let results = api.send(request.body(body)).await.json()["results"].clone();
    let statuses: Vec<&Value> = results.as_array().unwrap().iter().map(|result| &result["status"]).collect();
    assert_eq!(statuses, [200, 400, 400, 200]);
    assert_eq!(results[3]["body"]["event_id"], "c");
    for (body, status) in [("{}", 422), ("[", 400), (&format!("[{}oops", "1,".repeat(100_000)), 422)] {
        let request = api.request("POST", "/v1/classify/batch").header("content-type", "application/cloudevents-batch+json");
        assert_eq!(api.send(request.body(body.to_owned())).await.status, status);
    }
}

#[tokio::test]
async fn bodies_that_are_held_back_keep_only_large_ones_out() {
    let app = TestApp::spawn(|config| {
        config.server.max_buffered_bytes = 256 << 10;
        config.server.max_body_bytes = 128 << 10;
        config.server.max_line_bytes = 64 << 10;
    })
    .await;
    let attributes: serde_json::Map<String, Value> = (0..200).map(|idx| (format!("a{idx}"), "x".repeat(256).into())).collect();
    let large = event_with("/attributes", attributes.into());
    let mut slow = TcpStream::connect(app.api.address).await.unwrap();
    let head = b"POST /v1/classify HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 130000\r\n\r\n";
    slow.write_all(head).await.unwrap();
    slow.write_all(&[b' '; 120_000]).await.unwrap();

    // Until the service has read what the slow caller sent, and again once the slow caller has gone.
    async fn until(api: &Api, event: &Value, status: u16) {
        let reached = async { while api.post("/v1/classify", event).await.status != status {} };
        tokio::time::timeout(PATIENCE, reached).await.unwrap();
    }

    until(&app.api, &large, 429).await;
    let refused = app.api.post("/v1/classify", &large).await;
    assert!(refused.problem().retryable && refused.headers.contains_key("retry-after"));
    assert_eq!(app.api.post("/v1/classify", &event()).await.status, 200);
    drop(slow);
    until(&app.api, &large, 200).await;
    app.stop().await;
}

#[tokio::test]
async fn a_stream_too_many_is_refused_until_another_ends() {
    let app = TestApp::spawn(|config| config.server.max_streams = 1).await;
    let open = async || {
        let (line_tx, line_rx) = tokio::sync::mpsc::channel::<Result<String, std::io::Error>>(1);
        let lines = futures_util::stream::unfold(line_rx, async |mut line_rx| Some((line_rx.recv().await?, line_rx)));
        let request = app.api.request("POST", "/v1/classify/batch").header("content-type", "application/x-ndjson");
        let response = request.body(reqwest::Body::wrap_stream(lines)).send().await.unwrap();
        (response.status().as_u16(), line_tx, response)
    };
    let first = open().await;
    assert_eq!((first.0, open().await.0), (200, 429));
    drop(first);
    let reopened = async { while open().await.0 != 200 {} };
    tokio::time::timeout(PATIENCE, reopened).await.unwrap();
    app.stop().await;
}

#[tokio::test]
async fn a_caller_who_takes_no_answer_is_left() {
    let app = TestApp::spawn(|config| config.server.write_timeout_ms = 200).await;
    let mut stream = TcpStream::connect(app.api.address).await.unwrap();
    let head =
        b"POST /v1/classify/batch HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\n\r\n";
    stream.write_all(head).await.unwrap();
    // Each line is answered with a problem that is many times as long, and none is ever read.
    let lines = "x\n".repeat(0x800);
    let chunk = format!("{:x}\r\n{lines}\r\n", lines.len());
    let writing = async { while stream.write_all(chunk.as_bytes()).await.is_ok() {} };
    assert!(tokio::time::timeout(PATIENCE, writing).await.is_ok(), "the connection lives on");
    app.stop().await;
}

/// Two answers to one event say the same.
#[track_caller]
fn check_same_answer(left: &Value, right: &Value) {
    assert_eq!(left["disposition"], right["disposition"]);
    assert_eq!(left["action"], right["action"]);
    let (left, right) = (&left["classification"], &right["classification"]);
    assert_eq!(left["type"], right["type"]);
    for name in ["score", "acceptance", "novelty"] {
        let distance = (left[name].as_f64().unwrap() - right[name].as_f64().unwrap()).abs();
        assert!(distance <= SCORE_TOLERANCE, "{name} differs by {distance}");
    }
}

#[tokio::test]
async fn ndjson_is_answered_line_by_line_in_order() {
    let api = shared();
    let n_lines = 150;
    let mut lines: Vec<String> =
        (0..n_lines).map(|idx| event_with("/narrative", json!(NARRATIVES[idx % 10])).to_string()).collect();
    let ids: Vec<Value> = lines.iter().map(|line| serde_json::from_str::<Value>(line).unwrap()["id"].clone()).collect();
    lines[7] = "not json".to_owned();
    lines[9] = format!("{{\"narrative\":\"{}\"}}", "x".repeat(2 << 20));
    lines[20] = without("occurred_at").to_string();
    let request = api.request("POST", "/v1/recommend/batch").header("content-type", "application/x-ndjson");
    let answer = api.send(request.body(lines.join("\n\n"))).await;
    assert_eq!((answer.status, answer.headers["content-type"].as_str()), (200, "application/x-ndjson"));
    let results: Vec<Value> = answer.text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(results.len(), n_lines);
    for (idx, result) in results.iter().enumerate() {
        let expected = match idx {
            7 => 400,
            9 => 413,
            20 => 422,
            _ => 200,
        };
        assert_eq!(result["status"], expected, "line {idx}: {result}");
        match expected {
            200 => assert_eq!(result["body"]["event_id"], ids[idx]),
            _ => assert_eq!(result["problem"]["request_id"], answer.headers["x-request-id"]),
        }
    }
}

#[tokio::test]
async fn ndjson_answers_a_line_before_the_next_is_sent() {
    let api = shared();
    let (line_tx, line_rx) = tokio::sync::mpsc::channel::<Result<String, std::io::Error>>(1);
    let lines = futures_util::stream::unfold(line_rx, async |mut line_rx| Some((line_rx.recv().await?, line_rx)));
    let request = api.request("POST", "/v1/classify/batch").header("content-type", "application/x-ndjson");
    let mut response = request.body(reqwest::Body::wrap_stream(lines)).send().await.unwrap();
    for narrative in &NARRATIVES[..3] {
        line_tx.send(Ok(json!({"narrative": narrative}).to_string() + "\n")).await.unwrap();
        let chunk = response.chunk().await.unwrap().unwrap();
        let result: Value = serde_json::from_slice(&chunk).unwrap();
        assert_eq!(result["status"], 200);
    }
    drop(line_tx);
    assert_eq!(response.chunk().await.unwrap(), None);
}

#[tokio::test]
async fn cloud_events_carry_the_same_event_in_every_mode() {
    let api = shared();
    let mut data = event();
    let id = data["id"].clone();
    let occurred_at = data["occurred_at"].clone();
    for name in ["id", "source", "occurred_at"] {
        data.as_object_mut().unwrap().remove(name);
    }
    let envelope = json!({"specversion": "1.0", "type": "com.example.exception", "id": id, "source": "wms/dc-atlanta",
        "time": occurred_at, "datacontenttype": "application/json", "data": data});
    let structured = api.request("POST", "/v1/recommend").header("content-type", "application/cloudevents+json");
    let first = api.send(structured.body(envelope.to_string())).await;
    assert_eq!(first.status, 200, "{}", first.text);

    let binary = api.json_request("/v1/recommend", data.to_string()).header("ce-specversion", "1.0").header("ce-type", "t");
    let binary = binary.header("ce-id", id.as_str().unwrap()).header("ce-source", "wms/dc-atlanta");
    let second = api.send(binary.header("ce-time", occurred_at.as_str().unwrap())).await;
    assert_eq!(second.json()["replayed"], true, "{}", second.text);

    let batch = api.request("POST", "/v1/recommend/batch").header("content-type", "application/cloudevents-batch+json");
    let third = api.send(batch.body(json!([envelope, {"specversion": "1.0"}]).to_string())).await.json();
    assert_eq!(third["results"][0]["body"]["replayed"], true);
    assert_eq!(third["results"][1]["problem"]["field"], "id");
}

#[tokio::test]
async fn a_request_id_is_kept_or_given() {
    let api = shared();
    for path in ["/livez", "/nowhere"] {
        let kept = api.send(api.request("GET", path).header("x-request-id", "caller-1")).await;
        assert_eq!(kept.headers["x-request-id"], "caller-1");
        for unsafe_id in ["two words", "", &"a".repeat(200)] {
            let given = api.send(api.request("GET", path).header("x-request-id", unsafe_id)).await;
            assert_eq!(given.headers["x-request-id"].len(), 36, "{path} {unsafe_id}");
        }
    }
    assert_ne!(api.get("/livez").await.headers["x-request-id"], api.get("/livez").await.headers["x-request-id"]);
}

#[tokio::test]
async fn a_deadline_is_honoured() {
    // One of its own: where others wait before it, a deadline that cannot be kept is refused as overload instead.
    let app = TestApp::spawn(|_| {}).await;
    let api = &app.api;
    let check = async |deadline: &str, narrative: &str, expected: u16| {
        for path in ["/v1/classify", "/v1/recommend"] {
            let event = event_with("/narrative", json!(narrative));
            let answer = api.send(api.json_request(path, event.to_string()).header("x-deadline-ms", deadline)).await;
            assert_eq!(answer.status, expected, "{path} {deadline}: {}", answer.text);
            match expected {
                422 => assert_eq!(answer.problem().field.as_deref(), Some("x-deadline-ms")),
                504 => assert!(answer.problem().retryable),
                _ => {}
            }
        }
    };

    for malformed in ["soon", "-1", "1.5", "", "99999999999999999999999"] {
        check(malformed, NARRATIVES[0], 422).await;
    }
    check("0", NARRATIVES[0], 504).await;
    check("1", &long_narrative(), 504).await;
    check("60000", NARRATIVES[0], 200).await;
    check("18446744073709551615", NARRATIVES[0], 200).await;
    app.stop().await;
}

#[tokio::test]
async fn overload_is_answered_at_once_and_passes() {
    let app = TestApp::spawn(|config| {
        config.server.max_in_flight = 2;
        config.server.max_batch_items = 2;
        config.server.stream_concurrency = 2;
    })
    .await;
    let api = &app.api;
    let calls = (0..16).map(|_| async { api.post("/v1/classify", &event_with("/narrative", json!(long_narrative()))).await });
    let answers = futures_util::future::join_all(calls).await;
    let refused: Vec<_> = answers.iter().filter(|answer| answer.status == 429).collect();
    assert!(!refused.is_empty() && refused.len() < answers.len());
    for answer in &answers {
        if answer.status == 429 {
            let problem = answer.problem();
            assert!(problem.code == "overloaded" && problem.retryable);
            assert!(answer.headers["retry-after"].parse::<u64>().unwrap() >= 1);
        } else {
            assert_eq!(answer.status, 200, "{}", answer.text);
        }
    }
    // A stream waits where a request is refused.
    let lines: Vec<String> = (0..10).map(|_| json!({"narrative": long_narrative()}).to_string()).collect();
    let request = api.request("POST", "/v1/classify/batch").header("content-type", "application/x-ndjson");
    let streamed = api.send(request.body(lines.join("\n"))).await;
    assert!(streamed.text.lines().all(|line| line.starts_with(r#"{"status":200"#)), "{}", streamed.text);
    assert_eq!(api.metric("sluice_events_in_flight", "").await, 0.0);
    app.stop().await;
}

#[tokio::test]
async fn shutdown_finishes_what_is_in_work() {
    let app = TestApp::spawn(|_| {}).await;
    let api = app.api.clone();
    let batch = json!({"events": (0..16).map(|_| event_with("/narrative", json!(long_narrative()))).collect::<Vec<_>>()});
    let in_work = tokio::spawn(async move { api.post_ok("/v1/recommend/batch", &batch).await });
    app.api.until_metric("sluice_events_in_flight", 16.0).await;
    let address = app.api.address;
    app.stop().await;
    let results = in_work.await.unwrap();
    assert!(results["results"].as_array().unwrap().iter().all(|result| result["status"] == 200));
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn half_a_request_head_neither_lives_on_nor_holds_up_shutdown() {
    async fn half_sent(address: std::net::SocketAddr, head: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(head).await.unwrap();
        stream
    }

    let impatient = TestApp::spawn(|config| config.server.header_read_timeout_ms = 100).await;
    for head in [b"".as_slice(), b"P", b"GET /livez HT", b"GET /livez HTTP/1.1\r\nhost: x\r\n"] {
        let mut stream = half_sent(impatient.api.address, head).await;
        let mut rest = Vec::new();
        // However it ends, by a close or a reset, it ends.
        let ended = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await;
        assert!(ended.is_ok(), "{head:?} lives on");
    }
    impatient.stop().await;

    let patient = TestApp::spawn(|config| {
        config.server.header_read_timeout_ms = 3_600_000;
        config.server.drain_timeout_ms = 200;
    })
    .await;
    let address = patient.api.address;
    let held = [half_sent(address, b"").await, half_sent(address, b"GET /livez HT").await];
    assert_eq!(patient.api.get("/livez").await.status, 200);
    patient.stop().await;
    drop(held);
}

#[tokio::test]
async fn a_body_that_never_comes_is_a_timeout() {
    let app = TestApp::spawn(|config| config.server.body_read_timeout_ms = 100).await;
    let mut stream = TcpStream::connect(app.api.address).await.unwrap();
    let head = b"POST /v1/classify HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{";
    stream.write_all(head).await.unwrap();
    let mut answer = vec![0; 4096];
    let n_bytes = tokio::time::timeout(PATIENCE, stream.read(&mut answer)).await.unwrap().unwrap();
    let answer = String::from_utf8_lossy(&answer[..n_bytes]);
    assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("application/problem+json"), "{answer}");
    app.stop().await;
}

#[tokio::test]
async fn a_caller_who_hangs_up_does_not_undo_the_decision() {
    let app = TestApp::spawn(|_| {}).await;
    let event = event_with("/narrative", json!(long_narrative()));
    let body = event.to_string();
    let mut stream = TcpStream::connect(app.api.address).await.unwrap();
    let head = format!(
        "POST /v1/recommend HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(body.as_bytes()).await.unwrap();
    app.api.until_metric("sluice_events_in_flight", 1.0).await;
    drop(stream);
    app.api.until_metric("sluice_decisions_total", 1.0).await;
    assert_eq!(app.api.post_ok("/v1/recommend", &event).await["replayed"], true);
    app.stop().await;
}

#[tokio::test]
async fn ready_is_a_recent_inference_and_names_what_decides() {
    let api = shared();
    assert_eq!(api.get("/livez").await.json(), json!({"status": "alive"}));
    let ready = api.get("/readyz").await;
    assert_eq!(ready.status, 200, "{}", ready.text);
    let ready = ready.json();
    assert_eq!((&ready["status"], &ready["engine"]), (&json!("ready"), &json!("candle")));
    assert_eq!(ready["bundle"]["hash"].as_str().unwrap().len(), 64);
}

#[tokio::test]
async fn a_probe_that_is_late_makes_the_service_not_ready() {
    // The window is three milliseconds and no probe is that quick, so only the very moment after one is ready.
    let app = TestApp::spawn(|config| config.server.readiness_interval_ms = 1).await;
    let not_ready = async {
        loop {
            let answer = app.api.get("/readyz").await;
            if answer.status == 503 {
                break answer;
            }
        }
    };
    let problem = tokio::time::timeout(PATIENCE, not_ready).await.unwrap().problem();
    assert!(problem.code == "unavailable" && problem.retryable);
    app.stop().await;
}

#[tokio::test]
async fn metrics_count_by_route_and_never_by_caller() {
    let api = shared();
    let event = event();
    api.post_ok("/v1/recommend", &event).await;
    api.get("/v1/decisions/some-id").await;
    api.get("/some/path").await;
    let page = api.get("/metrics").await;
    assert!(page.headers["content-type"].starts_with("application/openmetrics-text"));
    for sample in [
        "sluice_http_requests_total{route=\"/v1/recommend\",method=\"POST\",status=\"200\"}",
        "sluice_http_requests_total{route=\"/v1/decisions/{id}\",method=\"GET\",status=\"404\"}",
        "sluice_http_requests_total{route=\"unmatched\",method=\"GET\",status=\"404\"}",
        "sluice_http_request_duration_seconds_bucket{",
        "sluice_stage_duration_seconds_bucket{le=\"0.0001\",stage=\"encode\"}",
        "sluice_stage_duration_seconds_count{stage=\"commit\"}",
        "sluice_decisions_total{disposition=",
        "sluice_decision_reasons_total{code=",
        "sluice_encoder_queue_depth 0",
        "sluice_ready 1",
        "sluice_bundle_info{",
    ] {
        assert!(page.text.contains(sample), "{sample} is not in\n{}", page.text);
    }
    for secret in ["some-id", "/some/path", event["id"].as_str().unwrap(), "wms/dc-atlanta", "C-1009"] {
        assert!(!page.text.contains(secret), "{secret}");
    }
}

/// Compares with a golden file in `docs/`.
#[track_caller]
fn check_golden(name: &str, actual: &str) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, actual).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        golden == actual,
        "docs/{name} differs; if that is meant, run `UPDATE_GOLDEN=1 cargo test --test it golden` and commit it"
    );
}

#[test]
fn the_golden_contract_is_current() {
    check_golden("openapi.json", &(docs::document().to_pretty_json().unwrap() + "\n"));
    check_golden("errors.md", &problem::documentation());
}

#[tokio::test]
async fn the_contract_is_served_and_lists_what_is_routed() {
    let api = shared();
    let document = api.get("/openapi.json").await.json();
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    for (path, methods) in document["paths"].as_object().unwrap() {
        for method in methods.as_object().unwrap().keys() {
            let answer = api.send(api.request(&method.to_uppercase(), &path.replace("{id}", "x"))).await;
            assert!(answer.status != 405 && answer.headers["x-request-id"].len() == 36, "{method} {path}");
            if answer.status >= 400 {
                assert!(ErrorCode::ALL.iter().any(|code| code.as_str() == answer.problem().code));
            }
        }
    }
    // Clients are generated from it: operations have names of their own, responses a description.
    let operations = document["paths"].as_object().unwrap().values().flat_map(|methods| methods.as_object().unwrap().values());
    let mut names: Vec<&str> = operations.clone().map(|operation| operation["operationId"].as_str().unwrap()).collect();
    names.sort_unstable();
    assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "{names:?}");
    for operation in operations {
        let responses = operation["responses"].as_object().unwrap().values();
        assert!(responses.into_iter().all(|response| response["description"].is_string()), "{operation}");
    }
    // Every reference leads somewhere.
    let text = document.to_string();
    for reference in text.split("\"#/").skip(1).map(|rest| rest.split('"').next().unwrap()) {
        assert!(document.pointer(&format!("/{reference}")).is_some(), "{reference}");
    }
}

#[tokio::test]
async fn the_documentation_page_loads_nothing_from_elsewhere() {
    let api = shared();
    let page = api.get("/docs").await;
    assert_eq!(page.status, 200);
    assert!(!page.text.contains("src=\"http") && !page.text.contains("href=\"http"), "{}", page.text);
    let files: Vec<&str> = page.text.split(['"']).filter(|text| text.ends_with(".js") || text.ends_with(".css")).collect();
    assert!(files.len() > 2, "{files:?}");
    for file in files {
        let answer = api.get(&format!("/docs/{}", file.trim_start_matches("./"))).await;
        assert_eq!(answer.status, 200, "{file}");
    }
    assert!(api.get("/docs/swagger-initializer.js").await.text.contains("/openapi.json"));
}

#[test]
fn a_problem_reads_back_as_it_was_written() {
    let problem = Problem::invalid("order.value", "must not be negative").with_request_id("r-1");
    let text = serde_json::to_string(&problem).unwrap();
    assert_eq!(serde_json::from_str::<Problem>(&text).unwrap(), problem);
}

#[tokio::test]
async fn keep_alive_connections_close_when_the_service_drains() {
    let app = TestApp::spawn(|_| {}).await;
    let mut stream = TcpStream::connect(app.api.address).await.unwrap();
    stream.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut answer = [0; 16];
    stream.read_exact(&mut answer).await.unwrap();
    app.stop().await;
    let mut rest = Vec::new();
    tokio::time::timeout(Duration::from_secs(30), stream.read_to_end(&mut rest)).await.unwrap().unwrap();
}
