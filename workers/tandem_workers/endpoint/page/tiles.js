// The classes as tiles with a sample image each. Samples are made when a tile is seen for the first time, one at a time,
// never while the user's own images are being made, and then kept in this browser.

import { generateImages, imageBlob } from "./api.js";
import { $, addressOf, element } from "./dom.js";
import { keepSample, sampleOf } from "./store.js";
import { oneLine } from "./words.js";

const SEED = 0;
const PAUSE_MS = 150;

export class Tiles {
  /** `promptOf(item)`: what to ask the API for; `isBusy()`: whether samples have to wait; `onPick(item)`. */
  constructor({ promptOf, isBusy, onPick }) {
    Object.assign(this, { promptOf, isBusy, onPick, items: [], wanted: new Set(), isWorking: false, mayAsk: true });
    this.list = $("tiles");
    this.seen = new IntersectionObserver((entries) => this.want(entries), { root: this.list, rootMargin: "60px" });
    this.listen();
  }

  /** Show these classes of a model. */
  offer(model, items) {
    const hashes = Object.values(model.sha256).map((hash) => hash.slice(0, 12));
    Object.assign(this, { model, items, key: [model.id, ...hashes].join(" ") });
    this.mayAsk = true;
    this.wanted.clear();
    this.seen.disconnect();
    this.list.replaceChildren(...items.map(tileOf));
    this.list.hidden = !items.length;
    if (items.length) this.list.firstElementChild.tabIndex = 0;
    [...this.list.children].forEach((tile) => this.seen.observe(tile));
  }

  /** Mark the class that is chosen now. */
  mark(item) {
    for (const tile of this.list.children) {
      const isChosen = Number(tile.dataset.label) === item?.id;
      tile.setAttribute("aria-pressed", String(isChosen));
      if (isChosen) this.focusable(tile);
    }
  }

  listen() {
    this.list.addEventListener("click", ({ target }) => {
      const tile = target.closest(".tile");
      if (tile) this.onPick(this.items[[...this.list.children].indexOf(tile)]);
    });
    this.list.addEventListener("keydown", (event) => {
      const all = [...this.list.children];
      const at = all.indexOf(document.activeElement);
      const to = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: all.length - 1 }[event.key];
      if (to === undefined || !all[to]) return;
      event.preventDefault();
      this.focusable(all[to]);
      all[to].focus();
    });
  }

  /** One stop of the Tab key for all tiles. */
  focusable(tile) {
    this.list.querySelectorAll("[tabindex='0']").forEach((one) => (one.tabIndex = -1));
    tile.tabIndex = 0;
  }

  want(entries) {
    const seen = entries.filter(({ target, isIntersecting }) => isIntersecting && !target.dataset.sample);
    for (const { target } of entries) this.wanted.delete(target); // scrolled past: others are waited for
    this.wanted = new Set([...seen.map(({ target }) => target), ...this.wanted]); // the last ones seen come first
    this.work();
  }

  /** Fill the tiles in view, one after the other. */
  async work() {
    if (this.isWorking) return;
    this.isWorking = true;
    for (let tile; (tile = [...this.wanted][0]); ) {
      this.wanted.delete(tile);
      const blob = await this.sample(this.items.find((item) => item.id === Number(tile.dataset.label)));
      if (blob) show(tile, blob);
    }
    this.isWorking = false;
  }

  async sample(item) {
    const key = `${this.key} ${item.id}`;
    const kept = await sampleOf(key);
    if (kept) return kept;
    while (this.mayAsk && this.isBusy()) await new Promise((resolve) => setTimeout(resolve, PAUSE_MS));
    if (!this.mayAsk || navigator.connection?.saveData) return null;
    try {
      const response = await generateImages({ prompt: this.promptOf(item), seed: SEED, output_format: "webp" });
      const answer = await response.json();
      const blob = imageBlob({ ...answer.data[0], output_format: answer.output_format });
      keepSample(key, blob);
      return blob;
    } catch {
      this.mayAsk = false; // busy, or gone: samples are an extra
      return null;
    }
  }
}

function tileOf({ id, name }) {
  const picture = element("span", { className: "sample" });
  const tile = element("button", { type: "button", className: "tile", title: name, tabIndex: -1 }, picture, element("span", { className: "name", textContent: oneLine(name).slice(0, 80) }));
  tile.dataset.label = id;
  tile.setAttribute("aria-pressed", "false");
  return tile;
}

function show(tile, blob) {
  tile.dataset.sample = "made";
  tile.querySelector(".sample").append(element("img", { src: addressOf(blob), alt: "", draggable: false }));
}
