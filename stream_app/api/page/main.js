// Which view is shown, and the token that the server may want.

import { keepToken } from "./api.js";
import { startDashboard } from "./dashboard.js";
import { byId } from "./dom.js";
import { startShop } from "./shop.js";

const VIEWS = { dashboard: startDashboard, shop: startShop };
let running = new AbortController();

function openView() {
  const named = location.hash.slice(1);
  const name = Object.hasOwn(VIEWS, named) ? named : "dashboard";
  running.abort();
  running = new AbortController();
  byId("token-form").hidden = true;
  for (const view of Object.keys(VIEWS)) {
    // The section's id is not the hash: the browser would scroll to it.
    byId(`view-${view}`).hidden = view !== name;
    const link = document.querySelector(`nav a[href="#${view}"]`);
    if (view === name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${byId(`${name}-title`).textContent} · nextclick`;
  VIEWS[name](running.signal);
}

document.addEventListener("token-wanted", () => {
  if (!byId("token-form").hidden) return;
  running.abort();
  for (const view of Object.keys(VIEWS)) byId(`view-${view}`).hidden = true;
  byId("token-form").hidden = false;
  byId("state").textContent = "token needed";
  byId("token-problem").textContent = byId("token").value ? "The server does not know this token." : "";
  byId("token").focus();
});

byId("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  keepToken(byId("token").value.trim());
  openView();
});

addEventListener("hashchange", () => {
  openView();
  byId("main").focus();
});
openView();
