// One picture, large: arrow keys go through the gallery, the slider through its scales; beside it what it is and what can
// be done with it.

import { linkOf, settingsOf } from "./address.js";
import { $, element } from "./dom.js";
import { Frame } from "./frame.js";
import { animated } from "./gif.js";
import { filenameOf, nameOf, picturesOf, queryOfSide, secondsOf } from "./run.js";
import { canCopyImages, copyImage, copyText, onPress, save } from "./saving.js";
import { curlLine, pythonProgram } from "./snippets.js";
import { describeGuidance, describeSplit, duration } from "./words.js";

export class Lightbox {
  /** `allRuns()`: the gallery's, in their order; `onReuse(settings)`, `onEdit(picture)`. */
  constructor({ allRuns, onReuse, onEdit }) {
    Object.assign(this, { allRuns, onReuse, onEdit, dialog: $("lightbox") });
    this.listen();
  }

  get pictures() {
    return this.allRuns().flatMap(picturesOf);
  }

  open(picture) {
    if (!picture.side.made) return; // still being made
    this.show(picture);
    if (!this.dialog.open) this.dialog.showModal();
    $("lightbox-close").focus();
  }

  show({ run, side, index }) {
    const picture = this.pictures.find((one) => one.side === side && one.index === index);
    this.picture = picture;
    const { num_scales: numScales, id } = run.model;
    const { made, body } = side;
    this.frame = new Frame({ numScales, draftSteps: body.draft_steps, name: nameOf(picture) });
    side.images[index].scales.forEach((blob, i) => blob && this.frame.put(i + 1, blob));
    $("lightbox-stage").replaceChildren(this.frame.element);
    $("lightbox-title").textContent = made.class_name;
    const facts = {
      seed: made.seed,
      "draft steps": `N = ${made.draft_steps}: ${describeSplit(made.draft_steps, numScales)}`,
      guidance: describeGuidance(made),
      "top-k": made.top_k || "all",
      "top-p": made.top_p || "off",
      image: body.n > 1 ? `${index + 1} of ${body.n}` : null,
      time: `${duration(secondsOf(side).total)} for the request`,
      model: id,
    };
    const known = Object.entries(facts).filter(([, value]) => value !== null);
    const row = ([name, value]) => element("div", {}, element("dt", { textContent: name }), element("dd", { textContent: value }));
    $("lightbox-facts").replaceChildren(...known.map(row));
    $("lightbox-code").textContent = curlLine(this.snippet);
    const { pictures } = this;
    const at = pictures.findIndex(({ blob }) => blob === picture.blob);
    $("lightbox-place").textContent = `${at + 1} of ${pictures.length}`;
    $("lightbox-previous").disabled = at <= 0;
    $("lightbox-next").disabled = at === pictures.length - 1;
  }

  get snippet() {
    const { side, index } = this.picture;
    return { body: side.body, made: side.made, index, filename: filenameOf(this.picture) };
  }

  /** To the next picture of the gallery, or the one before. */
  move(step) {
    const { pictures } = this;
    const at = pictures.findIndex(({ blob }) => blob === this.picture.blob);
    if (pictures[at + step]) this.show(pictures[at + step]);
  }

  listen() {
    const { dialog } = this;
    dialog.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step || event.target.matches("input, pre")) return; // the slider has these keys itself
      event.preventDefault();
      this.move(step);
    });
    dialog.addEventListener("click", ({ target }) => target === dialog && dialog.close());
    $("lightbox-previous").addEventListener("click", () => this.move(-1));
    $("lightbox-next").addEventListener("click", () => this.move(1));
    $("lightbox-close").addEventListener("click", () => dialog.close());
    $("lightbox-save").addEventListener("click", () => save(this.picture.blob, filenameOf(this.picture)));
    $("lightbox-edit").addEventListener("click", () => {
      dialog.close();
      this.onEdit(this.picture);
    });
    $("lightbox-reuse").addEventListener("click", () => {
      dialog.close();
      this.onReuse(settingsOf(queryOfSide(this.picture.run, this.picture.side)));
    });
    $("lightbox-copy").hidden = !canCopyImages;
    onPress($("lightbox-gif"), () => this.saveGif(), "Saved", "Not saved");
    onPress($("lightbox-copy"), () => copyImage(this.picture.blob));
    onPress($("lightbox-link"), () => copyText(this.link()), "Link copied");
    onPress($("lightbox-python"), () => copyText(pythonProgram(this.snippet)));
    onPress($("lightbox-curl"), () => copyText(curlLine(this.snippet)));
  }

  link() {
    const { run, side } = this.picture;
    return linkOf(settingsOf(queryOfSide(run, side)), run.defaults);
  }

  async saveGif() {
    const { side, index } = this.picture;
    const isSmooth = document.documentElement.dataset.pixels !== "crisp";
    save(await animated(side.images[index].scales.filter(Boolean), isSmooth), filenameOf(this.picture, "gif"));
    return true;
  }
}
