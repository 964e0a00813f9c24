// Cards: one image, or two of the same seed under a reveal slider, from the first preview to the finished picture.

import { curlLine } from "./api.js";
import { Reveal } from "./reveal.js";

const STAGES = ["wait", "draft", "refine", "decode", "encode"];
const SHOWN_PX = 256; // small images are enlarged to about this, by a whole factor
const COPIED_MS = 1600;

/** "drafter makes scales 1–5, refiner 6–7" */
export function describeSplit(draftSteps, numScales) {
  if (draftSteps === numScales) return "drafter alone";
  if (draftSteps === 0) return "refiner alone";
  const scales = draftSteps === 1 ? "scale" : "scales";
  return `drafter makes ${scales} ${range(1, draftSteps)}, refiner ${range(draftSteps + 1, numScales)}`;
}

/** "N = 5", or which model is alone. */
export function nameSplit(draftSteps, numScales) {
  const isMixed = draftSteps > 0 && draftSteps < numScales;
  return isMixed ? `N = ${draftSteps}` : describeSplit(draftSteps, numScales);
}

export function makerOf(scale, draftSteps) {
  return scale <= draftSteps ? "drafter" : "refiner";
}

/** Shown size of a picture in CSS pixels. */
export function shownSize(imageSize) {
  return imageSize * Math.max(1, Math.round(SHOWN_PX / imageSize));
}

/** One card. `bodies` are the requests that make its image: one, or two of different N to compare. */
export class Card {
  constructor({ model, className, bodies, index, onReuse }) {
    Object.assign(this, { model, className, index, onReuse });
    this.element = instantiate("card-template");
    this.title = this.element.querySelector("h3");
    this.title.textContent = className;
    this.frame = this.element.querySelector(".frame");
    if (bodies.length > 1) this.startReveal(bodies);
    const pictures = this.frame.querySelectorAll(".picture");
    this.sides = bodies.map((body, i) => new Side(this, body, pictures[i]));
    this.element.querySelector(".sides").append(...this.sides.map((side) => side.element));
    this.showSettings(bodies[0]);
  }

  /** Whether anything of the image has been seen. */
  get isBlank() {
    return this.sides.every((side) => side.previews === 0 && !side.seconds);
  }

  get isDone() {
    return this.sides.every((side) => side.seconds);
  }

  /** Bars of both sides on one scale: the longer one took longer. */
  finish() {
    if (!this.isDone) return;
    const longest = Math.max(...this.sides.map((side) => side.seconds.total));
    for (const side of this.sides) side.bar.style.width = `${(100 * side.seconds.total) / longest}%`;
    this.element.dataset.state = "done";
  }

  fail(message) {
    const problem = this.element.querySelector(".problem");
    problem.textContent = message;
    problem.hidden = false;
    this.element.dataset.state = "error";
  }

  showSettings({ seed, n, cfg, top_k, top_p, deterministic }) {
    const facts = [`seed ${seed}`, `cfg ${cfg}`, `top-p ${top_p}`];
    if (top_k) facts.push(`top-k ${top_k}`);
    if (deterministic) facts.push("deterministic");
    if (n > 1) facts.push(`image ${this.index + 1} of ${n}`);
    this.element.querySelector(".settings").textContent = facts.join(" · ");
  }

  /** The frame with a second picture in it. */
  startReveal(bodies) {
    this.frame.append(...instantiateAll("reveal-template"));
    const [left, right] = bodies.map((body) => nameSplit(body.draft_steps, this.model.num_scales));
    const input = this.frame.querySelector(".reveal input");
    const names = this.element.querySelector(".reveal-names");
    this.reveal = new Reveal({ frame: this.frame, input, names, left, right });
  }
}

/** One image with a certain N: its strip of scales, its times and its command. */
class Side {
  constructor(card, body, picture) {
    Object.assign(this, { card, body, picture, previews: 0, seconds: null });
    const { num_scales: numScales } = card.model;
    this.name = nameSplit(body.draft_steps, numScales);
    this.element = instantiate("side-template");
    this.bar = this.find(".bar");
    this.find(".split b").textContent = this.name;
    this.find(".split span").textContent = whoMakesWhat(body.draft_steps, numScales);
    this.strip = this.find(".strip");
    this.strip.setAttribute("aria-label", describeSplit(body.draft_steps, numScales));
    this.find(".reuse").addEventListener("click", () => card.onReuse(body));
    this.strip.append(...Array.from({ length: numScales }, () => document.createElement("span")));
    this.picture.dataset.previews = 0;
  }

  find(selector) {
    return this.element.querySelector(selector);
  }

  preview(event, elapsedMs) {
    this.firstMs ??= elapsedMs;
    this.previews += 1;
    this.picture.dataset.previews = this.previews;
    this.show(event, event.scale, event.made_by);
  }

  complete(event) {
    const { num_scales: numScales } = this.card.model;
    const made = event.tandem;
    this.card.title.textContent = made.class_name; // a number may have been asked for
    this.show(event, numScales, makerOf(numScales, made.draft_steps));
    this.picture.alt = `${made.class_name}, seed ${made.seed}, ${this.name}`;
    this.seconds = made.seconds;
    this.showTimes();
    this.offerAgain(made);
    this.find(".made").hidden = false;
    this.card.finish();
  }

  show({ b64_json: data, output_format: format }, scale, maker) {
    const address = `data:image/${format};base64,${data}`;
    this.picture.dataset.scale = scale;
    this.picture.alt = `${this.card.className}, scale ${scale}`;
    this.picture.src = address;
    const cell = this.strip.children[scale - 1];
    cell.dataset.maker = maker;
    cell.title = `scale ${scale}, ${maker}`;
    const thumbnail = new Image();
    Object.assign(thumbnail, { src: address, alt: "" });
    cell.replaceChildren(thumbnail);
    if (this !== this.card.sides[0]) this.card.reveal.open();
  }

  showTimes() {
    const stages = STAGES.filter((stage) => this.seconds[stage] !== undefined);
    this.bar.replaceChildren(...stages.map((stage) => barPart(stage, this.seconds[stage])));
    this.find(".times").replaceChildren(...[...stages, "total"].map((stage) => timeOf(stage, this.seconds[stage])));
    const first = this.firstMs === undefined ? "" : `First preview seen after ${duration(this.firstMs / 1000)}`;
    this.find(".first").textContent = first;
  }

  offerAgain(made) {
    const { index } = this.card;
    const { output_format: format } = this.body;
    const stem = `${made.class_name}-${made.seed}-${index}-N${made.draft_steps}`.replaceAll(/[^\w-]+/g, "_");
    const filename = `${stem}.${format === "jpeg" ? "jpg" : format}`;
    const code = this.find(".curl code");
    code.textContent = curlLine({ body: this.body, made, index, filename });
    this.find(".copy").addEventListener("click", (event) => copy(code, event.currentTarget));
    Object.assign(this.find(".save"), { href: this.picture.src, download: filename });
  }
}

/** "drafter 1–5, refiner 6–7": beside a strip that shows the scales. */
function whoMakesWhat(draftSteps, numScales) {
  const isMixed = draftSteps > 0 && draftSteps < numScales;
  return isMixed ? `drafter ${range(1, draftSteps)}, refiner ${range(draftSteps + 1, numScales)}` : `N = ${draftSteps}`;
}

function barPart(stage, seconds) {
  const part = document.createElement("span");
  part.dataset.stage = stage;
  part.style.flexGrow = seconds * 1000; // less than 1 in all would not fill the bar
  part.title = `${stage} ${duration(seconds)}`;
  return part;
}

function timeOf(stage, seconds) {
  const group = document.createElement("div");
  const [name, value] = [document.createElement("dt"), document.createElement("dd")];
  group.dataset.stage = stage;
  name.textContent = stage;
  value.textContent = duration(seconds);
  group.append(name, value);
  return group;
}

/** "41 ms", "1.24 s" */
function duration(seconds) {
  if (seconds >= 0.9995) return `${seconds.toFixed(2)} s`;
  const ms = seconds * 1000;
  return `${ms < 9.95 ? ms.toFixed(1) : Math.round(ms)} ms`;
}

function range(first, last) {
  return first === last ? `${first}` : `${first}–${last}`;
}

async function copy(code, button) {
  button.textContent = (await copied(code)) ? "Copied" : "Not copied";
  setTimeout(() => (button.textContent = "Copy curl"), COPIED_MS);
}

async function copied(code) {
  // the clipboard API exists on https and localhost only; a server in a local network is neither
  if (navigator.clipboard) return navigator.clipboard.writeText(code.textContent).then(() => true, () => false);
  getSelection().selectAllChildren(code);
  return document.execCommand("copy");
}

function instantiate(id) {
  return instantiateAll(id)[0];
}

function instantiateAll(id) {
  return [...document.getElementById(id).content.cloneNode(true).children];
}
