// The conversation: messages on their way, and what becomes of each.
//
// Invariants: messages are accepted by the server in the order they were typed, each under one Idempotency-Key for its whole life
// (retries and reloads included), so that none is lost, doubled or overtaken; and replies are shown in the order of their messages.

// One per conversation; "New conversation" makes another, and results that still arrive for the old one are dropped.
function newSession() {
  return {
    items: [], shown: new Set(), problem: null, accepted: Promise.resolve(), answered: Promise.resolve(),
    // Of the turn that is watched: the line of its answer so far, and what ends its connection.
    draft: null, connection: null,
    // A person answers here.
    human: false,
    // The last message that was fetched, and what ends the waiting for the next.
    seen: 0, waiting: null,
  };
}
let session = newSession();

// One message on its way, perhaps a press of a button, which says more than its label. `key` and `body` never change once it was
// first sent.
function newItem(text, { confirm = null, payload = null } = {}, key = uuid(), body = null) {
  return { text, confirm, payload, key, body, state: "sending", accepted: false, restored: false, bubble: null };
}

function remember() {
  const kept = session.items.map(({ text, confirm, payload, key, body }) => ({ text, confirm, payload, key, body }));
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
    ...(item.confirm ? { confirm: item.confirm } : { message: item.text, payload: item.payload ?? undefined }),
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
  // The same path at the address that this script came from, whatever name the server knows itself by.
  const { pathname } = new URL(turn.url ?? `/v1/turns/${turn.turn_id}`, SERVER);
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

// ---- What was said before, and by others ------------------------------------------------------------------------------

async function loadHistory() {
  const conversation = storage.get("conversation");
  if (!conversation) return;
  const here = session;
  // Read out new messages only.
  element("log").setAttribute("aria-busy", "true");
  try {
    const page = await retrying(() => request(messagesOf(conversation, HISTORY_LIMIT)));
    if (here !== session) return;
    element("log").prepend(...page.messages.map(lineOf).filter(Boolean));
    here.seen = page.messages.at(-1)?.ordinal ?? 0;
    refresh();
    element("scroller").scrollTop = element("scroller").scrollHeight;
    const last = page.messages.at(-1);
    if (last?.author === "bot" && last.turn_id) await askAgain(last, here);
  } catch (error) {
    if (error.status === 404) storage.set("conversation", null);
    else if (here === session) notice(`Earlier messages could not be loaded: ${error.message}`);
  } finally {
    element("log").removeAttribute("aria-busy");
  }
}

function messagesOf(conversation, limit) {
  const query = new URLSearchParams({ device_id: deviceId(), limit });
  return `/v1/conversations/${encodeURIComponent(conversation)}/messages?${query}`;
}

// A question that was left open is asked again.
async function askAgain({ turn_id }, here) {
  const turn = await request(`/v1/turns/${turn_id}`).catch(() => null);
  if (turn && here === session) showChoices(turn);
}

// What a person writes belongs to no message of ours, so no events tell of it.
// While a person is expected, the server answers when they have said something.
async function listen() {
  for (;;) {
    if (!session.human) await pause(IDLE_MS);
    const [here, conversation] = [session, storage.get("conversation")];
    if (document.hidden || !conversation) {
      await pause(AGENT_MS);
      continue;
    }
    here.waiting = new AbortController();
    const wait = here.human ? WAIT_S : 0;
    const path = `${messagesOf(conversation, RECENT_LIMIT)}&after=${here.seen}&wait=${wait}`;
    const page = await request(path, { signal: here.waiting.signal }).catch(() => null);
    if (here !== session) continue;
    if (!page) await pause(AGENT_MS);
    here.seen = page?.messages.at(-1)?.ordinal ?? here.seen;
    page?.messages.filter(({ author }) => author === "agent").forEach(show);
  }
}

function begin(text, press = {}) {
  const item = newItem(text, press);
  session.problem = session.items.some((other) => other.state === "failed") ? session.problem : null;
  item.bubble = newLine("user", text, null);
  append(item.bubble);
  setState(item, "sending");
  submit(item);
}

function startOver() {
  session.connection?.abort();
  session.waiting?.abort();
  session = newSession();
  storage.set("conversation", null);
  remember();
  // A message without a conversation id goes on with the device's last conversation: a new one needs a new device.
  storage.set("device", null);
  element("log").replaceChildren();
  refresh();
  element("message").focus();
}
