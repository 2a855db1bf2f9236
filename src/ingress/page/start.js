// Where it sits in the page, and how it begins.
//
//   <script src="https://bots.example.com/widget.js" data-bot="shop" defer></script>
//
// data-bot: the web bot, one without keys. data-title: what it is called in the page. data-target: a selector of the element that
// the chat fills; without it, a button at the lower right opens it. data-theme: light or dark; without it, as the system has it.

const root = document.createElement("div");
const tree = root.attachShadow({ mode: "open" });
const element = (id) => tree.getElementById(id);

// A node with attributes and children; `null` stands for an attribute that is not there.
function node(name, attributes = {}, ...children) {
  const made = name === "svg" || name === "path"
    ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) if (value !== null) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function build(floating) {
  const style = new CSSStyleSheet();
  style.replaceSync(STYLE);
  tree.adoptedStyleSheets = [style];
  const icon = (path) => node("svg", { viewBox: "0 0 24 24", width: 22, height: 22, "aria-hidden": "true" }, node("path", { d: path }));
  const hidden = "";
  tree.append(
    node("button", {
      id: "launcher", type: "button", "aria-label": `Chat: ${TITLE}`, "aria-expanded": "false", "aria-controls": "panel",
      hidden: floating ? null : hidden,
    }, icon("M4 4h16a2 2 0 0 1 2 2v9a2 2 0 0 1-2 2H9l-5 4v-4a2 2 0 0 1-2-2V6a2 2 0 0 1 2-2z")),
    node("section", { id: "panel", role: floating ? "dialog" : "region", "aria-label": TITLE, hidden: floating ? hidden : null },
      node("header", {},
        node("h1", { id: "title" }, TITLE),
        node("button", { id: "new-conversation", type: "button" }, "New conversation"),
        node("button", { id: "close", type: "button", "aria-label": "Close", hidden: floating ? null : hidden },
          icon("M5 6.4 6.4 5 12 10.6 17.6 5 19 6.4 13.4 12l5.6 5.6-1.4 1.4L12 13.4 6.4 19 5 17.6 10.6 12z"))),
      node("main", { id: "scroller", tabindex: "0", role: "group", "aria-label": "Conversation" },
        node("p", { id: "welcome" }, "Say something to begin."),
        node("ol", { id: "log", role: "log", "aria-live": "polite", "aria-label": "Messages" }),
        node("p", { id: "typing", role: "status", hidden },
          node("span", { class: "visually-hidden" }, "Waiting for the answer"), node("i"), node("i"), node("i"))),
      node("footer", {},
        node("p", { id: "error", role: "alert", hidden },
          node("span", { id: "error-text" }), " ", node("button", { id: "retry", type: "button" }, "Retry")),
        node("form", { id: "composer" },
          node("label", { for: "message", class: "visually-hidden" }, "Your message"),
          node("textarea", {
            id: "message", rows: 1, maxlength: 8000, placeholder: "Message", autocomplete: "off", enterkeyhint: "send",
            "aria-describedby": "hint",
          }),
          node("button", { id: "send", type: "submit", "aria-label": "Send" }, icon("M3 20.5 21.5 12 3 3.5v6.6L15 12 3 13.9z"))),
        node("p", { id: "hint" }, "Enter sends, Shift+Enter begins a new line"))));
  root.className = floating ? "floating" : "filling";
  if (script.dataset.theme) root.dataset.theme = script.dataset.theme;
}

function open(opened) {
  element("panel").hidden = !opened;
  element("launcher").setAttribute("aria-expanded", String(opened));
  element("launcher").classList.remove("unread");
  if (opened) element("scroller").scrollTop = element("scroller").scrollHeight;
  element(opened ? "message" : "launcher").focus();
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
  element("launcher").addEventListener("click", () => open(element("panel").hidden));
  element("close").addEventListener("click", () => open(false));
  element("panel").addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !element("close").hidden) open(false);
  });
}

function start() {
  const target = script.dataset.target ? document.querySelector(script.dataset.target) : document.body;
  build(!script.dataset.target);
  target.append(root);
  wire();
  refresh();
  const here = session;
  // What was left unanswered goes first, but only once the history tells what of it is known; what is typed meanwhile follows.
  here.accepted = loadHistory();
  for (const { text, confirm, payload, key, body } of storedUnanswered()) {
    const item = Object.assign(newItem(text, { confirm, payload }, key, body), { restored: true });
    item.bubble = newLine("user", text, null);
    item.bubble.hidden = true;
    append(item.bubble);
    submit(item);
  }
  // A touch screen would open its keyboard.
  if (script.dataset.target && !matchMedia("(pointer: coarse)").matches) element("message").focus();
  listen();
}

start();
