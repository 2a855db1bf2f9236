// The web chat page: sends messages to /v1/chat and shows what comes back.
//
// Refuses to put anything it received into the page as HTML: text only. Invariants: messages are accepted by the server in
// the order they were typed, each under one Idempotency-Key for its whole life (retries and reloads included), so that none
// is lost, doubled or overtaken; and replies are shown in the order of their messages.
"use strict";

const BOT = document.querySelector('meta[name="turnwise-bot"]').content;
// Events that have not begun by then are held back by something on the way; then the outcome is asked for instead.
const EVENTS_BEGIN_MS = 5000;
// Connections for the events of one turn that may fail before that.
const EVENTS_FAILURES = 3;
// A failed request is tried this often, after these pauses; then the person is asked.
const BACKOFF_MS = [500, 1000, 2000, 4000];
// Pauses between questions for a turn whose events cannot be had; the last one repeats.
const POLL_MS = [150, 300, 600, 1000];
// Beyond any turn's timeout times its attempts: then the person is asked whether to go on looking.
const GIVE_UP_MS = 15 * 60 * 1000;
const HISTORY_LIMIT = 50;

const element = (id) => document.getElementById(id);
const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

// ---- What survives a reload -----------------------------------------------------------------------------------------

const memory = new Map();
const storage = {
  name: (key) => `turnwise.${BOT}.${key}`,
  // A browser that forbids storage still gets a chat, for as long as the page is open.
  get(key) {
    try { return localStorage.getItem(this.name(key)); } catch { return memory.get(key) ?? null; }
  },
  set(key, value) {
    try {
      if (value === null) localStorage.removeItem(this.name(key));
      else localStorage.setItem(this.name(key), value);
    } catch { memory.set(key, value); }
  },
};

function uuid() {
  // randomUUID exists on https and localhost only.
  if (crypto.randomUUID) return crypto.randomUUID();
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, "$1-$2-$3-$4-$5");
}

function deviceId() {
  let id = storage.get("device");
  if (!id) storage.set("device", id = uuid());
  return id;
}

function storedUnanswered() {
  try { return JSON.parse(storage.get("unanswered") ?? "[]"); } catch { return []; }
}

// ---- The conversation at hand ---------------------------------------------------------------------------------------

// One per conversation; "New conversation" makes another, and results that still arrive for the old one are dropped.
function newSession() {
  return {
    items: [], shown: new Set(), problem: null, accepted: Promise.resolve(), answered: Promise.resolve(),
    // Of the turn that is watched: the line of its answer so far, and what ends its connection.
    draft: null, connection: null,
  };
}
let session = newSession();

// One message on its way. `key` and `body` never change once it was first sent.
function newItem(text, key = uuid(), body = null) {
  return { text, key, body, state: "sending", accepted: false, restored: false, bubble: null };
}

function remember() {
  const kept = session.items.map(({ text, key, body }) => ({ text, key, body }));
  storage.set("unanswered", kept.length ? JSON.stringify(kept) : null);
}

function submit(item) {
  const here = session;
  here.items.push(item);
  remember();
  const accepted = here.accepted.then(() => accept(item, here));
  here.accepted = accepted.catch(() => {});
  // A refusal is told at once; an answer waits for the answers to earlier messages.
  const taken = accepted.catch((error) => { fail(item, error, here); });
  here.answered = here.answered.then(async () => {
    const turn = await taken;
    if (!turn) return;
    try {
      finish(item, await follow(turn, here), here);
    } catch (error) {
      fail(item, error, here);
    }
  });
}

// Resolves once the server has the message: with its turn, which may already be answered.
async function accept(item, here) {
  item.body ??= JSON.stringify({
    bot: BOT,
    device_id: deviceId(),
    conversation_id: storage.get("conversation") ?? undefined,
    message: item.text,
  });
  if (here === session) remember();
  let turn;
  try {
    turn = await post(item);
  } catch (error) {
    // The conversation is gone: the message opens another, as a new request.
    if (error.status !== 404 || !JSON.parse(item.body).conversation_id) throw error;
    storage.set("conversation", null);
    Object.assign(item, { key: uuid(), body: null });
    return accept(item, here);
  }
  if (here === session) {
    if (turn.conversation_id) storage.set("conversation", turn.conversation_id);
    item.accepted = true;
    if (turn.status === "queued") setState(item, "waiting");
  }
  return turn;
}

// The answer is watched for apart, one message at a time: browsers open six connections to a server and no more, so a
// request that stays open for its answer would hold up the messages after it.
function post(item) {
  const headers = { "Content-Type": "application/json", "Idempotency-Key": item.key, Prefer: "respond-async" };
  return retrying(() => request("/v1/chat", { method: "POST", headers, body: item.body }));
}

// Shows what the turn makes while it runs; resolves with how it ended.
async function follow(turn, here) {
  // The same path on this page's own origin, whatever name the server knows itself by.
  const { pathname } = new URL(turn.url ?? `/v1/turns/${turn.turn_id}`, location.href);
  const progress = { lastEventId: null };
  try {
    for (let failures = 0; turn.status === "queued" && here === session && failures < EVENTS_FAILURES;) {
      const before = progress.lastEventId;
      const ended = await watch(`${pathname}/events`, progress, here).catch(() => null);
      if (ended) return ended;
      // A connection that brought something has a right to end.
      failures = progress.lastEventId === before ? failures + 1 : 0;
      await pause(BACKOFF_MS[failures]);
    }
  } finally {
    erase(here);
  }
  return turn.status === "queued" ? poll(pathname, turn, here) : turn;
}

// One connection. Null when it ended before the turn did.
async function watch(path, progress, here) {
  const abort = new AbortController();
  const late = setTimeout(() => abort.abort(), EVENTS_BEGIN_MS);
  here.connection = abort;
  try {
    for await (const { event, id, data } of eventsOf(path, progress.lastEventId, abort.signal)) {
      clearTimeout(late);
      if (here !== session) return null;
      progress.lastEventId = id;
      if (event === "delta") draw(data, here);
      if (event === "tool") drawTool(data, here);
      if (event === "reply") return data;
      if (event === "error") return { ...data, status: data.turn_status };
    }
    return null;
  } finally {
    clearTimeout(late);
    abort.abort();
  }
}

async function poll(path, turn, here) {
  const started = Date.now();
  for (let round = 0; here === session; round += 1) {
    await pause(POLL_MS[Math.min(round, POLL_MS.length - 1)]);
    const now = await retrying(() => request(path));
    if (now.status !== "queued") return now;
    if (Date.now() - started > GIVE_UP_MS) throw Object.assign(new Error("There is no answer yet."), { transient: true });
  }
  return turn;
}

// ---- HTTP -----------------------------------------------------------------------------------------------------------

async function request(path, options) {
  let response;
  try {
    response = await fetch(path, { cache: "no-store", ...options });
  } catch (error) {
    throw Object.assign(new Error("The server cannot be reached.", { cause: error }), { transient: true });
  }
  const body = await response.json().catch(() => null);
  if (response.ok && body) return body;
  // RFC 9457: `detail` is meant for people.
  const error = new Error(body?.detail || body?.title || `The server answered ${response.status}.`);
  error.status = response.status;
  error.transient = response.status >= 500 || response.status === 429 || response.status === 408 || response.ok;
  error.retryAfterMs = 1000 * (Number(response.headers.get("Retry-After")) || 0);
  throw error;
}

// The events of a stream, each with its name, id and data. An EventSource would do, but for what it hides: status and end.
async function* eventsOf(path, lastEventId, signal) {
  const headers = { Accept: "text/event-stream" };
  if (lastEventId) headers["Last-Event-ID"] = lastEventId;
  const response = await fetch(path, { cache: "no-store", headers, signal });
  if (!response.ok || !response.headers.get("Content-Type")?.startsWith("text/event-stream")) {
    throw new Error("There are no events.");
  }
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const blocks = (text + value).split("\n\n");
    text = blocks.pop();
    for (const block of blocks) {
      const field = (name) => block.split("\n").find((line) => line.startsWith(`${name}: `))?.slice(name.length + 2);
      if (field("data")) yield { event: field("event"), id: field("id"), data: JSON.parse(field("data")) };
    }
  }
}

async function retrying(attempt) {
  for (const wait of BACKOFF_MS) {
    try {
      return await attempt();
    } catch (error) {
      if (!error.transient) throw error;
      await pause(Math.max(wait, Math.min(error.retryAfterMs ?? 0, 30000)));
    }
  }
  return attempt();
}

// ---- What is seen ---------------------------------------------------------------------------------------------------

const NOTICES = {
  handed_off: "A person will answer here.",
  dead_lettered: "This message could not be answered.",
  rejected: "This message was not taken.",
  ignored: "This message needs no answer.",
};

function finish(item, turn, here) {
  if (here !== session) return;
  settle(item);
  const replies = turn.replies ?? (turn.reply ? [turn.reply] : []);
  // After a reload the history may already hold this turn.
  const known = replies.length > 0 ? replies.every((reply) => here.shown.has(reply.id)) : turn.status in STORED;
  if (item.restored && known) item.bubble.remove();
  else setState(item, "done");
  replies.forEach((reply) => show(reply));
  if (replies.length === 0 && NOTICES[turn.status]) notice(NOTICES[turn.status]);
  refresh();
}

function fail(item, error, here) {
  if (here !== session) return;
  here.problem = error.message;
  // What the server refused for good would be refused again.
  if (!error.transient) settle(item);
  setState(item, "failed");
}

// Ends without a reply whose message is in the history all the same.
const STORED = { handed_off: true, merged: true, superseded: true };

// Takes a message off the list of those that wait for something.
function settle(item) {
  session.items = session.items.filter((other) => other !== item);
  remember();
}

function retryFailed() {
  const failed = session.items.filter((item) => item.state === "failed");
  session.items = session.items.filter((item) => item.state !== "failed");
  session.problem = null;
  for (const item of failed) {
    submit(item);
    setState(item, "sending");
  }
}

// What is being said and may still change; the reply takes its place.
function draw({ text, reset }, here) {
  if (!here.draft) {
    here.draft = newLine("assistant", "", null);
    here.draft.classList.add("draft");
    // Read out once it is final.
    here.draft.setAttribute("aria-hidden", "true");
    append(here.draft);
  }
  const bubble = here.draft.querySelector(".bubble");
  keepingEnd(() => { bubble.textContent = (reset ? "" : bubble.textContent) + text; });
  here.draft.hidden = bubble.textContent === "";
  refresh();
}

function drawTool({ name, state }, here) {
  draw({ text: "" }, here);
  const meta = here.draft.querySelector(".meta");
  meta.textContent = state === "started" ? `${name}…` : "";
  meta.hidden = meta.textContent === "";
  here.draft.hidden = meta.hidden && here.draft.querySelector(".bubble").textContent === "";
}

function erase(here) {
  here.draft?.remove();
  here.draft = null;
}

// The line of a stored message; null when it is already in the page, or not said to anybody (tools).
function lineOf({ id, role, author, content }) {
  if (session.shown.has(id) || (role !== "user" && role !== "assistant")) return null;
  session.shown.add(id);
  return newLine(role, content, author === "agent" ? "Agent" : null);
}

function show(message) {
  const line = lineOf(message);
  if (line) append(line);
}

function notice(text) {
  const line = document.createElement("li");
  line.className = "notice";
  line.textContent = text;
  append(line);
}

function newLine(role, content, label) {
  const line = document.createElement("li");
  const speaker = document.createElement("span");
  const bubble = document.createElement("p");
  const meta = document.createElement("p");
  line.className = role;
  speaker.className = "visually-hidden";
  speaker.textContent = role === "user" ? "You:" : `${label ?? BOT}:`;
  bubble.className = "bubble";
  bubble.textContent = content;
  meta.className = "meta";
  meta.textContent = label ?? "";
  meta.hidden = !label;
  line.append(speaker, bubble, meta);
  return line;
}

function append(line) {
  keepingEnd(() => element("log").append(line), line.classList.contains("user"));
  refresh();
}

// Keeps the end in view through a change; but somebody who has scrolled up to read is left there.
function keepingEnd(change, always = false) {
  const scroller = element("scroller");
  const follow = always || scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 60;
  change();
  if (follow) scroller.scrollTop = scroller.scrollHeight;
}

function setState(item, state) {
  item.state = state;
  const meta = item.bubble.querySelector(".meta");
  item.bubble.classList.toggle("sending", state === "sending");
  item.bubble.classList.toggle("failed", state === "failed");
  item.bubble.hidden = false;
  meta.textContent = { sending: "Sending…", failed: item.accepted ? "No answer" : "Not sent" }[state] ?? "";
  meta.hidden = meta.textContent === "";
  refresh();
}

// Everything that follows from the state as a whole.
function refresh() {
  keepingEnd(() => {
    const drawn = session.draft && !session.draft.hidden;
    element("typing").hidden = drawn || !session.items.some((item) => item.state === "waiting");
    element("retry").hidden = !session.items.some((item) => item.state === "failed");
    element("error").hidden = !session.problem;
    element("error-text").textContent = session.problem ?? "";
    element("welcome").hidden = element("log").childElementCount > 0;
  });
}

// ---- Beginning ------------------------------------------------------------------------------------------------------

async function loadHistory() {
  const conversation = storage.get("conversation");
  if (!conversation) return;
  const here = session;
  // Read out new messages only.
  element("log").setAttribute("aria-busy", "true");
  const query = new URLSearchParams({ device_id: deviceId(), limit: HISTORY_LIMIT });
  try {
    const page = await retrying(() => request(`/v1/conversations/${encodeURIComponent(conversation)}/messages?${query}`));
    if (here !== session) return;
    element("log").prepend(...page.messages.map(lineOf).filter(Boolean));
    refresh();
    element("scroller").scrollTop = element("scroller").scrollHeight;
  } catch (error) {
    if (error.status === 404) storage.set("conversation", null);
    else if (here === session) notice(`Earlier messages could not be loaded: ${error.message}`);
  } finally {
    element("log").removeAttribute("aria-busy");
  }
}

function begin(text) {
  const item = newItem(text);
  session.problem = session.items.some((other) => other.state === "failed") ? session.problem : null;
  item.bubble = newLine("user", text, null);
  append(item.bubble);
  setState(item, "sending");
  submit(item);
}

function startOver() {
  session.connection?.abort();
  session = newSession();
  storage.set("conversation", null);
  storage.set("unanswered", null);
  // A message without a conversation id goes on with the device's last conversation: a new one needs a new device.
  storage.set("device", null);
  element("log").replaceChildren();
  refresh();
  element("message").focus();
}

function wire() {
  const composer = element("composer");
  const message = element("message");
  composer.addEventListener("submit", (event) => {
    event.preventDefault();
    const text = message.value.trim();
    if (text === "") return;
    message.value = "";
    message.focus();
    begin(text);
  });
  message.addEventListener("keydown", (event) => {
    // Enter that ends an input method's composition is not meant for us.
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    composer.requestSubmit();
  });
  element("retry").addEventListener("click", retryFailed);
  element("new-conversation").addEventListener("click", startOver);
}

function start() {
  document.title = element("bot-name").textContent = BOT;
  wire();
  refresh();
  const here = session;
  // What was left unanswered goes first, but only once the history tells what of it is known; what is typed meanwhile follows.
  here.accepted = loadHistory();
  for (const { text, key, body } of storedUnanswered()) {
    const item = Object.assign(newItem(text, key, body), { restored: true });
    item.bubble = newLine("user", text, null);
    item.bubble.hidden = true;
    append(item.bubble);
    submit(item);
  }
  // A touch screen would open its keyboard.
  if (matchMedia("(hover: hover)").matches) element("message").focus();
}

start();
