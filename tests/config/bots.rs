//! What is wrong with bots and responders, in its exact words.

use crate::check;

#[test]
fn bots_and_their_channels() {
    check("[bots]", &["1 bots: names no bot; add a table [bots.NAME] with channel and responder"]);
    check(
        r#"[bots]
support = "telegram""#,
        &["2 bots.support: is a string; write a table [bots.support]"],
    );
    check(
        "[bots.support]",
        &[
            r#"1 bots.support.channel: is missing in [bots.support]; use "telegram", "messenger", "web" or "http""#,
            "1 bots.support.responder: is missing in [bots.support]; write the name of a responder",
        ],
    );
    check(
        r#"[bots.support]
channel = "telegran"
token = 5
color = "red"
responder = "ecko""#,
        &[
            r#"2 bots.support.channel: "telegran" is not known; use "telegram", "messenger", "web" or "http""#,
            "4 bots.support.color: unknown key; known here: channel, responder, burst, quiet, reject_reply, weight, max_turns, tokens_per_day, budget_reply, reply_in_flight, on_uncertain, failure_reply, typing, limits, token, webhook_secret, updates, username, commands, link_previews, streaming, channel_posts, business, api_base, app_secret, verify_token, page_token, page_id, app_id, api_version, api_keys, origins, conversation_ttl, rate_limit, secrets, callback_url, callback_timeout, allow_private",
            r#"5 bots.support.responder: there is no responder "ecko"; did you mean "echo"? Responders here: echo"#,
        ],
    );
    check(
        r#"[bots."two words"]
channel = "web"
responder = "echo""#,
        &[r#"1 bots."two words": the name has the character ' '; use 1 to 64 characters of A-Z a-z 0-9 _ -"#],
    );
    check(
        r#"[bots.b]
channel = "web"
responder = "zzzzzz"
burst = "interrupt"
quiet = "2s"
reply_in_flight = "drop"
on_uncertain = "drop"
failure_reply = """#,
        &[
            r#"3 bots.b.responder: there is no responder "zzzzzz"; responders here: echo"#,
            r#"5 bots.b.quiet: has an effect only with burst = "collect"; set that, or remove it"#,
            r#"6 bots.b.reply_in_flight: "drop" is not known; use "send" or "suppress""#,
            r#"7 bots.b.on_uncertain: "drop" is not known; use "resend" or "hold""#,
            "8 bots.b.failure_reply: is empty; write 1 to 2000 characters",
        ],
    );
    check(
        r#"[bots.b]
channel = "web"
responder = "echo"
burst = "quue"
quiet = "2"
api_keys = []
origins = ["https://a.example/x", "*"]
conversation_ttl = "1s"
token = "x"
api_base = "y"
page_id = "z"
rate_limit = "0/s""#,
        &[
            r#"4 bots.b.burst: "quue" is not known; use "queue", "collect", "interrupt" or "reject""#,
            r#"5 bots.b.quiet: "2" has a number without a unit; write a duration from 0s to 1m, such as "2s""#,
            "6 bots.b.api_keys: lists 0 keys; write 1 to 64 keys, or remove it to let in everybody who reaches the port",
            r#"7 bots.b.origins[0]: has a path; write scheme and host, such as "https://shop.example.com""#,
            r#"7 bots.b.origins[1]: is not a URL; write scheme and host, such as "https://shop.example.com""#,
            r#"8 bots.b.conversation_ttl: "1s" is out of range; write a duration from 1m to 365d, such as "24h""#,
            "9 bots.b.token: belongs to telegram bots; this is a web bot; remove it",
            "10 bots.b.api_base: belongs to telegram and messenger bots; this is a web bot; remove it",
            "11 bots.b.page_id: belongs to messenger bots; this is a web bot; remove it",
            r#"12 bots.b.rate_limit: "0/s" is no such rate; write 1 to 1000000 per s, m or h, such as "20/s""#,
        ],
    );
    check(
        r#"[bots.b]
channel = "web"
responder = "echo"
api_keys = "hunter2"
origins = "https://a.example""#,
        &[
            r#"4 bots.b.api_keys: is a string; write a list such as [{ env = "NAME" }]"#,
            r#"5 bots.b.origins: is a string; write scheme and host, such as "https://shop.example.com", in a list"#,
        ],
    );
    check(
        r#"[bots.b]
channel = "telegram"
responder = "echo""#,
        &[
            r#"1 bots.b.token: is missing in [bots.b]; write the token that BotFather gave, plain, as { env = "NAME" } or as { file = "PATH" }"#,
            r#"1 bots.b.webhook_secret: is missing in [bots.b]; write 1 to 256 characters of A-Z a-z 0-9 _ -, plain, as { env = "NAME" } or as { file = "PATH" }"#,
        ],
    );
    check(
        r#"[bots.b]
channel = "telegram"
responder = "echo"
token = "hunter2"
webhook_secret = "hunter 2"
api_base = "api.telegram.org"
updates = "pull"
username = "@support_bot"
conversation_ttl = "24h""#,
        &[
            r#"4 bots.b.token: is not a Telegram token; write the token that BotFather gave, plain, as { env = "NAME" } or as { file = "PATH" }"#,
            r#"5 bots.b.webhook_secret: has a character that Telegram refuses; write 1 to 256 characters of A-Z a-z 0-9 _ -, plain, as { env = "NAME" } or as { file = "PATH" }"#,
            r#"6 bots.b.api_base: is not a URL; write an address such as "https://api.telegram.org""#,
            r#"7 bots.b.updates: "pull" is not known; use "webhook" or "polling""#,
            "8 bots.b.username: has the character '@'; write 1 to 32 characters of A-Z a-z 0-9 _, without the @",
            "9 bots.b.conversation_ttl: belongs to web bots; this is a telegram bot; remove it",
        ],
    );
    check(
        r#"[bots.b]
channel = "telegram"
responder = "echo"
token = "123:hunter2"
webhook_secret = "x"
limits = { bot = { messages = 30 }, chats = { messages = 1, per = "1s" }, group = { messages = 0, per = "1ms", burst = 0 } }
[bots.c]
channel = "telegram"
responder = "echo"
token = "124:hunter2"
webhook_secret = "x"
limits = "official"
[bots.d]
channel = "web"
responder = "echo"
limits = "none""#,
        &[
            r#"6 bots.b.limits.bot.per: is missing in [bots.b.limits.bot]; write a duration from 100ms to 1d, such as "1m""#,
            "6 bots.b.limits.group.messages: 0 is out of range; write a whole number from 1 to 10000",
            r#"6 bots.b.limits.group.per: "1ms" is out of range; write a duration from 100ms to 1d, such as "1m""#,
            "6 bots.b.limits.group.burst: 0 is out of range; write a whole number from 1 to 10000",
            "6 bots.b.limits.chats: unknown key; did you mean \"chat\"?",
            r#"12 bots.c.limits: "official" is not known; use "platform" or "none""#,
            "16 bots.d.limits: belongs to telegram, messenger and http bots; this is a web bot; remove it",
        ],
    );
    check(
        r#"[bots.a]
channel = "telegram"
responder = "echo"
token = "123:hunter2"
webhook_secret = "x"
[bots.b]
channel = "telegram"
responder = "echo"
token = "123:hunter3"
webhook_secret = "x""#,
        &["9 bots.b.token: is the same account as that of bots.a; give each bot an account of its own"],
    );
    check(
        r#"[bots.b]
channel = "messenger"
responder = "echo""#,
        &[
            r#"1 bots.b.app_secret: is missing in [bots.b]; write a string, { env = "NAME" } or { file = "PATH" }"#,
            r#"1 bots.b.verify_token: is missing in [bots.b]; write a string, { env = "NAME" } or { file = "PATH" }"#,
            r#"1 bots.b.page_token: is missing in [bots.b]; write a string, { env = "NAME" } or { file = "PATH" }"#,
            "1 bots.b.page_id: is missing in [bots.b]; write 1 to 20 characters of 0-9",
        ],
    );
    check(
        r#"[bots.a]
channel = "messenger"
responder = "echo"
app_secret = "x"
verify_token = "x"
page_token = "x"
page_id = "12"
[bots.b]
channel = "messenger"
responder = "echo"
app_secret = "x"
verify_token = "x"
page_token = "x"
page_id = "12"
api_version = "26"
[bots.c]
channel = "messenger"
responder = "echo"
app_secret = "x"
verify_token = "x"
page_token = "x"
page_id = 12
webhook_secret = "x""#,
        &[
            "14 bots.b.page_id: is the same account as that of bots.a; give each bot an account of its own",
            r#"15 bots.b.api_version: "26" is not a version; write a Graph API version such as "v26.0""#,
            "22 bots.c.page_id: is an integer; write 1 to 20 characters of 0-9",
            "23 bots.c.webhook_secret: belongs to telegram bots; this is a messenger bot; remove it",
        ],
    );
    check(
        r#"[bots.b]
channel = "web""#,
        &["1 bots.b.responder: is missing in [bots.b]; write the name of a responder"],
    );
}

/// A key that a channel reads and that the list of all channels' keys lacks would be called unknown here.
#[test]
fn keys_of_other_channels() {
    let keys = [
        ("token", "telegram"),
        ("webhook_secret", "telegram"),
        ("updates", "telegram"),
        ("username", "telegram"),
        ("commands", "telegram"),
        ("link_previews", "telegram"),
        ("streaming", "telegram"),
        ("channel_posts", "telegram"),
        ("business", "telegram"),
        ("api_base", "telegram and messenger"),
        ("app_secret", "messenger"),
        ("verify_token", "messenger"),
        ("page_token", "messenger"),
        ("page_id", "messenger"),
        ("app_id", "messenger"),
        ("api_version", "messenger"),
        ("secrets", "http"),
        ("callback_url", "http"),
        ("callback_timeout", "http"),
        ("allow_private", "http"),
    ];
    let lines: String = keys.iter().map(|(key, _)| format!("{key} = \"x\"\n")).collect();
    let expected = keys.iter().enumerate().map(|(index, (key, homes))| {
        format!("{} bots.b.{key}: belongs to {homes} bots; this is a web bot; remove it", index + 4)
    });
    let expected: Vec<String> = expected.collect();
    let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
    check(&format!("[bots.b]\nchannel = \"web\"\nresponder = \"echo\"\n{lines}"), &expected);
    check(
        r#"[bots.b]
channel = "telegram"
responder = "echo"
token = "1:x"
webhook_secret = "x"
api_keys = ["x"]
origins = []"#,
        &["7 bots.b.origins: belongs to web bots; this is a telegram bot; remove it"],
    );
}

#[test]
fn responders_and_their_kinds() {
    check(
        r#"[responders.echo]
kind = "http"
bearer_token = { env = "TWO_LINES" }
headers = { Authorization = "x", Host = "y", "a b" = "z" }
base_url = "http://x""#,
        &[
            r#"1 responders.echo.url: is missing in [responders.echo]; write an address such as "http://127.0.0.1:9000/turn""#,
            "3 responders.echo.bearer_token: stands beside the header Authorization; keep one of them",
            r#"3 responders.echo.bearer_token: environment variable TWO_LINES holds a character that no HTTP header may hold; write a string, { env = "NAME" } or { file = "PATH" }"#,
            "4 responders.echo.headers.Host: is a header that every call sets itself; remove it",
            r#"4 responders.echo.headers."a b": is not the name of an HTTP header; write a name such as X-Api-Key"#,
            r#"5 responders.echo.base_url: belongs to responders of kind "openai" or "anthropic"; remove it"#,
        ],
    );
    check(
        "[responders.echo]",
        &[
            r#"1 responders.echo.kind: is missing in [responders.echo]; use "openai", "anthropic", "http", "echo" or "script""#,
        ],
    );
    check(
        r#"[responders.echo]
kind = "ecko"
model = "x""#,
        &[r#"2 responders.echo.kind: "ecko" is not known; use "openai", "anthropic", "http", "echo" or "script""#],
    );
    check(
        r#"[responders]
echo = "echo""#,
        &["2 responders.echo: is a string; write a table [responders.echo]"],
    );
    check(
        r#"[responders.echo]
kind = "echo"
model = "x"
file = "y"
tools = ["orders"]
max_tool_rounds = 8
workflow = "intake"
timout = "1s""#,
        &[
            r#"3 responders.echo.model: belongs to responders of kind "openai" or "anthropic"; remove it"#,
            r#"4 responders.echo.file: belongs to responders of kind "script"; remove it"#,
            r#"5 responders.echo.tools: belongs to responders of kind "openai" or "anthropic"; remove it"#,
            r#"6 responders.echo.max_tool_rounds: belongs to responders of kind "openai" or "anthropic"; remove it"#,
            r#"7 responders.echo.workflow: there is no workflow "intake"; add a table [workflows.NAME]"#,
            r#"8 responders.echo.timout: unknown key; did you mean "timeout"?"#,
        ],
    );
    check(
        r#"[responders.echo]
kind = "script"
history = { messages = 0, tokens = 1, turns = 4 }
timeout = "2h"
max_concurrency = 0"#,
        &[
            "1 responders.echo.file: is missing in [responders.echo]; write the path of a file",
            "3 responders.echo.history.messages: 0 is out of range; write a whole number from 1 to 1000",
            "3 responders.echo.history.tokens: 1 is out of range; write a whole number from 256 to 2000000",
            "3 responders.echo.history.turns: unknown key; known here: messages, tokens",
            r#"4 responders.echo.timeout: "2h" is out of range; write a duration from 100ms to 1h, such as "60s""#,
            "5 responders.echo.max_concurrency: 0 is out of range; write a whole number from 1 to 10000",
        ],
    );
    check(
        r#"[responders.echo]
kind = "script"
file = """#,
        &["3 responders.echo.file: is empty; write the path of a file"],
    );
    check(
        r#"[responders.echo]
kind = "openai""#,
        &[
            r#"1 responders.echo.base_url: is missing in [responders.echo]; write an address such as "http://127.0.0.1:11434/v1""#,
            "1 responders.echo.model: is missing in [responders.echo]; write 1 to 255 characters",
        ],
    );
    check(
        r#"[responders.echo]
kind = "openai"
base_url = "http://x/v1?key=hunter2"
model = ""
api_key = { env = "UNSET" }
system_prompt = ""
system_prompt_file = "none.txt"
temperature = 3
max_output_tokens = 0"#,
        &[
            r#"3 responders.echo.base_url: has a query or fragment; write an address such as "http://127.0.0.1:11434/v1""#,
            "4 responders.echo.model: is empty; write 1 to 255 characters",
            "5 responders.echo.api_key: environment variable UNSET is not set; set it for this process",
            "6 responders.echo.system_prompt: is empty; write 1 to 262144 bytes of text",
            "7 responders.echo.system_prompt_file: stands beside system_prompt; keep one of them",
            r#"7 responders.echo.system_prompt_file: cannot read file "/etc/turnwise/none.txt": No such file or directory (os error 2); name a readable text file of at most 262144 bytes"#,
            "8 responders.echo.temperature: 3 is out of range; write a number from 0 to 2",
            "9 responders.echo.max_output_tokens: 0 is out of range; write a whole number from 1 to 1000000",
        ],
    );
    check(
        r#"[responders.echo]
kind = "anthropic"
base_url = "ftp://x"
temperature = 1.5
file = "x""#,
        &[
            "1 responders.echo.model: is missing in [responders.echo]; write 1 to 255 characters",
            r#"3 responders.echo.base_url: does not start with http:// or https://; write an address such as "https://api.anthropic.com""#,
            "4 responders.echo.temperature: 1.5 is out of range; write a number from 0 to 1",
            r#"5 responders.echo.file: belongs to responders of kind "script"; remove it"#,
        ],
    );
    check(
        r#"[responders."x y"]
kind = "echo"
[bots]"#,
        &[
            r#"1 responders."x y": the name has the character ' '; use 1 to 64 characters of A-Z a-z 0-9 _ -"#,
            "3 bots: names no bot; add a table [bots.NAME] with channel and responder",
        ],
    );
}

#[test]
fn commands_are_what_telegram_takes() {
    let bot = "[bots.b]\nchannel = \"telegram\"\nresponder = \"echo\"\ntoken = \"1:x\"\nwebhook_secret = \"x\"\n";
    check(
        &format!(
            "{bot}[bots.b.commands]\norder = \"Order\"\nhours = {{ description = \"Hours\", reply = \"9 to 5\" }}"
        ),
        &[],
    );
    check(
        &format!("{bot}[bots.b.commands]\n\"/order\" = \"Order\"\nhours = {{ reply = \"9 to 5\" }}\nempty = \"\""),
        &[
            "7 bots.b.commands.\"/order\": the name has the character '/'; use 1 to 32 characters of a-z 0-9 _, without the slash",
            "8 bots.b.commands.hours.description: is missing in [bots.b.commands.hours]; write 1 to 256 characters",
            "9 bots.b.commands.empty: is empty; write 1 to 256 characters",
        ],
    );
}
