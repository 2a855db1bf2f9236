"use strict";
const filters = document.getElementById("filters");
const words = document.getElementById("words");
const shown = document.getElementById("shown");
const turns = [...document.querySelectorAll("article")];
const show = () => {
  const kinds = new Set([...filters.querySelectorAll("input:checked")].map((box) => box.value));
  const wanted = words.value.trim().toLowerCase();
  let count = 0;
  for (const turn of turns) {
    const fits = turn.dataset.kinds.split(" ").some((kind) => kinds.has(kind));
    turn.hidden = !fits || (wanted !== "" && !turn.textContent.toLowerCase().includes(wanted));
    count += turn.hidden ? 0 : 1;
  }
  shown.textContent = `${count} of ${turns.length} shown`;
};
filters.addEventListener("input", show);
show();
