// The HTTP API: requests, errors and server-sent events.

const KEY_NAME = "tandem-api-key";
export const GENERATIONS = "v1/images/generations";
export const EDITS = "v1/images/edits";
export const MAX_CLASSES = 1000; // of one answer

/** What the API refused, in its own words. `retryAfter` is in seconds, null where it was not told. */
export class ApiError extends Error {
  constructor(status, message, param = null, retryAfter = null) {
    super(message);
    Object.assign(this, { status, param, retryAfter });
  }

  /** Whether the same request may be answered in a while. */
  get isBusy() {
    return this.status === 429 || this.status === 503;
  }
}

/** The API key of this tab; it is never put anywhere else. */
export const apiKey = {
  get: () => sessionStorage.getItem(KEY_NAME) ?? "",
  set: (key) => (key ? sessionStorage.setItem(KEY_NAME, key) : sessionStorage.removeItem(KEY_NAME)),
};

export async function getModel() {
  return (await getJson("v1/models")).data[0];
}

/** {data: [{id, name}], total} of the classes that match. */
export function findClasses(query, signal, limit = 100) {
  return getJson(`v1/classes?${new URLSearchParams({ query, limit })}`, signal);
}

/** The response to a request for images, once it is known not to be an error. Its events: `serverSentEvents`. */
export function generateImages(body, signal) {
  const accept = body.stream ? "text/event-stream" : "application/json";
  const headers = { "Content-Type": "application/json", Accept: accept };
  return send(GENERATIONS, { method: "POST", headers, body: JSON.stringify(body), signal });
}

/** The same of a form with a picture. */
export function editImage(form, signal) {
  return send(EDITS, { method: "POST", headers: { Accept: "text/event-stream" }, body: form, signal });
}

/** The data of each event. An error event is thrown. */
export async function* serverSentEvents(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await connected(reader.read());
    if (done) return;
    const blocks = (text + value).replaceAll("\r\n", "\n").split("\n\n");
    text = blocks.pop(); // the last block may go on in the next chunk
    for (const data of blocks.map(dataOf).filter(Boolean)) {
      const event = JSON.parse(data);
      if (event.error) throw new ApiError(0, event.error.message, event.error.param);
      yield event;
    }
  }
}

/** The file in `b64_json` as a Blob. */
export function imageBlob({ b64_json: data, output_format: format }) {
  const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
  return new Blob([bytes], { type: `image/${format}` });
}

export function isAbort(error) {
  return error.name === "AbortError";
}

function dataOf(block) {
  const lines = block.split("\n").filter((line) => line.startsWith("data:"));
  return lines.map((line) => line.slice("data:".length).trimStart()).join("\n");
}

async function getJson(path, signal) {
  return (await send(path, { signal })).json();
}

async function send(path, options) {
  const headers = { ...options.headers, ...authorization() };
  const response = await connected(fetch(path, { ...options, headers }));
  if (!response.ok) throw await errorOf(response);
  return response;
}

/** A lost connection is a TypeError with words that differ from browser to browser. */
function connected(promise) {
  return promise.catch((error) => {
    if (error instanceof TypeError) throw new ApiError(0, "the server cannot be reached");
    throw error;
  });
}

function authorization() {
  const key = apiKey.get();
  if (/[^\x20-\x7e]/.test(key)) throw new ApiError(401, "expected a key of plain letters, digits and signs");
  return key ? { Authorization: `Bearer ${key}` } : {};
}

async function errorOf(response) {
  const seconds = Number.parseInt(response.headers.get("Retry-After"), 10);
  const told = await response.json().catch(() => ({})); // a proxy answers in HTML
  const { message = `the server answered ${response.status}`, param } = told.error ?? {};
  return new ApiError(response.status, message, param, Number.isNaN(seconds) ? null : seconds);
}
