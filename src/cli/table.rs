//! Tables as events: a column's name is the path of a field, as in `order.value` or `order.lines.0.sku`.
//!
//! A cell that is empty is a missing fact. Text cells (CSV) become numbers and bools where the event has those; one that does not
//! read as such stays text, so that the event's own check names the field.

use parquet::record::Field;
use serde_json::{Map, Number, Value};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Highest index in a path, so that a column name cannot ask for a giant list.
const MAX_INDEX: usize = 999;

/// Fields that are numbers; list indices are written `0`.
const NUMBERS: [&str; 14] = [
    "order.value",
    "order.margin",
    "order.lines.0.line",
    "order.lines.0.ordered",
    "order.lines.0.available",
    "order.lines.0.unit_price",
    "order.lines.0.substitutes.0.available",
    "customer.credit_limit",
    "customer.credit_exposure",
    "customer.days_overdue",
    "customer.on_time_in_full_90d",
    "shipment.freight_cost",
    "shipment.alternate_carriers",
    "attributes.",
];
const BOOLS: [&str; 7] = [
    "order.partial_allowed",
    "order.regulated",
    "order.export_controlled",
    "order.lines.0.replenishment_confirmed",
    "order.lines.0.substitutes.0.approved",
    "customer.requires_authorization",
    "attributes.",
];

/// Collects cells into one JSON object.
#[derive(Debug, Default)]
pub(super) struct Nested(Map<String, Value>);

impl Nested {
    /// Puts `value` where `path` says. Two columns that contradict each other (`order` and `order.value`) leave the later one, and a
    /// gap in a list shows as `null`, which the event's check refuses.
    pub(super) fn insert(&mut self, path: &str, value: Value) {
        let mut segments = path.split('.');
        let Some(first) = segments.next() else { return };
        let mut place = self.0.entry(first).or_insert(Value::Null);
        for segment in segments {
            place = match segment.parse::<usize>() {
                Ok(index) if index <= MAX_INDEX => {
                    if !place.is_array() {
                        *place = Value::Array(Vec::new());
                    }
                    let list = place.as_array_mut().expect("just made one");
                    if list.len() <= index {
                        list.resize(index + 1, Value::Null);
                    }
                    &mut list[index]
                }
                _ => {
                    if !place.is_object() {
                        *place = Value::Object(Map::new());
                    }
                    let object = place.as_object_mut().expect("just made one");
                    object.entry(segment).or_insert(Value::Null)
                }
            };
        }
        *place = value;
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        serde_json::to_vec(&self.0).expect("string keys only")
    }
}

/// A CSV cell as JSON; `None` where it is empty.
pub(super) fn text_cell(path: &str, text: &str) -> Option<Value> {
    if text.is_empty() {
        return None;
    }
    let trimmed = text.trim();
    if is_listed(&BOOLS, path) {
        match trimmed.to_ascii_lowercase().as_str() {
            "true" => return Some(Value::Bool(true)),
            "false" => return Some(Value::Bool(false)),
            _ => {}
        }
    }
    if is_listed(&NUMBERS, path) {
        // Whole numbers stay whole: a line number is no float.
        let whole = trimmed.parse::<i64>().ok().map(Number::from);
        let number = whole.or_else(|| trimmed.parse::<f64>().ok().and_then(Number::from_f64));
        if let Some(number) = number {
            return Some(Value::Number(number));
        }
    }
    Some(Value::String(text.to_owned()))
}

/// A Parquet cell as JSON; `None` where it is null. NaN and infinity become text, which the event's check refuses.
pub(super) fn parquet_cell(field: Field) -> Option<Value> {
    let float = |number: f64| Number::from_f64(number).map_or_else(|| Value::String(number.to_string()), Value::Number);
    let time = |time: Result<OffsetDateTime, time::error::ComponentRange>| {
        let text = time.ok().and_then(|time| time.format(&Rfc3339).ok());
        Value::String(text.unwrap_or_else(|| "out of range".to_owned()))
    };
    let value = match field {
        Field::Null => return None,
        Field::Bool(value) => Value::Bool(value),
        Field::Byte(value) => value.into(),
        Field::Short(value) => value.into(),
        Field::Int(value) => value.into(),
        Field::Long(value) => value.into(),
        Field::UByte(value) => value.into(),
        Field::UShort(value) => value.into(),
        Field::UInt(value) => value.into(),
        Field::ULong(value) => value.into(),
        Field::Float(value) => float(value.into()),
        Field::Double(value) => float(value),
        Field::Str(text) => Value::String(text),
        Field::TimestampMillis(millis) => time(OffsetDateTime::from_unix_timestamp_nanos(i128::from(millis) * 1_000_000)),
        Field::TimestampMicros(micros) => time(OffsetDateTime::from_unix_timestamp_nanos(i128::from(micros) * 1_000)),
        Field::Group(row) => {
            let columns = row.into_columns().into_iter().filter_map(|(name, field)| Some((name, parquet_cell(field)?)));
            Value::Object(columns.collect())
        }
        Field::ListInternal(list) => {
            let items = list.elements().iter().cloned().map(|field| parquet_cell(field).unwrap_or(Value::Null));
            Value::Array(items.collect())
        }
        Field::MapInternal(map) => {
            let entries = map.entries().iter().cloned().filter_map(|(key, field)| {
                let Some(Value::String(key)) = parquet_cell(key) else { return None };
                Some((key, parquet_cell(field)?))
            });
            Value::Object(entries.collect())
        }
        // Half floats, decimals, dates, times and bytes: a decimal reads as a number, the rest has no field to go to.
        other => {
            let text = other.to_string();
            match text.parse::<f64>().ok().and_then(Number::from_f64) {
                Some(number) => Value::Number(number),
                None => Value::String(text),
            }
        }
    };
    Some(value)
}

fn is_listed(fields: &[&str], path: &str) -> bool {
    let pattern: Vec<&str> = path.split('.').map(|segment| if segment.parse::<usize>().is_ok() { "0" } else { segment }).collect();
    let pattern = pattern.join(".");
    fields.iter().any(|field| if field.ends_with('.') { pattern.starts_with(field) } else { *field == pattern })
}

#[cfg(test)]
mod tests {
    use sluice::event::EventWire;

    use super::*;

    const FULL: &str = r#"{"id":"1","source":"s","occurred_at":"2026-05-18T14:03:22Z","tenant":"t","business_unit":"b","site":"x",
        "narrative":"n","declared_type":"d",
        "order":{"id":"2","value":1.5,"margin":0.2,"currency":"USD","priority":"p","promised_ship_at":"2026-05-18T14:03:22Z",
          "requested_delivery_at":"2026-05-18T14:03:22Z","carrier_cutoff_at":"2026-05-18T14:03:22Z","partial_allowed":true,
          "regulated":false,"export_controlled":true,
          "lines":[{"line":2,"sku":"3","ordered":4.0,"available":5.5,"unit_price":6.5,
            "substitutes":[{"sku":"7","available":8.5,"approved":true}],
            "replenishment_at":"2026-05-18T14:03:22Z","replenishment_confirmed":false}]},
        "customer":{"id":"9","sla_tier":"gold","credit_limit":1.5,"credit_exposure":-2.5,"days_overdue":3.5,"requires_authorization":true,
          "on_time_in_full_90d":0.5},
        "shipment":{"carrier":"c","service_level":"g","mode":"m","status_code":"4","freight_cost":5.5,"alternate_carriers":6},
        "attributes":{"lane":"a","flag":true,"weight":7.5}}"#;

    /// Every scalar of a JSON tree with its dotted path, as text.
    fn cells(path: &str, value: &Value, out: &mut Vec<(String, String)>) {
        let join = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
        match value {
            Value::Object(object) => object.iter().for_each(|(name, value)| cells(&join(name), value, out)),
            Value::Array(list) => list.iter().enumerate().for_each(|(idx, value)| cells(&join(&idx.to_string()), value, out)),
            Value::String(text) => out.push((path.to_owned(), text.clone())),
            other => out.push((path.to_owned(), other.to_string())),
        }
    }

    #[test]
    fn an_event_survives_the_way_through_text_columns() {
        let mut columns = Vec::new();
        cells("", &serde_json::from_str(FULL).unwrap(), &mut columns);
        let mut nested = Nested::default();
        for (path, text) in &columns {
            nested.insert(path, text_cell(path, text).unwrap());
        }
        assert_eq!(EventWire::from_json(&nested.into_bytes()).unwrap(), EventWire::from_json(FULL.as_bytes()).unwrap());
    }

    #[test]
    fn a_cell_that_does_not_fit_stays_text_for_the_check() {
        #[track_caller]
        fn check(path: &str, text: &str, expected: Option<Value>) {
            assert_eq!(text_cell(path, text), expected);
        }

        check("order.value", "", None);
        check("order.value", "12.5", Some(12.5.into()));
        check("order.value", "NaN", Some("NaN".into()));
        check("order.value", "a lot", Some("a lot".into()));
        check("order.id", "000123", Some("000123".into()));
        check("narrative", "42", Some("42".into()));
        check("order.lines.7.line", " 2 ", Some(2.into()));
        check("order.regulated", "TRUE", Some(true.into()));
        check("order.regulated", "yes", Some("yes".into()));
        check("attributes.weight", "7", Some(7.into()));
        check("attributes.lane", "a-7", Some("a-7".into()));
    }

    #[test]
    fn a_parquet_cell_keeps_its_type() {
        #[track_caller]
        fn check(field: Field, expected: Option<Value>) {
            assert_eq!(parquet_cell(field), expected);
        }

        check(Field::Null, None);
        check(Field::Double(1.5), Some(1.5.into()));
        check(Field::Double(f64::NAN), Some("NaN".into()));
        check(Field::Long(7), Some(7.into()));
        check(Field::TimestampMillis(0), Some("1970-01-01T00:00:00Z".into()));
        check(Field::TimestampMicros(1_500_000), Some("1970-01-01T00:00:01.5Z".into()));
    }
}
