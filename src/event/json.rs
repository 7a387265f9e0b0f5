//! JSON from outside: what serde accepts too gladly is refused here, and what serde says is turned into the path of the field at
//! fault and a message for its author.
//!
//! serde reads an array where a struct is meant, keeps the last of two equal keys in a map, builds lists of any length, and repeats
//! the caller's value in its messages. None of that leaves this file.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::error::Category;
use serde_path_to_error::Segment;

use super::{Attribute, EventError};

/// Most entries that any list or map of an event is read with. Limits on an event are checked once it is read, and `{}` three
/// million times would be a gigabyte by then.
pub const MAX_ENTRIES: usize = 10_000;

/// Reads one object and nothing after it.
///
/// # Errors
/// As [`super::EventWire::from_json`] documents.
pub(super) fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, EventError> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let Object(value) = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| event_error(&error))?;
    deserializer.end().map_err(|error| {
        let position = format!("at line {} column {}", error.line(), error.column());
        EventError { field: String::new(), message: format!("text follows the JSON object, {position}"), malformed: true }
    })?;
    Ok(value)
}

/// For a field that holds an object or nothing.
pub(super) fn object<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    Ok(Option::<Object<T>>::deserialize(deserializer)?.map(|object| object.0))
}

/// For a field that holds a list of objects; `null` is an empty one.
pub(super) fn objects<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    Ok(Option::<Objects<T>>::deserialize(deserializer)?.map_or_else(Vec::new, |objects| objects.0))
}

/// For a field that holds names and values, each name once; `null` is none.
pub(super) fn attributes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, Attribute>, D::Error> {
    Ok(Option::<UniqueKeys>::deserialize(deserializer)?.unwrap_or_default().0)
}

/// A caller's key as it may stand in a path: short and of ordinary letters, or an ellipsis.
pub(super) fn path_segment(key: &str) -> &str {
    let is_plain = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | ':' | '/');
    if !key.is_empty() && key.len() <= 64 && key.chars().all(is_plain) { key } else { "…" }
}

struct Object<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ObjectVisitor(PhantomData)).map(Self)
    }
}

struct ObjectVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
    type Value = T;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map))
    }
}

struct Objects<T>(Vec<T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Objects<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(ObjectsVisitor(PhantomData)).map(Self)
    }
}

struct ObjectsVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectsVisitor<T> {
    type Value = Vec<T>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a sequence")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Vec<T>, A::Error> {
        let mut objects = Vec::new();
        while let Some(Object(object)) = elements.next_element()? {
            if objects.len() == MAX_ENTRIES {
                return Err(A::Error::custom(TOO_MANY_ENTRIES));
            }
            objects.push(object);
        }
        Ok(objects)
    }
}

#[derive(Default)]
struct UniqueKeys(BTreeMap<String, Attribute>);

impl<'de> Deserialize<'de> for UniqueKeys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct UniqueKeysVisitor;

        impl<'de> Visitor<'de> for UniqueKeysVisitor {
            type Value = UniqueKeys;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<UniqueKeys, A::Error> {
                let mut attributes = BTreeMap::new();
                while let Some(name) = map.next_key_seed(NewKey(&attributes))? {
                    if attributes.len() == MAX_ENTRIES {
                        return Err(A::Error::custom(TOO_MANY_ENTRIES));
                    }
                    let value = map.next_value()?;
                    attributes.insert(name, value);
                }
                Ok(UniqueKeys(attributes))
            }
        }

        deserializer.deserialize_map(UniqueKeysVisitor)
    }
}

/// A key that is not there yet. It is checked while it is read, because only then does the error carry its path.
struct NewKey<'a>(&'a BTreeMap<String, Attribute>);

impl<'de> DeserializeSeed<'de> for NewKey<'_> {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        let name = String::deserialize(deserializer)?;
        if self.0.contains_key(&name) {
            return Err(D::Error::custom(DUPLICATE_KEY));
        }
        Ok(name)
    }
}

const DUPLICATE_KEY: &str = "duplicate key";
const TOO_MANY_ENTRIES: &str = "too many entries";

impl<'de> Deserialize<'de> for Attribute {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AttributeVisitor;

        impl Visitor<'_> for AttributeVisitor {
            type Value = Attribute;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a string, a number or a bool")
            }

            fn visit_bool<E>(self, value: bool) -> Result<Attribute, E> {
                Ok(Attribute::Bool(value))
            }

            // Models compute in floating point, so an integer past 2^53 is rounded like any other number.
            fn visit_i64<E>(self, value: i64) -> Result<Attribute, E> {
                Ok(Attribute::Number(value as f64))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Attribute, E> {
                Ok(Attribute::Number(value as f64))
            }

            fn visit_f64<E>(self, value: f64) -> Result<Attribute, E> {
                Ok(Attribute::Number(value))
            }

            fn visit_str<E>(self, value: &str) -> Result<Attribute, E> {
                Ok(Attribute::Text(value.to_owned()))
            }

            fn visit_string<E>(self, value: String) -> Result<Attribute, E> {
                Ok(Attribute::Text(value))
            }
        }

        deserializer.deserialize_any(AttributeVisitor)
    }
}

fn event_error(error: &serde_path_to_error::Error<serde_json::Error>) -> EventError {
    let inner = error.inner();
    let said = inner.to_string();
    // serde_json appends the place; from the right, because a value repeated before it may say anything.
    let said = said.rsplit_once(" at line ").map_or(said.as_str(), |(said, _)| said);
    let path = path(error.path());
    if inner.classify() == Category::Data {
        return data_error(path, said);
    }
    if said == "number out of range" {
        return EventError::invalid(path, "must be a finite number");
    }
    let message = format!("not valid JSON, at line {} column {}", inner.line(), inner.column());
    EventError { field: String::new(), message, malformed: true }
}

fn data_error(path: String, said: &str) -> EventError {
    if let Some(field) = quoted(said, "missing field ") {
        return EventError::invalid(join(path, field), "is required");
    }
    if let Some(field) = quoted(said, "duplicate field ") {
        return EventError::invalid(join(path, field), "appears twice");
    }
    if said == DUPLICATE_KEY {
        return EventError::invalid(path, "appears twice");
    }
    if said == TOO_MANY_ENTRIES {
        return EventError::invalid(path, format!("at most {MAX_ENTRIES} entries are accepted"));
    }
    let expected = said.rsplit_once(", expected ").map(|(_, expected)| expected);
    if said.starts_with("unknown field ") {
        let accepted = expected.map(|accepted| accepted.strip_prefix("one of ").unwrap_or(accepted));
        let accepted = accepted.expect("serde lists the fields of a struct that has some");
        return EventError::invalid(path, format!("is not a field of the event; accepted here: {accepted}"));
    }
    // A time that cannot be parsed says which of its parts, and not what a time looks like.
    if path.ends_with("_at") {
        return EventError::invalid(path, "must be an RFC 3339 time with offset, such as `2026-05-18T14:03:22Z`");
    }
    let message = match expected {
        None => "has the wrong type or value".to_owned(),
        Some("f64") => "must be a number".to_owned(),
        Some("u32") => format!("must be a whole number from 0 to {}", u32::MAX),
        Some("a boolean") => "must be `true` or `false`".to_owned(),
        Some("a sequence") => "must be an array".to_owned(),
        Some(expected) => format!("must be {expected}"),
    };
    EventError::invalid(path, message)
}

/// `name` of `PREFIX` followed by `name` in backticks: a name of ours, never one of the caller's.
fn quoted<'a>(said: &'a str, prefix: &str) -> Option<&'a str> {
    said.strip_prefix(prefix)?.strip_prefix('`')?.strip_suffix('`')
}

fn path(path: &serde_path_to_error::Path) -> String {
    path.iter().fold(String::new(), |path, segment| match segment {
        Segment::Seq { index } => format!("{path}[{index}]"),
        Segment::Map { key } => join(path, path_segment(key)),
        Segment::Enum { .. } | Segment::Unknown => path,
    })
}

fn join(path: String, field: &str) -> String {
    if path.is_empty() { field.to_owned() } else { format!("{path}.{field}") }
}
