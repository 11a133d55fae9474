// The try-it shop: click items of the catalogue, and see what the session is offered next.

import { events, get, post } from "./api.js";
import { byId, el } from "./dom.js";
import { every, pause } from "./poll.js";
import { count } from "./text.js";
import { picture } from "./tile.js";
import { explain } from "./why.js";

const KEPT = "nextclick-session";
const SHOWN = 60;
const MOST_ASKED = 150;
const REASONS = {
  model: "from the clicks of this session",
  "unknown-item": "the model does not know this item: from the clicks before it",
  popularity: "the model knows no item of this session: what is popular",
  "not-finite": "the model's numbers are not finite: what is popular",
};

// Rankings of what is popular: there is nothing of the session in them.
const UNEXPLAINED = ["popularity", "not-finite"];

const known = new Map(); // item id -> what is known of it
let signal = AbortSignal.abort();
let session = JSON.parse(sessionStorage.getItem(KEPT)) ?? begin();
let ranking = null; // the one that is shown
let streaming = new AbortController();

export function startShop(stopped) {
  signal = stopped;
  follow();
  drawSession();
  every(3, signal, refresh);
}

// -- session ---------------------------------------------------------------------------------------------------------

function begin() {
  const letters = crypto.getRandomValues(new Uint32Array(2)).reduce((text, number) => text + number.toString(36), "");
  return { id: `page-${letters}`, clicked: [] };
}

function keep() {
  sessionStorage.setItem(KEPT, JSON.stringify(session));
  drawSession();
}

function drawSession() {
  byId("session").textContent = session.id;
  byId("trail").replaceChildren(...session.clicked.map((itemId) => el("li", {}, titleOf(itemId))));
}

byId("new-session").addEventListener("click", () => {
  session = begin();
  keep();
  drawRanking(null);
  byId("answer").textContent = "Click an item to get a ranking.";
  follow();
});

// The session's rankings as they come: also those that came too late for the answer to their click.
async function follow() {
  streaming.abort();
  streaming = new AbortController();
  const stopped = AbortSignal.any([signal, streaming.signal]);
  while (!stopped.aborted) {
    try {
      for await (const { event, data } of events(`/v1/sessions/${encodeURIComponent(session.id)}/stream`, stopped)) {
        if (stopped.aborted) return;
        if (event === "ranking") await show(data, null);
        else drawRanking(null);
      }
    } catch (error) {
      if (stopped.aborted) return;
      if (error.status === undefined && !(error instanceof TypeError)) throw error; // a TypeError: the connection broke
    }
    await pause(2, stopped);
  }
}

async function click(itemId) {
  const began = performance.now();
  byId("shop-problem").textContent = "";
  const id = session.id;
  try {
    const sent = { session_id: id, item_id: itemId, timestamp: Date.now() };
    const { status, body } = await post("/v1/clicks?wait=3s", sent, signal);
    if (session.id !== id) return;
    session.clicked.push(itemId);
    keep();
    if (status === 200) await show(body, performance.now() - began);
    else byId("answer").textContent = "The click is on its topic; its ranking will come here.";
  } catch (error) {
    if (signal.aborted) return;
    if (error.status === undefined) throw error;
    byId("shop-problem").textContent = error.message;
  }
}

// -- ranking ---------------------------------------------------------------------------------------------------------

async function show(found, took) {
  await learn([found.item_id, ...found.items.map((item) => item.item_id)]);
  if (found.session_id !== session.id) return;
  const isShown = ranking !== null && found.source.partition === ranking.source.partition;
  if (!isShown || found.source.offset > ranking.source.offset) drawRanking(found);
  if (found.source.offset === ranking?.source.offset) {
    const answer = byId("answer");
    const variant = found.variant ? `, variant ${found.variant}` : "";
    const rules = found.rules?.length ? ` Rules: ${found.rules.join(", ")}.` : "";
    const time = took === null ? "" : ` in ${count(took)} ms`;
    if (took !== null || answer.dataset.of !== String(found.source.offset)) {
      answer.replaceChildren(`Answered${time} by `, el("code", {}, found.model_version), `${variant}: ${REASONS[found.reason] ?? found.reason}.${rules}`);
      answer.dataset.of = found.source.offset;
    }
  }
}

function drawRanking(found) {
  const before = new Map(ranking?.items.map((item, place) => [item.item_id, place]) ?? []);
  ranking = found;
  const rows = (found?.items ?? []).map(({ item_id }, place) => {
    const item = known.get(item_id) ?? { item_id };
    const title = titleOf(item_id);
    const offer = el("button", { type: "button", className: "offer" }, picture(item), el("span", {}, title));
    offer.addEventListener("click", () => click(item_id));
    const why = el("button", { type: "button", className: "plain", "aria-label": `Why ${title}?` }, "Why?");
    why.hidden = UNEXPLAINED.includes(found.reason);
    why.addEventListener("click", () => explain(session.id, item_id, titleOf));
    const row = el("li", { "data-item": item_id }, el("span", { className: "place" }, String(place + 1)), offer, movement(before, item_id, place), why);
    row.classList.toggle("gone", item.available === false);
    return row;
  });
  const list = byId("ranking");
  const focused = [...list.children].findIndex((row) => row.contains(document.activeElement));
  list.replaceChildren(...rows);
  if (focused >= 0) rows[Math.min(focused, rows.length - 1)]?.querySelector(".offer").focus();
}

function movement(before, itemId, place) {
  if (!before.size) return el("span", { className: "moved" });
  const from = before.get(itemId);
  if (from === undefined) return el("span", { className: "moved up" }, "new");
  if (from === place) return el("span", { className: "moved" });
  return el("span", { className: from > place ? "moved up" : "moved" }, `${from > place ? "▲" : "▼"} ${Math.abs(from - place)}`);
}

// -- catalogue -------------------------------------------------------------------------------------------------------

const catalogue = byId("catalogue");
const search = byId("search");

// What is offered is asked for once, so that no tile moves from under a finger; later only whether it is still there.
async function refresh() {
  if (!catalogue.children.length) {
    await fill();
    return;
  }
  const asked = new Set([...catalogue.children].map((tile) => tile.dataset.item));
  for (const item of ranking?.items ?? []) asked.add(item.item_id);
  await learn([...asked], true);
  for (const tile of [...catalogue.children]) {
    if (known.get(tile.dataset.item)?.available === false) tile.remove();
  }
  for (const row of byId("ranking").children) {
    row.classList.toggle("gone", known.get(row.dataset.item)?.available === false);
  }
}

async function fill() {
  const text = search.value;
  const items = await get(`/v1/items?q=${encodeURIComponent(text)}`, signal);
  if (text !== search.value) return;
  for (const item of items) known.set(item.item_id, item);
  catalogue.replaceChildren(...items.slice(0, SHOWN).map(tile));
  const nothing = text ? "Nothing found." : "Nothing was published on the topic of items, and nothing clicked lately.";
  byId("no-items").textContent = items.length ? "" : nothing;
  drawSession();
}

function tile(item) {
  const small = item.price ?? item.categories?.join(", ");
  const text = el("span", { className: "tile-text" }, item.title ?? item.item_id, small ? el("small", {}, small) : null);
  const button = el("button", { type: "button", className: "tile" }, picture(item), text);
  button.addEventListener("click", () => click(item.item_id));
  return el("li", { "data-item": item.item_id }, button);
}

// Ask for what is not known of these items, or for all of them anew.
async function learn(itemIds, anew = false) {
  const asked = [...new Set(itemIds)].filter((itemId) => anew || !known.has(itemId)).slice(0, MOST_ASKED);
  if (!asked.length) return;
  const query = asked.map((itemId) => `id=${encodeURIComponent(itemId)}`).join("&");
  for (const item of await get(`/v1/items?${query}`, signal)) known.set(item.item_id, item);
}

const titleOf = (itemId) => known.get(itemId)?.title ?? itemId;

let typing = 0;
search.addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(() => fill().catch((error) => {
    if (!signal.aborted) byId("shop-problem").textContent = error.message;
  }), 200);
});

byId("any-item").addEventListener("submit", (event) => {
  event.preventDefault();
  click(byId("any").value);
});
