//! Reading JSON that strangers wrote: one object at a time, every member optional.
//!
//! Refuses to fail on a member of the wrong type, which reads as absent: a platform that changes one field must not cost a
//! message. Invariant: what is not asked for is skipped without recursion, however deep it nests, and
//! what is read as a tree nests at most as deep as serde_json allows (128).

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Number, Value};

use super::Refusal;

/// The longest id taken from a platform, in bytes: real ones have about 20, and the id becomes part of a NATS subject,
/// where escaping can make it three times as long.
const ID_BYTES_MAX: usize = 128;

/// A JSON object whose members are still text.
pub(super) struct Object<'a>(BTreeMap<String, &'a RawValue>);

impl<'a> Object<'a> {
    /// `None` when `raw` is not an object.
    pub(super) fn read(raw: &'a RawValue) -> Option<Self> {
        serde_json::from_str(raw.get()).ok().map(Self)
    }

    /// `None` when `bytes` are not one JSON object, as the answers of proxies are not.
    pub(super) fn read_bytes(bytes: &'a [u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok().map(Self)
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.raw(name).is_some()
    }

    /// The member as it came; `None` when it is absent or null.
    pub(super) fn raw(&self, name: &str) -> Option<&'a RawValue> {
        self.0.get(name).copied().filter(|raw| raw.get() != "null")
    }

    pub(super) fn object(&self, name: &str) -> Option<Self> {
        Self::read(self.raw(name)?)
    }

    /// The elements of an array; `None` when the member is not an array.
    pub(super) fn list(&self, name: &str) -> Option<Vec<&'a RawValue>> {
        self.get(name)
    }

    pub(super) fn integer(&self, name: &str) -> Option<i64> {
        self.get(name)
    }

    pub(super) fn decimal(&self, name: &str) -> Option<f64> {
        self.get(name)
    }

    pub(super) fn boolean(&self, name: &str) -> Option<bool> {
        self.get(name)
    }

    /// Whether the member is `true`.
    pub(super) fn flag(&self, name: &str) -> bool {
        self.boolean(name) == Some(true)
    }

    /// A string with at least one character that is not whitespace.
    pub(super) fn text(&self, name: &str) -> Option<String> {
        self.get(name).map(|Text(text)| text).filter(|text| !text.trim().is_empty())
    }

    /// An id, which platforms write as a string or as an integer.
    pub(super) fn id(&self, name: &str) -> Option<String> {
        let number = self.get::<Number>(name).filter(|number| !number.is_f64()).map(|number| number.to_string());
        number.or_else(|| self.text(name)).filter(|id| id.len() <= ID_BYTES_MAX)
    }

    /// The member as a tree; `None` when it nests deeper than serde_json's limit of 128.
    pub(super) fn tree(&self, name: &str) -> Option<Value> {
        self.get(name)
    }

    fn get<T: Deserialize<'a>>(&self, name: &str) -> Option<T> {
        serde_json::from_str(self.raw(name)?.get()).ok()
    }
}

/// The body of a request as an object, and as the text to be kept.
///
/// # Errors
/// [`Refusal::Malformed`] when it is not JSON, or not an object. The detail never quotes the body.
pub(super) fn body(bytes: &[u8]) -> Result<(&RawValue, Object<'_>), Refusal> {
    let raw: &RawValue = serde_json::from_slice(bytes).map_err(|error| Refusal::Malformed {
        detail: format!("not JSON at line {} column {}", error.line(), error.column()),
    })?;
    let object = Object::read(raw).ok_or_else(|| Refusal::Malformed { detail: "not a JSON object".to_owned() })?;
    Ok((raw, object))
}

/// Removes U+0000, which PostgreSQL cannot store in text and which no one can see.
pub(super) fn without_nul(text: &str) -> String {
    text.replace('\0', "")
}

/// The same for every string and member name of a JSON object.
pub(super) fn map_without_nul(map: Map<String, Value>) -> Map<String, Value> {
    map.into_iter().map(|(name, value)| (without_nul(&name), value_without_nul(value))).collect()
}

fn value_without_nul(value: Value) -> Value {
    match value {
        Value::String(text) => Value::String(without_nul(&text)),
        Value::Array(values) => Value::Array(values.into_iter().map(value_without_nul).collect()),
        Value::Object(map) => Value::Object(map_without_nul(map)),
        other => other,
    }
}

/// A JSON string made storable: without U+0000, and with U+FFFD where an escape names half a surrogate pair. Read as a
/// `String`, such an escape is an error, and the person's whole message would be lost with it.
struct Text(String);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_bytes(TextVisitor)
    }
}

struct TextVisitor;

impl Visitor<'_> for TextVisitor {
    type Value = Text;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a string")
    }

    fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Text, E> {
        Ok(Text(without_nul(&String::from_utf8_lossy(bytes))))
    }
}
