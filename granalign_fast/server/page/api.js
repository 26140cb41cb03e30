// Requests to the service that this page came from.

import { find } from "./elements.js";

// An answer of the service that says what is wrong (RFC 9457).
export class Problem extends Error {
  constructor(status, detail, retryAfter) {
    super(detail);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

export function videoUrl(vid, part = "", values = {}) {
  const query = new URLSearchParams(values);
  const path = `v1/videos/${encodeURIComponent(vid)}${part && `/${part}`}`;
  return query.size ? `${path}?${query}` : path;
}

// Sends a request. If the service wants a token, the user is asked for one, and it is sent again.
export async function send(url, options = {}) {
  let response;
  try {
    response = await fetch(url, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, "The service does not answer. Is it still running?");
  }
  if (response.status === 401) {
    await beginSession();
    return send(url, options);
  }
  if (!response.ok) throw await problemOf(response);
  return response;
}

export async function getJson(url, options) {
  return (await send(url, options)).json();
}

export function postJson(url, body, options = {}) {
  const headers = { "content-type": "application/json" };
  return send(url, { method: "POST", headers, body: JSON.stringify(body), ...options });
}

export async function problemOf(response) {
  let detail = `The service answered ${response.status}.`;
  try {
    const body = await response.json();
    detail = body.detail || body.title || detail;
  } catch {
    // The answer is not the service's own: the status is all there is.
  }
  return new Problem(response.status, detail, Number(response.headers.get("retry-after")) || null);
}

// Changes a token into a cookie: players and pictures send it as well.
let asking = null;
function beginSession() {
  asking ??= askForToken().finally(() => { asking = null; });
  return asking;
}

async function askForToken() {
  const dialog = find("token");
  const text = find("token-text");
  for (;;) {
    dialog.showModal();
    await new Promise((closed) => dialog.addEventListener("close", closed, { once: true }));
    const token = text.value.trim();
    text.value = "";
    if (!token) throw new Problem(401, "This service needs a token. Reload the page to enter one.");
    const response = await fetch("v1/session", {
      method: "POST",
      headers: { authorization: `Bearer ${encodeToken(token)}` },
    });
    if (response.ok) {
      find("token-problem").textContent = "";
      return;
    }
    find("token-problem").textContent = (await problemOf(response)).message;
  }
}

// A header holds bytes: any other character would make the request fail before it is sent.
function encodeToken(token) {
  return [...new TextEncoder().encode(token)].map((byte) => String.fromCharCode(byte)).join("");
}

// Yields the events of an answer in stages, each `[name, data]`.
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    text += value;
    const blocks = text.split(/\r?\n\r?\n/);
    text = blocks.pop();
    for (const block of blocks) {
      const event = parseEvent(block);
      if (event) yield event;
    }
  }
}

function parseEvent(block) {
  let name = "message";
  const data = [];
  for (const line of block.split(/\r?\n/)) {
    if (line.startsWith("event:")) name = line.slice(6).trimStart();
    else if (line.startsWith("data:")) data.push(line.slice(5).trimStart());
  }
  return data.length ? [name, JSON.parse(data.join("\n"))] : null;
}
