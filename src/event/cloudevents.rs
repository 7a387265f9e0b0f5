//! CloudEvents 1.0 around an event: the envelope's `id`, `source` and `time` become the event's own, its `data` is the rest.
//!
//! Both modes of the HTTP binding give the same event: structured (one JSON envelope) and binary (attributes beside the data).
//! Extension attributes are accepted and ignored, as the specification asks. It refuses an envelope that contradicts its data.
//! <https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/spec.md>

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{EventError, EventWire, json};

const SPECVERSION: &str = "1.0";
const HEADER_PREFIX: &str = "ce-";

/// The context attributes of an event in binary mode, by name without their `ce-`.
pub type Attributes = BTreeMap<String, String>;

/// The attributes among a request's headers; `None` where it is no CloudEvent in binary mode. Header names are in lower case.
pub fn binary_attributes<'a>(headers: impl Iterator<Item = (&'a str, &'a str)>) -> Option<Attributes> {
    let attributes: Attributes =
        headers.filter_map(|(name, value)| Some((name.strip_prefix(HEADER_PREFIX)?.to_owned(), percent_decode(value)))).collect();
    attributes.contains_key("specversion").then_some(attributes)
}

/// Reads an event in binary mode; `bytes` are its data.
///
/// # Errors
/// As [`EventWire::from_json`]; also the first attribute that is missing, invalid or at odds with the data.
pub fn from_binary(mut attributes: Attributes, bytes: &[u8]) -> Result<EventWire, EventError> {
    let mut take = |name: &str| attributes.remove(name);
    let context = Context {
        specversion: take("specversion"),
        id: take("id"),
        source: take("source"),
        r#type: take("type"),
        time: take("time"),
    };
    let prefix = HEADER_PREFIX;
    context.check(prefix)?;
    context.complete(EventWire::from_json(bytes)?, prefix, "")
}

/// Reads an event in structured mode: `bytes` are the envelope.
///
/// # Errors
/// As [`from_binary`], with fields of the data under `data`.
pub fn from_structured(bytes: &[u8]) -> Result<EventWire, EventError> {
    let envelope: Envelope = json::read(bytes)?;
    let Envelope { specversion, id, source, r#type, time, datacontenttype, data, data_base64 } = envelope;
    let context = Context { specversion, id, source, r#type, time };
    context.check("")?;
    if data_base64.is_some() {
        return Err(EventError::invalid("data_base64", "is not accepted; send the event as JSON in `data`"));
    }
    if datacontenttype.is_some_and(|content_type| !is_json(&content_type)) {
        return Err(EventError::invalid("datacontenttype", "must be `application/json`"));
    }
    let data = data.ok_or_else(|| EventError::invalid("data", "is required"))?;
    let event = EventWire::from_json(data.get().as_bytes()).map_err(|error| {
        let field = if error.field.is_empty() { "data".to_owned() } else { format!("data.{}", error.field) };
        EventError { field, ..error }
    })?;
    context.complete(event, "", "data.")
}

#[derive(Deserialize)]
struct Envelope {
    specversion: Option<String>,
    id: Option<String>,
    source: Option<String>,
    r#type: Option<String>,
    time: Option<String>,
    datacontenttype: Option<String>,
    data: Option<Box<RawValue>>,
    data_base64: Option<IgnoredAny>,
}

struct Context {
    specversion: Option<String>,
    id: Option<String>,
    source: Option<String>,
    r#type: Option<String>,
    time: Option<String>,
}

impl Context {
    fn check(&self, prefix: &str) -> Result<(), EventError> {
        if self.specversion.as_deref() != Some(SPECVERSION) {
            return Err(EventError::invalid(format!("{prefix}specversion"), "must be `1.0`"));
        }
        for (name, value) in [("id", &self.id), ("source", &self.source), ("type", &self.r#type)] {
            if value.as_deref().is_none_or(str::is_empty) {
                return Err(EventError::invalid(format!("{prefix}{name}"), "is required in a CloudEvent"));
            }
        }
        Ok(())
    }

    /// Puts the envelope's attributes where the data has none. The time of the envelope is when the event was sent, so the
    /// data's own `occurred_at` stands where both are given.
    fn complete(self, mut event: EventWire, prefix: &str, data_prefix: &str) -> Result<EventWire, EventError> {
        for (name, envelope, own) in [("id", self.id, &mut event.id), ("source", self.source, &mut event.source)] {
            if own.is_some() && *own != envelope {
                return Err(EventError::invalid(format!("{data_prefix}{name}"), "differs from the attribute of the CloudEvent"));
            }
            *own = envelope;
        }
        if let Some(time) = self.time {
            let time = OffsetDateTime::parse(&time, &Rfc3339)
                .map_err(|_| EventError::invalid(format!("{prefix}time"), "must be an RFC 3339 time with offset"))?;
            event.occurred_at.get_or_insert(time);
        }
        Ok(event)
    }
}

fn is_json(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence == "application/json" || essence.ends_with("+json")
}

/// Header values carry what is not visible ASCII in percent form (HTTP binding, 3.1.3.2); anything else stays as it is.
fn percent_decode(value: &str) -> String {
    let bytes = value.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let [first, tail @ ..] = rest {
        let escaped = (*first == b'%').then(|| tail.get(..2)).flatten().and_then(|digits| hex::decode(digits).ok());
        match escaped {
            Some(byte) => {
                decoded.extend(byte);
                rest = &tail[2..];
            }
            None => {
                decoded.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8(decoded).unwrap_or_else(|_| value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATA: &str = r#"{"narrative":"short pick on line 2","site":"DC-ATL"}"#;

    fn headers(extra: &[(&'static str, &'static str)]) -> Attributes {
        let usual = [
            ("ce-specversion", "1.0"),
            ("ce-id", "e-1"),
            ("ce-source", "wms/dc%20atlanta"),
            ("ce-type", "com.example.exception"),
            ("ce-time", "2026-05-18T14:03:22Z"),
            ("ce-traceparent", "00-abc"),
            ("accept", "*/*"),
        ];
        binary_attributes(usual.into_iter().chain(extra.iter().copied())).unwrap()
    }

    #[test]
    fn both_modes_give_the_same_event() {
        let envelope = format!(
            r#"{{"specversion":"1.0","id":"e-1","source":"wms/dc atlanta","type":"com.example.exception","time":"2026-05-18T14:03:22Z",
               "datacontenttype":"application/json","traceparent":"00-abc","data":{DATA}}}"#
        );
        let structured = from_structured(envelope.as_bytes()).unwrap();
        assert_eq!(structured, from_binary(headers(&[]), DATA.as_bytes()).unwrap());
        assert_eq!(structured.id.as_deref(), Some("e-1"));
        assert_eq!(structured.source.as_deref(), Some("wms/dc atlanta"));
        assert_eq!(structured.site.as_deref(), Some("DC-ATL"));
        assert!(structured.occurred_at.is_some());
    }

    #[test]
    fn a_request_without_specversion_is_no_cloud_event() {
        assert_eq!(binary_attributes([("ce-id", "e-1"), ("accept", "*/*")].into_iter()), None);
    }

    #[test]
    fn a_bad_envelope_names_the_attribute_at_fault() {
        #[track_caller]
        fn check(envelope: &str, expected: &str) {
            assert_eq!(from_structured(envelope.as_bytes()).unwrap_err().field, expected, "{envelope}");
        }

        check(r#"{"id":"1","source":"s","type":"t","data":{}}"#, "specversion");
        check(r#"{"specversion":"0.3","id":"1","source":"s","type":"t","data":{}}"#, "specversion");
        check(r#"{"specversion":"1.0","source":"s","type":"t","data":{}}"#, "id");
        check(r#"{"specversion":"1.0","id":"1","source":"s","data":{}}"#, "type");
        check(r#"{"specversion":"1.0","id":"1","source":"s","type":"t"}"#, "data");
        check(r#"{"specversion":"1.0","id":"1","source":"s","type":"t","data_base64":"e30="}"#, "data_base64");
        check(
            r#"{"specversion":"1.0","id":"1","source":"s","type":"t","datacontenttype":"text/xml","data":{}}"#,
            "datacontenttype",
        );
        check(r#"{"specversion":"1.0","id":"1","source":"s","type":"t","time":"now","data":{"narrative":"x"}}"#, "time");
        check(r#"{"specversion":"1.0","id":"1","source":"s","type":"t","data":{"narrative":1}}"#, "data.narrative");
        check(r#"{"specversion":"1.0","id":"1","source":"s","type":"t","data":{"narrative":"x","id":"2"}}"#, "data.id");
        check(
            r#"{"specversion":"1.0","id":"1","source":"s","type":"t","data":{"narrative":"x","order":{"value":"1"}}}"#,
            "data.order.value",
        );
    }

    #[test]
    fn what_is_not_json_is_malformed() {
        assert!(from_structured(b"{\"specversion\":").unwrap_err().malformed);
        assert!(from_structured(b"{} {}").unwrap_err().malformed);
    }
}
