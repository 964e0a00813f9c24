// A request as a command line and as a program: all settings are named, so that it does the same under other defaults.

import { GENERATIONS, apiKey } from "./api.js";

// settings that an answer tells and a request takes
const SETTINGS = ["seed", "draft_steps", "cfg", "cfg_schedule", "refiner_cfg", "top_k", "top_p", "temperatures"];

/** A shell command that makes image `index` of a request again. A key stands in it as a variable, never itself. */
export function curlLine({ body, made, index, filename }) {
  return [
    `curl -sS ${new URL(GENERATIONS, document.baseURI).href}`,
    "-H 'Content-Type: application/json'",
    ...(apiKey.get() ? ['-H "Authorization: Bearer $TANDEM_API_KEY"'] : []),
    `-d ${shellQuoted(JSON.stringify({ ...request(body, made), ...settings(made) }))}`,
    `| jq -r '.data[${index}].b64_json' | base64 -d > ${filename}`,
  ].join(" ");
}

/** The same with OpenAI's client for Python. */
export function pythonProgram({ body, made, index, filename }) {
  const entries = [...Object.entries(request(body, made)), ["extra_body", settings(made)]];
  const key = apiKey.get() ? 'os.environ["TANDEM_API_KEY"]' : '"none"';
  return [
    "import base64",
    ...(apiKey.get() ? ["import os"] : []),
    "",
    "from openai import OpenAI  # pip install openai",
    "",
    `client = OpenAI(base_url=${pythonValue(new URL("v1", document.baseURI).href)}, api_key=${key})`,
    "answer = client.images.generate(",
    ...entries.map(([name, value]) => `    ${name}=${pythonValue(value)},`),
    ")",
    `with open(${pythonValue(filename)}, "wb") as file:`,
    `    file.write(base64.b64decode(answer.data[${index}].b64_json))`,
    "",
  ].join("\n");
}

function request({ prompt, n, output_format }, { model }) {
  return { model, prompt, n, output_format };
}

function settings(made) {
  const known = SETTINGS.filter((name) => made[name] !== undefined && made[name] !== null);
  const told = Object.fromEntries(known.map((name) => [name, made[name]]));
  return made.deterministic ? { ...told, deterministic: true } : told;
}

function shellQuoted(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

/** JSON's strings and numbers are Python's too. */
function pythonValue(value) {
  if (value === true) return "True";
  if (Array.isArray(value)) return `[${value.map(pythonValue).join(", ")}]`;
  if (typeof value !== "object") return JSON.stringify(value);
  return `{${Object.entries(value).map(([name, one]) => `${JSON.stringify(name)}: ${pythonValue(one)}`).join(", ")}}`;
}
