// Settings in the address: named as the API's fields, so that a link can be written by hand.

const NUMBERS = ["n", "seed", "draft_steps", "cfg", "refiner_cfg", "top_k", "top_p", "rounds"];
const WORDS = ["prompt", "cfg_schedule", "output_format", "compare"]; // compare: another N, or "all"
const MAX_LENGTH = 300;

/** Settings of a query like "?prompt=fruit&seed=5"; what is not known or no number is left out. */
export function settingsOf(query) {
  const given = new URLSearchParams(query);
  const settings = {};
  for (const name of NUMBERS.filter((one) => given.get(one)?.trim())) {
    const value = Number(given.get(name));
    if (Number.isFinite(value)) settings[name] = value;
  }
  for (const name of WORDS.filter((one) => given.get(one))) settings[name] = given.get(name).slice(0, MAX_LENGTH);
  if (given.has("deterministic")) settings.deterministic = given.get("deterministic") !== "false";
  return settings;
}

/** The query of settings, without those that are the defaults. */
export function queryOf(settings, defaults) {
  const query = new URLSearchParams();
  for (const name of ["prompt", ...NUMBERS, ...WORDS.slice(1), "deterministic"]) {
    const value = settings[name];
    if (value !== undefined && value !== null && value !== "" && value !== defaults[name]) query.set(name, value);
  }
  return `?${query}`;
}

export function linkOf(settings, defaults) {
  return new URL(queryOf(settings, defaults), document.baseURI).href;
}
