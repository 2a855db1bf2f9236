//! Whatever is written, it is answered without a panic, and no secret shows.

use std::path::Path;

use proptest::prelude::*;
use turnwise::config::Config;

use crate::{REFERENCE, environment};

/// Every secret that a configuration can hold, written out, each with `MARK` in it.
const SECRETS: &str = r#"
[nats]
url = "nats://127.0.0.1:4222"
user = "turnwise"
password = "MARK"
[database]
url = "postgres://turnwise:MARK@db/turnwise"
[console]
token = "MARK"
[bots.support]
channel = "telegram"
responder = "assistant"
token = "123:MARK"
webhook_secret = "MARK"
[bots.page]
channel = "messenger"
responder = "assistant"
app_secret = "MARK"
verify_token = "MARK"
page_token = "MARK"
page_id = "1"
[bots.shop]
channel = "web"
responder = "assistant"
api_keys = ["MARK", { env = "SECRET" }]
[responders.assistant]
kind = "openai"
base_url = "http://127.0.0.1:11434/v1"
model = "llama3"
api_key = "MARK"
[tools.orders]
kind = "http"
url = "https://shop.example/orders"
description = "Looks an order up."
bearer_token = "MARK"
[tools.files]
kind = "mcp"
command = [
    "files",
    "--token", "MARK",
]
env = { TOKEN = "MARK" }
[tools.search]
kind = "mcp"
url = "https://search.example/mcp"
headers = { X-Api-Key = { env = "SECRET" } }
"#;

/// Text that no word of a problem holds.
fn mark() -> impl Strategy<Value = String> {
    "[A-Za-z0-9]{4}zQ7[A-Za-z0-9_-]{4,40}"
}

/// Everything that a reading lets somebody see.
fn shown(text: &str, secret: &str) -> (bool, String) {
    let env = |name: &str| if name == "SECRET" { Some(secret.to_owned()) } else { environment(name) };
    match Config::parse(text, Path::new("turnwise.toml"), &env) {
        Ok(config) => (true, format!("{config:?}\n{config:#?}\n{:?}", config.warnings())),
        Err(problems) => (false, format!("{problems}\n{problems:?}")),
    }
}

proptest! {
    #[test]
    fn a_right_configuration_shows_no_secret(mark in mark()) {
        for login in ["user = \"turnwise\"\npassword = \"MARK\"", "token = { env = \"SECRET\" }"] {
            let text = SECRETS.replace("user = \"turnwise\"\npassword = \"MARK\"", login).replace("MARK", &mark);
            let (right, shown) = shown(&text, &mark);
            prop_assert!(right, "{shown}");
            prop_assert!(!shown.contains(&mark), "{shown}");
        }
    }

    /// One slip within a line. Removing more could make a secret the name of a responder or of a program, which are shown.
    #[test]
    fn a_broken_configuration_shows_no_secret(
        mark in mark(),
        at in any::<prop::sample::Index>(),
        removed in 0..20_usize,
        added in "[\\PC\n\"'=\\[\\]{}#\\\\]{0,3}",
    ) {
        let start = at.index(SECRETS.len());
        let line = SECRETS[start..].find('\n').unwrap_or_default();
        let end = start + removed.min(line);
        let text = format!("{}{added}{}", &SECRETS[..start], &SECRETS[end..]).replace("MARK", &mark);
        let (_, shown) = shown(&text, &mark);
        prop_assert!(!shown.contains(&mark), "{text}\n{shown}");
    }

    #[test]
    fn a_secret_of_the_wrong_form_is_not_shown(mark in mark()) {
        let places = [
            "[nats]\nurl = \"MARK\"",
            "[nats]\nurl = \"nats://MARK@host\"",
            "[nats]\nurl = [\"nats://user:MARK@host\"]",
            "[nats]\ncredentials = \"MARK\"",
            "[nats]\ncredentials = { env = \"SECRET\" }",
            "[database]\nurl = \"MARK\"",
            "[database]\nurl = \"mysql://root:MARK@host\"",
            "[database]\nurl = { env = \"SECRET\" }",
            "[http]\npublic_url = \"https://MARK@host\"",
            "[telemetry]\notlp_endpoint = \"https://host/?key=MARK\"",
            "[console]\ntoken = \"MARK\\u0007\"",
            "[console]\ntoken = [\"MARK\"]",
            "[console]\ntoken = { env = \"MARK:\" }",
            "[console]\ntoken = MARK",
            "[console]\ntoken = \"MARK",
            "[bots.b]\nchannel = \"telegram\"\ntoken = \"MARK\"\nwebhook_secret = \"MARK!\"\napi_base = \"https://MARK@host\"",
            "[bots.b]\nchannel = \"telegram\"\ntoken = { env = \"SECRET\" }",
            "[bots.b]\nchannel = \"web\"\napi_keys = \"MARK\"\norigins = [\"MARK\"]\npage_token = \"MARK\"",
            "[tools.t]\nkind = \"http\"\nurl = \"https://MARK@host\"\nheaders = { X-Key = \"MARK\\u0007\" }",
            "[tools.t]\nkind = \"mcp\"\nurl = \"https://host/?key=MARK\"\nbearer_token = [\"MARK\"]",
            "[tools.t]\nkind = \"mcp\"\ncommand = [\"a\", \"MARK\\u0007\"]\nenv = { K = \"MARK\\u0007\" }",
            "[responders.r]\nkind = \"openai\"\nbase_url = \"http://user:MARK@host\"\napi_key = 'MARK\t'",
        ];
        for place in places {
            let (right, shown) = shown(&place.replace("MARK", &mark), &mark);
            prop_assert!(!right && !shown.contains(&mark), "{place}\n{shown}");
        }
    }

    #[test]
    fn any_bytes_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        shown(&String::from_utf8_lossy(&bytes), "x");
    }

    #[test]
    fn any_toml_is_answered(
        lines in prop::collection::vec("(\\[[a-z.\"]{0,9}\\]|[a-z.\"é]{1,9} ?= ?(\"\\PC{0,9}\"|[0-9.e_-]{1,25}|\\[[0-9,\"]{0,5}\\]|\\{[a-z= ]{0,5}\\}|nan|true))", 0..12),
    ) {
        shown(&lines.join("\n"), "x");
    }

    /// Keys that exist, with values of every type and size.
    #[test]
    fn any_value_is_answered(
        at in any::<prop::sample::Index>(),
        value in "(\"\\PC{0,40}\"|-?[0-9]{1,25}|-?[0-9]{1,9}\\.[0-9]{1,9}(e[0-9]{1,4})?|true|inf|1979-05-27|\\[\\]|\\{\\}|\\[\\[\\], \"\", 1\\])",
    ) {
        let keys: Vec<usize> = REFERENCE.match_indices(" = ").map(|(offset, _)| offset + 3).collect();
        let start = keys[at.index(keys.len())];
        let end = REFERENCE[start..].find('\n').map_or(REFERENCE.len(), |length| start + length);
        shown(&format!("{}{value}{}", &REFERENCE[..start], &REFERENCE[end..]), "x");
    }
}

#[test]
fn deep_and_large_texts_are_answered() {
    for text in [
        format!("a = {}", "[".repeat(100_000)),
        format!("a = {}{}", "[".repeat(50), "]".repeat(50)),
        format!("a = {}", "{ a = ".repeat(100_000)),
        format!("{}a = 1", "a.".repeat(100_000)),
        format!("[{}a]", "a.".repeat(100_000)),
        format!("{} = 1", "a".repeat(1_000_000)),
        format!("namespace = \"{}\"", "\u{1}".repeat(1_000_000).replace('\u{1}', "\\u0001")),
        "a = \"".to_owned() + &"x".repeat(1_000_000),
        "\u{feff}a = 1".to_owned(),
    ] {
        let (right, shown) = shown(&text, "x");
        assert!(!right && shown.len() < 100_000, "{} bytes", shown.len());
    }
}
