// Work that is done again and again while the page is looked at, and the word at the top that says whether it can be.

import { byId } from "./dom.js";

const state = byId("state");

function tell(is, text) {
  if (state.textContent !== text) state.textContent = text;
  state.dataset.is = is;
}

// One at a time; a server that does not answer is asked again.
export async function every(seconds, signal, work) {
  while (!signal.aborted) {
    if (!document.hidden) {
      try {
        await work();
        tell("live", "live");
      } catch (error) {
        if (signal.aborted) return;
        if (error.status === undefined) throw error;
        tell("lost", error.message);
      }
    }
    await pause(seconds, signal);
  }
}

export function pause(seconds, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, seconds * 1000);
    signal.addEventListener("abort", () => { clearTimeout(timer); resolve(); }, { once: true });
  });
}
