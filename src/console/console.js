// Keeps a page as it is now: the server says when its view has changed, and the page is fetched again in place.
"use strict";
(() => {
  const main = document.getElementById("main");
  const news = document.getElementById("news");
  if (!main || !main.dataset.seen) return;

  // What a person has begun to write is not taken away from them.
  const isWriting = () =>
    [...main.querySelectorAll("input:not([type=hidden]), textarea, select")].some((field) => {
      if (field.tagName !== "SELECT") return field.value !== field.defaultValue;
      const chosen = [...field.options].findIndex((option) => option.defaultSelected);
      return field.selectedIndex !== Math.max(chosen, 0);
    });

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

  const place = new URL(location.href);
  place.hash = "";
  place.searchParams.set("seen", main.dataset.seen);
  const source = new EventSource(place);
  source.addEventListener("changed", () => {
    if (isWriting()) {
      news.textContent = "There is news; it is shown once the form is sent or emptied.";
    } else {
      show().catch(() => {});
    }
  });
})();
