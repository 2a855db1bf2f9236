// Keeps a page as it is now: the server says when its view has changed, and the page is fetched again in place.
"use strict";
(() => {
  const main = document.getElementById("main");
  const news = document.getElementById("news");
  if (!main || !main.hasAttribute("data-live")) return;

  // What a person has begun to write is not taken away from them.
  const isWriting = () =>
    [...main.querySelectorAll("input:not([type=hidden]), textarea, select")].some((field) =>
      field === document.activeElement ||
      (field.tagName === "SELECT"
        ? [...field.options].some((option) => option.selected !== option.defaultSelected && option.selected)
        : field.value !== field.defaultValue));

  const show = async () => {
    const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
    if (answer.redirected) return location.reload();
    if (!answer.ok) return;
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const focused = document.activeElement && document.activeElement.id;
    const open = [...main.querySelectorAll("details[open]")].map((node) => node.id);
    main.replaceChildren(...page.getElementById("main").childNodes);
    open.forEach((id) => { const node = document.getElementById(id); if (node) node.open = true; });
    if (focused && document.getElementById(focused)) document.getElementById(focused).focus({ preventScroll: true });
    news.textContent = "";
  };

  const source = new EventSource(location.pathname + location.search);
  source.addEventListener("changed", () => {
    if (isWriting()) {
      news.textContent = "There is news; it is shown once the form is sent or emptied.";
    } else {
      show().catch(() => {});
    }
  });
})();
