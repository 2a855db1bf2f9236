//! Arguments against a tool's JSON Schema, and what the model is told when they do not fit.
//!
//! Refuses to fetch what a schema refers to elsewhere. Invariant: a schema is compiled once; text that a model wrote, whatever
//! it is, is either an object that fits or a sentence of bounded length.

use jsonschema::{ValidationError, Validator};
use serde_json::Value;

use crate::config::compile_schema;
use crate::telemetry::json_fault;

/// The most that one call's arguments may take: some 60,000 tokens, more than models write in one answer.
const ARGUMENTS_BYTES_MAX: usize = 256 * 1024;

/// Arguments are nested some five deep; what reads them later may recurse.
const ARGUMENTS_DEPTH_MAX: usize = 64;

/// A model mends its arguments from the first few.
const ERRORS_TOLD_MAX: usize = 5;

/// One error names a path and quotes a value; both are the model's own words.
const ERROR_CHARS_MAX: usize = 300;

/// A compiled schema.
#[derive(Debug)]
pub(super) struct Schema(Validator);

/// A schema that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SchemaError(String);

impl Schema {
    /// # Errors
    /// When it is not a JSON Schema (2020-12 unless it names another draft), refers to something outside of itself, or
    /// does not ask for an object.
    pub(super) fn compile(schema: &Value) -> Result<Self, SchemaError> {
        compile_schema(schema).map(Self).map_err(SchemaError)
    }

    /// # Errors
    /// A sentence for the model.
    pub(super) fn validate(&self, arguments: &str) -> Result<Value, String> {
        let arguments = parse(arguments)?;
        let mut errors = self.0.iter_errors(&arguments);
        let told: Vec<String> = errors.by_ref().take(ERRORS_TOLD_MAX).map(|error| tell(&error)).collect();
        if told.is_empty() {
            drop(errors);
            return Ok(arguments);
        }
        let more = if errors.next().is_some() { "; and more" } else { "" };
        Err(format!("The arguments do not fit the tool's schema: {}{more}.", told.join("; ")))
    }
}

/// An object; models write nothing at all when there is nothing to say.
fn parse(arguments: &str) -> Result<Value, String> {
    if arguments.len() > ARGUMENTS_BYTES_MAX {
        return Err(format!("The arguments have {} bytes; at most {ARGUMENTS_BYTES_MAX} are taken.", arguments.len()));
    }
    if arguments.trim().is_empty() {
        return Ok(Value::Object(serde_json::Map::new()));
    }
    let value: Value = serde_json::from_str(arguments)
        .map_err(|error| format!("The arguments are not one JSON object: {}.", json_fault(&error)))?;
    if !value.is_object() {
        return Err(format!("The arguments are {}; write a JSON object.", kind(&value)));
    }
    if is_deeper_than(&value, ARGUMENTS_DEPTH_MAX) {
        return Err(format!("The arguments are nested more than {ARGUMENTS_DEPTH_MAX} deep."));
    }
    Ok(value)
}

/// serde_json itself refuses text that is nested more than 128 deep, so this cannot recurse further.
fn is_deeper_than(value: &Value, depth: usize) -> bool {
    let deeper = |inner: &Value| depth == 0 || is_deeper_than(inner, depth - 1);
    match value {
        Value::Array(items) => items.iter().any(deeper),
        Value::Object(fields) => fields.values().any(deeper),
        _ => false,
    }
}

const fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// `at /items/0/count: -1 is less than the minimum of 1`.
fn tell(error: &ValidationError<'_>) -> String {
    let path = error.instance_path().as_str();
    let place = if path.is_empty() { String::new() } else { format!("at {path}: ") };
    // A value is shown only where it is short: the model knows what it wrote.
    let told = format!("{place}{error}");
    if told.chars().count() <= ERROR_CHARS_MAX {
        return told;
    }
    format!("{place}{}", error.masked()).chars().take(ERROR_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn order() -> Schema {
        let schema = json!({
            "type": "object",
            "properties": {
                "sku": { "type": "string", "maxLength": 5 },
                "items": { "type": "array", "items": { "type": "integer", "minimum": 1 } },
            },
            "required": ["sku"],
            "additionalProperties": false,
        });
        Schema::compile(&schema).unwrap()
    }

    #[test]
    fn arguments_and_sentences() {
        let check = |arguments: &str, expected: Result<Value, &str>| {
            assert_eq!(order().validate(arguments), expected.map_err(str::to_owned), "{arguments}");
        };
        check(r#" {"sku": "a", "items": [1, 2]} "#, Ok(json!({ "sku": "a", "items": [1, 2] })));
        check("", Err(r#"The arguments do not fit the tool's schema: "sku" is a required property."#));
        check("[1]", Err("The arguments are an array; write a JSON object."));
        check("null", Err("The arguments are null; write a JSON object."));
        check("{} {}", Err("The arguments are not one JSON object: it is not JSON, line 1 column 4."));
        check(r#"{"sku": "a""#, Err("The arguments are not one JSON object: it ends too early, line 1 column 11."));
        check(
            r#"{"sku": 7, "items": [1, 0]}"#,
            Err(concat!(
                "The arguments do not fit the tool's schema: ",
                r#"at /items/1: 0 is less than the minimum of 1; at /sku: 7 is not of type "string"."#
            )),
        );
        check(
            r#"{"sku": "a", "items": [0, 0, 0, 0, 0, 0]}"#,
            Err(concat!(
                "The arguments do not fit the tool's schema: at /items/0: 0 is less than the minimum of 1; ",
                "at /items/1: 0 is less than the minimum of 1; at /items/2: 0 is less than the minimum of 1; ",
                "at /items/3: 0 is less than the minimum of 1; at /items/4: 0 is less than the minimum of 1; and more."
            )),
        );
    }

    #[test]
    fn sentences_are_bounded() {
        let long = format!(r#"{{"sku": "{}"}}"#, "x".repeat(100_000));
        let sentence = order().validate(&long).unwrap_err();
        assert_eq!(sentence, "The arguments do not fit the tool's schema: at /sku: value is longer than 5 characters.");
        let deep = format!(r#"{{"a": {}{}}}"#, "[".repeat(65), "]".repeat(65));
        assert_eq!(order().validate(&deep).unwrap_err(), "The arguments are nested more than 64 deep.");
        let deeper = format!(r#"{{"a": {}"#, "[".repeat(200_000));
        assert_eq!(
            order().validate(&deeper).unwrap_err(),
            "The arguments are not one JSON object: it is not JSON, line 1 column 133."
        );
        let large = format!(r#"{{"a": "{}"}}"#, "x".repeat(300_000));
        assert_eq!(order().validate(&large).unwrap_err(), "The arguments have 300009 bytes; at most 262144 are taken.");
        let many: Vec<String> = (0..9).map(|i| format!(r#""{i}{}": 1"#, "k".repeat(5_000))).collect();
        let sentence = order().validate(&format!("{{{}}}", many.join(","))).unwrap_err();
        assert!(sentence.chars().count() < 2_000, "{sentence}");
    }

    #[test]
    fn schemas_that_cannot_be_used() {
        let check = |schema: Value, expected: &str| {
            let error = Schema::compile(&schema).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{schema}: {error}");
        };
        check(json!({ "required": 1 }), "is not a JSON Schema: at /required: ");
        check(
            json!({ "type": "object", "properties": { "a": { "pattern": "(" } } }),
            "is not a JSON Schema: at /properties/a",
        );
        check(json!({ "$ref": "https://example.com/x.json" }), "is not a JSON Schema: ");
        check(json!({ "type": "string" }), "does not describe an object");
        check(json!(true), "does not describe an object");
        check(json!([]), "does not describe an object");
    }

    /// A server chooses its tools' schemas, and must not be able to end our process with one.
    #[test]
    fn schemas_that_go_round_in_circles() {
        for schema in [
            json!({ "type": "object", "$ref": "#" }),
            json!({ "type": "object", "allOf": [{ "$ref": "#" }] }),
            json!({ "type": "object", "$ref": "#/$defs/a", "$defs": { "a": { "$ref": "#/$defs/b" }, "b": { "$ref": "#/$defs/a" } } }),
            json!({ "type": "object", "properties": { "a": { "$ref": "#" } } }),
        ] {
            if let Ok(schema) = Schema::compile(&schema) {
                let _told = schema.validate(r#"{"a": {"a": {}}}"#);
            }
        }
    }
}
