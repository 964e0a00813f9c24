// The HTTP API: requests, errors, server-sent events, and the command line that repeats a request.

const KEY_NAME = "tandem-api-key";
const GENERATIONS = "v1/images/generations";
// settings that an answer tells and a request takes
const SETTINGS = ["seed", "draft_steps", "cfg", "top_k", "top_p", "temperatures"];

/** What the API refused, in its own words. `retryAfter` is in seconds, null where it was not told. */
export class ApiError extends Error {
  constructor(status, message, param = null, retryAfter = null) {
    super(message);
    Object.assign(this, { status, param, retryAfter });
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
export function findClasses(query, signal) {
  return getJson(`v1/classes?${new URLSearchParams({ query, limit: 100 })}`, signal);
}

/** The response to a request for images, once it is known not to be an error. Its events: `serverSentEvents`. */
export function generateImages(body, signal) {
  const headers = { "Content-Type": "application/json", Accept: "text/event-stream" };
  return send(GENERATIONS, { method: "POST", headers, body: JSON.stringify(body), signal });
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

/**
 * A command that makes image `index` of a request again: all settings are named, so that it also does under other
 * defaults. A key stands in it as a variable, never itself.
 */
export function curlLine({ body, made, index, filename }) {
  const settings = Object.fromEntries(SETTINGS.map((name) => [name, made[name]]));
  // a number was sent where two classes have the same name
  const prompt = /^\d+$/.test(body.prompt) ? body.prompt : made.class_name;
  const again = { model: made.model, prompt, n: body.n, ...settings, output_format: body.output_format };
  if (made.deterministic) again.deterministic = true;
  return [
    `curl -sS ${new URL(GENERATIONS, document.baseURI).href}`,
    "-H 'Content-Type: application/json'",
    ...(apiKey.get() ? ['-H "Authorization: Bearer $TANDEM_API_KEY"'] : []),
    `-d ${shellQuoted(JSON.stringify(again))}`,
    `| jq -r '.data[${index}].b64_json' | base64 -d > ${filename}`,
  ].join(" ");
}

function shellQuoted(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}
