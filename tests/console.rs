//! The operators' console: what it says of messages and why, what may be done there and by whom, and in a real browser.
//!
//! Refuses to look inside: what was done is seen by what chats see, the database holds and the console says.

#![expect(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stderr, reason = "a failed test shows what the process said")]

use std::path::PathBuf;

use browser::{Browser, ENTER};
use reqwest::{Method, StatusCode, header};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, SqliteConnection};
use support::process::{BINARY, CONSOLE_TOKEN, Configuration, ENVIRONMENT, quoted};
use support::responder::{Behaviour, answer, message};
use support::scenario::{BOT, Backend, Deployment};
use support::{PATIENCE, eventually, http_client};
use tempfile::TempDir;
use tokio::process::Command;

#[expect(dead_code, reason = "each test binary uses its own part of the harness")]
#[path = "support/browser.rs"]
mod browser;
#[expect(dead_code, reason = "each test binary uses its own part of the harness")]
mod support;

const READ_TOKEN: &str = "stand-in-read-token";

/// The chat whose second message is given up.
const CHAT: i64 = 31;
const OTHER: i64 = 32;

async fn deployment(backend: Backend) -> Deployment {
    deployment_with(backend, |_| ()).await
}

async fn deployment_with(backend: Backend, adjust: impl FnOnce(&mut Configuration)) -> Deployment {
    Deployment::start(backend, Behaviour::default(), |configuration| {
        configuration.set("worker", "max_attempts", "2").set("console", "read_token", &quoted(READ_TOKEN)).set(
            "console",
            "trace_url",
            "\"https://traces.example.com/{trace_id}\"",
        );
        adjust(configuration);
    })
    .await
}

async fn look(deployment: &Deployment, place: &str) -> Value {
    let answer = http_client().get(deployment.turnwise.url(place)).bearer_auth(CONSOLE_TOKEN);
    let answer = answer.header(header::ACCEPT, "application/json").send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK, "{place}: {}", answer.text().await.unwrap());
    answer.json().await.unwrap()
}

/// An action by API; what it answers.
async fn act(deployment: &Deployment, place: &str, fields: Value) -> (StatusCode, Value) {
    let request = http_client().post(deployment.turnwise.url(place)).bearer_auth(CONSOLE_TOKEN);
    let answer = request.header(header::ACCEPT, "application/json").json(&fields).send().await.unwrap();
    (answer.status(), answer.json().await.unwrap())
}

async fn done(deployment: &Deployment, place: &str, fields: Value) {
    let (status, answer) = act(deployment, place, fields).await;
    assert_eq!((status, &answer["result"]), (StatusCode::OK, &json!("done")), "{place}: {answer:#}");
}

/// The platform's id of a message that was sent.
fn message_id(update: &Value) -> String {
    update["message"]["message_id"].to_string()
}

async fn lose(deployment: &Deployment, text: &str) {
    let url = deployment.database_url().to_owned();
    let mut connection = SqliteConnection::connect(&url).await.unwrap();
    let update =
        format!("UPDATE deliveries SET status = 'uncertain', error = 'the answer was lost' WHERE content = '{text}'");
    connection.execute(AssertSqlSafe(update)).await.unwrap();
    connection.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_a_message_id_to_the_reason_and_its_answer_on_sqlite() {
    from_a_message_id_to_the_reason_and_its_answer(Backend::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_a_message_id_to_the_reason_and_its_answer_on_postgresql() {
    from_a_message_id_to_the_reason_and_its_answer(Backend::Postgres).await;
}

async fn from_a_message_id_to_the_reason_and_its_answer(backend: Backend) {
    let mut deployment = deployment(backend).await;
    deployment.model.always_fail(&message(CHAT, 2));
    let sent: Vec<Value> = (1..=3).map(|n| deployment.telegram.send(CHAT, &message(CHAT, n))).collect();
    deployment.settled(3, PATIENCE).await;

    let answered = look(&deployment, &format!("/console/conversations.json?q={}", message_id(&sent[0]))).await;
    let hit = &answered["messages"][0];
    assert_eq!((&hit["verdict"], &hit["state"]), (&json!("answered"), &json!("answered")), "{answered:#}");
    // It is in no history, so it is found on the stream: by its id alone, and with its chat.
    for query in [message_id(&sent[1]), format!("{CHAT}%20{}", message_id(&sent[1]))] {
        let found = look(&deployment, &format!("/console/conversations?q={query}")).await;
        let hit = &found["messages"][0];
        assert_eq!((&hit["verdict"], &hit["state"]), (&json!("trouble"), &json!("dead_lettered")), "{found:#}");
        let why = hit["why"].as_str().unwrap();
        assert!(why.starts_with("Given up after 2 attempts: responder:") && why.contains("500"), "{why}");
        assert!(found["note"].as_str().unwrap().contains("stream"), "{found:#}");
    }
    let nul = http_client().get(deployment.turnwise.url("/console/conversations.json?q=31%00")).bearer_auth(READ_TOKEN);
    let refused = nul.send().await.unwrap();
    assert_eq!(refused.status(), StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(refused.json::<Value>().await.unwrap()["errors"][0]["field"], "q");
    let key = format!("telegram.{BOT}.user-{CHAT}");
    let by_chat = look(&deployment, &format!("/console/conversations?q={CHAT}")).await;
    assert_eq!(by_chat["conversations"][0]["name"], key, "{by_chat:#}");
    let id = by_chat["conversations"][0]["id"].as_str().unwrap().to_owned();

    let timeline = look(&deployment, &format!("/console/conversations/{id}")).await;
    let entries = timeline["entries"].as_array().unwrap();
    let told: Vec<_> =
        entries.iter().map(|entry| (entry["text"].as_str().unwrap(), entry["verdict"].as_str().unwrap())).collect();
    let texts: Vec<String> = (1..=3).map(|n| message(CHAT, n)).collect();
    assert_eq!(told, [(texts[0].as_str(), "answered"), (&texts[1], "trouble"), (&texts[2], "answered")]);
    let platform_ids: Vec<_> = entries.iter().map(|entry| entry["platform_message_id"].as_str().unwrap()).collect();
    assert_eq!(platform_ids, sent.iter().map(message_id).collect::<Vec<_>>());
    assert!(entries[0]["trace"]["url"].as_str().unwrap().starts_with("https://traces.example.com/"), "{entries:#?}");
    assert_eq!(look(&deployment, &format!("/console/conversations/{key}.json")).await["entries"], timeline["entries"]);
    let turn = look(&deployment, &format!("/console/turns/{}.json", entries[0]["turn_id"].as_str().unwrap())).await;
    let kinds: Vec<_> = turn["spans"].as_array().unwrap().iter().map(|span| span["kind"].as_str().unwrap()).collect();
    assert!(["queue", "lane", "responder", "commit", "egress"].iter().all(|kind| kinds.contains(kind)), "{turn:#}");

    // Everything that matches the filter: counted first, then done.
    let misspelt = json!({ "bot": BOT, "for_reasons": "responder" });
    let (status, refused) = act(&deployment, "/console/dead-letters/redrive", misspelt).await;
    let fault = &refused["errors"][0]["field"];
    assert_eq!((status, fault), (StatusCode::UNPROCESSABLE_ENTITY, &json!("for_reasons")), "{refused:#}");
    let which = json!({ "bot": BOT, "for_reason": "responder" });
    let (status, plan) = act(&deployment, "/console/dead-letters/redrive", which.clone()).await;
    assert_eq!((status, &plan["plan"]["dead_letters"]), (StatusCode::OK, &json!(1)), "{plan:#}");
    // One that comes between the count and the word is not meant.
    deployment.model.always_fail(&message(OTHER, 1));
    deployment.telegram.send(OTHER, &message(OTHER, 1));
    deployment.settled(4, PATIENCE).await;
    deployment.model.mend();
    let mut confirmed = json!({ "bot": BOT, "for_reason": "responder", "confirmed": "yes" });
    let (status, refused) = act(&deployment, "/console/dead-letters/redrive", confirmed.clone()).await;
    let fault = &refused["errors"][0]["field"];
    assert_eq!((status, fault), (StatusCode::UNPROCESSABLE_ENTITY, &json!("until")), "{refused:#}");
    confirmed["until"] = plan["until"].clone();
    done(&deployment, "/console/dead-letters/redrive", confirmed).await;
    let job = eventually("the job to be done", PATIENCE, async || {
        let letters = look(&deployment, "/console/dead-letters").await;
        (letters["jobs"][0]["state"] == "done").then(|| letters["jobs"][0].clone())
    })
    .await;
    assert_eq!((&job["seen"], &job["outcome"]), (&json!(1), &json!("1 redriven")), "{job:#}");
    assert_eq!(look(&deployment, "/console/dead-letters").await["matching"], 1);
    let texts = deployment.telegram.wait_for_texts(CHAT, 3, PATIENCE).await;
    assert_eq!(texts, [1, 3, 2].map(|n| answer(CHAT, n)));
    let log = look(&deployment, "/console/audit").await;
    let verbs: Vec<_> = log["actions"].as_array().unwrap().iter().map(|row| row["verb"].as_str().unwrap()).collect();
    assert!(verbs.contains(&"redrive_dead_letters") && verbs.contains(&"redrive_dead_letter"), "{log:#}");

    let overview = look(&deployment, "/console").await;
    assert_eq!(overview["totals"], json!({ "answered": 3, "dead_lettered": 2 }), "{overview:#}");
    let partitions = overview["partitions"].as_array().unwrap();
    assert!(partitions.len() == 8 && partitions.iter().all(|line| line["owner"].is_string()), "{overview:#}");
    deployment.turnwise.terminate().await;
    deployment.turnwise.assert_audit_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_conversation_waits_in_the_stream_and_holds_up_no_other() {
    let mut deployment = deployment(Backend::Sqlite).await;
    deployment.telegram.send(CHAT, &message(CHAT, 1));
    deployment.telegram.wait_for_texts(CHAT, 1, PATIENCE).await;
    let key = format!("telegram.{BOT}.user-{CHAT}");
    let target = json!({ "scope": "conversation", "target": key, "reason": "a test" });
    done(&deployment, "/console/holds/pause", target.clone()).await;
    // A worker hears of it in its own time: from then on a message stays unanswered while another chat's are answered.
    let (mut sent, mut others) = (1, 0);
    eventually("the pause to be heard of", PATIENCE, async || {
        sent += 1;
        deployment.telegram.send(CHAT, &message(CHAT, sent));
        for _ in 0..2 {
            others += 1;
            deployment.telegram.send(OTHER, &message(OTHER, others));
            deployment.telegram.wait_for_texts(OTHER, others as usize, PATIENCE).await;
        }
        (deployment.telegram.log(|log| log.texts(CHAT).len()) < sent as usize).then_some(())
    })
    .await;

    // A process that starts anew knows of it before it takes a message.
    deployment.turnwise.terminate().await;
    deployment.turnwise.start_again().await;
    let answered = deployment.telegram.log(|log| log.texts(CHAT).len());
    let last = sent + 90;
    for n in sent + 1..=last {
        deployment.telegram.send(CHAT, &message(CHAT, n));
    }
    deployment.telegram.all_taken(PATIENCE).await;
    deployment.telegram.send(OTHER, &message(OTHER, others + 1));
    deployment.telegram.wait_for_texts(OTHER, others as usize + 1, PATIENCE).await;
    assert_eq!(deployment.telegram.log(|log| log.texts(CHAT).len()), answered, "nothing of it is answered");
    let timeline = look(&deployment, &format!("/console/conversations/{key}")).await;
    let entries = timeline["entries"].as_array().unwrap();
    let waiting: Vec<_> = entries.iter().filter(|entry| entry["state"] == "waiting").collect();
    assert_eq!(waiting.len(), last as usize - answered, "{timeline:#}");
    let why = waiting[0]["why"].as_str().unwrap();
    assert!(why.contains("was paused by operator") && why.contains("(a test)"), "{why}");
    // A reply would wait with the rest, so none is taken.
    let reply = format!("/console/conversations/{}/reply", timeline["conversation"]["id"].as_str().unwrap());
    let (status, refused) = act(&deployment, &reply, json!({ "content": "Kim here." })).await;
    assert_eq!(
        (status, &refused["type"]),
        (StatusCode::CONFLICT, &json!("urn:turnwise:problem:paused")),
        "{refused:#}"
    );
    let overview = look(&deployment, "/console").await;
    assert!(overview["oldest_unprocessed_seconds"].is_u64() && overview["holds"] == 1, "{overview:#}");

    let held = holds(&deployment, &["list"]).await;
    assert!(held.contains(&format!("conversation {key}")), "{held}");
    holds(&deployment, &["resume", "--conversation", &key]).await;
    let texts = deployment.telegram.wait_for_texts(CHAT, last as usize, PATIENCE).await;
    assert_eq!(texts, (1..=last).map(|n| answer(CHAT, n)).collect::<Vec<_>>(), "in order, each once");
    let (status, _) = act(&deployment, "/console/holds/resume", target).await;
    assert_eq!(status, StatusCode::CONFLICT);
    let (status, wrong) = act(&deployment, "/console/holds/pause", json!({ "scope": "bot", "target": "nobody" })).await;
    assert_eq!((status, &wrong["errors"][0]["field"]), (StatusCode::UNPROCESSABLE_ENTITY, &json!("target")));
    deployment.settled((last + others + 1) as usize, PATIENCE).await;
    deployment.turnwise.terminate().await;
    deployment.turnwise.assert_audit_clean().await;
}

/// `turnwise holds`; what it prints.
async fn holds(deployment: &Deployment, arguments: &[&str]) -> String {
    let mut command = Command::new(BINARY);
    command.arg("holds").args(arguments).arg("--config").arg(deployment.turnwise.configuration_file());
    let output = command.envs(ENVIRONMENT.iter().copied()).kill_on_drop(true).output();
    let output = tokio::time::timeout(PATIENCE, output).await.expect("the command ends").unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_looks_without_a_token_and_nobody_acts_with_a_readers() {
    let runs = TempDir::new().unwrap();
    let run = runs.path().join("2026-11-21-echo");
    std::fs::create_dir_all(&run).unwrap();
    std::fs::write(run.join("run.json"), r#"{"state":"finished","turns":7,"changed":2}"#).unwrap();
    std::fs::write(run.join("report.html"), "<h1>Seven turns</h1><script>alert(1)</script>").unwrap();
    std::fs::write(runs.path().join("secret.html"), "not a run").unwrap();
    let deployment = deployment_with(Backend::Sqlite, |configuration| {
        configuration.set("console", "replays", &quoted(&runs.path().display().to_string()));
    })
    .await;
    let client = reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build().unwrap();
    let url = |place: &str| deployment.turnwise.url(place);
    let origin = url("");
    let views = ["", "/conversations", "/dead-letters", "/deliveries", "/holds", "/replays", "/audit"];
    for view in views.map(|view| format!("/console{view}")) {
        let html = client.get(url(&view)).send().await.unwrap();
        let to = html.headers()[header::LOCATION].to_str().unwrap().to_owned();
        assert!(html.status() == StatusCode::SEE_OTHER && to.starts_with("/console/login?next="), "{view}: {to}");
        let refused = client.get(url(&format!("{view}.json"))).send().await.unwrap();
        assert_eq!(refused.status(), StatusCode::UNAUTHORIZED, "{view}");
        for token in [READ_TOKEN, CONSOLE_TOKEN] {
            let seen = client.get(url(&format!("{view}.json"))).bearer_auth(token).send().await.unwrap();
            assert_eq!(seen.status(), StatusCode::OK, "{view}");
        }
    }
    let listed = look(&deployment, "/console/replays").await;
    assert_eq!((&listed["runs"][0]["run"]["turns"], &listed["runs"][1]), (&json!(7), &Value::Null), "{listed:#}");
    let report =
        |name: &str| client.get(url(&format!("/console/replays/{name}/report"))).bearer_auth(READ_TOKEN).send();
    let shown = report("2026-11-21-echo").await.unwrap();
    let policy = shown.headers()[header::CONTENT_SECURITY_POLICY].to_str().unwrap().to_owned();
    assert!(policy.starts_with("sandbox; default-src 'none'"), "{policy}");
    assert!(shown.text().await.unwrap().contains("Seven turns"));
    for name in ["%2e%2e%2f", "missing"] {
        assert_eq!(report(name).await.unwrap().status(), StatusCode::NOT_FOUND, "{name}");
    }

    let pause = |token: &str| client.post(url("/console/holds/pause")).bearer_auth(token.to_owned());
    let body = json!({ "scope": "bot", "target": BOT });
    assert_eq!(pause(READ_TOKEN).json(&body).send().await.unwrap().status(), StatusCode::FORBIDDEN);
    assert_eq!(pause("wrong").json(&body).send().await.unwrap().status(), StatusCode::UNAUTHORIZED);

    let wrong =
        client.post(url("/console/login")).header(header::ORIGIN, &origin).body("token=wrong").send().await.unwrap();
    assert_eq!(wrong.status(), StatusCode::UNAUTHORIZED);
    let login = format!("token={CONSOLE_TOKEN}&name=Kim&next=https://evil.example");
    let foreign = client.post(url("/console/login")).header(header::ORIGIN, "https://evil.example").body(login.clone());
    assert_eq!(foreign.send().await.unwrap().status(), StatusCode::FORBIDDEN);
    let entered = client.post(url("/console/login")).header(header::ORIGIN, &origin).body(login).send().await.unwrap();
    assert_eq!(
        (entered.status(), &entered.headers()[header::LOCATION]),
        (StatusCode::SEE_OTHER, &"/console".parse().unwrap())
    );
    let cookie = entered.headers()[header::SET_COOKIE].to_str().unwrap().to_owned();
    assert!(cookie.contains("HttpOnly; SameSite=Strict") && !cookie.contains(CONSOLE_TOKEN), "{cookie}");
    let cookie = cookie.split(';').next().unwrap().to_owned();
    let page = client.get(url("/console/holds")).header(header::COOKIE, &cookie).send().await.unwrap();
    let policy = page.headers()[header::CONTENT_SECURITY_POLICY].to_str().unwrap().to_owned();
    assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
    let page = page.text().await.unwrap();
    let form_token = page.split("name=\"form_token\" value=\"").nth(1).unwrap().split('"').next().unwrap();
    assert!(page.contains("operator (Kim)") && !page.contains(CONSOLE_TOKEN));

    let fields = format!("scope=bot&target={BOT}");
    let with = |origin: &str, fields: &str| {
        let request = client.post(url("/console/holds/pause")).header(header::COOKIE, &cookie);
        request.header(header::ORIGIN, origin).body(fields.to_owned())
    };
    for (origin, fields) in [
        ("https://evil.example", format!("{fields}&form_token={form_token}")),
        (origin.as_str(), fields.clone()),
        (origin.as_str(), format!("{fields}&form_token=00")),
    ] {
        assert_eq!(with(origin, &fields).send().await.unwrap().status(), StatusCode::FORBIDDEN, "{origin} {fields}");
    }
    assert_eq!(look(&deployment, "/console/holds").await["holds"], json!([]));
    let paused = with(&origin, &format!("{fields}&form_token={form_token}")).send().await.unwrap();
    assert_eq!(paused.status(), StatusCode::SEE_OTHER);
    let log = look(&deployment, "/console/audit").await;
    let row = &log["actions"][0];
    assert_eq!(
        (&row["actor"], &row["verb"], &row["target"], &row["result"]),
        (&json!("operator (Kim)"), &json!("pause_turns"), &json!(format!("bot {BOT}")), &json!("done")),
        "{log:#}"
    );
    assert_eq!(log["actions"].as_array().unwrap().len(), 1, "refused ones did nothing: {log:#}");
    let methods = client.request(Method::DELETE, url("/console/holds")).send().await.unwrap();
    assert_eq!(methods.status(), StatusCode::METHOD_NOT_ALLOWED);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_takes_over_redrives_and_settles_in_a_browser() {
    let deployment = deployment(Backend::Sqlite).await;
    deployment.model.always_fail(&message(CHAT, 2));
    let sent: Vec<Value> = (1..=3).map(|n| deployment.telegram.send(CHAT, &message(CHAT, n))).collect();
    deployment.telegram.send(OTHER, &message(OTHER, 1));
    deployment.settled(4, PATIENCE).await;
    lose(&deployment, &answer(OTHER, 1)).await;

    let browser = Browser::start().await;
    browser.open(&deployment.turnwise.url("/console/conversations")).await;
    let (role, label) = browser.spoken("document.getElementById('token')").await;
    assert_eq!((role.as_str(), label.as_str()), ("textbox", "Console token"));
    browser.type_into("document.getElementById('name')", "Kim").await;
    browser.type_into("document.getElementById('token')", &format!("{CONSOLE_TOKEN}{ENTER}")).await;
    heading(&browser, "Conversations").await;
    assert_speaks(&browser).await;

    // Why did this user get no answer?
    let query = format!("{CHAT} {}{ENTER}", message_id(&sent[1]));
    browser.type_into("document.getElementById('q')", &query).await;
    shown(&browser, ".why", "Given up after 2 attempts").await;
    picture(&browser, "search").await;
    browser.click("document.querySelector('.entry .head a')").await;
    shown(&browser, ".entry.trouble .why", "Given up after 2 attempts").await;
    assert_speaks(&browser).await;
    picture(&browser, "timeline").await;

    browser.click("document.querySelector('.entry.answered .head a')").await;
    shown(&browser, "#waterfall h2", "Where the time went").await;
    assert_speaks(&browser).await;
    picture(&browser, "turn").await;

    browser.open(&deployment.turnwise.url("/console/dead-letters")).await;
    deployment.model.mend();
    browser.click("document.getElementById('redrive')").await;
    shown(&browser, "#count", "1 dead letters of 1 conversations").await;
    browser.click("document.getElementById('confirm')").await;
    // Live: nobody loads the page again.
    shown(&browser, "#main", "1 redriven").await;
    let texts = deployment.telegram.wait_for_texts(CHAT, 3, PATIENCE).await;
    assert_eq!(texts, [1, 3, 2].map(|n| answer(CHAT, n)));

    browser.open(&deployment.turnwise.url("/console/deliveries")).await;
    shown(&browser, "td", "").await;
    assert_speaks(&browser).await;
    browser.type_into("document.querySelector('.settle input[name=reason]')", "the person says so").await;
    browser.click("document.querySelector('.settle button[value=sent]')").await;
    shown(&browser, "#nothing", "None.").await;

    browser.open(&deployment.turnwise.url(&format!("/console/conversations/telegram.{BOT}.user-{CHAT}"))).await;
    browser.click("document.getElementById('deed-take-over')").await;
    shown(&browser, ".facts .badge.human", "a person - Kim").await;
    browser.type_into("document.getElementById('content')", "Kim here.").await;
    browser.click("document.getElementById('send-reply')").await;
    let texts = deployment.telegram.wait_for_texts(CHAT, 4, PATIENCE).await;
    assert_eq!(texts[3], "Kim here.");
    deployment.telegram.send(CHAT, &message(CHAT, 4));
    shown(&browser, ".entry:last-child .why", "A person has the conversation").await;
    browser.click("document.getElementById('deed-hand-back')").await;
    shown(&browser, ".facts .badge.bot", "the bot").await;

    browser.open(&deployment.turnwise.url("/console")).await;
    heading(&browser, "Overview").await;
    assert_speaks(&browser).await;
    picture(&browser, "overview").await;
    let colour = "return getComputedStyle(document.body).backgroundColor";
    for (scheme, expected) in [("light", "rgb(244, 245, 248)"), ("dark", "rgb(18, 20, 26)")] {
        browser.prefer_colors(scheme).await;
        assert_eq!(browser.run(colour).await, expected, "{scheme}");
    }
    browser.open(&deployment.turnwise.url("/console/audit")).await;
    let rows =
        browser.run("return [...document.querySelectorAll('tbody tr')].map((row) => row.cells[2].textContent)").await;
    let verbs = ["hand_back_conversation", "reply_in_conversation", "take_over_conversation", "confirm_delivery"];
    assert!(verbs.iter().all(|verb| rows.as_array().unwrap().contains(&json!(verb))), "{rows:#}");
    // The first stop of the keyboard leads past the navigation.
    let first =
        "return [...document.querySelectorAll('a, button, input')].find((node) => node.tabIndex >= 0).className";
    assert_eq!(browser.run(first).await, "skip");
    let complaints = browser.complaints().await;
    assert!(complaints.iter().all(|complaint| !complaint.contains("Content Security Policy")), "{complaints:?}");
    browser.close().await;
}

async fn heading(browser: &Browser, words: &str) {
    browser.until(words, "return document.querySelector('h1')?.textContent", |seen| *seen == words).await;
}

/// Waits until some node that the selector names holds these words.
async fn shown(browser: &Browser, selector: &str, words: &str) {
    let texts = format!("return [...document.querySelectorAll({})].map((node) => node.textContent)", json!(selector));
    let holds =
        |seen: &Value| seen.as_array().is_some_and(|all| all.iter().any(|text| text.as_str().unwrap().contains(words)));
    browser.until(&format!("{words:?} in {selector}"), &texts, holds).await;
}

/// The basics that everybody needs who does not see the page: names for what can be operated, one heading, a language.
async fn assert_speaks(browser: &Browser) {
    let faults = "const faults = []; \
         for (const field of document.querySelectorAll('input:not([type=hidden]), select, textarea')) \
             if (!field.labels.length && !field.ariaLabel) faults.push('no label: ' + field.name); \
         for (const node of document.querySelectorAll('a, button')) \
             if (!node.textContent.trim()) faults.push('no name: ' + node.outerHTML); \
         if (document.querySelectorAll('h1').length !== 1) faults.push('not one h1'); \
         if (!document.documentElement.lang) faults.push('no language'); \
         const ids = [...document.querySelectorAll('[id]')].map((node) => node.id); \
         if (new Set(ids).size !== ids.length) faults.push('an id twice'); \
         if (document.documentElement.scrollWidth > innerWidth) faults.push('wider than the window'); \
         return faults";
    assert_eq!(browser.run(faults).await, json!([]));
}

/// For `make screenshots`.
async fn picture(browser: &Browser, name: &str) {
    if let Ok(folder) = std::env::var("TURNWISE_SCREENSHOTS") {
        std::fs::write(PathBuf::from(folder).join(format!("{name}.png")), browser.picture().await).unwrap();
    }
}
