//! The channels against every fixture, signed and mutated bytes, the request bodies they send and the answers they read.
//!
//! `fixtures/outcomes.toml` says what must become of each webhook body; a body without a line there fails the test, as does
//! a line without a body.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod http_webhook;
mod messenger_webhook;
mod outbound;
mod random;
mod telegram_webhook;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use hmac::{Hmac, KeyInit, Mac};
use serde_json::Value;
use sha2::Sha256;
use turnwise::channel::{Refusal, Stamp, Verified, messenger, telegram};
use turnwise::config::{
    Bot, BotChannel, Burst, MessengerBot, OnUncertain, ReplyInFlight, Secret, SendLimits, TelegramBot, Updates,
};
use turnwise::message::{Envelope, Event, InboundMessage, Notice, Timestamp};
use uuid::Uuid;

const WEBHOOK_SECRET: &str = "hook-secret";
const APP_SECRET: &str = "e6af24be1d683c8c911949f897eea1f6";
const NOW: Timestamp = Timestamp::from_micros(1_787_000_000_000_000);

fn telegram_bot() -> TelegramBot {
    TelegramBot {
        token: Secret::new("7000000001:bot-token".to_owned()),
        webhook_secret: Some(Secret::new(WEBHOOK_SECRET.to_owned())),
        api_base: "https://api.telegram.org".to_owned(),
        updates: Updates::Webhook,
        username: Some("DemoLLMBot".to_owned()),
        commands: Vec::new(),
        api_keys: Vec::new(),
        link_previews: false,
        streaming: turnwise::config::Streaming::Off,
        channel_posts: false,
        business: false,
    }
}

fn messenger_bot(page_id: &str) -> MessengerBot {
    MessengerBot {
        app_secret: Secret::new(APP_SECRET.to_owned()),
        verify_token: Secret::new("verify-me".to_owned()),
        page_token: Secret::new("page-token".to_owned()),
        page_id: page_id.to_owned(),
        app_id: None,
        api_base: "https://graph.facebook.com".to_owned(),
        api_version: "v26.0".to_owned(),
    }
}

fn bot(name: &str, channel: BotChannel) -> Bot {
    Bot {
        name: name.to_owned(),
        responder: "echo".to_owned(),
        burst: Burst::Queue,
        quiet: std::time::Duration::ZERO,
        reject_reply: String::new(),
        weight: 1,
        max_turns: None,
        tokens_per_day: None,
        budget_reply: String::new(),
        reply_in_flight: ReplyInFlight::Send,
        on_uncertain: OnUncertain::Hold,
        failure_reply: None,
        typing: true,
        limits: SendLimits::default(),
        channel,
    }
}

/// Runs `receive` with a stamp whose ids count from 1.
fn stamped<T>(receive: impl FnOnce(&mut Stamp<'_>) -> T) -> T {
    let mut last = 0_u128;
    let mut new_id = || {
        last += 1;
        Uuid::from_u128(last)
    };
    receive(&mut Stamp { now: NOW, new_id: &mut new_id })
}

fn receive_telegram(body: &[u8]) -> Result<Envelope, Refusal> {
    receive_telegram_as(&telegram_bot(), body)
}

fn receive_telegram_as(settings: &TelegramBot, body: &[u8]) -> Result<Envelope, Refusal> {
    let bot = bot("demo", BotChannel::Telegram(settings.clone()));
    stamped(|stamp| telegram::receive(&bot, settings, Some(WEBHOOK_SECRET.as_bytes()), body, stamp))
        .map(Verified::into_envelope)
}

fn receive_update(update: &Value) -> Envelope {
    receive_telegram(update.to_string().as_bytes()).unwrap()
}

fn signature(body: &[u8]) -> String {
    let mac = Hmac::<Sha256>::new_from_slice(APP_SECRET.as_bytes()).unwrap().chain_update(body);
    format!("sha256={}", hex::encode(mac.finalize().into_bytes()))
}

/// Receives as the bot `demo` of `page_id`; `second` has page `P2` of the same app, `foreign` page `P3` of another app.
fn receive_messenger(page_id: &str, body: &[u8]) -> Result<Vec<Envelope>, Refusal> {
    let settings = messenger_bot(page_id);
    let demo = bot("demo", BotChannel::Messenger(settings.clone()));
    let second_settings = messenger_bot("P2");
    let second = bot("second", BotChannel::Messenger(second_settings.clone()));
    let foreign_settings = MessengerBot { app_secret: Secret::new("other".to_owned()), ..messenger_bot("P3") };
    let foreign = bot("foreign", BotChannel::Messenger(foreign_settings.clone()));
    let others = [(&foreign, &foreign_settings), (&second, &second_settings)];
    let signature = signature(body);
    stamped(|stamp| messenger::receive(&demo, &settings, &others, Some(signature.as_bytes()), body, stamp))
        .map(|accepted| accepted.into_iter().map(Verified::into_envelope).collect())
}

fn message(envelope: &Envelope) -> &InboundMessage {
    match &envelope.event {
        Event::Message(message) => message,
        Event::Ignored { kind, reason } => panic!("ignored {kind}: {reason}"),
        Event::Agent { .. } => panic!("an agent's message"),
    }
}

fn ignored_for(envelope: &Envelope) -> &str {
    match &envelope.event {
        Event::Message(message) => panic!("a turn: {:?}", message.text),
        Event::Ignored { reason, .. } => reason,
        Event::Agent { .. } => panic!("an agent's message"),
    }
}

/// One line that says all about an envelope that a fixture's author would want to know.
fn outcome(envelope: &Envelope) -> String {
    let key = format!("{}.{}", envelope.key.bot, envelope.key.peer);
    match &envelope.event {
        Event::Ignored { kind, reason } => {
            let notice = envelope.notice.as_ref().map(|notice| format!("; {}", told(notice))).unwrap_or_default();
            format!("{key} ignored {kind}: {reason}{notice}")
        }
        Event::Agent { .. } => panic!("an agent's message"),
        Event::Message(message) => {
            let attachments = message.attachments.iter().map(|attachment| {
                let url = attachment.url.as_deref().map(|url| url.chars().take(40).collect::<String>());
                let parts = [attachment.name.as_deref(), attachment.file_id.as_deref(), url.as_deref()];
                format!(" +{}{:?}", attachment.kind, parts.into_iter().flatten().collect::<Vec<_>>())
            });
            let payload = message.payload.as_ref().map(|payload| format!(" ={payload:?}")).unwrap_or_default();
            let command = message.command.as_ref().map(|command| format!(" /{command}")).unwrap_or_default();
            let guest = message.guest_query_id.as_ref().map(|query| format!(" guest {query}")).unwrap_or_default();
            format!("{key} turn {:?}{payload}{}{command}{guest}", message.text, attachments.collect::<String>())
        }
    }
}

/// What an event tells of its chat.
fn told(notice: &Notice) -> String {
    match notice {
        Notice::Moved { from, to } => format!("moved from {from} to {to}"),
        Notice::Unreachable { reason } => format!("unreachable: {reason}"),
        Notice::Reachable => "reachable".to_owned(),
        Notice::Reaction { platform_message_id, sender, reactions } => {
            format!("{sender} feels {reactions:?} about {platform_message_id}")
        }
        Notice::Stop { .. } => "stop".to_owned(),
        Notice::Deleted { platform_message_ids } => format!("deleted {platform_message_ids:?}"),
        Notice::Arrived { .. } => "ours arrived".to_owned(),
        Notice::Said { text, attachments, .. } => format!("somebody said {text:?} +{}", attachments.len()),
        Notice::Taken => "taken".to_owned(),
        Notice::Returned => "returned".to_owned(),
    }
}

fn fixtures(folder: &str) -> Vec<(String, Vec<u8>)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(folder);
    let folders = [root.clone(), root.join("_schema_examples")];
    let mut files: Vec<PathBuf> =
        folders.iter().flat_map(|folder| fs::read_dir(folder).unwrap()).map(|file| file.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "json"));
    files.sort();
    let name = |file: &PathBuf| file.file_stem().unwrap().to_str().unwrap().to_owned();
    files
        .iter()
        .map(|file| (name(file), fs::read(file).unwrap()))
        .filter(|(name, _)| name != "signature_vector")
        .collect()
}

fn api_response(platform: &str, name: &str) -> Vec<u8> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(platform);
    fs::read(root.join("_api_responses").join(name)).unwrap()
}

type Outcomes = BTreeMap<String, Vec<String>>;

fn expected(platform: &str) -> Outcomes {
    let table = include_str!("../fixtures/outcomes.toml");
    toml::from_str::<BTreeMap<String, Outcomes>>(table).unwrap().remove(platform).unwrap()
}

fn check_outcomes(platform: &str, actual: &Outcomes) {
    let expected = expected(platform);
    let differ = |name: &&String| expected.get(*name) != actual.get(*name);
    let names = expected.keys().chain(actual.keys().filter(|name| !expected.contains_key(*name)));
    let report: Vec<String> = names
        .filter(differ)
        .map(|name| format!("{name:?}\n  expected {:?}\n  actual   {:?}", expected.get(name), actual.get(name)))
        .collect();
    assert!(report.is_empty(), "{}", report.join("\n"));
}

#[test]
fn every_telegram_fixture_has_its_outcome() {
    let actual = fixtures("telegram")
        .into_iter()
        .map(|(name, body)| {
            let envelope = receive_telegram(&body).unwrap();
            let update: Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(envelope.dedupe_id, format!("telegram:demo:{}", update["update_id"]));
            let raw: Value = serde_json::from_str(envelope.raw.as_ref().unwrap().get()).unwrap();
            assert_eq!(raw, update, "{name}");
            (name, vec![outcome(&envelope)])
        })
        .collect();
    check_outcomes("telegram", &actual);
}

/// What makes turns only where the configuration says so.
#[test]
fn channels_and_business_accounts_have_their_outcomes() {
    let is_chosen = |name: &str| {
        ["channel_post", "business_", "edited_business", "deleted_business"].iter().any(|kind| name.starts_with(kind))
    };
    let actual = fixtures("telegram")
        .into_iter()
        .filter(|(name, _)| is_chosen(name))
        .map(|(name, body)| {
            let settings = TelegramBot { channel_posts: true, business: true, ..telegram_bot() };
            (name, vec![outcome(&receive_telegram_as(&settings, &body).unwrap())])
        })
        .collect();
    check_outcomes("telegram_by_choice", &actual);
}

#[test]
fn every_messenger_fixture_has_its_outcome() {
    let actual = fixtures("messenger")
        .into_iter()
        .map(|(name, body)| {
            let value: Value = serde_json::from_slice(&body).unwrap();
            let page = &value["entry"][0]["id"];
            let page = page.as_str().map_or_else(|| page.to_string(), ToOwned::to_owned);
            (name, receive_messenger(&page, &body).unwrap().iter().map(outcome).collect())
        })
        .collect();
    check_outcomes("messenger", &actual);
}

#[test]
fn bodies_that_are_no_updates_are_malformed() {
    for body in
        ["", "hello", "[]", "7", "null", "{}", "{\"update_id\":\"1\"}", "{\"update_id\":1.5}", "{\"update_id\":1} x"]
    {
        assert!(matches!(receive_telegram(body.as_bytes()), Err(Refusal::Malformed { .. })), "{body}");
    }
    assert!(matches!(receive_telegram(b"{\"update_id\":1,\"key\":\"\xff\"}"), Err(Refusal::Malformed { .. })));
    for body in ["", "hello", "[]", "7", "null"] {
        assert!(matches!(receive_messenger("P1", body.as_bytes()), Err(Refusal::Malformed { .. })), "{body}");
    }
    let refusal = receive_telegram(b"{\"secret words\":").unwrap_err();
    assert!(!refusal.to_string().contains("secret words"), "{refusal}");
}

#[test]
fn deep_nesting_is_kept_or_refused_and_never_crashes() {
    let deep = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    for depth in [100, 127, 128, 200, 100_000] {
        let nested = deep(depth);
        let unknown = receive_telegram(format!(r#"{{"update_id":1,"new_kind":{nested}}}"#).as_bytes()).unwrap();
        assert_eq!(ignored_for(&unknown), "unknown kind");
        let rich = format!(
            r#"{{"update_id":1,"message":{{"message_id":1,"chat":{{"id":5}},"rich_message":{{"blocks":{nested}}}}}}}"#
        );
        assert_eq!(ignored_for(&receive_telegram(rich.as_bytes()).unwrap()), "service message");
        let page =
            format!(r#"{{"object":"page","entry":[{{"id":"P1","messaging":[{{"message":{nested}}},{nested}]}}]}}"#);
        assert_eq!(receive_messenger("P1", page.as_bytes()).unwrap().len(), 2);
    }
}
