// One run on the page: a grid of its pictures, one set of times, and what can be done with it.

import { linkOf, settingsOf } from "./address.js";
import { element, instantiate } from "./dom.js";
import { Frame } from "./frame.js";
import { reveal } from "./reveal.js";
import { filenameOf, isWhole, nameOf, picturesOf, secondsOf, settingsLine } from "./run.js";
import { copyText, onPress, save } from "./saving.js";
import { curlLine, pythonProgram } from "./snippets.js";
import { ENOUGH_ROUNDS, verdict } from "./timing.js";
import { counted, describeSplit, duration, nameSplit } from "./words.js";
import { zipped } from "./zip.js";

const STAGES = ["wait", "draft", "refine", "decode", "encode"];

export class RunView {
  /** `on`: {open(picture), reuse(settings), edit(picture), remove()} */
  constructor(run, on) {
    Object.assign(this, { run, on });
    this.element = instantiate("run-template");
    this.element.dataset.kind = { 1: "single", 2: "pair" }[run.sides.length] ?? "row";
    this.grid = this.find(".grid");
    this.shots = run.sides.map((side) => side.images.map((_, index) => this.makeShot(side, index)));
    for (let index = 0; index < run.sides[0].body.n; index += 1) this.grid.append(...this.shots.map((side) => side[index].element));
    this.element.style.setProperty("--pictures", this.grid.childElementCount + Number(run.sides.length === 2));
    this.element.classList.toggle("alone", this.grid.childElementCount === 1);
    if (run.sides.length > 1) this.grid.addEventListener("scrub", (event) => this.scrubAll(event.detail));
    this.showTitle();
    this.listen();
  }

  /** A run of the gallery, as it was. */
  static restored(run, on) {
    const view = new RunView(run, on);
    run.sides.forEach((side, s) =>
      side.images.forEach(({ scales }, index) => scales.forEach((blob, i) => blob && view.shots[s][index].frame.put(i + 1, blob))),
    );
    view.finish();
    return view;
  }

  find(selector) {
    return this.element.querySelector(selector);
  }

  makeShot(side, index) {
    const { num_scales: numScales } = this.run.model;
    const { draft_steps: draftSteps } = side.body;
    const picture = { run: this.run, side, index };
    const frame = new Frame({ numScales, draftSteps, name: nameOf(picture), onOpen: () => this.on.open(picture) });
    const figure = element("figure", { className: "shot" }, frame.element);
    const caption = element("figcaption");
    if (this.run.sides.length > 1) {
      caption.append(element("b", { textContent: nameSplit(draftSteps, numScales) }), element("span", { className: "quiet" }));
      figure.append(caption);
      caption.title = describeSplit(draftSteps, numScales);
    }
    return { element: figure, frame, caption };
  }

  /** A scale has come; the run has it already. */
  put(sideIndex, imageIndex, scale, blob) {
    this.shots[sideIndex][imageIndex].frame.put(scale, blob);
  }

  showTitle() {
    const name = this.run.sides.find((side) => side.made)?.made.class_name ?? this.run.className;
    this.find("h3").textContent = name;
    this.find(".settings").textContent = settingsLine(this.run);
  }

  /** All is there, or nothing more will come. */
  finish(problem = "") {
    this.showTitle();
    this.showTimes();
    this.find(".problem").textContent = problem;
    const isDone = isWhole(this.run);
    this.element.dataset.state = isDone ? "done" : "error";
    this.find(".actions").hidden = !picturesOf(this.run).length;
    if (isDone && this.run.sides.length === 2) this.showReveal();
    const count = picturesOf(this.run).length;
    this.find(".save").textContent = count > 1 ? "Save all" : "Save";
    this.nameButtons();
  }

  /** Many buttons are called "Save": with the picture's name each has its own. */
  nameButtons() {
    const name = `${this.run.className}, seed ${this.run.sides[0].body.seed}`;
    this.element.querySelectorAll(".actions button, .actions summary").forEach((button) => {
      button.setAttribute("aria-label", `${button.textContent.trim()}: ${name}`);
    });
  }

  showReveal() {
    const [left, right] = this.run.sides;
    left.images.forEach(({ scales }, index) => {
      const of = (side, blob) => ({ name: nameSplit(side.body.draft_steps, this.run.model.num_scales), blob });
      const both = reveal(of(left, scales.at(-1)), of(right, right.images[index].scales.at(-1)));
      this.shots[1][index].element.after(both);
    });
  }

  showTimes() {
    const made = this.run.sides.filter((side) => side.made);
    if (!made.length) return;
    const longest = Math.max(...made.map((side) => secondsOf(side).total));
    this.find(".times").replaceChildren(...made.map((side) => this.timesOf(side, secondsOf(side), longest)));
    this.find(".timing").hidden = this.run.sides.length > 1;
    this.find(".timing summary .total").textContent = duration(secondsOf(made[0]).total);
    this.find(".timing summary .bar").replaceWith(stageBar(secondsOf(made[0]), 1));
    if (this.run.sides.length > 1) this.showComparison(longest);
  }

  timesOf(side, seconds) {
    const stages = [...STAGES.filter((stage) => seconds[stage] !== undefined), "total"];
    const list = element("dl", {}, ...stages.map((stage) => timeOf(stage, seconds[stage])));
    const first = side.firstMs === null ? "" : `First preview seen after ${duration(side.firstMs / 1000)}.`;
    return element("div", {}, list, element("p", { className: "first quiet", textContent: first }));
  }

  /** Under each picture its median and what is sure about it, against the drafter alone (or the other one of two). */
  showComparison(longest) {
    const { sides, model } = this.run;
    const base = sides.find((side) => side.body.draft_steps === model.num_scales) ?? sides.at(-1);
    const rounds = Math.min(...sides.map((side) => side.times.length));
    const totals = (side) => side.times.slice(0, rounds).map(({ total }) => total);
    sides.forEach((side, s) => {
      const { caption } = this.shots[s][0];
      if (!rounds) return;
      const said = side === base ? "" : verdict(totals(side), totals(base));
      caption.querySelector("span").textContent = [duration(secondsOf(side).total), said].filter(Boolean).join(", ");
      caption.prepend(stageBar(secondsOf(side), secondsOf(side).total / longest));
    });
    this.find(".method").textContent = methodOf(rounds, nameSplit(base.body.draft_steps, model.num_scales));
  }

  scrubAll(scale) {
    this.shots.flat().forEach(({ frame }) => frame.show(scale));
  }

  listen() {
    const first = () => picturesOf(this.run)[0];
    const snippet = (write) => () => {
      const { side, index } = first();
      return copyText(write({ body: side.body, made: side.made, index, filename: filenameOf(first()) }));
    };
    this.find(".save").addEventListener("click", () => savePictures(picturesOf(this.run)));
    this.find(".edit").addEventListener("click", () => this.on.edit(first()));
    this.find(".reuse").addEventListener("click", () => this.on.reuse(settingsOf(this.run.query)));
    this.find(".remove").addEventListener("click", () => this.on.remove(this));
    onPress(this.find(".link"), () => copyText(linkOf(settingsOf(this.run.query), this.run.defaults)), "Link copied");
    onPress(this.find(".python"), snippet(pythonProgram));
    onPress(this.find(".curl"), snippet(curlLine));
  }
}

/** One picture as its file, several as a ZIP with their settings. */
export async function savePictures(pictures) {
  if (pictures.length === 1) {
    save(pictures[0].blob, filenameOf(pictures[0]));
    return;
  }
  const files = pictures.map((picture) => ({ name: filenameOf(picture), blob: picture.blob }));
  const settings = pictures.map((picture) => ({ file: filenameOf(picture), image: picture.index, ...picture.side.made }));
  files.push({ name: "settings.json", blob: new Blob([JSON.stringify(settings, null, 2)]) });
  save(await zipped(files), `tandem-${pictures.length}-images.zip`);
}

/** A bar of the stages; `share` of the longest. */
export function stageBar(seconds, share) {
  const parts = STAGES.filter((stage) => seconds[stage]).map((stage) => {
    const part = element("span", { title: `${stage} ${duration(seconds[stage])}` });
    part.dataset.stage = stage;
    part.style.flexGrow = seconds[stage] * 1000; // less than 1 in all would not fill the bar
    return part;
  });
  const bar = element("div", { className: "bar" }, ...parts);
  bar.style.width = `${100 * share}%`;
  bar.setAttribute("aria-hidden", "true");
  return bar;
}

function timeOf(stage, seconds) {
  const group = element("div", {}, element("dt", { textContent: stage }), element("dd", { textContent: duration(seconds) }));
  group.dataset.stage = stage;
  return group;
}

function methodOf(rounds, baseName) {
  if (!rounds) return "Not timed.";
  const many = `Medians of ${counted(rounds, "round")} in turn, as the server measured them, without previews.`;
  if (rounds < ENOUGH_ROUNDS) return `${many} Too few to call one faster.`;
  return `${many} Against ${baseName}: faster is what was faster in every round.`;
}
