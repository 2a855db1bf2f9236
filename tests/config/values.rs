//! What the values of a right configuration become, and how files are found.

use std::path::{Path, PathBuf};
use std::time::Duration;

use turnwise::config::{
    BotChannel, Config, ConfigError, ConfigReader, Console, ModelApi, NatsAuth, NatsServer, NatsTls, OnUncertain,
    Problem, ResponderConfig, ResponderKind, Secret, SendLimit, SendLimits, Sync, Updates,
};

use crate::{environment, parse, read, whole};

fn secret(text: &str) -> Secret {
    Secret::new(text.to_owned())
}

#[test]
fn durations_numbers_and_addresses() {
    let config = read(
        r#"
        http = { listen = "[::1]:0", public_url = "https://Bots.Example.com:443/chat/", shutdown_grace = "2m500ms" }
        worker = { max_turns = 0x10, lane_backlog = 1_000, turn_timeout = "1m30s" }
        telemetry = { sample_ratio = 1, otlp_endpoint = "http://127.0.0.1:4318/" }
        "#,
    );
    assert_eq!(config.http.listen, "[::1]:0".parse().unwrap());
    assert_eq!(config.http.public_url.as_deref(), Some("https://bots.example.com/chat"));
    assert_eq!(config.http.shutdown_grace, Duration::from_millis(120_500));
    assert_eq!((config.worker.max_turns, config.worker.lane_backlog), (16, 1_000));
    assert_eq!(config.worker.turn_timeout, Duration::from_secs(90));
    assert_eq!(config.telemetry.sample_ratio, 1.0);
    assert_eq!(config.telemetry.otlp_endpoint.as_deref(), Some("http://127.0.0.1:4318"));
}

#[test]
fn the_console_has_tokens_a_place_for_traces_and_a_folder() {
    let trace_url = "https://traces.example.com/trace/{trace_id}?org=1";
    let config =
        read(&format!("[console]\ntoken = \"t\"\nread_token = \"r\"\ntrace_url = \"{trace_url}\"\nreplays = \"runs\""));
    let console = config.console;
    assert_eq!((console.token, console.read_token), (Some(secret("t")), Some(secret("r"))));
    assert_eq!(console.trace_url.as_deref(), Some(trace_url));
    assert_eq!(console.replays, Some(PathBuf::from("/etc/turnwise/runs")));
    assert!(!console.is_open, "only `turnwise dev` is");
}

#[test]
fn nats_servers_and_logins() {
    let check = |lines: &str, server: NatsServer, auth: NatsAuth, tls: Option<NatsTls>| {
        let nats = read(&format!("[nats]\n{lines}")).nats;
        assert_eq!((nats.server, nats.auth, nats.tls), (server, auth, tls), "{lines}");
    };
    let urls = |urls: &[&str]| NatsServer::Urls(urls.iter().map(|url| (*url).to_owned()).collect());
    let managed = |sync| NatsServer::Managed { sync, data: PathBuf::from("/etc/turnwise/turnwise.db-nats") };
    let file = |name: &str| Some(PathBuf::from("/etc/turnwise").join(name));

    check("managed = true", managed(Sync::Always), NatsAuth::None, None);
    check("managed = true\nsync = \"interval\"", managed(Sync::Interval), NatsAuth::None, None);
    check("managed = false\nurl = \"nats://a:4222\"", urls(&["nats://a:4222"]), NatsAuth::None, None);
    check("url = [\"nats://a/\", \"tls://b:1\"]", urls(&["nats://a", "tls://b:1"]), NatsAuth::None, None);
    check("url = \"nats://a\"\ntoken = \"t\"", urls(&["nats://a"]), NatsAuth::Token(secret("t")), None);
    let password = NatsAuth::Password { user: "u".to_owned(), password: secret("hunter2") };
    check("url = \"nats://a\"\nuser = \"u\"\npassword = { env = \"ANY\" }", urls(&["nats://a"]), password, None);
    let credentials = NatsAuth::Credentials(Secret::new(environment("NATS_CREDENTIALS").unwrap()));
    check("url = \"nats://a\"\ncredentials = { env = \"NATS_CREDENTIALS\" }", urls(&["nats://a"]), credentials, None);
    let tls = NatsTls { ca: file("ca.pem"), cert: file("c.pem"), key: Some(PathBuf::from("/k.pem")) };
    let lines = "url = \"tls://a\"\ntls = { ca = \"ca.pem\", cert = \"c.pem\", key = \"/k.pem\" }";
    check(lines, urls(&["tls://a"]), NatsAuth::None, Some(tls));
    let tls = NatsTls { ca: None, cert: None, key: None };
    check("url = \"nats://a\"\ntls = {}", urls(&["nats://a"]), NatsAuth::None, Some(tls));
}

#[test]
fn sqlite_paths_count_from_the_configurations_folder() {
    let check = |file: &str, url: &str, expected: &str, path: Option<&str>, nats: &str| {
        let text = whole(&format!("[database]\nurl = \"{url}\"\n"));
        let config = Config::parse(&text, Path::new(file), &environment).unwrap();
        assert_eq!(config.database.url.expose(), expected, "{url}");
        assert_eq!(config.database.sqlite_file(), path.map(PathBuf::from), "{url}");
        let NatsServer::Managed { data, .. } = config.nats.server else { panic!("the server is managed") };
        assert_eq!(data, PathBuf::from(nats), "{url}");
    };
    check("/a/t.toml", "sqlite://b.db", "sqlite:///a/b.db", Some("/a/b.db"), "/a/b.db-nats");
    check("/a/t.toml", "sqlite:b/c.db", "sqlite:///a/b/c.db", Some("/a/b/c.db"), "/a/b/c.db-nats");
    check("/a/t.toml", "sqlite:///b.db", "sqlite:///b.db", Some("/b.db"), "/b.db-nats");
    check("/50%?/t.toml", "sqlite://b.db", "sqlite:///50%25%3F/b.db", Some("/50%?/b.db"), "/50%?/b.db-nats");
    check("/a/t.toml", "postgres://u:p@h/d", "postgres://u:p@h/d", None, "/a/turnwise-nats");

    let here = std::env::current_dir().unwrap();
    let config = Config::parse(&whole(""), Path::new("turnwise.toml"), &environment).unwrap();
    assert_eq!(config.database.sqlite_file(), Some(here.join("turnwise.db")));
}

#[test]
fn bots_and_responders() {
    let config = read(
        r#"
        [bots.b]
        channel = "web"
        responder = "model"
        on_uncertain = "resend"
        failure_reply = "Sorry."
        api_keys = ["k", { env = "ANY" }]
        origins = ["https://Shop.example:443", "http://localhost:3000/"]
        conversation_ttl = "7d"
        rate_limit = "90/m"
        [responders.model]
        kind = "openai"
        base_url = "http://127.0.0.1:11434/v1/"
        api_key = "k"
        model = "llama3"
        system_prompt = "Be brief."
        temperature = 1
        max_output_tokens = 99
        timeout = "5s"
        max_concurrency = 7
        history = { tokens = 4_000 }
        tools = ["clock", "files"]
        max_tool_rounds = 3
        [responders.claude]
        kind = "anthropic"
        api_key = { env = "ANY" }
        model = "claude-sonnet-4-5"
        [responders.service]
        kind = "http"
        url = "http://127.0.0.1:9000/turn"
        bearer_token = { env = "ANY" }
        headers = { X-Shop = "7" }
        workflow = "w"
        [workflows.w]
        version = 3
        start = "only"
        nodes = { only = { kind = "respond", next = "only" } }
        [tools.clock]
        kind = "http"
        url = "http://127.0.0.1:9/clock"
        description = "Tells the time."
        [tools.files]
        kind = "mcp"
        command = ["files"]
        "#,
    );
    let bot = &config.bots["b"];
    assert_eq!((bot.name.as_str(), bot.on_uncertain), ("b", OnUncertain::Resend));
    assert_eq!(bot.failure_reply.as_deref(), Some("Sorry."));
    let BotChannel::Web(web) = &bot.channel else { panic!("it is a web bot") };
    assert_eq!(web.api_keys, [secret("k"), secret("hunter2")]);
    assert_eq!(web.origins, ["https://shop.example", "http://localhost:3000"]);
    assert_eq!(web.conversation_ttl, Duration::from_secs(7 * 86_400));
    assert_eq!(web.rate_limit.map(|rate| (rate.count.get(), rate.per)), Some((90, Duration::from_secs(60))));

    let ResponderConfig {
        kind,
        timeout,
        max_concurrency,
        history_messages,
        history_tokens,
        tools,
        max_tool_rounds,
        workflow,
    } = &config.responders["model"];
    assert_eq!(*workflow, None);
    assert_eq!((tools.join(" "), *max_tool_rounds), ("clock files".to_owned(), 3));
    assert_eq!((*timeout, *max_concurrency), (Duration::from_secs(5), 7));
    assert_eq!((*history_messages, *history_tokens), (40, 4_000));
    let ResponderKind::Model(model) = kind else { panic!("it is a model") };
    assert_eq!((model.api, model.base_url.as_str()), (ModelApi::OpenAi, "http://127.0.0.1:11434/v1"));
    assert_eq!((model.temperature, model.max_output_tokens), (Some(1.0), Some(99)));
    assert_eq!(model.system_prompt.as_deref(), Some("Be brief."));
    let ResponderKind::Model(model) = &config.responders["claude"].kind else { panic!("it is a model") };
    assert_eq!((model.api, model.base_url.as_str()), (ModelApi::Anthropic, "https://api.anthropic.com"));
    assert_eq!((model.api_key.as_ref(), model.max_output_tokens), (Some(&secret("hunter2")), None));
    let service = &config.responders["service"];
    assert_eq!((service.workflow.as_deref(), config.workflows["w"].version), (Some("w"), 3));
    let ResponderKind::Http(http) = &service.kind else { panic!("it is a service") };
    assert_eq!(http.url, "http://127.0.0.1:9000/turn");
    let headers: Vec<_> = http.headers.iter().map(|(name, value)| (name.as_str(), value.expose())).collect();
    assert_eq!(headers, [("authorization", "Bearer hunter2"), ("x-shop", "7")]);
}

#[test]
fn telegram_bots() {
    let config = read(
        r#"
        [bots.fetched]
        channel = "telegram"
        responder = "echo"
        token = "123:abc"
        updates = "polling"
        [bots.own]
        channel = "telegram"
        responder = "echo"
        token = "124:abc"
        webhook_secret = "s"
        api_base = "http://127.0.0.1:8081"
        [bots.both]
        channel = "telegram"
        responder = "echo"
        token = "125:abc"
        webhook_secret = "s"
        limits = { group = { messages = 10, per = "30s", burst = 20 } }
        [bots.off]
        channel = "telegram"
        responder = "echo"
        token = "126:abc"
        webhook_secret = "s"
        limits = "none"
        "#,
    );
    let bot = |name: &str| &config.bots[name];
    let telegram = |name: &str| match &bot(name).channel {
        BotChannel::Telegram(telegram) => telegram.clone(),
        other => panic!("{other:?} is no Telegram bot"),
    };
    let fetched = telegram("fetched");
    assert_eq!((fetched.updates, fetched.webhook_secret), (Updates::Polling, None));
    assert_eq!(telegram("own").updates, Updates::Webhook);

    let limit = |messages, seconds, burst| Some(SendLimit { messages, per: Duration::from_secs(seconds), burst });
    let platform = SendLimits { bot: limit(30, 1, 1), chat: limit(60, 60, 3), group: limit(20, 60, 5) };
    assert_eq!(bot("fetched").limits, platform, "of Telegram's own address");
    assert_eq!(bot("own").limits, SendLimits::default(), "of another address");
    assert_eq!(bot("both").limits, SendLimits { group: limit(10, 30, 10), ..platform });
    assert_eq!(bot("off").limits, SendLimits::default());
}

#[test]
fn files_are_read_from_the_configurations_folder() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("turnwise.toml");
    let responder = "[responders.echo]\nkind = \"openai\"\nbase_url = \"http://a\"\nmodel = \"m\"\n";
    let secrets = "[console]\ntoken = { file = \"token\" }\n";
    std::fs::write(&file, whole(&format!("{secrets}{responder}system_prompt_file = \"prompt\"\n"))).unwrap();
    std::fs::write(folder.path().join("token"), "hunter2\r\n").unwrap();
    std::fs::write(folder.path().join("prompt"), "Be brief.\n").unwrap();
    let config = Config::load(&file).unwrap();
    assert_eq!(config.console.token, Some(secret("hunter2")));
    let ResponderKind::Model(model) = &config.responders["echo"].kind else { panic!("it is a model") };
    assert_eq!(model.system_prompt.as_deref(), Some("Be brief.\n"));

    let check = |token: &[u8], prompt: &[u8], expected: [&str; 2]| {
        std::fs::write(folder.path().join("token"), token).unwrap();
        std::fs::write(folder.path().join("prompt"), prompt).unwrap();
        let problems = Config::load(&file).unwrap_err().to_string();
        let folder = folder.path().display().to_string();
        let found: Vec<String> = problems.lines().map(|line| line.replace(&folder, "DIR")).collect();
        assert_eq!(found, expected);
    };
    check(
        b"\n",
        b" \n",
        [
            r#"DIR/turnwise.toml:2 console.token: file "DIR/token" is empty; write a string, { env = "NAME" } or { file = "PATH" }"#,
            r#"DIR/turnwise.toml:7 responders.echo.system_prompt_file: file "DIR/prompt" is empty; write the prompt into it, or remove the key"#,
        ],
    );
    check(
        b"hunter2\xff",
        &vec![b'x'; 300_000],
        [
            r#"DIR/turnwise.toml:2 console.token: cannot read file "DIR/token": stream did not contain valid UTF-8; name a readable text file of at most 65536 bytes"#,
            r#"DIR/turnwise.toml:7 responders.echo.system_prompt_file: cannot read file "DIR/prompt": file too large; name a readable text file of at most 262144 bytes"#,
        ],
    );
}

#[test]
fn a_file_that_cannot_be_read() {
    let folder = tempfile::tempdir().unwrap();
    let check = |file: &Path, kind: std::io::ErrorKind| match Config::load(file) {
        Err(ConfigError::Read { file: named, source }) => assert_eq!((named.as_path(), source.kind()), (file, kind)),
        other => panic!("{other:?}"),
    };
    let file = folder.path().join("turnwise.toml");
    check(&file, std::io::ErrorKind::NotFound);
    check(folder.path(), std::io::ErrorKind::IsADirectory);
    check(Path::new("/dev/zero"), std::io::ErrorKind::FileTooLarge);
    std::fs::write(&file, b"\xff").unwrap();
    check(&file, std::io::ErrorKind::InvalidData);
}

#[test]
fn problems_name_the_file_and_stand_in_its_order() {
    let text = whole("[worker]\nmax_turns = 0\n[http]\nlisten = 1");
    let problems = Config::parse(&text, Path::new("conf/turnwise.toml"), &environment).unwrap_err();
    let Problem { line, key, wrong, right } = &problems.problems[0];
    assert_eq!((*line, key.as_str(), wrong.as_str()), (2, "worker.max_turns", "0 is out of range"));
    assert_eq!(right, "write a whole number from 1 to 100000");
    let lines: Vec<usize> = problems.problems.iter().map(|problem| problem.line).collect();
    assert_eq!(lines, [2, 4]);
    assert!(problems.to_string().starts_with("conf/turnwise.toml:2 worker.max_turns: 0 is out of range; write "));
}

#[test]
fn responders_in_rust_code() {
    let reader = ConfigReader::default().registered_responders(&["concierge".to_owned()]);
    let parse =
        |text: &str| reader.parse(&whole(text), Path::new("t"), &environment).map_err(|error| error.to_string());
    let bot = "[bots.web]\nchannel = \"web\"\nresponder = ";
    assert_eq!(parse(&format!("{bot}\"concierge\"")).unwrap().bots["web"].responder, "concierge");
    assert_eq!(
        parse(&format!("{bot}\"conciege\"")).unwrap_err(),
        r#"t:3 bots.web.responder: there is no responder "conciege"; did you mean "concierge"? Responders here: echo, concierge"#
    );
    assert_eq!(
        parse("[responders.concierge]\nkind = \"echo\"\n[bots.web]\nchannel = \"web\"\nresponder = \"concierge\"")
            .unwrap_err(),
        "t:1 responders.concierge: is the name of a responder in Rust code; choose another name"
    );
}

#[test]
fn development_is_a_configuration_like_any_other() {
    let listen = "127.0.0.1:9000".parse().unwrap();
    let text = r#"
        http.listen = "127.0.0.1:9000"
        nats.managed = true
        [bots.web]
        channel = "web"
        responder = "demo"
        [responders.demo]
        kind = "script"
        file = "demo.toml"
        # [nats]
    "#;
    let written = parse(text).unwrap();
    let made = Config::development(Path::new("/etc/turnwise"), listen, PathBuf::from("/etc/turnwise/demo.toml"));
    // Nothing that is written opens the console without a token.
    let open = Console { is_open: true, ..Console::default() };
    assert_eq!(made, Config { console: open, ..written });
    assert_eq!(made.warnings(), Vec::<String>::new());
}

#[test]
fn warnings() {
    let check = |text: &str, expected: &[&str]| assert_eq!(read(text).warnings(), expected, "{text}");
    check("", &[]);
    check(
        "[http]\nlisten = \"0.0.0.0:80\"",
        &["bots.web.api_keys: without keys, everybody who reaches 0.0.0.0:80 can talk to it"],
    );
    check(
        "[nats]\nmanaged = true\nsync = \"interval\"",
        &["nats.sync: \"interval\" can lose two minutes of accepted messages on power loss"],
    );
    check(
        "[telemetry]\notlp_endpoint = \"http://a\"\nrecord_content = true",
        &["telemetry.record_content: the text of messages leaves with the traces"],
    );
    check(
        "[worker]\nturn_timeout = \"59s\"",
        &["responders.echo.timeout: worker.turn_timeout is shorter and ends the turn first"],
    );
}
