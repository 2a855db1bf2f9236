//! A stand-in for Telegram, both directions: the Bot API that a bot calls, and the webhook sender that calls the bot.
//!
//! Inbound it keeps Telegram's rules as the published Bot API server has them: one queue per chat, strictly one after
//! another, chats side by side, the same update again until the answer is 2xx; only the pauses are scaled from seconds to
//! milliseconds. Or it keeps the updates until they are fetched, one program at a time. Refuses to know Turnwise. Invariant: a message is in [`Log::delivered`] exactly when a user would see it.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use futures_util::{StreamExt as _, stream};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::http_client;

pub(crate) const TOKEN: &str = "424242:stand-in-token";
pub(crate) const SECRET: &str = "stand-in-secret";

/// Pauses between two tries of one update: Telegram's 2 s to 120 s, a thousandth of it.
const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(120);

/// What the next `sendMessage` to a chat gets instead of an answer.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Fault {
    /// 429 with `retry_after` in seconds; not delivered.
    TooManyRequests { retry_after: u64 },
    /// 403, the user has blocked the bot; not delivered.
    Forbidden,
    /// 400 with a reason that repeats the address called; not delivered.
    Repeats,
    /// 400 because of the formatting; not delivered.
    Unparsed,
    /// 500 with Telegram's JSON; not delivered.
    ServerError,
    /// 502 with a proxy's HTML; delivered, which the caller cannot know.
    BadGateway,
    /// The answer breaks off; delivered, which the caller cannot know.
    Cut,
    /// No answer, ever; not delivered.
    Hang,
}

/// What Telegram's rate limits may be; the published ones take minutes to be reached.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RateLimits {
    /// So many messages of the bot in a window.
    pub(crate) bot: (usize, Duration),
    /// Messages to a private chat: so many at once, and the pace after that.
    pub(crate) chat: (u32, Duration),
    /// So many messages to a group in a window.
    pub(crate) group: (usize, Duration),
}

/// One call of `sendMessage`.
#[derive(Debug, Clone)]
pub(crate) struct Sent {
    pub(crate) chat: i64,
    pub(crate) text: String,
    pub(crate) at: Instant,
    /// The whole request.
    pub(crate) request: Value,
}

/// What has been asked of the Bot API so far, in order of arrival.
#[derive(Debug, Default)]
pub(crate) struct Log {
    /// Every call of `sendMessage`, also those that got a fault.
    pub(crate) attempts: Vec<Sent>,
    /// What users see.
    pub(crate) delivered: Vec<Sent>,
    /// Those that came too fast for the rate limits.
    pub(crate) limited: Vec<Sent>,
    /// Updates that `getUpdates` gave, those included that it gave again.
    pub(crate) fetched: usize,
    /// How often it was refused because of a webhook or another call.
    pub(crate) conflicts: usize,
    /// Every call of `deleteWebhook`.
    pub(crate) deletions: usize,
    /// Every call of `sendChatAction`; the text is the action.
    pub(crate) actions: Vec<Sent>,
    /// Every call of `sendMessageDraft`, also those that got a fault.
    pub(crate) drafts: Vec<Sent>,
    /// The draft that each chat sees: its id and text. It ends with the bot's next message; that it ends after 30 s is left out.
    pub(crate) standing: BTreeMap<i64, (i64, String)>,
    /// The ids of the callback queries that were answered.
    pub(crate) acknowledged: Vec<String>,
    /// Chat and id of the messages whose buttons were taken away.
    pub(crate) unbuttoned: Vec<(i64, i64)>,
    /// Every call of `answerGuestQuery`.
    pub(crate) guests: Vec<Value>,
    /// The buttons under delivered messages: chat, id of the message, label and data of each.
    pub(crate) buttons: Vec<Buttons>,
}

/// The buttons under a message.
#[derive(Debug, Clone)]
pub(crate) struct Buttons {
    pub(crate) chat: i64,
    pub(crate) message_id: i64,
    /// Label and data of each.
    pub(crate) buttons: Vec<(String, String)>,
}

impl Log {
    /// The texts that a chat sees, in order.
    pub(crate) fn texts(&self, chat: i64) -> Vec<String> {
        self.delivered.iter().filter(|sent| sent.chat == chat).map(|sent| sent.text.clone()).collect()
    }

    /// The same for every chat.
    pub(crate) fn texts_by_chat(&self) -> BTreeMap<i64, Vec<String>> {
        let mut chats: BTreeMap<i64, Vec<String>> = BTreeMap::new();
        for sent in &self.delivered {
            chats.entry(sent.chat).or_default().push(sent.text.clone());
        }
        chats
    }
}

pub(crate) struct Telegram {
    api: Arc<Api>,
    address: SocketAddr,
    inbound: Arc<Inbound>,
    queues: Mutex<HashMap<i64, mpsc::UnboundedSender<Value>>>,
    next_update: AtomicI64,
    /// The Bot API server and the senders of all chats; they end with the stand-in.
    tasks: Mutex<JoinSet<()>>,
}

struct Api {
    log: watch::Sender<Log>,
    faults: Mutex<HashMap<i64, VecDeque<Fault>>>,
    /// Of drafts.
    draft_faults: Mutex<HashMap<i64, VecDeque<Fault>>>,
    rate_limits: Mutex<Option<RateLimits>>,
    /// The token is void.
    revoked: AtomicBool,
    kept: watch::Sender<Kept>,
    /// Groups that became supergroups.
    moved: Mutex<HashMap<i64, i64>>,
    /// Chats that take nothing of the bot, and what is said then.
    closed: Mutex<HashMap<i64, &'static str>>,
    /// What the bot's menu was made to offer, each time.
    menus: watch::Sender<Vec<Value>>,
}

/// What `getUpdates` fetches.
#[derive(Debug, Default)]
struct Kept {
    updates: VecDeque<Value>,
    webhook: String,
    /// Counts the calls: an earlier one ends when another comes.
    calls: usize,
}

impl RateLimits {
    /// Whether a message to `chat` may be delivered at `now`, after what the log says was.
    fn allow(&self, delivered: &[Sent], chat: i64, now: Instant) -> bool {
        let since = |moment: Instant| now.duration_since(moment);
        let (messages, window) = self.bot;
        if delivered.iter().rev().take_while(|sent| since(sent.at) < window).count() >= messages {
            return false;
        }
        let to_chat = || delivered.iter().filter(|sent| sent.chat == chat);
        if chat < 0 {
            let (messages, window) = self.group;
            return to_chat().filter(|sent| since(sent.at) < window).count() < messages;
        }
        let (burst, interval) = self.chat;
        let expected = to_chat().map(|sent| sent.at).reduce(|expected, at| (expected + interval).max(at));
        expected.is_none_or(|expected| now + interval * (burst - 1) >= expected + interval)
    }
}

struct Inbound {
    client: reqwest::Client,
    webhook: String,
    /// Updates handed over, and updates that the webhook took.
    progress: watch::Sender<(usize, usize)>,
}

impl Telegram {
    /// `webhook` is where the bot listens: `http://127.0.0.1:PORT/webhooks/telegram/BOT`.
    pub(crate) async fn start(webhook: String) -> Self {
        let api = Arc::new(Api {
            log: watch::Sender::default(),
            faults: Mutex::default(),
            draft_faults: Mutex::default(),
            rate_limits: Mutex::default(),
            revoked: AtomicBool::new(false),
            kept: watch::Sender::default(),
            moved: Mutex::default(),
            closed: Mutex::default(),
            menus: watch::Sender::default(),
        });
        let router = axum::Router::new()
            .route("/{bot}/{method}", axum::routing::any(call))
            .route("/file/{bot}/files/{name}", axum::routing::get(download))
            .with_state(Arc::clone(&api));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self {
            api,
            address,
            inbound: Arc::new(Inbound { client: http_client(), webhook, progress: watch::Sender::default() }),
            queues: Mutex::default(),
            next_update: AtomicI64::new(1_000),
            tasks: Mutex::new(tasks),
        }
    }

    /// For `api_base`.
    pub(crate) fn base_url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The next `sendMessage` to this chat gets `fault`; several queue up.
    pub(crate) fn fail_next(&self, chat: i64, fault: Fault) {
        self.api.faults.lock().unwrap().entry(chat).or_default().push_back(fault);
    }

    /// The same for the next `sendMessageDraft`.
    pub(crate) fn fail_next_draft(&self, chat: i64, fault: Fault) {
        self.api.draft_faults.lock().unwrap().entry(chat).or_default().push_back(fault);
    }

    /// From now on, whoever sends faster gets 429.
    pub(crate) fn limit(&self, limits: RateLimits) {
        *self.api.rate_limits.lock().unwrap() = Some(limits);
    }

    /// A text message of a private chat, as Telegram would write it; of a group, when the chat's id is negative, where it
    /// replies to the bot.
    pub(crate) fn update(&self, chat: i64, text: &str) -> Value {
        let update_id = self.next_update.fetch_add(1, Ordering::Relaxed);
        let person = json!({ "id": chat.abs(), "is_bot": false, "first_name": "Ann", "language_code": "en" });
        let is_group = chat < 0;
        let chat = if is_group {
            json!({ "id": chat, "type": "supergroup", "title": "Ann's" })
        } else {
            json!({ "id": chat, "type": "private", "first_name": "Ann" })
        };
        let date = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        let mut message =
            json!({ "message_id": update_id - 900, "date": date, "chat": chat, "from": person, "text": text });
        if is_group {
            let bot = json!({ "id": 424_242, "is_bot": true, "first_name": "Ann" });
            message["reply_to_message"] =
                json!({ "message_id": 1, "date": date, "chat": chat, "from": bot, "text": "?" });
        }
        json!({ "update_id": update_id, "message": message })
    }

    /// Hands a text message to the chat's queue, which delivers it sooner or later, and returns the update.
    pub(crate) fn send(&self, chat: i64, text: &str) -> Value {
        let update = self.update(chat, text);
        self.hand_over(chat, update.clone());
        update
    }

    /// Hands an update of this kind to the queue, which is the chat's for messages.
    pub(crate) fn happen(&self, queue: i64, kind: &str, content: &Value) {
        let update_id = self.next_update.fetch_add(1, Ordering::Relaxed);
        self.hand_over(queue, json!({ "update_id": update_id, kind: content }));
    }

    /// From now on the group is a supergroup with this id: who writes to the old one hears where it is.
    pub(crate) fn migrate(&self, from: i64, to: i64) {
        self.api.moved.lock().unwrap().insert(from, to);
    }

    /// The service message in the old group that tells of the move.
    pub(crate) fn tell_old(&self, from: i64, to: i64) {
        let chat = json!({ "id": from, "type": "group", "title": "Ann's" });
        self.happen(from, "message", &json!({ "message_id": 1, "date": 1, "chat": chat, "migrate_to_chat_id": to }));
    }

    /// The service message in the new supergroup that tells of the move: its first.
    pub(crate) fn tell_new(&self, from: i64, to: i64) {
        let chat = json!({ "id": to, "type": "supergroup", "title": "Ann's" });
        self.happen(to, "message", &json!({ "message_id": 1, "date": 1, "chat": chat, "migrate_from_chat_id": from }));
    }

    /// From now on the chat takes nothing of the bot, with this description; or everything again.
    pub(crate) fn close(&self, chat: i64, description: Option<&'static str>) {
        let mut closed = self.api.closed.lock().unwrap();
        match description {
            Some(description) => closed.insert(chat, description),
            None => closed.remove(&chat),
        };
    }

    /// Makes the bot's token void, or valid again.
    pub(crate) fn revoke(&self, revoked: bool) {
        self.api.revoked.store(revoked, Ordering::Relaxed);
    }

    /// Every list of commands that `setMyCommands` was given.
    pub(crate) fn menus(&self) -> Vec<Value> {
        self.api.menus.borrow().clone()
    }

    fn hand_over(&self, chat: i64, update: Value) {
        self.inbound.progress.send_modify(|(sent, _)| *sent += 1);
        let mut queues = self.queues.lock().unwrap();
        let queue = queues.entry(chat).or_insert_with(|| {
            let (queue, updates) = mpsc::unbounded_channel();
            self.tasks.lock().unwrap().spawn(deliver_in_order(Arc::clone(&self.inbound), updates));
            queue
        });
        queue.send(update).unwrap();
    }

    /// Somebody presses the button with this label under a message; gives the id of the callback query.
    pub(crate) fn press(&self, person: i64, under: &Buttons, label: &str) -> String {
        let update_id = self.next_update.fetch_add(1, Ordering::Relaxed);
        let (label, data) = under.buttons.iter().find(|(known, _)| known == label).expect("a button of this label");
        let keyboard = json!([[{ "text": label, "callback_data": data }]]);
        let message = json!({
            "message_id": under.message_id,
            "date": 1_800_000_000,
            "chat": { "id": under.chat, "type": if under.chat < 0 { "supergroup" } else { "private" } },
            "reply_markup": { "inline_keyboard": keyboard },
        });
        let from = json!({ "id": person, "is_bot": false, "first_name": "Ann" });
        let id = format!("press-{update_id}");
        let query = json!({ "id": id, "from": from, "message": message, "chat_instance": "1", "data": data });
        self.hand_over(under.chat, json!({ "update_id": update_id, "callback_query": query }));
        id
    }

    /// Keeps a text message of a chat until it is fetched.
    pub(crate) fn keep(&self, chat: i64, text: &str) {
        let update = self.update(chat, text);
        self.api.kept.send_modify(|kept| kept.updates.push_back(update));
    }

    /// Updates that are not confirmed yet.
    pub(crate) fn kept(&self) -> usize {
        self.api.kept.borrow().updates.len()
    }

    /// Sets a webhook, as another program would; nothing is sent there.
    pub(crate) fn set_webhook(&self, url: &str) {
        self.api.kept.send_modify(|kept| url.clone_into(&mut kept.webhook));
    }

    /// One try of one update, around the queues.
    pub(crate) async fn post(&self, update: &Value) -> Option<StatusCode> {
        self.inbound.post(update).await
    }

    /// Posts more messages that nobody answers, each of a chat of its own, than a consumer of the stream is given at once: what
    /// was sent before comes apart from what is sent after.
    pub(crate) async fn post_gap(&self) {
        const CHATS: std::ops::Range<i64> = 100_000..100_300;
        let posts = CHATS.map(|chat| {
            let mut update = self.update(chat, "");
            update["message"].as_object_mut().unwrap().remove("text");
            async move { assert_eq!(self.post(&update).await, Some(StatusCode::OK)) }
        });
        stream::iter(posts).buffer_unordered(16).collect::<()>().await;
    }

    /// Returns when the webhook has taken every update handed over so far.
    pub(crate) async fn all_taken(&self, limit: Duration) {
        let mut progress = self.inbound.progress.subscribe();
        let all = tokio::time::timeout(limit, progress.wait_for(|(sent, taken)| sent == taken)).await.is_ok();
        let (sent, taken) = *self.inbound.progress.borrow();
        assert!(all, "after {limit:?} the webhook has taken {taken} of {sent} updates");
    }

    /// Looks at the log.
    pub(crate) fn log<T>(&self, look: impl FnOnce(&Log) -> T) -> T {
        look(&self.api.log.borrow())
    }

    /// Returns when the log fulfils `condition`, looked at after each call of the Bot API.
    pub(crate) async fn wait(&self, what: &str, limit: Duration, condition: impl FnMut(&Log) -> bool) {
        let mut log = self.api.log.subscribe();
        let found = tokio::time::timeout(limit, log.wait_for(condition)).await.is_ok();
        self.log(|log| {
            assert!(
                found,
                "waited {limit:?} in vain for {what}: {} messages delivered in {} attempts, the last {:?}",
                log.delivered.len(),
                log.attempts.len(),
                log.attempts.last()
            );
        });
    }

    /// Returns when the chat sees at least these many messages; gives all that it sees.
    pub(crate) async fn wait_for_texts(&self, chat: i64, count: usize, limit: Duration) -> Vec<String> {
        self.wait(&format!("{count} messages in chat {chat}"), limit, |log| log.texts(chat).len() >= count).await;
        self.log(|log| log.texts(chat))
    }
}

impl Inbound {
    /// `None` when there was no answer at all.
    async fn post(&self, update: &Value) -> Option<StatusCode> {
        let request = self.client.post(&self.webhook).header("X-Telegram-Bot-Api-Secret-Token", SECRET).json(update);
        Some(request.send().await.ok()?.status())
    }
}

async fn deliver_in_order(inbound: Arc<Inbound>, mut updates: mpsc::UnboundedReceiver<Value>) {
    while let Some(update) = updates.recv().await {
        let mut pause = FIRST_PAUSE;
        while !inbound.post(&update).await.is_some_and(|status| status.is_success()) {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        inbound.progress.send_modify(|(_, taken)| *taken += 1);
    }
}

async fn call(State(api): State<Arc<Api>>, Path((bot, method)): Path<(String, String)>, body: String) -> Response {
    if bot.strip_prefix("bot") != Some(TOKEN) || api.revoked.load(Ordering::Relaxed) {
        return error(StatusCode::UNAUTHORIZED, "Unauthorized", None);
    }
    match method.as_str() {
        "sendMessage" => send_message(&api, &body).await,
        "sendMessageDraft" => send_draft(&api, &body).await,
        "sendChatAction" => send_chat_action(&api, &body),
        "answerCallbackQuery" => {
            let request: Value = serde_json::from_str(&body).unwrap_or_default();
            let id = request["callback_query_id"].as_str().unwrap_or_default().to_owned();
            api.log.send_modify(|log| log.acknowledged.push(id));
            result(&json!(true))
        }
        "editMessageReplyMarkup" => {
            let request: Value = serde_json::from_str(&body).unwrap_or_default();
            let place = (request["chat_id"].as_i64().unwrap(), request["message_id"].as_i64().unwrap());
            assert!(request["reply_markup"].is_null(), "all buttons are taken away");
            api.log.send_modify(|log| log.unbuttoned.push(place));
            result(&json!({ "message_id": place.1, "chat": { "id": place.0 } }))
        }
        "getMe" => result(&json!({ "id": 424_242, "is_bot": true, "first_name": "Ann", "username": "stand_in_bot" })),
        "getUpdates" => get_updates(&api, &body).await,
        "getWebhookInfo" => {
            let kept = api.kept.borrow();
            let pending = kept.updates.len();
            result(&json!({ "url": kept.webhook, "has_custom_certificate": false, "pending_update_count": pending }))
        }
        "answerGuestQuery" => {
            let request: Value = serde_json::from_str(&body).unwrap_or_default();
            api.log.send_modify(|log| log.guests.push(request));
            result(&json!({ "inline_message_id": "inline-1" }))
        }
        "getFile" => get_file(&body),
        "setMyCommands" => {
            let request: Value = serde_json::from_str(&body).unwrap_or_default();
            api.menus.send_modify(|menus| menus.push(request["commands"].clone()));
            result(&json!(true))
        }
        "getMyCommands" => result(&api.menus.borrow().last().cloned().unwrap_or_else(|| json!([]))),
        "setWebhook" => result(&json!(true)),
        "deleteWebhook" => {
            api.log.send_modify(|log| log.deletions += 1);
            api.kept.send_modify(|kept| kept.webhook.clear());
            result(&json!(true))
        }
        _ => error(StatusCode::NOT_FOUND, "Not Found", None),
    }
}

async fn get_updates(api: &Api, body: &str) -> Response {
    let request: Value = serde_json::from_str(body).unwrap_or_default();
    let conflict = |description: &str| {
        api.log.send_modify(|log| log.conflicts += 1);
        error(StatusCode::CONFLICT, description, None)
    };
    let mut call = 0;
    api.kept.send_modify(|kept| {
        kept.calls += 1;
        call = kept.calls;
        if let Some(offset) = request["offset"].as_i64().filter(|_| kept.webhook.is_empty()) {
            kept.updates.retain(|update| update["update_id"].as_i64() >= Some(offset));
        }
    });
    let has_news = |kept: &Kept| kept.calls > call || !kept.webhook.is_empty() || !kept.updates.is_empty();
    let limit = Duration::from_secs(request["timeout"].as_u64().unwrap_or(0));
    let mut news = api.kept.subscribe();
    // Without news in time, the answer is an empty batch.
    let _in_time = tokio::time::timeout(limit, news.wait_for(has_news)).await.is_ok();
    let kept = api.kept.borrow();
    if kept.calls > call {
        return conflict("Conflict: terminated by other getUpdates request");
    }
    if !kept.webhook.is_empty() {
        return conflict("Conflict: can't use getUpdates method while webhook is active");
    }
    let limit = usize::try_from(request["limit"].as_u64().unwrap_or(100)).unwrap();
    let batch: Vec<_> = kept.updates.iter().take(limit).collect();
    api.log.send_modify(|log| log.fetched += batch.len());
    result(&json!(batch))
}

/// Every id is a file's but `unknown`; that of `huge` is larger than a bot may have.
fn get_file(body: &str) -> Response {
    let request: Value = serde_json::from_str(body).unwrap_or_default();
    match request["file_id"].as_str().unwrap_or_default() {
        "unknown" | "" => {
            let description = "Bad Request: wrong file_id or the file is temporarily unavailable";
            error(StatusCode::BAD_REQUEST, description, None)
        }
        "huge" => error(StatusCode::BAD_REQUEST, "Bad Request: file is too big", None),
        "odd" => result(&json!({ "file_id": "odd", "file_path": "../bot/odd" })),
        id => result(&json!({ "file_id": id, "file_unique_id": id, "file_path": format!("files/{id}") })),
    }
}

/// The bytes behind a path that `getFile` gave.
async fn download(Path((bot, name)): Path<(String, String)>) -> Response {
    if bot.strip_prefix("bot") != Some(TOKEN) {
        return error(StatusCode::NOT_FOUND, "Not Found", None);
    }
    format!("the bytes of {name}").into_response()
}

fn send_chat_action(api: &Api, body: &str) -> Response {
    let request: Value = serde_json::from_str(body).unwrap_or_default();
    let (Some(chat), Some("typing")) = (request["chat_id"].as_i64(), request["action"].as_str()) else {
        return error(StatusCode::BAD_REQUEST, "Bad Request: wrong parameter action in request", None);
    };
    let action = Sent { chat, text: "typing".to_owned(), at: Instant::now(), request };
    api.log.send_modify(|log| log.actions.push(action));
    result(&json!(true))
}

/// For private chats alone, with a text that a message could have; the same id goes on with what is there.
async fn send_draft(api: &Api, body: &str) -> Response {
    let request: Value = serde_json::from_str(body).unwrap_or_default();
    let wrong = |description: &str| error(StatusCode::BAD_REQUEST, description, None);
    let (Some(chat), Some(text)) = (request["chat_id"].as_i64(), request["text"].as_str()) else {
        return wrong("Bad Request: chat_id or text is missing");
    };
    let Some(id) = request["draft_id"].as_i64().filter(|id| *id != 0) else {
        return wrong("Bad Request: DRAFT_ID_INVALID");
    };
    if text.encode_utf16().count() > 4096 {
        return wrong("Bad Request: message is too long");
    }
    if let Err(description) = check_entities(text, &request["entities"]) {
        return wrong(&description);
    }
    let fault = api.draft_faults.lock().unwrap().get_mut(&chat).and_then(VecDeque::pop_front);
    api.log.send_modify(|log| {
        log.drafts.push(Sent { chat, text: text.to_owned(), at: Instant::now(), request: request.clone() });
        if chat > 0 && fault.is_none() {
            log.standing.insert(chat, (id, text.to_owned()));
        }
    });
    match fault {
        _ if chat < 0 => wrong("Bad Request: TEXTDRAFT_PEER_INVALID"),
        None => result(&json!(true)),
        Some(fault) => answer_fault(fault).await,
    }
}

async fn send_message(api: &Api, body: &str) -> Response {
    let request: Value = serde_json::from_str(body).unwrap_or_default();
    let chat = &request["chat_id"];
    let chat = chat.as_i64().or_else(|| chat.as_str()?.parse().ok());
    let (Some(chat), Some(text)) = (chat, request["text"].as_str()) else {
        return error(StatusCode::BAD_REQUEST, "Bad Request: chat_id or text is missing", None);
    };
    // Emoji of the astral planes are taken as two, the stricter reading of the limit.
    if text.encode_utf16().count() > 4096 {
        return error(StatusCode::BAD_REQUEST, "Bad Request: message is too long", None);
    }
    if let Some(to) = api.moved.lock().unwrap().get(&chat) {
        return moved(*to);
    }
    if let Some(description) = api.closed.lock().unwrap().get(&chat) {
        let is_forbidden = description.starts_with("Forbidden");
        let status = if is_forbidden { StatusCode::FORBIDDEN } else { StatusCode::BAD_REQUEST };
        return error(status, description, None);
    }
    if let Err(description) = check_entities(text, &request["entities"]) {
        return error(StatusCode::BAD_REQUEST, &description, None);
    }
    let mut fault = api.faults.lock().unwrap().get_mut(&chat).and_then(VecDeque::pop_front);
    let limits = *api.rate_limits.lock().unwrap();
    let mut message_id = 0;
    api.log.send_modify(|log| {
        let sent = Sent { chat, text: text.to_owned(), at: Instant::now(), request: request.clone() };
        log.attempts.push(sent.clone());
        message_id = log.attempts.len();
        if limits.is_some_and(|limits| !limits.allow(&log.delivered, chat, sent.at)) {
            log.limited.push(sent);
            fault = Some(Fault::TooManyRequests { retry_after: 1 });
        } else if matches!(fault, None | Some(Fault::BadGateway | Fault::Cut)) {
            log.delivered.push(sent);
            log.standing.remove(&chat);
            let rows = request["reply_markup"]["inline_keyboard"].as_array().into_iter().flatten();
            let text = |button: &Value, key: &str| button[key].as_str().unwrap().to_owned();
            let buttons: Vec<_> = rows
                .flat_map(|row| row.as_array().unwrap())
                .map(|button| (text(button, "text"), text(button, "callback_data")))
                .collect();
            if !buttons.is_empty() {
                log.buttons.push(Buttons { chat, message_id: i64::try_from(message_id).unwrap(), buttons });
            }
        }
    });
    match fault {
        None => {
            result(&json!({ "message_id": message_id, "date": 1_800_000_000, "chat": { "id": chat }, "text": text }))
        }
        Some(fault) => answer_fault(fault).await,
    }
}

async fn answer_fault(fault: Fault) -> Response {
    match fault {
        Fault::TooManyRequests { retry_after } => {
            let description = format!("Too Many Requests: retry after {retry_after}");
            error(StatusCode::TOO_MANY_REQUESTS, &description, Some(retry_after))
        }
        Fault::Forbidden => error(StatusCode::FORBIDDEN, "Forbidden: bot was blocked by the user", None),
        Fault::Repeats => error(StatusCode::BAD_REQUEST, &format!("Bad Request: POST /bot{TOKEN}/sendMessage"), None),
        Fault::Unparsed => {
            let description = "Bad Request: can't parse entities: something is wrong with them";
            error(StatusCode::BAD_REQUEST, description, None)
        }
        Fault::ServerError => error(StatusCode::INTERNAL_SERVER_ERROR, "Internal Server Error", None),
        Fault::BadGateway => (StatusCode::BAD_GATEWAY, Html("<html>502 Bad Gateway</html>")).into_response(),
        Fault::Cut => {
            Body::from_stream(stream::iter([Ok("{\"ok\":true,"), Err(std::io::Error::other("cut"))])).into_response()
        }
        Fault::Hang => std::future::pending().await,
    }
}

/// Offsets and lengths in UTF-16 units, inside the text, between characters.
fn check_entities(text: &str, entities: &Value) -> Result<(), String> {
    let mut unit = 0;
    let mut places = vec![0];
    for character in text.chars() {
        unit += character.len_utf16() as u64;
        places.push(unit);
    }
    let wrong = |entity: &Value| format!("Bad Request: can't parse entities: {entity}");
    for entity in entities.as_array().into_iter().flatten() {
        let (offset, length) = (entity["offset"].as_u64(), entity["length"].as_u64());
        let (Some(offset), Some(length)) = (offset, length) else { return Err(wrong(entity)) };
        if length == 0 || !places.contains(&offset) || !places.contains(&(offset + length)) {
            return Err(wrong(entity));
        }
    }
    Ok(())
}

fn moved(to: i64) -> Response {
    let description = "Bad Request: group chat was upgraded to a supergroup chat";
    let parameters = json!({ "migrate_to_chat_id": to });
    let body = json!({ "ok": false, "error_code": 400, "description": description, "parameters": parameters });
    (StatusCode::BAD_REQUEST, Json(body)).into_response()
}

fn result(result: &Value) -> Response {
    Json(json!({ "ok": true, "result": result })).into_response()
}

fn error(status: StatusCode, description: &str, retry_after: Option<u64>) -> Response {
    let mut body = json!({ "ok": false, "error_code": status.as_u16(), "description": description });
    let Some(seconds) = retry_after else {
        return (status, Json(body)).into_response();
    };
    body["parameters"] = json!({ "retry_after": seconds });
    (status, [(header::RETRY_AFTER, seconds.to_string())], Json(body)).into_response()
}
