// Calls of the API, with this tab's token. What goes wrong is a Problem (RFC 9457).

const KEPT = "nextclick-token";

export class Problem extends Error {
  constructor(status, detail, kind = "") {
    super(detail);
    this.status = status;
    this.kind = kind;
  }
}

export const keepToken = (token) => sessionStorage.setItem(KEPT, token);

async function answer(path, options) {
  const token = sessionStorage.getItem(KEPT);
  const headers = { ...options.headers, ...(token ? { Authorization: `Bearer ${token}` } : {}) };
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, "The server does not answer.");
  }
  if (response.ok) return response;
  const told = await response.json().catch(() => ({}));
  if (response.status === 401) document.dispatchEvent(new Event("token-wanted"));
  throw new Problem(response.status, told.detail ?? response.statusText, told.type ?? "");
}

async function json(response) {
  try {
    return await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, "The server's answer broke off.");
  }
}

export const get = async (path, signal) => json(await answer(path, { signal }));

export async function post(path, body, signal) {
  const headers = { "Content-Type": "application/json" };
  const response = await answer(path, { method: "POST", headers, body: JSON.stringify(body), signal });
  return { status: response.status, body: await json(response) };
}

// Server-sent events. Not by EventSource, which sends no token.
export async function* events(path, signal) {
  const response = await answer(path, { signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let unread = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    unread += value;
    const blocks = unread.split("\n\n");
    unread = blocks.pop();
    for (const block of blocks) {
      const fields = Object.fromEntries(block.split("\n").filter((line) => !line.startsWith(":")).map(split));
      if (fields.event) yield { event: fields.event, data: JSON.parse(fields.data) };
    }
  }
}

function split(line) {
  const at = line.indexOf(": ");
  return [line.slice(0, at), line.slice(at + 2)];
}
