// What is seen.
//
// Refuses to put anything it received into the page as HTML: text only. Invariant: all of it lies in a shadow tree, so that neither
// the page's style nor the widget's reaches the other.

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
  showChoices(turn);
  if (turn.status === "handed_off") here.human = true;
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
  if (author === "agent") session.human = true;
  return newLine(role, content, author === "agent" ? "Agent" : null);
}

function show(message) {
  const line = lineOf(message);
  if (line) append(line);
}

// Buttons for what a person is asked to confirm, and for what a reply offers.
function showChoices({ actions = [], replies = [] }) {
  for (const { id, tool, status } of actions) {
    if (status !== "pending") continue;
    offer(id, tool, [["Yes", { confirm: { id, approve: true } }], ["No", { confirm: { id, approve: false } }]]);
  }
  for (const { id, buttons = [] } of replies) {
    if (buttons.length > 0) offer(`choices-${id}`, "Answers", buttons.map(({ label, payload }) => [label, { payload }]));
  }
}

// A line of buttons, once; it goes with the first press.
function offer(id, name, choices) {
  if (session.shown.has(id)) return;
  session.shown.add(id);
  const line = document.createElement("li");
  line.className = "choices";
  line.setAttribute("role", "group");
  line.setAttribute("aria-label", name);
  for (const [label, press] of choices) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = label;
    button.addEventListener("click", () => {
      line.remove();
      begin(label, press);
      element("message").focus();
    });
    line.append(button);
  }
  append(line);
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
  if (element("panel").hidden) element("launcher").classList.add("unread");
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
