//! The configuration: every problem with its exact words, the defaults, and what never shows.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fmt::Write as _;
use std::path::Path;

use turnwise::config::{Config, Console, Http, Telemetry, Worker};

mod bots;
mod http_channel;
mod process;
mod secrecy;
mod tools;
mod values;
mod workflows;

const REFERENCE: &str = include_str!("../../deploy/turnwise.toml");

/// What a configuration needs at least; a test that writes one of these tables itself does without ours.
const NEEDED: [(&str, &str); 3] = [
    ("[nats]", "[nats]\nmanaged = true\n"),
    ("[bots", "[bots.web]\nchannel = \"web\"\nresponder = \"echo\"\n"),
    ("[responders", "[responders.echo]\nkind = \"echo\"\n"),
];

/// `text` with whatever it lacks behind it, so that its lines keep their numbers.
fn whole(text: &str) -> String {
    let mut whole = text.to_owned();
    for (table, lines) in NEEDED {
        if !text.contains(table) {
            write!(whole, "\n{lines}").unwrap();
        }
    }
    whole
}

fn environment(name: &str) -> Option<String> {
    let text = match name {
        "EMPTY" => "",
        "TWO_LINES" => "first\nsecond",
        "SUPPORT_TOKEN" => "12345:AAbb_-cc",
        "NATS_CREDENTIALS" => "-----BEGIN NATS USER JWT-----\nx\n",
        "DATABASE_URL" => "postgres://turnwise:hunter2@db/turnwise",
        "KIOSK_SECRET" => "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "TURNWISE_CONSOLE_READ_TOKEN" => "hunter3",
        "UNSET" => return None,
        _ => "hunter2",
    };
    Some(text.to_owned())
}

fn parse(text: &str) -> Result<Config, String> {
    let file = Path::new("/etc/turnwise/turnwise.toml");
    Config::parse(text, file, &environment).map_err(|problems| problems.to_string())
}

/// `expected`: the problems, each on its line and without the file's name; none when the text is right.
#[track_caller]
fn check(text: &str, expected: &[&str]) {
    let found = parse(&whole(text)).err().unwrap_or_default();
    let found: Vec<&str> =
        found.lines().map(|line| line.strip_prefix("/etc/turnwise/turnwise.toml:").unwrap()).collect();
    assert_eq!(found, expected, "\n{text}");
}

#[track_caller]
fn read(text: &str) -> Config {
    parse(&whole(text)).unwrap()
}

#[test]
fn the_reference_holds_the_defaults() {
    let config = parse(REFERENCE).unwrap();
    assert_eq!(config.namespace, "turnwise");
    assert_eq!(config.http, Http::default());
    assert_eq!(config.worker, Worker::default());
    assert_eq!(config.telemetry, Telemetry::default());
    assert_eq!(config.console, Console::default());
    assert_eq!(config.warnings(), Vec::<String>::new());

    let sparse = read(
        r#"
nats.url = "nats://127.0.0.1:4222"
[bots.support]
channel = "telegram"
responder = "assistant"
token = { env = "SUPPORT_TOKEN" }
webhook_secret = { env = "SUPPORT_SECRET" }
[bots.page]
channel = "messenger"
responder = "assistant"
app_secret = { env = "PAGE_APP_SECRET" }
verify_token = { env = "PAGE_VERIFY_TOKEN" }
page_token = { env = "PAGE_TOKEN" }
page_id = "1234567890"
[bots.shop]
channel = "web"
responder = "menu"
api_keys = [{ env = "SHOP_KEY" }]
[bots.kiosk]
channel = "http"
responder = "menu"
secrets = [{ env = "KIOSK_SECRET" }]
callback_url = "https://kiosk.example.com/turnwise"
[responders.assistant]
kind = "openai"
base_url = "http://127.0.0.1:11434/v1/"
model = "llama3"
tools = ["orders"]
[tools.orders]
kind = "http"
url = "https://shop.example.com/orders"
description = "Looks an order up by its number, and tells what is in it and where it is."
parameters = """
{ "type": "object", "properties": { "number": { "type": "integer" } }, "required": ["number"] }
"""
effects = "read_only"
[tools.search]
kind = "mcp"
url = "https://tools.example.com/mcp"
[tools.files]
kind = "mcp"
command = ["npx", "-y", "@modelcontextprotocol/server-filesystem", "/srv/shop"]
[responders.menu]
kind = "script"
file = "script.toml"
[responders.parrot]
kind = "echo"
#[nats]
"#,
    );
    assert_eq!(config, sparse);
}

/// Its commented-out keys are right, too; all at once they stand beside each other in exactly these ways.
#[test]
fn the_references_other_keys_are_right() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("turnwise.creds"), environment("NATS_CREDENTIALS").unwrap()).unwrap();
    std::fs::write(folder.path().join("prompt.txt"), "You are friendly.\n").unwrap();
    let text: String = REFERENCE.lines().map(|line| uncommented(line).to_owned() + "\n").collect();
    let found = Config::parse(&text, &folder.path().join("turnwise.toml"), &environment).unwrap_err();
    let found: Vec<String> =
        found.problems.iter().map(|problem| format!("{}: {}", problem.key, problem.wrong)).collect();
    assert_eq!(
        found,
        [
            "nats.url: stands beside managed = true",
            "nats.credentials: has no meaning for the managed server, which serves this process only",
            "nats.token: stands beside credentials",
            "nats.token: has no meaning for the managed server, which serves this process only",
            "nats.user: has no meaning for the managed server, which serves this process only",
            "nats.password: has no meaning for the managed server, which serves this process only",
            "nats.tls: has no meaning for the managed server, which serves this process only",
            "bots.support.quiet: has an effect only with burst = \"collect\"",
            "bots.support.reject_reply: has an effect only with burst = \"reject\"",
            "responders.assistant.system_prompt_file: stands beside system_prompt",
        ]
    );
}

fn uncommented(line: &str) -> &str {
    let key = line.strip_prefix('#').filter(|rest| rest.starts_with(|first: char| first.is_ascii_lowercase()));
    key.unwrap_or(line)
}
