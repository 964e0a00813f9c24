// A picture in its frame. Its scales, coarse to fine, lie behind it: the pointer over it, a finger or a slider goes through
// them.

import { addressOf, element, instantiate } from "./dom.js";
import { makerOf } from "./words.js";

const DRAG_PX = 6; // less is a tap

export class Frame {
  /** `name`: of the picture, in words. `onOpen`: what a press on it does; none: it is no button. */
  constructor({ numScales, draftSteps, name, onOpen }) {
    Object.assign(this, { numScales, draftSteps, name, blobs: Array(numScales).fill(null), shown: 0 });
    this.element = instantiate("frame-template");
    this.picture = this.element.querySelector(".picture");
    this.slider = this.element.querySelector(".scrub");
    this.cells = Array.from({ length: numScales }, () => element("span"));
    this.element.querySelector(".scales").append(...this.cells);
    this.slider.max = numScales;
    this.slider.setAttribute("aria-label", `Coarse to fine: ${name}`);
    this.listen(onOpen);
  }

  listen(onOpen) {
    const { element: frame, slider } = this;
    const button = frame.querySelector(".open");
    if (onOpen) {
      button.setAttribute("aria-label", `Open ${this.name}`);
      button.addEventListener("click", () => this.wasDragged || onOpen());
    } else {
      button.replaceWith(this.picture);
    }
    slider.addEventListener("input", () => this.scrub(slider.valueAsNumber));
    frame.addEventListener("pointerdown", (event) => this.press(event));
    frame.addEventListener("pointermove", (event) => this.follow(event));
    frame.addEventListener("pointerleave", () => this.scrub(this.numScales));
  }

  press({ clientX }) {
    this.pressedAt = clientX;
    this.wasDragged = false;
  }

  /** A mouse need only be over the picture; a finger has to move along. */
  follow({ clientX, pointerType }) {
    const isTap = Math.abs(clientX - this.pressedAt) < DRAG_PX;
    if (pointerType !== "mouse" && isTap && !this.wasDragged) return;
    this.wasDragged = pointerType !== "mouse";
    const { left, width } = this.element.getBoundingClientRect();
    const share = (clientX - left) / width;
    this.scrub(Math.min(this.numScales, Math.max(1, 1 + Math.floor(share * this.numScales))));
  }

  /** A scale has come; while the image is being made, the newest is shown. */
  put(scale, blob) {
    this.blobs[scale - 1] = blob;
    this.cells[scale - 1].dataset.maker = makerOf(scale, this.draftSteps);
    this.picture.dataset.previews = this.blobs.filter(Boolean).length - Number(scale === this.numScales);
    this.show(scale);
    this.slider.disabled = !this.blobs.at(-1);
  }

  /** Show a scale because somebody asked for it: others that are compared with this one are told. */
  scrub(scale) {
    if (this.slider.disabled || scale === this.shown) return;
    this.show(scale);
    this.element.dispatchEvent(new CustomEvent("scrub", { detail: scale, bubbles: true }));
  }

  show(scale) {
    const there = this.blobs.findLastIndex((blob, i) => blob && i < scale); // a preview may not have come
    if (there < 0) return;
    this.shown = scale;
    this.picture.src = addressOf(this.blobs[there]);
    this.picture.dataset.scale = scale;
    this.picture.alt = scale === this.numScales ? this.name : `${this.name}, after scale ${scale}`;
    this.slider.value = scale;
    this.slider.setAttribute("aria-valuetext", `scale ${scale} of ${this.numScales}, ${makerOf(scale, this.draftSteps)}`);
    this.cells.forEach((cell, i) => cell.classList.toggle("ahead", i >= scale));
  }
}
