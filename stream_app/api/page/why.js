// Why an item is offered: what each part of the model and each click of the session adds to its score.

import { get } from "./api.js";
import { byId, el, fillTable } from "./dom.js";
import { pause } from "./poll.js";
import { count, signed } from "./text.js";

const TRIES = 4;
const dialog = byId("why");
const content = byId("why-content");
let looking = new AbortController();

byId("why-close").addEventListener("click", () => dialog.close());
dialog.addEventListener("close", () => looking.abort());

export async function explain(session, itemId, titleOf) {
  looking = new AbortController();
  const { signal } = looking;
  byId("why-title").textContent = `Why ${titleOf(itemId)}?`;
  content.replaceChildren(el("p", { className: "note" }, "Reading the session and computing…"));
  dialog.showModal();
  try {
    const told = await explanation(session, itemId, signal);
    content.replaceChildren(...described(told, titleOf));
  } catch (error) {
    if (signal.aborted) return;
    if (error.status === undefined) throw error;
    content.replaceChildren(el("p", { className: "problem" }, error.message));
  }
}

// A session can be explained once its click is acknowledged, a moment after the ranking.
async function explanation(session, itemId, signal) {
  const path = `/v1/sessions/${encodeURIComponent(session)}/explain?item=${encodeURIComponent(itemId)}`;
  for (let tries = 1; ; tries += 1) {
    try {
      return await get(path, signal);
    } catch (error) {
      const isEarly = error.kind?.endsWith("nothing-to-explain");
      if (!isEarly || tries === TRIES) throw error;
      await pause(0.5, signal);
      signal.throwIfAborted();
    }
  }
}

function described({ model_version, clicks, items: [item] }, titleOf) {
  const parts = [
    ...(item.network === null ? [] : [["The network", item.network, undefined]]),
    ...Object.entries(item.terms).map(([name, part]) => [`Memory: ${name}`, part.adds, part.place_without]),
    ...Object.entries(item.recent).map(([itemId, part]) => [`Your click on ${titleOf(itemId)}`, part.adds, part.place_without]),
  ];
  const most = Math.max(...parts.map(([, adds]) => Math.abs(adds ?? 0)), 1e-9);
  const table = el("table", {}, el("thead", {}, el("tr", {},
    el("th", { scope: "col" }, "Part"),
    el("th", { scope: "col", className: "number" }, "Adds"),
    el("th", { scope: "col" }, el("span", { className: "note" }, "Size")),
    el("th", { scope: "col", className: "number" }, "Place without it"),
  )), el("tbody"));
  fillTable(table, parts.map(([name, adds, without]) => [
    name,
    { number: adds === null ? "–" : signed(adds) },
    adds === null ? "" : meter(adds, most),
    { number: without === undefined ? "" : without === null ? "below the list" : count(without) },
  ]));
  for (const row of table.tBodies[0].rows) row.cells[2].className = "bar-cell";
  const popular = `It has ${count(item.clicks)} clicks in training, place ${count(item.popularity_place)} by clicks.`;
  const place = item.place === null ? "Below the list" : `At place ${item.place}, with a score of ${item.score.toFixed(3)}`;
  return [
    el("p", {}, `${place}, after ${clicks} ${clicks === 1 ? "click" : "clicks"}. ${popular}`),
    table,
    el("p", { className: "note" }, "Ranked by ", el("code", {}, model_version)),
  ];
}

function meter(adds, most) {
  const bar = el("span", { className: adds < 0 ? "meter less" : "meter" });
  bar.style.width = `${(100 * Math.abs(adds)) / most}%`;
  return bar;
}
