"use strict";
// Sorts and filters the gallery. Without it the page reads the same; the controls are then not shown.
(() => {
  const tools = document.querySelector("#gallery .tools");
  if (!tools) return;
  const lists = [...document.querySelectorAll("#gallery .gallery")];
  const listed = new Map(lists.map((list) => [list, [...list.children]]));
  const value = (card, key) => Number(card.dataset[key] ?? "NaN");

  const sorted = (cards, order) => {
    const [key, direction] = order.split(" ");
    const sign = direction === "up" ? 1 : -1;
    const known = cards.filter((card) => !Number.isNaN(value(card, key)));
    const unknown = cards.filter((card) => Number.isNaN(value(card, key)));
    return [...known.sort((a, b) => sign * (value(a, key) - value(b, key))), ...unknown];
  };

  const show = () => {
    const words = tools.elements.words.value.toLowerCase().split(/\s+/).filter(Boolean);
    const { value: order } = tools.elements.order;
    const { value: run } = tools.elements.run;
    let shown = 0;
    for (const [list, cards] of listed) {
      list.append(...(order ? sorted([...cards], order) : cards));
      const wanted = !run || list.closest("article").dataset.run === run;
      for (const card of cards) {
        const text = card.textContent.toLowerCase();
        card.hidden = !wanted || !words.every((word) => text.includes(word));
        shown += card.hidden ? 0 : 1;
      }
    }
    for (const article of document.querySelectorAll("#gallery article")) {
      article.hidden = !article.querySelector("li:not([hidden])");
    }
    tools.querySelector("output").textContent = `${shown} shown`;
  };

  tools.addEventListener("input", show);
  tools.addEventListener("submit", (event) => event.preventDefault());
  tools.hidden = false;
  show();
})();
