//! The tables `[tools.*]` and what refers to them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;
use turnwise::config::{
    Argument, ConfigReader, Effects, HttpTool, McpServer, McpTransport, OnUnknown, Secret, ToolConfig, ToolKind,
};

use crate::{check, environment, read, whole};

const MODEL: &str = "[responders.echo]\nkind = \"openai\"\nbase_url = \"http://a\"\nmodel = \"m\"\n";

/// `expected`: the problems of one table, which begins at line 1.
#[track_caller]
fn table(lines: &str, expected: &[&str]) {
    check(&format!("[tools.t]\n{lines}"), expected);
}

#[test]
fn every_kind_with_all_its_keys() {
    let config = read(
        r#"
        [tools.orders]
        kind = "http"
        url = "https://shop.example/orders/"
        bearer_token = { env = "ANY" }
        headers = { X-Team = "shop" }
        description = "Cancels an order."
        parameters = { type = "object", properties = { n = { type = "integer", minimum = 1.5 } }, required = ["n"] }
        timeout = "5s"
        confirm = true
        effects = "idempotent"
        on_unknown = "fail"
        cancel_safe = true
        [tools.files]
        kind = "mcp"
        command = ["./bin/files", "--key", { env = "ANY" }]
        env = { HOME = "/tmp" }
        only = ["read"]
        [tools.search]
        kind = "mcp"
        url = "http://127.0.0.1:3001/mcp"
        [tools.clock]
        kind = "http"
        url = "http://clock"
        description = "Tells the time."
        "#,
    );
    let secret = |text: &str| Secret::new(text.to_owned());
    let orders = ToolConfig {
        kind: ToolKind::Http(HttpTool {
            url: "https://shop.example/orders/".to_owned(),
            headers: BTreeMap::from([
                ("authorization".to_owned(), secret("Bearer hunter2")),
                ("x-team".to_owned(), secret("shop")),
            ]),
            description: "Cancels an order.".to_owned(),
            parameters: json!({
                "type": "object",
                "properties": { "n": { "type": "integer", "minimum": 1.5 } },
                "required": ["n"],
            }),
        }),
        timeout: Duration::from_secs(5),
        confirm: true,
        effects: Some(Effects::Idempotent),
        on_unknown: Some(OnUnknown::Fail),
        cancel_safe: Some(true),
    };
    assert_eq!(config.tools["orders"], orders);
    let files = McpServer {
        transport: McpTransport::Command {
            program: PathBuf::from("/etc/turnwise/./bin/files"),
            arguments: vec![
                Argument { text: secret("--key"), kept_elsewhere: false },
                Argument { text: secret("hunter2"), kept_elsewhere: true },
            ],
            env: BTreeMap::from([("HOME".to_owned(), secret("/tmp"))]),
            folder: PathBuf::from("/etc/turnwise"),
        },
        only: vec!["read".to_owned()],
    };
    assert_eq!(config.tools["files"].kind, ToolKind::Mcp(files));
    let url = "http://127.0.0.1:3001/mcp".to_owned();
    let search = McpServer { transport: McpTransport::Url { url, headers: BTreeMap::new() }, only: Vec::new() };
    assert_eq!(config.tools["search"], ToolConfig::new(ToolKind::Mcp(search)));
    let clock = &config.tools["clock"];
    assert_eq!((clock.timeout, clock.confirm, clock.effects), (Duration::from_secs(30), false, None));
    let ToolKind::Http(http) = &clock.kind else { panic!("it is an HTTP tool") };
    assert_eq!(http.parameters, json!({ "type": "object", "properties": {}, "additionalProperties": false }));
    for (name, tool) in &config.tools {
        assert!(!format!("{tool:?}").contains("hunter2"), "{name}");
    }
}

#[test]
fn kinds_and_their_keys() {
    table("", &[r#"1 tools.t.kind: is missing in [tools.t]; use "http" or "mcp""#]);
    table("kind = \"htpt\"\nurl = 1\nonly = 1", &[r#"2 tools.t.kind: "htpt" is not known; use "http" or "mcp""#]);
    check("tools = 1", &["1 tools: is an integer; write a table [tools]"]);
    check("[tools]\nt = 1", &["2 tools.t: is an integer; write a table [tools.t]"]);
    check(
        "[tools.\"a b\"]\nkind = \"mcp\"\nurl = \"http://x\"",
        &[r#"1 tools."a b": the name has the character ' '; use 1 to 64 characters of A-Z a-z 0-9 _ -"#],
    );
    table(
        "kind = \"http\"",
        &[
            r#"1 tools.t.url: is missing in [tools.t]; write an address such as "https://shop.example.com/orders""#,
            "1 tools.t.description: is missing in [tools.t]; write 1 to 8192 characters",
        ],
    );
    table(
        r#"kind = "http"
url = "https://x?key=1"
description = ""
only = ["a"]
command = ["a"]
env = { A = "1" }
timout = "1s""#,
        &[
            r#"3 tools.t.url: has a query or fragment; write an address such as "https://shop.example.com/orders""#,
            "4 tools.t.description: is empty; write 1 to 8192 characters",
            r#"5 tools.t.only: belongs to tools of kind "mcp"; remove it"#,
            r#"6 tools.t.command: belongs to tools of kind "mcp"; remove it"#,
            r#"7 tools.t.env: belongs to tools of kind "mcp"; remove it"#,
            r#"8 tools.t.timout: unknown key; did you mean "timeout"?"#,
        ],
    );
    table(
        r#"kind = "mcp"
url = "https://x"
timeout = "10ms"
confirm = "yes"
effects = "readonly"
on_unknown = "ask"
cancel_safe = 1
description = "x"
parameters = {}"#,
        &[
            r#"4 tools.t.timeout: "10ms" is out of range; write a duration from 100ms to 1h, such as "30s""#,
            "5 tools.t.confirm: is a string; write true or false",
            r#"6 tools.t.effects: "readonly" is not known; use "read_only", "idempotent" or "destructive""#,
            r#"7 tools.t.on_unknown: "ask" is not known; use "retry" or "fail""#,
            "8 tools.t.cancel_safe: is an integer; write true or false",
            r#"9 tools.t.description: belongs to tools of kind "http"; remove it"#,
            r#"10 tools.t.parameters: belongs to tools of kind "http"; remove it"#,
        ],
    );
}

#[test]
fn mcp_servers_and_how_they_are_reached() {
    let right = r#"write a list such as ["npx", "-y", "@modelcontextprotocol/server-everything"]"#;
    table(
        "kind = \"mcp\"",
        &["1 tools.t: has neither url nor command; write the address of an MCP server, or the command that runs one"],
    );
    table(
        "kind = \"mcp\"\nurl = \"http://x\"\ncommand = [\"x\"]\nenv = {}",
        &["4 tools.t.command: stands beside url; keep one of them"],
    );
    table(
        "kind = \"mcp\"\nurl = \"http://x\"\nenv = { A = \"1\" }",
        &["4 tools.t.env: belongs to a server with a command; this one has a url; remove it"],
    );
    table(
        "kind = \"mcp\"\ncommand = [\"x\"]\nheaders = { A = \"1\" }\nbearer_token = \"x\"",
        &[
            "4 tools.t.headers: belongs to a server with a url; this one has a command; remove it",
            "5 tools.t.bearer_token: belongs to a server with a url; this one has a command; remove it",
        ],
    );
    table("kind = \"mcp\"\ncommand = \"npx\"", &[&format!("3 tools.t.command: is a string; {right}")]);
    table("kind = \"mcp\"\ncommand = []", &[&format!("3 tools.t.command: is empty; {right}")]);
    table(
        "kind = \"mcp\"\ncommand = [\"\", 1]\nenv = { \"A B\" = \"1\", C = { env = \"UNSET\" } }\nonly = []",
        &[
            "3 tools.t.command[0]: is empty; write the path of a file",
            r#"4 tools.t.env."A B": is not the name of an environment variable; write a name of letters, digits and _"#,
            "4 tools.t.env.C: environment variable UNSET is not set; set it for this process",
            "5 tools.t.only: lists 0 tools; write 1 to 256 names, or remove it to take every tool of the server",
        ],
    );
}

#[test]
fn headers() {
    let right = "write a string, { env = \"NAME\" } or { file = \"PATH\" }";
    table(
        r#"kind = "mcp"
url = "http://x"
bearer_token = { env = "TWO_LINES" }
[tools.t.headers]
Authorization = "Basic x"
"X Y" = "1"
content-type = "text/plain"
Mcp-Session-Id = "1"
Idempotency-Key = "1"
X-Key = "a\u0007"
X-Good = { env = "EMPTY" }"#,
        &[
            "4 tools.t.bearer_token: stands beside the header Authorization; keep one of them",
            &format!(
                "4 tools.t.bearer_token: environment variable TWO_LINES holds a character that no HTTP header may hold; {right}"
            ),
            "7 tools.t.headers.\"X Y\": is not the name of an HTTP header; write a name such as X-Api-Key",
            "8 tools.t.headers.content-type: is a header that every call sets itself; remove it",
            "9 tools.t.headers.Mcp-Session-Id: is a header that every call sets itself; remove it",
            "10 tools.t.headers.Idempotency-Key: is a header that every call sets itself; remove it",
            &format!("11 tools.t.headers.X-Key: holds a character that no HTTP header may hold; {right}"),
            &format!("12 tools.t.headers.X-Good: environment variable EMPTY is empty; {right}"),
        ],
    );
}

#[test]
fn schemas() {
    let right = "write a JSON Schema of an object, as a table or as JSON in a string";
    let check = |parameters: &str, wrong: &str| {
        let lines = format!("kind = \"http\"\nurl = \"http://x\"\ndescription = \"x\"\nparameters = {parameters}");
        table(&lines, &[&format!("5 tools.t.parameters: {wrong}; {right}")]);
    };
    check("1", "does not describe an object");
    check("'[]'", "does not describe an object");
    check(r#"{ type = "array" }"#, "does not describe an object");
    check(r#"'{ "type": "object" '"#, "is not JSON: see its line 1 column 19");
    check("{ minimum = nan }", "nan is out of range");
    check(
        r#"{ type = "object", properties = { n = { type = "int" } } }"#,
        r#"is not a JSON Schema: at /properties/n/type: "int" is not valid under any of the schemas listed in the 'anyOf' keyword"#,
    );
    check(
        r#"{ type = "object", properties = { n = { "$ref" = "https://x.example/n.json" } } }"#,
        "is not a JSON Schema: Resource 'https://x.example/n.json' is not present in a registry and retrieving it failed: \
         `resolve-http` feature or a custom resolver is required to resolve external schemas via HTTP",
    );
    let long = format!("{{ type = \"object\", description = \"{}\" }}", "x".repeat(70_000));
    check(&long, "has 70034 bytes; 65536 are allowed");
}

#[test]
fn responders_name_the_tools_they_use() {
    let orders =
        "[tools.orders]\nkind = \"mcp\"\nurl = \"http://x\"\n[tools.files]\nkind = \"mcp\"\nurl = \"http://x\"";
    check(
        &format!("{MODEL}tools = [\"order\", \"files\", \"files\", \"zzz\", 1]\nmax_tool_rounds = 0\n{orders}"),
        &[
            r#"5 responders.echo.tools[0]: there is no tool "order"; did you mean "orders"? Tools here: files, orders"#,
            r#"5 responders.echo.tools[2]: "files" is listed twice; remove one of them"#,
            r#"5 responders.echo.tools[3]: there is no tool "zzz"; tools here: files, orders"#,
            "5 responders.echo.tools[4]: is an integer; write the name of a tool",
            "6 responders.echo.max_tool_rounds: 0 is out of range; write a whole number from 1 to 64",
        ],
    );
    check(
        &format!("{MODEL}tools = [\"x\"]"),
        &[r#"5 responders.echo.tools[0]: there is no tool "x"; add a table [tools.NAME]"#],
    );
    check(
        &format!("{MODEL}tools = \"orders\"\n{orders}"),
        &["5 responders.echo.tools: is a string; write a list of names of [tools.*] tables"],
    );
    let config = read(&format!("{MODEL}tools = [\"orders\"]\n{orders}"));
    assert_eq!(config.responders["echo"].tools, ["orders"]);
    assert_eq!(config.responders["echo"].max_tool_rounds, 8);
}

#[test]
fn tools_in_rust_code() {
    let reader = ConfigReader::default().registered_tools(&["clock".to_owned()]);
    let parse = |text: &str| reader.parse(&whole(text), "t".as_ref(), &environment).map_err(|error| error.to_string());
    let config = parse(&format!("{MODEL}tools = [\"clock\"]")).unwrap();
    assert_eq!(config.responders["echo"].tools, ["clock"]);
    assert_eq!(
        parse("[tools.clock]\nkind = \"mcp\"\nurl = \"http://x\"").unwrap_err(),
        "t:1 tools.clock: is the name of a tool in Rust code; choose another name"
    );
}
