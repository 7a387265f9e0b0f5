//! The canonical event: what is refused and how it is said, and what the input hash sees.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::{Value, json};
use sluice::event::{
    Attribute, Customer, Event, EventError, EventLimits, EventWire, MAX_ENTRIES, Order, OrderLine, Shipment, Substitute,
    split_array, split_events,
};
use time::{OffsetDateTime, UtcOffset};

const LIMITS: EventLimits = EventLimits { max_narrative_chars: 1_000, max_lines: 3, max_attributes: 2 };

fn read(body: &[u8]) -> Result<Event, EventError> {
    EventWire::from_json(body)?.into_event(&LIMITS)
}

/// An event with every field of the contract.
fn full() -> Value {
    json!({
        "id": "evt-000431", "source": "wms/dc-atlanta", "occurred_at": "2026-05-18T14:03:22Z", "tenant": "acme",
        "business_unit": "industrial", "site": "DC-ATL", "narrative": "Line 2 short pick, found 28 of 40",
        "declared_type": "inventory_shortfall",
        "order": {
            "id": "SO-45001823", "value": 18250.0, "margin": 0.21, "currency": "USD", "priority": "standard",
            "promised_ship_at": "2026-05-18T22:00:00Z", "requested_delivery_at": "2026-05-20T15:00:00Z",
            "carrier_cutoff_at": "2026-05-18T20:30:00Z", "partial_allowed": true, "regulated": false, "export_controlled": false,
            "lines": [{
                "line": 2, "sku": "BRG-6204", "ordered": 40, "available": 28, "unit_price": 31.5,
                "substitutes": [{"sku": "BRG-6204-2RS", "available": 60, "approved": true}],
                "replenishment_at": "2026-05-19T10:00:00Z", "replenishment_confirmed": true,
            }],
        },
        "customer": {
            "id": "C-1009", "sla_tier": "gold", "credit_limit": 50000, "credit_exposure": 31200, "days_overdue": 0,
            "requires_authorization": false, "on_time_in_full_90d": 0.93,
        },
        "shipment": {
            "carrier": "ACME", "service_level": "ground", "mode": "ltl", "status_code": "A3", "freight_cost": 410.0,
            "alternate_carriers": 2,
        },
        "attributes": {"lift_gate": true, "pallets": 3.5},
    })
}

// ---------------------------------------------------------------- what is refused

/// A value that must never come back in an error.
const SECRET: &str = "hunter2";

/// A valid event with `members` before its own, so that a member that stands twice is the caller's doing.
fn with(members: &str) -> String {
    format!(r#"{{{members}, "id": "e", "source": "s", "occurred_at": "2026-05-18T14:03:22Z", "narrative": "short pick"}}"#)
}

fn check(body: impl AsRef<[u8]>, field: &str, message: &str) {
    let body = body.as_ref();
    let shown = String::from_utf8_lossy(&body[..body.len().min(200)]);
    let error = read(body).expect_err(&shown);
    assert_eq!((error.field.as_str(), error.malformed), (field, false), "{shown}: {error}");
    assert!(error.message.contains(message), "{shown}: `{}`", error.message);
    assert!(!format!("{error:?}").contains(SECRET), "{shown}: {error:?} repeats the caller's value");
    assert!(error.field.len() + error.message.len() < 700, "{shown}: an answer of bounded size");
}

fn check_malformed(body: impl AsRef<[u8]>) {
    let body = body.as_ref();
    let shown = String::from_utf8_lossy(&body[..body.len().min(200)]);
    let error = read(body).expect_err(&shown);
    assert!(error.malformed && error.field.is_empty(), "{shown}: {error:?}");
    assert!(error.message.contains(" at line "), "{shown}: {}", error.message);
    assert!(!format!("{error:?}").contains(SECRET), "{shown}: {error:?} repeats the caller's value");
}

#[test]
fn what_is_not_json_is_malformed() {
    for body in ["", " ", "{", "nul", "{]", "{\"id\"}", "{\"id\":}", "\u{feff}{}", "hunter2", "<event/>", "{'id': 1}", "\"hunter2"]
    {
        check_malformed(body);
    }
    check_malformed(b"\xff\xfe");
    check_malformed(with(r#""site": "hunter2""#).replacen(", ", " ", 1));
    check_malformed(format!("{} trailing hunter2", with(r#""site": "x""#)));
    check_malformed(format!("{0}{0}", with(r#""site": "x""#)));
    for token in ["NaN", "Infinity", "-Infinity", "01", "+1", ".5", "1.", "0x10", "True", "\"\\x\"", "\"\\ud800\"", "\"\n\"", "// "]
    {
        check_malformed(with(&format!(r#""order": {{"value": {token}}}"#)));
    }
    check_malformed([br#"{"narrative": ""#.as_slice(), b"\xc3\x28\"}"].concat());
}

#[test]
fn what_is_no_object_is_refused_wherever_an_object_is_due() {
    for body in ["null", "true", "5", "\"hunter2\"", "[]", r#"["hunter2", "s"]"#, "[{}]"] {
        check(body, "", "must be an object");
    }
    check("[".repeat(100_000), "", "must be an object");
    for field in ["order", "customer", "shipment", "attributes"] {
        for value in ["[]", "\"hunter2\"", "5", "true", r#"["hunter2", 5.0]"#] {
            check(with(&format!("\"{field}\": {value}")), field, "must be an object");
        }
    }
    check(with(r#""order": {"lines": [{}, []]}"#), "order.lines[1]", "must be an object");
    check(with(r#""order": {"lines": [{"substitutes": ["hunter2"]}]}"#), "order.lines[0].substitutes[0]", "must be an object");
}

#[test]
fn a_missing_field_is_named_by_its_own_path() {
    check("{}", "narrative", "is required");
    check(r#"{"narrative": "x"}"#, "id", "is required");
    check(r#"{"narrative": "x", "id": "e"}"#, "source", "is required");
    check(r#"{"narrative": "x", "id": "e", "source": "s"}"#, "occurred_at", "is required");
    check(r#"{"narrative": "x", "id": null, "source": "s"}"#, "id", "is required");
    let sku = "order.lines[1].substitutes[0].sku";
    check(with(r#""order": {"lines": [{}, {"substitutes": [{"available": 1}]}]}"#), sku, "is required");
}

#[test]
fn an_unknown_field_is_named_by_its_own_path_and_told_what_is_known() {
    check(with(r#""colour": "hunter2""#), "colour", "accepted here: `id`, `source`");
    check(with(r#""order": {"colour": "hunter2"}"#), "order.colour", "`partial_allowed`");
    check(with(r#""order": {"lines": [{"line": 1, "colour": 1}]}"#), "order.lines[0].colour", "`ordered`");
    check(with(r#""customer": {"Id": "x"}"#), "customer.Id", "`sla_tier`");
    check(with(r#""shipment": {"carrier ": "x"}"#), "shipment.…", "`carrier`");
    check(with(r#""": 1"#), "…", "is not a field");
    check(with(r#""x`, expected one of `hunter2": 1"#), "…", "accepted here: `id`");
    check(with(&format!("\"{}\": 1", "hunter2".repeat(10_000))), "…", "is not a field");
    check(with(&format!("\"deep\": {}{}", "[".repeat(100_000), "]".repeat(100_000))), "deep", "is not a field");
}

#[test]
fn a_field_that_stands_twice_is_refused() {
    check(with(r#""narrative": "hunter2""#), "narrative", "appears twice");
    check(with(r#""narrative": "short pick""#), "narrative", "appears twice");
    check(with(r#""order": {"value": 1, "value": 2}"#), "order.value", "appears twice");
    check(with(r#""order": {}, "order": {}"#), "order", "appears twice");
    check(with(r#""order": {"lines": [{"sku": "a", "sku": "b"}]}"#), "order.lines[0].sku", "appears twice");
    check(with(r#""attributes": {"weight": 1, "weight": "hunter2"}"#), "attributes.weight", "appears twice");
}

#[test]
fn a_value_of_the_wrong_type_is_named_by_its_own_path() {
    check(with(r#""site": 5"#), "site", "must be a string");
    check(with(r#""tenant": ["hunter2"]"#), "tenant", "must be a string");
    check(r#"{"narrative": null}"#, "narrative", "must be a string");
    check(r#"{"narrative": ["hunter2"]}"#, "narrative", "must be a string");
    check(format!("{{\"narrative\": {}", "[".repeat(100_000)), "narrative", "must be a string");
    check(with(r#""order": {"value": "hunter2"}"#), "order.value", "must be a number");
    check(with(r#""order": {"value": "hunter2, expected hunter2 at line 1"}"#), "order.value", "must be a number");
    check(with(r#""order": {"value": true}"#), "order.value", "must be a number");
    check(with(r#""order": {"partial_allowed": "yes"}"#), "order.partial_allowed", "must be `true` or `false`");
    check(with(r#""order": {"partial_allowed": 1}"#), "order.partial_allowed", "must be `true` or `false`");
    check(with(r#""order": {"lines": {}}"#), "order.lines", "must be an array");
    check(with(r#""order": {"lines": [{"ordered": "40"}]}"#), "order.lines[0].ordered", "must be a number");
    check(with(r#""order": {"lines": [{}, {"line": 2.5}]}"#), "order.lines[1].line", "must be a whole number");
    check(with(r#""order": {"lines": [{"line": -1}]}"#), "order.lines[0].line", "must be a whole number");
    check(with(r#""shipment": {"alternate_carriers": 4294967296}"#), "shipment.alternate_carriers", "from 0 to 4294967295");
    let approved = "order.lines[0].substitutes[1].approved";
    check(with(r#""order": {"lines": [{"substitutes": [{"sku": "a"}, {"sku": "b", "approved": "no"}]}]}"#), approved, "`true`");
    for value in ["null", "[]", "{}", r#"{"hunter2": 1}"#, &"[".repeat(100_000)] {
        check(with(&format!(r#""attributes": {{"weight": {value}}}"#)), "attributes.weight", "a string, a number or a bool");
    }
}

#[test]
fn a_time_needs_a_date_and_an_offset() {
    for time in
        ["hunter2", "", "2026-05-18", "2026-05-18T14:03:22", "18.05.2026 14:03", "2026-13-01T00:00:00Z", "2026-02-30T00:00:00Z"]
    {
        let body = json!({"narrative": "x", "id": "e", "source": "s", "occurred_at": time});
        check(body.to_string(), "occurred_at", "must be an RFC 3339 time with offset");
    }
    check(r#"{"narrative": "x", "occurred_at": 1747577002}"#, "occurred_at", "must be an RFC 3339 time with offset");
    let replenishment = "order.lines[0].replenishment_at";
    check(with(r#""order": {"lines": [{"replenishment_at": "tomorrow"}]}"#), replenishment, "RFC 3339");
    check(with(r#""order": {"promised_ship_at": true}"#), "order.promised_ship_at", "RFC 3339");
}

#[test]
fn a_text_that_shows_nothing_is_blank() {
    for text in [
        "",
        " ",
        "\t\r\n",
        "\u{a0}\u{3000}",
        "\u{200b}\u{200d}\u{feff}",
        "\u{202e} \u{2066}",
        "\u{0}\u{7}",
        "\u{fe0f}\u{e0020}\u{3164}",
    ] {
        check(
            json!({"id": "e", "source": "s", "occurred_at": "2026-05-18T14:03:22Z", "narrative": text}).to_string(),
            "narrative",
            "blank",
        );
        for field in ["id", "source", "tenant"] {
            let mut body = full();
            body[field] = json!(text);
            check(body.to_string(), field, "must not be blank");
        }
    }
    let mut body = full();
    body["narrative"] = json!("\u{200b}.\u{feff}");
    assert!(read(body.to_string().as_bytes()).is_ok(), "one visible character is a text");
}

#[test]
fn a_number_must_be_finite_and_a_quantity_not_negative() {
    for number in ["1e999", "-1e999", "1e400"] {
        check(with(&format!(r#""order": {{"value": {number}}}"#)), "order.value", "must be a finite number");
        check(with(&format!(r#""attributes": {{"weight": {number}}}"#)), "attributes.weight", "must be a finite number");
    }
    for (field, body) in [
        ("order.value", r#""order": {"value": -0.01}"#),
        ("order.lines[0].ordered", r#""order": {"lines": [{"ordered": -1}]}"#),
        ("order.lines[1].available", r#""order": {"lines": [{}, {"available": -1}]}"#),
        ("order.lines[0].unit_price", r#""order": {"lines": [{"unit_price": -1e-300}]}"#),
        ("order.lines[0].substitutes[0].available", r#""order": {"lines": [{"substitutes": [{"sku": "a", "available": -1}]}]}"#),
        ("customer.credit_limit", r#""customer": {"credit_limit": -1}"#),
        ("customer.days_overdue", r#""customer": {"days_overdue": -1}"#),
        ("shipment.freight_cost", r#""shipment": {"freight_cost": -1}"#),
    ] {
        check(with(body), field, "must not be negative");
    }
    check(with(r#""customer": {"on_time_in_full_90d": 93}"#), "customer.on_time_in_full_90d", "between 0 and 1");
    let exposure = with(r#""customer": {"credit_exposure": -250.0}"#);
    assert!(read(exposure.as_bytes()).is_ok(), "a customer may be in credit");
}

#[test]
fn a_number_that_no_model_can_hold_is_refused_at_its_field() {
    for number in ["1e308", "-1e39"] {
        check(with(&format!(r#""order": {{"margin": {number}}}"#)), "order.margin", "between -3.4e38 and 3.4e38");
        check(with(&format!(r#""attributes": {{"weight": {number}}}"#)), "attributes.weight", "between -3.4e38 and 3.4e38");
        check(with(&format!(r#""customer": {{"credit_exposure": {number}}}"#)), "customer.credit_exposure", "between -3.4e38");
    }
    assert!(read(with(r#""order": {"margin": 3.4e38}"#).as_bytes()).is_ok());
}

#[test]
fn a_list_is_not_read_past_what_any_limit_accepts() {
    // The last element is not JSON: what refuses the list does not come that far.
    let many = |element: &str| format!("{} oops", format!("{element},").repeat(MAX_ENTRIES + 1));
    check(with(&format!(r#""order": {{"lines": [{}"#, many("{}"))), "order.lines", "at most 10000 entries");
    let substitutes = many(r#"{"sku":""}"#);
    check(with(&format!(r#""order": {{"lines": [{{"substitutes": [{substitutes}"#)), "order.lines[0].substitutes", "at most 10000");
    let attributes: String = (0..=MAX_ENTRIES).map(|idx| format!("\"{idx}\":1,")).collect();
    let error = EventWire::from_json(with(&format!(r#""attributes": {{{attributes} oops"#)).as_bytes()).unwrap_err();
    assert!(error.field.starts_with("attributes") && error.message.contains("at most 10000 entries"), "{error:?}");
}

#[test]
fn a_text_or_list_out_of_bounds_is_refused_and_never_cut() {
    let mut body = full();
    body["narrative"] = json!("ü".repeat(1_000));
    assert!(read(body.to_string().as_bytes()).is_ok(), "the bound counts characters");
    body["narrative"] = json!("ü".repeat(1_001));
    check(body.to_string(), "narrative", "at most 1000 characters");
    for field in ["id", "source", "tenant", "site", "business_unit", "declared_type"] {
        let mut body = full();
        body[field] = json!("x".repeat(257));
        check(body.to_string(), field, "at most 256 characters");
    }
    check(with(r#""order": {"lines": [{}, {}, {}, {}]}"#), "order.lines", "at most 3 lines");
    check(with(r#""attributes": {"a": 1, "b": 2, "c": 3}"#), "attributes", "at most 2 entries");
    check(with(&format!(r#""attributes": {{"a": "{}"}}"#, "x".repeat(257))), "attributes.a", "at most 256 characters");
    for currency in ["usd", "US", "USDX", "$", "", "ÄÖÜ", "hunter2"] {
        check(with(&format!(r#""order": {{"currency": "{currency}"}}"#)), "order.currency", "ISO 4217");
    }
    for field in ["id", "source", "tenant"] {
        let mut body = full();
        body[field] = json!("hunter2\u{0}");
        check(body.to_string(), field, "control characters");
    }
}

#[test]
fn what_is_missing_may_be_left_out_or_null() {
    let absent = r#"{"id": "e", "source": "s", "occurred_at": "2026-05-18T14:03:22Z", "narrative": "x"}"#;
    let null = r#"{"id": "e", "source": "s", "occurred_at": "2026-05-18T14:03:22Z", "narrative": "x", "tenant": null, "site": null,
        "business_unit": null, "declared_type": null, "order": null, "customer": null, "shipment": null, "attributes": null}"#;
    assert_eq!(read(absent.as_bytes()).unwrap(), read(null.as_bytes()).unwrap());
    let empty = with(r#""order": {"lines": [{"substitutes": null, "ordered": null}], "value": null}"#);
    assert_eq!(read(empty.as_bytes()).unwrap(), read(with(r#""order": {"lines": [{}]}"#).as_bytes()).unwrap());
    assert_eq!(read(absent.as_bytes()).unwrap().key.tenant, "default");
}

// ---------------------------------------------------------------- the envelope of a batch

fn split(body: &str) -> Result<Vec<&str>, EventError> {
    Ok(split_events(body.as_bytes(), usize::MAX)?.into_iter().map(|item| std::str::from_utf8(item).unwrap()).collect())
}

#[test]
fn a_batch_is_cut_at_its_own_commas_only() {
    let check = |body: &str, items: &[&str]| assert_eq!(split(body).unwrap(), items, "{body}");
    check(r#"{"events":[]}"#, &[]);
    check(" {\r\n\t\"events\" : [ ] } \n", &[]);
    check(r#"{"events":[{}]}"#, &["{}"]);
    check(
        r#"{"events": [ {"a": [1, 2]} , {"b": {"c": "x, y]}"}},null ] }"#,
        &[r#"{"a": [1, 2]}"#, r#"{"b": {"c": "x, y]}"}}"#, "null"],
    );
    check(r#"{"\u0065vents":[1]}"#, &["1"]);
    check(r#"{"events":["\"", "\\", "\\\", ]"]}"#, &[r#""\"""#, r#""\\""#, r#""\\\", ]""#]);
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    check(&format!(r#"{{"events":[{deep}, 1]}}"#), &[&deep, "1"]);
}

#[test]
fn a_bare_array_is_cut_the_same_way() {
    let check = |body: &str, items: &[&str]| {
        let split = split_array(body.as_bytes(), usize::MAX).unwrap();
        assert_eq!(split, items.iter().map(|item| item.as_bytes()).collect::<Vec<_>>(), "{body}");
    };
    check("[]", &[]);
    check(r#" [ {"a": NaN} , "x, y]" ,{oops}] "#, &[r#"{"a": NaN}"#, r#""x, y]""#, "{oops}"]);
    for body in ["", "{", "[1", "[1] 2", "nul"] {
        assert!(split_array(body.as_bytes(), usize::MAX).unwrap_err().malformed, "{body}");
    }
    for body in ["{}", "null", "\"text\""] {
        let error = split_array(body.as_bytes(), usize::MAX).unwrap_err();
        assert_eq!((error.malformed, error.field.as_str()), (false, ""), "{body}");
    }
}

#[test]
fn an_item_too_many_ends_the_reading() {
    for n_items in [0, 1, 3] {
        let items = vec!["1"; n_items].join(",");
        assert_eq!(split_events(format!("{{\"events\":[{items}]}}").as_bytes(), 3).unwrap().len(), n_items);
        assert_eq!(split_array(format!("[{items}]").as_bytes(), 3).unwrap().len(), n_items);
    }
    // What follows the item too many has no certain end, and is not looked at.
    let error = split_events(br#"{"events":[1,1,1,1,]]]"#, 3).unwrap_err();
    assert_eq!((error.field.as_str(), error.malformed), ("events", false));
    assert!(error.message.contains("at most 3 events"), "{error}");
    assert!(!split_array(b"[1,1,1,1,]]]", 3).unwrap_err().malformed);
}

#[test]
fn a_bad_item_leaves_its_neighbours_alone() {
    for bad in [
        r#"{"order": {"value": NaN}}"#,
        "NaN",
        "-Infinity",
        r#"{"id": }"#,
        r#"{"a": 1,}"#,
        "{oops}",
        "[1 2]",
        "{,}",
        "{:}",
        "tru",
        r#"{"narrative": "\x \ud800 \u12"}"#,
        "{\"narrative\": \"a\nb\"}",
        "{'id': 1}",
        "5 5",
        r#""a": 1"#,
        "01",
    ] {
        let good = with(r#""site": "x""#);
        let body = format!(r#"{{"events": [{good}, {bad} ,{good}]}}"#);
        assert_eq!(split(&body).unwrap(), [&good, bad, &good], "{bad}");
        assert!(read(bad.as_bytes()).is_err(), "{bad}");
    }
    let bytes = [br#"{"events":[1,{"a":""#.as_slice(), b"\xff\xc3", br#""},2]}"#].concat();
    assert_eq!(split_events(&bytes, usize::MAX).unwrap().len(), 3, "bytes that are no text are the item's own fault");
}

#[test]
fn a_batch_whose_items_have_no_certain_end_is_malformed() {
    for body in [
        "",
        "{",
        "[",
        "nul",
        "{\"",
        r#"{"events"#,
        r#"{"events""#,
        r#"{"events":["#,
        r#"{"events":[1"#,
        r#"{"events":[1]"#,
        r#"{"events":[1]]"#,
        r#"{"events":[1],}"#,
        r#"{"events":[1]} x"#,
        r#"{"events":[1]}{}"#,
        r#"{,"events":[1]}"#,
        r#"{events:[1]}"#,
        r#"{"events"[1]}"#,
        r#"{"\ud800":[1]}"#,
        r#"{"events":[,]}"#,
        r#"{"events":[1,]}"#,
        r#"{"events":[1,,2]}"#,
        r#"{"events":[{]}"#,
        r#"{"events":[}]}"#,
        r#"{"events":[{"a":[}]}]}"#,
        r#"{"events":[{"a":1]]}"#,
        r#"{"events":["a]}"#,
        r#"{"events":["a\"]}"#,
        "{\"events\":[\"a\\",
        // A missing quote in two items would merge them into one, and the answers after them would be one place off.
        r#"{"events":[{"n": "a}, {"n": "b}, {"n": "c"}]}"#,
        r#"{"events":[{"n: "a"}, {"n: "b"}, {}]}"#,
        // A quote that stands unescaped looks the same.
        r#"{"events":[{"n": "a 5" pipe"}, {"n": "a 6" pipe"}]}"#,
        r#"{"events":["a" "b"]}"#,
        r#"{"events":[{"id" 5}]}"#,
        r#"{"events":["a"{}]}"#,
        r#"{"events":[{}"a"]}"#,
    ] {
        let error = split(body).expect_err(body);
        assert!(error.malformed && error.field.is_empty() && error.message.contains("at line 1 column"), "{body}: {error:?}");
    }
    let error = split("{\n \"events\": [\n  {]\n").unwrap_err();
    assert!(error.message.ends_with("at line 3 column 4"), "{error}");
}

#[test]
fn the_envelope_of_a_batch_has_one_field() {
    let check = |body: &str, field: &str, message: &str| {
        let error = split(body).expect_err(body);
        assert_eq!((error.field.as_str(), error.malformed), (field, false), "{body}: {error}");
        assert!(error.message.contains(message), "{body}: {error}");
        assert!(!format!("{error:?}").contains(SECRET), "{body}: {error:?}");
    };
    check("{}", "events", "is required");
    check(r#"{"event": []}"#, "event", "accepted here: `events`");
    check(r#"{"events": [], "explain": true}"#, "explain", "accepted here: `events`");
    check(&format!(r#"{{"{}": []}}"#, "hunter2 ".repeat(1_000)), "…", "accepted here: `events`");
    check(r#"{"events": [], "events": []}"#, "events", "appears twice");
    for value in ["null", "{}", "\"hunter2\"", "5"] {
        check(&format!(r#"{{"events": {value}}}"#), "events", "must be an array");
    }
    for body in ["null", "[]", "\"hunter2\"", "5", " [{}] "] {
        check(body, "", "must be an object");
    }
}

// ---------------------------------------------------------------- the input hash

fn hash(body: &Value) -> String {
    read(body.to_string().as_bytes()).expect("a valid event").input_hash()
}

#[test]
fn the_input_hash_changes_with_every_field() {
    let original = hash(&full());
    let mut seen = vec![original.clone()];
    let leaves = leaves(&full(), String::new());
    assert_eq!(leaves.len(), 44, "every field of the contract");
    for pointer in leaves {
        let mut body = full();
        let leaf = body.pointer_mut(&pointer).unwrap();
        *leaf = match &*leaf {
            Value::Bool(value) => json!(!value),
            Value::Number(value) if value.is_u64() => json!(value.as_u64().unwrap() + 1),
            Value::Number(value) => json!(value.as_f64().unwrap() + 0.015625),
            Value::String(value) if value.ends_with('Z') => json!(value.replace("00Z", "01Z").replace("22Z", "23Z")),
            Value::String(value) if value == "USD" => json!("EUR"),
            Value::String(value) => json!(format!("{value}.")),
            other => unreachable!("{other} is no leaf"),
        };
        let changed = hash(&body);
        assert!(!seen.contains(&changed), "{pointer}");
        seen.push(changed);
    }
    assert_eq!(original.len(), 64);
    assert_eq!(original, hash(&full()), "and with nothing else");
}

#[test]
fn the_input_hash_tells_apart_what_stands_in_another_field() {
    let one = |members: &str| read(with(members).as_bytes()).unwrap().input_hash();
    assert_ne!(one(r#""site": "x""#), one(r#""business_unit": "x""#));
    assert_ne!(one(r#""attributes": {"a": "1"}"#), one(r#""attributes": {"a": 1}"#));
    assert_ne!(one(r#""order": {"lines": [{"ordered": 1}, {}]}"#), one(r#""order": {"lines": [{}, {"ordered": 1}]}"#));
    assert_eq!(one(r#""order": {"value": 1}"#), one(r#""order": {"value": 1.0}"#), "one number in two spellings");
    assert_eq!(one(r#""site": "x""#), one(r#""site": "\u0078""#), "one text in two spellings");
}

/// JSON pointers to everything that is neither object nor array.
fn leaves(value: &Value, pointer: String) -> Vec<String> {
    match value {
        Value::Object(members) => members.iter().flat_map(|(key, value)| leaves(value, format!("{pointer}/{key}"))).collect(),
        Value::Array(items) => {
            let items = items.iter().enumerate();
            items.flat_map(|(item_idx, item)| leaves(item, format!("{pointer}/{item_idx}"))).collect()
        }
        _ => vec![pointer],
    }
}

// ---------------------------------------------------------------- properties

fn quantity() -> impl Strategy<Value = Option<f64>> {
    prop::option::of(prop_oneof![Just(0.0), 0.0..1e6, any::<f64>().prop_filter_map("finite", |x| x.is_finite().then_some(x.abs()))])
}

fn text() -> impl Strategy<Value = Option<String>> {
    prop::option::of(any::<String>())
}

/// Times that RFC 3339 can write: years 1 to 9999, offsets in whole minutes.
fn time() -> impl Strategy<Value = Option<OffsetDateTime>> {
    prop::option::of((-62_000_000_000_i64..253_000_000_000, 0..1_000_000_000_i64, -1_400..1_400_i32).prop_map(
        |(seconds, nanos, minutes)| {
            let time = OffsetDateTime::from_unix_timestamp(seconds).unwrap() + time::Duration::nanoseconds(nanos);
            time.to_offset(UtcOffset::from_whole_seconds(minutes * 60).unwrap())
        },
    ))
}

prop_compose! {
    fn substitute()(sku in any::<String>(), available in quantity(), approved in any::<Option<bool>>()) -> Substitute {
        Substitute { sku, available, approved }
    }
}

prop_compose! {
    fn line()(
        line in any::<Option<u32>>(), sku in text(), quantities in [quantity(), quantity(), quantity()],
        substitutes in prop::collection::vec(substitute(), 0..3), replenishment_at in time(), confirmed in any::<Option<bool>>(),
    ) -> OrderLine {
        let [ordered, available, unit_price] = quantities;
        OrderLine { line, sku, ordered, available, unit_price, substitutes, replenishment_at, replenishment_confirmed: confirmed }
    }
}

prop_compose! {
    fn order()(
        texts in [text(), text()], money in [quantity(), quantity()], currency in prop::option::of("[A-Z]{3}"),
        times in [time(), time(), time()], flags in any::<[Option<bool>; 3]>(), lines in prop::collection::vec(line(), 0..3),
    ) -> Order {
        let [id, priority] = texts;
        let [value, margin] = money;
        let [promised_ship_at, requested_delivery_at, carrier_cutoff_at] = times;
        let [partial_allowed, regulated, export_controlled] = flags;
        Order {
            id, value, margin, currency, priority, promised_ship_at, requested_delivery_at, carrier_cutoff_at, partial_allowed,
            regulated, export_controlled, lines,
        }
    }
}

prop_compose! {
    fn customer()(
        texts in [text(), text()], money in [quantity(), quantity(), quantity()], requires_authorization in any::<Option<bool>>(),
        on_time_in_full_90d in prop::option::of(0.0..=1.0),
    ) -> Customer {
        let [id, sla_tier] = texts;
        let [credit_limit, credit_exposure, days_overdue] = money;
        Customer { id, sla_tier, credit_limit, credit_exposure, days_overdue, requires_authorization, on_time_in_full_90d }
    }
}

prop_compose! {
    fn shipment()(texts in [text(), text(), text(), text()], freight_cost in quantity(), carriers in any::<Option<u32>>()) -> Shipment {
        let [carrier, service_level, mode, status_code] = texts;
        Shipment { carrier, service_level, mode, status_code, freight_cost, alternate_carriers: carriers }
    }
}

fn attribute() -> impl Strategy<Value = Attribute> {
    prop_oneof![
        any::<bool>().prop_map(Attribute::Bool),
        any::<f64>().prop_filter("finite", |number| number.is_finite()).prop_map(Attribute::Number),
        any::<String>().prop_map(Attribute::Text),
    ]
}

prop_compose! {
    /// An event that parses, and mostly one that is valid too.
    fn wire()(
        key in [text(), text(), text()], texts in [text(), text(), text()], narrative in any::<String>(), occurred_at in time(),
        order in prop::option::of(order()), customer in prop::option::of(customer()), shipment in prop::option::of(shipment()),
        attributes in prop::collection::btree_map(any::<String>(), attribute(), 0..3),
    ) -> EventWire {
        let [id, source, tenant] = key;
        let [business_unit, site, declared_type] = texts;
        EventWire {
            id, source, occurred_at, tenant, business_unit, site, narrative, declared_type, order, customer, shipment, attributes,
        }
    }
}

/// The same JSON with the keys of every object in another order and white space wherever it may stand.
fn respelled(value: &Value) -> String {
    match value {
        Value::Object(members) => {
            let members: BTreeMap<_, _> = members.iter().collect();
            let members = members.iter().rev().map(|(key, value)| format!("\t{} :\n{} ", json!(key), respelled(value)));
            format!("{{ {} }}", members.collect::<Vec<_>>().join(","))
        }
        Value::Array(items) => format!("[ {} ]", items.iter().map(respelled).collect::<Vec<_>>().join(" , ")),
        leaf => leaf.to_string(),
    }
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        "[\\[\\]{}\",:\\\\]{0,6}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[\\[\\]{}\",:\\\\a]{0,3}", inner, 0..4).prop_map(|members| json!(members)),
        ]
    })
}

fn damaged_byte() -> impl Strategy<Value = u8> {
    prop_oneof![any::<u8>(), prop::sample::select(br#"[]{}",:\ aN1"#.to_vec())]
}

proptest! {
    #[test]
    fn an_event_comes_back_from_json_as_it_was(wire in wire()) {
        let json = serde_json::to_vec(&wire).unwrap();
        prop_assert_eq!(EventWire::from_json(&json).unwrap(), wire);
    }

    #[test]
    fn the_input_hash_does_not_see_key_order_and_white_space(wire in wire()) {
        let wire = EventWire { id: Some("e".to_owned()), source: Some("s".to_owned()), narrative: "x".to_owned(), ..wire };
        let limits = EventLimits { max_narrative_chars: 1_000, max_lines: 10, max_attributes: 10 };
        if let Ok(event) = wire.clone().into_event(&limits) {
            let respelled = respelled(&serde_json::to_value(&wire).unwrap());
            let again = EventWire::from_json(respelled.as_bytes()).unwrap().into_event(&limits).unwrap();
            prop_assert_eq!(event.input_hash(), again.input_hash());
        }
    }

    #[test]
    fn a_valid_batch_is_cut_as_a_json_parser_cuts_it(batch in prop::collection::vec(any_json(), 0..6), pretty in any::<bool>()) {
        #[derive(serde::Deserialize)]
        struct Envelope<'a> {
            #[serde(borrow)]
            events: Vec<&'a serde_json::value::RawValue>,
        }
        let body = json!({"events": batch});
        let body = if pretty { respelled(&body) } else { body.to_string() };
        let envelope: Envelope<'_> = serde_json::from_str(&body).unwrap();
        let expected: Vec<&str> = envelope.events.into_iter().map(serde_json::value::RawValue::get).collect();
        prop_assert_eq!(split(&body).unwrap(), expected);
    }

    /// Whatever happens inside one item, the batch is refused as a whole or every other item is where it was.
    #[test]
    fn damage_to_one_item_moves_no_other(
        batch in prop::collection::vec(any_json(), 3..6), damage in prop::collection::vec((any::<prop::sample::Index>(), damaged_byte()), 1..4),
    ) {
        let mut items: Vec<Vec<u8>> = batch.iter().map(|item| item.to_string().into_bytes()).collect();
        for (place, byte) in damage {
            let place = place.index(items[1].len());
            items[1][place] = byte;
        }
        let body = [br#"{"events":["#.as_slice(), &items.join(&b","[..]), b"]}"].concat();
        // A comma at the item's own level is two items by the caller's own word.
        if let Ok(split) = split_events(&body, usize::MAX) && split.len() == items.len() {
            prop_assert_eq!(split[0], &items[0][..]);
            prop_assert_eq!(split[2], &items[2][..]);
        }
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), structure in "[\\[\\]{}\",:\\\\ aN1]{0,60}") {
        let _ = read(&bytes);
        let _ = split_events(&bytes, 3);
        let _ = split_array(&bytes, 3);
        let _ = split_events(format!("{{\"events\":[{structure}").as_bytes(), 3);
        let _ = split_array(format!("[{structure}]").as_bytes(), 3);
        if let Ok(items) = split_events(format!("{{\"events\":[{structure}]}}").as_bytes(), usize::MAX) {
            prop_assert!(items.iter().all(|item| !item.is_empty() && item.trim_ascii() == *item));
        }
    }

    #[test]
    fn no_damage_to_an_event_makes_it_panic(wire in wire(), edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
        let mut bytes = serde_json::to_vec(&wire).unwrap();
        for (place, byte) in edits {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        if let Err(error) = read(&bytes) {
            prop_assert!(!error.message.is_empty());
        }
    }
}
