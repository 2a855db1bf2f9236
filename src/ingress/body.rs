//! JSON bodies: objects whose every field is known.
//!
//! Refuses to pass over a field that it does not know: a misspelled `conversation_id` would open another conversation. Invariant:
//! which fields are known is read from the type that the API's description is made from.

use axum::body::Body;
use axum::http::HeaderMap;
use schemars::{JsonSchema, Schema};
use serde_json::{Map, Value};

use super::problem::Problem;
use super::{Ingress, headers};

/// The media type of bodies, unless they are something more special.
pub(super) const JSON: &[&str] = &["application/json"];

/// Of changes: RFC 7396.
pub(super) const MERGE_PATCH: &[&str] = &["application/merge-patch+json", "application/json"];

/// The longest name shown of a field that is not known.
const FIELD_CHARS_SHOWN: usize = 64;

impl Ingress {
    /// A body that is a JSON object.
    pub(super) async fn object(
        &self,
        headers: &HeaderMap,
        body: Body,
        taken: &'static [&'static str],
    ) -> Result<Map<String, Value>, Problem> {
        headers::check_content(headers, taken)?;
        object(&self.body(body).await?)
    }
}

/// A JSON object, or why it is none.
pub(super) fn object(bytes: &[u8]) -> Result<Map<String, Value>, Problem> {
    match serde_json::from_slice(bytes) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(Problem::new(400, "malformed", "The body must be a JSON object.")),
        // Its text names a line and column, never the content.
        Err(error) => Err(Problem::new(400, "malformed", format!("The body is not JSON: {error}."))),
    }
}

/// A string field that may be absent.
pub(super) fn text(body: &Map<String, Value>, field: &str) -> Result<Option<String>, Problem> {
    match body.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(_) => Err(Problem::field(422, field, "must be a string.")),
    }
}

/// For a schema of an optional field that may be left out, but not be `null`.
pub(super) fn not_null(schema: &mut Schema) {
    if let Some(Value::Array(types)) = schema.get_mut("type") {
        types.retain(|name| name != "null");
    }
    if let Some(Value::Array(schemas)) = schema.get_mut("anyOf") {
        schemas.retain(|schema| schema["type"] != "null");
    }
}

/// The fields of a type of bodies.
#[derive(Debug)]
pub(super) struct Fields(Vec<String>);

impl Fields {
    pub(super) fn of<T: JsonSchema>() -> Self {
        let schema = schemars::schema_for!(T);
        let properties = schema.get("properties").and_then(Value::as_object);
        Self(properties.into_iter().flat_map(Map::keys).cloned().collect())
    }

    /// # Errors
    /// 422 for the first field that is none of these; `place` is put before its name.
    pub(super) fn check(&self, body: &Map<String, Value>, place: &str) -> Result<(), Problem> {
        let Some(unknown) = body.keys().find(|field| !self.0.contains(field)) else { return Ok(()) };
        let name: String = unknown.chars().take(FIELD_CHARS_SHOWN).collect();
        let detail = format!("is not known; these are: {}.", self.0.join(", "));
        Err(Problem::field(422, &format!("{place}{name}"), detail))
    }
}
