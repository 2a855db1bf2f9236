// The server as the widget sees it: requests, events, and what survives a reload.
//
// Refuses to know what a message is. Invariant: nothing but the bot's server is ever asked for anything.

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
// What a person at the other end writes is asked for: this often; while one is expected, with a wait of so many seconds; and after
// so long, where it cannot be asked for.
const IDLE_MS = 15000;
const WAIT_S = 25;
const AGENT_MS = 3000;
const RECENT_LIMIT = 20;

// Inserted by the page itself, or by a page of any other site.
const script = document.currentScript;
const SERVER = new URL(".", script.src).href.replace(/\/$/, "");
const FOREIGN = new URL(SERVER).origin !== location.origin;

const BOT = script.dataset.bot;
const TITLE = script.dataset.title ?? BOT;

const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

// ---- What survives a reload -----------------------------------------------------------------------------------------

const memory = new Map();
const storage = {
  // A site may embed bots of several servers.
  name: (key) => (FOREIGN ? `turnwise.${SERVER}.${BOT}.${key}` : `turnwise.${BOT}.${key}`),
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

// ---- HTTP -----------------------------------------------------------------------------------------------------------

async function request(path, options) {
  let response;
  try {
    response = await fetch(SERVER + path, { cache: "no-store", credentials: "omit", ...options });
  } catch (error) {
    throw await unreachable(error);
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

// A browser does not tell a page that it was refused from a server that is not there. But a question whose answer the page may
// not read is answered in the one case and not in the other.
async function unreachable(cause) {
  const there = FOREIGN && await fetch(`${SERVER}/healthz`, { mode: "no-cors", cache: "no-store" }).then(() => true, () => false);
  if (!there) return Object.assign(new Error("The server cannot be reached.", { cause }), { transient: true });
  return new Error(`Pages of ${location.origin} may not talk to this bot: its setting "origins" does not list them.`, { cause });
}

// The events of a stream, each with its name, id and data. An EventSource would do, but for what it hides: status and end.
async function* eventsOf(path, lastEventId, signal) {
  const headers = { Accept: "text/event-stream" };
  if (lastEventId) headers["Last-Event-ID"] = lastEventId;
  const response = await fetch(SERVER + path, { cache: "no-store", credentials: "omit", headers, signal });
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
