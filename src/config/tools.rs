//! The tables `[tools.NAME]`: what a model may do besides talking, over HTTP or by an MCP server.
//!
//! Refuses a schema that cannot be used, and headers that are ours to set. Invariants: a tool's name is given once, here or in
//! Rust code; what may hold a password (headers, environment, arguments of a command) is a [`Secret`].

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use jsonschema::Validator;
use reqwest::header::{HeaderName, HeaderValue};
use serde_json::Value as Json;

use super::bots::NAME_CHARS_MAX;
use super::expected::{Expected, NAME_ALPHABET, duration, endpoint, flag, in_name_alphabet, is_name, text, word};
use super::problem::{nearest, quoted};
use super::reader::{Table, Value};
use super::secret::{self, Secret, SecretKind};
use super::{Argument, Effects, HttpTool, McpServer, McpTransport, OnUnknown, ToolConfig, ToolKind};

/// Below this no network answers; a person does not wait for longer than an hour.
const TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(3_600);

/// Sent with every turn, so paid for with every turn; OpenAI takes 1,024 characters.
const DESCRIPTION_CHARS_MAX: usize = 8_192;

/// Sent with every turn: some 16,000 tokens.
const PARAMETERS_BYTES_MAX: usize = 64 * 1024;

/// Proxies refuse requests whose headers are together larger than some 8 KiB.
const HEADERS_MAX: usize = 32;

/// Far more than any program's own variables.
const VARIABLES_MAX: usize = 64;

/// A program and its arguments.
const COMMAND_WORDS_MAX: usize = 64;

/// As many as one server may offer.
const ONLY_MAX: usize = 256;

/// The longest name that the MCP specification advises for a tool.
const MCP_NAME_CHARS_MAX: usize = 128;

/// How much of a schema's fault is repeated.
const FAULT_CHARS_MAX: usize = 200;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Http,
    Mcp,
}

const KINDS: &[(&str, Kind)] = &[("http", Kind::Http), ("mcp", Kind::Mcp)];

/// Every key that not all kinds have, and the kind that has it.
const KIND_KEYS: &[(&str, Kind)] = &[
    ("description", Kind::Http),
    ("parameters", Kind::Http),
    ("command", Kind::Mcp),
    ("env", Kind::Mcp),
    ("only", Kind::Mcp),
];

/// What every call says itself.
const OWN_HEADERS: &[&str] = &[
    "accept",
    "connection",
    "content-length",
    "content-type",
    "host",
    "idempotency-key",
    "last-event-id",
    "te",
    "traceparent",
    "tracestate",
    "transfer-encoding",
    "upgrade",
];

/// A header's value: <https://www.rfc-editor.org/rfc/rfc9110#section-5.5>.
const HEADER_VALUE: SecretKind = SecretKind {
    right: "write a string, { env = \"NAME\" } or { file = \"PATH\" }",
    check: |text| match HeaderValue::from_str(text) {
        Ok(_) => Ok(()),
        Err(_) => Err("holds a character that no HTTP header may hold"),
    },
    inline: true,
};

/// Reads every tool; `registered` are the names that Rust code answers to.
pub(super) fn read(table: &Table<'_>, registered: &[String]) -> BTreeMap<String, ToolConfig> {
    let mut tools = BTreeMap::new();
    for (name, value) in table.named() {
        if let Err(wrong) = is_name(name, in_name_alphabet, NAME_CHARS_MAX) {
            value.problem(
                format!("the name {wrong}"),
                format!("use 1 to {NAME_CHARS_MAX} characters of {NAME_ALPHABET}"),
            );
        }
        if registered.iter().any(|registered| registered == name) {
            value.problem("is the name of a tool in Rust code", "choose another name");
        }
        let Some(table) = value.table() else { continue };
        if let Some(tool) = tool(&table) {
            tools.insert(name.to_owned(), tool);
        }
    }
    tools
}

fn tool(table: &Table<'_>) -> Option<ToolConfig> {
    let kind = table.required("kind", &word(KINDS));
    let timeout = table.optional("timeout", &duration(TIMEOUT, "30s"));
    let confirm = table.optional("confirm", &flag());
    let effects = table.optional("effects", &word(EFFECTS));
    let on_unknown = table.optional("on_unknown", &word(ON_UNKNOWN));
    let cancel_safe = table.optional("cancel_safe", &flag());
    let settings = match kind {
        Some(Kind::Http) => http(table).map(ToolKind::Http),
        Some(Kind::Mcp) => mcp(table).map(ToolKind::Mcp),
        None => {
            let shared = ["url", "headers", "bearer_token"];
            table.ignore(KIND_KEYS.iter().map(|(key, _)| *key).chain(shared));
            None
        }
    };
    table.finish(&strangers(kind));
    let default = ToolConfig::new(settings?);
    Some(ToolConfig {
        timeout: timeout.unwrap_or(default.timeout),
        confirm: confirm.unwrap_or(default.confirm),
        effects,
        on_unknown,
        cancel_safe,
        kind: default.kind,
    })
}

const EFFECTS: &[(&str, Effects)] =
    &[("read_only", Effects::ReadOnly), ("idempotent", Effects::Idempotent), ("destructive", Effects::Destructive)];

const ON_UNKNOWN: &[(&str, OnUnknown)] = &[("retry", OnUnknown::Retry), ("fail", OnUnknown::Fail)];

fn http(table: &Table<'_>) -> Option<HttpTool> {
    let url = table.required("url", &endpoint("https://shop.example.com/orders"));
    let headers = headers(table);
    let description = table.required("description", &text(DESCRIPTION_CHARS_MAX));
    let parameters = match table.value("parameters") {
        Some(value) => parameters(&value),
        None => Some(HttpTool::no_parameters()),
    };
    Some(HttpTool { url: url?, headers, description: description?, parameters: parameters? })
}

fn mcp(table: &Table<'_>) -> Option<McpServer> {
    let only = table.value("only").and_then(|only| self::only(&only)).unwrap_or_default();
    let (url, command) = (table.value("url"), table.value("command"));
    let transport = match (url, command) {
        (Some(_), Some(command)) => {
            command.problem("stands beside url", "keep one of them");
            table.ignore(["headers", "bearer_token", "env"]);
            None
        }
        (Some(url), None) => {
            if let Some(env) = table.value("env") {
                env.problem("belongs to a server with a command; this one has a url", "remove it");
            }
            let headers = headers(table);
            let url = url.read(&endpoint("https://tools.example.com/mcp"));
            url.map(|url| McpTransport::Url { url, headers })
        }
        (None, Some(command)) => {
            for key in ["headers", "bearer_token"] {
                if let Some(value) = table.value(key) {
                    value.problem("belongs to a server with a url; this one has a command", "remove it");
                }
            }
            self::command(table, &command)
        }
        (None, None) => {
            table.problem(
                "has neither url nor command",
                "write the address of an MCP server, or the command that runs one",
            );
            table.ignore(["headers", "bearer_token", "env"]);
            None
        }
    };
    Some(McpServer { transport: transport?, only })
}

/// An empty list is refused: it reads as "none", and would mean "all".
fn only(value: &Value<'_>) -> Option<Vec<String>> {
    let names = value.list(&text(MCP_NAME_CHARS_MAX))?;
    if names.is_empty() || names.len() > ONLY_MAX {
        value.problem(
            format!("lists {} tools", names.len()),
            format!("write 1 to {ONLY_MAX} names, or remove it to take every tool of the server"),
        );
    }
    Some(names)
}

/// A program with a path counts from the configuration's folder, in which it is also run; one without is looked up in `PATH`.
fn command(table: &Table<'_>, value: &Value<'_>) -> Option<McpTransport> {
    let env = table.value("env").and_then(|env| environment(&env)).unwrap_or_default();
    let right = "write a list such as [\"npx\", \"-y\", \"@modelcontextprotocol/server-everything\"]";
    let words = value.items(right)?;
    let Some((program, arguments)) = words.split_first() else {
        value.problem("is empty", right);
        return None;
    };
    if words.len() > COMMAND_WORDS_MAX {
        value.problem(format!("has {} words", words.len()), format!("write at most {COMMAND_WORDS_MAX}"));
    }
    let program = program.read(&secret::path())?;
    let argument =
        |word: &Value<'_>| word.secret(&secret::ANY).map(|text| Argument { text, kept_elsewhere: word.is_table() });
    let arguments = arguments.iter().filter_map(argument).collect();
    let program = match program.contains('/') {
        true => table.reading.resolve(&program),
        false => program.into(),
    };
    Some(McpTransport::Command { program, arguments, env, folder: table.reading.folder.clone() })
}

fn environment(value: &Value<'_>) -> Option<BTreeMap<String, Secret>> {
    let variables = value.table()?.named();
    if variables.len() > VARIABLES_MAX {
        value.problem(format!("has {} variables", variables.len()), format!("write at most {VARIABLES_MAX}"));
    }
    let read = |(name, value): (&str, Value<'_>)| {
        if !secret::is_variable(name) {
            value.problem("is not the name of an environment variable", "write a name of letters, digits and _");
            return None;
        }
        Some((name.to_owned(), value.secret(&secret::ANY)?))
    };
    Some(variables.into_iter().filter_map(read).collect())
}

/// By lower-case name. The bearer token is one of them.
pub(super) fn headers(table: &Table<'_>) -> BTreeMap<String, Secret> {
    let mut headers = BTreeMap::new();
    let written = table.value("headers").and_then(|headers| headers.table());
    let written = written.map(|written| written.named()).unwrap_or_default();
    if written.len() > HEADERS_MAX {
        table.problem(format!("has {} headers", written.len()), format!("write at most {HEADERS_MAX}"));
    }
    for (name, value) in written {
        match header_name(name) {
            Ok(name) => drop(value.secret(&HEADER_VALUE).map(|secret| headers.insert(name, secret))),
            Err((wrong, right)) => value.problem(wrong, right),
        }
    }
    if let Some(token) = table.value("bearer_token") {
        if headers.contains_key("authorization") {
            token.problem("stands beside the header Authorization", "keep one of them");
        }
        if let Some(secret) = token.secret(&HEADER_VALUE) {
            headers.insert("authorization".to_owned(), Secret::new(format!("Bearer {}", secret.expose())));
        }
    }
    headers
}

fn header_name(name: &str) -> Result<String, (&'static str, &'static str)> {
    let right = "write a name such as X-Api-Key";
    let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| ("is not the name of an HTTP header", right))?;
    let name = name.as_str();
    if OWN_HEADERS.contains(&name) || name.starts_with("mcp-") {
        return Err(("is a header that every call sets itself", "remove it"));
    }
    Ok(name.to_owned())
}

/// A table, or JSON in a string. `None` after a problem.
fn parameters(value: &Value<'_>) -> Option<Json> {
    let right = "write a JSON Schema of an object, as a table or as JSON in a string";
    let schema = match value.as_str() {
        Some(text) => serde_json::from_str(text).map_err(|error| {
            let (line, column) = (error.line(), error.column());
            format!("is not JSON: see its line {line} column {column}")
        }),
        None => value.json(),
    };
    let checked = schema.and_then(|schema| match schema.to_string().len() {
        bytes if bytes > PARAMETERS_BYTES_MAX => Err(format!("has {bytes} bytes; {PARAMETERS_BYTES_MAX} are allowed")),
        _ => compile_schema(&schema).map(|_| schema),
    });
    checked.map_err(|wrong| value.problem(wrong, right)).ok()
}

/// A JSON Schema of an object, ready to check arguments by; the one place that says what a tool's schema may be. Draft 2020-12
/// unless it names another: <https://modelcontextprotocol.io/specification/2025-11-25/basic#json-schema-usage>.
///
/// # Errors
/// What is wrong with it, in words that follow its name.
pub(crate) fn compile_schema(schema: &Json) -> Result<Validator, String> {
    if schema.get("type").and_then(Json::as_str).is_some_and(|kind| kind != "object") || !schema.is_object() {
        return Err("does not describe an object".to_owned());
    }
    jsonschema::validator_for(schema).map_err(|error| {
        let path = error.instance_path().as_str();
        let place = if path.is_empty() { String::new() } else { format!("at {path}: ") };
        let clean = |letter: char| if letter.is_control() { ' ' } else { letter };
        let fault: String = format!("{place}{error}").chars().map(clean).take(FAULT_CHARS_MAX).collect();
        format!("is not a JSON Schema: {fault}")
    })
}

/// The keys of the other kind, and whose they are.
fn strangers(kind: Option<Kind>) -> Vec<(&'static str, String)> {
    let name = |wanted: Kind| KINDS.iter().find(|(_, kind)| *kind == wanted).map_or("", |(name, _)| name);
    KIND_KEYS
        .iter()
        .filter(|(_, home)| Some(*home) != kind)
        .map(|(key, home)| (*key, format!("belongs to tools of kind \"{}\"", name(*home))))
        .collect()
}

/// Reads the names of tools that a responder may use; `known` are the tables and what Rust code registered.
pub(super) fn selection(value: &Value<'_>, known: &[&str]) -> Vec<String> {
    let any = Expected::text("write the name of a tool", |name| Ok(name.to_owned()));
    let items = value.items("write a list of names of [tools.*] tables").unwrap_or_default();
    if items.len() > SELECTION_MAX {
        value.problem(format!("lists {} tools", items.len()), format!("write at most {SELECTION_MAX}"));
    }
    let mut names: Vec<String> = Vec::new();
    for item in items {
        let Some(name) = item.read(&any) else { continue };
        if !known.contains(&name.as_str()) {
            let right = match nearest(&name, known.iter().copied()) {
                _ if known.is_empty() => "add a table [tools.NAME]".to_owned(),
                Some(meant) => format!("did you mean \"{meant}\"? Tools here: {}", known.join(", ")),
                None => format!("tools here: {}", known.join(", ")),
            };
            item.problem(format!("there is no tool {}", quoted(&name)), right);
        } else if names.contains(&name) {
            item.problem(format!("{} is listed twice", quoted(&name)), "remove one of them");
        } else {
            names.push(name);
        }
    }
    names
}

/// OpenAI takes 128 functions: <https://platform.openai.com/docs/api-reference/chat/create#chat-create-tools>.
const SELECTION_MAX: usize = 128;
