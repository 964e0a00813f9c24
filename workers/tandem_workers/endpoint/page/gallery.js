// All runs on the page, newest first, kept in this browser; how large they are seen, and what can be done with all.

import { $, release } from "./dom.js";
import { Lightbox } from "./lightbox.js";
import { isBlank, isWhole, picturesOf } from "./run.js";
import { RunView, savePictures } from "./runview.js";
import { forgetAllRuns, forgetRun, keepRun, keptRuns } from "./store.js";
import { counted } from "./words.js";

const LOOKS = { size: "m", pixels: "smooth" };

export class Gallery {
  /** `onReuse(settings)`: somebody wants the settings of a picture; `onEdit(picture)`: or it itself, to edit it. */
  constructor({ onReuse, onEdit }) {
    Object.assign(this, { views: [], onReuse });
    this.lightbox = new Lightbox({ allRuns: () => this.views.map((view) => view.run), onReuse, onEdit });
    this.on = { open: (picture) => this.lightbox.open(picture), reuse: onReuse, edit: onEdit, remove: (view) => this.remove(view) };
    this.listen();
  }

  get newest() {
    return this.views[0]?.run;
  }

  /** Show what was kept, below what there is. */
  async restore() {
    const runs = await keptRuns();
    const views = runs.map((run) => RunView.restored(run, this.on));
    this.views.push(...views);
    $("results").append(...views.map((view) => view.element));
    this.showCount();
  }

  /** `isUnasked`: the page stays where it is. */
  begin(run, isUnasked) {
    const view = new RunView(run, this.on);
    this.views.unshift(view);
    $("results").prepend(view.element);
    if (!isUnasked) view.element.scrollIntoView({ block: "nearest" });
    this.showCount();
    return view;
  }

  /** A run has come to its end: kept if it is whole, gone if nothing of it was seen. */
  async end(view, problem = "") {
    view.finish(problem);
    if (isBlank(view.run)) this.take(view);
    this.showCount();
    if (isWhole(view.run)) view.run.id = (await keepRun(view.run)) ?? undefined;
  }

  remove(view) {
    const next = view.element.nextElementSibling ?? view.element.previousElementSibling;
    this.take(view);
    this.showCount();
    (next?.querySelector(".open") ?? $("generate")).focus();
    if (view.run.id !== undefined) forgetRun(view.run.id);
  }

  take(view) {
    this.views = this.views.filter((one) => one !== view);
    view.element.remove();
    view.run.sides.forEach((side) => side.images.forEach((image) => image.scales.forEach((blob) => blob && release(blob))));
  }

  clear() {
    if (!confirm(`Remove ${counted(this.pictures.length, "image")} from this browser?`)) return;
    [...this.views].filter((view) => view.element.dataset.state !== "running").forEach((view) => this.take(view));
    forgetAllRuns();
    this.showCount();
    $("generate").focus();
  }

  get pictures() {
    return this.views.flatMap((view) => picturesOf(view.run));
  }

  showCount() {
    const isEmpty = this.views.length === 0;
    $("empty").hidden = !isEmpty;
    $("gallery-tools").hidden = isEmpty;
    $("save-all").hidden = $("clear").hidden = this.pictures.length < 2;
  }

  listen() {
    $("save-all").addEventListener("click", () => savePictures(this.pictures));
    $("clear").addEventListener("click", () => this.clear());
    for (const [name, fallback] of Object.entries(LOOKS)) {
      const show = (value) => (document.documentElement.dataset[name] = value);
      const choices = document.querySelectorAll(`input[name=${name}]`);
      const kept = localStorage.getItem(`tandem-${name}`) ?? fallback;
      choices.forEach((choice) => {
        choice.checked = choice.value === kept;
        choice.addEventListener("change", () => {
          localStorage.setItem(`tandem-${name}`, choice.value);
          show(choice.value);
        });
      });
      show(kept);
    }
  }
}
