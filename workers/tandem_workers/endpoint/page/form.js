// The controls: what the server offers in them, what they say, and what is asked for with them.

import { ApiError, apiKey, findClasses } from "./api.js";
import { Classes } from "./classes.js";
import { Combobox } from "./combobox.js";
import { $, element } from "./dom.js";
import { listenToGuidance, offerGuidance, readGuidance, showGuidance } from "./guidance.js";
import { ROUNDS } from "./timing.js";
import { describeSplit, inWords, makerOf, nameSplit } from "./words.js";

// fields of a request and the controls that set them
const CONTROLS = {
  prompt: "class-input",
  n: "count",
  seed: "seed",
  draft_steps: "draft-steps",
  cfg: "cfg",
  cfg_schedule: "cfg-schedule",
  refiner_cfg: "refiner-cfg",
  top_k: "top-k",
  top_p: "top-p",
  output_format: "format",
  deterministic: "deterministic",
};
const ALL = "all"; // in the choice of what to compare with

/** A value that cannot even be sent. */
class FieldError extends Error {
  constructor(control, message) {
    super(message);
    this.control = control;
  }
}

export class Form {
  /** `onChange`: a setting has changed; `onPick(item)`: a class was chosen. */
  constructor({ onSubmit, onChange, onPick, onSearchError }) {
    Object.assign(this, { model: null, known: new Classes([], 0), onPick, isShowing: false });
    this.classes = new Combobox({
      input: $("class-input"),
      list: $("class-list"),
      popup: $("class-popup"),
      note: $("class-note"),
      search: findClasses,
      promptOf: (item) => this.known.promptOf(item),
      onError: onSearchError,
    });
    this.listen(onSubmit, onChange);
  }

  get className() {
    return this.classes.chosen?.name ?? $("class-input").value.trim();
  }

  /** The class that the input names, if it is a known one. */
  get chosen() {
    return this.classes.chosen ?? this.known.find($("class-input").value);
  }

  listen(onSubmit, onChange) {
    $("form").addEventListener("submit", (event) => {
      event.preventDefault();
      onSubmit();
    });
    for (const kind of ["input", "change"]) {
      document.addEventListener(kind, ({ target }) => target.hasAttribute("aria-invalid") && clearError(target));
    }
    $("form").addEventListener("change", onChange);
    $("class-input").addEventListener("change", () => {
      this.onPick(this.chosen);
      if (!this.isShowing) onChange(); // settings that are put in say nothing new
    });
    $("draft-steps").addEventListener("input", () => this.showDraftSteps());
    $("dice").addEventListener("click", () => this.setSeed(randomSeed()));
    $("use-seed").addEventListener("click", () => this.setSeed($("use-seed").textContent));
    $("compare").addEventListener("change", showCompare);
    listenToGuidance();
  }

  /** Limits and defaults of a model. */
  offer(model) {
    const { image_size: size, num_scales: numScales, num_classes: numClasses, patch_nums: patchNums } = model;
    this.model = model;
    this.defaults = { n: 1, output_format: "png", deterministic: false, compare: "", rounds: ROUNDS, ...model.defaults };
    this.defaults.refiner_cfg ??= null;
    const facts = [`${size} × ${size} px`, `${numScales} scales`, `${numClasses.toLocaleString("en")} classes`];
    $("model").textContent = `${model.id}: ${facts.join(", ")}`;
    $("pyramid").replaceChildren(...patchNums.map((side) => pyramidBar(side / patchNums.at(-1))));
    $("draft-steps").max = numScales;
    $("count").max = model.max_n;
    $("format").replaceChildren(...model.output_formats.map((format) => new Option(format)));
    $("compare").replaceChildren(...compareOptions(numScales));
    offerGuidance(model);
    this.show({});
  }

  /** Classes to choose from: all, or the first ones. */
  offerClasses(items, total) {
    this.known = new Classes(items, total);
  }

  /** One request for each side of a run, all with the same seed. FieldError for what is no number. */
  read() {
    const settings = this.settings();
    if (!settings.prompt) throw new FieldError("class-input", "Choose a class.");
    for (const name of ["n", "seed", "draft_steps", "cfg", "refiner_cfg", "top_k", "top_p"]) {
      if (Number.isNaN(settings[name])) throw new FieldError(CONTROLS[name], "Expected a number."); // limits are the server's affair
    }
    settings.seed ??= randomSeed();
    if (this.defaults.refiner_cfg !== null) settings.refiner_cfg ??= settings.cfg; // null would be the server's own
    const { compare, rounds, ...body } = settings;
    const previews = Array.from({ length: this.model.num_scales - 1 }, (_, i) => i + 1);
    const bodies = this.allSteps(settings).map((draftSteps) => ({ ...body, draft_steps: draftSteps, stream: true, preview_scales: previews }));
    return { bodies, rounds, settings };
  }

  /** What the controls say; a seed that is to be drawn is null. */
  settings() {
    const isRow = $("compare").value === ALL;
    return {
      prompt: this.classes.prompt,
      n: isRow ? 1 : $("count").valueAsNumber,
      seed: isEmpty("seed") ? null : $("seed").valueAsNumber,
      draft_steps: $("draft-steps").valueAsNumber,
      ...readGuidance(),
      top_k: $("top-k").valueAsNumber,
      top_p: $("top-p").valueAsNumber,
      output_format: $("format").value,
      deterministic: $("deterministic").checked,
      compare: $("compare").value,
      rounds: $("rounds").valueAsNumber || 0,
    };
  }

  /** Put settings into the controls, defaults for those that are not named. */
  show(settings) {
    const all = { ...this.defaults, seed: "", ...settings };
    if (settings.prompt) {
      const item = this.known.find(settings.prompt);
      this.isShowing = true;
      if (item) this.classes.pick(item);
      else $("class-input").value = settings.prompt;
      this.isShowing = false;
    }
    $("seed").value = all.seed ?? "";
    $("count").value = all.n;
    $("draft-steps").value = all.draft_steps;
    $("top-k").value = all.top_k;
    $("top-p").value = all.top_p;
    $("format").value = all.output_format;
    $("deterministic").checked = all.deterministic;
    $("compare").value = all.compare;
    $("rounds").value = all.rounds;
    showGuidance(all);
    this.showDraftSteps();
    showCompare();
    clearErrors();
  }

  setSeed(seed) {
    $("seed").value = seed;
    $("seed").dispatchEvent(new Event("change", { bubbles: true }));
  }

  showDraftSteps() {
    const draftSteps = $("draft-steps").valueAsNumber;
    const text = `N = ${draftSteps}: ${describeSplit(draftSteps, this.model.num_scales)}`;
    $("draft-steps-text").textContent = text;
    $("draft-steps").setAttribute("aria-valuetext", text);
    [...$("pyramid").children].forEach((bar, i) => (bar.dataset.maker = makerOf(i + 1, draftSteps)));
  }

  allSteps({ draft_steps: draftSteps, compare }) {
    if (compare === ALL) return Array.from({ length: this.model.num_scales + 1 }, (_, steps) => steps);
    if (compare === "") return [draftSteps];
    if (Number(compare) === draftSteps) throw new FieldError("compare", "Choose another N: both images would be the same.");
    return [draftSteps, Number(compare)];
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
  for (let fold = control.closest("details"); fold; fold = fold.parentElement.closest("details")) fold.open = true;
  control.focus();
  return true;
}

export function clearErrors() {
  document.querySelectorAll("[aria-invalid]").forEach(clearError);
}

function clearError(control) {
  control.removeAttribute("aria-invalid");
  $(`${control.id}-error`).textContent = "";
}

function controlOf(error, side) {
  if (error instanceof FieldError) return error.control;
  if (!(error instanceof ApiError)) return undefined;
  const field = error.param?.split(".")[0]; // "temperatures.0"
  return field === "draft_steps" && side === 1 ? "compare" : CONTROLS[field];
}

function pyramidBar(share) {
  const bar = element("span");
  bar.style.height = `${100 * share}%`;
  return bar;
}

function compareOptions(numScales) {
  const mixed = Array.from({ length: numScales - 1 }, (_, i) => numScales - 1 - i);
  const steps = [numScales, 0, ...mixed].map((n) => new Option(`with ${n === numScales || n === 0 ? "the " : ""}${nameSplit(n, numScales)}`, n));
  return [new Option("nothing", ""), new Option(`every N, 0 to ${numScales}, in a row`, ALL), ...steps];
}

function showCompare() {
  $("rounds-field").hidden = $("compare").value === "";
  $("count").disabled = $("compare").value === ALL;
}

function isEmpty(id) {
  return $(id).value === "" && !$(id).validity.badInput;
}

function randomSeed() {
  return crypto.getRandomValues(new Uint32Array(1))[0];
}
