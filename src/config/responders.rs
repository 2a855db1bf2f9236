//! The tables `[responders.NAME]`: who decides what a bot answers, and how much it may be asked at once.
//!
//! Refuses a key that belongs to another kind. Invariants: a responder's name is given once, here or in Rust code; the tools
//! and the workflow that it names exist.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::bots::NAME_CHARS_MAX;
use super::expected::{
    Expected, NAME_ALPHABET, base_url, duration, endpoint, in_name_alphabet, is_name, number, text, whole, word,
};
use super::problem::{alternatives, nearest, quoted};
use super::reader::Table;
use super::secret::{self, path};
use super::tools::{headers, selection};
use super::{HttpService, ModelApi, ModelConfig, ResponderConfig, ResponderKind};

/// Below this no network answers; a person does not wait for longer than an hour.
const TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(3_600);

/// A connection each: 10,000 are a sixth of the ports that one address has towards one server.
const CONCURRENCY: RangeInclusive<usize> = 1..=10_000;

/// Read from the database for every turn that is not in the cache, at most some 2 KiB each.
const HISTORY_MESSAGES: RangeInclusive<u32> = 1..=1_000;

/// The smallest holds a question and an answer; the largest context windows hold about two million tokens.
const HISTORY_TOKENS: RangeInclusive<u32> = 256..=2_000_000;

/// A call to the model each. A model that has not come to an answer after some ten goes round in circles.
const TOOL_ROUNDS: RangeInclusive<u32> = 1..=64;

/// OpenAI's range: <https://platform.openai.com/docs/api-reference/chat/create#chat_create-temperature>.
const TEMPERATURE: RangeInclusive<f64> = 0.0..=2.0;

/// Anthropic's: <https://docs.anthropic.com/en/api/messages#body-temperature>.
const ANTHROPIC_TEMPERATURE: RangeInclusive<f64> = 0.0..=1.0;

/// No model writes more in one answer.
const OUTPUT_TOKENS: RangeInclusive<u32> = 1..=1_000_000;

/// Model names are paths at some servers, and file names at others.
const MODEL_CHARS_MAX: usize = 255;

/// Sent with every turn, so paid for with every turn; this much fills most context windows.
const SYSTEM_PROMPT_BYTES_MAX: usize = 256 * 1024;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Model(ModelApi),
    Echo,
    Script,
    Http,
}

const OPENAI: Kind = Kind::Model(ModelApi::OpenAi);
const ANTHROPIC: Kind = Kind::Model(ModelApi::Anthropic);

/// The kinds that call a model.
const MODELS: &[Kind] = &[OPENAI, ANTHROPIC];

/// Every key that not all kinds have, and the kinds that have it.
const KIND_KEYS: &[(&str, &[Kind])] = &[
    ("base_url", MODELS),
    ("api_key", MODELS),
    ("model", MODELS),
    ("system_prompt", MODELS),
    ("system_prompt_file", MODELS),
    ("temperature", MODELS),
    ("max_output_tokens", MODELS),
    ("tools", MODELS),
    ("max_tool_rounds", MODELS),
    ("file", &[Kind::Script]),
    ("url", &[Kind::Http]),
    ("headers", &[Kind::Http]),
    ("bearer_token", &[Kind::Http]),
];

const KINDS: &[(&str, Kind)] = &[
    ("openai", OPENAI),
    ("anthropic", ANTHROPIC),
    ("http", Kind::Http),
    ("echo", Kind::Echo),
    ("script", Kind::Script),
];

/// The names that a responder may use, whether or not their tables are right.
pub(super) struct Known<'n> {
    pub(super) tools: &'n [&'n str],
    pub(super) workflows: &'n [&'n str],
}

/// Reads every responder; `registered` are the names that Rust code answers to.
pub(super) fn read(table: &Table<'_>, registered: &[String], known: &Known<'_>) -> BTreeMap<String, ResponderConfig> {
    let mut responders = BTreeMap::new();
    for (name, value) in table.named() {
        if let Err(wrong) = is_name(name, in_name_alphabet, NAME_CHARS_MAX) {
            value.problem(
                format!("the name {wrong}"),
                format!("use 1 to {NAME_CHARS_MAX} characters of {NAME_ALPHABET}"),
            );
        }
        if registered.iter().any(|registered| registered == name) {
            value.problem("is the name of a responder in Rust code", "choose another name");
        }
        let Some(table) = value.table() else { continue };
        if let Some(responder) = responder(&table, known) {
            responders.insert(name.to_owned(), responder);
        }
    }
    responders
}

fn responder(table: &Table<'_>, known: &Known<'_>) -> Option<ResponderConfig> {
    let kind = table.required("kind", &word(KINDS));
    let timeout = table.optional("timeout", &duration(TIMEOUT, "60s"));
    let max_concurrency = table.optional("max_concurrency", &whole(CONCURRENCY));
    let history = table.table("history");
    let history_messages = history.optional("messages", &whole(HISTORY_MESSAGES));
    let history_tokens = history.optional("tokens", &whole(HISTORY_TOKENS));
    history.finish(&[]);
    let workflow = workflow(table, known.workflows);

    let mut tools = Vec::new();
    let mut max_tool_rounds = None;
    let settings = match kind {
        Some(Kind::Model(api)) => {
            tools = table.value("tools").map(|value| selection(&value, known.tools)).unwrap_or_default();
            max_tool_rounds = table.optional("max_tool_rounds", &whole(TOOL_ROUNDS));
            model(table, api).map(ResponderKind::Model)
        }
        Some(Kind::Echo) => Some(ResponderKind::Echo),
        Some(Kind::Script) => script(table),
        Some(Kind::Http) => http(table).map(ResponderKind::Http),
        None => {
            // With the kind unknown, no key can be called foreign.
            table.ignore(KIND_KEYS.iter().map(|(key, _)| *key));
            None
        }
    };
    table.finish(&strangers(kind));
    let default = ResponderConfig::new(settings?);
    Some(ResponderConfig {
        timeout: timeout.unwrap_or(default.timeout),
        max_concurrency: max_concurrency.unwrap_or(default.max_concurrency),
        history_messages: history_messages.unwrap_or(default.history_messages),
        history_tokens: history_tokens.unwrap_or(default.history_tokens),
        tools,
        max_tool_rounds: max_tool_rounds.unwrap_or(default.max_tool_rounds),
        workflow,
        kind: default.kind,
    })
}

fn workflow(table: &Table<'_>, known: &[&str]) -> Option<String> {
    let name =
        table.optional("workflow", &Expected::text("write the name of a workflow", |text| Ok(text.to_owned())))?;
    if known.contains(&name.as_str()) {
        return Some(name);
    }
    let right = match nearest(&name, known.iter().copied()) {
        _ if known.is_empty() => "add a table [workflows.NAME]".to_owned(),
        Some(meant) => format!("did you mean \"{meant}\"? Workflows here: {}", known.join(", ")),
        None => format!("workflows here: {}", known.join(", ")),
    };
    table.value("workflow")?.problem(format!("there is no workflow {}", quoted(&name)), right);
    None
}

fn http(table: &Table<'_>) -> Option<HttpService> {
    let url = table.required("url", &endpoint("http://127.0.0.1:9000/turn"));
    let headers = headers(table);
    Some(HttpService { url: url?, headers })
}

fn model(table: &Table<'_>, api: ModelApi) -> Option<ModelConfig> {
    let (base_url, temperatures) = match api {
        ModelApi::OpenAi => (table.required("base_url", &base_url("http://127.0.0.1:11434/v1")), TEMPERATURE),
        ModelApi::Anthropic => {
            let default = ModelConfig::ANTHROPIC_BASE_URL;
            let written = table.optional("base_url", &base_url(default));
            (Some(written.unwrap_or_else(|| default.to_owned())), ANTHROPIC_TEMPERATURE)
        }
    };
    let api_key = table.optional_secret("api_key", &secret::ANY);
    let model = table.required("model", &text(MODEL_CHARS_MAX));
    let system_prompt = system_prompt(table);
    let temperature = table.optional("temperature", &number(temperatures));
    let max_output_tokens = table.optional("max_output_tokens", &whole(OUTPUT_TOKENS));
    Some(ModelConfig {
        api,
        base_url: base_url?,
        api_key,
        model: model?,
        system_prompt,
        temperature,
        max_output_tokens,
    })
}

fn system_prompt(table: &Table<'_>) -> Option<String> {
    let right = format!("write 1 to {SYSTEM_PROMPT_BYTES_MAX} bytes of text");
    let written = table.optional(
        "system_prompt",
        &Expected::text(right, |text| match text.len() {
            0 => Err("is empty".to_owned()),
            1..=SYSTEM_PROMPT_BYTES_MAX => Ok(text.to_owned()),
            bytes => Err(format!("has {bytes} bytes")),
        }),
    );
    let Some(file) = table.value("system_prompt_file") else { return written };
    if table.value("system_prompt").is_some() {
        file.problem("stands beside system_prompt", "keep one of them");
    }
    let path = table.reading.resolve(&file.read(&path())?);
    let text = file.read_file(&path, SYSTEM_PROMPT_BYTES_MAX as u64)?;
    if text.trim().is_empty() {
        file.problem(format!("file {path:?} is empty"), "write the prompt into it, or remove the key");
    }
    Some(text)
}

fn script(table: &Table<'_>) -> Option<ResponderKind> {
    let file = table.required("file", &path())?;
    Some(ResponderKind::Script { file: table.reading.resolve(&file) })
}

/// The keys of other kinds, and whose they are.
fn strangers(kind: Option<Kind>) -> Vec<(&'static str, String)> {
    let names = |homes: &[Kind]| {
        let names: Vec<_> = KINDS.iter().filter(|(_, kind)| homes.contains(kind)).map(|(name, _)| *name).collect();
        alternatives(&names)
    };
    KIND_KEYS
        .iter()
        .filter(|(_, homes)| kind.is_none_or(|kind| !homes.contains(&kind)))
        .map(|(key, homes)| (*key, format!("belongs to responders of kind {}", names(homes))))
        .collect()
}
