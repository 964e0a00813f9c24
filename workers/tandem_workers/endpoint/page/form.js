// The controls: what the server offers in them, what they say, and what is asked for with them.

import { ApiError, apiKey, findClasses } from "./api.js";
import { describeSplit, makerOf, nameSplit, shownSize } from "./card.js";
import { Combobox } from "./combobox.js";

// fields of a request and the controls that set them
const CONTROLS = {
  prompt: "class-input",
  n: "count",
  seed: "seed",
  draft_steps: "draft-steps",
  cfg: "cfg",
  top_k: "top-k",
  top_p: "top-p",
  output_format: "format",
  deterministic: "deterministic",
};

export const $ = (id) => document.getElementById(id);

/** A value that cannot even be sent. */
class FieldError extends Error {
  constructor(control, message) {
    super(message);
    this.control = control;
  }
}

export class Form {
  constructor({ onSubmit, onSearchError }) {
    this.model = null;
    this.classes = new Combobox({
      input: $("class-input"),
      list: $("class-list"),
      popup: $("class-popup"),
      note: $("class-note"),
      search: findClasses,
      onError: onSearchError,
    });
    $("key").value = apiKey.get();
    $("key-field").hidden = !apiKey.get();
    this.listen(onSubmit);
  }

  get className() {
    return $("class-input").value.trim();
  }

  listen(onSubmit) {
    $("form").addEventListener("submit", (event) => {
      event.preventDefault();
      onSubmit();
    });
    for (const kind of ["input", "change"]) {
      $("form").addEventListener(kind, ({ target }) => target.hasAttribute("aria-invalid") && clearError(target));
    }
    $("key").addEventListener("input", () => apiKey.set($("key").value));
    $("draft-steps").addEventListener("input", () => this.showDraftSteps());
    $("cfg").addEventListener("input", showCfg);
    $("dice").addEventListener("click", () => setSeed(randomSeed()));
    $("use-seed").addEventListener("click", () => setSeed($("use-seed").textContent));
    $("compare").addEventListener("change", enableCompare);
  }

  /** Limits and defaults of a model, and its first class. */
  offer(model, classes) {
    const { image_size: size, num_scales: numScales, num_classes: numClasses, patch_nums: patchNums } = model;
    this.model = model;
    const facts = [`${size} × ${size} px`, `${numScales} scales`, `${numClasses.toLocaleString("en")} classes`];
    $("model").textContent = `Model ${model.id}: ${facts.join(", ")}.`;
    $("pyramid").replaceChildren(...patchNums.map((side) => pyramidBar(side / patchNums.at(-1))));
    $("draft-steps").max = numScales;
    $("count").max = model.max_n;
    $("format").replaceChildren(...model.output_formats.map((format) => new Option(format)));
    $("compare-steps").replaceChildren(...splitOptions(numScales));
    document.documentElement.style.setProperty("--shown", `${shownSize(size)}px`);
    this.showSampling(model.defaults);
    if (classes.length && !this.className) this.classes.pick(classes[0]);
  }

  /** One request for each side of the cards; all have the same seed. FieldError for what is no number. */
  read() {
    const body = this.readSettings();
    const previews = Array.from({ length: this.model.num_scales - 1 }, (_, i) => i + 1);
    return [body.draft_steps, ...otherSteps(body.draft_steps)].map((draftSteps) => ({
      ...body,
      draft_steps: draftSteps,
      stream: true,
      preview_scales: previews,
    }));
  }

  readSettings() {
    if (!this.classes.prompt) throw new FieldError("class-input", "Choose a class.");
    return {
      prompt: this.classes.prompt,
      n: numberOf("count"),
      seed: isEmpty("seed") ? randomSeed() : numberOf("seed"),
      draft_steps: numberOf("draft-steps"),
      cfg: numberOf("cfg"),
      top_k: numberOf("top-k"),
      top_p: numberOf("top-p"),
      output_format: $("format").value,
      deterministic: $("deterministic").checked,
    };
  }

  /** The settings of an earlier request, to be sent again or changed. */
  show(body) {
    $("class-input").value = body.prompt;
    $("seed").value = body.seed;
    $("count").value = body.n;
    $("format").value = body.output_format;
    $("deterministic").checked = body.deterministic;
    this.showSampling(body);
    clearErrors();
  }

  showSampling({ draft_steps: draftSteps, cfg, top_k: topK, top_p: topP }) {
    $("draft-steps").value = draftSteps;
    $("cfg").value = cfg;
    $("top-k").value = topK;
    $("top-p").value = topP;
    this.showDraftSteps();
    showCfg();
  }

  showDraftSteps() {
    if (!this.model) return;
    const draftSteps = $("draft-steps").valueAsNumber;
    const text = `N = ${draftSteps}: ${describeSplit(draftSteps, this.model.num_scales)}`;
    $("draft-steps-text").textContent = text;
    $("draft-steps").setAttribute("aria-valuetext", text);
    [...$("pyramid").children].forEach((bar, i) => (bar.dataset.maker = makerOf(i + 1, draftSteps)));
  }
}

/**
 * The error in words beside the control that it is about; false if it is about none.
 * `side` 1: the error is the second request's of a comparison.
 */
export function showFieldError(error, side) {
  const id = controlOf(error, side);
  if (!id) return false;
  const control = $(id);
  $(`${id}-error`).textContent = inWords(error);
  control.setAttribute("aria-invalid", "true");
  if (id === "key") $("key-field").hidden = false;
  if ($("advanced").contains(control)) $("advanced").open = true;
  control.focus();
  return true;
}

export function clearErrors() {
  document.querySelectorAll("[aria-invalid]").forEach(clearError);
}

/** A sentence, without the name of the field: the label says that already. */
export function inWords({ message, param }) {
  const text = param && message.startsWith(`${param}: `) ? message.slice(param.length + 2) : message;
  const stop = /[.?!]$/.test(text) ? "" : ".";
  return text[0].toUpperCase() + text.slice(1) + stop;
}

function clearError(control) {
  control.removeAttribute("aria-invalid");
  $(`${control.id}-error`).textContent = "";
}

function controlOf(error, side) {
  if (error instanceof FieldError) return error.control;
  if (!(error instanceof ApiError)) return undefined;
  if (error.status === 401) return "key";
  const field = error.param?.split(".")[0]; // "temperatures.0"
  return field === "draft_steps" && side === 1 ? "compare-steps" : CONTROLS[field];
}

function pyramidBar(share) {
  const bar = document.createElement("span");
  bar.style.height = `${100 * share}%`;
  return bar;
}

function splitOptions(numScales) {
  const mixed = Array.from({ length: numScales - 1 }, (_, i) => numScales - 1 - i);
  return [numScales, 0, ...mixed].map((steps) => new Option(nameSplit(steps, numScales), steps));
}

function showCfg() {
  $("cfg-text").textContent = $("cfg").valueAsNumber.toFixed(1);
}

function setSeed(seed) {
  $("seed").value = seed;
  clearError($("seed"));
}

function enableCompare() {
  $("compare-steps").disabled = !$("compare").checked;
}

function otherSteps(draftSteps) {
  if (!$("compare").checked) return [];
  const other = Number($("compare-steps").value);
  if (other === draftSteps) throw new FieldError("compare-steps", "Choose another N: both images would be the same.");
  return [other];
}

function isEmpty(id) {
  return $(id).value === "" && !$(id).validity.badInput;
}

/** Limits are the server's affair: it names what it expected. */
function numberOf(id) {
  const value = $(id).valueAsNumber;
  if (!Number.isFinite(value)) throw new FieldError(id, "Expected a number.");
  return value;
}

function randomSeed() {
  return crypto.getRandomValues(new Uint32Array(1))[0];
}
