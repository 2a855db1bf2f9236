//! The API's description for programs, `GET /openapi.json`: OpenAPI 3.1 (<https://spec.openapis.org/oas/v3.1.1.html>).
//!
//! Refuses to know any route by itself. Invariants: a route enters the router only together with its description, and the schemas
//! are made from the types that handlers read and write, so the description cannot fall behind.

use std::sync::Arc;

use axum::Router;
use axum::handler::Handler;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{MethodFilter, on};
use schemars::generate::{SchemaGenerator, SchemaSettings};
use schemars::{JsonSchema, Schema};
use serde_json::{Map, Value, json};

use super::problem::Problem;
use super::{Ingress, events};

const SCHEMAS: &str = "/components/schemas";

const PROBLEM: &str = "application/problem+json";

/// A part of the API: its routes, and what there is to know of each.
#[derive(Debug, Default)]
pub(super) struct Routes {
    router: Router<Arc<Ingress>>,
    operations: Vec<Operation>,
}

impl Routes {
    /// The framework answers `HEAD` with it as well.
    pub(super) fn get<H, T>(self, path: &'static str, handler: H, operation: Operation) -> Self
    where
        H: Handler<T, Arc<Ingress>>,
        T: 'static,
    {
        self.on((MethodFilter::GET, "get"), path, handler, operation)
    }

    pub(super) fn post<H, T>(self, path: &'static str, handler: H, operation: Operation) -> Self
    where
        H: Handler<T, Arc<Ingress>>,
        T: 'static,
    {
        self.on((MethodFilter::POST, "post"), path, handler, operation)
    }

    pub(super) fn patch<H, T>(self, path: &'static str, handler: H, operation: Operation) -> Self
    where
        H: Handler<T, Arc<Ingress>>,
        T: 'static,
    {
        self.on((MethodFilter::PATCH, "patch"), path, handler, operation)
    }

    fn on<H, T>(
        mut self,
        (filter, method): (MethodFilter, &'static str),
        path: &'static str,
        handler: H,
        operation: Operation,
    ) -> Self
    where
        H: Handler<T, Arc<Ingress>>,
        T: 'static,
    {
        self.router = self.router.route(path, on(filter, handler));
        self.operations.push(Operation { method, path, ..operation });
        self
    }

    pub(super) fn merge(mut self, other: Self) -> Self {
        self.router = self.router.merge(other.router);
        self.operations.extend(other.operations);
        self
    }

    /// The router, with the description of these routes as one more.
    pub(super) fn described(self, public_url: Option<&str>) -> Router<Arc<Ingress>> {
        let operation = Operation::new("describe", "This description.").text(200, "application/json", "OpenAPI 3.1.");
        let mut routes = self;
        routes.operations.push(Operation { method: "get", path: "/openapi.json", ..operation });
        let document: Arc<str> = document(&routes.operations, public_url).to_string().into();
        routes.router.route("/openapi.json", axum::routing::get(async move || answer(&document)))
    }
}

fn answer(document: &str) -> Response {
    let headers = [("content-type", "application/json"), ("cache-control", "no-cache")];
    (headers, document.to_owned()).into_response()
}

/// Makes a schema, or a reference to it and an entry among the components.
type MakeSchema = fn(&mut SchemaGenerator) -> Schema;

/// What there is to know of one method of one path.
#[derive(Debug)]
pub(super) struct Operation {
    method: &'static str,
    path: &'static str,
    id: &'static str,
    summary: &'static str,
    details: Option<&'static str>,
    security: Security,
    query: Option<MakeSchema>,
    headers: Vec<Header>,
    body: Option<(MakeSchema, &'static [&'static str])>,
    answers: Vec<(u16, Answer)>,
    problems: &'static [u16],
}

/// A header that a caller may send.
#[derive(Debug)]
struct Header {
    name: &'static str,
    description: &'static str,
    pattern: Option<&'static str>,
}

/// What a caller has to show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Security {
    Nothing,
    /// Where the bot has keys.
    KeyOfBot,
    Key,
    TelegramSecret,
    MessengerSignature,
    /// Of Standard Webhooks.
    WebhookSignature,
}

/// One kind of answer of an operation.
#[derive(Debug)]
enum Answer {
    Json(MakeSchema, &'static str),
    /// Of this media type.
    Text(&'static str, &'static str),
    Events,
    Empty(&'static str),
}

impl Operation {
    pub(super) const fn new(id: &'static str, summary: &'static str) -> Self {
        Self {
            method: "",
            path: "",
            id,
            summary,
            details: None,
            security: Security::Nothing,
            query: None,
            headers: Vec::new(),
            body: None,
            answers: Vec::new(),
            problems: &[],
        }
    }

    pub(super) const fn details(mut self, details: &'static str) -> Self {
        self.details = Some(details);
        self
    }

    pub(super) const fn security(mut self, security: Security) -> Self {
        self.security = security;
        self
    }

    /// The fields of `T` are the query's parameters.
    pub(super) fn query<T: JsonSchema>(mut self) -> Self {
        self.query = Some(T::json_schema);
        self
    }

    pub(super) fn header(mut self, name: &'static str, description: &'static str) -> Self {
        self.headers.push(Header { name, description, pattern: None });
        self
    }

    /// The same for one that is refused unless it looks like this (ECMA-262).
    pub(super) fn header_like(mut self, name: &'static str, pattern: &'static str, description: &'static str) -> Self {
        self.headers.push(Header { name, description, pattern: Some(pattern) });
        self
    }

    pub(super) fn body<T: JsonSchema>(mut self, media_types: &'static [&'static str]) -> Self {
        self.body = Some((SchemaGenerator::subschema_for::<T>, media_types));
        self
    }

    pub(super) fn answer<T: JsonSchema>(self, status: u16, description: &'static str) -> Self {
        self.and(status, Answer::Json(SchemaGenerator::subschema_for::<T>, description))
    }

    pub(super) fn text(self, status: u16, media_type: &'static str, description: &'static str) -> Self {
        self.and(status, Answer::Text(media_type, description))
    }

    pub(super) fn events(self, status: u16) -> Self {
        self.and(status, Answer::Events)
    }

    pub(super) fn empty(self, status: u16, description: &'static str) -> Self {
        self.and(status, Answer::Empty(description))
    }

    pub(super) const fn problems(mut self, statuses: &'static [u16]) -> Self {
        self.problems = statuses;
        self
    }

    fn and(mut self, status: u16, answer: Answer) -> Self {
        self.answers.push((status, answer));
        self
    }
}

fn document(operations: &[Operation], public_url: Option<&str>) -> Value {
    let mut schemas = Schemas::new();
    let mut paths = Map::new();
    for operation in operations {
        let path = paths.entry(operation.path).or_insert_with(|| json!({}));
        path[operation.method] = schemas.operation(operation);
    }
    let problem = json!({ PROBLEM: { "schema": schemas.written.subschema_for::<Problem>() } });
    let mut statuses: Vec<u16> = operations.iter().flat_map(|operation| operation.problems).copied().collect();
    statuses.sort_unstable();
    let responses = statuses.into_iter().map(|status| {
        let mut response = json!({ "description": meaning(status), "content": problem });
        if matches!(status, 429 | 503) {
            response["headers"] = json!({ "Retry-After": retry_after() });
        }
        (format!("problem{status}"), response)
    });
    let responses: Map<String, Value> = responses.collect();
    let mut document = json!({
        "openapi": "3.1.1",
        "info": {
            "title": "Turnwise",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Conversations of chat bots: durable, in order, one turn at a time. Every error is a problem \
                document (RFC 9457). HEAD is answered wherever GET is.",
            "license": { "name": "Apache License 2.0", "identifier": "Apache-2.0" },
        },
        "paths": paths,
        "components": {
            "schemas": schemas.components(),
            "responses": responses,
            "securitySchemes": {
                "key": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "One of the bot's `api_keys`, or the console token.",
                },
                "telegramSecret": { "type": "apiKey", "in": "header", "name": "X-Telegram-Bot-Api-Secret-Token" },
                "messengerSignature": { "type": "apiKey", "in": "header", "name": "X-Hub-Signature-256" },
                "webhookSignature": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "webhook-signature",
                    "description": "Standard Webhooks 1.0.0, scheme v1, with webhook-id and webhook-timestamp.",
                },
            },
        },
    });
    if let Some(url) = public_url {
        document["servers"] = json!([{ "url": url }]);
    }
    document
}

/// What is read may leave fields out that are always written, so there is a generator for each direction. No type goes both
/// ways but for words that look the same in both.
struct Schemas {
    read: SchemaGenerator,
    written: SchemaGenerator,
}

impl Schemas {
    fn new() -> Self {
        let settings = SchemaSettings::draft2020_12().with(|settings| settings.definitions_path = SCHEMAS.into());
        Self {
            read: settings.clone().for_deserialize().into_generator(),
            written: settings.for_serialize().into_generator(),
        }
    }

    fn components(mut self) -> Map<String, Value> {
        let mut components = self.read.take_definitions(true);
        for (name, written) in self.written.take_definitions(true) {
            let read = components.insert(name, written.clone());
            debug_assert!(read.is_none_or(|read| read == written), "two types of one name");
        }
        components
    }

    fn operation(&mut self, operation: &Operation) -> Value {
        let mut described = json!({
            "operationId": operation.id,
            "summary": operation.summary,
            "parameters": self.parameters(operation),
            "responses": self.responses(operation),
            "security": security(operation.security),
        });
        if let Some(details) = operation.details {
            described["description"] = json!(details);
        }
        if let Some((schema, media_types)) = operation.body {
            let schema = schema(&mut self.read);
            let media = media_types.iter().map(|media_type| ((*media_type).to_owned(), json!({ "schema": schema })));
            described["requestBody"] = json!({ "required": true, "content": media.collect::<Map<_, _>>() });
        }
        described
    }

    fn parameters(&mut self, operation: &Operation) -> Vec<Value> {
        let segments = operation.path.split(['{', '}']).skip(1).step_by(2);
        let mut parameters: Vec<Value> = segments
            .map(|name| {
                let schema = if name == "bot" {
                    json!({ "type": "string" })
                } else {
                    json!({ "type": "string", "format": "uuid" })
                };
                json!({ "name": name, "in": "path", "required": true, "schema": schema })
            })
            .collect();
        let query = operation.query.map(|schema| schema(&mut self.read));
        let fields = query.as_ref().and_then(|schema| schema.get("properties")).and_then(Value::as_object);
        for (name, schema) in fields.into_iter().flatten() {
            let mut parameter = json!({ "name": name, "in": "query", "schema": schema });
            if let Some(description) =
                parameter["schema"].as_object_mut().and_then(|schema| schema.remove("description"))
            {
                parameter["description"] = description;
            }
            parameters.push(parameter);
        }
        parameters.extend(operation.headers.iter().map(|Header { name, description, pattern }| {
            let mut schema = json!({ "type": "string" });
            if let Some(pattern) = pattern {
                schema["pattern"] = json!(pattern);
            }
            json!({ "name": name, "in": "header", "description": description, "schema": schema })
        }));
        parameters
    }

    fn responses(&mut self, operation: &Operation) -> Map<String, Value> {
        let mut responses = Map::new();
        for (status, answer) in &operation.answers {
            let response = responses.entry(status.to_string()).or_insert_with(|| json!({ "content": {} }));
            let (media_type, media, description) = match answer {
                Answer::Json(schema, description) => {
                    ("application/json", json!({ "schema": schema(&mut self.written) }), *description)
                }
                Answer::Text(media_type, description) => {
                    (*media_type, json!({ "schema": text_of(media_type) }), *description)
                }
                Answer::Events => ("text/event-stream", self.events(), "The turn's events."),
                Answer::Empty(description) => {
                    *response = json!({ "description": description });
                    continue;
                }
            };
            response["content"][media_type] = media;
            if response.get("description").is_none() {
                response["description"] = json!(description);
            }
            if *status == 202 {
                response["headers"] = json!({ "Location": location(), "Retry-After": retry_after() });
            }
        }
        let problems = operation.problems.iter();
        responses.extend(
            problems.map(|status| {
                (status.to_string(), json!({ "$ref": format!("#/components/responses/problem{status}") }))
            }),
        );
        responses
    }

    /// In OpenAPI 3.1 the schema of a stream of events is that of each event, as its programs read it. It has no words for what
    /// the text of their data holds: those schemas stand in an extension of ours, by the events' names.
    fn events(&mut self) -> Value {
        let schemas: Map<String, Value> = events::schemas(&mut self.written).into_iter().collect();
        let event = json!({
            "type": "object",
            "properties": {
                "event": { "enum": schemas.keys().collect::<Vec<_>>() },
                "id": { "type": "string", "description": "For `Last-Event-ID`." },
                "data": { "type": "string", "contentMediaType": "application/json" },
            },
            "required": ["event", "id", "data"],
        });
        json!({ "schema": event, "x-events": schemas })
    }
}

/// JSON under a media type of text is a document that describes itself.
fn text_of(media_type: &str) -> Value {
    if media_type == "application/json" { json!({ "type": "object" }) } else { json!({ "type": "string" }) }
}

fn location() -> Value {
    json!({ "description": "Where to ask for the outcome.", "schema": { "type": "string" } })
}

fn retry_after() -> Value {
    json!({ "description": "Seconds to wait before asking again.", "schema": { "type": "integer", "minimum": 0 } })
}

fn security(security: Security) -> Value {
    match security {
        Security::Nothing => json!([]),
        Security::KeyOfBot => json!([{}, { "key": [] }]),
        Security::Key => json!([{ "key": [] }]),
        Security::TelegramSecret => json!([{ "telegramSecret": [] }]),
        Security::MessengerSignature => json!([{ "messengerSignature": [] }]),
        Security::WebhookSignature => json!([{ "webhookSignature": [] }]),
    }
}

fn meaning(status: u16) -> &'static str {
    match status {
        400 => "The body is not JSON, or an id, a parameter or a header cannot be read.",
        401 => "No valid key, secret or signature was shown.",
        403 => "A browser's page of an origin that the bot does not list, or a wrong verify token.",
        404 => "There is no such thing, or it is not the caller's to see.",
        408 => "The body did not arrive in time.",
        409 => {
            "The conversation is closed, another one with the same person is open, or the delivery is not uncertain."
        }
        413 => "The body or the message is too large.",
        415 => "The body is of another media type, or compressed.",
        422 => "A field has a value that is not allowed, is missing or is not known; `errors` names it.",
        429 => "The caller has used up the bot's `rate_limit`.",
        503 => "The message could not be stored, the database did not answer, or too many requests are in flight.",
        _ => "See `title` and `detail`.",
    }
}
