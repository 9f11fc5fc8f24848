// Requests to the API: one place that adds the token, reads problems, and asks for a token when one is needed.

const KEY = "streamsparse-token";
const PREFIX = "api/v1";

/** What the service answered instead of what was asked for; fields as in application/problem+json. */
export class Problem extends Error {
  constructor(fields) {
    super(fields.title ?? "The request failed.");
    this.name = "Problem";
    Object.assign(this, { status: null, error: "", expected: null, got: null, where: null, remedy: null }, fields);
  }
}

// The token lives as long as the tab: never in localStorage, a cookie or an address.
export const token = {
  get: () => sessionStorage.getItem(KEY),
  set: (value) => sessionStorage.setItem(KEY, value),
  forget: () => sessionStorage.removeItem(KEY),
};

let askForToken = async () => false;

/** Whom to call when the service wants a token: resolves to whether one was given. */
export function onUnauthorized(ask) {
  askForToken = ask;
}

export const path = (...parts) => `${PREFIX}/${parts.map(encodeURIComponent).join("/")}`;

export function headers(more = {}) {
  const held = token.get();
  return { ...(held ? { Authorization: `Bearer ${held}` } : {}), ...more };
}

/** Fetch with the token; asks for one and tries again after a 401. Throws Problem, or AbortError. */
export async function send(method, address, { body, signal, more = {} } = {}) {
  const options = { method, signal, headers: headers(more), credentials: "omit", redirect: "follow" };
  if (body !== undefined) {
    options.body = JSON.stringify(body);
    options.headers["Content-Type"] = "application/json";
  }
  let answer;
  try {
    answer = await fetch(address, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem({
      title: "The service does not answer.", error: "Unreachable", got: error.message,
      remedy: "check that `streamsparse serve` runs and that the network is there; this page goes on by itself",
    });
  }
  if (answer.status === 401 && (await askForToken())) return send(method, address, { body, signal, more });
  if (!answer.ok) throw await problemOf(answer);
  return answer;
}

async function problemOf(answer) {
  const text = await answer.text();
  try {
    return new Problem({ ...JSON.parse(text), status: answer.status });
  } catch {
    return new Problem({ title: `The service answered ${answer.status}.`, status: answer.status, got: text.slice(0, 300) || null });
  }
}

export async function getJson(address, options) {
  return (await send("GET", address, options)).json();
}

export async function postJson(address, body = {}, options = {}) {
  return (await send("POST", address, { ...options, body })).json();
}

/** Unlike crypto.randomUUID this works without TLS too. */
export function newKey() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Submit once, even if the answer is lost and the request sent again. */
export const submit = (address, body) => postJson(address, body, { more: { "Idempotency-Key": newKey() } });

/** An address for an <iframe> or a download, which cannot send a token: as it is, or with a ticket for minutes. */
export async function ticketed(address) {
  if (!token.get()) return address;
  const found = await postJson(path("tickets"), { path: `/${address}` });
  return found.url.replace(/^\//, "");
}
